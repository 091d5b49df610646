"""Types: what is known of a value before anything runs. Sizes that are not known yet are large numbers with names, so that
arithmetic and JAX's own shape rules work on them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ppl.lang import tree
from ppl.lang.builtins import DISTRIBUTIONS, TYPES, integers

STEP, REACH = 1_000_000, 400_000
"""The k-th size with a name is k * STEP; what is within REACH of it is shown as that name plus or minus a number."""


class Sizes:
    """Sizes by name: those that the data say, and stand-ins for the others."""

    def __init__(self, known: Mapping[str, int]):
        self.known = dict(known)
        self.names: list[str] = []

    def of(self, name: str) -> int:
        if name in self.known:
            return self.known[name]
        if name not in self.names:
            self.names.append(name)
        return STEP * (self.names.index(name) + 1)

    def show(self, size: int) -> str:
        if size < REACH:
            return str(size)
        place = round(size / STEP)
        rest = size - place * STEP
        if not 1 <= place <= len(self.names) or abs(rest) > REACH:
            return "?"
        name = self.names[place - 1]
        return name if rest == 0 else f"{name} {'+' if rest > 0 else '-'} {abs(rest)}"

    def shape(self, shape: tuple[int, ...]) -> str:
        return f"[{', '.join(map(self.show, shape))}]"


def named(size: int) -> bool:
    """Whether a size is not known yet."""
    return size >= REACH


def exceeds(index: int, length: int) -> bool:
    """Whether an index is known to lie beyond a length."""
    comparable = named(index) == named(length) and (not named(index) or round(index / STEP) == round(length / STEP))
    return index > length and comparable


@dataclasses.dataclass(frozen=True)
class Array:
    """An array or a number. `value` is known where it is a number known now; `low` and `high` bound an index.

    `zero_based` says that it is a category as NumPyro counts them, from zero.
    """

    shape: tuple[int, ...] = ()
    dtype: str = "float"
    value: int | float | None = None
    low: int | None = None
    high: int | None = None
    zero_based: bool = False

    @property
    def struct(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.shape, DTYPES[self.dtype]())


DTYPES: dict[str, Any] = {
    "float": lambda: jnp.result_type(float),
    "int": lambda: jnp.result_type(int),
    "bool": lambda: jnp.bool_,
}


class Unknown:
    """Nothing is known: what comes from Python, and what was wrong and has been reported."""


ANY = Unknown()


@dataclasses.dataclass(frozen=True)
class Distribution:
    """A distribution: its name, the types of its parameters, and the shapes that follow."""

    name: str
    parameters: tuple[tuple[str, Any], ...]
    batch: tuple[int, ...] = ()
    event: tuple[int, ...] = ()
    dtype: str = "float"
    zero_based: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return self.batch + self.event


@dataclasses.dataclass(frozen=True)
class Pieces:
    """An array that is defined piece by piece: ranges of the first index, and the type of an element."""

    element: Any
    parts: tuple[tuple[int, int], ...]

    def whole(self) -> Any:
        element = plain(self.element)
        if not isinstance(element, Array):
            return ANY
        return Array((self.parts[-1][1] - self.parts[0][0], *element.shape), element.dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Trace:
    """What a program draws, by name; with `count`, that many draws."""

    sites: Mapping[str, Any]
    program: str = ""
    count: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """`sites` are the shapes of what it draws, by address, None where they are not known; `observed` those at data's names."""

    name: str
    names: tuple[str, ...] = ()
    total: int = 0
    sites: Mapping[str, Any] | None = None
    observed: frozenset[str] = frozenset()
    covariates: frozenset[str] = frozenset()
    result: Any = ANY


@dataclasses.dataclass(frozen=True, eq=False)
class Function:
    definition: tree.Function
    source: Any
    scope: Any


class WrongTypesError(Exception):
    """A function or distribution cannot take arguments of these types."""


def plain(value: Any) -> Any:
    """The type of an expression's value, pieces put together."""
    return value.whole() if isinstance(value, Pieces) else value


def from_struct(struct: Any) -> Any:
    if not hasattr(struct, "shape"):
        return ANY
    kind = "bool" if struct.dtype == jnp.bool_ else "int" if jnp.issubdtype(struct.dtype, jnp.integer) else "float"
    return Array(tuple(struct.shape), kind)


@functools.lru_cache(maxsize=8192)
def applied(function: Any, arguments: tuple[Any, ...]) -> Any:
    """The type of a function's value. Arguments are array types, or numbers that have to be known."""
    structs = [a.struct for a in arguments if isinstance(a, Array)]

    def call(*arrays: Any) -> Any:
        rest = iter(arrays)
        return function(*[next(rest) if isinstance(a, Array) else a for a in arguments])

    try:
        return from_struct(jax.eval_shape(call, *structs))
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise WrongTypesError(lines[0] if lines else type(error).__name__) from None


@functools.lru_cache(maxsize=8192)
def distribution(name: str, parameters: tuple[tuple[str, Any], ...]) -> Distribution:
    """The type of a distribution with parameters of these types."""
    made: dict[str, Any] = {}
    structs = _structs(parameters)
    large = sorted({size for struct in structs for size in struct.shape if named(size)})
    small = {size: 401 + 12 * place for place, size in enumerate(large)}  # NumPyro makes matrices of these sizes
    back = {other: size for size, other in small.items()}
    structs = [jax.ShapeDtypeStruct(tuple(small.get(size, size) for size in s.shape), s.dtype) for s in structs]

    def construct(arrays: list[Any]) -> Any:
        built = _construct(name, parameters, iter(arrays))
        made.update(batch=tuple(built.batch_shape), event=tuple(built.event_shape))
        support = getattr(built, "support", None)
        made.update(discrete=bool(getattr(support, "is_discrete", False)))
        return 0

    try:
        jax.eval_shape(construct, structs)
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise WrongTypesError(lines[0] if lines else type(error).__name__) from None
    discrete = made["discrete"]
    batch, event = (tuple(back.get(size, size) for size in made[part]) for part in ("batch", "event"))
    return Distribution(name, parameters, batch, event, "int" if discrete else "float", discrete and name in _CATEGORICAL)


_CATEGORICAL = frozenset(("Categorical", "CategoricalProbs", "CategoricalLogits", "Bernoulli", "OrderedLogistic"))


def _structs(parameters: Any) -> list[Any]:
    found: list[Any] = []
    for _, kind in parameters:
        if isinstance(kind, Array) and kind.value is None:
            found.append(kind.struct)
        elif isinstance(kind, Distribution):
            found.extend(_structs(kind.parameters))
    return found


def _construct(name: str, parameters: Any, arrays: Any) -> Any:
    values: dict[str, Any] = {}
    kept = integers(name) if name in DISTRIBUTIONS else frozenset()
    for key, kind in parameters:
        if isinstance(kind, Distribution):
            values[key] = _construct(kind.name, kind.parameters, arrays)
        elif not isinstance(kind, Array):
            values[key] = kind
        elif kind.value is not None:
            values[key] = kind.value if key in kept else float(kind.value)
        else:
            values[key] = next(arrays)
    if name == "Mixture":
        weights, *components = values.values()
        if not isinstance(weights, dist.Distribution):
            weights = dist.CategoricalProbs(weights)
        if len(components) == 1:
            return dist.MixtureSameFamily(weights, components[0], validate_args=False)
        return dist.MixtureGeneral(weights, components, validate_args=False)
    if name == "Flat":
        return dist.ImproperUniform(TYPES[values["type"]].constraint, values["batch"], values["event"])
    return DISTRIBUTIONS[name](**values)
