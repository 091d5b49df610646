"""What names stand for while a text is elaborated: besides arrays, arrays known in part, draws of programs, and programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl.lang import tree


class Pieces:
    """An array that statements define piece by piece: `x[1] ~ ...`, then `x[2..T]` by a loop. Counts from one."""

    def __init__(self, parts: tuple[tuple[int, int, Any], ...] = ()):
        self.parts = tuple(sorted(parts, key=lambda part: part[0]))

    def add(self, start: int, stop: int, value: Any) -> Pieces:
        """With elements start, .., stop - 1, stacked along the first axis."""
        return Pieces((*self.parts, (start, stop, value)))

    def between(self, start: int, stop: int) -> Any:
        """Elements start, .., stop - 1, stacked."""
        found = []
        for first, last, value in self.parts:
            low, high = max(first, start), min(last, stop)
            if low < high:
                whole = low == first and high == last
                found.append(value if whole else jax.tree.map(lambda x, a=low - first, b=high - first: x[a:b], value))
        if len(found) == 1:
            return found[0]
        return jax.tree.map(lambda *xs: jnp.concatenate(xs), *found)

    def at(self, place: int) -> Any:
        return jax.tree.map(lambda x: x[0], self.between(place, place + 1))

    def whole(self) -> Any:
        return self.between(self.parts[0][0], self.parts[-1][1])


def whole(value: Any) -> Any:
    """An array, in one piece."""
    return value.whole() if isinstance(value, Pieces) else value


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True)
class Drawn:
    """A trace that was drawn from a program, with its log density there.

    `source` says which program: the tree of the expression after `~`. `observed` are the names that count in the density.
    """

    trace: Any
    log_density: Any
    source: Any
    observed: frozenset[str] = frozenset()

    def tree_flatten(self) -> tuple[tuple[Any, Any], tuple[Any, frozenset[str]]]:
        return (self.trace, self.log_density), (self.source, self.observed)

    @classmethod
    def tree_unflatten(cls, static: tuple[Any, frozenset[str]], parts: tuple[Any, Any]) -> Drawn:
        return cls(*parts, *static)


@dataclasses.dataclass(frozen=True, eq=False)
class ProgramValue:
    """A program with its learned parameters: what is left to say is what it is given, and what it observes.

    `bind(given, observed)` makes the bound program; `names` are those of what it is given; `observes` the data that it can be
    conditioned on. `constant` says that no gradient flows into it, `freeze` makes it so where parameters have to be stopped.
    """

    bind: Callable[[tuple[Any, ...], Mapping[str, Any]], Any]
    names: tuple[str, ...] = ()
    observes: frozenset[str] = frozenset()
    constant: bool = False
    freeze: Callable[[], ProgramValue] | None = None

    def frozen(self) -> ProgramValue:
        """The same, held constant."""
        if self.constant:
            return self
        if self.freeze is not None:
            return self.freeze()
        return dataclasses.replace(self, constant=True)


class FunctionValue(NamedTuple):
    """A function that a text defines, where it is defined."""

    definition: tree.Function
    environment: Any


class Domain(NamedTuple):
    """What an index runs over: start, .., stop - 1. With `rows`, a random minibatch of these, counted from zero."""

    start: int
    stop: int
    batch: int | None = None

    @property
    def length(self) -> int:
        return self.stop - self.start
