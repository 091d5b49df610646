"""Distributions without the masks in them: a mask is a matter of a site's cost, and never of what is drawn or of its score."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist


class Plain(NamedTuple):
    """A distribution without masks in it, a mask over its batch shape, and how many event dimensions became batch ones."""

    distribution: Any
    mask: Any = None
    folded: int = 0


def plain(distribution: Any) -> Plain:
    """Take the masks out of a distribution, however deep they are.

    What is drawn does not depend on a mask, and neither does the score of what is drawn: only the cost does. A mask inside of
    `to_event` covers elements of an event, so that event is taken apart into its independent elements.
    """
    if isinstance(distribution, dist.MaskedDistribution):
        inner = plain(distribution.base_dist)
        mask = with_dimensions(distribution._mask, inner.folded)
        return inner._replace(mask=mask if inner.mask is None else jnp.logical_and(inner.mask, mask))
    if isinstance(distribution, dist.ExpandedDistribution):
        inner = plain(distribution.base_dist)
        events = inner.distribution.batch_shape[len(inner.distribution.batch_shape) - inner.folded :]
        shape = tuple(distribution.batch_shape) + tuple(events)
        return inner._replace(
            distribution=expand(inner.distribution, shape) if inner.mask is not None else flat(distribution),
            mask=broadcast(inner.mask, shape),
        )
    if isinstance(distribution, dist.Independent):
        inner = plain(distribution.base_dist)
        if inner.mask is None:
            return Plain(flat(distribution))
        return inner._replace(folded=inner.folded + distribution.reinterpreted_batch_ndims)
    return Plain(distribution)


def expand(distribution: Any, batch_shape: tuple[int, ...]) -> Any:
    return flat(distribution.expand(batch_shape))


def flat(distribution: Any) -> Any:
    """An expanded or reinterpreted `ImproperUniform` as one `ImproperUniform`, which says that it has no sampler."""
    base, dims = distribution, 0
    while isinstance(base, dist.ExpandedDistribution | dist.Independent):
        dims += base.reinterpreted_batch_ndims if isinstance(base, dist.Independent) else 0
        base = base.base_dist
    if base is distribution or not isinstance(base, dist.ImproperUniform):
        return distribution
    support = dist.constraints.independent(base.support, dims) if dims else base.support
    return dist.ImproperUniform(support, distribution.batch_shape, distribution.event_shape)


def with_dimensions(array: Any, count: int) -> Any:
    """Trailing dimensions of size one, for the elements of an event."""
    return array if jnp.ndim(array) == 0 else jnp.reshape(array, jnp.shape(array) + (1,) * count)


def broadcast(array: Any, shape: tuple[int, ...]) -> Any:
    return array if array is None or jnp.ndim(array) == 0 else jnp.broadcast_to(array, shape)
