"""Which elements of which sites a value depends on, by abstract interpretation of a jaxpr.

For every variable this computes its *influences*: for each site, and for each dimension of the site's elements, where along the
variable's dimensions they stand. A dimension of a site can be *aligned* with a dimension of the variable (element n depends on
element n of the site alone), it can be aligned with the current step of a loop that is being entered, it can lag behind
(`lags`: element t depends on element t-1, or on all earlier ones), or it is *mixed* (None).

`transforms/dependence.py` asks the coarser question of a program's graph.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpyro.distributions as dist
from jax.extend.core import Jaxpr, Literal
from jax.extend.core import primitives as jp

from ppl import errors
from ppl.densities import elementwise, parameters
from ppl.lanes import inner_jaxprs, lanes_p, site_of
from ppl.notes import note_p
from ppl.site import Site, restore, show, site_p
from ppl.transforms.alignment import Map, dimension_maps
from ppl.transforms.interpret import SiteId, advance, scan_sizes

NOW = frozenset({0})
EARLIER = 2
"""A lag that stands for two steps and more."""
ALL_LAGS = frozenset({0, 1, EARLIER})


class At(NamedTuple):
    """Where the elements of a site stand: along dimension `index` of a variable, or, if `loop`, at the step of loop `index`."""

    index: int  # type: ignore[assignment]
    loop: bool = False
    lags: frozenset[int] = NOW
    reverse: bool = False


Place = tuple[At | None, ...]
"""One entry for each dimension of a site's elements: loops around it first, then plates, then its batch shape."""


class Key(NamedTuple):
    """A site, and whether its values reach the variable, or only the weights of sites that do."""

    site: SiteId
    direct: bool


Influences = Mapping[Key, Place]
NOTHING: Influences = {}

TRANSPARENT, WEIGHTED, ENUMERATED = "transparent", "weighted", "enumerated"
"""What a site is to this analysis: a function of its parameters; a draw whose weight matters; a constant set of values."""

PATHWISE = "pathwise"
"""A note: the value is used as a differentiable function of noise, so that no site with a weight may influence it."""


class Loop(NamedTuple):
    """A loop that is being entered."""

    size: int
    reverse: bool = False


@dataclasses.dataclass(frozen=True)
class Scope:
    """What is known where an equation stands. `parents` collects what each site's parameters depend on, by element."""

    traits: Callable[[SiteId, Site], str]
    parents: dict[SiteId, Influences]
    loops: tuple[Loop, ...] = ()
    control: Influences = dataclasses.field(default_factory=dict)

    def enter(self, loop: Loop) -> Scope:
        return dataclasses.replace(self, loops=(*self.loops, loop))

    def under(self, predicate: Influences) -> Scope:
        """In the branches of a cond: whether a site there counts depends on the predicate."""
        return dataclasses.replace(self, control=join([self.control, predicate]))


def join(parts: Iterable[Influences]) -> Influences:
    """What depends on several values depends on what each depends on."""
    result: dict[Key, Place] = {}
    several = False
    for part in parts:
        if not part:
            continue
        if not result:
            result = dict(part)
            continue
        several = True
        for key, place in part.items():
            other = result.get(key)
            if other is None:
                result[key] = place
            elif other != place:
                result[key] = tuple(map(_meet, other, place))
    return result if several or result else NOTHING


def _meet(one: At | None, other: At | None) -> At | None:
    if one is None or other is None or (one.index, one.loop) != (other.index, other.loop):
        return None
    if one == other:
        return one
    directions = {at.reverse for at in (one, other) if at.lags != NOW}
    return one._replace(lags=one.lags | other.lags, reverse=directions.pop()) if len(directions) == 1 else None


def along(influences: Influences, dims: Map) -> Influences:
    """Influences of a result along whose dimensions an operand's dimensions run as `dims` says."""

    def move(at: At | None) -> At | None:
        if at is None or at.loop:
            return at
        to = dims[at.index]
        return None if to is None else at._replace(index=to)

    if not influences or dims == tuple(range(len(dims))):
        return influences
    return {key: tuple(map(move, place)) for key, place in influences.items()}


def mixed(influences: Influences) -> Influences:
    return {key: (None,) * len(place) for key, place in influences.items()}


# Loops: one element, or one step, of stacked values; and back.


def enter(influences: Influences, depth: int) -> Influences:
    """Influences of a slice along the first dimension, at the current step of loop `depth`."""

    def move(at: At | None) -> At | None:
        if at is None or at.loop:
            return at
        return at._replace(index=depth, loop=True) if at.index == 0 else at._replace(index=at.index - 1)

    return {key: tuple(map(move, place)) for key, place in influences.items()}


def stack(influences: Influences, depth: int) -> Influences:
    """Influences of the values of all steps of loop `depth`, stacked along a new first dimension."""

    def move(at: At | None) -> At | None:
        if at is None:
            return None
        if at.loop:
            return at._replace(index=0, loop=False) if at.index == depth else at
        return at._replace(index=at.index + 1)

    return {key: tuple(map(move, place)) for key, place in influences.items()}


def leave(influences: Influences, depth: int) -> Influences:
    """Influences of a value that is left at the end of loop `depth`."""

    def move(at: At | None) -> At | None:
        return None if at is not None and at.loop and at.index == depth else at

    return {key: tuple(map(move, place)) for key, place in influences.items()}


def carry_over(influences: Influences, depth: int, reverse: bool) -> Influences:
    """Influences of a value that step t of loop `depth` leaves to the next step, as seen from there."""

    def move(at: At | None) -> At | None:
        if at is None or not at.loop or at.index != depth:
            return at
        if at.lags != NOW and at.reverse != reverse:
            return None
        return at._replace(lags=frozenset(min(lag + 1, EARLIER) for lag in at.lags), reverse=reverse)

    return {key: tuple(map(move, place)) for key, place in influences.items()}


# Equations.


def flow(jaxpr: Jaxpr, ins: Sequence[Influences], scope: Scope, counts: dict[Any, int]) -> list[Influences]:
    """The influences on a jaxpr's results, given those on its arguments."""
    env: dict[Any, Influences] = dict(zip(jaxpr.invars, ins, strict=True))

    def read(atom: Any) -> Influences:
        return NOTHING if isinstance(atom, Literal) else env.get(atom, NOTHING)

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        holds_site = site_of(eqn) is not None
        if any(operands) or holds_site:
            env.update(zip(eqn.outvars, influences_on(eqn, operands, scope, counts), strict=True))
        if holds_site:
            counts = advance(counts, eqn)
    return [read(atom) for atom in jaxpr.outvars]


def influences_on(eqn: Any, ins: Sequence[Influences], scope: Scope, counts: dict[Any, int]) -> list[Influences]:
    """The influences on each result of one equation."""
    rule = _RULES.get(eqn.primitive)
    if rule is not None:
        return rule(eqn, ins, scope, counts)
    site = site_of(eqn)
    if site is not None:
        raise errors.UnsupportedPrimitiveError(
            f"the primitive {eqn.primitive.name!r} holds the site {site.name!r}.\n  {site.where}\n"
            "Sites may stand in jit, vmap, scan, fori_loop, while_loop, cond, switch and checkpoint; "
            "move the site out of this function and pass its value in."
        )
    out = join(along(value, dims) for value, dims in zip(ins, dimension_maps(eqn), strict=True))
    return [out] * len(eqn.outvars)


def core(site: Site) -> Any:
    """The site's distribution without `Independent` around it, with the positions of its operands for parameters."""
    return elementwise(restore(site, list(range(site.tree.num_leaves))).distribution)


def element_shape(site: Site) -> tuple[int, ...]:
    """Plates, then the batch shape of the site's distribution without `Independent` around it."""
    shape = site.full_shape
    return shape[: len(shape) - len(core(site).event_shape)]


def _operand_maps(site: Site, shapes: Sequence[tuple[int, ...]]) -> list[Map]:
    """For each operand of a site, along which dimensions of the site's value its dimensions run."""
    n_plates, out = len(site.plates), site.full_shape
    distribution = core(site)
    batch = n_plates + len(element_shape(site)) - n_plates  # the end of the element dimensions
    base: Any = distribution
    while type(base) is dist.ExpandedDistribution:
        base = base.base_dist
    kind: Any = type(base)
    event_dims: dict[int, int] = {}
    for name, event_dim in parameters(kind) or ():
        position = getattr(base, name)
        if isinstance(position, int):
            event_dims[position] = event_dim
    maps = []
    for operand, shape in enumerate(shapes):
        there = [i for i, plate in enumerate(reversed(site.plates)) if plate.batched[operand]]
        own = len(shape) - len(there)
        if operand in event_dims:
            n_batch = own - event_dims[operand]
            dims: list[int | None] = [*range(batch - n_batch, batch), *[None] * event_dims[operand]]
        else:
            dims = [None] * own
        full = [*there, *dims]
        maps.append(tuple(None if to is None or shape[at] != out[to] else to for at, to in enumerate(full)))
    return maps


def _site(eqn: Any, ins: Sequence[Influences], scope: Scope, counts: dict[Any, int]) -> list[Influences]:
    site = eqn.params["site"]
    site_id = (site.address, counts.get(site.address, 0))
    shapes = [tuple(atom.aval.shape) for atom in eqn.invars]
    parents = join(along(value, dims) for value, dims in zip(ins, _operand_maps(site, shapes), strict=True))
    depth, n_elements = len(scope.loops), len(element_shape(site))
    reached = _by_element(join([parents, scope.control]), depth, n_elements)
    scope.parents[site_id] = join([scope.parents.get(site_id, NOTHING), reached])
    trait = scope.traits(site_id, site)
    if trait == TRANSPARENT:
        return [parents]
    own: Place = (*(At(k, loop=True) for k in range(depth)), *(At(j) for j in range(n_elements)))
    if trait == ENUMERATED:
        parents = {key: place for key, place in parents.items() if not key.direct}
    return [join([parents, {Key(site_id, True): own, Key(site_id, False): own}])]


def _by_element(influences: Influences, depth: int, n_elements: int) -> Influences:
    """Influences along the dimensions of a site's elements: the loops around it are their first dimensions."""

    def move(at: At | None) -> At | None:
        if at is None or at.loop:
            return at if at is None else at._replace(loop=False)
        return at._replace(index=depth + at.index) if at.index < n_elements else None

    return {key: tuple(map(move, place)) for key, place in influences.items()}


def _call(eqn: Any, ins: Sequence[Influences], scope: Scope, counts: dict[Any, int]) -> list[Influences]:
    return flow(next(inner_jaxprs(eqn.params)), ins, scope, counts)


def _cond(eqn: Any, ins: Sequence[Influences], scope: Scope, counts: dict[Any, int]) -> list[Influences]:
    predicate, *operands = ins
    inside = scope.under(predicate)
    branches = [flow(branch, operands, inside, counts) for branch in inner_jaxprs(eqn.params)]
    return [join([*outs, predicate]) for outs in zip(*branches, strict=True)]


def scan_carry(eqn: Any, ins: Sequence[Influences], scope: Scope, counts: dict[Any, int]) -> list[Influences]:
    """The influences on all operands of a scan's body, the carry's at any step."""
    jaxpr, reverse = eqn.params["jaxpr"].jaxpr, eqn.params["reverse"]
    n_consts, n_carry = scan_sizes(eqn)
    depth = len(scope.loops)
    consts, carry = list(ins[:n_consts]), list(ins[n_consts : n_consts + n_carry])
    xs = [enter(value, depth) for value in ins[n_consts + n_carry :]]
    inside = scope.enter(Loop(eqn.params["length"], reverse))
    while True:
        outs = flow(jaxpr, [*consts, *carry, *xs], inside, counts)
        reached = [
            join([before, carry_over(after, depth, reverse)]) for before, after in zip(carry, outs[:n_carry], strict=True)
        ]
        if reached == carry:
            return [*consts, *carry, *xs]
        carry = reached


def _scan(eqn: Any, ins: Sequence[Influences], scope: Scope, counts: dict[Any, int]) -> list[Influences]:
    _, n_carry = scan_sizes(eqn)
    depth = len(scope.loops)
    operands = scan_carry(eqn, ins, scope, counts)
    loop = Loop(eqn.params["length"], eqn.params["reverse"])
    outs = flow(eqn.params["jaxpr"].jaxpr, operands, scope.enter(loop), counts)
    n_consts = scan_sizes(eqn)[0]
    start = ins[n_consts : n_consts + n_carry]
    final = [join([before, leave(after, depth)]) for before, after in zip(start, outs[:n_carry], strict=True)]
    return [*final, *(stack(value, depth) for value in outs[n_carry:])]


def _while(eqn: Any, ins: Sequence[Influences], scope: Scope, counts: dict[Any, int]) -> list[Influences]:
    """Everything that goes in, or is drawn inside, is mixed in everything that comes out."""
    body, n_cond = eqn.params["body_jaxpr"].jaxpr, eqn.params["cond_nconsts"]
    everything = mixed(join(ins))
    while True:
        outs = flow(body, [everything] * (len(ins) - n_cond), scope, counts)
        reached = mixed(join([everything, *outs]))
        if reached == everything:
            return [everything] * len(eqn.outvars)
        everything = reached


def lane_operands(eqn: Any, ins: Sequence[Influences], scope: Scope) -> list[Influences]:
    """The influences on the operands of one lane."""
    depth = len(scope.loops)
    return [enter(value, depth) if there else value for value, there in zip(ins, eqn.params["batched"], strict=True)]


def _lanes(eqn: Any, ins: Sequence[Influences], scope: Scope, counts: dict[Any, int]) -> list[Influences]:
    inside = scope.enter(Loop(eqn.params["size"]))
    outs = flow(eqn.params["jaxpr"].jaxpr, lane_operands(eqn, ins, scope), inside, counts)
    return [stack(value, len(scope.loops)) for value in outs]


def _note(eqn: Any, ins: Sequence[Influences], scope: Scope, counts: dict[Any, int]) -> list[Influences]:
    """An identity; refused where the value must be a differentiable function of noise, and a site behind it has a weight."""
    note = eqn.params["note"]
    if note.kind == PATHWISE and ins[0]:
        names = ", ".join(dict.fromkeys(repr(show(key.site[0])) for key in ins[0]))
        raise errors.EstimatorError(
            f"{note.reason} is right for reparameterized sites alone, and the estimator of {names} is another.\n"
            f"  {note.where}\nUse with_estimators(Reparameterize()) where the distribution allows it, or another objective: "
            "ppl.objectives.elbo, iwae and vimco take any site."
        )
    return list(ins)


_RULES: dict[Any, Callable[[Any, Sequence[Influences], Scope, dict[Any, int]], list[Influences]]] = {
    site_p: _site,
    lanes_p: _lanes,
    jp.jit_p: _call,
    jp.closed_call_p: _call,
    jp.remat_p: _call,
    jp.custom_jvp_call_p: _call,
    jp.custom_vjp_call_p: _call,
    jp.cond_p: _cond,
    jp.scan_p: _scan,
    jp.while_p: _while,
    note_p: _note,
}
