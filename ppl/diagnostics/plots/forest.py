"""Intervals of all parameters, one below the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ppl.diagnostics.plots.canvas import FIT, GREY, REFERENCE, canvas, columns, few, plain

MOST = 60


def forest(
    draws: Any, reference: Any = None, *, addresses: Sequence[str] | None = None, figure: Any = None, axes: Any = None
) -> Any:
    """Median, 50% and 90% interval of every parameter, beside those of a reference.

    Args:
        draws: nested dict of arrays with a leading axis of draws.
        reference: the same from elsewhere, such as MCMC; `(chains, draws)` in front is fine too.
        addresses: what to show, in order; everything if None.
        figure, axes: matplotlib's, to draw on.

    Returns:
        The figure.

    Example:
        >>> import numpy as np
        >>> from ppl.diagnostics.plots import forest
        >>> draws = {"mu": np.arange(100.0), "theta": np.zeros((100, 2))}
        >>> [label.get_text() for label in forest(draws).axes[0].get_yticklabels()]
        ['mu', 'theta[0]', 'theta[1]']
    """
    shown, remark = few(columns(draws, addresses), MOST)
    beside = {} if reference is None else columns(reference, None, shown)
    figure = canvas(7.0, 1.3 + 0.36 * len(shown), figure, axes)
    axes = figure.subplots() if axes is None else axes
    rows = np.arange(len(shown))
    gap = 0.17 if beside else 0.0
    for values, offset, colour, marker, label in (
        (shown, -gap, FIT, "o", "fit"),
        (beside, gap, REFERENCE, "D", "reference"),
    ):
        if not values:
            continue
        at = np.array([rows[list(shown).index(name)] for name in values]) + offset
        q = np.array([np.quantile(column, [0.05, 0.25, 0.5, 0.75, 0.95]) for column in values.values()]).T
        axes.hlines(at, q[0], q[4], color=colour, lw=1.3)
        axes.hlines(at, q[1], q[3], color=colour, lw=3.6)
        axes.plot(q[2], at, marker, color=colour, ms=5.5, markeredgecolor="white", label=label)
    axes.set_yticks(rows, list(shown))
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="x", color=GREY, alpha=0.25)
    axes.set_axisbelow(True)
    axes.set_xlabel("median, 50% and 90% interval" + (f"\n{remark}" if remark else ""))
    if beside:
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, borderaxespad=0.2)
    plain(axes)
    return figure


__all__ = ["forest"]
