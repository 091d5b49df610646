"""Draws from a proposal of the user's, weighted with their density ratio."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ppl.densities import elementwise
from ppl.distributions import corrected
from ppl.estimators.protocol import OneValue, Particle, is_unknown
from ppl.site import Site, describe_support
from ppl.supports import same


@functools.partial(jax.tree_util.register_dataclass, data_fields=["proposal"], meta_fields=[])
@dataclasses.dataclass(frozen=True, eq=False)
class ImportanceSampling(OneValue):
    """`x ~ r`, weight `p(x; theta) / sg(r(x))`: no gradient flows through the proposal (Kloek and van Dijk 1978).

    Works for discrete and continuous sites and any objective; higher derivatives are unbiased too. The variance is finite
    only if the proposal's tails are heavy enough.

    Args:
        proposal: a distribution, or a function from the site's distribution to one. Its support must be the site's. Its batch
            shape broadcasts to the site's, each element with a draw of its own.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> wide = ppl.estimators.ImportanceSampling(lambda p: dist.StudentT(4.0, p.loc, 1.5 * p.scale))
        >>> @ppl.expectation
        ... def square(mean):
        ...     return ppl.sample("x", dist.Normal(mean, 1.0), estimator=wide) ** 2
        >>> g = square.grad(jax.random.key(0), 0.5, samples=20_000)
        >>> bool(abs(g - 1.0) < 0.1)
        True
    """

    proposal: Any | Callable[[Any], Any]
    unbiased = True

    def refuses(self, distribution: Any, site: Site) -> str | None:
        if site.distribution_name in ("Delta", "ImproperUniform"):
            return f"{site.distribution_name} has no density to be weighted with"
        if site.moving_support or site.support is None:
            return "its support moves with its parameters, and the weight's gradient misses what happens at the boundary"
        try:
            drawn, support = self._outline(distribution)
        except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
            return f"the proposal does not fit: {str(error).splitlines()[0]}"
        if jnp.issubdtype(drawn.dtype, jnp.inexact) != jnp.issubdtype(site.dtype, jnp.inexact):
            return f"the proposal draws {drawn.dtype} and the site {site.dtype}"
        if not same(support, site.support):
            return (
                f"the proposal's support is {describe_support(support)} and the site's is {describe_support(site.support)}; "
                "they must be the same"
            )
        return None

    def particle(self, key: Any, distribution: Any) -> Particle:
        proposal = self._found(distribution)
        value = jax.lax.stop_gradient(proposal.sample(key))
        log_r = jax.lax.stop_gradient(proposal.log_prob(value))
        return Particle(value, distribution.log_prob(value) - log_r)

    def _outline(self, distribution: Any) -> tuple[Any, Any]:
        """What a draw of the proposal looks like, and its support."""
        leaves, tree = jax.tree.flatten(distribution)
        unknown = {i: leaf for i, leaf in enumerate(leaves) if is_unknown(leaf)}
        supports = []

        def draw(unknown: dict[int, Any], key: Any) -> Any:
            found = self._found(jax.tree.unflatten(tree, [unknown.get(i, leaf) for i, leaf in enumerate(leaves)]))
            supports.append(found.support)
            return found.sample(key)

        return jax.eval_shape(draw, unknown, jax.random.key(0)), supports[0]

    def _found(self, distribution: Any) -> Any:
        """The proposal in the shape of the site's distribution."""
        found = self.proposal
        if not isinstance(found, dist.Distribution):
            found = found(distribution)
        if not isinstance(found, dist.Distribution):
            raise TypeError(f"it is no distribution but {type(found).__name__}")
        found = elementwise(corrected(found))
        if found.event_dim < distribution.event_dim:
            found = found.to_event(distribution.event_dim - found.event_dim)
        if found.event_dim > distribution.event_dim or found.event_shape != distribution.event_shape:
            raise ValueError(
                f"it draws events of shape {list(found.event_shape)}, and the site draws {list(distribution.event_shape)}"
            )
        return found.expand(distribution.batch_shape) if found.batch_shape != distribution.batch_shape else found
