"""Whether what an objective computes is continuous in what its gradients flow through.

The expectation of a discontinuous function of a continuous draw has a gradient that derivatives of the function miss: that of
the probability of each side. This happens where a jump's place depends both on continuous noise and, along differentiable
paths (parameters, reparameterized values), on what is differentiated. Analysis of the jaxpr finds the operations that may jump,
and follows what they give; a value that turns out to be continuous all the same (`probe.py`) ends the jump.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import primitives as jp

from ppl.densities import elementwise
from ppl.lanes import lanes_p, site_of
from ppl.site import Site, Where, restore, site_p
from ppl.transforms.graph import Graph, Node, graph_of
from ppl.transforms.interpret import SiteId, advance, scan_sizes
from ppl.transforms.probe import continuous, jumps


@dataclasses.dataclass(frozen=True)
class Jump:
    """An operation whose result is discontinuous, at places that depend on the draws of `sites`.

    `certain` is False where it could not be told whether what is made of it is continuous, and `tried` is True after a first
    value was found that is not.
    """

    operation: str
    where: Where | None
    sites: frozenset[SiteId]
    graph: Any = dataclasses.field(default=None, compare=False)
    switch: int = -1
    at: tuple[int, ...] = ()
    certain: bool = True
    tried: bool = False


class Reach(NamedTuple):
    """What reaches a value: whether it moves with what is differentiated, which continuous draws, and which jumps.

    `atoms` says that it may take single values with positive probability, as clipped ones do.
    """

    moves: bool = False
    draws: frozenset[SiteId] = frozenset()
    jumps: frozenset[Jump] = frozenset()
    atoms: bool = False


NOTHING = Reach()
PATHWISE, STOPPED, DETACHED = "pathwise", "stopped", "detached"
"""What a draw is to this analysis: a differentiable function of its parameters; one of which only the weight is; neither."""


def join(parts: Iterable[Reach]) -> Reach:
    found = [part for part in parts if part is not NOTHING]
    if len(found) < 2:
        return found[0] if found else NOTHING
    return Reach(
        any(part.moves for part in found),
        frozenset().union(*(part.draws for part in found)),
        frozenset().union(*(part.jumps for part in found)),
        any(part.atoms for part in found),
    )


@dataclasses.dataclass(frozen=True)
class Scope:
    """What is known around a graph. `inputs` are typical values of its arguments."""

    traits: Callable[[SiteId, Site], str]
    inputs: Mapping[int, Any] = dataclasses.field(default_factory=dict)
    where: Where | None = None
    outermost: bool = True


def jumps_of(jaxpr: Any, consts: Sequence[Any], moving: Mapping[int, Any], traits: Callable[[SiteId, Site], str]) -> list[Jump]:
    """The jumps that reach a jaxpr's results, differentiated in the constants `moving`; their values are None if unknown."""
    graph = graph_of(jaxpr, consts, moving=list(moving))
    inputs = {number: value for number, value in zip(graph.ins, moving.values(), strict=True) if value is not None}
    outs = flow(graph, [Reach(moves=True)] * len(graph.ins), Scope(traits, inputs), {})
    return sorted(join(outs).jumps, key=lambda jump: (str(jump.where), jump.operation))


def flow(graph: Graph, ins: Sequence[Reach], scope: Scope, counts: dict[Any, int]) -> list[Reach]:
    """What reaches a graph's results, given what reaches its arguments."""
    env: dict[int, Reach] = dict(zip(graph.ins, ins, strict=True))
    reach: list[Reach] = []
    for node in graph.nodes:
        operands = [env.get(number, NOTHING) for number in node.ins]
        holds_site = site_of(node.eqn) is not None
        if holds_site or any(operand is not NOTHING for operand in operands):
            reach = _through(graph, node, operands, scope, counts)
            env.update(zip(node.outs, reach, strict=True))
        if holds_site:
            counts = advance(counts, node.eqn)
    outs = [env.get(number, NOTHING) for number in graph.outs]
    return [_settle(graph, number, out, scope, last=True) for number, out in zip(graph.outs, outs, strict=True)]


def _through(graph: Graph, node: Node, ins: Sequence[Reach], scope: Scope, counts: dict[Any, int]) -> list[Reach]:
    eqn, name = node.eqn, node.eqn.primitive.name
    rule = _RULES.get(eqn.primitive)
    if rule is not None:
        ins = [_settle(graph, number, reach, scope) for number, reach in zip(node.ins, ins, strict=True)]
        outs = rule(graph, node, ins, scope, counts)
        return [_anchor(graph, number, out) for number, out in zip(node.outs, outs, strict=True)]
    every = join(ins)
    if name in _COMPARISONS or name in _ROUNDING or _to_discrete(node):
        return [_discrete(graph, node, ins)] * len(node.outs)
    if name == "is_finite":
        return [every._replace(moves=False, draws=frozenset(), atoms=False)]
    if name == "rem":
        return [every._replace(jumps=every.jumps | _discrete(graph, node, ins).jumps)]
    if name in ("argmax", "argmin"):
        return [_discrete(graph, node, ins)]
    if name == "sort":
        keys = eqn.params["num_keys"]
        places = [i for i, atom in enumerate(eqn.outvars) if i >= keys and atom.aval.dtype.kind in "iu"]
        jump = _discrete(graph, node, ins[:keys], output=places[0] if places else None)
        moved = [join([value, jump])._replace(moves=value.moves) for value in ins[keys:]]
        return [join(ins[:keys])._replace(atoms=True)] * keys + moved
    if name == "top_k":
        return [every._replace(atoms=True), _discrete(graph, node, ins, output=1)]
    if name == "select_n":
        out = every._replace(atoms=every.atoms or _random(ins[0]))
        return [_settle(graph, node.outs[0], out, scope, only=ins[0].jumps)]
    if name in _WITH_ATOMS:
        every = every._replace(atoms=True)
    return [_of_kind(graph.avals[number], every) for number in node.outs]


_ORDER = frozenset("lt le gt ge lt_to le_to".split())
_COMPARISONS = _ORDER | {"eq", "ne", "eq_to"}
_ROUNDING = frozenset("floor ceil round sign".split())
_WITH_ATOMS = frozenset("max min clamp reduce_max reduce_min cummax cummin".split())
_NAMES = {
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "eq": "==",
    "ne": "!=",
    "lt_to": "<",
    "le_to": "<=",
    "eq_to": "==",
    "rem": "remainder",
    "sort": "order of a sort",
}


def _random(reach: Reach) -> bool:
    return bool(reach.draws or reach.jumps)


def _to_discrete(node: Node) -> bool:
    if node.eqn.primitive is not jp.convert_element_type_p:
        return False
    before, after = (getattr(atom.aval.dtype, "kind", "?") for atom in (node.eqn.invars[0], node.eqn.outvars[0]))
    return before in "fV" and after in "iub"


def _of_kind(aval: Any, reach: Reach) -> Reach:
    """Integers and booleans do not move."""
    if getattr(aval.dtype, "kind", "?") in "iub":
        return reach._replace(moves=False, draws=frozenset(), atoms=False)
    return reach


def _discrete(graph: Graph, node: Node, ins: Sequence[Reach], output: int | None = 0) -> Reach:
    """A result that takes separate values: a jump, if where it changes depends on draws and on what is differentiated."""
    every, name = join(ins), node.eqn.primitive.name
    rest = Reach(jumps=every.jumps)
    kind = node.eqn.outvars[0].aval.dtype.kind if name == "convert_element_type" else ""
    # A continuous value is equal to another one with probability zero, unless it was clipped.
    if not every.moves or not every.draws or ((name in ("eq", "ne", "eq_to") or kind == "b") and not every.atoms):
        return rest
    operation = f"conversion to {node.eqn.outvars[0].aval.dtype.name}" if kind else _NAMES.get(name, name)
    jump = Jump(operation, node.where, every.draws)
    if output is not None:
        jump = dataclasses.replace(jump, graph=graph, switch=node.outs[output], at=node.ins if name in _ORDER else ())
    return rest._replace(jumps=rest.jumps | {jump})


def _anchor(graph: Graph, number: int, reach: Reach) -> Reach:
    """Jumps inside of control flow, once they are out of it: an integer result tells the sides apart."""
    if not reach.jumps or getattr(graph.avals[number].dtype, "kind", "?") not in "iub":
        return reach
    moved = (
        jump if jump.graph is graph or jump.graph is None else dataclasses.replace(jump, graph=graph, switch=number, at=())
        for jump in reach.jumps
    )
    return reach._replace(jumps=frozenset(moved))


def _settle(
    graph: Graph, number: int, reach: Reach, scope: Scope, *, only: frozenset[Jump] | None = None, last: bool = False
) -> Reach:
    """What reaches a value, without the jumps (of `only` these) in which it is continuous."""
    kind = getattr(graph.avals[number].dtype, "kind", "?")
    if not reach.jumps or kind not in "fV":
        return reach
    kept = set()
    healed: dict[Jump, bool | None] = {}
    for jump in reach.jumps:
        plain = dataclasses.replace(jump, tried=False)
        candidate = last or (plain in only if only is not None else not jump.tried)
        if not candidate or (number == jump.switch and not last):
            kept.add(jump)
        elif jump.graph is not graph:  # inside of a loop, or confirmed
            decide = last and scope.outermost and jump.graph is not None
            certain = jump.certain and (not decide or bool(jumps(graph, number, dict(scope.inputs))))
            kept.add(dataclasses.replace(jump, certain=certain))
        else:
            if plain not in healed:
                healed[plain] = continuous(graph, jump.switch, number, jump.at, dict(scope.inputs))
            if not healed[plain]:
                certain = jump.certain and not (last and healed[plain] is None)
                kept.add(dataclasses.replace(jump, tried=True, certain=certain))
    return reach._replace(jumps=frozenset(kept))


def _site(graph: Graph, node: Node, ins: Sequence[Reach], scope: Scope, counts: dict[Any, int]) -> list[Reach]:
    site = node.eqn.params["site"]
    site_id = (site.address, counts.get(site.address, 0))
    trait, parents = scope.traits(site_id, site), join(ins[i] for i in parameters_of(site))
    # Noise hides the jump from here on.
    parents = parents._replace(jumps=frozenset(dataclasses.replace(jump, graph=None) for jump in parents.jumps))
    if trait == DETACHED:
        parents = NOTHING
    drawn = site.distribution_name not in ("", "Delta") and np.issubdtype(site.dtype, np.floating)
    draws = parents.draws | ({site_id} if drawn else frozenset())
    return [_of_kind(graph.avals[node.outs[0]], Reach(parents.moves and trait == PATHWISE, draws, parents.jumps))]


def value_moves(estimator: Any, site: Site, shapes: Sequence[Any]) -> bool:
    """Whether the values of an estimator are differentiable functions of the parameters, whatever weights they have."""

    def values(leaves: Any, key: Any) -> Any:
        return estimator.particle(key, elementwise(restore(site, leaves).distribution))[0]

    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = jax.make_jaxpr(values)(list(shapes), key)
    graph = graph_of(traced.jaxpr, traced.consts)
    moving = {number for number in graph.ins if getattr(graph.avals[number].dtype, "kind", "?") in "fV"}
    for node in graph.nodes:
        if node.eqn.primitive.name != "stop_gradient" and not moving.isdisjoint(node.ins):
            moving.update(n for n in node.outs if getattr(graph.avals[n].dtype, "kind", "?") in "fV")
    return not moving.isdisjoint(graph.outs)


def parameters_of(site: Site) -> list[int]:
    """Which operands of a site decide on its value."""
    operands = restore(site, list(range(1, site.tree.num_leaves + 1)))  # positive, as an estimator may ask
    return [number - 1 for number in jax.tree.leaves((operands.distribution, operands.value))]


def _inner(closed: Any, node: Node, counts: dict[Any, int], scope: Scope) -> Callable[[Sequence[Reach]], list[Reach]]:
    """The flow through a body of control flow."""
    jaxpr, consts = (closed.jaxpr, closed.consts) if hasattr(closed, "consts") else (closed, ())
    graph = graph_of(jaxpr, consts, node.where)
    inside = dataclasses.replace(scope, inputs={}, where=node.where, outermost=False)
    return lambda ins: flow(graph, ins, inside, counts)


def _cond(graph: Graph, node: Node, ins: Sequence[Reach], scope: Scope, counts: dict[Any, int]) -> list[Reach]:
    index, *operands = ins
    branches = [_inner(branch, node, counts, scope)(operands) for branch in node.eqn.params["branches"]]
    outs = [join([*cases, Reach(jumps=index.jumps)]) for cases in zip(*branches, strict=True)]
    if site_of(node.eqn) is not None:
        return outs
    return [_settle(graph, number, out, scope, only=index.jumps) for number, out in zip(node.outs, outs, strict=True)]


def _scan(graph: Graph, node: Node, ins: Sequence[Reach], scope: Scope, counts: dict[Any, int]) -> list[Reach]:
    n_consts, n_carry = scan_sizes(node.eqn)
    body = _inner(node.eqn.params["jaxpr"], node, counts, scope)
    carry = list(ins[n_consts : n_consts + n_carry])
    while True:
        outs = body([*ins[:n_consts], *carry, *ins[n_consts + n_carry :]])
        reached = [join(pair) for pair in zip(carry, outs[:n_carry], strict=True)]
        if reached == carry:
            return [*carry, *outs[n_carry:]]
        carry = reached


def _while(graph: Graph, node: Node, ins: Sequence[Reach], scope: Scope, counts: dict[Any, int]) -> list[Reach]:
    params = node.eqn.params
    n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
    condition, body = (_inner(params[name], node, counts, scope) for name in ("cond_jaxpr", "body_jaxpr"))
    carry = list(ins[n_cond + n_body :])
    while True:
        (going,) = condition([*ins[:n_cond], *carry])
        outs = body([*ins[n_cond : n_cond + n_body], *carry])
        reached = [join([*pair, Reach(jumps=going.jumps)]) for pair in zip(carry, outs, strict=True)]
        if reached == carry:
            return carry
        carry = reached


def _lanes(graph: Graph, node: Node, ins: Sequence[Reach], scope: Scope, counts: dict[Any, int]) -> list[Reach]:
    return _inner(node.eqn.params["jaxpr"], node, counts, scope)(ins)


_RULES: dict[Any, Callable[..., list[Reach]]] = {
    site_p: _site,
    jp.cond_p: _cond,
    jp.scan_p: _scan,
    jp.while_p: _while,
    lanes_p: _lanes,
}
