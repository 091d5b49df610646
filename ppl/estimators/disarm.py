"""Antithetic pairs of coins."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ppl.estimators.protocol import JOINT, Branches
from ppl.site import Site


def logits_of_coins(distribution: Any) -> Any:
    """The logits of a Bernoulli distribution, by element; None for any other distribution."""
    base = distribution
    while isinstance(base, dist.ExpandedDistribution):
        base = base.base_dist
    if not isinstance(base, dist.BernoulliProbs | dist.BernoulliLogits):
        return None
    return jnp.broadcast_to(base.logits, distribution.batch_shape)


class Coins:
    """Members of estimators that draw a coin and its antithetic one, `branches` 0 and 1."""

    coupling = JOINT
    axis: Hashable | None = None

    def refuses(self, distribution: Any, site: Site) -> str | None:
        if logits_of_coins(distribution) is not None:
            return None
        return "it is for Bernoulli alone (for Categorical: LocalExpectation(), Samples(K))"

    def branches(self, distribution: Any) -> int:
        return 2


def pair(logits: Any, noise: Any, coefficient: Any, dtype: Any) -> Branches:
    """The coins `noise > sg(-logits)` and `noise < sg(logits)` in logistic noise; the gradient is the coefficient times
    the difference of what follows from them.
    """
    fixed = jax.lax.stop_gradient(logits)
    values = jnp.stack([noise > -fixed, noise < fixed]).astype(dtype)
    gradient = (logits - fixed) * coefficient
    return Branches(values, jnp.stack([1.0 + gradient, -gradient]))


@dataclasses.dataclass(frozen=True)
class DisARM(Coins):
    """Two antithetic coins, averaged over all noise that gives them (Dong, Mnih and Tucker 2020, eq. 9).

    Also known as U2G (Yin, Ho, Yan, Qian and Zhou 2020). All elements are exchanged for their antithetic ones together, so that
    the cost is two evaluations, however many elements there are. The variance is never larger than that of `ARM`.
    Derivatives are of the first order.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.expectation
        ... def square(logit):
        ...     coins = ppl.sample("x", dist.Bernoulli(logits=logit).expand([10]), estimator=ppl.estimators.DisARM())
        ...     return 1.0 * (coins.sum() - 4.0) ** 2
        >>> g = square.grad(jax.random.key(0), 0.0, samples=20_000)  # exactly 5.0
        >>> bool(abs(g - 5.0) < 0.2)
        True
    """

    unbiased: bool = dataclasses.field(default=True, init=False)

    def particle(self, key: Any, distribution: Any) -> Branches:
        logits = logits_of_coins(distribution)
        fixed = jax.lax.stop_gradient(logits)
        noise = jax.random.logistic(key, jnp.shape(logits), jnp.result_type(logits))
        one, other = noise > -fixed, noise < fixed
        coefficient = 0.5 * jnp.where(one == other, 0.0, jnp.where(one, 1.0, -1.0)) * jax.nn.sigmoid(jnp.abs(fixed))
        return pair(logits, noise, coefficient, jnp.int32)
