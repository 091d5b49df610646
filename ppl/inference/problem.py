"""`Problem`: the arguments of `maximize`, checked and taken apart into what is compiled in and what flows through."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import errors
from ppl.inference.checkpoint import shapes
from ppl.inference.constrain import Constraints
from ppl.inference.minibatches import Minibatches, Reader, Shuffle, Stream
from ppl.inference.state import State
from ppl.inference.step import Inputs, Loop, Task, compiled, split_arrays, strong
from ppl.samples import Samples
from ppl.transforms.expectation import Expectation
from ppl.transforms.partition import partition

CAPACITY = 4096
"""Steps in one compiled call at most, unless the user asks for more."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """Objectives by group, and all that a run needs to take steps: `state` is where it begins."""

    objectives: tuple[Expectation, ...]
    optimizers: tuple[Any, ...]
    task: Task
    loop: Loop
    state: State
    inputs: Inputs
    reader: Reader | None

    def user_params(self, arrays: Any) -> Any:
        """What users see of unconstrained arrays, in the dtypes of the parameters."""
        arrays = jax.tree.map(lambda a, p: jnp.asarray(a).astype(p.dtype), arrays, self.state.params)
        return self.task.user_params(arrays, self.inputs.fixed)

    def take(self, count: int) -> tuple[Inputs, list[Any]]:
        """The inputs of the next steps, and the data's position after each where they are streamed."""
        if self.reader is None:
            return self.inputs, []
        batches, positions = self.reader.take(count, self.task.stacked)
        return self.inputs._replace(batches=batches), positions

    def describe(self) -> dict[str, Any]:
        """What a checkpoint must agree on; what its numbers are is for `replays`."""
        task, state, samples = self.task, self.state, self.task.samples
        return {
            "groups": [list(group) for group in task.groups],
            "direction": "minimize" if task.sign > 0 else "maximize",
            "samples": [samples.number, samples.chunk] if isinstance(samples, Samples) else samples,
            "constraints": repr(task.constraints),
            "data": shapes(task.user_args(self.inputs.arguments, task.some_batch(self.inputs.batches))),
            "shuffle": repr(task.shuffle),
            "state": shapes(state.replace(history=())),
            "key": np.asarray(_key_data(state.key)).tolist(),
            "on_nonfinite": "skip" if task.skip else "raise",
        }

    def replays(self, state: State) -> bool:
        """Whether a state can come from this run: whether the first eight steps give the estimates in its history.

        They depend on the objective, the data, the start and the optimizer. Other machines round in other
        ways, so they are compared up to the root of the precision of the parameters.
        """
        start = int(self.state.step)
        if (count := min(8, int(state.step) - start)) < 1:
            return True
        inputs, positions = self.take(count)
        count = len(positions) if self.reader is not None else count
        carry = self.state.replace(best=(), history=())
        _, found, _, _ = self.loop.advance(carry, np.int32(0), np.int32(count), inputs)
        tolerance = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(self.state.params)) ** 0.5
        for one, history in zip(found, state.history, strict=True):
            spread = float(np.nanstd(history))
            past = history[start : start + count]
            if not np.allclose(np.asarray(one)[:count], past, rtol=tolerance, atol=tolerance * spread, equal_nan=True):
                return False
        return True


def make_problem(
    objective: Any,
    params: Any,
    key: Any,
    args: Sequence[Any],
    *,
    sign: float,
    optimizer: Any,
    samples: int | Samples | None,
    constraints: Any,
    inner_steps: Any,
    average: bool,
    restore_best: bool,
    skip: bool,
    steps_per_call: int | None,
    state: State | None,
) -> Problem:
    names, objectives = _groups(objective, params)
    optimizers = _by_group(optimizer, names, "optimizer")
    inner = _by_group(inner_steps, names, "inner_steps")
    if any(not isinstance(n, int) or n < 1 for n in inner):
        raise errors.ObjectiveError(f"inner_steps must be at least 1, got {inner_steps}")
    arrays, rest = partition(params)
    arrays = jax.tree.map(strong, arrays)
    _check_trained(names, arrays)
    constrained = Constraints(constraints, arrays)
    fixed_arrays, fixed = split_arrays(rest)
    place, source, others = _source(args)
    data, arguments = split_arrays(others)
    unconstrained = constrained.unconstrain(arrays) if state is None else state.params
    reader = batches = shuffle = None
    position = () if source is None else source.start() if state is None else state.data
    capacity = CAPACITY if steps_per_call is None else steps_per_call
    stacked = 0
    if isinstance(source, Minibatches):
        batches, shuffle = jax.tree.map(jnp.asarray, source.arrays), Shuffle(source.rows, source.size)
    elif isinstance(source, Stream):
        reader = Reader(source, position)
        stacked = capacity if steps_per_call is not None else min(capacity, reader.most)
        batches = jax.tree.map(lambda leaf: leaf[None], reader.first)
    groups = tuple(zip(names, inner, strict=True))
    task = Task(groups, sign, samples, average, skip, capacity, stacked, constrained, fixed, arguments, place, shuffle)
    loop = compiled(objectives, optimizers, unconstrained, task)
    inputs = Inputs(fixed_arrays, data, batches)
    fresh = State(
        step=jnp.int32(0),
        key=key,
        params=unconstrained,
        optimizer=tuple(o.init(task.own(unconstrained, name)) for o, name in zip(optimizers, names, strict=True)),
        estimators=loop.estimators(unconstrained, inputs),
        data=jax.tree.map(jnp.asarray, position),
        average=jax.tree.map(_at_least_single, unconstrained) if average else (),
        best={"mean": np.float64(-sign * -np.inf), "params": unconstrained} if restore_best else (),
        skipped=jnp.int32(0),
        history=tuple(np.zeros(0, jnp.result_type(float)) for _ in names),
    )
    if state is not None:
        _check_state(state, fresh)
    return Problem(objectives, optimizers, task, loop, fresh if state is None else state, inputs, reader)


def _groups(objective: Any, params: Any) -> tuple[tuple[str | None, ...], tuple[Expectation, ...]]:
    if not isinstance(objective, Mapping):
        objective = {None: objective}
    elif not isinstance(params, dict) or set(objective) != set(params):
        found = sorted(map(repr, params)) if isinstance(params, dict) else f"a {type(params).__name__}"
        raise errors.ObjectiveError(
            f"several objectives train parameters by name: the objectives are for {sorted(map(repr, objective))}, the "
            f"parameters are {found}. What no objective trains is an argument."
        )
    for name, target in objective.items():
        if not isinstance(target, Expectation):
            raise errors.ObjectiveError(
                f"the objective{'' if name is None else f' of {name!r}'} is a {type(target).__name__} and no expectation. "
                "Decorate it with @ppl.expectation."
            )
    return tuple(objective), tuple(objective.values())


def _by_group(setting: Any, names: Sequence[str | None], what: str) -> tuple[Any, ...]:
    if not isinstance(setting, Mapping):
        return (setting,) * len(names)
    if set(setting) != set(names):
        raise errors.ObjectiveError(f"{what} is given for {sorted(map(repr, setting))}, and the objectives are {list(names)}")
    return tuple(setting[name] for name in names)


def _check_trained(names: Sequence[str | None], arrays: Any) -> None:
    for name in names:
        if not jax.tree.leaves(arrays if name is None else arrays[name]):
            whose = "the parameters have" if name is None else f"params[{name!r}] has"
            raise errors.ObjectiveError(f"{whose} no floating-point array to optimize")


def _source(args: Sequence[Any]) -> tuple[int | None, Any, list[Any]]:
    """Where among the arguments minibatches stand, what they are, and the other arguments."""
    places = [i for i, arg in enumerate(args) if isinstance(arg, Minibatches | Stream)]
    if len(places) > 1:
        raise errors.DataError("only one argument can be minibatches: put what belongs together into one pytree")
    if not places:
        return None, None, list(args)
    return places[0], args[places[0]], [arg for i, arg in enumerate(args) if i != places[0]]


def _at_least_single(array: Any) -> Any:
    """Averages of half precision need more of it."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _key_data(key: Any) -> Any:
    return jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key


def _check_state(state: Any, fresh: State) -> None:
    if not isinstance(state, State):
        raise errors.ObjectiveError(f"state is the `state` of a fit, got a {type(state).__name__}")
    one, other = (shapes(s.replace(history=(), key=())) for s in (state, fresh))
    differing = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    if differing:
        name = differing[0]
        raise errors.ObjectiveError(
            f"the state is of another run: its {name} is {one.get(name)}, and this run's is {other.get(name)}"
        )


__all__ = ["CAPACITY", "Problem", "make_problem"]
