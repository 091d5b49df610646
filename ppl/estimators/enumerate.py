"""Exact sums over the values of a discrete site."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ppl.estimators.protocol import PRODUCT, Branches, is_unknown
from ppl.site import Site


def support_size(distribution: Any) -> int | None:
    """How many values one element can take, if these are finitely many and known before running."""
    if not getattr(distribution, "has_enumerate_support", False):
        return None
    base = distribution
    while isinstance(base, dist.ExpandedDistribution | dist.MaskedDistribution):
        base = base.base_dist
    if any(is_unknown(getattr(base, name, 0.0)) for name in ("total_count", "low", "high")):
        return None
    try:
        return jax.eval_shape(lambda: base.enumerate_support(expand=False)).shape[0]
    except NotImplementedError:  # elements with supports of different sizes
        return None


class Finite:
    """Members of estimators for finite supports. The values are found while planning: inside of loops, numbers are traced."""

    values: Any = None

    def refuses(self, distribution: Any, site: Site) -> str | None:
        if support_size(distribution) is not None:
            return None
        return f"the values of {site.distribution_name} are not finitely many, or their number is not known before running"

    def specialize(self, distribution: Any) -> Any:
        special = copy.copy(self)
        with jax.ensure_compile_time_eval():
            values = np.asarray(distribution.enumerate_support(expand=False))
        shape = (values.shape[0], *distribution.event_shape)
        object.__setattr__(special, "values", np.reshape(values, shape))
        return special

    def branches(self, distribution: Any) -> int:
        size = support_size(distribution)
        assert size is not None
        return size

    def support(self, distribution: Any) -> Any:
        """All values of every element, `(values, *batch_shape, *event_shape)`."""
        if self.values is None:
            return distribution.enumerate_support(expand=True)
        count, batch, event = len(self.values), distribution.batch_shape, distribution.event_shape
        return jnp.broadcast_to(jnp.reshape(self.values, (count,) + (1,) * len(batch) + event), (count, *batch, *event))


@dataclasses.dataclass(frozen=True)
class Enumerate(Finite):
    """All values, each with its probability: the exact expectation, with derivatives of every order.

    Elements of a site that no common cost depends on are enumerated together, at the cost of one; a chain of them in a `scan`
    is eliminated step by step, as in the forward algorithm (Rabiner 1989). What is coupled in any other way is evaluated in all
    combinations, and refused where these are more than 4096.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.expectation
        ... def chance(p):
        ...     return 1.0 * ppl.sample("x", dist.Bernoulli(probs=p), estimator=ppl.estimators.Enumerate())
        >>> float(chance.grad(jax.random.key(0), 0.25))
        1.0
    """

    unbiased: bool = dataclasses.field(default=True, init=False)
    coupling = PRODUCT
    axis: Hashable | None = dataclasses.field(default=None, init=False)

    def particle(self, key: Any, distribution: Any) -> Branches:
        values = self.support(distribution)
        return Branches(values, jnp.exp(distribution.log_prob(values)))
