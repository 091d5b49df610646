"""The estimators in force: what each site of an objective uses, why, and what it costs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from ppl import errors
from ppl.site import SAMPLE, Where
from ppl.transforms.interpret import SiteId, site_ids
from ppl.transforms.partition import combine, partition
from ppl.transforms.plan import Plan, SitePlan, choice_of, make_plan
from ppl.transforms.stage import Located, Staged, sites
from ppl.transforms.tables import render


class Row(NamedTuple):
    """A site of an objective.

    Attributes:
        address: `"sub/x"`; a second simulation of the same program has `"sub/x (2)"`.
        distribution: its name.
        shape: of the values that the estimator serves, loops and plates first.
        estimator: the estimator itself, or None where none serves the site.
        why: why it was chosen.
        unbiased: whether it is.
        branches: how many times what depends on the site is evaluated.
        where: the user's source line.
    """

    address: str
    distribution: str
    shape: tuple[int, ...]
    estimator: Any
    why: str
    unbiased: bool
    branches: int
    where: Where


class Table(Sequence[Row]):
    """Rows that print as a table."""

    def __init__(self, rows: Sequence[Row]):
        self._rows = tuple(rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def joined(self, others: Iterable[Table]) -> Table:
        """Followed by the rows of others."""
        return Table([*self, *(row for other in others for row in other)])

    def __repr__(self) -> str:
        if not self._rows:
            return "no random choices"
        head = ("address", "distribution", "shape", "estimator", "unbiased", "branches", "why", "line")
        return render([head, *map(_cells, self._rows)])


def _cells(row: Row) -> tuple[object, ...]:
    line = f"{row.where.file.rpartition('/')[2]}:{row.where.line}"
    shown = "-" if row.estimator is None else show_estimator(row.estimator)
    unbiased = "-" if row.estimator is None else "yes" if row.unbiased else "no"
    return row.address, row.distribution, list(row.shape), shown, unbiased, row.branches, row.why, line


def show_estimator(estimator: Any) -> str:
    """An estimator in few words: what was chosen about it."""
    chosen = []
    for field in dataclasses.fields(estimator) if dataclasses.is_dataclass(estimator) else ():
        value = getattr(estimator, field.name)
        if field.init and not (isinstance(field.default, bool | int | str | None) and value == field.default):
            chosen.append(f"{field.name}={value!r}")
    shown = f"{type(estimator).__name__}({', '.join(chosen)})"
    return shown if len(shown) <= 48 and "\n" not in shown else f"{type(estimator).__name__}(...)"


@dataclasses.dataclass(frozen=True)
class Staging:
    """An objective, staged as it is for a gradient: `moving` are the constants that are differentiated, with their values."""

    staged: Staged
    moving: dict[int, Any]


def stage_for_gradient(
    objective: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    argnums: Any,
    use: Callable[[Staged], None] = lambda staged: None,
) -> Staging:
    """Stage an objective with `args[argnums]` traced, without evaluating anything. `use` may trace it further."""
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    if not args and argnums == 0:
        numbers = ()
    if any(not -len(args) <= n < len(args) for n in numbers):
        raise errors.ObjectiveError(f"argnums={argnums} does not fit {len(args)} arguments")
    parts = [partition(args[n]) for n in numbers]
    box: list[Staging] = []

    def inner(trainable: Any) -> None:
        full = list(args)
        for n, arrays, (_, rest) in zip(numbers, trainable, parts, strict=True):
            full[n] = combine(arrays, rest)
        staged = objective._stage(full, kwargs)
        values = zip(jax.tree.leaves(trainable), jax.tree.leaves([arrays for arrays, _ in parts]), strict=True)
        by_tracer = {id(tracer): value for tracer, value in values}
        moving = {
            i: by_tracer.get(id(const)) for i, const in enumerate(staged.jaxpr.consts) if isinstance(const, jax.core.Tracer)
        }
        box.append(Staging(staged, moving))
        use(staged)

    jax.eval_shape(inner, [arrays for arrays, _ in parts])
    return box[0]


class Refusal(NamedTuple):
    """A site, or a group of them, for which there is no estimator, and what is said of that."""

    located: Located | None
    message: str


def choices(jaxpr: Any, consts: Sequence[Any]) -> tuple[dict[SiteId, SitePlan], list[Refusal]]:
    """The estimator of each site that has one, and what is wrong with the others."""
    found: dict[SiteId, SitePlan] = {}
    refused: list[Refusal] = []
    for site_id, located in zip(site_ids(jaxpr), sites(jaxpr, consts), strict=True):
        if located.site.kind != SAMPLE:
            continue
        try:
            found[site_id] = choice_of(site_id, located, found)
        except errors.EstimatorError as error:
            refused.append(Refusal(located, str(error)))
    return found, refused


def plan_of(
    jaxpr: Any, consts: Sequence[Any], found: Mapping[SiteId, SitePlan]
) -> tuple[Plan | None, Mapping[SiteId, SitePlan]]:
    """The plan, if some site has weights, and what it says of each site."""
    if not any(site.weighted for site in found.values()):
        return None, found
    plan = make_plan(jaxpr, consts, found)
    return plan, plan.sites


def table(plans: Mapping[SiteId, SitePlan]) -> Table:
    """The rows of the sites."""
    return Table([_row(site_id, plan) for site_id, plan in plans.items()])


def _row(site_id: SiteId, plan: SitePlan) -> Row:
    site = plan.site
    estimator, why = (None, "detached: no gradient") if site.detached else (plan.estimator, plan.why)
    branches = math.prod(axis.size for axis in plan.axes) if not plan.perturbs else plan.rows + 1
    unbiased = estimator is None or bool(estimator.unbiased)
    return Row(address_of(site_id), site.distribution_name, plan.located.shape, estimator, why, unbiased, branches, site.where)


def address_of(site_id: SiteId) -> str:
    """An address for people, with the number of the occurrence."""
    address, count = site_id
    return "/".join(address) + (f" ({count + 1})" if count else "")


def estimators_of(objective: Any, args: Sequence[Any], kwargs: Mapping[str, Any], argnums: Any) -> Table:
    """See `Expectation.estimators`."""
    staging = stage_for_gradient(objective, args, kwargs, argnums)
    jaxpr = staging.staged.jaxpr
    found, refused = choices(jaxpr.jaxpr, jaxpr.consts)
    if refused:
        raise errors.EstimatorError(refused[0].message)
    own = table(plan_of(jaxpr.jaxpr, jaxpr.consts, found)[1])
    return own.joined(estimators_of(operand, args, kwargs, argnums) for operand in objective.operands)
