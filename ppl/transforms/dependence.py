"""Which sites a site depends on directly, by abstract interpretation of the jaxpr.

For every variable of the jaxpr this computes its *sources*: the sites whose values reach it through deterministic
computation alone. What reaches a site's operands are its parents, and the site's own output has the site as its one source,
so a path through another site is no edge. Each primitive that holds a jaxpr has a rule in `_RULES`; any other equation's
outputs have the sources of all its inputs.

Within a loop a source may stem from another step than the one that reads it; it then carries the loop in `lags`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jax.extend.core import Jaxpr, Literal
from jax.extend.core import primitives as jp

from ppl import errors
from ppl.estimated import estimated_p
from ppl.lanes import inner_jaxprs, lanes_p, site_of
from ppl.site import DETERMINISTIC, FACTOR, Address, Operands, Site, show, site_p
from ppl.transforms.interpret import scan_sizes
from ppl.transforms.modify import Prepared, Program, prepare
from ppl.transforms.stage import Located, sites


class Edge(NamedTuple):
    """`child` reads the value of `parent`.

    `recurrent` says that the value is from another step of a loop around both sites: from an earlier step, or, if
    `later`, from a later one (a scan with `reverse=True`). `into_factor` says that `child` is a factor, since a factor
    may share its address with another site.
    """

    parent: Address
    child: Address
    recurrent: bool = False
    later: bool = False
    into_factor: bool = False

    def __str__(self) -> str:
        lag = (" (t+1)" if self.later else " (t-1)") if self.recurrent else ""
        return f"{show(self.parent)} -> {show(self.child)}{lag}"


@dataclasses.dataclass(frozen=True)
class DependenceGraph:
    """The sites of a program, in program order, and the edges between them, ordered by child and parent.

    Sites in exclusive branches of a `cond` that share an address are one node.
    """

    nodes: tuple[Located, ...]
    edges: tuple[Edge, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.edges))


NodeKey = tuple[bool, Address]
"""Whether the node is a factor, and its address."""


def node_key(site: Site) -> NodeKey:
    return site.kind == FACTOR, site.address


def intervened(site: Site) -> bool:
    """Whether a site, as it is after all modifications, was given its value by `intervene`: it kept its distribution."""
    return site.kind == DETERMINISTIC and site.distribution_name != ""


def dependence(program: Program) -> DependenceGraph:
    """The dependency graph of a bound program: its sites, and which of them each depends on directly.

    The parents of a site are the sites that reach its distribution, its mask or scale, or the value it is given (an
    observation, a factor's log weight, a deterministic value) without passing another site. Deterministic sites and factors are
    nodes too. Control flow counts: the sites that reach the predicate of a `cond`, `switch` or `while_loop` are parents
    of all sites in its branches or body, and of what depends on its results. An intervened site has no parents but
    those of its value. A substituted one keeps its own.

    Args:
        program: a bound program.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> from ppl.transforms.dependence import dependence
        >>> @ppl.program
        ... def hidden_markov(ys):
        ...     def step(z, y):
        ...         z = ppl.sample("z", dist.Normal(z, 1.0))
        ...         ppl.sample("y", dist.Normal(z, 1.0), obs=y)
        ...         return z, None
        ...     start = ppl.sample("start", dist.Normal(0.0, 1.0))
        ...     jax.lax.scan(step, start, ys)
        >>> print(dependence(hidden_markov(jax.numpy.zeros(5))))
        start -> z
        z -> z (t-1)
        z -> y
    """
    return dependence_of(prepare(program))


def dependence_of(prepared: Prepared) -> DependenceGraph:
    """`dependence` of a program that is prepared already."""
    jaxpr = prepared.staged.jaxpr.jaxpr
    final = {before.site: after for before, after in zip(sites(jaxpr), prepared.table, strict=True)}
    verbs = ("condition", "intervene", "substitute")
    given = frozenset(address for m in prepared.modifications if m.verb in verbs for address in m.values)
    parents: dict[NodeKey, set[Source]] = {}
    nodes: dict[NodeKey, Located] = {}
    for located in prepared.table:
        nodes.setdefault(node_key(located.site), located)
        parents[node_key(located.site)] = set()
    flow(jaxpr, [], Scope(final, given, parents))
    return DependenceGraph(tuple(nodes.values()), tuple(_edges(nodes, parents)))


def _edges(nodes: Mapping[NodeKey, Located], parents: Mapping[NodeKey, set[Source]]) -> list[Edge]:
    place = {key: i for i, key in enumerate(nodes)}
    edges = []
    for (is_factor, child), sources in parents.items():
        distinct = {
            Edge(
                source.address,
                child,
                recurrent=bool(source.lags),
                later=bool(source.lags) and all(loop.reverse for loop in source.lags),
                into_factor=is_factor,
            )
            for source in sources
        }
        edges += sorted(distinct, key=lambda edge: (place[False, edge.parent], edge))
    return edges


# The abstract values and their flow.


class Loop(NamedTuple):
    """A loop that is being entered: how many loops are around it, and whether it runs backwards."""

    depth: int
    reverse: bool


class Source(NamedTuple):
    """A site whose value reaches a variable, from another step of the loops in `lags`."""

    address: Address
    lags: frozenset[Loop] = frozenset()


Sources = frozenset[Source]
NOTHING: Sources = frozenset()


def union(sources: Sequence[Sources]) -> Sources:
    return NOTHING.union(*sources)


@dataclasses.dataclass(frozen=True)
class Scope:
    """What is known where an equation stands.

    `final` has the sites as they are after all modifications, `given` the addresses whose value the modifications set;
    `parents` collects the result; `control` are the sources of the predicates around, `depth` is the number of loops around.
    """

    final: Mapping[Site, Located]
    given: frozenset[Address]
    parents: dict[NodeKey, set[Source]]
    control: Sources = NOTHING
    depth: int = 0

    def under(self, predicate: Sources) -> Scope:
        return dataclasses.replace(self, control=self.control | predicate)

    def in_loop(self) -> Scope:
        return dataclasses.replace(self, depth=self.depth + 1)


def flow(jaxpr: Jaxpr, operands: Sequence[Sources], scope: Scope) -> list[Sources]:
    """The sources of a jaxpr's results, given those of its arguments; notes the parents of its sites in `scope`."""
    env: dict[Any, Sources] = dict(zip(jaxpr.invars, operands, strict=True))  # what is not in it has no sources

    def read(atom: Any) -> Sources:
        return NOTHING if isinstance(atom, Literal) else env.get(atom, NOTHING)

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        if any(inputs) or site_of(eqn) is not None:
            env.update(zip(eqn.outvars, _RULES.get(eqn.primitive, _any)(eqn, inputs, scope), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _any(eqn: Any, inputs: Sequence[Sources], scope: Scope) -> list[Sources]:
    site = site_of(eqn)
    if site is not None:
        raise errors.UnsupportedPrimitiveError(
            f"the primitive {eqn.primitive.name!r} holds the site {site.name!r}, so what it depends on is unknown.\n"
            f"  {site.where}\nMove the site out of this function and pass its value in."
        )
    return [union(inputs)] * len(eqn.outvars)


def _site(eqn: Any, inputs: Sequence[Sources], scope: Scope) -> list[Sources]:
    site = eqn.params["site"]
    parts = _by_operand(site, inputs)
    if site.address in scope.given and site.kind != FACTOR:
        parts = parts._replace(value=NOTHING)  # the modification's value replaces the program's own
    cut = intervened(scope.final[site].site)
    parents = parts.value if cut else union(parts) | scope.control
    scope.parents[node_key(site)] |= parents
    return [parts.value if site.kind == FACTOR else frozenset({Source(site.address)})]


def _by_operand(site: Site, inputs: Sequence[Sources]) -> Operands:
    """The sources of a site's distribution, value, scale and mask."""
    leaves = iter(inputs)
    return Operands(*(union([next(leaves) for _ in range(part.num_leaves)]) for part in site.tree.children()))


def _estimated(eqn: Any, inputs: Sequence[Sources], scope: Scope) -> list[Sources]:
    """Values with a joint density: each depends on all that flows in, and on those before it."""
    before = union(inputs) | scope.control
    outs: list[Sources] = []
    for located in eqn.params["estimated"].located:
        site = located.site
        if not intervened(scope.final[site].site):
            scope.parents[node_key(site)] |= before
        outs.append(frozenset({Source(site.address)}))
        before |= outs[-1]
    return outs


def _call(eqn: Any, inputs: Sequence[Sources], scope: Scope) -> list[Sources]:
    return flow(next(inner_jaxprs(eqn.params)), inputs, scope)


def _cond(eqn: Any, inputs: Sequence[Sources], scope: Scope) -> list[Sources]:
    predicate, *operands = inputs
    scope = scope.under(predicate)
    branches = [flow(branch, operands, scope) for branch in inner_jaxprs(eqn.params)]
    return [union(outs) | predicate for outs in zip(*branches, strict=True)]


def _scan(eqn: Any, inputs: Sequence[Sources], scope: Scope) -> list[Sources]:
    jaxpr, n_steps = eqn.params["jaxpr"].jaxpr, eqn.params["length"]
    n_consts, n_carry = scan_sizes(eqn)
    consts, carry, xs = inputs[:n_consts], list(inputs[n_consts : n_consts + n_carry]), inputs[n_consts + n_carry :]
    loop = Loop(scope.depth, eqn.params["reverse"])
    while True:
        outs = flow(jaxpr, [*consts, *carry, *xs], scope.in_loop())
        reached = _next_carry(carry, outs[:n_carry], jaxpr, loop)
        if n_steps == 0:
            return [*carry, *outs[n_carry:]]
        if n_steps == 1 or reached == carry:
            return _leave(outs, loop)
        carry = reached


def _while(eqn: Any, inputs: Sequence[Sources], scope: Scope) -> list[Sources]:
    params = eqn.params
    condition, body = params["cond_jaxpr"].jaxpr, params["body_jaxpr"].jaxpr
    n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
    cond_consts, body_consts = inputs[:n_cond], inputs[n_cond : n_cond + n_body]
    carry = list(inputs[n_cond + n_body :])
    loop = Loop(scope.depth, False)
    while True:
        (predicate,) = flow(condition, [*cond_consts, *carry], scope.in_loop())
        outs = flow(body, [*body_consts, *carry], scope.in_loop().under(predicate))
        reached = _next_carry(carry, outs, body, loop)
        if reached == carry:
            return _leave([there | predicate for there in carry], loop)
        carry = reached


def _next_carry(carry: Sequence[Sources], outs: Sequence[Sources], body: Jaxpr, loop: Loop) -> list[Sources]:
    """The carry that the next step reads: sites in the body are then those of another step."""
    inside = {located.site.address for located in sites(body) if located.site.kind != FACTOR}

    def lag(source: Source) -> Source:
        return source._replace(lags=source.lags | {loop}) if source.address in inside else source

    return [before | frozenset(map(lag, out)) for before, out in zip(carry, outs, strict=True)]


def _leave(outs: Sequence[Sources], loop: Loop) -> list[Sources]:
    """Sources as seen from outside of a loop, where its steps are not told apart."""
    return [frozenset(source._replace(lags=source.lags - {loop}) for source in out) for out in outs]


Rule = Callable[[Any, Sequence[Sources], Scope], list[Sources]]

_RULES: dict[Any, Rule] = {
    site_p: _site,
    estimated_p: _estimated,
    lanes_p: _call,
    jp.jit_p: _call,
    jp.closed_call_p: _call,
    jp.remat_p: _call,
    jp.custom_jvp_call_p: _call,
    jp.custom_vjp_call_p: _call,
    jp.cond_p: _cond,
    jp.scan_p: _scan,
    jp.while_p: _while,
}


__all__ = ["DependenceGraph", "Edge", "dependence", "dependence_of", "intervened", "node_key"]
