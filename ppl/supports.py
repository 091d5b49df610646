"""Supports of distributions, as far as they can be compared."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpyro.distributions import constraints


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


def same(one: Any, other: Any) -> bool:
    """Whether two supports are known to be the same."""
    first, second = interval(one), interval(other)
    if first is None or second is None:
        return first is second and type(base(one)) is type(base(other))
    try:
        return first[0] == second[0] and bool(np.all(first[1] == second[1]) and np.all(first[2] == second[2]))
    except (TypeError, ValueError):  # bounds that are traced, or of different shapes
        return False
