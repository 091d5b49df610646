"""Densities in expressions, by their logarithms: `log p(z, y)`, and `(p(z) / q(z))^2` without under- or overflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from ppl.lang import tree
from ppl.lang.builtins import DISTRIBUTIONS
from ppl.lang.environment import Environment
from ppl.lang.evaluate import array, evaluate
from ppl.lang.tree import Node
from ppl.lang.values import Drawn, ProgramValue, whole


def is_density(node: Node, env: Environment) -> bool:
    """Whether an expression is the density of something at something."""
    if not isinstance(node, tree.Call):
        return False
    function = node.function
    if isinstance(function, tree.Name):
        if function.id in env.values:
            return isinstance(env.values[function.id], ProgramValue)
        return bool(node.given) and (function.id in DISTRIBUTIONS or function.id in ("Mixture", "Flat"))
    if isinstance(function, tree.Call) and isinstance(function.function, tree.Name):
        return function.function.id in ("marginal", "normalize", "detach")
    return False


def holds_density(node: Node, env: Environment) -> bool:
    """Whether it is a product, quotient, power or mean of densities, which is computed by its logarithm."""
    if is_density(node, env):
        return True
    if isinstance(node, tree.Binary) and node.operator in "*/":
        return holds_density(node.left, env) or holds_density(node.right, env)
    if isinstance(node, tree.Binary) and node.operator == "^":
        return holds_density(node.left, env)
    if isinstance(node, tree.Binder) and node.kind in ("mean", "sum", "prod"):
        return holds_density(node.body, env)
    return False


def log_of(node: Node, env: Environment) -> Any:
    """The logarithm of an expression's value."""
    if is_density(node, env):
        assert isinstance(node, tree.Call)
        return log_density(node, env)
    if holds_density(node, env):
        if isinstance(node, tree.Binary) and node.operator == "*":
            return log_of(node.left, env) + log_of(node.right, env)
        if isinstance(node, tree.Binary) and node.operator == "/":
            return log_of(node.left, env) - log_of(node.right, env)
        if isinstance(node, tree.Binary):
            return array(node.right, env) * log_of(node.left, env)
        if isinstance(node, tree.Binder):
            from ppl.lang.binders import log_binder

            return log_binder(node, env)
    return jnp.log(array(node, env))


def log_density(node: tree.Call, env: Environment) -> Any:
    """`log p(z, y | x)`: the density of traces and data, given arguments."""
    name = node.function.id if isinstance(node.function, tree.Name) else None
    if name is not None and name not in env.values:
        from ppl.lang.distributions import distribution

        value = array(node.arguments[0].value, env)
        with env.at(node):
            return distribution(node, env, node.given).log_prob(jnp.asarray(value))
    program = evaluate(node.function, env)
    trace: Any = {}
    values: dict[str, Any] = {}
    drawn: Drawn | None = None
    for argument in node.arguments:
        value = whole(evaluate(argument.value, env))
        if isinstance(value, Drawn):
            drawn = value
            trace = {**trace, **value.trace} if isinstance(value.trace, Mapping) else value.trace
        elif isinstance(value, Mapping):
            trace = {**trace, **value}
        elif isinstance(argument.value, tree.Name) and argument.value.id in program.observes:
            values[argument.value.id] = value
        else:
            trace = value
    source = (node.function, tuple(a.value for a in node.given))
    if (
        drawn is not None
        and drawn.source == source
        and drawn.observed == frozenset(values)
        and len(node.arguments) == 1 + len(values)
    ):
        return drawn.log_density
    bound = bind(program, node.given, values, env, node)
    with env.at(node):
        return bound.log_density(trace)


def bind(program: ProgramValue, given: Any, observed: Mapping[str, Any], env: Environment, node: Node) -> Any:
    """The bound program, given what stands behind the bar, or in a call."""
    arguments = tuple(whole(evaluate(a.value, env)) for a in given)
    with env.at(node):
        return program.bind(arguments, observed)


def program_of(node: Node, env: Environment) -> tuple[Any, tuple[tree.Argument, ...], Any]:
    """What stands behind `~`, a program and what it is given, and how `log q(z | ..)` would name it."""
    if isinstance(node, tree.Call) and isinstance(node.function, tree.Name) and node.function.id in env.values:
        value = env.values[node.function.id]
        if isinstance(value, ProgramValue):
            return value, node.arguments, (node.function, tuple(a.value for a in node.arguments))
    if isinstance(node, tree.Call) and isinstance(node.function, tree.Call):
        value = evaluate(node.function, env)
        return value, node.arguments, (node.function, tuple(a.value for a in node.arguments))
    return evaluate(node, env), (), (node, ())
