"""When to stop: a test for a plateau that knows about noise."""

from __future__ import annotations

import math

import numpy as np

_SHOWN = 2.0
"""Standard normal quantile from which on an improvement counts as shown: 2.3% on a plateau."""


def on_plateau(history: np.ndarray, window: int, sign: float) -> bool:
    """Whether the last two windows both failed to improve on the one before by more than noise explains.

    Windows are compared by `improvement`. Where the objective really improves so that the statistic is 4 on average, the chance
    of stopping is below 0.1% at each window; on a plateau with independent estimates, the run goes on with 4.6%.

    Args:
        history: an estimate of the objective at each step.
        window: steps in a window.
        sign: 1 if the objective is minimized, -1 if it is maximized.
    """
    if len(history) < 3 * window or len(history) % window:
        return False
    first, second, third = np.split(history[-3 * window :], 3)
    return improvement(first, second, sign) < _SHOWN and improvement(second, third, sign) < _SHOWN


def improvement(before: np.ndarray, after: np.ndarray, sign: float) -> float:
    """The rank-sum statistic of Mann and Whitney (1947), standard normal where nothing has changed.

    It counts the pairs in which the later estimate is the better one. Ranks, unlike means, are not at the mercy of the rare
    large values that estimates of bounds have. Estimates that are not finite are left out.
    """
    before, after = (-sign * part[np.isfinite(part)].astype(float) for part in (before, after))
    n, m = len(before), len(after)
    if not n or not m:
        return math.inf
    order = np.sort(before)
    better = (np.searchsorted(order, after, "left") + np.searchsorted(order, after, "right")).sum() / 2.0
    return float((better - n * m / 2.0) / math.sqrt(n * m * (n + m + 1) / 12.0))
