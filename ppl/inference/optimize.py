"""`maximize` and `minimize`: stochastic gradient steps on expectations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ppl import errors
from ppl.inference.fit import Fit
from ppl.inference.problem import make_problem
from ppl.inference.run import run
from ppl.inference.state import State
from ppl.samples import Samples
from ppl.transforms.expectation import Expectation


def maximize(objective: Expectation | Mapping[str, Expectation], params: Any, key: Any, *args: Any, **options: Any) -> Fit:
    """Maximize an objective over its first argument by stochastic gradient ascent.

    Several objectives take turns when they are given by name: each is a function of all parameters, a dict with the same
    names, and trains those under its own name, the others held constant. A step updates them one after the other in the order
    of the mapping, so that each sees what those before it have just done, on the same minibatch. For a saddle point, negate:
    `minimize({"x": f, "y": -f}, ...)`.

    A run is a pure function of its arguments, however it is cut into compiled calls, stopped and resumed. A second call with
    objectives that are the same objects and arguments of the same shapes compiles nothing.

    Args:
        objective: an expectation, called as `objective(params, *args)`; or a mapping from names to several.
        params: initial parameters, any pytree. Leaves that are no floating-point arrays stay as they are.
        key: a PRNG key, from which all randomness comes.
        *args: further arguments of the objective (data), not optimized. One of them may be `ppl.Minibatches` or a `ppl.Stream`:
            the objective is given a batch in its place, a new one at each step.
        optimizer: an optax gradient transformation; or a mapping from the objectives' names to one for each.
        steps: number of steps at which the run ends, counted from its start.
        samples: independent repetitions of the objective averaged at each step, a number or `ppl.Samples`.
        constraints: NumPyro's constraints, in the structure of the parameters, a prefix of it, or dicts with some of its names.
            Optimized is in the unconstrained space of `numpyro.distributions.biject_to`; everything seen is constrained.
        inner_steps: updates of each objective in a step, a number or by name; each draws anew.
        average: whether `fit.params` are the average of the iterates, in the unconstrained space, with weights that grow with
            the third power of the step (Shamir and Zhang 2013, eta = 3). For a constant learning rate: it takes out the noise
            of the last steps, forgets the first half of the run but for 6%, and needs to know neither where the run ends nor
            a rate of decay.
        restore_best: whether `fit.params` are those at the end of the window of steps with the best mean.
        early_stop: whether to stop on a plateau: when in two windows in a row the estimates were no better than in the window
            before by more than noise explains (Mann and Whitney's rank statistic below 2).
        window: steps in a window of these two; with several objectives it is the first one that is watched.
        on_nonfinite: "raise" an error where a value, or a parameter after a step, is not finite; or "skip" the updates whose
            value or gradient is not, and count them in `fit.state.skipped`.
        callback: called between compiled calls with the `Fit` so far; the run stops when it returns True.
        steps_per_call: steps in one compiled call; None for as many as take about a quarter of a second.
        checkpoint: a directory in which to keep the last two states of the run. The same call goes on from there, also in
            a new process, and ends with the same bits; so does a run that a callback has stopped. Needs orbax.
        checkpoint_every: steps between checkpoints; None for about a minute. There is always one at the end.
        state: the `fit.state` of an earlier run, to go on from in place of `params` and `key`.
        progress: whether to show a progress bar, or lines at growing intervals where nobody watches.
        model: the model being fitted, and
        family: the variational family as a function of the parameters, for the fit to remember.

    Returns:
        A `Fit`.

    Whatever ends a run early, Ctrl-C and exceptions of streams and callbacks too, is raised with the run so far as its `fit`
    (in a notebook: `sys.last_value.fit`), which `state=error.fit.state` goes on from.

    Raises:
        NonFiniteError: a value or gradient is not finite. It has the run up to the last good step, and names what is to blame.
        ObjectiveError: there is nothing to train, or objectives, parameters and optimizers do not fit together.
        ConstraintError: the constraints do not fit the parameters, or a parameter starts outside of its constraint.
        DataError: minibatches end or change their shape.
        CheckpointError: the checkpoint is damaged, or another run's; nothing is overwritten.

    Example:
        >>> import jax, optax, ppl, ppl.distributions as dist
        >>> @ppl.expectation
        ... def objective(x):
        ...     return -(x - ppl.sample("target", dist.Normal(3.0, 0.1))) ** 2
        >>> fit = ppl.maximize(objective, 0.0, jax.random.key(0), optimizer=optax.sgd(0.1), steps=100, progress=False)
        >>> bool(abs(fit.params - 3.0) < 0.2)
        True

        Two players of `x * y + x**2 / 2`, whose saddle point is at zero:

        >>> @ppl.expectation
        ... def game(p):
        ...     return p["x"] * p["y"] + 0.5 * p["x"] ** 2 + 0.0 * ppl.sample("noise", dist.Normal(0.0, 1.0))
        >>> fit = ppl.minimize({"x": game, "y": -game}, {"x": 1.0, "y": 1.0}, jax.random.key(0),
        ...                    optimizer=optax.sgd(0.2), steps=200, progress=False)
        >>> [round(abs(float(p)), 2) for p in (fit.params["x"], fit.params["y"])]
        [0.0, 0.0]
    """
    return _run(objective, params, key, *args, sign=-1.0, **options)


def minimize(objective: Expectation | Mapping[str, Expectation], params: Any, key: Any, *args: Any, **options: Any) -> Fit:
    """Minimize an objective over its first argument. Everything else is as in `maximize`."""
    return _run(objective, params, key, *args, sign=1.0, **options)


def _run(
    objective: Expectation | Mapping[str, Expectation],
    params: Any,
    key: Any,
    *args: Any,
    sign: float,
    optimizer: Any,
    steps: int,
    samples: int | Samples | None = None,
    constraints: Any = None,
    inner_steps: int | Mapping[str, int] = 1,
    average: bool = False,
    restore_best: bool = False,
    early_stop: bool = False,
    window: int = 200,
    on_nonfinite: str = "raise",
    callback: Callable[[Fit], Any] | None = None,
    steps_per_call: int | None = None,
    checkpoint: Any = None,
    checkpoint_every: int | None = None,
    state: State | None = None,
    progress: bool = True,
    model: Any = None,
    family: Any = None,
) -> Fit:
    if steps < 1 or window < 2 or any(every is not None and every < 1 for every in (steps_per_call, checkpoint_every)):
        raise errors.ObjectiveError(
            f"steps, steps_per_call and checkpoint_every must be at least 1, and window 2; got {steps}, {steps_per_call}, "
            f"{checkpoint_every} and {window}"
        )
    if on_nonfinite not in ("raise", "skip"):
        raise errors.ObjectiveError(f"on_nonfinite is 'raise' or 'skip', got {on_nonfinite!r}")
    if average and restore_best:
        raise errors.ObjectiveError("average and restore_best are two choices for fit.params: ask for one of them")
    problem = make_problem(
        objective,
        params,
        key,
        args,
        sign=sign,
        optimizer=optimizer,
        samples=samples,
        constraints=constraints,
        inner_steps=inner_steps,
        average=average,
        restore_best=restore_best,
        skip=on_nonfinite == "skip",
        steps_per_call=steps_per_call,
        state=state,
    )

    def fit_of(state: State, stopped: str) -> Fit:
        chosen = state.average if average else state.best["params"] if restore_best else state.params
        if not isinstance(objective, Mapping):
            history, memory, averages = state.history[0], state.optimizer[0], state.estimators[0]
        else:
            named = state.history, state.optimizer, state.estimators
            history, memory, averages = (dict(zip(objective, part, strict=True)) for part in named)
        return Fit(problem.user_params(chosen), history, memory, averages, model, family, state, stopped)

    return run(
        problem,
        fit_of,
        steps=steps,
        window=window if early_stop or restore_best else None,
        early_stop=early_stop,
        callback=callback,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        fixed_calls=steps_per_call is not None,
        progress=progress,
    )


def _signature() -> inspect.Signature:
    whole = inspect.signature(_run)
    return whole.replace(parameters=[p for name, p in whole.parameters.items() if name != "sign"])


maximize.__signature__ = minimize.__signature__ = _signature()  # type: ignore[attr-defined]  # what `help` shows
