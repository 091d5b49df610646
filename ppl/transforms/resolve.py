"""From the terms of an objective, in all their branches, and the weights of its sites to one estimate.

The weights of a site multiply the terms, and the elements of terms, that depend on it. Sums over branches are taken axis by
axis, which is variable elimination: a chain of enumerated sites costs the sum of its links and not their product.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ppl import errors
from ppl.estimators.first_order import first_order
from ppl.estimators.protocol import PRODUCT, SINGLE
from ppl.transforms.branches import (
    Axis,
    Branched,
    add,
    branches,
    last_as_axis,
    multiply,
    rename,
    sum_over,
    union_axes,
)
from ppl.transforms.influence import NOW, At, Place
from ppl.transforms.interpret import SiteId
from ppl.transforms.plan import LIMIT, Chosen, Index, Plan, SitePlan

Weights = Mapping[SiteId, Branched]


class Resolver:
    """Estimates of terms. What several terms need, they share."""

    def __init__(self, plan: Plan, weights: Weights, chosen: Chosen):
        self.plan, self.weights = plan, weights
        self.elimination = SumProduct()
        self.priors = chain_priors(plan, weights)
        self._rows = functools.partial(_rows, chosen)
        self._kept: dict[Any, Any] = {}

    def estimates(self, values: Mapping[int, Branched]) -> dict[int, Any]:
        """Every term, estimated: the surrogate is the linear tail of these."""
        return {number: self._estimate(number, values[number]) for number in self.plan.terms.numbers}

    def reach(self, site_id: SiteId, log_weight: Branched) -> Branched | None:
        """How much weight each branch in which a site stands has, by element; None where there is one branch."""
        if not log_weight.axes:
            return None
        influences = self.plan.parents[site_id]
        places = {key.site: place for key, place in influences.items() if not key.direct and key.site in self.weights}
        factors = self._factors(places, log_weight.array.ndim - len(log_weight.axes))
        summed = [axis for axis in union_axes(factor.axes for factor in factors) if axis not in log_weight.axes]
        return self.elimination.sum_over(factors, summed)

    def _estimate(self, number: int, term: Branched) -> Any:
        influences = self.plan.steps.influences[number]
        places = {key.site: place for key, place in influences.items() if not key.direct and key.site in self.weights}
        ndim = len(term.shape)
        factors = self._factors(places, ndim)
        scored = [site_id for site_id in self.plan.sites if site_id in places and self._coupling(site_id) == SINGLE]
        if scored:
            term = multiply([term, self._score([(site_id, places[site_id]) for site_id in scored], ndim)])
        result = self.elimination.sum_of_products([*factors, term])
        array = result.array if result.shape == term.shape else jnp.broadcast_to(result.array, term.shape)
        floating = jnp.issubdtype(term.array.dtype, jnp.floating)
        return array.astype(term.array.dtype) if floating else array.astype(jnp.result_type(float))

    def _coupling(self, site_id: SiteId) -> str:
        return self.plan.sites[site_id].estimator.coupling

    def _keep(self, key: Any, make: Any) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def _score(self, scored: Sequence[tuple[SiteId, Place]], ndim: int) -> Branched:
        """The product of log weights' exponentials. Terms of a sequential program share all but the last of their sites."""
        total: Branched | None = None
        upto: Any = ndim
        for site_id, place in scored:
            upto = self._keep(("upto", id(upto), site_id, place), lambda upto=upto: (upto,))
            log_weight = self._keep(
                ("log", site_id, place, ndim), functools.partial(placed, self.weights[site_id], place, ndim)
            )
            parts = [log_weight] if total is None else [total, log_weight]
            total = self._keep(("sum", id(upto)), functools.partial(add, parts))
        assert total is not None
        return self._keep(("score", id(upto)), lambda: Branched(jnp.exp(total.array), total.axes))

    def _factors(self, places: Mapping[SiteId, Place], ndim: int) -> list[Branched]:
        factors: list[Branched] = []
        shared: dict[Axis, list[tuple[SitePlan, Place]]] = {}
        for site_id, place in places.items():
            plan, weights = self.plan.sites[site_id], self.weights[site_id]
            if plan.estimator.coupling == SINGLE:
                continue
            if plan.estimator.coupling != PRODUCT:
                shared.setdefault(plan.axes[0], []).append((plan, place))
            elif plan.chain is not None:
                factors += self._chain(plan, place, ndim)
            else:
                kept = ("values", site_id, place, ndim)
                factors += self._keep(kept, functools.partial(_enumerated, plan, weights, place, ndim))
        for axis, group in shared.items():
            combine = self._rows if axis == self.plan.perturbation else _joint
            key = (axis, tuple((plan.site_id, place) for plan, place in group), ndim)
            factors.append(self._keep(key, functools.partial(combine, axis, group, self.weights, ndim)))
        return list({id(factor): factor for factor in factors}.values())

    def _chain(self, plan: SitePlan, place: Place, ndim: int) -> list[Branched]:
        """Where the last step's value comes from, and the step from there."""
        here = tuple(None if at is None else at._replace(lags=NOW) for at in place)
        prior, weights = self.priors[plan.site_id], self.weights[plan.site_id]
        return [
            self._keep(("prior", id(prior), here, ndim), lambda: placed(prior, here, ndim)),
            self._keep(
                ("link", plan.site_id, here, ndim),
                lambda: last_as_axis(placed(weights, here, ndim, trailing=1), plan.axes[1]),
            ),
        ]


def _enumerated(plan: SitePlan, weights: Branched, place: Place, ndim: int) -> list[Branched]:
    """The probabilities of an enumerated site, for each element that has an axis of its own."""
    if not plan.split:
        (axis,) = plan.axes  # in a loop of one step, what is carried to the next one has the axis, and is never read
        return [last_as_axis(placed(weights.at(axis, 0), place, ndim, trailing=1), axis)]
    rest = tuple(at for dim, at in enumerate(place) if dim not in plan.split)
    return [
        last_as_axis(placed(_element(weights.at(axis, 0), plan, index), rest, ndim, trailing=1), axis)
        for axis, index in zip(plan.axes, plan.indices(), strict=True)
    ]


def _element(weights: Branched, plan: SitePlan, index: Index) -> Branched:
    """The weights of one of the elements that branch one by one."""
    n, array = len(weights.axes), weights.array
    for dim, i in sorted(zip(plan.split, index, strict=True), reverse=True, key=lambda at: at[0]):
        array = jax.lax.dynamic_index_in_dim(array, i, n + dim, keepdims=False)
    return Branched(array, weights.axes)


def _gradient(weights: Branched, plan: SitePlan) -> Branched:
    """Value zero, gradient that of the weights.

    Where several elements branch, their derivatives are added, which is right for the first ones alone.
    """
    what = f"{type(plan.estimator).__name__} at {plan.site.name!r}"
    once = first_order(weights.array, what, str(plan.site.where))
    return Branched(once - jax.lax.stop_gradient(once), weights.axes)


def _joint(axis: Axis, group: Sequence[tuple[SitePlan, Place]], weights: Weights, ndim: int) -> Branched:
    """Weights of branches that several elements and sites share: their values are constants, their gradients add."""
    arrays = [weights[plan.site_id].array for plan, _ in group]
    held = next((array for array in arrays if array.size), None)  # without elements, any shares of a constant will do
    shares = jnp.full(axis.size, 1.0 / axis.size) if held is None else held[(0,) * (held.ndim - 1)]
    base = Branched(jnp.reshape(jax.lax.stop_gradient(shares), (1,) * ndim + (axis.size,)))
    parts = []
    for plan, place in group:
        gradient = placed(_gradient(weights[plan.site_id], plan), place, ndim, trailing=1)
        if getattr(plan.estimator, "leave_one_out", False):
            others = (jnp.sum(gradient.array, axis=-1, keepdims=True) - gradient.array) / (axis.size - 1)
            gradient = Branched(gradient.array - others, gradient.axes)
        parts.append(gradient)
    return last_as_axis(add([base, *parts]), axis)


def _rows(chosen: Chosen, axis: Axis, group: Sequence[tuple[SitePlan, Place]], weights: Weights, ndim: int) -> Branched:
    """Weights of the rows of the perturbation: row 0 is the draw, each other one has another value for some elements."""
    parts = [Branched(jnp.reshape(jnp.zeros(axis.size).at[0].set(1.0), (1,) * ndim + (axis.size,)))]
    for plan, place in group:
        gradient = _gradient(weights[plan.site_id], plan)
        if plan.one_element:
            gradient = Branched(plan.elements * gradient.array, gradient.axes)
        rows, first = [], []
        for index in plan.indices(chosen.get(plan.site_id)):
            rest = tuple(at for dim, at in enumerate(place) if dim not in plan.split)
            part = placed(_element(gradient, plan, index), rest, ndim, trailing=1)
            for dim, i in zip(plan.split, index, strict=True):
                part = _only(part, place[dim], i, plan.shape[dim], ndim)
            n = part.array.ndim - 1
            first.append(Branched(part.array[(slice(None),) * n + (slice(0, 1),)], part.axes))
            rows.append(Branched(part.array[(slice(None),) * n + (slice(1, None),)], part.axes))
        parts.append(_at_rows(add(first), axis, 0))
        block = [r.spread(union_axes(r.axes for r in rows)) for r in rows]
        shape = jnp.broadcast_shapes(*(b.array.shape for b in block))
        joined = jnp.concatenate([jnp.broadcast_to(b.array, shape) for b in block], axis=-1)
        parts.append(_at_rows(Branched(joined, block[0].axes), axis, plan.offset))
    return last_as_axis(add(parts), axis)


def _only(part: Branched, at: At | None, index: Any, size: int, ndim: int) -> Branched:
    """Zero for the elements of a term that the element `index` of a site does not reach."""
    if at is None:
        return part
    steps = jnp.arange(size)
    reached = steps == index if at.lags == NOW else (steps <= index if at.reverse else steps >= index)
    mask = jnp.reshape(reached, [size if dim == at.index else 1 for dim in range(ndim)] + [1])
    return Branched(jnp.where(mask, part.array, 0.0), part.axes)


def _at_rows(value: Branched, axis: Axis, offset: int) -> Branched:
    """The last dimension at some rows of an axis, and zeros elsewhere."""
    after = axis.size - offset - value.array.shape[-1]
    pad = [(0, 0)] * (value.array.ndim - 1) + [(offset, after)]
    return Branched(jnp.pad(value.array, pad), value.axes)


def placed(value: Branched, place: Place, ndim: int, trailing: int = 0) -> Branched:
    """Weights by element, in the dimensions of a term: summed where elements are mixed, cumulated where they lag."""
    array, n = value.array, len(value.axes)
    for dim, at in enumerate(place):
        if at is not None and at.lags != NOW:
            array = jax.lax.cumsum(array, axis=n + dim, reverse=at.reverse)
    lost = tuple(n + dim for dim, at in enumerate(place) if at is None)
    array = jnp.sum(array, axis=lost) if lost else array
    targets = [at.index for at in place if at is not None]
    while len(set(targets)) < len(targets):  # two dimensions of the site along one of the term
        second = next(i for i, target in enumerate(targets) if target in targets[:i])
        first = targets.index(targets[second])
        array = jnp.moveaxis(jnp.diagonal(array, axis1=n + first, axis2=n + second), -1, n + first)
        del targets[second]
    order = sorted(range(len(targets)), key=targets.__getitem__)
    last = range(n + len(targets), n + len(targets) + trailing)
    if order != sorted(order):
        array = jnp.transpose(array, [*range(n), *(n + i for i in order), *last])
    sizes = dict(zip(sorted(targets), array.shape[n:], strict=False))
    shape = [*array.shape[:n], *(sizes.get(dim, 1) for dim in range(ndim)), *array.shape[array.ndim - trailing :]]
    return Branched(array if list(array.shape) == shape else jnp.reshape(array, shape), value.axes)


class SumProduct:
    """Sums over axes, one after the other; sums that several terms need are taken once."""

    def __init__(self) -> None:
        self._sums: dict[Any, tuple[list[Branched], Branched]] = {}

    def sum_of_products(self, factors: Sequence[Branched]) -> Branched:
        """The product of the factors, summed over all their axes."""
        return self.sum_over(factors, union_axes(factor.axes for factor in factors))

    def sum_over(self, factors: Sequence[Branched], axes: Sequence[Axis]) -> Branched:
        factors = list(factors)
        for axis in axes:
            group = [factor for factor in factors if axis in factor.axes]
            factors = [factor for factor in factors if axis not in factor.axes]
            key = (axis, *map(id, group))
            if key not in self._sums:
                if branches(union_axes(factor.axes for factor in group)) > 16 * LIMIT:
                    raise errors.EstimatorError("enumerated sites are coupled by too many others to be summed out")
                self._sums[key] = (group, sum_over(multiply(group), axis))
            factors.append(self._sums[key][1])
        return multiply(factors)


def chain_priors(plan: Plan, weights: Weights) -> dict[SiteId, Branched]:
    """For each site that is eliminated along a loop, the probabilities of the last step's value, at every step."""
    groups: list[list[SitePlan]] = []
    for chain in plan.sites.values():
        if chain.chain is None or chain.site_id not in weights:
            continue
        linked = [group for group in groups if any(_linked(chain, other, weights) for other in group)]
        groups = [group for group in groups if group not in linked] + [[*(p for group in linked for p in group), chain]]
    priors: dict[SiteId, Branched] = {}
    for group in groups:
        prior = _forward(group, weights)
        priors.update({p.site_id: prior for p in group})
    return priors


def _linked(one: SitePlan, other: SitePlan, weights: Weights) -> bool:
    return bool(set(one.axes) & set(weights[other.site_id].axes) or set(other.axes) & set(weights[one.site_id].axes))


def _forward(group: Sequence[SitePlan], weights: Weights) -> Branched:
    """The forward recursion of a hidden Markov model, for all sites of a group together."""
    first = group[0]
    assert first.chain is not None
    chain: int = first.chain
    before = [p.axes[0] for p in group]
    own = {axis for p in group for axis in p.axes}
    outside = [axis for axis in union_axes(weights[p.site_id].axes for p in group) if axis not in own]
    rest = tuple(size for dim, size in enumerate(first.shape) if dim != chain)
    start = Branched(jnp.full(rest, 1.0 / branches(before), jnp.result_type(float))).spread([*before, *outside])
    links = [weights[p.site_id] for p in group]
    xs = [Branched(jnp.moveaxis(w.array, len(w.axes) + chain, 0), w.axes) for w in links]

    def step(prior: Branched, links: Sequence[Branched]) -> tuple[Branched, Branched]:
        factors = [last_as_axis(link, p.axes[1]) for link, p in zip(links, group, strict=True)]
        posterior = SumProduct().sum_over([prior, *factors], union_axes([before]))
        for p in group:
            posterior = rename(posterior, p.axes[1], p.axes[0])
        return posterior.spread(start.axes), prior

    _, stacked = jax.lax.scan(step, start, xs, reverse=first.reverse)
    return Branched(jnp.moveaxis(stacked.array, 0, len(stacked.axes) + chain), stacked.axes)


__all__ = ["Resolver", "SumProduct", "Weights", "placed"]
