"""What `condition`, `intervene`, `substitute`, `scale`, `mask`, `detach` and `with_estimators` do to sites.

A bound program carries a tuple of these modifications, and they are applied to each site, in order, on its way to whatever rule
interprets the program: no pass over the program of their own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ppl import errors
from ppl.address import covers, suggest
from ppl.choice import chosen_for
from ppl.estimated import Estimated, modify
from ppl.estimators.protocol import draw_dtype
from ppl.site import DETERMINISTIC, OBSERVED, SAMPLE, Address, Operands, PlateAxis, Site, lanes, restore, show, split_estimator
from ppl.transforms.interpret import Inputs, Record, Rule
from ppl.transforms.stage import Located, Staged, check_addresses, density_addresses, sites, stage
from ppl.transforms.values import UNKNOWN_MASK, check_value


class Program(Protocol):
    """What the transformations need of a bound program."""

    @property
    def function(self) -> Callable[..., Any]: ...

    @property
    def args(self) -> tuple[Any, ...]: ...

    @property
    def kwargs(self) -> dict[str, Any]: ...

    @property
    def modifications(self) -> tuple[Modification, ...]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Modification:
    """A change to the sites at some addresses. `verb` is one of those above, `values` says what for which address.

    The empty address stands for the whole program. Of several that cover a site, the longest counts.
    """

    verb: str
    values: dict[Address, Any]

    def kind(self, located: Located, kind: str) -> str:
        """The kind of a site after the modification."""
        if kind == SAMPLE and located.site.address in self.values:
            return {"condition": OBSERVED, "intervene": DETERMINISTIC}.get(self.verb, kind)
        return kind

    def site(self, located: Located) -> Site:
        """The static part of a site after the modification, as far as values and families are checked against it."""
        site = located.site.replace(kind=self.kind(located, located.site.kind))
        if self.verb != "with_estimators" or site.kind != SAMPLE:
            return site
        prefix = max((p for p in self.values if covers(p, site.address)), key=len, default=None)
        choice = None if prefix is None else self.values[prefix]
        estimator = chosen_for(site, choice)
        if estimator is None:
            return site
        return site.replace(estimator=split_estimator(estimator)[0], dtype=draw_dtype(estimator, site.dtype))


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A bound program, staged and checked: its sites as they are after all modifications, and the values given."""

    staged: Staged
    table: list[Located]
    modifications: tuple[Modification, ...]
    values: dict[str, dict[Address, Any]]

    def inputs(self, **values: dict[Address, Any]) -> Inputs:
        return Inputs({**self.values, **values})

    def rule(self, rule: Rule) -> Rule:
        return Modified(self.modifications, rule) if self.modifications else rule


def prepare(program: Program) -> Prepared:
    """Stage a bound program and check its addresses and everything its modifications name."""
    staged = stage(program.function, *program.args, **program.kwargs)
    table = sites(staged.jaxpr.jaxpr)
    check_addresses(table)
    values: dict[str, dict[Address, Any]] = {}
    for number, modification in enumerate(program.modifications):
        values[_role(number)] = _check(modification, table, program.modifications)
        table = [dataclasses.replace(item, site=modification.site(item)) for item in table]
    return Prepared(staged, table, program.modifications, values)


def _role(number: int) -> str:
    """The name under which the values of a modification travel; strings, since JAX sorts the keys of dicts."""
    return f"modification {number}"


def _check(modification: Modification, table: list[Located], modifications: tuple[Modification, ...]) -> dict[Address, Any]:
    """Check one modification against the program; the values that have to be sliced along with its sites."""
    verb = modification.verb
    known = density_addresses(table)
    sliced = {}
    for address, value in modification.values.items():
        matches = [item for item in table if covers(address, item.site.address)]
        if verb in ("condition", "intervene", "substitute"):
            matches = [item for item in matches if item.site.address == address]
        if not matches and address != ():
            raise errors.UnknownAddressError(
                f"{verb} names the address {show(address)!r}, which the program lacks.{suggest(address, known)}"
            )
        if verb == "with_estimators":
            for item in matches:
                chosen_for(item.site, value)
        for item in matches if verb in ("condition", "intervene", "substitute") else ():
            if item.site.kind != SAMPLE:
                raise errors.UnknownAddressError(
                    f"{verb} names {show(address)!r}, which is {item.site.kind} and no latent variable.\n  {item.site.where}"
                )
            mask = mask_of(item.site, modifications)
            sliced[address] = check_value(value, item.site, item.shape, observed=verb == "condition", mask=mask)
        if verb in ("scale", "mask") and np.ndim(value) > 0:
            for item in matches:
                batch = item.shape[: len(item.shape) - item.site.event_dim]
                if np.shape(value) != batch:
                    raise errors.ValueShapeError(
                        f"{verb} of {show(address)!r} has shape {list(np.shape(value))}; it must be a scalar or have the "
                        f"site's shape without event dimensions, {list(batch)}.\n  {item.site.where}"
                    )
                sliced[item.site.address] = jnp.asarray(value)
    return sliced


def mask_of(site: Site, modifications: tuple[Modification, ...]) -> Any:
    """Which elements of a site count, as far as it is known before running: None for all, `UNKNOWN_MASK`, or an array."""
    if restore(site, [0.0] * site.tree.num_leaves).mask is not None:
        return UNKNOWN_MASK
    masks = [v for m in modifications if m.verb == "mask" for p, v in m.values.items() if covers(p, site.address)]
    if any(isinstance(mask, jax.core.Tracer) for mask in masks):
        return UNKNOWN_MASK
    return functools.reduce(np.logical_and, masks) if masks else None


@dataclasses.dataclass(frozen=True)
class Modified:
    """A rule that sees the sites after some modifications."""

    modifications: tuple[Modification, ...]
    rule: Rule

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        for number, modification in enumerate(self.modifications):
            site, leaves = _apply(modification, site, leaves, given.get(_role(number)))
        return self.rule.site(site, leaves, given, key)

    def estimated(self, estimated: Estimated, leaves: Sequence[Any], given: dict[Address, Any]) -> tuple[list[Any], Record]:
        for number, modification in enumerate(self.modifications):
            sliced = {address: roles[_role(number)] for address, roles in given.items() if _role(number) in roles}
            estimated, leaves = modify(estimated, leaves, modification.verb, modification.values, sliced, covers)
        return self.rule.estimated(estimated, leaves, given)

    def records(self, located: Located) -> bool:
        kind = located.site.kind
        for modification in self.modifications:
            kind = modification.kind(located, kind)
        return self.rule.records(dataclasses.replace(located, site=located.site.replace(kind=kind)))

    def zero(self) -> Any:
        return self.rule.zero()

    def in_lane(self, axis: PlateAxis | None) -> Rule:
        return Modified(self.modifications, self.rule.in_lane(axis))

    def join(self, axis: PlateAxis | None, size: int, totals: Any) -> Any:
        return self.rule.join(axis, size, totals)

    def check(self, eqn: Any, site: Site) -> None:
        self.rule.check(eqn, site)


def _apply(modification: Modification, site: Site, leaves: Sequence[Any], given: Any) -> tuple[Site, Sequence[Any]]:
    verb = modification.verb
    if given is not None and verb in ("condition", "intervene", "substitute"):
        kind = {"condition": OBSERVED, "intervene": DETERMINISTIC, "substitute": SAMPLE}[verb]
        return _with(site.replace(kind=kind), leaves, "value", given, sliced=True)
    prefix = max((p for p in modification.values if covers(p, site.address)), key=len, default=None)
    if prefix is None or verb in ("condition", "intervene", "substitute"):
        return site, leaves
    value = modification.values[prefix]
    if verb == "detach":
        return site.replace(detached=True), leaves
    if verb == "with_estimators":
        found = chosen_for(site, value)
        if found is None and value is not None:
            return site, leaves
        return with_estimator(site, leaves, found)
    old = restore(site, leaves)._asdict()[verb]
    sliced = given is not None
    new = given if sliced else value
    if old is not None:

        def both(operands: Operands, new: Any) -> Any:
            previous = operands._asdict()[verb]
            return previous * new if verb == "scale" else jnp.logical_and(previous, new)

        new = lanes(site, leaves, both, new if sliced else jnp.broadcast_to(new, site.plate_shape))
        sliced = True
    return _with(site, leaves, verb, new, sliced=sliced)


def with_estimator(site: Site, leaves: Sequence[Any], estimator: Any) -> tuple[Site, Sequence[Any]]:
    """The site with this estimator in place of what it had."""
    static, arrays = split_estimator(estimator)
    site = site.replace(estimator=static, dtype=draw_dtype(estimator, site.dtype) if site.kind == SAMPLE else site.dtype)
    return _with(site, leaves, "estimator", arrays, sliced=False)


def _with(site: Site, leaves: Sequence[Any], name: str, value: Any, *, sliced: bool) -> tuple[Site, Sequence[Any]]:
    """The site with one operand replaced by an array that has all the plates' axes in front, or none of them."""
    leaves, tree = jax.tree.flatten(restore(site, leaves)._replace(**{name: value}))
    plates = []
    for plate in site.plates:
        flags = restore(site, plate.batched)._replace(**{name: jax.tree.map(lambda _: sliced, value)})
        plates.append(plate._replace(batched=tuple(jax.tree.leaves(flags))))
    return site.replace(tree=tree, plates=tuple(plates)), leaves
