"""Every parameter against every other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ppl.diagnostics.plots.canvas import FIT, REFERENCE, canvas, columns, few, label, plain
from ppl.diagnostics.plots.densities import marginal, span

MOST = 8
POINTS = 1000
CELLS = 60


def pairs(
    draws: Any, reference: Any = None, *, addresses: Sequence[str] | None = None, figure: Any = None, axes: Any = None
) -> Any:
    """Densities on the diagonal and pairs below it: points of the fit, and contours around 50% and 90% of fit and reference.

    Args:
        draws: nested dict of arrays with a leading axis of draws.
        reference: the same from elsewhere, such as MCMC; `(chains, draws)` in front is fine too.
        addresses: what to show, in order; everything if None.
        figure, axes: matplotlib's, to draw on; axes are `(k, k)`.

    Returns:
        The figure.

    Example:
        >>> import numpy as np
        >>> from ppl.diagnostics.plots import pairs
        >>> x = np.random.default_rng(0).normal(size=(500, 2))
        >>> len(pairs({"x": x}).axes)
        4
    """
    shown, remark = few(columns(draws, addresses), MOST)
    beside = {} if reference is None else columns(reference, None, shown)
    names, k = list(shown), len(shown)
    figure = canvas(max(3.5, 1.8 * k + 0.6), max(3.0, 1.7 * k + 0.6), figure, axes)
    grid = figure.subplots(k, k, squeeze=False, sharex="col") if axes is None else np.reshape(axes, (k, k))
    limits = {name: span(shown[name], beside.get(name)) for name in names}
    for i, row in enumerate(names):
        for j, column in enumerate(names):
            place = grid[i, j]
            if j > i:
                place.set_visible(False)
                continue
            if i == j:
                marginal(place, shown[row], beside.get(row))
                place.set_yticks([])
                place.spines["left"].set_visible(False)
            else:
                _pair(place, shown[column], shown[row], FIT, points=True)
                if row in beside and column in beside:
                    _pair(place, beside[column], beside[row], REFERENCE, points=False)
                place.set_ylim(limits[row])
            place.set_xlim(limits[column])
            plain(place)
            place.tick_params(labelsize=8, labelleft=j == 0 and i > 0, labelbottom=i == k - 1)
            if i == k - 1:
                place.set_xlabel(column)
            if j == 0 and i > 0:
                place.set_ylabel(row)
    label(figure, remark, bool(beside))
    return figure


def _pair(axes: Any, x: np.ndarray, y: np.ndarray, colour: str, points: bool) -> None:
    if points:
        axes.plot(x[:POINTS], y[:POINTS], ".", color=colour, ms=1.5, alpha=0.35, rasterized=True)
    box = [span(x, None), span(y, None)]
    pad = [0.15 * (high - low) for low, high in box]
    box = [(low - p, high + p) for (low, high), p in zip(box, pad, strict=True)]
    counts, x_edges, y_edges = np.histogram2d(x, y, CELLS, box)
    smooth = _blurred(counts)
    order = np.sort(smooth.ravel())[::-1]
    inside = np.cumsum(order) / order.sum()
    levels = sorted({float(order[min(int(np.searchsorted(inside, share)), len(order) - 1)]) for share in (0.9, 0.5)})
    centres = [(edges[1:] + edges[:-1]) / 2 for edges in (x_edges, y_edges)]
    axes.contour(*centres, smooth.T, levels=levels, colors=colour, linewidths=1.3)


def _blurred(counts: np.ndarray, width: float = 1.8) -> np.ndarray:
    """Counts after a Gaussian blur of some cells, along each axis."""
    at = np.arange(-6, 7)
    kernel = np.exp(-((at / width) ** 2) / 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        counts = np.apply_along_axis(lambda line: np.convolve(line, kernel, "same"), axis, counts)
    return counts


__all__ = ["pairs"]
