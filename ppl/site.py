"""The sample primitive: one equation in a jaxpr for every random choice, observation, factor or named value.

A site's operands are the leaves of its distribution (a pytree) and of what conditions it; everything static about it is
a `Site`. Under `jax.vmap` a site records the batched axis as a `Plate`, even when none of its operands is batched, so
that every lane draws for itself. Executing, lowering or differentiating an untransformed site is an error.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from numpyro.distributions import constraints

from ppl import errors

Address = tuple[str, ...]

_HERE = os.path.dirname(os.path.abspath(__file__))
_NOT_THE_USER = (_HERE, os.path.dirname(os.path.abspath(jax.__file__)))
_PACKAGES = ("numpyro", "equinox", "flax", "optax", "jaxtyping")
_LIBRARIES = (
    *(os.path.join("site-packages", name) + os.sep for name in _PACKAGES),
    *(os.sep + name for name in ("functools.py", "contextlib.py")),
)


class Where(NamedTuple):
    """A place in the user's source."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f'File "{self.file}", line {self.line}, in {self.function}'


def user_code(file: str) -> bool:
    """Whether a source file belongs neither to `ppl` nor to the libraries it stands on."""
    return not (file.startswith(_NOT_THE_USER) or any(part in file for part in _LIBRARIES) or file.startswith("<"))


_text: contextvars.ContextVar[Where | None] = contextvars.ContextVar("text", default=None)


@contextlib.contextmanager
def located(where: Where) -> Iterator[None]:
    """Sites that are made inside stand at a place in a text that is no Python."""
    token = _text.set(where)
    try:
        yield
    finally:
        _text.reset(token)


def user_frame() -> Where:
    """The innermost frame that belongs neither to `ppl` nor to the libraries it stands on, or what `located` says."""
    text = _text.get()
    if text is not None:
        return text
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if user_code(file):
            return Where(file, frame.f_lineno, frame.f_code.co_qualname)
        frame = frame.f_back  # type: ignore[assignment]
    return Where("<unknown>", 0, "<unknown>")


@dataclasses.dataclass(frozen=True)
class PlateAxis:
    """The `axis_name` of a `vmap` that means more than the vmap does: a name, and a population it subsamples."""

    name: str
    total: int | None = None


class Plate(NamedTuple):
    """A batched axis of a site. `batched[i]` says whether operand `i` has it (then in front)."""

    axis: PlateAxis | None
    size: int
    batched: tuple[bool, ...]

    @property
    def scale(self) -> float:
        """What a cost in this plate counts: population over batch."""
        return 1.0 if self.axis is None or self.axis.total is None else self.axis.total / self.size


class Operands(NamedTuple):
    """What flows into a site: `value` is an observation, a substituted value, a log factor or a named value.

    `estimator` is the site's gradient estimator where that holds arrays (a learned baseline, the parameters of a proposal).
    """

    distribution: Any = None
    value: Any = None
    scale: Any = None
    mask: Any = None
    estimator: Any = None


SAMPLE, OBSERVED, FACTOR, DETERMINISTIC, SUBSAMPLE = "sample", "observed", "factor", "deterministic", "subsample"


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """Everything static about a site.

    `kind` is one of the five above; `tree` restores the `Operands` from the operands' leaves; `shape` and `dtype` are
    the value's in one lane; `plates` are the batched axes, innermost first; `support` is a NumPyro constraint, or None
    where it depends on traced parameters.
    """

    address: Address
    kind: str
    tree: Any
    shape: tuple[int, ...]
    dtype: Any
    support: Any
    where: Where
    distribution_name: str = ""
    event_dim: int = 0
    plates: tuple[Plate, ...] = ()
    estimator: Any = None
    detached: bool = False
    simulated: bool = False
    moving_support: bool = False

    def __repr__(self) -> str:
        return f"Site({self.name}, {self.kind}{', ' + self.distribution_name if self.distribution_name else ''})"

    @property
    def name(self) -> str:
        return show(self.address)

    @property
    def plate_shape(self) -> tuple[int, ...]:
        return tuple(plate.size for plate in reversed(self.plates))

    @property
    def full_shape(self) -> tuple[int, ...]:
        return self.plate_shape + self.shape

    @property
    def plate_scale(self) -> float:
        scale = 1.0
        for plate in self.plates:
            scale *= plate.scale
        return scale

    def replace(self, **changes: Any) -> Site:
        return dataclasses.replace(self, **changes)


def show(address: Address) -> str:
    """An address as users write it: `sub/x`."""
    return "/".join(address) if address else "<value>"


site_p = Primitive("site")


def bind(site: Site, leaves: Sequence[Any]) -> Any:
    """Put a site into the program that is being traced."""
    return site_p.bind(*leaves, site=site)


def rebind(site: Site, leaves: Sequence[Any], *, keep: Sequence[str] = Operands._fields, **changes: Any) -> Any:
    """Bind a changed copy of a site that has only the operands named in `keep`."""
    operands = restore(site, leaves)
    flags = [restore(site, plate.batched) for plate in site.plates]
    drop = {name: None for name in Operands._fields if name not in keep}
    new_leaves, tree = jax.tree.flatten(operands._replace(**drop))
    plates = tuple(
        plate._replace(batched=tuple(jax.tree.leaves(flag._replace(**drop))))
        for plate, flag in zip(site.plates, flags, strict=True)
    )
    return bind(site.replace(tree=tree, plates=plates, **changes), new_leaves)


def restore(site: Site, leaves: Sequence[Any]) -> Operands:
    return jax.tree.unflatten(site.tree, leaves)


def estimator_of(site: Site, leaves: Sequence[Any]) -> Any:
    """The gradient estimator that the user named for a site, or None."""
    return site.estimator if site.estimator is not None else restore(site, leaves).estimator


def split_estimator(estimator: Any) -> tuple[Any, Any]:
    """An estimator as what is static, `Site.estimator`, or as an operand if it holds arrays: one of the two is None."""
    leaves = jax.tree.leaves(estimator)
    if leaves and all(isinstance(leaf, jax.Array | np.ndarray | np.generic | float | int) for leaf in leaves):
        return None, estimator
    return estimator, None


def has_value(site: Site) -> bool:
    """Whether the site carries a value: an observation, a substituted or a computed one."""
    return restore(site, [0.0] * site.tree.num_leaves).value is not None


def lanes(site: Site, leaves: Sequence[Any], function: Callable[..., Any], *extra: Any) -> Any:
    """`function(operands, *extra)` for one lane, mapped over all plates; `extra` have every plate's axis in front."""

    def one(leaves: Any, *extra: Any) -> Any:
        return function(restore(site, leaves), *extra)

    for plate in site.plates:
        axes = [0 if batched else None for batched in plate.batched]
        one = jax.vmap(one, in_axes=(axes, *[0] * len(extra)), axis_size=plate.size)
    return one(list(leaves), *extra)


@site_p.def_abstract_eval
def _abstract(*leaves: Any, site: Site) -> Any:
    return jax.core.ShapedArray(site.full_shape, site.dtype)


def _batch(axis_data: Any, leaves: Sequence[Any], dims: Sequence[Any], *, site: Site) -> tuple[Any, int]:
    moved = [x if d is None else batching.bdim_at_front(x, d, axis_data.size) for x, d in zip(leaves, dims, strict=True)]
    axis = axis_data.name if isinstance(axis_data.name, PlateAxis) else None
    plate = Plate(axis, axis_data.size, tuple(d is not None for d in dims))
    return bind(site.replace(plates=(*site.plates, plate)), moved), 0


batching.fancy_primitive_batchers[site_p] = _batch


def _differentiate(primals: Any, tangents: Any, *, site: Site) -> Any:
    raise errors.DifferentiationError(
        f"jax.grad (or jvp) reached the random choice {site.name!r}.\n  {site.where}\n"
        "Plain differentiation of a sample has no meaning. Write the quantity as an objective: decorate the function "
        "with @ppl.expectation and call its .grad or .value_and_grad; inside an objective, differentiate log densities "
        "of values that are already drawn."
    )


ad.primitive_jvps[site_p] = _differentiate


@site_p.def_impl
def _execute(*leaves: Any, site: Site) -> Any:
    raise errors.OutsideProgramError(
        f"the site {site.name!r} was executed outside of a program.\n  {site.where}\n"
        "Draw it with a key: decorate the function with @ppl.program and call bound.simulate(key) or "
        "bound.sample(key), or use ppl.seed(function)(key, ...)."
    )


def refuse_lowering(site: Site) -> None:
    raise errors.UntransformedSiteError(
        f"the site {site.name!r} was compiled without a transformation to say what it means.\n  {site.where}\n"
        "Apply ppl.seed, ppl.expectation or ppl.log_density before jax.jit: "
        "jax.jit(ppl.seed(function))(key, ...), jax.jit(objective.value_and_grad)(key, ...)."
    )


def _lower(ctx: Any, *leaves: Any, site: Site) -> Any:
    refuse_lowering(site)


mlir.register_lowering(site_p, _lower)


def value_like(site: Site, full: bool = True) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(site.full_shape if full else site.shape, site.dtype)


def feasible(site: Site, shape: tuple[int, ...]) -> Any:
    """A constant in the support of a site, to stand where no value was drawn."""
    zeros = jnp.zeros(shape, site.dtype)
    if site.support is None:
        return zeros
    return jnp.broadcast_to(site.support.feasible_like(zeros), shape).astype(site.dtype)


def describe_support(support: Any) -> str:
    """A NumPyro constraint in few words: `Real`, `Positive`, `Interval(0, 10)`."""
    if support is None:
        return "?"
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    name = type(support).__name__.lstrip("_")
    if name in ("Positive", "Nonnegative", "UnitInterval", "IntegerNonnegative", "IntegerPositive", "Circular"):
        return name
    bounds = [getattr(support, bound, None) for bound in ("lower_bound", "upper_bound")]
    shown = [str(bound) if np.ndim(bound) else f"{float(bound):g}" for bound in bounds if bound is not None]
    return f"{name}({', '.join(shown)})" if shown else name
