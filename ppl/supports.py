"""Supports of distributions, as far as they can be compared."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.transforms import AffineTransform


def base(support: Any) -> Any:
    """The constraint on each element of an event, where it is one."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def interval(support: Any) -> tuple[bool, Any, Any] | None:
    """A support as (discrete, low, high), where it is one interval for each element."""
    support = base(support)
    discrete = bool(getattr(support, "is_discrete", False))
    if isinstance(support, type(constraints.real)):
        return False, -np.inf, np.inf
    low, high = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
    if support is constraints.boolean or isinstance(support, type(constraints.boolean)):
        return True, 0, 1
    if low is None and high is None:
        return None
    return discrete, -np.inf if low is None else np.asarray(low), np.inf if high is None else np.asarray(high)


def support_of(distribution: Any) -> tuple[Any, bool]:
    """The support, if it holds no traced values, and whether a continuous one moves with traced values."""
    try:
        support = distribution.support
    except NotImplementedError:
        return None, False
    moving = not support.is_discrete and moves(distribution)
    return (None if moving or any(map(_traced, jax.tree.leaves(support))) else support), moving


def moves(distribution: Any) -> bool:
    """Whether the support of transformed draws moves with traced parameters of the transforms.

    `support` does not say: it is that of an affine transform of the whole line, whatever is transformed.
    """
    while isinstance(distribution, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        distribution = distribution.base_dist
    if not isinstance(distribution, dist.TransformedDistribution):
        return any(map(_traced, jax.tree.leaves(distribution.support)))
    if type(distribution).support is not dist.TransformedDistribution.support:
        return any(map(_traced, jax.tree.leaves(distribution.support)))  # it states its own
    if moves(distribution.base_dist):
        return True
    support = distribution.base_dist.support
    for transform in distribution.transforms:
        fixed = not any(map(_traced, jax.tree.leaves(transform)))
        if support is not None and same(support, transform.domain):
            support = transform.codomain
        elif fixed:
            support = None  # a part of the codomain, which stays where it is
        elif not _scales(transform, support):
            return True
        if not fixed and any(map(_traced, jax.tree.leaves(support))):
            return True
    return False


def _scales(transform: Any, support: Any) -> bool:
    """Whether it maps the positive numbers to themselves (or to the negative ones)."""
    ray = support is not None and interval(support) == (False, 0.0, np.inf)
    return ray and isinstance(transform, AffineTransform) and not _traced(transform.loc) and bool(np.all(transform.loc == 0))


def _traced(leaf: Any) -> bool:
    return isinstance(leaf, jax.core.Tracer)


def same(one: Any, other: Any) -> bool:
    """Whether two supports are known to be the same."""
    first, second = interval(one), interval(other)
    if first is None or second is None:
        return first is second and type(base(one)) is type(base(other))
    try:
        return first[0] == second[0] and bool(np.all(first[1] == second[1]) and np.all(first[2] == second[2]))
    except (TypeError, ValueError):  # bounds that are traced, or of different shapes
        return False
