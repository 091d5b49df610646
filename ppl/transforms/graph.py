"""A jaxpr as a flat list of equations, with every call inlined, for analyses that follow values from equation to equation."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from jax.extend.core import Jaxpr, Literal

from ppl.site import Where, site_p, user_code
from ppl.transforms.numeric import CALLS, closed


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One equation; `ins` and `outs` number values of its graph."""

    eqn: Any
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    where: Where | None


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """Values are numbered; `known` are constants, `maker` tells the node that makes a value."""

    nodes: list[Node] = dataclasses.field(default_factory=list)
    avals: list[Any] = dataclasses.field(default_factory=list)
    known: dict[int, Any] = dataclasses.field(default_factory=dict)
    maker: dict[int, Node] = dataclasses.field(default_factory=dict)
    ins: list[int] = dataclasses.field(default_factory=list)
    outs: list[int] = dataclasses.field(default_factory=list)

    def number(self, aval: Any) -> int:
        self.avals.append(aval)
        return len(self.avals) - 1


def graph_of(jaxpr: Jaxpr, consts: Sequence[Any], where: Where | None = None, moving: Collection[int] = ()) -> Graph:
    """Flatten a jaxpr. `where` is the place of what has none of its own; the constants `moving` count as first arguments."""
    graph = Graph()
    env: dict[Any, int] = {}
    for var in [*(jaxpr.constvars[i] for i in moving), *jaxpr.invars]:
        env[var] = graph.number(var.aval)
        graph.ins.append(env[var])
    graph.outs.extend(_add(graph, jaxpr, consts, env, where, None))
    return graph


def _add(
    graph: Graph, jaxpr: Jaxpr, consts: Sequence[Any], env: dict[Any, int], where: Where | None, name: str | None
) -> list[int]:
    for var, const in zip(jaxpr.constvars, consts, strict=True):
        if var not in env:
            env[var] = graph.number(var.aval)
            graph.known[env[var]] = const

    def read(atom: Any) -> int:
        if not isinstance(atom, Literal):
            return env[atom]
        number = graph.number(atom.aval)
        graph.known[number] = atom.val
        return number

    for eqn in jaxpr.eqns:
        numbers = tuple(map(read, eqn.invars))
        place = source(eqn, name) or where
        if eqn.primitive in CALLS:
            inner, inner_consts = closed(eqn.params)
            inside = dict(zip(inner.invars, numbers, strict=True))
            outs = _add(graph, inner, inner_consts, inside, place, str(eqn.params.get("name", "")))
            env.update(zip(eqn.outvars, outs, strict=True))
            continue
        outs = [graph.number(var.aval) for var in eqn.outvars]
        node = Node(eqn, numbers, tuple(outs), eqn.params["site"].where if eqn.primitive is site_p else place)
        graph.nodes.append(node)
        graph.maker.update(dict.fromkeys(outs, node))
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def source(eqn: Any, inside: str | None = None) -> Where | None:
    """The user's line that an equation comes from.

    JAX traces a function under `jit` once for all its callers, so the frames of what stands inside the function `inside` are
    those of its first use. They count only if they are in the function itself, which then is the user's.
    """
    traceback = getattr(eqn.source_info, "traceback", None)
    frames = [frame for frame in _frames(traceback) if user_code(frame.file_name)]
    if not frames or (inside is not None and all(_last(frame.function_name) != _last(inside) for frame in frames)):
        return None
    return Where(frames[0].file_name, frames[0].line_num, frames[0].function_name)


def _frames(traceback: Any) -> Iterator[Any]:
    yield from () if traceback is None else traceback.frames


def _last(name: str) -> str:
    return name.rpartition(".")[2]
