"""Whether a value is continuous where a discrete one changes, found by going there.

Along a line between two random points, bisection in double precision finds two neighbouring points between which the discrete
value changes. The other value is continuous there if it does not change by more than its slope explains.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ppl.site import site_p
from ppl.supports import interval
from ppl.transforms.graph import Graph, Node
from ppl.transforms.numeric import ELEMENTWISE, EXACT, Random, Unknown, array, evaluate

LINES = 64
"""Probes of a piece that is elementwise."""
WHOLE = (0.0, 1.0, 0.5, -1.0, 2.0, 0.0, 1.0, 0.5)
"""Probes of any other: orders of magnitude of the noise."""
LONGEST = 500
"""Equations of a piece that is searched for jumps."""
LARGEST = 200_000
"""Elements of a value that is computed in a probe."""
STRUCTURAL = frozenset(["broadcast_in_dim", "reshape", "squeeze", "expand_dims"])

Values = dict[int, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """Nodes of a graph, in order, and the values that they start from."""

    graph: Graph
    nodes: list[Node]
    start: list[int]


def continuous(graph: Graph, switch: int, value: int, at: Sequence[int], inputs: dict[int, Any]) -> bool | None:
    """Whether `value` is continuous where the discrete value `switch` changes; None where that cannot be told.

    First a small piece is probed, in which the values `at` between which `switch` decides are taken for independent of all
    others; if that is not continuous, larger ones that know more. `inputs` are typical values of the graph's arguments.
    """
    rng = np.random.default_rng(0)
    for cut in (frozenset(at), frozenset[int]()):
        piece = cut_out(graph, switch, value, cut, elementwise_only=True)
        if piece is None:
            continue
        found = _probe(piece, switch, value, inputs, rng, elementwise=True)
        if found or (found is not None and not cut and _complete(piece)):
            return found
    piece = cut_out(graph, switch, value, frozenset(), elementwise_only=False)
    return None if piece is None else _probe(piece, switch, value, inputs, rng, elementwise=False)


def jumps(graph: Graph, value: int, inputs: dict[int, Any]) -> bool | None:
    """Whether a value is found to jump somewhere along a few lines; None where it cannot be computed.

    For what decides inside of loops, where no discrete value of this graph tells the sides apart.
    """
    piece = cut_out(graph, value, value, frozenset(), elementwise_only=False)
    if (
        piece is None
        or len(piece.nodes) > LONGEST
        or any(graph.avals[n].size > LARGEST for node in piece.nodes for n in node.outs)
    ):
        return None
    search = _Search(piece, piece, value, value, inputs, np.random.default_rng(0), None, True)
    try:
        return any(search.jumps(order) for order in WHOLE[:3])
    except Random:
        return True
    except (Unknown, ValueError, TypeError, IndexError, np.linalg.LinAlgError):
        return None


def cut_out(graph: Graph, switch: int, value: int, cut: frozenset[int], *, elementwise_only: bool) -> Piece | None:
    """The nodes that make two values, back to sites and arguments, to `cut`, and to what is not elementwise.

    None if that would start from a value that depends on `switch`.
    """
    after = {switch}
    for later in graph.nodes:
        if not after.isdisjoint(later.ins):
            after.update(later.outs)
    needed, start, seen = set[int](), list[int](), set[int]()
    todo = [switch, value]
    while todo:
        number = todo.pop()
        if number in seen:
            continue
        seen.add(number)
        node = graph.maker.get(number)
        if (
            node is None
            or number in cut
            or node.eqn.primitive is site_p
            or (elementwise_only and not _elementwise(graph, node))
        ):
            if number in after:
                return None
            start.append(number)
        else:
            needed.add(id(node))
            todo.extend(node.ins)
    return Piece(graph, [node for node in graph.nodes if id(node) in needed], sorted(start))


def _elementwise(graph: Graph, node: Node) -> bool:
    name = node.eqn.primitive.name
    if name in STRUCTURAL:
        return graph.avals[node.ins[0]].size == 1
    return name in ELEMENTWISE


def _complete(piece: Piece) -> bool:
    """Whether it starts from nothing but sites, arguments and constants."""
    makers = [piece.graph.maker.get(number) for number in piece.start]
    return all(node is None or node.eqn.primitive is site_p for node in makers)


def _probe(piece: Piece, switch: int, value: int, inputs: dict[int, Any], rng: Any, *, elementwise: bool) -> bool | None:
    """The verdict on one piece; True too if the discrete value is found to be always the same."""
    if not elementwise and any(piece.graph.avals[out].size > LARGEST for node in piece.nodes for out in node.outs):
        return None
    sides = cut_out(piece.graph, switch, switch, frozenset(piece.start), elementwise_only=False)
    assert sides is not None
    exact = all(node.eqn.primitive.name in EXACT for node in piece.nodes)
    search = _Search(piece, sides, switch, value, inputs, rng, (LINES,) if elementwise else None, exact)
    try:
        # A boolean has one boundary along most lines, and a rounded value many, of which few may matter.
        orders = WHOLE if piece.graph.avals[switch].dtype == bool else WHOLE * 2
        return all(search.continuous(order) for order in (orders[:1] if elementwise else orders))
    except Random:
        return False
    except (Unknown, ValueError, TypeError, IndexError, np.linalg.LinAlgError):
        return None


@dataclasses.dataclass(frozen=True, eq=False)
class _Search:
    """Along lines through a piece, many at once if it is elementwise (`shape`). `sides` makes the discrete value alone."""

    piece: Piece
    sides: Piece
    switch: int
    value: int
    inputs: dict[int, Any]
    rng: Any
    shape: tuple[int, ...] | None
    exact: bool

    def continuous(self, order: float) -> bool:
        """Whether the value is continuous on new lines, between points of this order of magnitude."""
        one, other = self._ends(order)

        def point(t: Any) -> Values:
            return {n: one[n] if one[n] is other[n] else one[n] + (other[n] - one[n]) * t for n in one}

        def side(t: Any) -> Any:
            return self._run(self.sides, point(t))[self.switch]

        def height(t: Any) -> Any:
            return self._run(self.piece, point(t))[self.value]

        first = side(0.0)
        differs = np.asarray(first != side(1.0))
        if not differs.any():
            return True
        index = tuple(self.rng.choice(np.argwhere(differs))) if self.shape is None else ()  # one element of it decides
        low, high = np.zeros(self.shape or ()), np.ones(self.shape or ())
        for _ in range(56 if self.exact else 26):
            middle = (low + high) / 2
            same = np.asarray(side(middle) == first)[index]
            low, high = np.where(same, middle, low), np.where(same, high, middle)
        # Approximations meet within the first tolerance; a whole objective may be much larger than a jump in a part of it.
        step, tolerance = (1e-10, 1e-5 if self.shape else 1e-10) if self.exact else (1e-3, 1e-3)
        below, above = height(low), height(high)
        with np.errstate(all="ignore"):
            jump = np.abs(above - below)
            slope = np.abs(below - height(low - step)) + np.abs(above - height(high + step))
            fine = jump <= 4 * slope + tolerance * np.maximum(np.abs(above), np.abs(below)) + 1e-13
            fine |= ~np.isfinite(jump) | (~np.isfinite(slope) & (jump < 1e-3))
        return bool(np.all(fine | ~differs if self.shape is not None else fine))

    def jumps(self, order: float) -> bool:
        """Whether the value, all of it in one number, jumps on a new line: bisection goes where it changes most."""
        one, other = self._ends(order)
        weights = self.rng.normal(size=self.piece.graph.avals[self.value].shape)

        def height(t: float) -> float:
            point = {n: one[n] if one[n] is other[n] else one[n] + (other[n] - one[n]) * t for n in one}
            return float(np.sum(weights * self._run(self.piece, point)[self.value]))

        grid = np.linspace(0.0, 1.0, 40)
        heights = np.array([height(t) for t in grid])
        size = np.abs(heights).max()
        for i in np.argsort(-np.abs(np.diff(heights)))[:3]:
            low, high, below, above = grid[i], grid[i + 1], heights[i], heights[i + 1]
            for _ in range(44):
                middle = (low + high) / 2
                between = height(middle)
                if abs(between - below) >= abs(above - between):
                    high, above = middle, between
                else:
                    low, below = middle, between
            if abs(above - below) > 1e-7 * size:
                return True
        return False

    def _ends(self, order: float) -> tuple[Values, Values]:
        """Two points between which the discrete value changes, if such are found."""
        for attempt in range(1 if self.shape else 12):
            if self.shape:
                far = self.rng.random(self.shape) < 0.5
                scale = 10.0 ** self.rng.uniform(-1.0, 2.0, self.shape) * np.where(far, 1.0 + self._largest, 1.0)
            else:
                scale = 10.0**order * (1.0 + self._largest if attempt % 2 else 1.0)
            pairs = {number: self._pair(number, scale) for number in self.piece.start}
            one, other = ({n: pair[i] for n, pair in pairs.items()} for i in range(2))
            if self.shape or np.any(self._run(self.sides, one)[self.switch] != self._run(self.sides, other)[self.switch]):
                break
        return one, other

    @functools.cached_property
    def _largest(self) -> float:
        """How far out a threshold may be."""
        known = self.piece.graph.known
        constants = [array(known[number]) for number in self.piece.start if number in known]
        sizes = [float(np.abs(c).max()) for c in constants if c.dtype.kind == "f" and c.size]
        return max((size for size in sizes if size < 1e30), default=0.0)

    def _pair(self, number: int, scale: Any) -> tuple[Any, Any]:
        """Two values of a start of the piece; the same one twice if it is constant."""
        graph, rng = self.piece.graph, self.rng
        aval, node = graph.avals[number], graph.maker.get(number)
        if number in graph.known or number in self.inputs:
            value = array(graph.known[number] if number in graph.known else self.inputs[number])
            if number in self.inputs and value.dtype.kind == "f":
                value = value + 0.1 * rng.normal(size=value.shape) * (1.0 + np.abs(value))
            if self.shape is not None:
                value = rng.choice(value.ravel(), self.shape) if value.size > 1 else np.broadcast_to(value, self.shape)
            return value, value
        size = tuple(aval.shape) if self.shape is None else self.shape
        kind = getattr(aval.dtype, "kind", "?")
        if kind == "b":
            return (rng.random(size) < 0.5,) * 2
        if kind in "iu":
            return (rng.integers(0, 3, size),) * 2
        if kind not in "fV":
            raise Unknown
        support = node.eqn.params["site"].support if node is not None and node.eqn.primitive is site_p else None
        one, other = (_inside(support, scale * rng.normal(size=size), self.shape is not None) for _ in range(2))
        return one, other

    def _run(self, piece: Piece, start: Values) -> Values:
        return run_piece(piece, start, collapsed=self.shape is not None)


def _inside(support: Any, x: Any, collapsed: bool) -> Any:
    """Any numbers as values in a support."""
    if support is None:
        return x
    if type(support).__name__ == "_Simplex":
        if collapsed:
            return 1.0 / (1.0 + np.exp(-np.clip(x, -30.0, 30.0)))
        exp = np.exp(x - x.max(-1, keepdims=True))
        return exp / exp.sum(-1, keepdims=True)
    found = interval(support)
    if found is None:
        return x
    _, low, high = found
    if np.size(low) > 1 or np.size(high) > 1:
        return x
    low, high = float(low), float(high)
    if np.isfinite(low) and np.isfinite(high):
        return low + (high - low) / (1.0 + np.exp(-np.clip(x, -30.0, 30.0)))
    return low + np.abs(x) if np.isfinite(low) else high - np.abs(x) if np.isfinite(high) else x


def run_piece(piece: Piece, start: Values, *, collapsed: bool) -> Values:
    """All values of a piece. Collapsed, every value is one number for each probe."""
    values = dict(start)
    with np.errstate(all="ignore"):
        for node in piece.nodes:
            operands = [values[n] if n in values else array(piece.graph.known[n]) for n in node.ins]
            name = node.eqn.primitive.name
            outs = [operands[0]] if collapsed and name in STRUCTURAL else evaluate(node.eqn, operands)
            values.update(zip(node.outs, outs, strict=True))
    return values
