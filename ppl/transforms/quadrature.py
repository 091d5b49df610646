"""The points that an auxiliary variable takes: all of its values, or the nodes of a quadrature rule."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from numpyro.distributions import constraints

from ppl import errors
from ppl.densities import elementwise
from ppl.estimators import support_size
from ppl.site import Site, Where, restore
from ppl.transforms.stage import Located

MOST_DIMENSIONS = 3
MOST_COMBINATIONS = 4096
MOST_HERMITE = 350
"""The weights of more nodes underflow."""
TOLERANCE = 1e-3
"""How far the log of an integral may be from that with half as many nodes, times one plus its size."""


class Nodes(NamedTuple):
    """Values, one in front of the other, and log weights: the sum of `exp(log_weight) * f(value)` is the integral of f."""

    values: Any
    log_weights: Any


def all_values(located: Located) -> Any:
    """Every value of a discrete site, one in front of the other; None if these are not finitely many."""
    site = located.site
    distribution = elementwise(restore(site, located.operands).distribution)
    size = support_size(distribution)
    if size is None:
        return None
    points = jnp.reshape(distribution.enumerate_support(expand=False), (size, *distribution.event_shape))
    choice = _combinations(size, math.prod((*site.plate_shape, *distribution.batch_shape)), site)
    return jnp.reshape(points[choice], (len(choice), *site.full_shape)).astype(site.dtype)


def check_continuous(located: Located, nodes: int | None) -> None:
    """Refuse a site that has neither finitely many values nor few dimensions."""
    site = located.site
    distribution = elementwise(restore(site, located.operands).distribution)
    if nodes is None or distribution.support.is_discrete:
        raise errors.MarginalError(
            f"{site.name!r} ~ {site.distribution_name} has no finite number of values to sum over.\n  {site.where}\n"
            "Give nodes= to integrate continuous variables by quadrature, or proposal= and particles= to integrate by "
            "importance sampling."
        )
    if distribution.event_shape or math.prod(site.full_shape) > MOST_DIMENSIONS:
        raise errors.MarginalError(
            f"quadrature serves up to {MOST_DIMENSIONS} independent numbers, and {site.name!r} ~ {site.distribution_name} is "
            f"of shape {list(site.full_shape)}.\n  {site.where}\n"
            "Put ppl.marginal inside of the vmap or plate, or give proposal= and particles= to integrate by importance "
            "sampling."
        )


def nodes_of(distribution: Any, site: Site, nodes: int) -> Nodes:
    """All combinations of the nodes of a distribution's independent elements."""
    distribution = elementwise(distribution)
    shape = tuple(distribution.batch_shape)
    elements = math.prod(shape)
    choice = _combinations(nodes, elements, site)
    points, log_weights = _rule(distribution, site, nodes)
    columns = np.arange(elements)
    values = jnp.reshape(jnp.reshape(points, (nodes, elements))[choice, columns], (len(choice), *shape))
    return Nodes(values, jnp.sum(jnp.reshape(log_weights, (nodes, elements))[choice, columns], axis=1))


def _combinations(size: int, elements: int, site: Site) -> Any:
    """`[combination, element]` is the number of the element's point."""
    if size**elements > MOST_COMBINATIONS:
        raise errors.MarginalError(
            f"{site.name!r} has {elements} elements of {size} values each, {size**elements:.3g} combinations; the limit is "
            f"{MOST_COMBINATIONS}.\n  {site.where}\n"
            "Put ppl.marginal inside of the vmap or plate where the elements are independent, or give a proposal= to integrate "
            "by importance sampling."
        )
    return np.indices((size,) * elements).reshape(elements, size**elements).T


def _rule(distribution: Any, site: Site, nodes: int) -> Nodes:
    """Nodes and log weights with respect to the Lebesgue measure, of shape `(nodes, *batch_shape)`."""
    shape = tuple(distribution.batch_shape)
    base = distribution
    while isinstance(base, dist.ExpandedDistribution):
        base = base.base_dist

    def column(array: Any) -> Any:
        return np.reshape(array, (nodes,) + (1,) * len(shape))

    def spread(array: Any) -> Any:
        return jnp.broadcast_to(array, (nodes, *shape))

    if isinstance(base, dist.Normal | dist.LogNormal):
        if nodes > MOST_HERMITE:
            raise errors.MarginalError(
                f"Gauss-Hermite rules have up to {MOST_HERMITE} nodes in double precision, got nodes={nodes} for "
                f"{site.name!r} ~ {site.distribution_name}.\n  {site.where}\n"
                "Give proposal= and particles= to integrate by importance sampling."
            )
        t, w = np.polynomial.hermite.hermgauss(nodes)
        value = base.loc + math.sqrt(2.0) * base.scale * column(t)
        log_weight = column(np.log(w) + t**2) + jnp.log(math.sqrt(2.0) * base.scale)
        if isinstance(base, dist.LogNormal):
            return Nodes(spread(jnp.exp(value)), spread(log_weight + value))
        return Nodes(spread(value), spread(log_weight))
    support = distribution.support
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if low is not None and high is not None:
        if isinstance(base, dist.Uniform):
            t, w = np.polynomial.legendre.leggauss(nodes)
            fraction, log_weight = (1.0 + t) / 2.0, np.log(w / 2.0)
        else:
            fraction, log_weight = _tanh_sinh(nodes, float(jnp.finfo(site.dtype).eps))
        return Nodes(spread(low + (high - low) * column(fraction)), spread(column(log_weight) + jnp.log(high - low)))
    real = isinstance(support, type(constraints.real))
    name = type(base).__name__
    if name in _HEAVY or not (real or (low is not None and high is None)):
        raise errors.MarginalError(
            f"no quadrature rule for {site.name!r} ~ {site.distribution_name}: it has heavy tails, or its support is no "
            f"interval.\n  {site.where}\nGive proposal= and particles= to integrate by importance sampling."
        )
    try:
        mean, variance = distribution.mean, distribution.variance
    except NotImplementedError as error:
        raise errors.MarginalError(
            f"no quadrature rule for {site.name!r} ~ {site.distribution_name}, whose mean and variance are unknown.\n"
            f"  {site.where}\nGive proposal= and particles= to integrate by importance sampling."
        ) from error
    if real:  # exponential tails
        t = np.linspace(-4.5, 4.5, nodes)
        unit, log_weight = np.sinh(t), np.log(np.cosh(t) * (t[1] - t[0]))
        scale = jnp.sqrt(variance)
        return Nodes(spread(mean + scale * column(unit)), spread(column(log_weight) + jnp.log(scale)))
    t = np.linspace(-3.4, 4.6, nodes)
    log_unit, log_weight = t - np.exp(-t), np.log((1.0 + np.exp(-t)) * (t[1] - t[0]))
    scale = mean - low
    return Nodes(spread(low + scale * column(np.exp(log_unit))), spread(column(log_weight + log_unit) + jnp.log(scale)))


_HEAVY = ("StudentT", "Cauchy", "HalfCauchy", "Levy", "InverseGamma", "Pareto", "Zipf")


def accurate(fine: Any, coarse: Any, where: Where) -> Any:
    """The log of an integral if fewer nodes give nearly the same; otherwise an error, or NaN where values are not known."""
    return accurate_p.bind(fine, jax.lax.stop_gradient(coarse), where=where)


def _checked(fine: Any, coarse: Any) -> Any:
    near = jnp.abs(fine - coarse) <= TOLERANCE * (1.0 + jnp.abs(fine))
    return jnp.where(near | (fine == coarse), fine, jnp.nan)


def _raise_or_give(fine: Any, coarse: Any, *, where: Where) -> Any:
    wrong = np.isnan(_checked(fine, coarse)) & ~np.isnan(fine)
    if np.any(wrong):
        with_all, with_half = (np.ravel(np.broadcast_to(x, np.shape(wrong)))[np.argmax(wrong)] for x in (fine, coarse))
        raise errors.MarginalError(
            f"too few quadrature nodes: the log density is {with_all:.6g} with all of them and {with_half:.6g} with half.\n"
            f"  {where}\nGive more nodes=, or proposal= and particles= to integrate by importance sampling."
        )
    return fine


accurate_p = Primitive("accurate")
accurate_p.def_impl(_raise_or_give)
accurate_p.def_abstract_eval(lambda fine, coarse, *, where: fine)
mlir.register_lowering(
    accurate_p, mlir.lower_fun(lambda fine, coarse, *, where: _checked(fine, coarse), multiple_results=False)
)
batching.defbroadcasting(accurate_p)
ad.primitive_jvps[accurate_p] = lambda primals, tangents, *, where: (accurate_p.bind(*primals, where=where), tangents[0])


def _tanh_sinh(nodes: int, eps: float) -> tuple[Any, Any]:
    """The double exponential rule on the unit interval, up to where floating point can tell a node from the ends."""
    last = np.arcsinh(-np.log(2.0 * eps) / np.pi)
    t = np.linspace(-last, last, nodes)
    fraction = 1.0 / (1.0 + np.exp(-np.pi * np.sinh(t)))
    return fraction, np.log(fraction * (1.0 - fraction) * np.pi * np.cosh(t) * (t[1] - t[0]))
