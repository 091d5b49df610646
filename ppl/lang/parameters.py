"""Learned parameters: their types, and the way from numbers without constraints, which are optimized, to the parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import biject_to

from ppl.lang import tree
from ppl.lang.builtins import TYPES
from ppl.lang.diagnostics import Source, at, fail
from ppl.lang.distributions import shape_of
from ppl.lang.environment import Environment
from ppl.lang.evaluate import evaluate, size
from ppl.lang.values import whole


class Parameters:
    """The parameters of a module: those of the file by name, those of a program in a dict under its name."""

    def __init__(self, module: Any):
        self.module = module

    def declared(self) -> Iterator[tuple[tuple[str, ...], tree.Parameter, Source]]:
        """Paths, declarations and texts."""
        for unit in self.module.units:
            if isinstance(unit.item, tree.Params):
                for parameter in unit.item.parameters:
                    yield (parameter.name,), parameter, unit.source
            elif isinstance(unit.item, tree.Program):
                for parameter in unit.item.parameters:
                    yield (unit.item.name, parameter.name), parameter, unit.source

    def init(self, key: Any = None) -> dict[str, Any]:
        key = jax.random.key(0) if key is None else key
        found: dict[str, Any] = {}
        for number, (path, parameter, source) in enumerate(self.declared()):
            value = self._initial(parameter, source, jax.random.fold_in(key, number))
            _put(found, path, value)
        return found

    def constrain(self, params: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path, parameter, _ in self.declared():
            value = params
            for name in path:
                value = value[name] if isinstance(value, Mapping) and name in value else None
            if value is not None:
                bijection = _bijection(parameter)
                _put(found, path, value if bijection is None else bijection(value))
        return found

    def _environment(self, source: Source) -> Environment:
        module = self.module
        data = {name: value if isinstance(value, int) else jnp.asarray(value) for name, value in module.data.items()}
        return Environment(source, {**module.sizes, **data, **module._imported})

    def _initial(self, parameter: tree.Parameter, source: Source, key: Any) -> Any:
        env = self._environment(source)
        bijection = _bijection(parameter)
        shape = self.shape(parameter, env)
        if parameter.initial is None:
            if parameter.type is None:
                raise fail([at(source, parameter.span, f"the parameter {parameter.name!r} needs a type or an initial value")])
            return jnp.zeros(shape if bijection is None else bijection.inverse_shape(shape))
        value = whole(evaluate(parameter.initial, env))
        if parameter.drawn:
            if not isinstance(value, dist.Distribution):
                raise fail([at(source, parameter.initial.span, "expected a distribution behind '~'")])
            value = value.sample(key, shape[: len(shape) - len(value.shape())])
        if parameter.type is None:
            return value
        value = jnp.asarray(value, jnp.result_type(float))
        try:
            value = jnp.broadcast_to(value, shape)
        except ValueError:
            message = f"the initial value has the shape {list(value.shape)}, the parameter {list(shape)}"
            raise fail([at(source, parameter.initial.span, message)]) from None
        constraint = TYPES[parameter.type.name].constraint
        if not bool(jnp.all(constraint(value))):
            raise fail([at(source, parameter.initial.span, f"the initial value is not {parameter.type.name}")])
        return value if bijection is None else bijection.inv(value)

    def shape(self, parameter: tree.Parameter, env: Environment) -> tuple[int, ...]:
        if parameter.type is None:
            return ()
        return shape_of(parameter.type.name, tuple(size(node, env) for node in parameter.type.dimensions))


def _bijection(parameter: tree.Parameter) -> Any:
    """From unconstrained numbers to the parameter; None where there is no constraint."""
    if parameter.type is None or parameter.type.name == "real":
        return None
    return biject_to(TYPES[parameter.type.name].constraint)


def _put(found: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    if len(path) == 2:
        found.setdefault(path[0], {})[path[1]] = value
    else:
        found[path[0]] = value
