"""The names that the language knows: functions, constants, distributions, estimators, optimizers and types."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import jax.scipy.special
import numpyro.distributions as numpyro_distributions
import optax

import ppl.distributions as dist
from ppl import choice, estimators
from ppl.distributions import constraints


def _softmax(x: Any) -> Any:
    return jax.nn.softmax(jnp.asarray(x), axis=-1)


def _logmeanexp(x: Any) -> Any:
    x = jnp.asarray(x)
    return jax.nn.logsumexp(x) - jnp.log(x.size)


def _solve_lower(matrix: Any, right: Any) -> Any:
    return jax.scipy.linalg.solve_triangular(matrix, right, lower=True)


def _logdet(matrix: Any) -> Any:
    return jnp.linalg.slogdet(matrix)[1]


def _concat(*parts: Any) -> Any:
    return jnp.concatenate([jnp.atleast_1d(part) for part in parts])


def _quadratic(matrix: Any, x: Any) -> Any:
    return x @ matrix @ x


def _reshape(x: Any, *shape: int) -> Any:
    return jnp.reshape(x, shape)


def _zeros(*shape: int) -> Any:
    return jnp.zeros(shape)


def _ones(*shape: int) -> Any:
    return jnp.ones(shape)


def _column_means(x: Any) -> Any:
    return jnp.mean(x, axis=0)


def _sums(reduce: Any) -> Any:
    def rows(x: Any) -> Any:
        return reduce(x, axis=-1)

    def columns(x: Any) -> Any:
        return reduce(x, axis=0)

    return rows, columns


_rowsums, _columnsums = _sums(jnp.sum)
_rowmeans, _columnmeans = _sums(jnp.mean)
_rowlse, _columnlse = _sums(jax.nn.logsumexp)

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": jnp.abs,
    "all": jnp.all,
    "any": jnp.any,
    "arctan": jnp.arctan,
    "arctan2": jnp.arctan2,
    "cholesky": jnp.linalg.cholesky,
    "concat": _concat,
    "cos": jnp.cos,
    "cosh": jnp.cosh,
    "cumprod": jnp.cumprod,
    "cumsum": jnp.cumsum,
    "det": jnp.linalg.det,
    "diag": jnp.diag,
    "digamma": jax.scipy.special.digamma,
    "dot": jnp.dot,
    "erf": jax.scipy.special.erf,
    "exp": jnp.exp,
    "expm1": jnp.expm1,
    "eye": jnp.eye,
    "float": lambda x: jnp.asarray(x, float),
    "floor": jnp.floor,
    "hypot": jnp.hypot,
    "inv": jnp.linalg.inv,
    "lgamma": jax.scipy.special.gammaln,
    "log1p": jnp.log1p,
    "logaddexp": jnp.logaddexp,
    "logdet": _logdet,
    "logit": jax.scipy.special.logit,
    "logmeanexp": _logmeanexp,
    "logsumexp": jax.nn.logsumexp,
    "logsumexp_columns": _columnlse,
    "logsumexp_rows": _rowlse,
    "max": jnp.max,
    "maximum": jnp.maximum,
    "mean": jnp.mean,
    "mean_columns": _columnmeans,
    "mean_rows": _rowmeans,
    "min": jnp.min,
    "minimum": jnp.minimum,
    "ones": _ones,
    "outer": jnp.outer,
    "prod": jnp.prod,
    "quadratic": _quadratic,
    "relu": jax.nn.relu,
    "reshape": _reshape,
    "reverse": lambda x: jnp.flip(x, 0),
    "round": jnp.round,
    "sd": jnp.std,
    "sigmoid": jax.nn.sigmoid,
    "sign": jnp.sign,
    "silu": jax.nn.silu,
    "sin": jnp.sin,
    "sinh": jnp.sinh,
    "softmax": _softmax,
    "softplus": jax.nn.softplus,
    "solve": jnp.linalg.solve,
    "solve_lower": _solve_lower,
    "sort": jnp.sort,
    "sqrt": jnp.sqrt,
    "stack": lambda *parts: jnp.stack(parts),
    "sum": jnp.sum,
    "sum_columns": _columnsums,
    "sum_rows": _rowsums,
    "tan": jnp.tan,
    "tanh": jnp.tanh,
    "trace": jnp.trace,
    "tril": jnp.tril,
    "where": jnp.where,
    "zeros": _zeros,
}
"""Functions of arrays, by name. Reductions go over all elements unless their names say rows or columns."""

STATIC = frozenset(("eye", "ones", "reshape", "zeros"))
"""Functions whose numbers are sizes."""

CONSTANTS: dict[str, float] = {"pi": 3.141592653589793, "infinity": float("inf")}

SPECIAL = ("detach", "length", "marginal", "normalize", "batch", "Mixture", "Flat")
"""Names whose calls are not calls of functions of arrays."""


class TypeName(NamedTuple):
    """A type of the language: its constraint, and how many trailing dimensions are one value."""

    constraint: Any
    event_dim: int = 0
    dtype: str = "float"
    square: bool = False


TYPES: dict[str, TypeName] = {
    "real": TypeName(constraints.real),
    "int": TypeName(None, 0, "int"),
    "bool": TypeName(None, 0, "bool"),
    "positive": TypeName(constraints.positive),
    "nonnegative": TypeName(constraints.nonnegative),
    "unit": TypeName(constraints.unit_interval),
    "circular": TypeName(constraints.circular),
    "simplex": TypeName(constraints.simplex, 1),
    "ordered": TypeName(constraints.ordered_vector, 1),
    "positive_ordered": TypeName(constraints.positive_ordered_vector, 1),
    "sphere": TypeName(constraints.sphere, 1),
    "cholesky": TypeName(constraints.lower_cholesky, 2, square=True),
    "corr_cholesky": TypeName(constraints.corr_cholesky, 2, square=True),
    "correlation": TypeName(constraints.corr_matrix, 2, square=True),
    "covariance": TypeName(constraints.positive_definite, 2, square=True),
}


def _distributions() -> dict[str, Any]:
    found: dict[str, Any] = {}
    abstract = {"Distribution", "ImproperUniform", "Unit", "ExpandedDistribution", "Independent", "MaskedDistribution"}
    for name in dist.__all__:
        value = getattr(dist, name, None)
        if name in abstract or not name[0].isupper() or value is None:
            continue
        if (isinstance(value, type) and issubclass(value, numpyro_distributions.Distribution)) or inspect.isfunction(value):
            found[name] = value
    return found


DISTRIBUTIONS: dict[str, Any] = _distributions()
"""NumPyro's distributions, by name."""

_COUNTS = frozenset(("total_count", "num_steps", "dimension", "num_categories"))


@functools.cache
def integers(name: str) -> frozenset[str]:
    """The parameters of a distribution that are integers, or not numbers at all."""
    kind: Any = DISTRIBUTIONS[name]
    limits = getattr(kind, "arg_constraints", None)
    if not isinstance(limits, dict):
        return _COUNTS
    kept = {n for n, c in limits.items() if getattr(c, "is_discrete", False)}
    kept |= set(parameters(name)) - set(limits)
    return frozenset(kept - ({"low", "high"} if name != "DiscreteUniform" else set()) | _COUNTS)


@functools.cache
def parameters(name: str) -> tuple[str, ...]:
    """The names of a distribution's parameters, in order."""
    signature = inspect.signature(DISTRIBUTIONS[name])
    return tuple(n for n in signature.parameters if n != "validate_args")


@functools.cache
def required(name: str) -> int:
    """How many of them have no default."""
    signature = inspect.signature(DISTRIBUTIONS[name])
    return sum(p.default is p.empty for n, p in signature.parameters.items() if n != "validate_args")


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


ESTIMATORS: dict[str, Any] = {_snake(name): getattr(estimators, name) for name in choice.available()} | {
    _snake(name): getattr(estimators, name) for name in ("LeaveOneOut", "MovingAverage", "Learned", "Vimco")
}
"""Gradient estimators and baselines: `ScoreFunction` is `score_function`."""
ESTIMATORS["disarm"] = estimators.DisARM

OPTIMIZERS: dict[str, Any] = {
    name: getattr(optax, name)
    for name in ("adabelief", "adagrad", "adam", "adamax", "adamw", "lamb", "lion", "nadam", "radam", "rmsprop", "sgd", "yogi")
}

SCHEDULES: dict[str, Any] = {
    "cosine": optax.cosine_decay_schedule,
    "exponential": optax.exponential_decay,
    "linear": optax.linear_schedule,
    "polynomial": optax.polynomial_schedule,
    "warmup_cosine": optax.warmup_cosine_decay_schedule,
}

KNOWN = frozenset((*FUNCTIONS, *CONSTANTS, *SPECIAL, *TYPES, *DISTRIBUTIONS, "E", "D", "grad"))
"""Names that a file cannot give to something else."""

__all__ = ["CONSTANTS", "DISTRIBUTIONS", "ESTIMATORS", "FUNCTIONS", "KNOWN", "OPTIMIZERS", "SCHEDULES", "TYPES"]
