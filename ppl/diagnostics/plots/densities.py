"""Marginal densities of parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ppl.diagnostics.plots.canvas import FIT, REFERENCE, canvas, columns, few, label, plain

MOST = 24
BINS = 50


def densities(
    draws: Any, reference: Any = None, *, addresses: Sequence[str] | None = None, figure: Any = None, axes: Any = None
) -> Any:
    """A histogram of each parameter, with the outline of a reference's. Values that are few and whole get a bar each.

    Args:
        draws: nested dict of arrays with a leading axis of draws.
        reference: the same from elsewhere, such as MCMC; `(chains, draws)` in front is fine too.
        addresses: what to show, in order; everything if None.
        figure, axes: matplotlib's, to draw on; as many axes as there are parameters.

    Returns:
        The figure.

    Example:
        >>> import numpy as np
        >>> from ppl.diagnostics.plots import densities
        >>> figure = densities({"mu": np.arange(100.0)}, {"mu": np.arange(100.0)})
        >>> figure.axes[0].get_title()
        'mu'
    """
    shown, remark = few(columns(draws, addresses), MOST)
    beside = {} if reference is None else columns(reference, None, shown)
    wide = min(4, len(shown))
    high = math.ceil(len(shown) / wide)
    figure = canvas(max(4.0, 2.7 * wide), 2.2 * high + 0.5, figure, axes)
    given = figure.subplots(high, wide, squeeze=False) if axes is None else axes
    given = np.ravel(given)
    for place, (name, values) in zip(given, shown.items(), strict=False):
        marginal(place, values, beside.get(name))
        place.set_title(name, fontsize=10)
        place.set_yticks([])
        plain(place)
        place.spines["left"].set_visible(False)
    for place in given[len(shown) :]:
        place.set_visible(False)
    label(figure, remark, bool(beside))
    return figure


def span(values: np.ndarray, other: np.ndarray | None) -> tuple[float, float]:
    """Where nearly all of both is."""
    ends = [np.quantile(x, [0.002, 0.998]) for x in (values, other) if x is not None]
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    if high > low:
        return float(low), float(high)
    pad = 0.5 * max(1e-3, abs(float(low)) * 1e-3)
    return float(low) - pad, float(high) + pad


def marginal(axes: Any, values: np.ndarray, other: np.ndarray | None) -> None:
    """Both densities on one pair of axes."""
    whole = np.unique(np.concatenate([values, values if other is None else other]))
    if len(whole) <= 30 and np.all(whole == np.round(whole)):
        for x, colour, width, alpha in ((values, FIT, 0.8, 0.4), (other, REFERENCE, 0.8, 1.0)):
            if x is None:
                continue
            shares = [np.mean(x == value) for value in whole]
            if colour == FIT:
                axes.bar(whole, shares, width, color=colour, alpha=alpha)
            else:
                axes.bar(whole, shares, width, fill=False, edgecolor=colour, lw=1.8)
        axes.set_xticks(whole[:: max(1, len(whole) // 6)])
        return
    low, high = span(values, other)
    edges = np.linspace(low, high, BINS + 1)

    def heights(x: np.ndarray) -> np.ndarray:
        return np.histogram(x, edges)[0] / (len(x) * (edges[1] - edges[0]))

    axes.stairs(heights(values), edges, fill=True, color=FIT, alpha=0.4)
    if other is not None:
        axes.stairs(heights(other), edges, color=REFERENCE, lw=1.5)
    axes.set_xlim(low, high)


__all__ = ["densities", "marginal", "span"]
