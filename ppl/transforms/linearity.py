"""Whether marked values are used linearly, on the way to an objective's result.

A draw of a nested expectation is unbiased for it, and stays so in every linear function, and in products with what is
independent of it. The expectation of any other function of the draw is not that function of the expectation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from jax.extend.core import primitives as jp

from ppl.lanes import lanes_p
from ppl.notes import Note, note_p
from ppl.site import SAMPLE, Where, site_p
from ppl.transforms.graph import Graph, Node, graph_of
from ppl.transforms.interpret import scan_sizes
from ppl.transforms.smoothness import parameters_of


class Draw(NamedTuple):
    """One marked value. `earlier` if it is of an earlier step of a loop around it; `several` if it holds several draws."""

    note: Note
    place: int
    several: bool = False
    earlier: bool = False


@dataclasses.dataclass(frozen=True)
class Misuse:
    """A nonlinear use of a marked value. `certain` is False where the values may be independent draws."""

    note: Note
    operation: str
    where: Where | None
    certain: bool = True


class Use(NamedTuple):
    """What a value depends on linearly, and the nonlinear uses before it."""

    linear: frozenset[Draw] = frozenset()
    misuses: frozenset[Misuse] = frozenset()


NOTHING = Use()

_LINEAR = frozenset(
    """
    add add_any sub neg reduce_sum broadcast_in_dim reshape squeeze expand_dims transpose copy copy_p slice concatenate pad rev
    cumsum name note stop_gradient optimization_barrier real imag reduce_precision split
    """.split()
)
_PRODUCTS = frozenset("mul dot_general conv_general_dilated".split())
_IN_THE_FIRST = frozenset("div gather dynamic_slice triangular_solve".split())
_ACROSS = frozenset("reduce_prod cumprod".split())


def misuses_of(jaxpr: Any, consts: Sequence[Any], kind: str) -> list[Misuse]:
    """The nonlinear uses of values with a note of this kind, on the way to the results of a jaxpr."""
    graph = graph_of(jaxpr, consts)
    outs = flow(graph, [NOTHING] * len(graph.ins), kind)
    return sorted(join(outs).misuses, key=lambda misuse: (str(misuse.where), misuse.operation))


def join(parts: Iterable[Use]) -> Use:
    found = [part for part in parts if part is not NOTHING]
    if len(found) < 2:
        return found[0] if found else NOTHING
    return Use(frozenset().union(*(p.linear for p in found)), frozenset().union(*(p.misuses for p in found)))


def flow(graph: Graph, ins: Sequence[Use], kind: str) -> list[Use]:
    """What a graph's results depend on, given what its arguments do."""
    env: dict[int, Use] = dict(zip(graph.ins, ins, strict=True))
    for node in graph.nodes:
        operands = [env.get(number, NOTHING) for number in node.ins]
        primitive = node.eqn.primitive
        if primitive is note_p and node.eqn.params["note"].kind == kind:
            draw = Draw(node.eqn.params["note"], id(node), several=graph.avals[node.outs[0]].size > 1)
            env[node.outs[0]] = join([*operands, Use(frozenset([draw]))])
        elif primitive in _RULES:
            env.update(zip(node.outs, _RULES[primitive](node, operands, kind), strict=True))
        elif any(operand is not NOTHING for operand in operands):
            env.update(dict.fromkeys(node.outs, _through(node, operands)))
    return [env.get(number, NOTHING) for number in graph.outs]


def _through(node: Node, ins: Sequence[Use]) -> Use:
    name, every = node.eqn.primitive.name, join(ins)
    if name in _LINEAR:
        return every
    if name == "convert_element_type" and node.eqn.outvars[0].aval.dtype.kind in "fV":
        return every
    if name in _PRODUCTS:
        left, right = ins
        return _misuse(every, left.linear & right.linear, node, "product of a draw with itself", independent=True)
    if name in _IN_THE_FIRST:
        return _misuse(every, join(ins[1:]).linear, node, "division by it" if name == "div" else name)
    if name == "select_n":
        return _misuse(every, ins[0].linear, node, "choice by it")
    return _misuse(every, every.linear, node, _WORDS.get(name, name), independent=name in _ACROSS)


_WORDS = {"integer_pow": "power", "pow": "power", "reduce_prod": "product"}


def _misuse(every: Use, draws: Iterable[Draw], node: Node, operation: str, *, independent: bool = False) -> Use:
    """The use without the draws that are used nonlinearly here. Several draws in one array may be `independent` factors."""
    draws = frozenset(draws)
    if not draws:
        return every
    found = {Misuse(draw.note, operation, node.where, not (independent and draw.several)) for draw in draws}
    return Use(every.linear, every.misuses | found)


def _site(node: Node, ins: Sequence[Use], kind: str) -> list[Use]:
    site = node.eqn.params["site"]
    every = join(ins[i] for i in parameters_of(site))
    if site.kind != SAMPLE:
        return [every]
    return [Use(frozenset(), _misuse(every, every.linear, node, f"parameter of {site.name!r}").misuses)]


def _inner(closed: Any, node: Node) -> Graph:
    return graph_of(closed.jaxpr, closed.consts, node.where)


def _cond(node: Node, ins: Sequence[Use], kind: str) -> list[Use]:
    index, *operands = ins
    chosen = _misuse(Use(misuses=index.misuses), index.linear, node, "choice by it")
    branches = [flow(_inner(branch, node), operands, kind) for branch in node.eqn.params["branches"]]
    return [join([*outs, chosen]) for outs in zip(*branches, strict=True)]


def _fixpoint(carry: Sequence[Use], step: Callable[[list[Use]], list[Use]]) -> list[Use]:
    """What is carried in a loop, at any step."""
    found = list(carry)
    while True:
        after = [
            Use(frozenset(d._replace(earlier=True) for d in out.linear - old.linear) | old.linear, out.misuses)
            for out, old in zip(step(found), found, strict=True)
        ]
        reached = [join(pair) for pair in zip(found, after, strict=True)]
        if reached == found:
            return found
        found = reached


def _scan(node: Node, ins: Sequence[Use], kind: str) -> list[Use]:
    n_consts, n_carry = scan_sizes(node.eqn)
    body = _inner(node.eqn.params["jaxpr"], node)

    def step(carry: list[Use]) -> list[Use]:
        return flow(body, [*ins[:n_consts], *carry, *ins[n_consts + n_carry :]], kind)

    carry = _fixpoint(ins[n_consts : n_consts + n_carry], lambda carry: step(carry)[:n_carry])
    return [*carry, *step(carry)[n_carry:]]


def _while(node: Node, ins: Sequence[Use], kind: str) -> list[Use]:
    params = node.eqn.params
    n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
    body, condition = (_inner(params[name], node) for name in ("body_jaxpr", "cond_jaxpr"))
    carry = _fixpoint(ins[n_cond + n_body :], lambda carry: flow(body, [*ins[n_cond : n_cond + n_body], *carry], kind))
    (going,) = flow(condition, [*ins[:n_cond], *carry], kind)
    ended = _misuse(Use(misuses=going.misuses), going.linear, node, "choice by it")
    return [join([value, ended]) for value in carry]


def _lanes(node: Node, ins: Sequence[Use], kind: str) -> list[Use]:
    return [
        Use(frozenset(draw._replace(several=True) for draw in out.linear), out.misuses)
        for out in flow(_inner(node.eqn.params["jaxpr"], node), ins, kind)
    ]


_RULES: dict[Any, Callable[[Node, Sequence[Use], str], list[Use]]] = {
    site_p: _site,
    jp.cond_p: _cond,
    jp.scan_p: _scan,
    jp.while_p: _while,
    lanes_p: _lanes,
}
