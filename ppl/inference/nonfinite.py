"""When numbers go wrong: one step again, with every site watched, to say where."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl.densities import draw
from ppl.inference.state import State
from ppl.inference.step import Inputs, Task, key_at
from ppl.site import SUBSAMPLE, Site
from ppl.transforms.interpret import run_staged
from ppl.transforms.seed import Seed, random_inputs
from ppl.transforms.simulate import given_value, refuse_improper
from ppl.watching import Report, watch, watched_draw


class Watched(Seed):
    """Every draw reports where it is not finite."""

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        value = given_value(site, leaves)
        if value is None or site.kind == SUBSAMPLE:
            refuse_improper(site)
            value = watched_draw(site, leaves, draw(site, leaves, key))
        return value, None, None


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Of a step: the objective's name and value, the parameters whose gradients are not finite, and the site to blame."""

    name: str
    value: float
    leaves: tuple[str, ...]
    gradients: tuple[str, ...]
    report: Report | None


def diagnose(task: Task, objectives: Sequence[Any], state: State, offset: int, inputs: Inputs) -> Diagnosis:
    """Take the gradients of one step again, by the same key, and find what is not finite in them."""
    batch, _ = task.next_batch(state, inputs.batches, offset)
    args = task.user_args(inputs.arguments, batch)
    found = None
    update = 0
    for (name, times), objective in zip(task.groups, objectives, strict=True):
        key = key_at(task, state, update)

        def value(
            own: Any, objective: Any = objective, name: Any = name, key: Any = key, moving: Any = state.estimators
        ) -> Any:
            params = task.user_params(task.with_own(state.params, name, own), inputs.fixed)
            moving = moving[objectives.index(objective)]
            return objective.estimate(key, params, *args, samples=task.samples, state=moving)[0]

        own = task.own(state.params, name)
        estimate, grads = jax.value_and_grad(value)(own)
        prefix = "params" if name is None else f"params[{name!r}]"
        bad = [
            (f"{prefix}{jax.tree_util.keystr(path)}", f"{np.asarray(grad)}")
            for path, grad in jax.tree.leaves_with_path(grads)
            if not np.all(np.isfinite(np.asarray(grad, float)))
        ]
        found = Diagnosis(objective.__name__, float(estimate), tuple(n for n, _ in bad), tuple(g for _, g in bad), None)
        update += times
        if bad or not np.isfinite(found.value):
            user_params = task.user_params(state.params, inputs.fixed)
            report = _watch(
                objective,
                key,
                user_params,
                args,
                task.samples,
                lambda own: task.user_params(task.with_own(state.params, name, own), inputs.fixed),
                own,
            )
            return dataclasses.replace(found, report=report)
    assert found is not None
    return found


def _watch(objective: Any, key: Any, params: Any, args: Any, samples: int | None, of_own: Any, own: Any) -> Report | None:
    """The first site, in the order of computation, with a density that is not finite; else with a draw, else a derivative."""

    def value(own: Any) -> Any:
        staged = objective._stage((of_own(own), *args), {})
        drawn = random_inputs(key, staged.jaxpr.jaxpr, lambda _: True, samples)
        if samples is None:
            return run_staged(staged, Watched(), drawn)[0]
        return jnp.mean(jax.vmap(lambda drawn: run_staged(staged, Watched(), drawn)[0], axis_size=samples)(drawn))

    with watch() as reports:
        jax.grad(value)(own)
    for what in ("density", "draw", "derivative"):
        for report in reports:
            if report.what == what:
                return report
    return None
