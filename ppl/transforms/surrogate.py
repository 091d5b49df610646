"""The steps of an objective, evaluated in every branch that its estimators ask for.

Each value carries the axes of the branches it depends on and no others, so that branches of independent sites never multiply.
What comes out beside the values are the weights of each site, stacked along the loops around it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.extend.core import primitives as jp

from ppl import errors
from ppl.estimators.protocol import PRODUCT
from ppl.lanes import inner_jaxprs, lanes_p, site_of
from ppl.site import SAMPLE, Site, site_p
from ppl.transforms.branches import Axis, Branched, each_branch, rename, union_axes
from ppl.transforms.draws import draw_site, neutral, own_branch, sole_value
from ppl.transforms.influence import (
    ENUMERATED,
    NOW,
    TRANSPARENT,
    WEIGHTED,
    Influences,
    Loop,
    Scope,
    element_shape,
    lane_operands,
    scan_carry,
)
from ppl.transforms.interpret import SiteId, fold, identify, scan_sizes
from ppl.transforms.plan import Chosen, Plan, value_axes
from ppl.transforms.steps import Step, Steps, carried_sums, evaluate, needed, steps_of

Weights = dict[SiteId, Branched]


@dataclasses.dataclass(frozen=True)
class Frame:
    """Where an evaluation stands: the keys of the sites still to come, and the loops around, with their current indices."""

    plan: Plan
    keys: Mapping[SiteId, Any]
    loops: tuple[Loop, ...] = ()
    indices: tuple[Any, ...] = ()
    chosen: Chosen = dataclasses.field(default_factory=dict)
    hidden: bool = False  # whether the axes are hidden from what is evaluated, by a vmap over them

    def enter(self, loop: Loop, index: Any, keys: Mapping[SiteId, Any]) -> Frame:
        keys = fold(dict(keys), index)
        return dataclasses.replace(self, keys=keys, loops=(*self.loops, loop), indices=(*self.indices, index))

    @property
    def scope(self) -> Scope:
        return Scope(self._trait, {}, self.loops)

    def _trait(self, site_id: SiteId, site: Site) -> str:
        plan = self.plan.sites.get(site_id)
        if plan is None or not plan.weighted:
            return TRANSPARENT
        return ENUMERATED if plan.estimator.coupling == PRODUCT else WEIGHTED

    def axes(self, influences: Influences) -> tuple[Axis, ...]:
        return tuple(sorted(value_axes(influences, self.plan.sites)))

    def weight_axes(self, site_id: SiteId) -> tuple[Axis, ...]:
        """The axes that the weights of a site have: those of its parameters, and not those of its own branches."""
        if self.hidden:
            return ()
        plan = self.plan.sites[site_id]
        own = plan.axes if plan.estimator.coupling not in (PRODUCT,) else ()
        return tuple(axis for axis in self.axes(self.plan.parents[site_id]) if axis not in own)


def run_steps(
    steps: Steps, operands: Sequence[Branched], frame: Frame, wanted: Sequence[int]
) -> tuple[dict[int, Branched], Weights]:
    """Evaluate what is needed for the values numbered in `wanted`."""
    env: dict[int, Branched] = {number: Branched(value) for number, value in steps.known.items()}
    env.update(zip(steps.ins, operands, strict=True))
    weights: Weights = {}
    kept, used = needed(steps, wanted)
    for step in kept:
        ins = [env[number] for number in step.ins]
        handle = _HANDLERS.get(step.eqn.primitive) if site_of(step.eqn) or step.sums or _chained(ins, frame) else None
        if step.eqn.primitive is site_p:
            value, weight = _site(step, ins, frame)
            outs = [value]
            if weight is not None:
                weights[_site_id(step)] = weight
        elif handle is not None:
            idle = frozenset(inc.carry for inc in step.sums if step.outs[inc.carry] not in used)
            outs, found = handle(step, ins, [steps.influences[number] for number in step.ins], frame, idle)
            weights.update(found)
        else:
            outs = each_branch(lambda *arrays, step=step: evaluate(step, arrays), ins)
        for number, value in zip([*step.outs, *step.increments], outs, strict=True):
            env[number] = _trim(value, frame.axes(steps.influences[number]))
    return env, weights


def _trim(value: Branched, axes: Sequence[Axis]) -> Branched:
    """Without the axes that it does not depend on; it has them when it came out of an equation together with others."""
    for axis in value.axes:
        if axis not in axes:
            value = value.at(axis, 0)
    return value


def _chained(values: Sequence[Branched], frame: Frame) -> bool:
    chains = {axis for plan in frame.plan.sites.values() if plan.chain is not None for axis in plan.axes}
    return bool(chains) and any(chains.intersection(value.axes) for value in values)


def _site_id(step: Step) -> SiteId:
    address = step.eqn.params["site"].address
    return address, step.counts.get(address, 0)


def _site(step: Step, leaves: Sequence[Branched], frame: Frame) -> tuple[Branched, Branched | None]:
    site, site_id = step.eqn.params["site"], _site_id(step)
    plan, key = frame.plan.sites.get(site_id), frame.keys.get(site_id)
    if plan is None or not plan.weighted or site.kind != SAMPLE:
        return each_branch(lambda *arrays: sole_value(site, arrays, key, plan and plan.estimator), leaves), None
    # In a cond, another site may have this one's address and its plan.
    plan = dataclasses.replace(plan, located=dataclasses.replace(plan.located, site=site))
    value, weight = draw_site(plan, leaves, key, frame.indices, frame.plan.perturbation, frame.chosen)
    if weight is None:
        return value, None
    axes = frame.weight_axes(site_id)
    return value, _trim(weight.spread(axes), axes)


# Control flow with sites inside, or with branches that are carried along.


def _body(
    closed: Any, influences: Sequence[Influences], frame: Frame, step: Step, extra: Sequence[Any] = ()
) -> tuple[Steps, Callable[..., tuple[list[Any], Weights]]]:
    """A body taken apart, and a function that runs it, without the results in `idle`."""
    jaxpr, consts = (closed.jaxpr, closed.consts) if isinstance(closed, ClosedJaxpr) else (closed, ())
    if extra:
        jaxpr = jaxpr.replace(outvars=[*jaxpr.outvars, *extra], debug_info=jaxpr.debug_info)
    steps = steps_of(jaxpr, consts, influences, frame.scope, step.counts)

    def run(operands: Sequence[Branched], frame: Frame, idle: frozenset[int] = frozenset()) -> tuple[list[Any], Weights]:
        wanted = [number for i, number in enumerate(steps.outs) if i not in idle]
        env, weights = run_steps(steps, operands, frame, wanted)
        return [None if i in idle else env[number] for i, number in enumerate(steps.outs)], weights

    return steps, run


def _keys(frame: Frame, step: Step, *bodies: Jaxpr) -> dict[SiteId, Any]:
    ids: list[SiteId] = []
    for body in bodies:
        identify(body, step.counts, ids)
    return {site_id: frame.keys[site_id] for site_id in dict.fromkeys(ids) if site_id in frame.keys}


def _front(value: Branched) -> Branched:
    """The first dimension in one branch in front of the axes, as `scan` and `vmap` want it."""
    return Branched(jnp.moveaxis(value.array, len(value.axes), 0), value.axes)


def _back(value: Branched) -> Branched:
    return Branched(jnp.moveaxis(value.array, 0, len(value.axes)), value.axes)


def _stacked(tree: Any) -> Any:
    return jax.tree.map(_back, tree, is_leaf=lambda leaf: isinstance(leaf, Branched))


Operands = Sequence[Branched]
Result = tuple[list[Branched], Weights]


def _scan(step: Step, operands: Operands, influences: Sequence[Influences], frame: Frame, idle: frozenset[int]) -> Result:
    eqn, length = step.eqn, step.eqn.params["length"]
    closed, reverse, depth = eqn.params["jaxpr"], eqn.params["reverse"], len(frame.loops)
    n_consts, n_carry = scan_sizes(eqn)
    inside = scan_carry(eqn, influences, frame.scope, step.counts)
    loop = Loop(length, reverse)
    shape_frame = dataclasses.replace(frame, loops=(*frame.loops, loop))
    increments = [increment.variable for increment in carried_sums(eqn)] if step.sums else []
    steps, run = _body(closed, inside, shape_frame, step, increments)
    consts = operands[:n_consts]
    # A running sum of which nobody needs the value is not carried: its increments are stacked instead.
    carry_axes = [() if i in idle else frame.axes(inside[n_consts + i]) for i in range(n_carry)]
    start = [value.spread(axes) for value, axes in zip(operands[n_consts : n_consts + n_carry], carry_axes, strict=True)]
    keys = _keys(frame, step, closed.jaxpr)

    def body(carry: Any, x: Any) -> Any:
        xs, index = x
        outs, weights = run([*consts, *carry, *xs], frame.enter(loop, index, keys), idle)
        new = [
            carry[i] if i in idle else _next_step(outs[i], steps.influences[steps.outs[i]], frame, depth).spread(axes)
            for i, axes in enumerate(carry_axes)
        ]
        return new, (outs[n_carry:], weights)

    xs = [_front(value) for value in operands[n_consts + n_carry :]]
    options = {name: eqn.params[name] for name in ("reverse", "unroll")}
    carry, stacked = jax.lax.scan(body, start, (xs, jnp.arange(length)), length=length, **options)
    ys, weights = _stacked(stacked)
    return [*carry, *ys], weights


def _next_step(value: Branched, influences: Influences, frame: Frame, depth: int) -> Branched:
    """The value as the next step of a loop sees it: this step's elements of a chain are the last step's there."""
    for key, place in influences.items():
        plan = frame.plan.sites[key.site]
        if key.direct and plan.chain is not None:
            at = place[plan.chain]
            if at is not None and at.loop and at.index == depth and at.lags == NOW:
                value = rename(value, plan.axes[1], plan.axes[0])
    return value


def _lanes(step: Step, operands: Operands, influences: Sequence[Influences], frame: Frame, idle: frozenset[int]) -> Result:
    params = step.eqn.params
    closed, size, batched = params["jaxpr"], params["size"], params["batched"]
    loop = Loop(size)
    shape_frame = dataclasses.replace(frame, loops=(*frame.loops, loop))
    _, run = _body(closed, lane_operands(step.eqn, influences, frame.scope), shape_frame, step)
    keys = _keys(frame, step, closed.jaxpr)

    def lane(index: Any, *args: Branched) -> Any:
        return run(args, frame.enter(loop, index, keys))

    moved = [_front(value) if there else value for value, there in zip(operands, batched, strict=True)]
    axes = [0 if there else None for there in batched]
    outs, weights = _stacked(jax.vmap(lane, in_axes=(0, *axes), axis_size=size)(jnp.arange(size), *moved))
    return outs, weights


def _checkpoint(step: Step, operands: Operands, influences: Sequence[Influences], frame: Frame, idle: frozenset[int]) -> Result:
    params = step.eqn.params
    _, run = _body(params["jaxpr"], influences, frame, step)
    options = {name: params[name] for name in ("policy", "prevent_cse")}

    def body(operands: Any, keys: Any) -> Any:
        return run(operands, dataclasses.replace(frame, keys=keys))

    return jax.checkpoint(body, **options)(list(operands), _keys(frame, step, next(inner_jaxprs(params))))


def _cond(step: Step, operands: Operands, influences: Sequence[Influences], frame: Frame, idle: frozenset[int]) -> Result:
    index, *args = operands
    branches = step.eqn.params["branches"]
    keys = _keys(frame, step, *(branch.jaxpr for branch in branches))
    frame = dataclasses.replace(frame, keys=keys)
    inside = [site_id for site_id in keys if site_id in frame.plan.sites and frame.plan.sites[site_id].weighted]
    bodies = [_body(branch, influences[1:], frame, step) for branch in branches]
    out_axes = [
        union_axes(frame.axes(steps.influences[number]) for steps, number in zip([b[0] for b in bodies], numbers, strict=True))
        for numbers in zip(*(steps.outs for steps, _ in bodies), strict=True)
    ]
    depth = len(frame.loops)

    def alternative(run: Any) -> Callable[..., Any]:
        def body(args: Any) -> Any:
            outs, weights = run(args, frame)
            full = [weights[i] if i in weights else _absent(frame.plan.sites[i], frame.weight_axes(i), depth) for i in inside]
            return [value.spread(axes) for value, axes in zip(outs, out_axes, strict=True)], full

        return body

    alternatives = [alternative(run) for _, run in bodies]
    if index.axes:
        outs, weights = _select(index, [body(args) for body in alternatives])
        weights = [own_branch(frame.plan.sites[i], weight) for i, weight in zip(inside, weights, strict=True)]
    else:
        outs, weights = jax.lax.switch(index.array, alternatives, args)
    return outs, dict(zip(inside, weights, strict=True))


def _absent(plan: Any, axes: Sequence[Axis], depth: int) -> Branched:
    """The weights of a site in a branch that is not taken."""
    return neutral(plan, axes, plan.shape[depth:], jnp.result_type(float))


def _select(index: Branched, results: Sequence[Any]) -> Any:
    """The results of the branch that is taken, where that differs between branches of the evaluation."""

    def pick(*values: Branched) -> Branched:
        arrays = [value.spread(union_axes(v.axes for v in values)) for value in values]
        return each_branch(lambda i, *xs: jax.lax.select_n(jnp.broadcast_to(i, jnp.shape(xs[0])), *xs), [index, *arrays])

    return jax.tree.map(pick, *results, is_leaf=lambda leaf: isinstance(leaf, Branched))


def _while(step: Step, operands: Operands, influences: Sequence[Influences], frame: Frame, idle: frozenset[int]) -> Result:
    params = step.eqn.params
    cond, body = params["cond_jaxpr"], params["body_jaxpr"]
    site = next((site for site in [site_of(eqn) for eqn in cond.jaxpr.eqns] if site), None)
    if site is not None:
        raise errors.UnsupportedPrimitiveError(
            f"the condition of a while_loop holds the site {site.name!r}.\n  {site.where}\n"
            "Draw in the body and carry the value to the condition."
        )
    n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
    keys = _keys(frame, step, body.jaxpr)
    inside = [site_id for site_id in keys if site_id in frame.plan.sites and frame.plan.sites[site_id].weighted]
    alone = dataclasses.replace(frame, hidden=True)

    def loop(*arrays: Any) -> Any:
        cond_consts, body_consts, start = arrays[:n_cond], arrays[n_cond : n_cond + n_body], arrays[n_cond + n_body :]
        _, run = _body(body, [{}] * (len(arrays) - n_cond), frame, step)
        zeros = [jnp.zeros(element_shape(frame.plan.sites[i].site), jnp.result_type(float)) for i in inside]

        def keep_going(state: Any) -> Any:
            return jax.core.eval_jaxpr(cond.jaxpr, cond.consts, *cond_consts, *state[1])[0]

        def advance(state: Any) -> Any:
            count, carry, totals = state
            keyed = dataclasses.replace(alone, keys=fold(dict(keys), count))
            outs, weights = run([Branched(x) for x in (*body_consts, *carry)], keyed)
            new = [total + weights[i].array if i in weights else total for i, total in zip(inside, totals, strict=True)]
            return count + 1, [value.array for value in outs], new

        _, outs, totals = jax.lax.while_loop(keep_going, advance, (jnp.zeros((), jnp.int32), list(start), zeros))
        return outs, totals

    outs, totals = each_branch(loop, operands)
    return outs, dict(zip(inside, totals, strict=True))


_HANDLERS: dict[Any, Callable[[Step, Operands, Sequence[Influences], Frame, frozenset[int]], Result]] = {
    jp.scan_p: _scan,
    jp.cond_p: _cond,
    jp.while_p: _while,
    jp.remat_p: _checkpoint,
    lanes_p: _lanes,
}
