"""What the pictures share: figures, colours, and draws as named columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ppl import errors
from ppl.address import flatten, parse, suggest
from ppl.site import show

FIT, REFERENCE, GREY = "#0072B2", "#D55E00", "#8C8C8C"

Columns = dict[str, np.ndarray]


def canvas(width: float, height: float, figure: Any, axes: Any) -> Any:
    """The figure to draw on: that of the axes, the one given, or a new one."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'ppl[diagnostics]'") from error
    if axes is not None:
        return np.ravel(axes)[0].figure
    return figure if figure is not None else Figure(figsize=(width, height), layout="constrained")


def columns(draws: Any, addresses: Sequence[str] | None, like: Columns | None = None) -> Columns:
    """Each element of each address as a column of draws, named `theta[3]`.

    With `like`, the columns of a reference that are in it; its draws may come as `(chains, draws)`.
    """
    found: Columns = {}
    values = {address: np.asarray(value, float) for address, value in flatten(draws).items()}
    if addresses is not None and like is None:
        wanted = [parse(address) for address in addresses]
        for address in wanted:
            if address not in values:
                raise errors.UnknownAddressError(f"there are no draws of {show(address)!r}.{suggest(address, values)}")
        values = {address: values[address] for address in wanted}
    for address, value in values.items():
        shape = None if like is None else _element(address, like)
        if like is not None and shape is None:
            continue
        if shape is not None and value.ndim == shape + 2:
            value = value.reshape(-1, *value.shape[2:])
        if value.ndim == 0:
            raise errors.ValueShapeError(f"{show(address)!r} is one value; draws have a leading axis.")
        names = _names(address, value[0])
        found |= dict(zip(names, value.reshape(len(value), -1).T, strict=True))
    if like is None:
        return found
    kept = {name: column for name, column in found.items() if name in like}
    if not kept:
        raise errors.UnknownAddressError(
            f"the reference has no draws of what is shown ({', '.join(list(like)[:8])}), but of {', '.join(map(show, values))}."
        )
    return kept


def _names(address: tuple[str, ...], value: np.ndarray) -> list[str]:
    places = np.ndindex(*value.shape)
    return [show(address) + ("[" + ", ".join(map(str, place)) + "]" if place else "") for place in places]


def _element(address: tuple[str, ...], like: Columns) -> int | None:
    """How many axes the value at an address has, by the names of its columns; None if there are none."""
    name = show(address)
    known = next((known for known in like if known == name or known.startswith(name + "[")), None)
    return None if known is None else (0 if known == name else known[len(name) :].count(",") + 1)


def few(shown: Columns, most: int) -> tuple[Columns, str]:
    """The first columns, and a remark if there are more."""
    if len(shown) <= most:
        return shown, ""
    return dict(list(shown.items())[:most]), f"the first {most} of {len(shown)}; choose others with addresses="


def plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def label(figure: Any, remark: str, reference: bool, lines: bool = True) -> None:
    """A legend above the figure, where there is something to tell apart."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=FIT, lw=2.2, label="fit"), Line2D([], [], color=REFERENCE, lw=1.8, label="reference")]
    if reference:
        figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False)
    if remark:
        figure.supxlabel(remark, fontsize=9, color=GREY)


__all__ = ["FIT", "GREY", "REFERENCE", "Columns", "canvas", "columns", "few", "label", "plain"]
