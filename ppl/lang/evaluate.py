"""The value of an expression, in an environment."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl.lang import tree
from ppl.lang.builtins import CONSTANTS, DISTRIBUTIONS, FUNCTIONS, STATIC
from ppl.lang.environment import Environment, base_key, lane_places
from ppl.lang.tree import Node
from ppl.lang.values import Domain, Drawn, FunctionValue, Pieces, ProgramValue, whole

_OPERATORS: dict[str, Any] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "@": lambda a, b: a @ b,
    "^": lambda a, b: a**b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "and": jnp.logical_and,
    "or": jnp.logical_or,
}


def evaluate(node: Node, env: Environment) -> Any:
    """The value: a number, an array, a distribution, a draw or a program."""
    return _EVALUATE[type(node)](node, env)


def array(node: Node, env: Environment) -> Any:
    """The value of an expression that is an array or a number, pieces put together."""
    return whole(evaluate(node, env))


def size(node: Node, env: Environment) -> int:
    """An integer that is known before anything runs."""
    value = evaluate(node, env)
    if isinstance(value, np.ndarray | np.generic | jax.Array) and not isinstance(value, jax.core.Tracer) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int):
        raise env.error(node, "this has to be an integer that is known before anything runs")
    return value


def domain(node: Node, env: Environment) -> Domain:
    """`a..b`, or `batch(a..b, size)`."""
    if isinstance(node, tree.Call) and isinstance(node.function, tree.Name) and node.function.id == "batch":
        inner = domain(node.arguments[0].value, env)
        return inner._replace(batch=size(node.arguments[1].value, env))
    if not isinstance(node, tree.Binary) or node.operator != "..":
        raise env.error(node, "expected a range, such as 1..N")
    found = Domain(size(node.left, env), size(node.right, env) + 1)
    if found.length < 1:
        raise env.error(node, f"the range {found.start}..{found.stop - 1} is empty")
    return found


def _name(node: tree.Name, env: Environment) -> Any:
    if node.id in env.values:
        return env.values[node.id]
    if node.id in CONSTANTS:
        return CONSTANTS[node.id]
    raise env.error(node, f"the name {node.id!r} is not defined here")


def _number(node: tree.Number, env: Environment) -> Any:
    return node.value


def _unary(node: tree.Unary, env: Environment) -> Any:
    from ppl.lang.densities import log_of  # expressions hold densities, whose arguments are expressions

    if node.operator == "log":
        return log_of(node.operand, env)
    value = array(node.operand, env)
    return jnp.logical_not(value) if node.operator == "not" else -value


def _binary(node: tree.Binary, env: Environment) -> Any:
    from ppl.lang.densities import holds_density, log_of

    if node.operator in "*/^" and holds_density(node, env):
        return jnp.exp(log_of(node, env))
    if node.operator == "^" and isinstance(node.left, tree.Absolute):
        exponent = evaluate(node.right, env)
        value = jnp.asarray(array(node.left.value, env))
        if exponent == 2 and isinstance(exponent, int):
            return jnp.sum(value * value)
    left, right = array(node.left, env), array(node.right, env)
    return operate(node.operator, left, right)


def operate(operator: str, left: Any, right: Any) -> Any:
    """An operator on two values. Numbers that are known stay numbers, as in Python, as far as they are finite."""
    if isinstance(left, list | tuple):
        left = jnp.asarray(left)
    if isinstance(left, int | float) and isinstance(right, int | float):
        if operator == "^" and isinstance(left, int) and isinstance(right, int) and abs(left) > 1 and abs(right) > 31:
            left = float(left)
        try:
            value = _OPERATORS[operator](left, right)
            if isinstance(value, complex) or (isinstance(value, int) and abs(value) >= 2**31):
                raise OverflowError
            return value
        except (ZeroDivisionError, OverflowError):
            with np.errstate(all="ignore"):
                return float(_OPERATORS[operator](np.float64(left), np.float64(right)))
    return _OPERATORS[operator](left, right)


def _absolute(node: tree.Absolute, env: Environment) -> Any:
    value = jnp.asarray(array(node.value, env))
    return jnp.abs(value) if value.ndim == 0 else jnp.linalg.norm(value)


def _transpose(node: tree.Transpose, env: Environment) -> Any:
    return jnp.asarray(array(node.value, env)).T


def _list(node: tree.List, env: Environment) -> Any:
    return jnp.stack([jnp.asarray(array(item, env)) for item in node.items])


def _field(node: tree.Field, env: Environment) -> Any:
    value = evaluate(node.value, env)
    trace = value.trace if isinstance(value, Drawn) else value
    if not isinstance(trace, dict) or node.name not in trace:
        known = ", ".join(trace) if isinstance(trace, dict) else "no fields"
        raise env.error(node, f"there is no {node.name!r} in this value; it has {known}")
    return trace[node.name]


def _index(node: tree.Index, env: Environment) -> Any:
    value, places = _row(node, env)
    if not places:
        return value
    if isinstance(value, Pieces):
        first = places[0]
        if _is_range(first):
            value = value.between(*domain(first, env)[:2])
            places = (tree.All(span=first.span), *places[1:])
        elif not isinstance(first, tree.All):
            index = evaluate(first, env)
            if isinstance(index, int):
                value, places = value.at(index), places[1:]
        value = whole(value)
    if not places:
        return value
    with env.at(node):
        if isinstance(value, Drawn):
            (place,) = places
            index = evaluate(place, env)
            return jax.tree.map(lambda leaf: leaf[index - 1], value)
        selectors = [_selector(place, env, jnp.shape(value)[i]) for i, place in enumerate(places)]
        if all(isinstance(selector, slice) and selector == slice(None) for selector in selectors):
            return value
        return jnp.asarray(value)[tuple(selectors)]


def _row(node: tree.Index, env: Environment) -> tuple[Any, tuple[Node, ...]]:
    """The row that the loops around have at hand for an index, and the places that are left to take."""
    key = base_key(node.value)
    if key is not None:
        lanes = lane_places(node, env.loops)
        for count in range(len(lanes), -1, -1):
            chosen = frozenset(lanes[:count])
            if (key, chosen) in env.rows:
                taken = {position for position, _, _ in chosen}
                return env.rows[key, chosen], tuple(p for i, p in enumerate(node.places) if i not in taken)
    return evaluate(node.value, env), node.places


def _is_range(node: Node) -> bool:
    return isinstance(node, tree.Binary) and node.operator == ".."


def _selector(place: Node, env: Environment, length: int) -> Any:
    if isinstance(place, tree.All):
        return slice(None)
    if _is_range(place):
        start, stop, _ = domain(place, env)
        if start < 1 or stop - 1 > length:
            raise env.error(place, f"the range {start}..{stop - 1} leaves an axis of {length}, which counts from 1")
        return slice(start - 1, stop - 1)
    index = array(place, env)
    if isinstance(index, int):
        if not 1 <= index <= length:
            raise env.error(place, f"the index {index} leaves an axis of {length}, which counts from 1")
        return index - 1
    return jnp.asarray(index) - 1


def _call(node: tree.Call, env: Environment) -> Any:
    from ppl.lang import densities, distributions, estimands

    name = node.function.id if isinstance(node.function, tree.Name) else None
    if name is not None and name not in env.values:
        if name in DISTRIBUTIONS or name in ("Mixture", "Flat"):
            if node.given:
                return jnp.exp(densities.log_of(node, env))
            return distributions.distribution(node, env)
        if name in FUNCTIONS:
            arguments = [size(a.value, env) if name in STATIC and i + len(node.arguments) > (name == "reshape")
                         and not (name == "reshape" and i == 0) else array(a.value, env)
                         for i, a in enumerate(node.arguments)]  # fmt: skip
            with env.at(node):
                return FUNCTIONS[name](*arguments)
        if name == "length":
            return int(jnp.shape(array(node.arguments[0].value, env))[0])
        if name == "detach":
            return detached(evaluate(node.arguments[0].value, env))
        if name in ("marginal", "normalize"):
            return estimands.program(node, env)
    value = evaluate(node.function, env)
    if isinstance(value, ProgramValue):
        return jnp.exp(densities.log_of(node, env))
    arguments = [array(a.value, env) for a in node.arguments if a.name is None]
    if isinstance(value, FunctionValue):
        return apply(value, arguments, node, env)
    if not callable(value):
        raise env.error(node.function, "this is no function")
    with env.at(node):
        return value(*arguments, **{a.name: array(a.value, env) for a in node.arguments if a.name is not None})


def apply(function: FunctionValue, arguments: list[Any], node: Node, env: Environment) -> Any:
    """A function of a text, applied."""
    from ppl.lang.statements import value_of_block

    inner = function.environment.with_values(**dict(zip(function.definition.parameters, arguments, strict=True)))
    return value_of_block(function.definition.body, inner)


def detached(value: Any) -> Any:
    if isinstance(value, ProgramValue):
        return value.frozen()
    return jax.tree.map(jax.lax.stop_gradient, jax.tree.map(jnp.asarray, whole(value)))


def _binder(node: tree.Binder, env: Environment) -> Any:
    from ppl.lang.binders import binder

    return binder(node, env)


def _comprehension(node: tree.Comprehension, env: Environment) -> Any:
    from ppl.lang.binders import stacked

    return stacked((tree.Each(node.name, node.domain, span=node.span),), node.body, env)


def _refuse(node: Node, env: Environment) -> Any:
    raise env.error(node, "this has no value here")


_EVALUATE: dict[type, Any] = {
    tree.Name: _name,
    tree.Number: _number,
    tree.Unary: _unary,
    tree.Binary: _binary,
    tree.Absolute: _absolute,
    tree.Transpose: _transpose,
    tree.List: _list,
    tree.Field: _field,
    tree.Index: _index,
    tree.Call: _call,
    tree.Binder: _binder,
    tree.Comprehension: _comprehension,
    tree.Tuple: _refuse,
    tree.All: _refuse,
}
