"""`run`: compiled calls one after the other, and what happens between them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ppl import errors
from ppl.inference.checkpoint import Checkpoints
from ppl.inference.fit import Fit
from ppl.inference.nonfinite import diagnose
from ppl.inference.plateau import on_plateau
from ppl.inference.problem import Problem
from ppl.inference.progress import progress_bar
from ppl.inference.state import State

CHECKPOINT_SECONDS = 60.0


def run(
    problem: Problem,
    fit_of: Callable[[State, str], Fit],
    *,
    steps: int,
    window: int | None,
    early_stop: bool,
    callback: Callable[[Fit], Any] | None,
    checkpoint: Any,
    checkpoint_every: int | None,
    fixed_calls: bool,
    progress: bool,
) -> Fit:
    """Take a problem to its last step, or to where it stops.

    A state is replaced as a whole, so that whatever interrupts a run finds a whole one. Where several processes share the
    arrays, the first one's clock decides for all of them: each must make the same calls.

    Args:
        fit_of: what to make of a state, and of why the run stopped there.
        window: steps between looks at the history; None for none.
        fixed_calls: whether calls always have the capacity of the loop, and not what a quarter of a second takes.
    """
    task, loop, state = problem.task, problem.loop, problem.state
    checkpoints = None if checkpoint is None else Checkpoints(checkpoint, problem.describe())
    if checkpoints is not None:
        state = checkpoints.latest(state) or state
        if not problem.replays(state):
            checkpoints.refuse(int(state.step))
        if problem.reader is not None:
            problem.reader.seek(state.data)
    if (done := int(state.step)) > steps:
        raise errors.ObjectiveError(
            f"the run has taken {done} steps already, and steps={steps}: it is counted from the run's start"
        )
    histories = [np.zeros(steps, h.dtype) for h in state.history]
    for whole, before in zip(histories, state.history, strict=True):
        whole[:done] = before
    names = ["objective" if name is None else name for name, _ in task.groups]
    saved = time.monotonic()
    reason = "steps"
    try:
        with progress_bar(progress, steps, done) as show:
            while done < steps:
                if early_stop and window and on_plateau(histories[0][:done], window, task.sign):
                    reason = "plateau"
                    break
                until = [every - done % every for every in (window, checkpoint_every) if every]
                most = task.capacity if fixed_calls else loop.pace.count
                count = min(most, task.stacked or most, steps - done, *until)
                inputs, positions = problem.take(count)
                count = len(positions) or count  # fewer where a stream is about to end
                carry = state.replace(best=(), history=())
                if loop.pace.unknown:
                    loop.advance(carry, np.int32(0), np.int32(0), inputs)  # compiles
                begun = time.perf_counter()
                after, values, taken, good = loop.advance(carry, np.int32(0), np.int32(count), inputs)
                if not good:
                    failed, carry, values = _first_bad(loop, carry, int(taken), inputs)
                    state = _next(problem, state, carry, histories, values, failed, positions, None)
                    raise _error(problem, fit_of, state, failed, inputs)
                loop.pace.learn(count, _agreed(time.perf_counter() - begun, good), task.capacity)
                state = _next(problem, state, after, histories, values, count, positions, window)
                done = int(state.step)
                recent = slice(max(0, done - max(count, 100)), done)
                show(done, {n: h[recent] for n, h in zip(names, histories, strict=True)}, int(state.skipped))
                if callback is not None and callback(fit_of(state, "callback")):
                    reason = "callback"
                    break
                if checkpoints is not None and (
                    done % checkpoint_every == 0
                    if checkpoint_every
                    else _agreed(time.monotonic() - saved, good) > CHECKPOINT_SECONDS
                ):
                    checkpoints.save(state)
                    saved = time.monotonic()
    except BaseException as error:
        _hand_over(error, lambda: fit_of(state, "interrupted"))
        raise
    finally:
        if checkpoints is not None:
            checkpoints.save(state)
            checkpoints.close()
    return fit_of(state, reason)


def _agreed(seconds: float, result: Any) -> float:
    """A time as the first of the processes that share a result has measured it."""
    if result.is_fully_addressable:
        return seconds
    from jax.experimental import multihost_utils

    return float(multihost_utils.broadcast_one_to_all(np.float32(seconds)))


def _hand_over(error: BaseException, fit: Callable[[], Fit]) -> None:
    """Give an exception the run so far as its `fit`: nothing is lost where a stream ends, a callback fails or a user stops."""
    with contextlib.suppress(Exception):  # what happened is told in any case
        if not hasattr(error, "fit"):
            error.fit = fit()  # type: ignore[attr-defined]
            error.add_note(
                f"The run up to step {len(error.fit._watched)} is this exception's `fit`; interactively, sys.last_value.fit."  # type: ignore[attr-defined]
            )


def _next(
    problem: Problem, state: State, after: State, histories: Any, values: Any, count: int, positions: Any, window: int | None
) -> State:
    """The state after `count` more steps."""
    done = int(state.step)
    for history, new in zip(histories, values, strict=True):
        history[done : done + count] = np.asarray(new)[:count]
    done += count
    best = state.best
    if best and window and done % window == 0:
        recent = histories[0][done - window : done].astype(float)
        mean = np.mean(recent[np.isfinite(recent)]) if np.isfinite(recent).any() else best["mean"]
        if problem.task.sign * mean < problem.task.sign * best["mean"]:
            best = {"mean": np.float64(mean), "params": after.params}
    data = positions[count - 1] if positions and count else after.data
    return after.replace(best=best, data=data, history=tuple(history[:done] for history in histories))


def _first_bad(loop: Any, carry: State, taken: int, inputs: Any) -> tuple[int, State, list[Any]]:
    """How many steps are good, the state after them, and their values: the same program again, step by step."""
    kept: list[Any] = []
    for i in range(taken):
        after, values, _, good = loop.advance(carry, np.int32(i), np.int32(1), inputs)
        if not good:
            break
        carry = after
        kept.append([np.asarray(v)[0] for v in values])
    return (
        len(kept),
        carry,
        [np.asarray(v) for v in zip(*kept, strict=True)] or [np.zeros(0) for _ in range(len(carry.optimizer))],
    )


def _error(problem: Problem, fit_of: Any, state: State, offset: int, inputs: Any) -> errors.NonFiniteError:
    found = diagnose(problem.task, problem.objectives, problem.loop, state, offset, inputs, problem.user_params)
    address = None if found.report is None else found.report.site.name
    step = int(state.step)
    return errors.NonFiniteError(found.describe(step), fit_of(state, "not finite"), step, address, tuple(found.gradients))
