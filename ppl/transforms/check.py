"""The check: every condition for unbiased gradients of an objective that can be decided without running it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl import errors, estimators
from ppl.choice import available
from ppl.notes import EXPECTATION
from ppl.site import Where, describe_support
from ppl.transforms.baselines import initial_state
from ppl.transforms.compare import Coverage, collecting
from ppl.transforms.inforce import (
    Refusal,
    Table,
    address_of,
    choices,
    plan_of,
    show_estimator,
    stage_for_gradient,
    table,
)
from ppl.transforms.interpret import SiteId
from ppl.transforms.kinds import UNBIASED_DENSITY, Use, uses_of
from ppl.transforms.linearity import Misuse, misuses_of
from ppl.transforms.plan import SitePlan, template
from ppl.transforms.smoothness import DETACHED, PATHWISE, STOPPED, Jump, jumps_of, value_moves
from ppl.transforms.stage import Staged

FAILS, CANNOT_TELL, BOUND = "fails", "cannot tell", "bound"


class Finding(NamedTuple):
    """A condition that does not hold, or of which that cannot be told.

    Attributes:
        address: of the sites concerned, joined by commas; empty where it is the whole objective.
        condition: `"continuity"`, `"unbiased estimator"`, `"estimator"`, `"support"`, `"scale"`, `"linearity"` or `"density"`.
        severity: `"fails"` or `"cannot tell"`; `"bound"` where the estimate is right for a bound of what was perhaps meant.
        message: what is wrong and what would work.
        file, line: of the operation, or of the site where that is not known.
    """

    address: str
    condition: str
    severity: str
    message: str
    file: str
    line: int

    def __str__(self) -> str:
        at = f" {self.address}:" if self.address else ""
        return f'{self.severity}: {self.condition}:{at} {self.message}\n  File "{self.file}", line {self.line}'


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """What `objective.check` found. Prints as a table of the estimators in force, and the findings.

    Attributes:
        sites: the table that `objective.estimators` gives; sites without an estimator are left out.
        findings: the conditions that fail, and those that cannot be told.
        ok: whether no condition fails.
    """

    sites: Table
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return all(finding.severity != FAILS for finding in self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __repr__(self) -> str:
        head = "every condition holds" if not self.findings else f"{len(self.findings)} finding(s)"
        return "\n".join([repr(self.sites), head, *map(str, self.findings)])


def check(objective: Any, evaluate: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], argnums: Any) -> Report:
    """See `Expectation.check`. `evaluate` gives the surrogate of what was staged."""
    findings: list[Finding] = []
    plans: dict[SiteId, SitePlan] = {}

    def choose(staged: Staged) -> None:
        jaxpr = staged.jaxpr.jaxpr
        found, refused = choices(jaxpr, staged.jaxpr.consts)
        plans.update(found)
        findings.extend(map(_refusal, refused))
        if not refused:
            try:
                plans.update(plan_of(jaxpr, staged.jaxpr.consts, found)[1])
                # Some combinations are refused only where the surrogate is put together. Nothing is compiled.
                evaluate(staged, jax.random.key(0), None, initial_state(found))
            except errors.EstimatorError as error:
                findings.append(_finding("", "estimator", FAILS, str(error), _of_objective(objective)))

    try:
        with collecting() as coverages:
            staging = stage_for_gradient(objective, args, kwargs, argnums, choose)
    except errors.ModelFamilyMismatchError as error:
        return Report(Table([]), (_finding("", "support", FAILS, str(error), _of_objective(objective)),))
    jaxpr, consts = staging.staged.jaxpr.jaxpr, staging.staged.jaxpr.consts
    findings += _biased(plans)
    traits = {site_id: _trait(plan) for site_id, plan in plans.items()}
    jumps = jumps_of(jaxpr, consts, staging.moving, lambda site_id, site: traits.get(site_id, PATHWISE))
    findings += [_jump(jump, plans) for jump in _distinct(jumps)]
    findings += [_coverage(coverage) for coverage in coverages]
    findings += [_misuse(misuse) for misuse in misuses_of(jaxpr, consts, EXPECTATION)]
    findings += [_bound(use) for use in uses_of(jaxpr, UNBIASED_DENSITY) if use.operation is None]
    reports = [check(operand, evaluate, args, kwargs, argnums) for operand in objective.operands]
    findings += [finding for report in reports for finding in report]
    return Report(table(plans).joined(report.sites for report in reports), tuple(dict.fromkeys(findings)))


def _of_objective(objective: Any) -> Where:
    code = getattr(objective.function, "__code__", None)
    return Where("<unknown>", 0, "") if code is None else Where(code.co_filename, code.co_firstlineno, code.co_name)


def _finding(address: str, condition: str, severity: str, message: str, where: Where) -> Finding:
    return Finding(address, condition, severity, message, where.file, where.line)


def _trait(plan: SitePlan) -> str:
    site, located = plan.site, plan.located
    if site.detached:
        return DETACHED
    if not plan.weighted:
        return PATHWISE
    if not np.issubdtype(site.dtype, np.floating):
        return STOPPED
    shapes = [jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x)) for x in located.operands]
    return PATHWISE if value_moves(plan.estimator, site, shapes) else STOPPED


def _refusal(refusal: Refusal) -> Finding:
    located = refusal.located
    assert located is not None
    serving = [name for name in available() if _serves(name, located)]
    hint = f"\nThese serve it: {', '.join(f'{name}()' for name in serving)}." if serving else ""
    return _finding(located.site.name, "estimator", FAILS, refusal.message + hint, located.site.where)


def _serves(name: str, located: Any) -> bool:
    try:
        estimator = getattr(estimators, name)()
        return estimator.unbiased and estimator.refuses(template(located), located.site) is None
    except (TypeError, errors.PPLError):
        return False


def _biased(plans: Mapping[SiteId, SitePlan]) -> Iterator[Finding]:
    for site_id, plan in plans.items():
        if not plan.site.detached and not plan.estimator.unbiased:
            message = f"{show_estimator(plan.estimator)} is biased, by its own declaration"
            yield _finding(address_of(site_id), "unbiased estimator", FAILS, message, plan.site.where)


def _distinct(jumps: Iterable[Jump]) -> list[Jump]:
    """One for each operation; what is certain counts."""
    by_place: dict[Any, Jump] = {}
    for jump in jumps:
        key = (jump.operation, jump.where)
        known = by_place.get(key)
        if known is None:
            by_place[key] = jump
        else:
            certain = known.certain or jump.certain
            by_place[key] = dataclasses.replace(known, sites=known.sites | jump.sites, certain=certain)
    return list(by_place.values())


def _jump(jump: Jump, plans: Mapping[SiteId, SitePlan]) -> Finding:
    wheres = {site_id: plan.site.where for site_id, plan in plans.items()}
    ids = [site_id for site_id in plans if site_id in jump.sites] or sorted(jump.sites)
    names = ", ".join(map(address_of, ids))
    pathwise = [site_id for site_id in ids if site_id in plans and _trait(plans[site_id]) == PATHWISE]
    where = jump.where or (wheres.get(ids[0]) if ids else None) or Where("<unknown>", 0, "")
    drawn = "; ".join(f"{address_of(site_id)} is drawn at {wheres[site_id]}" for site_id in ids if site_id in wheres)
    what = f"is discontinuous ({jump.operation})" if jump.certain else f"may be discontinuous ({jump.operation})"
    if pathwise:
        works = "ScoreFunction() for it, or a continuous function, gives right gradients"
    else:
        works = "no estimator of the draw sees that the place of the jump moves with what is differentiated; smooth it"
    message = f"the objective {what} in it, and derivatives along the draw miss the jump: {works}. ({drawn})"
    return _finding(names, "continuity", FAILS if jump.certain else CANNOT_TELL, message, where)


def _coverage(coverage: Coverage) -> Finding:
    model, family = coverage.model.site, coverage.family.site
    if coverage.scaled_apart:
        message = (
            f"a plate multiplies its costs by {coverage.model.scale:g} in the model and by {coverage.family.scale:g} in the "
            "family: with the same plate and size in both, their difference is an unbiased minibatch estimate"
        )
        return _finding(family.name, "scale", FAILS, message, family.where)
    supports = f"the model's is {describe_support(model.support)}, the family's {describe_support(family.support)}"
    if coverage.leaves:
        return _finding(family.name, "support", FAILS, f"the family leaves the model's support: {supports}", family.where)
    message = f"the family does not cover the model's support: {supports}. An ELBO allows that; importance weights are biased"
    return _finding(family.name, "support", CANNOT_TELL, message, family.where)


def _bound(use: Use) -> Finding:
    message = f"the objective is a bound: it adds up the log of {use.note.reason}"
    return _finding("", "density", BOUND, message, use.note.where)


def _misuse(misuse: Misuse) -> Finding:
    where = misuse.where or misuse.note.where
    message = (
        f"a draw of the expectation {misuse.note.reason!r} ({misuse.note.where}) is used nonlinearly ({misuse.operation}); "
        "sums, scalings and products with independent draws are unbiased; here an average of several draws is only consistent"
    )
    return _finding("", "linearity", FAILS if misuse.certain else CANNOT_TELL, message, where)
