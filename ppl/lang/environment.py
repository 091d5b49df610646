"""Names and their values while a text is elaborated, and the rows of arrays that loops have at hand."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from ppl.errors import LanguageError
from ppl.lang import tree
from ppl.lang.diagnostics import Source, at
from ppl.lang.tree import Node
from ppl.site import Where, located

Place = tuple[int, str, int]
"""Position of an index, the loop variable in it, what is added to that."""
Row = tuple[Any, frozenset[Place]]


@dataclasses.dataclass(frozen=True)
class Environment:
    """Copied at every scope; the dicts of one scope are its own.

    `rows` are the slices of arrays that belong to the current iteration, by what is indexed and which of its places are loop
    variables. `loops` are the loop variables around, outermost first. `observed` are the names of data that sites take.
    In an `objective`, what is drawn from a program comes with its log density.
    """

    source: Source
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    rows: dict[Row, Any] = dataclasses.field(default_factory=dict)
    loops: tuple[str, ...] = ()
    observed: frozenset[str] = frozenset()
    name: str = ""
    objective: bool = False

    def child(self, **changes: Any) -> Environment:
        return dataclasses.replace(self, values=dict(self.values), rows=dict(self.rows), **changes)

    def with_values(self, **values: Any) -> Environment:
        return dataclasses.replace(self, values={**self.values, **values}, rows=dict(self.rows))

    def where(self, node: Node) -> Where:
        return Where(self.source.name, self.source.position(node.span[0])[0], self.name)

    @contextlib.contextmanager
    def at(self, node: Node) -> Iterator[None]:
        """Sites made inside stand at this part of the text, and what JAX finds wrong is wrong there."""
        with located(self.where(node)):
            try:
                yield
            except (TypeError, ValueError, IndexError, AttributeError) as error:
                raise self.error(node, f"{type(error).__name__}: {str(error).strip()}") from error

    def error(self, node: Node, message: str, hint: str = "") -> LanguageError:
        return LanguageError((at(self.source, node.span, message, hint),))


def affine(node: Node, loops: tuple[str, ...]) -> tuple[str, int] | None:
    """A loop variable and what is added to it, where an index is that: `j`, `j + 2`, `t - 1`."""
    if isinstance(node, tree.Name) and node.id in loops:
        return node.id, 0
    if isinstance(node, tree.Binary) and node.operator in "+-":
        left, right = node.left, node.right
        if node.operator == "+" and isinstance(left, tree.Number):
            left, right = right, left
        if isinstance(left, tree.Name) and left.id in loops and isinstance(right, tree.Number) and right.text.isdigit():
            return left.id, int(right.text) if node.operator == "+" else -int(right.text)
    return None


def base_key(node: Node) -> Any:
    """What is indexed, if it is a name or a field of one."""
    if isinstance(node, tree.Name):
        return node.id
    if isinstance(node, tree.Field):
        inner = base_key(node.value)
        return None if inner is None else (inner, node.name)
    return None


def lane_places(node: tree.Index, loops: tuple[str, ...]) -> list[Place]:
    """The places of an index that are loop variables, each variable once."""
    found: list[Place] = []
    for position, place in enumerate(node.places):
        if isinstance(place, tree.All) or (isinstance(place, tree.Binary) and place.operator == ".."):
            continue
        match = affine(place, loops)
        if match is not None and all(match[0] != variable for _, variable, _ in found):
            found.append((position, *match))
    return found
