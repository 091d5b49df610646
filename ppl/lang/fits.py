"""`fit` statements: what to optimize, how, and for how long."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import optax

from ppl.errors import NonFiniteError
from ppl.inference.fit import Fit
from ppl.inference.optimize import maximize, minimize
from ppl.lang import tree
from ppl.lang.builtins import OPTIMIZERS, SCHEDULES
from ppl.lang.diagnostics import Source
from ppl.lang.environment import Environment
from ppl.lang.evaluate import array, size
from ppl.lang.parts import joined, split
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
    def over(self) -> dict[str, tuple[str, ...]]:
        """The parameters that each objective trains, such as `q` or `q.m`; none of them said for all."""
        return {term.objective: term.over for term in self.statement.terms}

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
        """The model and the family that the objectives speak of: the first of each that they name, if all that it is given is
        data of the file.
        """
        found: dict[str, str] = {}
        kinds = {name: unit.item.kind for name, unit in self.module.items(tree.Program, tree.Alias).items()}
        items = self.module.items(tree.Objective)
        for name in self.names:
            for node in tree.walk(items[name].item):
                if isinstance(node, tree.Name) and node.id in kinds:
                    found.setdefault(kinds[node.id], node.id)
        known = {kind: name for kind, name in found.items() if self.module.is_given_data(name)}
        return known.get("model"), known.get("family")

    def run(self, params: Any = None, key: Any = None, **options: Any) -> Fit:
        """Optimize.

        Args:
            params: initial parameters, `module.init()` if None.
            key: a PRNG key; made of the statement's seed if None.
            options: of `ppl.maximize`; they replace what the statement says.

        Returns:
            A fit of all parameters of the file, also where the statement names parts of them. Of several objectives, its
            history and states are dicts by their names.

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
        if not any(self.over.values()):
            (objective,) = self.objectives.values()
            return run(objective, params, key, **settings)
        return self._run_parts(run, params, key, settings)

    def _run_parts(self, run: Any, params: Any, key: Any, settings: dict[str, Any]) -> Fit:
        """Optimize the parts that the statement names; the other parameters are an argument of the objectives."""
        parts, rest = split(params, self.over)
        names = {name: settings.pop(name, None) for name in ("model", "family")}

        def whole(fit: Fit) -> Fit:
            found = (fit.params,) if len(parts) == 1 else fit.params.values()
            return dataclasses.replace(fit, params=joined(found, rest), **names)

        told = settings.get("callback")
        if told is not None:
            settings["callback"] = lambda fit: told(whole(fit))
        (first, *others) = self._of_parts
        target = self._of_parts if others else self._of_parts[first]
        try:
            return whole(run(target, parts if others else parts[first], key, rest, **settings))
        except NonFiniteError as error:
            error.fit = whole(error.fit)  # type: ignore[arg-type]
            raise

    @functools.cached_property
    def _of_parts(self) -> dict[str, Expectation]:
        """The objectives as functions of the parts; the same objects at each run, so that what was compiled is found."""
        return {name: _of_parts(objective, len(self.objectives) == 1) for name, objective in self.objectives.items()}

    def _option(self, name: str, default: int | None) -> int | None:
        for option in self.statement.options:
            if option.name == name:
                return size(option.value, self._environment())
        return default

    def _environment(self) -> Environment:
        return Environment(self.source, dict(self.module.sizes))


def _of_parts(objective: Expectation, single: bool) -> Expectation:
    def function(parts: Any, rest: Any) -> Any:
        return objective.function(joined((parts,) if single else parts.values(), rest))

    function.__name__ = function.__qualname__ = objective.__name__  # type: ignore[attr-defined]
    return Expectation(function)


def _made(node: Node, env: Environment) -> Any:
    """An optimizer or a schedule by name, with its settings."""
    if isinstance(node, tree.Call) and isinstance(node.function, tree.Name):
        make = {**OPTIMIZERS, **SCHEDULES}.get(node.function.id)
        if make is not None:
            positional = [_made(a.value, env) for a in node.arguments if a.name is None]
            return make(*positional, **{a.name: _made(a.value, env) for a in node.arguments if a.name is not None})
    return array(node, env)
