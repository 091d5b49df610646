"""One site of an objective, drawn by its estimator: its value in every branch, and its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ppl import errors
from ppl.densities import as_drawn, batched_distribution, draw, elementwise, per_lane
from ppl.estimators import Branches, Learned, Particle
from ppl.estimators.protocol import PRODUCT, SINGLE
from ppl.site import DETERMINISTIC, FACTOR, OBSERVED, SUBSAMPLE, Site, lanes, restore
from ppl.transforms.branches import Axis, Branched, each_branch, first_as_axis, first_as_last, union_axes
from ppl.transforms.plan import Chosen, Index, SitePlan
from ppl.transforms.simulate import given_value, refuse_improper


def draw_site(
    plan: SitePlan, leaves: Sequence[Branched], key: Any, loops: Sequence[Any], perturbation: Axis | None, chosen: Chosen
) -> tuple[Branched, Branched | None]:
    """The site's value, and its weights: log weights by element if there is one branch, else weights `(*elements, branches)`.

    `loops` are the current indices of the loops around the site, `chosen` the elements that were chosen at random.
    """
    if plan.estimator.coupling == SINGLE:
        value, log_weight = each_branch(lambda *arrays: tuple(_particle(plan, arrays, key)), leaves)
        if plan.brings_baseline:
            baseline = each_branch(lambda *arrays: _baseline(plan, arrays), leaves)
            log_weight = each_branch(lambda *both: jnp.stack(both, axis=-1), [log_weight, baseline])
        return value, log_weight
    values, weights = each_branch(lambda *arrays: tuple(_branches(plan, arrays, key)), leaves)
    weights = first_as_last(weights)
    if plan.estimator.coupling == PRODUCT:
        return _enumerated(plan, _constant(values), loops), weights
    if plan.perturbs:
        assert perturbation is not None
        return _perturbed(plan, values, loops, perturbation, chosen), own_branch(plan, weights)
    return _shared(plan, values), own_branch(plan, weights)


def sole_value(site: Site, leaves: Sequence[Any], key: Any, estimator: Any) -> Any:
    """The value of a site that has no weight: a computed one, or a draw that is a differentiable function, or none at all."""
    if site.kind == DETERMINISTIC:
        return given_value(site, leaves)
    if site.kind in (OBSERVED, FACTOR):
        raise errors.ObjectiveError(
            f"the objective states {site.kind} {site.name!r}, and has no density that it could count in.\n"
            f"  {site.where}\nPut it into a program and use that program's log density."
        )
    refuse_improper(site)
    if site.kind == SUBSAMPLE:
        return draw(site, leaves, key)
    if site.detached:
        return jax.lax.stop_gradient(draw(site, leaves, key))
    return as_drawn(site, _drawn(site, estimator, leaves, key).value)


def _drawn(site: Site, estimator: Any, leaves: Sequence[Any], key: Any) -> Any:
    held = restore(site, leaves).estimator  # the plan's lacks the arrays
    estimator = estimator if held is None else held
    if not site.plates:
        return estimator.particle(key, elementwise(restore(site, leaves).distribution))
    mapped = held is not None and getattr(held, "reads_arrays", True)
    batched = None if mapped else batched_distribution(site, leaves)
    if batched is not None:
        return estimator.particle(key, elementwise(batched))

    def one(key: Any, operands: Any) -> Any:
        own = operands.estimator if mapped else estimator
        return own.particle(key, elementwise(operands.distribution))

    return per_lane(site, leaves, key, one)


def _particle(plan: SitePlan, leaves: Sequence[Any], key: Any) -> Particle:
    particle = _drawn(plan.site, plan.estimator, leaves, key)
    if not isinstance(particle, Particle):
        raise errors.EstimatorError(
            f"{type(plan.estimator).__name__} has coupling 'single' and gave {type(particle).__name__} at {plan.site.name!r}; "
            f"it must give a Particle.\n  {plan.site.where}"
        )
    return particle._replace(value=as_drawn(plan.site, particle.value))


def _baseline(plan: SitePlan, leaves: Sequence[Any]) -> Any:
    """The baseline that the site's operands bring, for every element."""
    site = plan.site

    def one(operands: Any) -> Any:
        baseline = operands.estimator.baseline
        value = baseline.value if isinstance(baseline, Learned) else baseline
        shape = elementwise(operands.distribution).batch_shape
        try:
            return jnp.broadcast_to(jnp.asarray(value, jnp.result_type(float)), shape)
        except ValueError as error:
            raise errors.EstimatorError(
                f"the baseline of {site.name!r} has shape {list(jnp.shape(value))}; it needs one number, or one for each "
                f"element of the site, {list(shape)}.\n  {site.where}"
            ) from error

    return lanes(site, leaves, one)


def _branches(plan: SitePlan, leaves: Sequence[Any], key: Any) -> Branches:
    found = _drawn(plan.site, plan.estimator, leaves, key)
    if not isinstance(found, Branches):
        raise errors.EstimatorError(
            f"{type(plan.estimator).__name__} has coupling {plan.estimator.coupling!r} and gave {type(found).__name__} at "
            f"{plan.site.name!r}; it must give Branches.\n  {plan.site.where}"
        )
    site = plan.site
    found = found._replace(values=as_drawn(site, found.values))
    if site.plates and batched_distribution(site, leaves) is None:  # the lanes stand in front of the branches
        n = len(site.plates)
        found = Branches(jnp.moveaxis(found.values, n, 0), jnp.moveaxis(found.weights, n, 0))
    return found._replace(values=found.values.astype(site.dtype))


def _constant(values: Branched) -> Branched:
    """Enumerated values, which are the same whatever the parameters are."""
    return Branched(values.array[(0,) * len(values.axes)])


def _enumerated(plan: SitePlan, values: Branched, loops: Sequence[Any]) -> Branched:
    """All values, each along the axis of its branch; elements that branch one by one have axes of their own."""
    if plan.chain is not None and not plan.split:
        return first_as_axis(values, plan.axes[1])
    if not plan.split:
        return first_as_axis(values, plan.axes[0])
    result = Branched(values.array[0])
    for axis, mask in zip(plan.axes, _element_masks(plan, loops, values.shape[1:], plan.indices()), strict=True):
        along = first_as_axis(values, axis)
        axes = union_axes([result.axes, along.axes])
        result = Branched(jnp.where(mask, along.over(axes), result.over(axes)), axes)
    return result


def _element_masks(plan: SitePlan, loops: Sequence[Any], shape: Sequence[int], indices: Sequence[Index]) -> list[Any]:
    """For each element that branches by itself, where it stands in a value of this shape at the current steps of the loops."""
    masks = []
    for index in indices:
        mask = jnp.ones(shape, bool)
        for dim, i in zip(plan.split, index, strict=True):
            if dim < plan.n_loops:
                mask = mask & (loops[dim] == i)
            else:
                mask = mask & (jax.lax.broadcasted_iota(jnp.int32, shape, dim - plan.n_loops) == i)
        masks.append(mask)
    return masks


def _perturbed(plan: SitePlan, values: Branched, loops: Sequence[Any], axis: Axis, chosen: Chosen) -> Branched:
    """The draw in every row of the perturbation but its own ones, where one element after the other takes the other values."""
    n = len(values.axes)
    draw = Branched(values.array[(slice(None),) * n + (0,)], values.axes).spread((axis,))
    alternatives = values.at(axis, 0)
    rest = alternatives.axes
    others = Branched(alternatives.array[(slice(None),) * len(rest) + (slice(1, None),)], rest)
    indices = plan.indices(chosen.get(plan.site_id))
    masks = jnp.stack(_element_masks(plan, loops, values.shape[1:], indices))  # (elements, *value)
    front = jnp.moveaxis(draw.array, draw.axes.index(axis), 0)
    before, block, after = jnp.split(front, [plan.offset, plan.offset + plan.rows])

    def own_rows(drawn: Any, others: Any) -> Any:  # (rows, *value), (count - 1, *value) -> (rows, *value)
        drawn = jnp.reshape(drawn, (len(indices), plan.count - 1, *jnp.shape(drawn)[1:]))
        return jnp.reshape(jnp.where(masks[:, None], others[None], drawn), (plan.rows, *jnp.shape(drawn)[2:]))

    # In the rows of a later element, an earlier one may have changed what this one is drawn from.
    drawn = Branched(jnp.moveaxis(block, 0, len(rest)), rest)
    own = jnp.moveaxis(each_branch(own_rows, [drawn, others]).array, len(rest), 0)
    joined = jnp.concatenate([before, own, after])
    return first_as_axis(Branched(jnp.moveaxis(joined, 0, len(rest)), rest), axis)


def _shared(plan: SitePlan, values: Branched) -> Branched:
    """Branch i along the shared axis, with the parameters of branch i where these have the axis too."""
    (axis,) = plan.axes
    if axis not in values.axes:
        return first_as_axis(values, axis)
    where = values.axes.index(axis)
    rest = tuple(a for a in values.axes if a != axis)
    value = jnp.diagonal(values.array, axis1=where, axis2=len(values.axes))  # the axis is last now
    return first_as_axis(Branched(jnp.moveaxis(value, -1, len(rest)), rest), axis)


def own_branch(plan: SitePlan, weights: Branched) -> Branched:
    """Weights without the axis that the site's own branches are on: its branch i has the weights of where branch i leads."""
    if plan.estimator.coupling in (SINGLE, PRODUCT) or plan.axes[0] not in weights.axes:
        return weights
    (axis,) = plan.axes
    if plan.perturbs:
        return weights.at(axis, 0)
    where, last = weights.axes.index(axis), weights.array.ndim - 1
    return Branched(jnp.diagonal(weights.array, axis1=where, axis2=last), tuple(a for a in weights.axes if a != axis))


def neutral(plan: SitePlan, axes: Sequence[Axis], site_shape: Sequence[int], dtype: Any) -> Branched:
    """The weights of a site that was not reached: they change nothing."""
    if plan.estimator.coupling == SINGLE:
        weights = jnp.zeros((*site_shape, 2) if plan.brings_baseline else tuple(site_shape), dtype)
    elif plan.estimator.coupling == PRODUCT or plan.perturbs:
        weights = jnp.zeros((*site_shape, plan.count), dtype).at[..., 0].set(1.0)
    else:
        weights = jnp.full((*site_shape, plan.count), 1.0 / plan.count, dtype)
    return Branched(weights).spread(axes)


__all__ = ["draw_site", "neutral", "own_branch", "sole_value"]
