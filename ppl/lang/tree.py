"""The syntax tree of `.vi` files. Nodes are equal when what they say is equal, wherever it stands."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

Span = tuple[int, int]
"""Where a node stands: offsets of its first character and of the one after its last."""


@dataclasses.dataclass(frozen=True)
class Node:
    """The base of all nodes."""

    span: Span = dataclasses.field(default=(0, 0), compare=False, repr=False, kw_only=True)


# Expressions


@dataclasses.dataclass(frozen=True)
class Name(Node):
    id: str


@dataclasses.dataclass(frozen=True)
class Number(Node):
    """`text` as written: without a point or an exponent it is an integer."""

    text: str

    @property
    def value(self) -> int | float:
        return int(self.text) if self.text.isdigit() else float(self.text)


@dataclasses.dataclass(frozen=True)
class Argument(Node):
    """`name` is None for a positional one."""

    name: str | None
    value: Node


@dataclasses.dataclass(frozen=True)
class Call(Node):
    """`function(arguments | given)`."""

    function: Node
    arguments: tuple[Argument, ...]
    given: tuple[Argument, ...] = ()


@dataclasses.dataclass(frozen=True)
class All(Node):
    """The `:` in an index."""


@dataclasses.dataclass(frozen=True)
class Index(Node):
    value: Node
    places: tuple[Node, ...]


@dataclasses.dataclass(frozen=True)
class Field(Node):
    """`trace.name`."""

    value: Node
    name: str


@dataclasses.dataclass(frozen=True)
class Transpose(Node):
    value: Node


@dataclasses.dataclass(frozen=True)
class Unary(Node):
    """`operator` is `-`, `not` or `log`."""

    operator: str
    operand: Node


@dataclasses.dataclass(frozen=True)
class Binary(Node):
    operator: str
    left: Node
    right: Node


@dataclasses.dataclass(frozen=True)
class Absolute(Node):
    """`|x|`: the absolute value of a number, the length of a vector."""

    value: Node


@dataclasses.dataclass(frozen=True)
class Tuple(Node):
    items: tuple[Node, ...]


@dataclasses.dataclass(frozen=True)
class List(Node):
    items: tuple[Node, ...]


@dataclasses.dataclass(frozen=True)
class Comprehension(Node):
    """`[body for name in domain]`."""

    body: Node
    name: str
    domain: Node


@dataclasses.dataclass(frozen=True)
class Each(Node):
    """`name in domain`, in a binder."""

    name: str
    domain: Node


@dataclasses.dataclass(frozen=True)
class Binder(Node):
    """`kind[clauses] body`: `E` with draws, sums and the like with `Each`, derivatives with names."""

    kind: str
    clauses: tuple[Node, ...]
    body: Node


# Statements


@dataclasses.dataclass(frozen=True)
class Draw(Node):
    """`target ~ source using estimator`."""

    target: Node
    source: Node
    estimator: Node | None = None


@dataclasses.dataclass(frozen=True)
class Define(Node):
    """`target = value`, or `target := value`, which the trace records."""

    target: Node
    value: Node
    recorded: bool = False


@dataclasses.dataclass(frozen=True)
class Factor(Node):
    name: str
    value: Node


@dataclasses.dataclass(frozen=True)
class Return(Node):
    value: Node


@dataclasses.dataclass(frozen=True)
class Evaluate(Node):
    """An expression as a statement: the value of an objective or function."""

    value: Node


@dataclasses.dataclass(frozen=True)
class For(Node):
    name: str
    domain: Node
    body: tuple[Node, ...]


@dataclasses.dataclass(frozen=True)
class If(Node):
    condition: Node
    then: tuple[Node, ...]
    otherwise: tuple[Node, ...] = ()


# Items of a file


@dataclasses.dataclass(frozen=True)
class ImportFile(Node):
    path: str


@dataclasses.dataclass(frozen=True)
class ImportPython(Node):
    module: str
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Type(Node):
    """`real[3, n]`."""

    name: str
    dimensions: tuple[Node, ...] = ()


@dataclasses.dataclass(frozen=True)
class Declaration(Node):
    name: str
    type: Type


@dataclasses.dataclass(frozen=True)
class Data(Node):
    declarations: tuple[Declaration, ...]


@dataclasses.dataclass(frozen=True)
class Parameter(Node):
    """`name: type = initial`; `drawn` says that it is `~ initial`."""

    name: str
    type: Type | None = None
    initial: Node | None = None
    drawn: bool = False


@dataclasses.dataclass(frozen=True)
class Params(Node):
    parameters: tuple[Parameter, ...]


@dataclasses.dataclass(frozen=True)
class Program(Node):
    """A model or family, its learned parameters and, behind the bar, what it is given."""

    kind: str
    name: str
    parameters: tuple[Parameter, ...]
    given: tuple[Parameter, ...]
    body: tuple[Node, ...]


@dataclasses.dataclass(frozen=True)
class Alias(Node):
    """`family name = expression over programs`."""

    kind: str
    name: str
    value: Node


@dataclasses.dataclass(frozen=True)
class Function(Node):
    """A body of one `Return` is printed as `function f(x) = value`."""

    name: str
    parameters: tuple[str, ...]
    body: tuple[Node, ...]


@dataclasses.dataclass(frozen=True)
class Setting(Node):
    name: str
    value: Node


@dataclasses.dataclass(frozen=True)
class Objective(Node):
    name: str
    settings: tuple[Setting, ...]
    body: tuple[Node, ...]


@dataclasses.dataclass(frozen=True)
class Term(Node):
    """An objective of a fit, with settings, and the parameters that ascend it: names, dotted for one of a program."""

    objective: str
    settings: tuple[Setting, ...] = ()
    over: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Fit(Node):
    verb: str
    terms: tuple[Term, ...]
    optimizer: Node | None = None
    options: tuple[Setting, ...] = ()


@dataclasses.dataclass(frozen=True)
class Comment(Node):
    text: str


@dataclasses.dataclass(frozen=True)
class File(Node):
    """A whole file. `name` and `text` are where it comes from."""

    items: tuple[Node, ...]
    comments: tuple[Comment, ...] = dataclasses.field(default=(), compare=False, repr=False, kw_only=True)
    name: str = dataclasses.field(default="<text>", compare=False, repr=False, kw_only=True)
    text: str = dataclasses.field(default="", compare=False, repr=False, kw_only=True)


def children(node: Node) -> Iterator[Node]:
    """The nodes directly below one."""
    for value in vars(node).values():
        yield from _nodes(value)


def _nodes(value: Any) -> Iterator[Node]:
    if isinstance(value, Node):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            if isinstance(item, Node):
                yield item


def walk(node: Node) -> Iterator[Node]:
    """A node and all below it, parents first. Not recursive: trees may be deep."""
    stack = [node]
    while stack:
        current = stack.pop()
        yield current
        stack.extend(reversed(list(children(current))))
