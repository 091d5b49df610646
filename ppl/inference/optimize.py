"""`maximize` and `minimize`: stochastic gradient steps on an expectation, in compiled chunks."""

from __future__ import annotations

import dataclasses
import functools
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from ppl import errors
from ppl.inference.fit import Fit
from ppl.transforms.expectation import Expectation
from ppl.transforms.partition import combine, partition


def maximize(objective: Expectation, params: Any, key: Any, *args: Any, **options: Any) -> Fit:
    """Maximize an objective over its first argument by stochastic gradient ascent.

    Args:
        objective: an expectation; called as `objective(params, *args)`.
        params: initial parameters, any pytree. Leaves that are no floating-point arrays stay as they are.
        key: a PRNG key; the run is a pure function of it.
        *args: further arguments of the objective (data), not optimized.
        optimizer: an optax gradient transformation.
        steps: number of steps.
        samples: independent repetitions of the objective averaged at each step.
        chunk: steps run in one compiled call; the bar moves between calls.
        progress: whether to show a progress bar.
        model: the model being fitted, and
        family: the variational family as a function of the parameters, for the fit to remember.

    Returns:
        A `Fit`.

    Raises:
        ObjectiveError: there is nothing to train, or the objective is not finite at a step.

    Example:
        >>> import jax, optax, ppl, ppl.distributions as dist
        >>> @ppl.expectation
        ... def objective(x):
        ...     return -(x - ppl.sample("target", dist.Normal(3.0, 0.1))) ** 2
        >>> fit = ppl.maximize(objective, 0.0, jax.random.key(0), optimizer=optax.sgd(0.1), steps=100, progress=False)
        >>> bool(abs(fit.params - 3.0) < 0.2)
        True
    """
    return _run(objective, params, key, args, sign=-1.0, **options)


def minimize(objective: Expectation, params: Any, key: Any, *args: Any, **options: Any) -> Fit:
    """Minimize an objective over its first argument. Everything else is as in `maximize`."""
    return _run(objective, params, key, args, sign=1.0, **options)


def _run(
    objective: Expectation,
    params: Any,
    key: Any,
    args: tuple[Any, ...],
    *,
    sign: float,
    optimizer: Any,
    steps: int,
    samples: int | None = None,
    chunk: int = 500,
    progress: bool = True,
    model: Any = None,
    family: Any = None,
) -> Fit:
    arrays, rest = partition(params)
    arrays = jax.tree.map(_strong, arrays)
    if not jax.tree.leaves(arrays):
        raise errors.ObjectiveError("the parameters have no floating-point array to optimize")
    if steps < 1 or chunk < 1:
        raise errors.ObjectiveError(f"steps and chunk must be at least 1, got {steps} and {chunk}")
    data, static = _split_arrays(args)
    fixed_arrays, fixed = _split_arrays(rest)
    initial, advance = _compiled(objective, optimizer, sign, samples, min(chunk, steps), (fixed, static))
    state = optimizer.init(arrays)
    averages = initial(arrays, fixed_arrays, data)
    history: list[np.ndarray] = []
    with tqdm(total=steps, disable=not progress, unit="step") as bar:
        for start in range(0, steps, chunk):
            count = min(chunk, steps - start)
            arrays, state, averages, values = advance(arrays, state, averages, key, start, count, fixed_arrays, data)
            history.append(np.asarray(values)[:count])
            bar.update(count)
            bar.set_postfix_str(f"objective {history[-1].mean():.4f}")
            _refuse_non_finite(objective, history[-1], start)
    return Fit(combine(arrays, rest), np.concatenate(history), state, averages, model, family)


def _refuse_non_finite(objective: Expectation, values: np.ndarray, start: int) -> None:
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise errors.ObjectiveError(
            f"the objective {objective.__name__!r} was {values[bad[0]]} at step {start + bad[0]}. "  # type: ignore[attr-defined]
            "Lower the learning rate, or look for a scale that reaches zero or a value that leaves its support."
        )


def _split_arrays(tree: Any) -> tuple[Any, _Static]:
    """Arrays, to be passed to a compiled function, and everything else, to be compiled in."""
    leaves, structure = jax.tree.flatten(tree)
    arrays = [_strong(leaf) if isinstance(leaf, jax.Array | np.ndarray) else None for leaf in leaves]
    rest = tuple(None if array is not None else leaf for array, leaf in zip(arrays, leaves, strict=True))
    return arrays, _Static(structure, rest)


def _strong(leaf: Any) -> Any:
    """An array without JAX's weak type, which would make a second call with equal shapes compile again."""
    return jnp.asarray(leaf, dtype=jnp.result_type(leaf))


@dataclasses.dataclass(frozen=True)
class _Static:
    structure: Any
    leaves: tuple[Any, ...]

    def join(self, arrays: list[Any]) -> Any:
        leaves = [fixed if array is None else array for array, fixed in zip(arrays, self.leaves, strict=True)]
        return jax.tree.unflatten(self.structure, leaves)


_loops: weakref.WeakKeyDictionary[Expectation, dict[Any, Any]] = weakref.WeakKeyDictionary()


def _compiled(objective: Expectation, *settings: Any) -> Any:
    """The compiled loop, kept with its objective so that a second call with the same settings compiles nothing."""
    loops = _loops.setdefault(objective, {})
    try:
        if settings not in loops:
            loops[settings] = _loop(objective, *settings)
        return loops[settings]
    except TypeError:  # a setting that cannot be hashed
        return _loop(objective, *settings)


def _loop(
    objective: Expectation, optimizer: Any, sign: float, samples: int | None, chunk: int, static: tuple[_Static, _Static]
) -> Any:
    fixed, arguments = static
    function = weakref.ref(objective)

    @jax.jit
    def initial(arrays: Any, fixed_arrays: Any, data: Any) -> Any:
        target = function()
        assert target is not None
        return target.init_state(combine(arrays, fixed.join(fixed_arrays)), *arguments.join(data))

    @functools.partial(jax.jit, donate_argnums=(1, 2))
    def advance(arrays: Any, state: Any, averages: Any, key: Any, start: Any, count: Any, fixed_arrays: Any, data: Any) -> Any:
        rest, args = fixed.join(fixed_arrays), arguments.join(data)
        target = function()
        assert target is not None

        def step(i: Any, carry: Any) -> Any:
            arrays, state, averages, values = carry
            step_key = jax.random.fold_in(key, start + i)

            def loss(arrays: Any) -> Any:
                return target.training_loss(step_key, combine(arrays, rest), *args, sign=sign, samples=samples, state=averages)

            grads, (value, averages) = jax.grad(loss, has_aux=True)(arrays)
            updates, state = optimizer.update(grads, state, arrays)
            arrays = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), arrays, updates)
            return arrays, state, averages, values.at[i].set(value)

        values = jnp.zeros(chunk, jnp.result_type(float))
        return jax.lax.fori_loop(0, count, step, (arrays, state, averages, values))

    return initial, advance
