"""Names in scope while a text is checked, and where messages go."""

from __future__ import annotations

import dataclasses
from typing import Any

from ppl.lang import types
from ppl.lang.builtins import CONSTANTS, DISTRIBUTIONS, FUNCTIONS, SPECIAL
from ppl.lang.diagnostics import Diagnostic, Source, at, did_you_mean
from ppl.lang.tree import Node


@dataclasses.dataclass
class Report:
    """What was found in all texts, and what is shared by them."""

    sizes: types.Sizes
    diagnostics: list[Diagnostic] = dataclasses.field(default_factory=list)
    calls: dict[Any, tuple[Any, int]] = dataclasses.field(default_factory=dict)
    depth: int = 0
    cost: int = 0


@dataclasses.dataclass
class Scope:
    """Names and their types.

    `kind` is what is checked: `model`, `family`, `function`, `objective` or the `file`. `sites` are what a program draws, by
    address, `observed` the data among them; `lengths` how often loops run.
    """

    report: Report
    source: Source
    names: dict[str, Any] = dataclasses.field(default_factory=dict)
    loops: tuple[str, ...] = ()
    kind: str = "file"
    data: frozenset[str] = frozenset()
    sites: dict[str, Any] = dataclasses.field(default_factory=dict)
    lengths: dict[str, int] = dataclasses.field(default_factory=dict)
    observed: set[str] = dataclasses.field(default_factory=set)

    def child(self, **changes: Any) -> Scope:
        return dataclasses.replace(self, names=dict(self.names), **changes)

    def error(self, node: Node, message: str, hint: str = "") -> Any:
        """Report; the type of what is wrong is unknown."""
        self.report.diagnostics.append(at(self.source, node.span, message, hint))
        return types.ANY

    def lookup(self, name: str) -> Any:
        if name in self.names:
            return self.names[name]
        if name in CONSTANTS:
            return types.Array(value=CONSTANTS[name])
        return None

    def unknown(self, node: Node, name: str) -> Any:
        """Report a name that is not defined."""
        if len(self.report.diagnostics) > 100:  # more than are shown, and a search among all names takes time
            return self.error(node, f"the name {name!r} is not defined")
        known = [*self.names, *CONSTANTS, *FUNCTIONS, *DISTRIBUTIONS, *SPECIAL]
        return self.error(node, f"the name {name!r} is not defined", did_you_mean(name, known))

    def shape(self, shape: tuple[int, ...]) -> str:
        return self.report.sizes.shape(shape)
