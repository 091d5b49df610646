"""Between the values of latent variables and one vector of real numbers, with the log determinants of the Jacobians."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax.numpy as jnp
import numpyro.distributions as dist
from jax.extend.core import Jaxpr

from ppl import errors
from ppl.families.latents import Latent
from ppl.program import Bound, inline
from ppl.site import DETERMINISTIC, OBSERVED, SAMPLE, SUBSAMPLE, Address, Operands, Site, feasible, lanes, show
from ppl.supports import base
from ppl.transforms.dependence import DependenceGraph, dependence
from ppl.transforms.interpret import Inputs, Record, run
from ppl.transforms.simulate import Density, given_value
from ppl.transforms.stage import Located, stage

Values = Mapping[Address, Any]


class Coordinates(Protocol):
    """A bijection between vectors `[D]` and the values of some latent variables by address.

    `consts` are the arrays that it needs beside. `elements` are log densities of the coordinates, one each, which are added to
    the log determinant for those coordinates that count: all but those in branches that are not taken.
    """

    @property
    def latents(self) -> Sequence[Latent]: ...

    def constrain(self, consts: Any, z: Any, elements: Any = None) -> tuple[dict[Address, Any], Any]:
        """The values, and `sum(elements) - log |d values / d z|`."""
        ...

    def free(self, consts: Any, values: Values) -> tuple[Any, Any]:
        """The vector, and `-log |d values / d z|`."""
        ...


def split(latents: Sequence[Latent], z: Any) -> dict[Address, Any]:
    """The unconstrained values by address of a vector of all of them."""
    pieces, start = {}, 0
    for latent in latents:
        pieces[latent.address] = jnp.reshape(z[start : start + latent.size], latent.free)
        start += latent.size
    return pieces


def join(latents: Sequence[Latent], pieces: Values) -> Any:
    """The vector of unconstrained values by address."""
    parts = [jnp.ravel(pieces[latent.address]) for latent in latents]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


@dataclasses.dataclass(frozen=True, eq=False)
class Fixed:
    """Every support is known before anything runs."""

    latents: Sequence[Latent]

    def constrain(self, consts: Any, z: Any, elements: Any = None) -> tuple[dict[Address, Any], Any]:
        values, total = {}, jnp.zeros(()) if elements is None else jnp.sum(elements)
        for latent, (address, u) in zip(self.latents, split(self.latents, z).items(), strict=True):
            values[address], log_det = _forward(latent.support, u)
            total = total if log_det is None else total - log_det
            values[address] = values[address].astype(latent.dtype)
        return values, total

    def free(self, consts: Any, values: Values) -> tuple[Any, Any]:
        pieces, total = {}, jnp.zeros(())
        for latent in self.latents:
            pieces[latent.address], log_det = _backward(latent.support, values[latent.address])
            total = total if log_det is None else total - log_det
        return join(self.latents, pieces), total


def _is_real(support: Any) -> bool:
    return isinstance(support, type(dist.constraints.real)) or bool(support.is_discrete)


def _forward(support: Any, u: Any) -> tuple[Any, Any]:
    if _is_real(support):
        return u, None
    bijection = dist.biject_to(base(support))
    value = bijection(u)
    return value, jnp.sum(bijection.log_abs_det_jacobian(u, value))


def _backward(support: Any, value: Any) -> tuple[Any, Any]:
    if _is_real(support):
        return value, None
    bijection = dist.biject_to(base(support))
    u = bijection.inv(value)
    return u, jnp.sum(bijection.log_abs_det_jacobian(u, value))


@dataclasses.dataclass(frozen=True, eq=False)
class ByRunning:
    """Supports move with other values, or variables stand in branches: the model is run to find them.

    What the model computes beside is not used, and dropped by the compiler.
    """

    latents: Sequence[Latent]
    jaxpr: Jaxpr

    def constrain(self, consts: Any, z: Any, elements: Any = None) -> tuple[dict[Address, Any], Any]:
        roles = {"free": split(self.latents, z)}
        if elements is not None:
            roles["elements"] = split(self.latents, elements)
        return self._run(consts, Constrain(self._addresses()), roles)

    def free(self, consts: Any, values: Values) -> tuple[Any, Any]:
        pieces, total = self._run(consts, Free(self._addresses()), {"trace": dict(values)})
        return join(self.latents, pieces), total

    def _addresses(self) -> frozenset[Address]:
        return frozenset(latent.address for latent in self.latents)

    def _run(self, consts: Any, rule: Any, roles: dict[str, dict[Address, Any]]) -> tuple[dict[Address, Any], Any]:
        _, record = run(self.jaxpr, consts, [], rule, Inputs(roles), {})
        return record.values, record.total


@dataclasses.dataclass(frozen=True)
class _Run(Density):
    """What both directions share; the total is a log density."""

    addresses: frozenset[Address]

    def records(self, located: Located) -> bool:
        return located.site.address in self.addresses

    def estimated(self, estimated: Any, leaves: Sequence[Any], given: Any) -> tuple[list[Any], Record]:
        raise errors.FamilyError(
            f"{estimated.site.name!r} has an integrated density, in a model with supports that move or with variables in "
            f"branches.\n  {estimated.site.where}\nSuch a model needs a family of your own."
        )

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        if site.kind == SUBSAMPLE:
            return jnp.zeros(site.full_shape, site.dtype), None, None
        if site.kind != SAMPLE:
            value = given_value(site, leaves)
            return value, None, jnp.zeros(()) if site.kind == OBSERVED else None
        if not given:  # another family's: nothing here depends on it
            return feasible(site, site.full_shape), None, jnp.zeros(())
        return self.latent(site, leaves, given)

    def latent(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any]) -> tuple[Any, Any, Any]:
        raise NotImplementedError


class Constrain(_Run):
    """From unconstrained values to values."""

    def latent(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any]) -> tuple[Any, Any, Any]:
        def one(operands: Operands, u: Any) -> tuple[Any, Any]:
            value, log_det = _forward(operands.distribution.support, u)
            return value.astype(site.dtype), jnp.zeros(()) if log_det is None else log_det

        values, log_dets = lanes(site, leaves, one, given["free"])
        elements = jnp.sum(given["elements"]) if "elements" in given else 0.0
        return values, values, elements - jnp.sum(log_dets)


class Free(_Run):
    """From values to unconstrained values."""

    def latent(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any]) -> tuple[Any, Any, Any]:
        def one(operands: Operands, value: Any) -> tuple[Any, Any]:
            u, log_det = _backward(operands.distribution.support, value)
            return u, jnp.zeros(()) if log_det is None else log_det

        u, log_dets = lanes(site, leaves, one, given["trace"])
        return given["trace"], u, -jnp.sum(log_dets)


def coordinates_of(model: Bound, latents: Sequence[Latent]) -> tuple[Coordinates, Any]:
    """The coordinates of some latent variables of a model, and the arrays that these need."""
    asking = list(needs_run(latents))
    if not asking:
        return Fixed(tuple(latents)), []
    here = {latent.address for latent in latents}
    graph = dependence(model)
    latent_nodes = {node.site.address for node in graph.nodes if node.site.kind == SAMPLE}
    for latent in asking:
        for address in sorted(_ancestors(graph, latent.address) & latent_nodes):
            if address not in here:
                what = "stands in a branch of a cond" if latent.branch else "has a support that moves with other variables"
                raise errors.FamilyError(
                    f"{latent.name!r} {what} and depends on {show(address)!r}, which another family draws.\n  {latent.where}\n"
                    "Use one family for the two, or write this part as a program of your own."
                )
    staged = stage(lambda: inline(model, ()))
    return ByRunning(tuple(latents), staged.jaxpr.jaxpr), staged.jaxpr.consts


def _ancestors(graph: DependenceGraph, address: Address) -> set[Address]:
    """The sites that decide a site's support or branch: its parents, and theirs through deterministic sites."""
    kinds = {node.site.address: node.site.kind for node in graph.nodes}
    found: set[Address] = set()
    todo = [address]
    while todo:
        child = todo.pop()
        for edge in graph.edges:
            if edge.child == child and not edge.into_factor and edge.parent not in found and edge.parent != address:
                found.add(edge.parent)
                if kinds[edge.parent] == DETERMINISTIC:
                    todo.append(edge.parent)
    return found


def needs_run(latents: Sequence[Latent]) -> Iterator[Latent]:
    """The latent variables that only a run of the model tells the support or the presence of."""
    return (latent for latent in latents if latent.support is None or latent.branch)


def flat_dtype() -> Any:
    return jnp.result_type(float)


def refuse_branches(latents: Sequence[Latent], what: str) -> None:
    """Refuse variables that are not always there, in a density that does not factorize."""
    for latent in latents:
        if latent.branch:
            raise errors.FamilyError(
                f"{latent.name!r} stands in a branch of a cond, and counts only where that is taken; the coordinates of {what} "
                f"cannot come and go.\n  {latent.where}\nUse mean_field, or draw it before the cond."
            )


__all__ = ["ByRunning", "Coordinates", "Fixed", "coordinates_of", "flat_dtype", "join", "needs_run", "refuse_branches", "split"]
