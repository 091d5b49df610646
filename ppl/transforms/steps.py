"""A jaxpr as a list of steps, with calls inlined where sites reach them, and what every value depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr, Literal
from jax.extend.core import primitives as jp

from ppl.lanes import inner_jaxprs, site_of
from ppl.site import Address
from ppl.transforms.influence import NOTHING, Influences, Loop, Scope, flow, influences_on, scan_carry, stack
from ppl.transforms.interpret import advance, scan_sizes

CALLS = (jp.jit_p, jp.closed_call_p)


class Increment(NamedTuple):
    """A term that every step of a scan adds to a carried sum: a variable of the scan's body, and its sign."""

    carry: int
    variable: Any
    sign: float


class Step(NamedTuple):
    """One equation, `alone` as a jaxpr. `ins` and `outs` number what it reads and makes; `counts` says which sites came before.

    For a scan that carries sums, `sums` are their increments and `increments` number the stacked values of these.
    """

    eqn: Any
    alone: Jaxpr
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    counts: dict[Address, int]
    sums: tuple[Increment, ...] = ()
    increments: tuple[int, ...] = ()


@dataclasses.dataclass
class Steps:
    """Values are numbered in the order in which they come up; each has its influences and its abstract value."""

    steps: list[Step] = dataclasses.field(default_factory=list)
    known: dict[int, Any] = dataclasses.field(default_factory=dict)
    ins: list[int] = dataclasses.field(default_factory=list)
    outs: list[int] = dataclasses.field(default_factory=list)
    influences: list[Influences] = dataclasses.field(default_factory=list)
    avals: list[Any] = dataclasses.field(default_factory=list)

    def number(self, aval: Any, influences: Influences = NOTHING) -> int:
        self.influences.append(influences)
        self.avals.append(aval)
        return len(self.avals) - 1


def steps_of(jaxpr: Jaxpr, consts: Sequence[Any], ins: Sequence[Influences], scope: Scope, counts: dict[Address, int]) -> Steps:
    """Take a jaxpr apart. `ins` are the influences on its arguments."""
    steps = Steps()
    env: dict[Any, int] = {}
    for var, const in zip(jaxpr.constvars, consts, strict=True):
        env[var] = steps.number(var.aval)
        steps.known[env[var]] = const
    for var, influences in zip(jaxpr.invars, ins, strict=True):
        env[var] = steps.number(var.aval, influences)
        steps.ins.append(env[var])
    outs, _ = _add(steps, jaxpr, env, scope, dict(counts))
    steps.outs = outs
    return steps


def _add(
    steps: Steps, jaxpr: Jaxpr, env: dict[Any, int], scope: Scope, counts: dict[Address, int]
) -> tuple[list[int], dict[Address, int]]:
    def read(atom: Any) -> int:
        if not isinstance(atom, Literal):
            return env[atom]
        number = steps.number(atom.aval)
        steps.known[number] = atom.val
        return number

    for eqn in jaxpr.eqns:
        numbers = tuple(map(read, eqn.invars))
        influences = [steps.influences[n] for n in numbers]
        holds_site = site_of(eqn) is not None
        if eqn.primitive in CALLS and (holds_site or any(influences)):
            (inner,) = inner_jaxprs(eqn.params)
            inside = dict(zip(inner.invars, numbers, strict=True))
            closed = next(param for param in eqn.params.values() if hasattr(param, "consts"))
            for var, const in zip(inner.constvars, closed.consts, strict=True):
                inside[var] = steps.number(var.aval)
                steps.known[inside[var]] = const
            outs, counts = _add(steps, inner, inside, scope, counts)
            env.update(zip(eqn.outvars, outs, strict=True))
            continue
        found: Sequence[Influences] = [NOTHING] * len(eqn.outvars)
        if holds_site or any(influences):
            found = influences_on(eqn, influences, scope, counts)
        outs = [steps.number(var.aval, value) for var, value in zip(eqn.outvars, found, strict=True)]
        step = Step(eqn, _alone(jaxpr, eqn), numbers, tuple(outs), counts)
        if eqn.primitive is jp.scan_p and any(found):
            step = _with_increments(steps, step, influences, scope)
        steps.steps.append(step)
        env.update(zip(eqn.outvars, outs, strict=True))
        if holds_site:
            counts = advance(counts, eqn)
    return [read(atom) for atom in jaxpr.outvars], counts


def _with_increments(steps: Steps, step: Step, ins: Sequence[Influences], scope: Scope) -> Step:
    """Number the increments of the sums that a scan carries, so that the sum over steps can be told apart into terms."""
    eqn = step.eqn
    sums = carried_sums(eqn)
    if not sums:
        return step
    body, depth = eqn.params["jaxpr"].jaxpr, len(scope.loops)
    operands = scan_carry(eqn, ins, scope, step.counts)
    inside = scope.enter(Loop(eqn.params["length"], eqn.params["reverse"]))
    found = influences_on_variables(body, operands, inside, step.counts, [inc.variable for inc in sums])
    length = eqn.params["length"]
    numbers = []
    for increment, influences in zip(sums, found, strict=True):
        aval = increment.variable.aval
        numbers.append(steps.number(aval.update(shape=(length, *aval.shape)), stack(influences, depth)))
    return step._replace(sums=tuple(sums), increments=tuple(numbers))


def _alone(jaxpr: Jaxpr, eqn: Any) -> Jaxpr:
    variables = list(dict.fromkeys(atom for atom in eqn.invars if not isinstance(atom, Literal)))
    return jaxpr.replace(constvars=[], invars=variables, outvars=list(eqn.outvars), eqns=[eqn], debug_info=jaxpr.debug_info)


def evaluate(step: Step, operands: Sequence[Any]) -> list[Any]:
    """One step without sites."""
    values = {a: x for a, x in zip(step.eqn.invars, operands, strict=True) if not isinstance(a, Literal)}
    return jax.core.eval_jaxpr(step.alone, (), *values.values())


def influences_on_variables(
    jaxpr: Jaxpr, ins: Sequence[Influences], scope: Scope, counts: dict[Address, int], variables: Sequence[Any]
) -> list[Influences]:
    return flow(jaxpr.replace(outvars=list(variables), debug_info=jaxpr.debug_info), ins, scope, counts)


def needed(steps: Steps, wanted: Sequence[int]) -> tuple[list[Step], set[int]]:
    """The steps that are needed, and the numbers of the values that are."""
    used = set(wanted)
    kept = []
    for step in reversed(steps.steps):
        if used.intersection(step.outs) or used.intersection(step.increments):
            kept.append(step)
            used.update(step.ins)
    return kept[::-1], used


def carried_sums(eqn: Any) -> list[Increment]:
    """The increments of every carried value of a scan that is nothing but a running sum."""
    body = eqn.params["jaxpr"].jaxpr
    n_consts, n_carry = scan_sizes(eqn)
    made = {var: inner for inner in body.eqns for var in inner.outvars}
    uses: dict[Any, int] = {}
    for inner in body.eqns:
        for atom in inner.invars:
            if not isinstance(atom, Literal):
                uses[atom] = uses.get(atom, 0) + 1
    for atom in body.outvars:
        if not isinstance(atom, Literal):
            uses[atom] = uses.get(atom, 0) + 1
    found: list[Increment] = []
    for carry, var in enumerate(body.invars[n_consts : n_consts + n_carry]):
        increments = _increments(body.outvars[carry], var, _sums_with(var, body, made), made, uses)
        if increments and all(variable.aval.shape == var.aval.shape for variable, _ in increments):
            found += [Increment(carry, variable, sign) for variable, sign in increments]
    return found


def _increments(
    out: Any, start: Any, sums: set[Any], made: dict[Any, Any], uses: dict[Any, int]
) -> list[tuple[Any, float]] | None:
    """The terms that are added to `start` to make `out`, or None if it is made in another way."""
    increments: list[tuple[Any, float]] = []
    while out is not start:
        links = _links(out, made) if not isinstance(out, Literal) and uses.get(out, 0) == 1 else []
        towards = [link for link in links if not isinstance(link[0], Literal) and link[0] in sums]
        if not towards:
            return None
        out, other, sign = towards[0]
        if isinstance(other, Literal):
            return None
        if other is not None:
            increments.append((other, sign))
    return increments if uses.get(start, 0) == 1 else None


def _links(atom: Any, made: dict[Any, Any]) -> list[tuple[Any, Any, float]]:
    """What a value is a sum of, if it is one: each operand that may be the running sum, the other one, and its sign."""
    eqn = made.get(atom)
    if eqn is None:
        return []
    name = eqn.primitive.name
    if name == "convert_element_type" and eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype:
        return [(eqn.invars[0], None, 1.0)]
    if name == "sub":
        return [(eqn.invars[0], eqn.invars[1], -1.0)]
    if name in ("add", "add_any"):
        return [(eqn.invars[0], eqn.invars[1], 1.0), (eqn.invars[1], eqn.invars[0], 1.0)]
    return []


def _sums_with(start: Any, body: Jaxpr, made: dict[Any, Any]) -> set[Any]:
    """The variables to which a chain of additions leads from `start`."""
    found = {start}
    for eqn in body.eqns:
        for out in eqn.outvars:
            if any(not isinstance(link[0], Literal) and link[0] in found for link in _links(out, made)):
                found.add(out)
    return found


__all__ = ["CALLS", "Increment", "Step", "Steps", "carried_sums", "evaluate", "needed", "steps_of"]
