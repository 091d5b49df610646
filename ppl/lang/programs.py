"""Models and families of a text, as programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from ppl.lang import tree
from ppl.lang.environment import Environment
from ppl.lang.statements import assigned, run_block
from ppl.lang.values import FunctionValue, ProgramValue, whole
from ppl.program import Bound


def observable(definition: tree.Program, data: frozenset[str]) -> frozenset[str]:
    """The data that stand at sites of a model."""
    return frozenset(assigned(definition.body)) & data if definition.kind == "model" else frozenset()


def program_value(
    definition: tree.Program, env: Environment, learned: Mapping[str, Any], data: frozenset[str], constant: bool = False
) -> ProgramValue:
    """A program of a text with its learned parameters, in the file's environment."""
    names = tuple(p.name for p in definition.given)
    every = (*(p.name for p in definition.parameters), *names)
    observes = observable(definition, data)

    def run(values: Mapping[str, Any], observed: Mapping[str, Any]) -> Any:
        around = held(env) if constant else env
        inner = around.child(name=definition.name, objective=False, observed=frozenset(observed) & observes)
        for name in observes:
            inner.values.pop(name, None)
        inner.values.update(values)
        inner.values.update(observed)
        result = run_block(definition.body, inner)
        if any(isinstance(statement, tree.Return) for statement in definition.body):
            return whole(result)
        return {name: whole(inner.values[name]) for name in assigned(definition.body) if name in inner.values}

    run.__name__ = definition.name

    def bind(arguments: tuple[Any, ...], observed: Mapping[str, Any]) -> Bound:
        if len(arguments) == len(every) and len(every) > len(names):
            values = dict(zip(every, arguments, strict=True))
        elif len(arguments) == len(names):
            values = {**learned, **dict(zip(names, arguments, strict=True))}
        else:
            wanted = f"{len(names)}" if len(names) == len(every) else f"{len(names)} or {len(every)}"
            raise TypeError(f"{definition.name} takes {wanted} arguments, and was given {len(arguments)}")
        if constant:
            values = jax.tree.map(stopped, values)
        return Bound(run, (values, dict(observed)))

    def freeze() -> ProgramValue:
        return program_value(definition, env, learned, data, constant=True)

    return ProgramValue(bind, names, observes, constant, freeze)


def held(env: Environment) -> Environment:
    """The file's environment with all parameters held constant, also inside of functions and other programs."""
    constant = dataclasses.replace(env, values={}, rows={})
    for name, value in env.values.items():
        if isinstance(value, FunctionValue):
            inner = dataclasses.replace(value.environment, values=constant.values)
            constant.values[name] = FunctionValue(value.definition, inner)
        elif isinstance(value, ProgramValue):
            constant.values[name] = value.frozen()
        else:
            constant.values[name] = jax.tree.map(stopped, value)
    return constant


def stopped(leaf: Any) -> Any:
    return jax.lax.stop_gradient(leaf) if hasattr(leaf, "dtype") else leaf


def fixed(bound: Bound, observes: frozenset[str] = frozenset()) -> ProgramValue:
    """A bound program from Python."""

    def bind(arguments: tuple[Any, ...], observed: Mapping[str, Any]) -> Bound:
        if arguments:
            raise TypeError("this program is bound already and takes no arguments")
        return bound

    def freeze() -> ProgramValue:
        args, kwargs = jax.tree.map(stopped, (bound.args, bound.kwargs))
        return fixed(dataclasses.replace(bound, args=args, kwargs=kwargs))

    return ProgramValue(bind, (), observes, False, lambda: _constant(freeze()))


def _constant(value: ProgramValue) -> ProgramValue:
    return ProgramValue(value.bind, value.names, value.observes, True)
