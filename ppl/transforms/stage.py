"""From a Python function to a jaxpr with its sites, and the table of the sites in it."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.extend.core import primitives as jp

from ppl import errors
from ppl.estimated import estimated_p
from ppl.estimators.protocol import unknown
from ppl.lanes import inner_jaxprs, lanes_p, loop_in_lanes, loops_first, site_of
from ppl.site import DETERMINISTIC, OBSERVED, SAMPLE, SUBSAMPLE, Address, PlateAxis, Site, show, site_p


@dataclasses.dataclass(frozen=True)
class Staged:
    """A function as a jaxpr without arguments: what it closed over is in `jaxpr.consts`."""

    jaxpr: ClosedJaxpr
    rebuild: Callable[[list[Any]], Any]


def stage(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Staged:
    """Trace a function with all its arguments closed over, so that arguments may be any objects.

    Leaves of the result that are not arrays or numbers are kept as they are.
    """
    if loops_first.value:
        with loops_first(False):  # around the objective, and not around the programs in it
            return _stage(function, args, kwargs)
    return _stage(function, args, kwargs)


def stage_objective(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Staged:
    """The same for a function whose sites nobody asks for in a trace: loops may stand around plates."""
    staged = _stage(function, args, kwargs)
    if loops_first.value or not loop_in_lanes(staged.jaxpr.jaxpr):
        return staged
    with loops_first(True):
        return _stage(function, args, kwargs)


def _stage(function: Callable[..., Any], args: Any, kwargs: Any) -> Staged:
    box: dict[str, Any] = {}

    def thunk() -> list[Any]:
        leaves, tree = jax.tree.flatten(function(*args, **kwargs))
        dynamic = [is_array(leaf) for leaf in leaves]
        box["tree"], box["dynamic"] = tree, dynamic
        box["static"] = [None if there else leaf for there, leaf in zip(dynamic, leaves, strict=True)]
        return [leaf for there, leaf in zip(dynamic, leaves, strict=True) if there]

    jaxpr = jax.make_jaxpr(thunk)()
    tree, dynamic, static = box["tree"], box["dynamic"], box["static"]

    def rebuild(outs: list[Any]) -> Any:
        arrays = iter(outs)
        return jax.tree.unflatten(tree, [next(arrays) if d else s for d, s in zip(dynamic, static, strict=True)])

    return Staged(jaxpr, rebuild)


def is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex)


@dataclasses.dataclass(frozen=True)
class Located:
    """A site and the axes that control flow stacks its values along, outermost first.

    `in_body` says that it stands in the body of control flow, `exclusive` in which branches of which conds, `subsampled` that a
    plate around it with a `size` multiplies its cost, by `scale` in all. `operands` are the site's in one lane: numbers where
    they are literals or made of one, otherwise `unknown` of their shape.
    """

    site: Site
    stack: tuple[int, ...] = ()
    axes: tuple[str, ...] = ()
    in_while: bool = False
    in_body: bool = False
    exclusive: tuple[tuple[int, int], ...] = ()
    subsampled: bool = False
    operands: tuple[Any, ...] = ()
    lane_scale: float = 1.0

    @property
    def scale(self) -> float:
        return self.lane_scale * self.site.plate_scale

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values in a trace."""
        return self.stack + self.site.full_shape

    @property
    def recorded(self) -> bool:
        """Whether a trace holds a value for it."""
        return self.site.kind in (SAMPLE, DETERMINISTIC, SUBSAMPLE)


_tables: weakref.WeakKeyDictionary[Jaxpr, list[Located]] = weakref.WeakKeyDictionary()


def sites(jaxpr: Jaxpr, consts: Sequence[Any] = ()) -> list[Located]:
    """All sites of a jaxpr, in program order. Operands are known better where the values of its constants are."""
    if consts:
        known = zip(jaxpr.constvars, map(_uniform, consts), strict=True)
        return list(_walk(jaxpr, {var: value for var, value in known if value is not None}))
    if jaxpr not in _tables:
        _tables[jaxpr] = list(_walk(jaxpr, {}))
    return _tables[jaxpr]


def _uniform(const: Any) -> Any:
    """The number that a concrete array has everywhere, if it has one."""
    if isinstance(const, jax.core.Tracer) or not isinstance(jax.typeof(const).dtype, np.dtype) or not np.size(const):
        return None
    array = np.asarray(const)
    return array.flat[0] if np.all(array == array.flat[0]) else None


def _walk(jaxpr: Jaxpr, uniform: dict[Any, Any]) -> Iterator[Located]:
    """`uniform` has the variables that are one number everywhere, and which one."""
    for eqn in jaxpr.eqns:
        if eqn.primitive is site_p:
            site = eqn.params["site"]
            axes = tuple(plate_name(plate.axis) for plate in reversed(site.plates))
            operands = tuple(_one_lane(site, i, atom, uniform) for i, atom in enumerate(eqn.invars))
            yield Located(site, axes=axes, subsampled=any(_subsamples(p.axis, p.size) for p in site.plates), operands=operands)
        elif eqn.primitive.name in ("broadcast_in_dim", "reshape", "squeeze"):
            atom = eqn.invars[0]
            if isinstance(atom, Literal):
                uniform[eqn.outvars[0]] = atom.val
            elif atom in uniform:
                uniform[eqn.outvars[0]] = uniform[atom]
        elif eqn.primitive is estimated_p:
            yield from eqn.params["estimated"].located
        elif site_of(eqn) is not None:
            for branch, inner in enumerate(inner_jaxprs(eqn.params)):
                for located in sites(inner):
                    yield _inside(eqn, branch, located)


def _one_lane(site: Site, operand: int, atom: Any, uniform: dict[Any, Any]) -> Any:
    if isinstance(atom, Literal):
        return atom.val
    if not isinstance(atom.aval.dtype, np.dtype):
        return 0.0
    shape = atom.aval.shape[sum(plate.batched[operand] for plate in site.plates) :]
    return np.full(shape, uniform[atom], atom.aval.dtype) if atom in uniform else unknown(shape, atom.aval.dtype)


def _subsamples(axis: PlateAxis | None, size: int) -> bool:
    return axis is not None and axis.total not in (None, size)


def plate_name(axis: PlateAxis | None) -> str:
    return "vmap" if axis is None else axis.name


def _inside(eqn: Any, branch: int, located: Located) -> Located:
    stack, axes = located.stack, located.axes
    if eqn.primitive in (jp.jit_p, jp.closed_call_p):
        return located
    located = dataclasses.replace(located, in_body=True)
    if eqn.primitive is jp.scan_p:
        return dataclasses.replace(located, stack=(eqn.params["length"], *stack), axes=("scan", *axes))
    if eqn.primitive is lanes_p:
        axis = eqn.params["axis"]
        size = eqn.params["size"]
        scale = axis.total / size if _subsamples(axis, size) else 1.0
        subsampled = located.subsampled or _subsamples(axis, size)
        located = dataclasses.replace(located, subsampled=subsampled, lane_scale=scale * located.lane_scale)
        return dataclasses.replace(located, stack=(eqn.params["size"], *stack), axes=(plate_name(axis), *axes))
    if eqn.primitive is jp.while_p:
        return dataclasses.replace(located, in_while=True)
    if eqn.primitive is jp.cond_p:
        return dataclasses.replace(located, exclusive=((id(eqn), branch), *located.exclusive))
    return located


def check_addresses(table: list[Located]) -> None:
    """Refuse a program in which two sites share an address, unless at most one of the two ever runs."""
    seen: dict[tuple[bool, Address], list[Located]] = {}
    for located in table:
        site = located.site
        is_factor = site.kind == "factor"
        for other in seen.get((is_factor, site.address), ()):
            if not _exclusive(located, other):
                raise errors.DuplicateAddressError(
                    f"the address {site.name!r} is used twice.\n  first:  {other.site.where}\n  second: {site.where}\n"
                    "Give each site an address of its own, or draw several values at one address under jax.vmap."
                )
            same = located.shape == other.shape and site.dtype == other.site.dtype
            if not same and located.recorded and other.recorded:
                raise errors.DuplicateAddressError(
                    f"the branches of a cond share the address {site.name!r} with different values, "
                    f"{other.site.dtype}{list(other.shape)} and {site.dtype}{list(located.shape)}.\n"
                    f"  first:  {other.site.where}\n  second: {site.where}\nUse two addresses."
                )
        seen.setdefault((is_factor, site.address), []).append(located)
    recorded = {located.site.address: located for located in table if located.site.kind != "factor"}
    for address, located in recorded.items():
        for cut in range(len(address)):
            if address[:cut] in recorded:
                other = recorded[address[:cut]]
                raise errors.DuplicateAddressError(
                    f"the address {show(address[:cut])!r} holds a value and, with {show(address)!r}, a sub-program too.\n"
                    f"  first:  {other.site.where}\n  second: {located.site.where}"
                )


def _exclusive(one: Located, other: Located) -> bool:
    branches = dict(one.exclusive)
    return any(branches.get(cond, branch) != branch for cond, branch in other.exclusive)


def density_addresses(table: list[Located]) -> dict[Address, Located]:
    """Addresses of the sites that a trace is about: everything but factors."""
    return {located.site.address: located for located in table if located.site.kind != "factor"}


__all__ = [
    "OBSERVED",
    "Located",
    "Staged",
    "check_addresses",
    "density_addresses",
    "is_array",
    "sites",
    "stage",
    "stage_objective",
]
