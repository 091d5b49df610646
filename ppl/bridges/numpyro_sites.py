"""A NumPyro `sample` message as a site: what its handlers left of the distribution, and the statement that places it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions.distribution import Unit

from ppl import errors
from ppl.masks import Plain, broadcast, expand, with_dimensions
from ppl.program import Bound, inline, sample
from ppl.site import user_frame


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
        scale = broadcast(with_dimensions(scale, site.folded), batch_shape)
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
