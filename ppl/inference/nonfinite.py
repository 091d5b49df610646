"""When numbers go wrong: one step again, update by update and with every site watched, to say where."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl.densities import draw
from ppl.inference.state import State
from ppl.inference.step import Inputs, Loop, Task, key_at
from ppl.samples import Samples, as_samples
from ppl.site import SUBSAMPLE, Site
from ppl.transforms.interpret import run_staged
from ppl.transforms.seed import Seed, random_inputs
from ppl.transforms.simulate import given_value, refuse_improper
from ppl.watching import Report, watch, watched_draw


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Of a step: the objective that failed and its value, the parameters whose gradients are not finite, with these, and the
    site to blame."""

    name: str
    value: float
    gradients: dict[str, Any]
    report: Report | None

    def describe(self, step: int) -> str:
        lines = [f"the objective {self.name} was {self.value:g} at step {step}."]
        for leaf, gradient in self.gradients.items():
            shown = np.array2string(np.asarray(gradient, float), precision=4, threshold=8, separator=", ").replace("\n", "")
            lines.append(f"The gradient in {leaf} is {shown}.")
        if self.report is not None:
            lines.append(self.report.describe())
        elif self.gradients or not np.isfinite(self.value):
            lines.append(
                "No site has such a number when it is drawn anew by the same key: look at the objective's own arithmetic."
            )
        if np.isfinite(self.value) and not self.gradients:
            lines.append("Value and gradient are finite: the update took a parameter out of the range of its dtype.")
        lines.append(
            "Lower the learning rate, or look for a scale that reaches zero or a value that leaves its support. The run up to "
            "this step is the error's `fit`; on_nonfinite='skip' leaves such updates out and counts them."
        )
        return "\n".join(lines)


def diagnose(
    task: Task, objectives: Sequence[Any], loop: Loop, state: State, offset: int, inputs: Inputs, params: Any
) -> Diagnosis:
    """Take a step again by the same keys, `params` being a function to what users see, up to the update that fails."""
    batch, _ = task.next_batch(state, inputs.batches, offset)
    args = task.user_args(inputs.arguments, batch)
    number = 0
    for index, (objective, (name, times)) in enumerate(zip(objectives, task.groups, strict=True)):
        for _ in range(times):
            found = _update(task, objective, index, name, state, key_at(task, state, number), args, params)
            after, _ = loop.update(index, number, state, args, inputs.fixed)
            bad = bool(found.gradients) or not np.isfinite(found.value)
            if bad or not all(np.all(np.isfinite(np.asarray(x, float))) for x in jax.tree.leaves(after.params)):
                return found
            state, number = after, number + 1
    return found


def _update(
    task: Task, objective: Any, index: int, name: str | None, state: State, key: Any, args: Any, params: Any
) -> Diagnosis:
    def of(own: Any) -> Any:
        return params(task.with_own(state.params, name, own))

    def value(own: Any) -> Any:
        moving = state.estimators[index]
        loss, (value, _) = objective.training_loss(key, of(own), *args, sign=1.0, samples=task.samples, state=moving)
        return loss, value

    own = task.own(state.params, name)
    (_, estimate), grads = jax.value_and_grad(value, has_aux=True)(own)
    prefix = "params" if name is None else f"params[{name!r}]"
    bad = {
        f"{prefix}{jax.tree_util.keystr(path)}": grad
        for path, grad in jax.tree.leaves_with_path(grads)
        if not np.all(np.isfinite(np.asarray(grad, float)))
    }
    shown = repr(objective.__name__) + ("" if name is None else f" of params[{name!r}]")
    found = Diagnosis(shown, float(estimate), bad, None)
    if not bad and np.isfinite(found.value):
        return found
    return dataclasses.replace(found, report=_watch(objective, key, of, own, args, task.samples))


class Watched(Seed):
    """Every draw reports where it is not finite."""

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        value = given_value(site, leaves)
        if value is None or site.kind == SUBSAMPLE:
            refuse_improper(site)
            value = watched_draw(site, leaves, draw(site, leaves, key))
        return value, None, None


def _watch(objective: Any, key: Any, params: Any, own: Any, args: Any, samples: int | Samples | None) -> Report | None:
    """The first site, in the order of computation, with a density that is not finite; else with a draw, else a derivative.

    Sites are drawn by their keys whatever their estimators are, so that an enumerated value may go unseen.
    """

    def value(own: Any, key: Any, count: int | None) -> Any:
        staged = objective._stage((params(own), *args), {})
        drawn = random_inputs(key, staged.jaxpr.jaxpr, lambda _: True, count)
        if count is None:
            return run_staged(staged, Watched(), drawn)[0]
        return jnp.mean(jax.vmap(lambda drawn: run_staged(staged, Watched(), drawn)[0], axis_size=count)(drawn))

    keys = [(key, None)] if samples is None else as_samples(samples).chunks(key)
    with watch() as reports:
        for chunk_key, count in keys:
            jax.grad(value)(own, chunk_key, count)
            if reports:
                break
    return next((r for what in ("density", "draw", "derivative") for r in reports if r.what == what), None)
