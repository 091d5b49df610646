"""Values that exist in several branches at once, each branch along an axis of its own."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Axis(NamedTuple):
    """What a branch stands for. Axes are ordered as their fields are, and stand in this order in front of an array.

    `position` is that of the site in the program, `part` tells the axes of one site apart.
    """

    position: int
    part: int
    size: int


@functools.partial(jax.tree_util.register_dataclass, data_fields=["array"], meta_fields=["axes"])
class Branched:
    """An array with the axes of its branches in front; values that do not depend on a branch lack its axis."""

    def __init__(self, array: Any, axes: tuple[Axis, ...] = ()):
        self.array = array
        self.axes = axes

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in one branch."""
        return tuple(jnp.shape(self.array)[len(self.axes) :])

    def over(self, axes: Sequence[Axis]) -> Any:
        """The array with exactly these axes in front; those it lacks have size one."""
        if tuple(axes) == self.axes:
            return self.array
        shape = jnp.shape(self.array)
        sizes = iter(shape[: len(self.axes)])
        return jnp.reshape(self.array, tuple(next(sizes) if a in self.axes else 1 for a in axes) + shape[len(self.axes) :])

    def spread(self, axes: Sequence[Axis]) -> Branched:
        """The same value with all of these axes."""
        union = union_axes([self.axes, axes])
        if union == self.axes:
            return self
        array = jnp.broadcast_to(self.over(union), tuple(a.size for a in union) + self.shape)
        return Branched(array, union)

    def at(self, axis: Axis, index: int) -> Branched:
        """One branch of an axis."""
        if axis not in self.axes:
            return self
        where = self.axes.index(axis)
        array = jax.lax.index_in_dim(self.array, index, where, keepdims=False)
        return Branched(array, tuple(a for a in self.axes if a != axis))


def union_axes(axes: Iterable[Sequence[Axis]]) -> tuple[Axis, ...]:
    return tuple(sorted({axis for each in axes for axis in each}))


def branches(axes: Sequence[Axis]) -> int:
    return math.prod(axis.size for axis in axes)


def each_branch(function: Callable[..., Any], values: Sequence[Branched]) -> Any:
    """`function` of the arrays in each branch of their axes; its results, a pytree of arrays, as branched values."""
    axes = union_axes(value.axes for value in values)
    for axis in reversed(axes):
        in_axes = tuple(0 if axis in value.axes else None for value in values)
        function = jax.vmap(function, in_axes=in_axes, axis_size=axis.size)
    return jax.tree.map(lambda array: Branched(array, axes), function(*(value.array for value in values)))


def first_as_axis(value: Branched, axis: Axis) -> Branched:
    """The value whose first dimension in one branch becomes a new axis."""
    axes = union_axes([value.axes, (axis,)])
    return Branched(jnp.moveaxis(value.array, len(value.axes), axes.index(axis)), axes)


def last_as_axis(value: Branched, axis: Axis) -> Branched:
    """The value whose last dimension becomes a new axis."""
    return first_as_axis(Branched(jnp.moveaxis(value.array, -1, len(value.axes)), value.axes), axis)


def rename(value: Branched, old: Axis, new: Axis) -> Branched:
    """The value with another name for an axis."""
    if old not in value.axes:
        return value
    where = value.axes.index(old)
    rest = tuple(axis for axis in value.axes if axis != old)
    return first_as_axis(Branched(jnp.moveaxis(value.array, where, len(rest)), rest), new)


def multiply(factors: Sequence[Branched]) -> Branched:
    """The product in each branch; the shapes in one branch broadcast."""
    axes = union_axes(factor.axes for factor in factors)
    return Branched(functools.reduce(jnp.multiply, [_padded(factor, axes, factors) for factor in factors]), axes)


def add(terms: Sequence[Branched]) -> Branched:
    axes = union_axes(term.axes for term in terms)
    return Branched(functools.reduce(jnp.add, [_padded(term, axes, terms) for term in terms]), axes)


def _padded(value: Branched, axes: Sequence[Axis], others: Sequence[Branched]) -> Any:
    """The array with these axes and as many dimensions behind them as any of the others has."""
    ndim = max(len(other.shape) for other in others)
    array = value.over(axes)
    lead, own = jnp.shape(array)[: len(axes)], value.shape
    if len(own) == ndim:
        return array
    return jnp.reshape(array, lead + (1,) * (ndim - len(own)) + own)


def sum_over(value: Branched, axis: Axis) -> Branched:
    where = value.axes.index(axis)
    return Branched(jnp.sum(value.array, axis=where), tuple(a for a in value.axes if a != axis))


def first_as_last(value: Branched) -> Branched:
    """The value with its first dimension in one branch moved behind the others."""
    return Branched(jnp.moveaxis(value.array, len(value.axes), -1), value.axes)
