"""What a site means numerically: how its value is drawn and what its log density is, over all of its plates."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ppl.site import Operands, Site, feasible, lanes, restore
from ppl.watching import watched_cost


class Noise(NamedTuple):
    """Standard normal noise drawn ahead for a site, in place of its key. `sample` takes either."""

    normal: Any


def sample(distribution: Any, key: Any) -> Any:
    """A draw from a distribution, given a key, or `Noise` where `takes_noise` allows it."""
    if not isinstance(key, Noise):
        return distribution.sample(key)
    if isinstance(distribution, dist.Independent):
        return sample(distribution.base_dist, key)
    value = distribution.loc + distribution.scale * key.normal
    return jnp.exp(value) if isinstance(distribution, dist.LogNormal) else value


def elementwise(distribution: Any) -> Any:
    """The distribution whose batch shape holds all independent elements."""
    while type(distribution) is dist.Independent:
        distribution = distribution.base_dist
    return distribution


def takes_noise(site: Site) -> bool:
    """Whether the site's draw is a simple function of standard normal noise of the value's shape."""
    distribution = restore(site, [0.0] * site.tree.num_leaves).distribution
    while type(distribution) is dist.Independent:
        distribution = distribution.base_dist
    return type(distribution) in (dist.Normal, dist.LogNormal)


def draw(site: Site, leaves: Sequence[Any], key: Any) -> Any:
    """One draw for every lane of the site, `site.full_shape`; a pure function of the key and the lane's index."""
    return as_drawn(site, _draw(site, leaves, key))


def as_drawn(site: Site, value: Any) -> Any:
    """A value in the dtype of the site, which a relaxation makes a floating-point one."""
    return value if value.dtype == site.dtype else value.astype(site.dtype)


def _draw(site: Site, leaves: Sequence[Any], key: Any) -> Any:
    if not site.plates:
        return sample(restore(site, leaves).distribution, key)
    batched = batched_distribution(site, leaves)
    if batched is not None:
        return sample(batched, key)
    return per_lane(site, leaves, key, lambda key, operands: sample(operands.distribution, key))


def per_lane(site: Site, leaves: Sequence[Any], key: Any, function: Any) -> Any:
    """`function(key, operands)` for every lane, each with a key of its own."""
    keys = key if isinstance(key, Noise) else jax.random.split(key, site.plate_shape)
    return lanes(site, leaves, lambda operands, key: function(key, operands), keys)


def log_prob(site: Site, leaves: Sequence[Any], value: Any) -> Any:
    """Log density of each independent element, in nats: plates first, then the distribution's batch shape."""
    return lanes(site, leaves, lambda operands, value: operands.distribution.log_prob(value), value)


@watched_cost
def cost(site: Site, leaves: Sequence[Any], value: Any) -> Any:
    """The site's scalar contribution to its program's log density: masked, scaled, summed over lanes and elements."""

    def one(operands: Operands, value: Any) -> Any:
        distribution, scale, mask = operands.distribution, operands.scale, operands.mask
        if mask is not None:
            spread = jnp.reshape(mask, jnp.shape(mask) + (1,) * (jnp.ndim(value) - jnp.ndim(mask)))
            # The value is replaced too: a missing entry is often NaN, and its gradient would leak through the mask.
            value = jnp.where(spread, value, feasible(site, jnp.shape(value)))
        log_density = distribution.log_prob(value)
        if mask is not None:
            log_density = jnp.where(mask, log_density, 0.0)
        return log_density if scale is None else scale * log_density

    whole = restore(site, leaves)
    plain = whole.scale is None and whole.mask is None
    batched = batched_distribution(site, leaves) if site.plates and plain else None
    if batched is not None:
        return total(site, batched.log_prob(value))
    return total(site, lanes(site, leaves, one, value))


@watched_cost
def factor_cost(site: Site, leaves: Sequence[Any]) -> Any:
    """The contribution of a `factor`."""

    def one(operands: Operands) -> Any:
        log_weight = operands.value if operands.mask is None else jnp.where(operands.mask, operands.value, 0.0)
        return log_weight if operands.scale is None else operands.scale * log_weight

    return total(site, lanes(site, leaves, one))


def total(site: Site, elements: Any) -> Any:
    summed = jnp.sum(elements, dtype=jnp.promote_types(jnp.result_type(elements), jnp.result_type(float)))
    return summed if site.plate_scale == 1.0 else site.plate_scale * summed


@functools.cache
def parameters(kind: Any) -> tuple[tuple[str, int], ...] | None:
    """Names and event dimensions of a class's parameters, where these alone say what a distribution of it is."""
    if not kind.__module__.startswith(("numpyro.distributions", "ppl.")):
        return None
    constraints = kind.arg_constraints
    if not isinstance(constraints, dict) or not constraints:
        return None
    signature = {name: p for name, p in inspect.signature(kind).parameters.items() if name != "validate_args"}
    if set(signature) != set(constraints) or any(p.default is None for p in signature.values()):
        return None  # it has other arguments, or a choice of parameters
    try:
        return tuple((name, constraint.event_dim) for name, constraint in constraints.items())
    except (AttributeError, NotImplementedError):
        return None


def batched_distribution(site: Site, leaves: Sequence[Any]) -> Any:
    """The distribution with all plates as leading batch dimensions, or None where its class does not allow it.

    Drawing from it with one key costs what hand-written code costs; a key for every lane would double that.
    """
    template = restore(site, leaves).distribution
    flags = [restore(site, plate.batched).distribution for plate in site.plates]
    return _with_plates(template, flags, site.plate_shape)


def _with_plates(template: Any, flags: list[Any], plate_shape: tuple[int, ...]) -> Any:
    if type(template) is dist.Independent:
        base = _with_plates(template.base_dist, [flag.base_dist for flag in flags], plate_shape)
        return None if base is None else dist.Independent(base, template.reinterpreted_batch_ndims)
    kind: Any = type(template)
    named = parameters(kind)
    if named is None:
        return None
    arguments: dict[str, Any] = {}
    for name, event_dim in named:
        value = getattr(template, name)
        present = [bool(getattr(flag, name)) for flag in reversed(flags)]
        shape = jnp.shape(value)
        own = shape[sum(present) :]
        padded = (1,) * (len(template.batch_shape) + event_dim - len(own)) + own
        batch, event = padded[: len(template.batch_shape)], padded[len(template.batch_shape) :]
        lead = tuple(size if there else 1 for size, there in zip(plate_shape, present, strict=True))
        value = jnp.reshape(value, lead + batch + event)
        if not arguments:  # one parameter carries the full batch shape; the others broadcast against it
            value = jnp.broadcast_to(value, plate_shape + tuple(template.batch_shape) + event)
        arguments[name] = value
    return kind(**arguments, validate_args=False)
