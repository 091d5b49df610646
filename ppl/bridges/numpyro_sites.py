"""A NumPyro `sample` message as a site: what its handlers left of the distribution, and the statement that places it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions.distribution import Unit

from ppl import errors
from ppl.program import Bound, inline, sample
from ppl.site import user_frame


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
        mask = _with_dimensions(distribution._mask, inner.folded)
        return inner._replace(mask=mask if inner.mask is None else jnp.logical_and(inner.mask, mask))
    if isinstance(distribution, dist.ExpandedDistribution):
        inner = plain(distribution.base_dist)
        events = inner.distribution.batch_shape[len(inner.distribution.batch_shape) - inner.folded :]
        shape = tuple(distribution.batch_shape) + tuple(events)
        return inner._replace(
            distribution=expand(inner.distribution, shape) if inner.mask is not None else _flat(distribution),
            mask=broadcast(inner.mask, shape),
        )
    if isinstance(distribution, dist.Independent):
        inner = plain(distribution.base_dist)
        if inner.mask is None:
            return Plain(_flat(distribution))
        return inner._replace(folded=inner.folded + distribution.reinterpreted_batch_ndims)
    return Plain(distribution)


def expand(distribution: Any, batch_shape: tuple[int, ...]) -> Any:
    return _flat(distribution.expand(batch_shape))


def _flat(distribution: Any) -> Any:
    """An expanded or reinterpreted `ImproperUniform` as one `ImproperUniform`, which says that it has no sampler."""
    base, dims = distribution, 0
    while isinstance(base, dist.ExpandedDistribution | dist.Independent):
        dims += base.reinterpreted_batch_ndims if isinstance(base, dist.Independent) else 0
        base = base.base_dist
    if base is distribution or not isinstance(base, dist.ImproperUniform):
        return distribution
    support = dist.constraints.independent(base.support, dims) if dims else base.support
    return dist.ImproperUniform(support, distribution.batch_shape, distribution.event_shape)


def _with_dimensions(array: Any, count: int) -> Any:
    """Trailing dimensions of size one, for the elements of an event."""
    return array if jnp.ndim(array) == 0 else jnp.reshape(array, jnp.shape(array) + (1,) * count)


def broadcast(array: Any, shape: tuple[int, ...]) -> Any:
    return array if array is None or jnp.ndim(array) == 0 else jnp.broadcast_to(array, shape)


def log_factor(site: Plain) -> Any:
    """The log weight of a `numpyro.factor`, or None for any other site."""
    base = site.distribution
    while isinstance(base, dist.ExpandedDistribution):
        base = base.base_dist
    if not isinstance(base, Unit):
        return None
    weight = jnp.broadcast_to(base.log_factor, site.distribution.batch_shape)
    return weight if site.mask is None else jnp.where(site.mask, weight, 0.0)


def extra_dimensions(name: str, distribution: Any, obs: Any) -> tuple[int, ...]:
    """The leading dimensions that an observation has beyond its distribution: NumPyro takes these for iid draws."""
    found, shape = tuple(np.shape(obs)), tuple(distribution.shape())
    extra = len(found) - len(shape)
    if extra < 0 or found[extra:] != shape:
        raise errors.ObservationShapeError(
            f"the observation of {name!r} has shape {list(found)} and its distribution has shape {list(shape)}.\n"
            f"  {user_frame()}\nNumPyro would broadcast the two silently. Only leading dimensions, for iid draws, may be left "
            "out: reshape the observation or the distribution's parameters, or put the statement into a plate."
        )
    return found[:extra]


def check_scale(name: str, scale: Any, batch_shape: tuple[int, ...]) -> None:
    """Refuse a scale that NumPyro would broadcast a log density to, counting it several times."""
    if not _broadcastable(jnp.shape(scale), batch_shape):
        raise errors.NumPyroError(
            f"the NumPyro statement {name!r} of type 'sample' has batch shape {list(batch_shape)} and stands in a "
            f"handlers.scale of shape {list(jnp.shape(scale))}, which would count its density several times.\n"
            f"  {user_frame()}\n"
            "Give the scale the statement's batch shape, or put the handler around only those statements that it fits "
            "(inside of the body, for a scan)."
        )


def _broadcastable(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    return len(shape) <= len(target) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(target), strict=False))


def place(name: str, site: Plain, *, scale: Any = None, obs: Any = None, value: Any = None) -> Any:
    """Put the site into the program that is being traced. `value` is what a handler substituted for the draw."""
    batch_shape = tuple(site.distribution.batch_shape)
    own = batch_shape[: len(batch_shape) - site.folded]
    if scale is not None:
        check_scale(name, scale, own)
        scale = broadcast(_with_dimensions(scale, site.folded), batch_shape)
    mask = broadcast(site.mask, batch_shape)
    distribution = site.distribution if mask is None else site.distribution.mask(mask)

    def statement() -> Any:
        return sample(name, distribution, obs=obs)

    if scale is None and value is None:
        return statement()
    bound = Bound(statement)
    bound = bound if scale is None else bound.scale(scale)
    return inline(bound if value is None else bound.substitute({name: value}), ())


def expand_by(site: Plain, lead: tuple[int, ...]) -> Plain:
    """Independent copies along leading dimensions."""
    if not lead:
        return site
    shape = lead + tuple(site.distribution.batch_shape)
    return site._replace(distribution=expand(site.distribution, shape), mask=broadcast(site.mask, shape))


def stand_in(distribution: Any, sample_shape: tuple[int, ...], key: Any) -> Any:
    """A draw, or any value of the support where there is no sampler."""
    try:
        return distribution(rng_key=key, sample_shape=sample_shape)
    except NotImplementedError:
        return distribution.support.feasible_like(jnp.zeros(sample_shape + tuple(distribution.shape())))


def is_leaf(value: Any) -> bool:
    """Whether a value is one array and no tree of them."""
    return jax.tree_util.all_leaves([value])
