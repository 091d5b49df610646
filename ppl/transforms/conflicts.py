"""What keeps a plan from being carried out: too many branches for one value, or no order in which to sum them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ppl.estimators.protocol import PRODUCT
from ppl.site import show
from ppl.transforms.branches import Axis
from ppl.transforms.influence import NOW, Influences
from ppl.transforms.interpret import SiteId
from ppl.transforms.steps import needed

if TYPE_CHECKING:
    from ppl.transforms.plan import Plan, SitePlan

LIMIT = 4096
"""The most branches that a value may have."""

AFFORDABLE = 64
"""The most branches that enumeration takes where the user named no estimator."""

AUTOMATIC = "few values"
"""Why a site is enumerated where the user named no estimator."""


def value_axes(influences: Influences, plans: Mapping[SiteId, SitePlan]) -> dict[Axis, SiteId]:
    """The axes that a value with these influences has, each with a site that it is from."""
    axes: dict[Axis, SiteId] = {}
    for key, place in influences.items():
        plan = plans[key.site]
        if not key.direct:
            continue
        if plan.chain is not None:
            at = place[plan.chain]
            lags = NOW if at is None else at.lags
            axes.update({plan.axes[0 if lag else 1]: key.site for lag in lags})
        else:
            axes.update(dict.fromkeys(plan.axes, key.site))
    return axes


class Conflict(NamedTuple):
    """Sites that cannot be evaluated as planned, and what to say to users who named their estimators."""

    site_ids: Sequence[SiteId]
    message: str


def find_conflict(plan: Plan) -> Conflict | None:
    for find in (_crowded, _entangled, _disparate, _outlived):
        conflict = find(plan)
        if conflict is not None:
            return conflict
    return None


def _crowded(plan: Plan) -> Conflict | None:
    """Sites whose branches together are too many for some value."""
    limit = {site_id: AFFORDABLE if p.why == AUTOMATIC else LIMIT for site_id, p in plan.sites.items()}
    kept, used = needed(plan.steps, [*plan.terms.numbers, *plan.terms.others])
    sums = {
        step.outs[inc.carry] for step in kept for inc in step.sums
    } - used  # not carried, where only the increments are needed
    evaluated = used.union(*(step.outs for step in kept)) - sums
    for influences in itertools.chain((plan.steps.influences[n] for n in evaluated), plan.parents.values()):
        axes = value_axes(influences, plan.sites) if influences else {}
        if axes and math.prod(axis.size for axis in axes) > min(limit[site_id] for site_id in axes.values()):
            names = {key.site for key in influences if key.direct and plan.sites[key.site].axes}
            return _too_many(plan, [site_id for site_id in plan.sites if site_id in names])
    return None


def _too_many(plan: Plan, crowded: Sequence[SiteId]) -> Conflict:
    plans = [plan.sites[site_id] for site_id in crowded]
    count = math.prod({axis: axis.size for p in plans for axis in p.axes}.values())
    names = ", ".join(f"{show(p.site.address)!r}" + (f" ({p.elements} elements)" if p.elements > 1 else "") for p in plans)
    how = {type(p.estimator).__name__ for p in plans}
    return Conflict(
        crowded,
        f"{' and '.join(sorted(how))} would take {count:.3g} evaluations of a value on which {names} act together; the limit "
        f"is {LIMIT}.\n  {plans[0].site.where}\n"
        "Estimators whose cost does not multiply: LocalExpectation() and MeasureValued() (one element at a time), "
        "OneElement(...) of either (one at random), DisARM(), Samples(K), ScoreFunction().",
    )


def _entangled(plan: Plan) -> Conflict | None:
    """A chain whose elements are coupled within a step, too."""
    for site_id, p in plan.sites.items():
        if p.chain is not None and p.split:
            return Conflict(
                [site_id],
                f"the elements of {p.site.name!r} are coupled along a loop and within a step too.\n  {p.site.where}\n"
                "Join them to one Categorical variable of all combinations, or use LocalExpectation() or ScoreFunction().",
            )
    return None


def _disparate(plan: Plan) -> Conflict | None:
    """Chains that depend on one another, and do not run alike."""
    for site_id, p in plan.sites.items():
        for key in plan.parents.get(site_id, {}):
            other = plan.sites[key.site]
            chained = p.chain is not None and other.chain is not None and key.direct
            if chained and (p.shape, p.chain, p.reverse) != (other.shape, other.chain, other.reverse):
                return Conflict(
                    [key.site, site_id],
                    f"the enumerated sites {other.site.name!r} and {p.site.name!r} depend on one another along a loop and have "
                    f"different shapes.\n  {p.site.where}\nUse LocalExpectation() or ScoreFunction() for one of them.",
                )
    return None


def _outlived(plan: Plan) -> Conflict | None:
    """A weight that differs between the branches of a chain cannot be summed along it."""
    for number in plan.terms.numbers:
        for key, place in plan.steps.influences[number].items():
            p = plan.sites[key.site]
            if key.direct or not p.weighted or p.chain is not None:
                continue
            apart = p.split if p.estimator.coupling == PRODUCT else ()
            for above, along in plan.parents[key.site].items():
                chain = plan.sites[above.site]
                if not above.direct or chain.chain is None:
                    continue
                at = along[chain.chain]
                there = None if at is None or at.index in apart else place[at.index]  # type: ignore[call-overload]
                if there is None or there.lags != NOW:
                    return Conflict(
                        [above.site, key.site],
                        f"{show(chain.site.address)!r} is enumerated step by step, and {show(p.site.address)!r} depends on it "
                        f"and reaches later steps.\n  {chain.site.where}\n"
                        "Give the first ScoreFunction() or LocalExpectation(), or the second Reparameterize() if it has one.",
                    )
    return None


__all__ = ["AFFORDABLE", "AUTOMATIC", "LIMIT", "Conflict", "find_conflict", "value_axes"]
