"""Draws and parameters as rows of a table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ppl.address import flatten
from ppl.diagnostics.plots.canvas import columns
from ppl.site import show

MOST = 200
HEAD = ("", "mean", "sd", "5%", "50%", "95%")
Columns = dict[str, np.ndarray]


def elements(traces: Any, count_from: int = 0) -> Columns:
    """Each number in draws, by name: `theta[0]`, or `theta[1]` where indices count from one.

    These are then as in `.vi` files, where `x[1] ~ ...` and a loop over `x[t]` are the addresses `x[1]` and `x`.
    """
    if not count_from:
        return columns(traces, None)
    values = {show(address): np.asarray(value, float) for address, value in flatten(traces).items()}
    begun = _begun({name: value.shape[1:] for name, value in values.items()}, count_from)
    found: list[tuple[str, tuple[int, ...], str, np.ndarray]] = []
    for address, value in values.items():
        name, axis, start, single = begun.get(address, (address, 0, count_from, False))
        for place in np.ndindex(*value.shape[1:]):
            shown = [index + (start if i == axis and not single else count_from) for i, index in enumerate(place)]
            if single:
                shown.insert(axis, start)
            label = f"{name}[{', '.join(map(str, shown))}]" if shown else name
            found.append((name, tuple(shown), label, value[(slice(None), *place)]))
    order = {name: i for i, name in enumerate(dict.fromkeys(name for name, *_ in found))}
    return {label: column for _, _, label, column in sorted(found, key=lambda row: (order[row[0]], row[1]))}


def _begun(shapes: Mapping[str, tuple[int, ...]], count_from: int) -> dict[str, tuple[str, int, int, bool]]:
    """Of the parts of recurrences: the name, the axis of time, where they start there, and whether they are one step."""
    found: dict[str, tuple[str, int, int, bool]] = {}
    for address, shape in shapes.items():
        match = re.fullmatch(r"(.*)\[(\d+)\]", address)
        if match is None:
            continue
        name, place = match.group(1), int(match.group(2))
        rest = shapes.get(name, ())
        axis = next((i for i in range(len(rest)) if rest[:i] + rest[i + 1 :] == shape), 0)
        found[address] = name, axis, place, True
        _, _, start, _ = found.get(name, (name, axis, count_from, False))
        found[name] = name, axis, max(start, place + 1), False
    return found


def posterior_rows(shown: Columns) -> tuple[list[tuple[str, ...]], str]:
    """Mean, standard deviation and quantiles of named draws, and a remark where there are too many to show."""
    rows = []
    for name, values in list(shown.items())[:MOST]:
        numbers = (values.mean(), values.std(), *np.quantile(values, [0.05, 0.5, 0.95]))
        rows.append((name, *(_number(number) for number in numbers)))
    return rows, _remark(len(shown))


def parameter_rows(params: Any, count_from: int = 0) -> tuple[list[tuple[str, str]], str]:
    """Parameters, one number a row."""
    rows = []
    for path, leaf in jax.tree.leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "parameter"
        if not np.issubdtype(np.asarray(leaf).dtype, np.number):
            continue
        array = np.asarray(leaf, float)
        for place in np.ndindex(*array.shape):
            index = f"[{', '.join(str(i + count_from) for i in place)}]" if place else ""
            rows.append((name + index, _number(float(array[place]))))
    return rows[:MOST], _remark(len(rows))


def _remark(count: int) -> str:
    return f"The first {MOST} of {count} numbers." if count > MOST else ""


def _number(value: float) -> str:
    return f"{value:.2f}" if 0.1 <= abs(value) < 1e4 else f"{value:.3g}"
