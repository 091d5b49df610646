"""Distributions by name, with what the language adds: mixtures, flat densities and independent copies."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from ppl.lang import tree
from ppl.lang.builtins import DISTRIBUTIONS, ESTIMATORS, TYPES, integers, parameters
from ppl.lang.environment import Environment
from ppl.lang.evaluate import array, evaluate, size
from ppl.lang.tree import Node


def distribution(node: tree.Call, env: Environment, arguments: tuple[tree.Argument, ...] | None = None) -> Any:
    """A distribution with its parameters."""
    assert isinstance(node.function, tree.Name)
    name, given = node.function.id, node.arguments if arguments is None else arguments
    if name == "Flat":
        return _flat(given[0].value, env)
    if name == "Mixture":
        return _mixture(given, env)
    names, kept = parameters(name), integers(name)
    values: dict[str, Any] = {}
    for position, argument in enumerate(given):
        key = argument.name or names[position]
        value = array(argument.value, env)
        values[key] = value if key in kept else _real(value)
    with env.at(node):
        return DISTRIBUTIONS[name](**values)


def _real(value: Any) -> Any:
    """Integers as real numbers, for parameters that are real."""
    if isinstance(value, int):
        return float(value)
    if hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jnp.integer):
        return value.astype(jnp.result_type(float))
    return value


def _flat(node: Node, env: Environment) -> Any:
    name, dimensions = (node.value, node.places) if isinstance(node, tree.Index) else (node, ())
    assert isinstance(name, tree.Name)
    kind = TYPES[name.id]
    shape = shape_of(name.id, tuple(size(d, env) for d in dimensions))
    batch = shape[: len(shape) - kind.event_dim]
    return dist.ImproperUniform(kind.constraint, batch, shape[len(batch) :])


def shape_of(name: str, dimensions: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a type: `cholesky[n]` is a matrix."""
    return (*dimensions, dimensions[-1]) if TYPES[name].square and dimensions else dimensions


def _mixture(arguments: tuple[tree.Argument, ...], env: Environment) -> Any:
    weights, *components = [evaluate(a.value, env) for a in arguments]
    if not isinstance(weights, dist.Distribution):
        weights = dist.CategoricalProbs(jnp.asarray(weights))
    if len(components) == 1:
        return dist.MixtureSameFamily(weights, components[0])
    return dist.MixtureGeneral(weights, list(components))


def copies(distribution: Any, counts: tuple[int, ...]) -> Any:
    """Independent copies, for `x[1..n] ~ ...`."""
    return distribution.expand((*counts, *distribution.batch_shape)) if counts else distribution


def estimator(node: Node | None, env: Environment) -> Any:
    """What stands behind `using`."""
    if node is None:
        return None
    name = node if isinstance(node, tree.Name) else getattr(node, "function", None)
    if not isinstance(name, tree.Name) or name.id not in ESTIMATORS:
        return evaluate(node, env)
    arguments = node.arguments if isinstance(node, tree.Call) else ()
    with env.at(node):
        positional = [_argument(a.value, env) for a in arguments if a.name is None]
        return ESTIMATORS[name.id](*positional, **{a.name: _argument(a.value, env) for a in arguments if a.name})


def _argument(node: Node, env: Environment) -> Any:
    if isinstance(node, tree.Name) and node.id in ("true", "false"):
        return node.id == "true"
    return estimator(node, env)
