"""The objective over the steps, with the noise of its estimates."""

from __future__ import annotations

from typing import Any

import numpy as np

from ppl.diagnostics.plots.canvas import FIT, GREY, canvas, plain


def loss(history: Any, *, window: int | None = None, figure: Any = None, axes: Any = None) -> Any:
    """A running mean of a history, and two bands: 90% of the single estimates, and two standard errors of the mean.

    The scale shows the steps after the first tenth.

    Args:
        history: estimates of the objective, `(steps,)`.
        window: steps that a mean is taken of; a fiftieth of them if None.
        figure, axes: matplotlib's, to draw on.

    Returns:
        The figure.

    Example:
        >>> import numpy as np
        >>> from ppl.diagnostics.plots import loss
        >>> figure = loss(-np.exp(-np.arange(300) / 50))
        >>> figure.axes[0].get_xlabel()
        'step'
    """
    history = np.asarray(history, float)
    steps = len(history)
    window = max(1, steps // 50) if window is None else max(1, min(window, steps))
    figure = canvas(7.5, 4.2, figure, axes)
    axes = figure.subplots() if axes is None else axes
    windows = np.lib.stride_tricks.sliding_window_view(history, window)[:: max(1, window // 5)]
    at = np.arange(len(windows)) * max(1, window // 5) + (window - 1) / 2
    low, high = np.quantile(windows, [0.05, 0.95], axis=1)
    mean = windows.mean(axis=1)
    error = 2 * windows.std(axis=1) / np.sqrt(window)
    axes.fill_between(at, low, high, color=FIT, alpha=0.15, lw=0, label="90% of single steps")
    axes.fill_between(at, mean - error, mean + error, color=FIT, alpha=0.45, lw=0, label="mean, two standard errors")
    axes.plot(at, mean, color=FIT, lw=1.2, label=f"mean of {window} steps")
    late = at >= 0.1 * steps
    bottom, top = low[late].min(), high[late].max()
    margin = 0.06 * (top - bottom) or 1.0
    axes.set_ylim(bottom - margin, top + margin)
    axes.set_xlim(0, max(1, steps - 1))
    hidden = ~late & ((mean < bottom - margin) | (mean > top + margin))
    if hidden.any():
        end = at[hidden].max()
        axes.set_title(f"starts at {mean[0]:.4g}, off the scale until step {end:.0f}", loc="left", fontsize=9, color=GREY)
    axes.set_xlabel("step")
    axes.set_ylabel("objective (estimates)")
    axes.legend(loc="best", frameon=False, fontsize=9)
    plain(axes)
    return figure


__all__ = ["loss"]
