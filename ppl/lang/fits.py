"""`fit` statements: what to optimize, how, and for how long."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import optax

from ppl.inference.fit import Fit
from ppl.inference.optimize import maximize, minimize
from ppl.lang import tree
from ppl.lang.builtins import OPTIMIZERS, SCHEDULES
from ppl.lang.diagnostics import Source
from ppl.lang.environment import Environment
from ppl.lang.evaluate import array, size
from ppl.lang.tree import Node
from ppl.transforms.expectation import Expectation

STEPS = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class FitSpec:
    """A fit statement of a file.

    Attributes:
        module: the file, with its data.
        statement: the syntax tree.
        source: the text that it is from.
    """

    module: Any
    statement: tree.Fit
    source: Source

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives."""
        return tuple(term.objective for term in self.statement.terms)

    @property
    def minimizes(self) -> bool:
        return self.statement.verb == "minimize"

    @functools.cached_property
    def objectives(self) -> dict[str, Expectation]:
        """The objectives, by name."""
        env = self._environment()
        return {
            term.objective: self.module.objective(term.objective, **{s.name: size(s.value, env) for s in term.settings})
            for term in self.statement.terms
        }

    @functools.cached_property
    def over(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """The parameters that each objective changes, as paths; empty for all."""
        return {t.objective: tuple(tuple(path.split(".")) for path in t.over) for t in self.statement.terms}

    @functools.cached_property
    def optimizer(self) -> Any:
        """The optax optimizer."""
        if self.statement.optimizer is None:
            return optax.adam(0.01)
        return _made(self.statement.optimizer, self._environment())

    @property
    def steps(self) -> int:
        return self._option("steps", STEPS) or STEPS

    @property
    def samples(self) -> int | None:
        return self._option("samples", None)

    @property
    def seed(self) -> int:
        return self._option("seed", 0) or 0

    @functools.cached_property
    def programs(self) -> tuple[str | None, str | None]:
        """The model and the family that the objectives speak of: the first of each that they name."""
        found: dict[str, str] = {}
        kinds = {name: unit.item.kind for name, unit in self.module.items(tree.Program, tree.Alias).items()}
        items = self.module.items(tree.Objective)
        for name in self.names:
            for node in tree.walk(items[name].item):
                if isinstance(node, tree.Name) and node.id in kinds:
                    found.setdefault(kinds[node.id], node.id)
        return found.get("model"), found.get("family")

    def run(self, params: Any = None, key: Any = None, **options: Any) -> Fit:
        """Optimize.

        Args:
            params: initial parameters, `module.init()` if None.
            key: a PRNG key; made of the statement's seed if None.
            options: of `ppl.maximize`; they replace what the statement says.

        Raises:
            DataError: the file's data have not been given.
        """
        model, family = self.programs
        settings: dict[str, Any] = {"optimizer": self.optimizer, "steps": self.steps, "samples": self.samples}
        if model is not None:
            settings["model"] = functools.partial(self.module.at, model)
        if family is not None:
            settings["family"] = functools.partial(self.module.at, family)
        settings.update(options)
        key = jax.random.key(self.seed) if key is None else key
        params = self.module.init(key) if params is None else params
        run = minimize if self.minimizes else maximize
        return run(self._target(), params, key, **settings)

    def _target(self) -> Any:
        if len(self.objectives) == 1 and not any(self.over.values()):
            (objective,) = self.objectives.values()
            return objective
        if not hasattr(self, "_held"):
            held = {name: _restricted(o, self.over[name]) for name, o in self.objectives.items()}
            object.__setattr__(self, "_held", held if len(held) > 1 else next(iter(held.values())))
        return self._held  # type: ignore[attr-defined]

    def _option(self, name: str, default: int | None) -> int | None:
        for option in self.statement.options:
            if option.name == name:
                return size(option.value, self._environment())
        return default

    def _environment(self) -> Environment:
        return Environment(self.source, dict(self.module.sizes))


def _restricted(objective: Expectation, over: tuple[tuple[str, ...], ...]) -> Expectation:
    """The objective with all other parameters held constant."""
    if not over:
        return objective

    def function(params: Any = None) -> Any:
        return objective.function(_held(params, over, ()))

    function.__name__ = function.__qualname__ = objective.__name__  # type: ignore[attr-defined]
    return Expectation(function)


def _held(params: Any, over: tuple[tuple[str, ...], ...], path: tuple[str, ...]) -> Any:
    if any(path[: len(free)] == free for free in over):
        return params
    if isinstance(params, dict):
        return {name: _held(value, over, (*path, name)) for name, value in params.items()}
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if hasattr(leaf, "dtype") else leaf, params)


def _made(node: Node, env: Environment) -> Any:
    """An optimizer or a schedule by name, with its settings."""
    if isinstance(node, tree.Call) and isinstance(node.function, tree.Name):
        make = {**OPTIMIZERS, **SCHEDULES}.get(node.function.id)
        if make is not None:
            positional = [_made(a.value, env) for a in node.arguments if a.name is None]
            return make(*positional, **{a.name: _made(a.value, env) for a in node.arguments if a.name is not None})
    return array(node, env)
