"""The compiled loop: any number of steps of stochastic gradient descent in one call."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ppl.inference.constrain import Constraints
from ppl.inference.minibatches import Shuffle
from ppl.inference.state import State
from ppl.samples import Samples
from ppl.transforms.expectation import Expectation
from ppl.transforms.partition import combine
from ppl.transforms.seed import site_keys

CALL_SECONDS = 0.25
"""What a compiled call is to take: long beside what Python does between calls, short for those who watch."""

_AVERAGE = 3
"""The power with which weights of iterates grow in their average."""


@dataclasses.dataclass(frozen=True)
class Static:
    """A pytree's structure and its leaves that are no arrays."""

    structure: Any
    leaves: tuple[Any, ...]

    def join(self, arrays: Sequence[Any]) -> Any:
        leaves = [fixed if array is None else array for array, fixed in zip(arrays, self.leaves, strict=True)]
        return jax.tree.unflatten(self.structure, leaves)


def split_arrays(tree: Any) -> tuple[list[Any], Static]:
    """Arrays, to be passed to a compiled function, and everything else, to be compiled in."""
    leaves, structure = jax.tree.flatten(tree)
    arrays = [strong(leaf) if isinstance(leaf, jax.Array | np.ndarray) else None for leaf in leaves]
    rest = tuple(None if array is not None else leaf for array, leaf in zip(arrays, leaves, strict=True))
    return arrays, Static(structure, rest)


def strong(leaf: Any) -> Any:
    """An array without JAX's weak type, which would make a second call with equal shapes compile again."""
    return jnp.asarray(leaf, dtype=jnp.result_type(leaf))


class Inputs(NamedTuple):
    """What a compiled call is given beside the state: arrays among the parameters that are not trained, arguments, data."""

    fixed: Any
    arguments: Any
    batches: Any


@dataclasses.dataclass(frozen=True)
class Task:
    """Everything static about a run but its objectives and optimizers.

    `groups` are the names of the objectives, each with the number of its updates in a step; `place` is where among the
    arguments minibatches stand, and `shuffle` says how they are drawn from arrays in memory. `capacity` is the largest number
    of steps in a call, `stacked` the number of streamed batches that it is given.
    """

    groups: tuple[tuple[str | None, int], ...]
    sign: float
    samples: int | Samples | None
    average: bool
    skip: bool
    capacity: int
    stacked: int
    constraints: Constraints
    fixed: Static
    arguments: Static
    place: int | None
    shuffle: Shuffle | None

    def own(self, params: Any, name: str | None) -> Any:
        """The parameters that an objective trains."""
        return params if name is None else params[name]

    def with_own(self, params: Any, name: str | None, own: Any) -> Any:
        return own if name is None else {**params, name: own}

    def user_params(self, arrays: Any, fixed: Any) -> Any:
        """What users see of unconstrained arrays."""
        return combine(self.constraints.constrain(arrays), self.fixed.join(fixed))

    def user_args(self, arguments: Any, batch: Any) -> list[Any]:
        args = list(self.arguments.join(arguments))
        return args if self.place is None else [*args[: self.place], batch, *args[self.place :]]

    def some_batch(self, batches: Any) -> Any:
        """The first rows: a batch for those who want to know its shape."""
        rows = 0 if self.shuffle is None else slice(self.shuffle.size)
        return jax.tree.map(lambda array: array[rows], batches)

    def next_batch(self, state: State, batches: Any, offset: Any) -> tuple[Any, Any]:
        """The batch of a step, and the position of the next."""
        if self.place is None:
            return None, state.data
        if self.shuffle is None:
            return jax.tree.map(lambda stacked: stacked[offset], batches), state.data
        return self.shuffle.next(state.data, batches, data_key(state.key))


def data_key(key: Any) -> Any:
    """A key for the order of the data, other than those of the steps."""
    (derived,) = site_keys(key, [(("the order of minibatches",), 0)]).values()
    return derived


def key_at(task: Task, state: State, update: int) -> Any:
    """The key of an update within a step."""
    return jax.random.fold_in(state.key, state.step * sum(n for _, n in task.groups) + update)


class Pace:
    """How many steps a compiled call takes, so that it lasts about a quarter of a second."""

    def __init__(self) -> None:
        self.count, self.unknown = 1, True

    def learn(self, count: int, seconds: float, capacity: int) -> None:
        self.unknown = False
        fitting = int(CALL_SECONDS * count / max(seconds, 1e-9))
        self.count = max(1, min(fitting, 16 * count, capacity))


class Loop(NamedTuple):
    """Compiled functions. `estimators(params, inputs)` starts the baselines. `advance(state, offset, count, inputs)` takes
    `count` steps; it gives the state, the values, how many steps there are up to the first whose value is not finite, and
    whether all numbers are finite. `update` is one update in a step, not compiled."""

    estimators: Any
    advance: Any
    update: Any
    pace: Pace


def make_loop(objectives: Sequence[Expectation], optimizers: Sequence[Any], task: Task) -> Loop:
    references = [weakref.ref(objective) for objective in objectives]
    optimizers = [optax.with_extra_args_support(optimizer) for optimizer in optimizers]

    def targets() -> list[Any]:
        return [reference() for reference in references]

    @jax.jit
    def estimators(params: Any, inputs: Inputs) -> tuple[Any, ...]:
        args = task.user_args(inputs.arguments, task.some_batch(inputs.batches))
        return tuple(target.init_state(task.user_params(params, inputs.fixed), *args) for target in targets())

    def update(index: int, number: Any, state: State, args: Any, fixed: Any) -> tuple[State, Any]:
        """One update of one group."""
        target, optimizer, (name, _) = targets()[index], optimizers[index], task.groups[index]
        key = key_at(task, state, number)

        def loss(own: Any) -> Any:
            params = task.user_params(task.with_own(state.params, name, own), fixed)
            moving = state.estimators[index]
            return target.training_loss(key, params, *args, sign=task.sign, samples=task.samples, state=moving)

        own = task.own(state.params, name)
        (total, (value, estimators)), grads = jax.value_and_grad(loss, has_aux=True)(own)
        more = {"value": total, "grad": grads, "value_fn": lambda own: loss(own)[0]}
        updates, memory = optimizer.update(grads, state.optimizer[index], own, **more)
        new = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), own, updates), memory, estimators
        if task.skip:
            good = jnp.isfinite(value) & all_finite(grads)
            old = own, state.optimizer[index], state.estimators[index]
            new = jax.tree.map(lambda new, old: jnp.where(good, new, old), new, old)
            state = state.replace(skipped=state.skipped + ~good)
        return state.replace(
            params=task.with_own(state.params, name, new[0]),
            optimizer=_put(state.optimizer, index, new[1]),
            estimators=_put(state.estimators, index, new[2]),
        ), value.astype(jnp.result_type(float))

    def step(state: State, offset: Any, inputs: Inputs) -> tuple[State, list[Any]]:
        batch, position = task.next_batch(state, inputs.batches, offset)
        args = task.user_args(inputs.arguments, batch)
        values: list[Any] = []
        number = 0
        for index, (_, times) in enumerate(task.groups):

            def again(i: Any, state: State, index: int = index, number: int = number) -> State:
                return update(index, number + i, state, args, inputs.fixed)[0]

            state = jax.lax.fori_loop(0, times - 1, again, state) if times > 1 else state
            state, value = update(index, number + times - 1, state, args, inputs.fixed)
            values.append(value)
            number += times
        state = state.replace(step=state.step + 1, data=position)
        if task.average:
            weight = (_AVERAGE + 1.0) / (state.step + _AVERAGE)
            average = jax.tree.map(lambda a, p: a + weight.astype(a.dtype) * (p - a), state.average, state.params)
            state = state.replace(average=average)
        return state, values

    @jax.jit
    def advance(state: State, offset: Any, count: Any, inputs: Inputs) -> tuple[State, Any, Any, Any]:
        def body(i: Any, carry: Any) -> Any:
            state, history = carry
            state, values = step(state, offset + i, inputs)
            return state, tuple(h.at[i].set(v) for h, v in zip(history, values, strict=True))

        history = tuple(jnp.zeros(task.capacity, jnp.result_type(float)) for _ in task.groups)
        state, history = jax.lax.fori_loop(0, count, body, (state, history))
        # What is not finite stays so: looking once, at the end, costs a step nothing.
        bad = functools.reduce(jnp.logical_or, [~jnp.isfinite(h) for h in history])
        met = jnp.any(bad) & (not task.skip)
        return state, history, jnp.where(met, jnp.argmax(bad) + 1, count), ~met & all_finite(state.params)

    return Loop(estimators, advance, update, Pace())


def _put(items: tuple[Any, ...], index: int, item: Any) -> tuple[Any, ...]:
    return (*items[:index], item, *items[index + 1 :])


def all_finite(tree: Any) -> Any:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return functools.reduce(jnp.logical_and, [jnp.all(jnp.isfinite(leaf)) for leaf in leaves], jnp.array(True))


_loops: weakref.WeakKeyDictionary[Expectation, dict[Any, Loop]] = weakref.WeakKeyDictionary()


def compiled(objectives: Sequence[Expectation], optimizers: Sequence[Any], params: Any, task: Task) -> Loop:
    """The compiled loop, kept with its objectives so that a second call with the same settings compiles nothing.

    An optimizer is another object each time it is made, so that those that were not seen are compared by the program that
    they compile to, which takes milliseconds.
    """
    first, *others = objectives
    loops = _loops.setdefault(first, {})
    rest = (tuple(map(weakref.ref, others)), task)
    try:
        found = loops.get((tuple(optimizers), *rest))
    except TypeError:  # something that cannot be hashed
        return make_loop(objectives, optimizers, task)
    if found is None:
        owns = [task.own(params, name) for name, _ in task.groups]
        programs = tuple(optimizer_program(o, own) for o, own in zip(optimizers, owns, strict=True))
        found = loops.get((programs, *rest)) or make_loop(objectives, optimizers, task)
        if (programs, *rest) not in loops:
            loops[programs, *rest] = loops[(tuple(optimizers), *rest)] = found
    return found


def optimizer_program(optimizer: Any, own: Any) -> Any:
    """The program of one update, or something that equals nothing else where it cannot be had outside of the loop."""

    def update(grads: Any, memory: Any, params: Any) -> Any:
        def value(params: Any) -> Any:
            return optax.tree.norm(params)

        full = optax.with_extra_args_support(optimizer)
        return full.update(grads, memory, params, value=value(params), grad=grads, value_fn=value)

    try:
        return jax.jit(update).lower(own, optimizer.init(own), own).as_text()
    except Exception:  # a state or a value that only the loop has
        return object()
