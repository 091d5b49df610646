"""Local expectation gradients: the gradient of one element at a time is summed over its values."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp

from ppl.estimators.enumerate import Finite
from ppl.estimators.protocol import EACH, Branches


def local_branches(key: Any, distribution: Any, support: Any) -> Branches:
    """A draw, then the other values of the support in cyclic order, each weighted by `p(value) - sg(p(value))`."""
    log_p = distribution.log_prob(support)
    size = support.shape[0]
    drawn = jax.random.categorical(key, jax.lax.stop_gradient(log_p), axis=0)
    order = (drawn + jnp.reshape(jnp.arange(size), (size,) + (1,) * drawn.ndim)) % size
    event = (1,) * (support.ndim - log_p.ndim)
    values = jnp.take_along_axis(support, jnp.reshape(order, order.shape + event), axis=0)
    p = jnp.exp(jnp.take_along_axis(log_p, order, axis=0))
    return Branches(values, (p - jax.lax.stop_gradient(p)).at[0].add(1.0))


@dataclasses.dataclass(frozen=True)
class LocalExpectation(Finite):
    """A draw, and all other values of one element at a time (Titsias and Lazaro-Gredilla 2015, eq. 5).

    The gradient in an element's parameters is the exact sum over its values, the other elements being drawn. N coupled elements
    of K values cost N (K - 1) + 1 evaluations, where enumeration would take K^N; independent elements of a plate cost K
    evaluations together. Derivatives are of the first order: a second one raises `EstimatorError`.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.expectation
        ... def chance(p):
        ...     return 1.0 * ppl.sample("x", dist.Bernoulli(probs=p), estimator=ppl.estimators.LocalExpectation())
        >>> float(chance.grad(jax.random.key(0), 0.25))
        1.0
    """

    unbiased: bool = dataclasses.field(default=True, init=False)
    coupling = EACH
    axis: Hashable | None = dataclasses.field(default=None, init=False)

    def particle(self, key: Any, distribution: Any) -> Branches:
        return local_branches(key, distribution, self.support(distribution))
