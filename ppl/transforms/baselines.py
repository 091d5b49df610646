"""What baselines add to a surrogate: terms of value zero, whose derivatives of every order have mean zero.

The cost that the score of an element multiplies, its *return*, is the derivative of the surrogate in the element's log weight.
For a number b that does not depend on the draw, `b * (1 - w)`, with w the weight whose value is one, has value zero, and mean
zero for all parameters: adding it takes b off the return.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ppl import errors
from ppl.estimators import Learned, LeaveOneOut, MovingAverage, Vimco
from ppl.estimators.protocol import SINGLE
from ppl.lanes import site_of
from ppl.site import show
from ppl.transforms.branches import Branched
from ppl.transforms.influence import NOW, Place
from ppl.transforms.interpret import SiteId
from ppl.transforms.plan import Chosen, Plan, SitePlan
from ppl.transforms.resolve import Resolver, Weights, placed
from ppl.transforms.steps import evaluate
from ppl.transforms.terms import apply_tail

State = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One evaluation of an objective: the surrogate, the squared error of learned baselines, and the returns to be averaged."""

    value: Any
    loss: Any
    returns: Mapping[str, Any]


jax.tree_util.register_dataclass(Outcome, data_fields=["value", "loss", "returns"], meta_fields=[])


def outcome(plan: Plan, values: Mapping[int, Branched], weights: Weights, elements: Chosen, state: State, axis: Any) -> Outcome:
    """The surrogate with its baselines.

    `elements` are those chosen to branch; `axis` names the axis of independent repetitions, if there is one.
    """
    weights, given = _split(plan, weights)
    resolver = Resolver(plan, weights, elements)
    estimates = resolver.estimates(values)
    scored = {i: plan.sites[i] for i in weights if plan.sites[i].estimator.coupling == SINGLE}
    for number in plan.terms.numbers:
        for site_id, site in scored.items():
            if isinstance(site.baseline, Vimco):
                estimates[number] = estimates[number] + _without_one(plan, values, number, site_id, weights[site_id])
    value = apply_tail(plan.terms, lambda number: values[number].array, estimates)
    loss, returns = jnp.zeros((), value.dtype), {}
    wanted = [i for i, site in scored.items() if _needs_return(site, axis)]
    found = _returns(plan, values, weights, elements, wanted) if wanted else {}
    for site_id, site in scored.items():
        weight = weights[site_id]
        if site_id in given:
            baseline = given[site_id]
            reach = resolver.reach(site_id, weight)
            value = value + _control(_times(jax.lax.stop_gradient(baseline), reach), weight)
            if isinstance(site.baseline, Learned):
                loss = loss + _squared_error(found[site_id], baseline, reach)
        elif isinstance(site.baseline, MovingAverage):
            name = state_name(site)
            mean = jax.lax.stop_gradient(state[name]["mean"] / jnp.maximum(1.0 - state[name]["forgotten"], 1e-8))
            value = value + _control(_times(Branched(mean), resolver.reach(site_id, weight)), weight)
            returns[name] = _over_axes(found[site_id])
        elif site_id in found:
            value = value + _control(_others(found[site_id], axis), weight)
    return Outcome(value, loss, returns)


def _needs_return(site: SitePlan, axis: Any) -> bool:
    return isinstance(site.baseline, Learned | MovingAverage) or (isinstance(site.baseline, LeaveOneOut) and axis is not None)


def _split(plan: Plan, weights: Weights) -> tuple[dict[SiteId, Branched], dict[SiteId, Branched]]:
    """Log weights apart from the baselines that came with them."""
    plain, given = dict(weights), {}
    for site_id, weight in weights.items():
        if plan.sites[site_id].brings_baseline:
            plain[site_id] = Branched(weight.array[..., 0], weight.axes)
            given[site_id] = Branched(weight.array[..., 1], weight.axes)
    return plain, given


def _returns(
    plan: Plan, values: Mapping[int, Branched], weights: Weights, elements: Chosen, wanted: Sequence[SiteId]
) -> dict[SiteId, Branched]:
    """What each element of these sites can still change of the objective."""
    values = {number: jax.tree.map(jax.lax.stop_gradient, value) for number, value in values.items()}
    weights = jax.tree.map(jax.lax.stop_gradient, dict(weights))

    def surrogate(shifts: dict[SiteId, Any]) -> Any:
        shifted = {i: Branched(weights[i].array + shift, weights[i].axes) for i, shift in shifts.items()}
        estimates = Resolver(plan, {**weights, **shifted}, elements).estimates(values)
        return apply_tail(plan.terms, lambda number: values[number].array, estimates)

    derivatives = jax.grad(surrogate)({i: jnp.zeros_like(weights[i].array) for i in wanted})
    return {i: Branched(jax.lax.stop_gradient(derivatives[i]), weights[i].axes) for i in wanted}


def _control(baseline: Branched, log_weight: Branched) -> Any:
    """The sum over elements of `b * (1 - w)`."""
    weight = jnp.exp(log_weight.array - jax.lax.stop_gradient(log_weight.array))
    axes = log_weight.axes
    return jnp.sum(baseline.spread(axes).array * (1.0 - weight))


def _times(one: Branched, other: Branched | None) -> Branched:
    if other is None:
        return one
    axes = tuple(sorted({*one.axes, *other.axes}))
    return Branched(one.over(axes) * jax.lax.stop_gradient(other.over(axes)), axes)


def _over_axes(value: Branched) -> Any:
    return jnp.sum(value.array, axis=tuple(range(len(value.axes))))


def _others(returns: Branched, axis: Any) -> Branched:
    """The mean over the other repetitions."""
    count = jax.lax.axis_size(axis)
    if count == 1:
        return Branched(jnp.zeros_like(returns.array), returns.axes)
    return Branched((jax.lax.psum(returns.array, axis) - returns.array) / (count - 1), returns.axes)


def _squared_error(returns: Branched, baseline: Branched, reach: Branched | None) -> Any:
    if reach is None:
        return jnp.sum((returns.array - baseline.array) ** 2)
    axes = returns.axes
    chance = jax.lax.stop_gradient(reach.spread(axes).array)
    error = returns.array / jnp.where(chance > 0, chance, 1.0) - baseline.spread(axes).array
    return jnp.sum(chance * error**2)


# Running means.


def state_name(site: SitePlan) -> str:
    address, occurrence = site.site_id
    return show(address) if occurrence == 0 else f"{show(address)}#{occurrence}"


def initial_state(sites: Mapping[SiteId, SitePlan]) -> State:
    """The running means of an objective, before anything is known."""
    dtype = jnp.result_type(float)
    return {
        state_name(site): {"mean": jnp.zeros(site.shape, dtype), "forgotten": jnp.ones((), dtype)}
        for site in sites.values()
        if site.weighted and isinstance(site.baseline, MovingAverage)
    }


def next_state(sites: Mapping[SiteId, SitePlan], state: State, returns: Mapping[str, Any]) -> State:
    """The running means, given the returns of this step. `forgotten` is what is left of the start's weight."""
    decays = {state_name(site): site.baseline.decay for site in sites.values() if isinstance(site.baseline, MovingAverage)}
    return {
        name: {
            "mean": decays[name] * old["mean"] + (1.0 - decays[name]) * jax.lax.stop_gradient(returns[name]),
            "forgotten": decays[name] * old["forgotten"],
        }
        for name, old in state.items()
    }


def check_state(sites: Mapping[SiteId, SitePlan], state: State | None) -> State:
    """The state of an evaluation; refused where it is missing or another objective's."""
    expected = initial_state(sites)
    if expected and state is None:
        raise errors.EstimatorError(
            f"the moving-average baselines of {', '.join(map(repr, expected))} need a state: pass "
            "state=objective.init_state(...) and keep the one that comes back, or use ppl.maximize, which does."
        )
    shapes = {name: jnp.shape(old["mean"]) for name, old in (state or {}).items()}
    if shapes != {name: new["mean"].shape for name, new in expected.items()}:
        raise errors.EstimatorError(
            f"the state has baselines of the shapes {shapes}, and the objective needs "
            f"{ {name: new['mean'].shape for name, new in expected.items()} }. Make it by objective.init_state(...)."
        )
    return state or {}


# Particles.


def _without_one(plan: Plan, values: Mapping[int, Branched], number: int, site_id: SiteId, log_weight: Branched) -> Any:
    """VIMCO's control of one term and one site, over the outermost dimension that the term mixes; zero where it mixes none."""
    place = _place(plan, number, site_id)
    mixed = [dim for dim, at in enumerate(place or ()) if at is None and plan.sites[site_id].shape[dim] > 1]
    if place is None or not mixed or log_weight.axes:
        return 0.0
    dim = mixed[0]
    baselines = _replaced(plan, values, number, site_id, dim)
    if baselines is None:
        return 0.0
    ndim = values[number].array.ndim
    rest = tuple(at for i, at in enumerate(place) if i != dim)
    elements = Branched(jnp.moveaxis(log_weight.array, dim, -1))
    by_particle = placed(elements, rest, ndim, trailing=1).array
    weight = jnp.exp(by_particle - jax.lax.stop_gradient(by_particle))
    return jnp.sum(jax.lax.stop_gradient(jnp.moveaxis(baselines, 0, -1)) * (1.0 - weight), axis=-1)


def _place(plan: Plan, number: int, site_id: SiteId) -> Place | None:
    return next((p for key, p in plan.steps.influences[number].items() if key.site == site_id and not key.direct), None)


def _replaced(plan: Plan, values: Mapping[int, Branched], number: int, site_id: SiteId, dim: int) -> Any:
    """A term with each particle in turn replaced by the mean of the others, stacked; None where that cannot be evaluated."""
    makers = {out: step for step in plan.steps.steps for out in step.outs}
    frontier: dict[int, int] = {}
    mixing: set[int] = set()
    stack = [number]
    while stack:
        n = stack.pop()
        place = _place(plan, n, site_id)
        if n in frontier or n in mixing or place is None:
            continue
        at = place[dim]
        if at is not None and not at.loop and at.lags == NOW:
            frontier[n] = at.index
        elif n not in makers or site_of(makers[n].eqn) is not None:
            return None
        else:
            mixing.add(n)
            stack += makers[n].ins
    steps = [step for step in plan.steps.steps if mixing.intersection(step.outs)]
    used = {n for step in steps for n in step.ins} | set(frontier)
    constants = {n: values[n] for n in used if n not in mixing}
    if any(value.axes for value in constants.values()):
        return None
    arrays = {n: jax.lax.stop_gradient(value.array) for n, value in constants.items()}
    size = plan.sites[site_id].shape[dim]

    def without(k: Any) -> Any:
        env = {**arrays, **{n: _replace(arrays[n], k, axis, size) for n, axis in frontier.items()}}
        for step in steps:
            env.update(zip(step.outs, evaluate(step, [env[n] for n in step.ins]), strict=True))
        return env[number]

    return jax.vmap(without)(jnp.arange(size))


def _replace(array: Any, k: Any, axis: int, size: int) -> Any:
    """Element k along an axis replaced by the mean of the others, or, where means are no values, by the next one."""
    own = jax.lax.dynamic_index_in_dim(array, k, axis, keepdims=False)
    if jnp.issubdtype(array.dtype, jnp.floating):
        other = (jnp.sum(array, axis=axis) - own) / (size - 1)
    else:
        other = jax.lax.dynamic_index_in_dim(array, (k + 1) % size, axis, keepdims=False)
    return jax.lax.dynamic_update_index_in_dim(array, other, k, axis)


__all__ = ["Outcome", "State", "check_state", "initial_state", "next_state", "outcome"]
