"""The types of indexed arrays and traces, and indices that leave them."""

from __future__ import annotations

from typing import Any

from ppl.lang import infer, tree, types
from ppl.lang.scope import Scope
from ppl.lang.tree import Node
from ppl.lang.types import ANY, Array


def infer_index(node: tree.Index, scope: Scope) -> Any:
    kind = infer.infer(node.value, scope)
    if isinstance(kind, types.Trace):
        return _trace(node, kind, scope)
    if isinstance(kind, types.Pieces):
        return _pieces(node, kind, scope)
    if not isinstance(kind, Array):
        if kind is not ANY:
            return scope.error(node.value, "only arrays and draws have an index")
        for place in node.places:
            _place(place, scope)
        return ANY
    return indexed(node, kind.shape, kind, scope, node.places)


def indexed(node: tree.Index, shape: tuple[int, ...], kind: Array, scope: Scope, places: tuple[Node, ...]) -> Any:
    """An array's type after some of its axes are indexed."""
    if len(places) > len(shape):
        count = f"{len(node.places)} indices" if len(node.places) > 1 else "an index"
        return scope.error(node, f"{count} for an array of the shape {scope.shape(kind.shape)}")
    left: list[int] = []
    gathered: tuple[int, ...] | None = None
    for place, length in zip(places, shape, strict=False):
        if isinstance(place, tree.All):
            left.append(length)
        elif isinstance(place, tree.Binary) and place.operator == "..":
            found = infer.interval(place, scope)
            if found is None:
                return ANY
            _inside(place, *found, length, scope)
            left.append(found[1] - found[0] + 1)
        else:
            index = infer.infer_array(place, scope)
            if not isinstance(index, Array):
                return ANY
            _check(place, index, length, scope)
            if index.shape:
                if gathered is not None:
                    return ANY
                gathered = index.shape
                left.extend(index.shape)
    return Array((*left, *shape[len(places) :]), kind.dtype)


def _check(place: Node, index: Array, length: int, scope: Scope) -> None:
    if index.dtype != "int":
        scope.error(place, f"an index is an integer, and this is {_article(index.dtype)}")
    elif index.zero_based:
        scope.error(place, "this counts from zero, and indices count from one", "Write '+ 1' behind it.")
    elif isinstance(index.value, int):
        _inside(place, index.value, index.value, length, scope)
    elif index.low is not None and index.high is not None:
        _inside(place, index.low, index.high, length, scope)


def _article(dtype: str) -> str:
    return {"float": "a real number", "bool": "a truth value"}.get(dtype, dtype)


def _inside(place: Node, low: int, high: int, length: int, scope: Scope) -> None:
    show = scope.report.sizes.show
    if low < 1:
        scope.error(place, f"the index {show(low)} is below 1; the axis has {show(length)} elements")
    elif types.exceeds(high, length):
        scope.error(
            place, f"the index {'reaches' if high != low else 'is'} {show(high)}, and the axis has {show(length)} elements"
        )


def _place(place: Node, scope: Scope) -> None:
    if isinstance(place, tree.Binary) and place.operator == "..":
        infer.interval(place, scope)
    elif not isinstance(place, tree.All):
        infer.infer_array(place, scope)


def _trace(node: tree.Index, kind: types.Trace, scope: Scope) -> Any:
    if kind.count is None:
        return scope.error(
            node, f"this is one draw of {kind.program}, without an index", f"Draw several with 'z[1..K] ~ {kind.program}'."
        )
    (place, *rest) = node.places
    if rest or isinstance(place, tree.All):
        return scope.error(node, "one index picks one of the draws")
    index = infer.infer_array(place, scope)
    if isinstance(index, Array):
        _check(place, index, kind.count, scope)
    return types.Trace(kind.sites, kind.program)


def _pieces(node: tree.Index, kind: types.Pieces, scope: Scope) -> Any:
    """An element of an array that is defined piece by piece."""
    first, *rest = node.places
    if isinstance(first, tree.All) or (isinstance(first, tree.Binary) and first.operator == ".."):
        whole = kind.whole()
        return indexed(node, whole.shape, whole, scope, node.places) if isinstance(whole, Array) else ANY
    index = infer.infer_array(first, scope)
    if not isinstance(index, Array):
        return ANY
    low = index.value if isinstance(index.value, int) else index.low
    high = index.value if isinstance(index.value, int) else index.high
    if low is not None and high is not None and not covered(low, high, kind.parts):
        show = scope.report.sizes.show
        place = f"reaches from {show(low)} to {show(high)}" if low != high else f"is {show(low)}"
        known = ", ".join(show(a) if b == a + 1 else f"{show(a)}..{show(b - 1)}" for a, b in kind.parts)
        return scope.error(
            first,
            f"the index {place}, and defined are {known}",
        )
    if not rest:
        return kind.element
    if isinstance(kind.element, types.Pieces):
        inner = tree.Index(node.value, tuple(rest), span=node.span)
        return _pieces(inner, kind.element, scope)
    if not isinstance(kind.element, Array):
        return ANY
    return indexed(node, kind.element.shape, kind.element, scope, tuple(rest))


def covered(low: int, high: int, parts: tuple[tuple[int, int], ...]) -> bool:
    """Whether start..stop - 1 of the parts together hold the range."""
    place = low
    for start, stop in sorted(parts):
        if start <= place < stop:
            place = stop
    return place > high
