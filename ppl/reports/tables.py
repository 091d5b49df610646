"""Draws as rows of a table."""

from __future__ import annotations

from typing import Any

import numpy as np

from ppl.diagnostics.plots.canvas import columns

MOST = 200
HEAD = ("", "mean", "sd", "5%", "50%", "95%")


def posterior_rows(traces: Any) -> tuple[list[tuple[str, ...]], str]:
    """Mean, standard deviation and quantiles of every number in draws, and a remark where there are too many to show."""
    shown = columns(traces, None)
    rows = []
    for name, values in list(shown.items())[:MOST]:
        numbers = (values.mean(), values.std(), *np.quantile(values, [0.05, 0.5, 0.95]))
        rows.append((name, *(_number(number) for number in numbers)))
    remark = f"The first {MOST} of {len(shown)} numbers." if len(shown) > MOST else ""
    return rows, remark


def _number(value: float) -> str:
    return f"{value:.2f}" if 0.1 <= abs(value) < 1e4 else f"{value:.3g}"
