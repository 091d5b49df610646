"""What the surrogate does at every site: its estimator, which elements branch together, and what that costs."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ppl import errors
from ppl.densities import elementwise
from ppl.estimators import Enumerate, Estimator, LeaveOneOut, MovingAverage, ScoreFunction, Vimco, pathwise_choice, support_size
from ppl.estimators.protocol import EACH, JOINT, PRODUCT, SINGLE, specialized
from ppl.site import SAMPLE, Site, estimator_of, restore
from ppl.transforms.branches import Axis
from ppl.transforms.conflicts import AFFORDABLE, AUTOMATIC, LIMIT, find_conflict, value_axes
from ppl.transforms.influence import (
    ALL_LAGS,
    EARLIER,
    ENUMERATED,
    NOW,
    TRANSPARENT,
    WEIGHTED,
    At,
    Influences,
    Key,
    Scope,
    element_shape,
)
from ppl.transforms.interpret import SiteId, site_ids
from ppl.transforms.stage import Located, sites
from ppl.transforms.steps import Steps, steps_of
from ppl.transforms.terms import Terms, terms_of

Index = tuple[Any, ...]
"""Where an element stands along the `split` dimensions of its site."""

Chosen = Mapping[SiteId, Index]


@dataclasses.dataclass(frozen=True, eq=False)
class SitePlan:
    """One site. `shape` are its elements, loops around it first; `split` the dimensions whose elements branch one by one.

    `chain` is the dimension of a loop along which an enumerated site is eliminated step by step. `axes` are the branches that
    its value has; with coupling `"each"` or `"joint"` without an axis, these are `rows` of the perturbation's axis, from
    `offset` on, `count` branches for each split element.
    """

    site_id: SiteId
    located: Located
    estimator: Estimator
    why: str
    position: int
    shape: tuple[int, ...]
    count: int = 1
    split: tuple[int, ...] = ()
    chain: int | None = None
    reverse: bool = False
    axes: tuple[Axis, ...] = ()
    offset: int = 0
    rows: int = 0

    @property
    def site(self) -> Site:
        return self.located.site

    @property
    def weighted(self) -> bool:
        return not self.site.detached and self.site.kind == SAMPLE and not _transparent(self.estimator)

    @property
    def baseline(self) -> Any:
        return getattr(self.estimator, "baseline", None)

    @property
    def brings_baseline(self) -> bool:
        """Whether the site's own operands say what its baseline is."""
        return self.baseline is not None and not isinstance(self.baseline, LeaveOneOut | MovingAverage | Vimco)

    @property
    def n_loops(self) -> int:
        return len(self.shape) - len(element_shape(self.site))

    @property
    def elements(self) -> int:
        """How many elements branch one by one."""
        return math.prod(self.shape[dim] for dim in self.split)

    def indices(self, chosen: Index | None = None) -> list[Index]:
        """The elements that branch one by one; `chosen` is the one where it is chosen at random."""
        return [chosen] if chosen is not None else list(itertools.product(*(range(self.shape[dim]) for dim in self.split)))

    @property
    def one_element(self) -> bool:
        """Whether one of those elements is chosen at random."""
        return getattr(self.estimator, "one_element", False) and bool(self.split)

    @property
    def perturbs(self) -> bool:
        return self.estimator.coupling == EACH or (self.estimator.coupling == JOINT and self.estimator.axis is None)


def template(located: Located) -> Any:
    """The site's distribution in one lane, `unknown` where parameters are no literals, with independent elements apart."""
    return elementwise(restore(located.site, located.operands).distribution)


def _transparent(estimator: Estimator) -> bool:
    return estimator.coupling == SINGLE and not getattr(estimator, "weighted", True)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The whole objective, taken apart. `parents` has what the parameters of each site depend on."""

    steps: Steps
    terms: Terms
    sites: Mapping[SiteId, SitePlan]
    parents: Mapping[SiteId, Influences]
    perturbation: Axis | None

    @property
    def branching(self) -> bool:
        return any(plan.axes for plan in self.sites.values())


def make_plan(jaxpr: Any, consts: Sequence[Any], choices: Mapping[SiteId, SitePlan]) -> Plan:
    """Choose estimators where the user named none, and find out which elements can branch together."""
    chosen = dict(choices)
    while True:
        plan = _analyse(jaxpr, consts, chosen)
        conflict = find_conflict(plan)
        if conflict is None:
            return plan
        automatic = [site_id for site_id in conflict.site_ids if chosen[site_id].why == AUTOMATIC]
        for site_id in automatic:
            chosen[site_id] = dataclasses.replace(
                chosen[site_id], estimator=_score(chosen[site_id].located), why="its values are too many to enumerate together"
            )
        if not automatic:
            raise errors.EstimatorError(conflict.message)


NAMED = "named by the user"


def first_choice(jaxpr: Any, consts: Sequence[Any] = ()) -> dict[SiteId, SitePlan]:
    """The estimator of each site, before it is known what enumeration would cost."""
    found: dict[SiteId, SitePlan] = {}
    for site_id, located in zip(site_ids(jaxpr), sites(jaxpr, consts), strict=True):
        if located.site.kind == SAMPLE:
            found[site_id] = choice_of(site_id, located, found)
    return found


def choice_of(site_id: SiteId, located: Located, before: Mapping[SiteId, SitePlan]) -> SitePlan:
    """The estimator of one site, before it is known what enumeration would cost; `before` has those of earlier sites."""
    site = located.site
    estimator, why = _choose(site, located)
    if not site.detached:
        _refuse(estimator, located)
        estimator = specialized(estimator, template(located))
    plan = SitePlan(site_id, located, estimator, why, len(before), located.stack + element_shape(site))
    if plan.brings_baseline and site.estimator is not None and not site.detached:  # with arrays, it would be an operand
        raise errors.EstimatorError(
            f"the baseline of {site.name!r}, {plan.baseline!r}, is neither a number nor an array.\n  {site.where}\n"
            "Give ScoreFunction one of these, LeaveOneOut(), MovingAverage(), Learned(prediction) or Vimco()."
        )
    return _shared(before[site_id], plan) if site_id in before else plan


def _shared(one: SitePlan, other: SitePlan) -> SitePlan:
    """The choice for two sites that share an address in different branches of a cond: it must serve both."""
    pair = (one, other)
    alike = one.shape == other.shape and one.site.detached == other.site.detached
    transparent = one.site.detached or all(_transparent(p.estimator) for p in pair)
    if transparent and one.site.detached == other.site.detached:
        return one
    counts = {p.estimator.branches(template(p.located)) for p in pair}
    if alike and one.estimator == other.estimator and len(counts) == 1:
        return one
    if alike and NAMED not in (one.why, other.why):
        _score(other.located)  # or an error
        return dataclasses.replace(one, estimator=_score(one.located), why="it serves both branches of a cond")
    raise errors.EstimatorError(
        f"{one.site.name!r} ~ {one.site.distribution_name} and {other.site.name!r} ~ {other.site.distribution_name} share an "
        f"address in two branches of a cond, and no estimator.\n  first:  {one.site.where}\n  second: {other.site.where}\n"
        "Use two addresses."
    )


def _refuse(estimator: Estimator, located: Located) -> None:
    site = located.site
    reason = estimator.refuses(template(located), site)
    if reason is not None:
        raise errors.EstimatorError(
            f"{type(estimator).__name__} cannot serve {site.name!r} ~ {site.distribution_name}: {reason}.\n"
            f"  {site.where}\nLeave the choice open, or use with_estimators to name another."
        )


def chosen_estimator(site: Site) -> Estimator:
    """The estimator of a site by itself, wherever it stands."""
    named = estimator_of(site, [0.0] * site.tree.num_leaves)
    if named is not None:
        return named
    choice = pathwise_choice(elementwise(restore(site, [0.0] * site.tree.num_leaves).distribution))
    assert choice is not None
    return choice


def _choose(site: Site, located: Located) -> tuple[Estimator, str]:
    distribution = template(located)
    named = estimator_of(site, located.operands)
    if named is not None:
        return named, NAMED
    choice = pathwise_choice(distribution)
    if choice is not None:
        return choice, "draws have right pathwise derivatives"
    size = support_size(distribution)
    if size is not None and size <= AFFORDABLE and not located.in_while:
        return Enumerate(), AUTOMATIC
    return _score(located), "no pathwise derivative, and many values"


def _score(located: Located) -> Estimator:
    site = located.site
    score = ScoreFunction(LeaveOneOut())
    reason = score.refuses(template(located), site)
    if reason is None:
        return score
    raise errors.EstimatorError(
        f"no unbiased gradient estimator is known for {site.name!r} ~ {site.distribution_name}: draws have no right pathwise "
        f"derivative, and {reason}.\n  {site.where}\n"
        "Use a distribution with fixed support or a pathwise derivative, or .detach() the site."
    )


def _analyse(jaxpr: Any, consts: Sequence[Any], chosen: Mapping[SiteId, SitePlan]) -> Plan:
    def trait(site_id: SiteId, site: Site) -> str:
        plan = chosen.get(site_id)
        if plan is None or not plan.weighted:
            return TRANSPARENT
        return ENUMERATED if plan.estimator.coupling == PRODUCT else WEIGHTED

    parents: dict[SiteId, Influences] = {}
    steps = steps_of(jaxpr, consts, [], Scope(trait, parents), {})
    terms = terms_of(steps)
    uses = [steps.influences[number] for number in terms.numbers] + list(parents.values())
    found = {site_id: _branch(plan, uses, parents) for site_id, plan in chosen.items()}
    plans, perturbation = _number_axes(found)
    return Plan(steps, terms, plans, parents, perturbation)


def _branch(plan: SitePlan, uses: Sequence[Influences], parents: Mapping[SiteId, Influences]) -> SitePlan:
    """Which dimensions of a site's elements have to branch one by one."""
    if plan.located.in_while and plan.brings_baseline:
        raise errors.EstimatorError(
            f"the score of {plan.site.name!r} has a baseline of its own in a while_loop, where its draws are not told apart.\n"
            f"  {plan.site.where}\nLeaveOneOut() and MovingAverage() serve it."
        )
    if not plan.weighted or plan.estimator.coupling == SINGLE:
        return plan
    site, estimator = plan.site, plan.estimator
    if plan.located.in_while:
        raise errors.EstimatorError(
            f"{type(estimator).__name__} cannot serve {site.name!r} in a while_loop.\n  {site.where}\n"
            "Use ScoreFunction() there."
        )
    plan = dataclasses.replace(plan, count=estimator.branches(template(plan.located)))
    if estimator.coupling == JOINT:
        own = parents.get(plan.site_id, {})
        split = _coupled(plan, [own]) if estimator.axis is None else ()
        return dataclasses.replace(plan, split=split)
    split = _coupled(plan, uses)
    if estimator.coupling == PRODUCT:
        for dim in split:
            directions = _directions(plan, dim, uses) if dim < plan.n_loops else set()
            if len(directions) == 1 and _is_chain(plan, dim, uses):
                rest = tuple(d for d in split if d != dim)
                return dataclasses.replace(plan, split=rest, chain=dim, reverse=directions.pop())
    return dataclasses.replace(plan, split=split)


def _coupled(plan: SitePlan, uses: Sequence[Influences]) -> tuple[int, ...]:
    """The dimensions along which some use mixes elements, or lags behind them."""
    places = [place for use in uses for key, place in use.items() if key.site == plan.site_id]
    return tuple(dim for dim, size in enumerate(plan.shape) if size > 1 and any(_lags(place[dim]) != NOW for place in places))


def _lags(at: At | None) -> frozenset[int]:
    """Mixed elements reach everything, at all lags."""
    return ALL_LAGS if at is None else at.lags


def _directions(plan: SitePlan, dim: int, uses: Sequence[Influences]) -> set[bool]:
    places = [place for use in uses for key, place in use.items() if key.site == plan.site_id]
    return {at.reverse for at in (place[dim] for place in places) if at is not None and at.lags != NOW}


def _is_chain(plan: SitePlan, dim: int, uses: Sequence[Influences]) -> bool:
    """Whether every value depends on this step's and the last step's element alone."""
    for use in uses:
        for key, place in use.items():
            if key.site == plan.site_id and (place[dim] is None or (key.direct and EARLIER in _lags(place[dim]))):
                return False
    return True


def _number_axes(found: Mapping[SiteId, SitePlan]) -> tuple[dict[SiteId, SitePlan], Axis | None]:
    rows = 1
    shared: dict[Any, Axis] = {}
    plans: dict[SiteId, SitePlan] = {}
    for site_id, plan in found.items():
        coupling = plan.estimator.coupling
        if not plan.weighted or coupling == SINGLE:
            plans[site_id] = plan
        elif coupling == PRODUCT:
            n_axes = 2 if plan.chain is not None else plan.elements
            axes = tuple(Axis(plan.position, part, plan.count) for part in range(n_axes))
            plans[site_id] = dataclasses.replace(plan, axes=axes)
        elif plan.perturbs:
            count = (plan.count - 1) * (1 if plan.one_element else plan.elements)
            plans[site_id] = dataclasses.replace(plan, offset=rows, rows=count)
            rows += count
        else:
            axis = shared.setdefault((plan.estimator.axis, plan.count), Axis(plan.position, 0, plan.count))
            plans[site_id] = dataclasses.replace(plan, axes=(axis,))
    perturbing = {i: p for i, p in plans.items() if p.weighted and p.perturbs}
    if not perturbing:
        return plans, None
    perturbation = Axis(-1, 0, rows)
    return plans | {i: dataclasses.replace(p, axes=(perturbation,)) for i, p in perturbing.items()}, perturbation


def choose_elements(plan: Plan, keys: Mapping[SiteId, Any]) -> Chosen:
    """For each site of which one element branches, which one."""
    chosen: dict[SiteId, Index] = {}
    for site_id, site_plan in plan.sites.items():
        if site_plan.weighted and site_plan.perturbs and site_plan.one_element:
            key = jax.random.fold_in(keys[site_id], _CHOICE)
            number = jax.random.randint(key, (), 0, site_plan.elements)
            chosen[site_id] = tuple(jnp.unravel_index(number, tuple(site_plan.shape[dim] for dim in site_plan.split)))
    return chosen


_CHOICE = 2**32 - 1
"""No index of a loop, which are folded into keys too."""

__all__ = ["AFFORDABLE", "LIMIT", "Key", "Plan", "SitePlan", "choose_elements", "make_plan", "value_axes"]
