"""Divergences between the sites of two programs in closed form, where NumPyro knows one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from ppl.address import flatten
from ppl.densities import batched_distribution, elementwise, parameters
from ppl.estimated import Estimated
from ppl.site import DETERMINISTIC, SAMPLE, Address, Site, restore
from ppl.transforms.dependence import DependenceGraph, dependence_of
from ppl.transforms.interpret import Record, run_staged
from ppl.transforms.log_density import LogDensity
from ppl.transforms.modify import Prepared, Program, prepare
from ppl.transforms.stage import Located


def closed_form_divergences(family: Program, model: Program, trace: Any) -> dict[Address, Any]:
    """`KL(q(z_i | parents) || p(z_i | parents))` in nats, for each latent that has one in closed form, at the parents' values.

    Under draws of the family, the expectation of such a divergence is that of `log q(z_i | ...) - log p(z_i | ...)`. That takes
    parents in the model that do not depend on `z_i` in the family. Where they might, where NumPyro knows no formula, and where
    a site is masked, scaled or in the branch of a `cond`, the address is left out.
    """
    of_family, of_model = prepare(family), prepare(model)
    addresses = _comparable(of_family) & _comparable(of_model)
    below, above = _descendants(dependence_of(of_family)), _parents(dependence_of(of_model))
    addresses = {a for a in addresses if not below[a] & above[a]}
    if not addresses:
        return {}
    values = flatten(trace)
    kinds: dict[Address, Any] = {}
    inputs = of_family.inputs(trace=values)
    _, found = run_staged(of_family.staged, of_family.rule(_Parameters(addresses, kinds)), inputs)
    inputs = of_model.inputs(trace=values, family=found.values)
    _, divergences = run_staged(of_model.staged, of_model.rule(_Divergence(kinds)), inputs)
    return {address: jnp.sum(value) for address, value in divergences.values.items()}


class _Unscored(LogDensity):
    """Programs with densities that are integrals take their values, and have no divergence in closed form."""

    def estimated(self, estimated: Estimated, leaves: Sequence[Any], given: dict[Address, Any]) -> tuple[list[Any], Record]:
        return estimated.outs(self.values(estimated, leaves, given)[1]), Record({}, self.zero())


@dataclasses.dataclass(frozen=True)
class _Parameters(_Unscored):
    """Records the parameters of sites, for every element; `kinds` gets their classes."""

    addresses: set[Address]
    kinds: dict[Address, Any]

    def records(self, located: Located) -> bool:
        return False

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        value = super().site(site, leaves, given, key)[0]
        distribution = _batched(site, leaves) if site.address in self.addresses and site.kind == SAMPLE else None
        if distribution is None:
            return value, None, None
        self.kinds[site.address] = type(distribution)
        return value, _spread(distribution), None


@dataclasses.dataclass(frozen=True)
class _Divergence(_Unscored):
    """Records the divergence from the family's site, of the class and with the parameters given, to the model's."""

    kinds: Mapping[Address, Any]

    def records(self, located: Located) -> bool:
        return False

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        value = super().site(site, leaves, given, key)[0]
        model = _batched(site, leaves) if "family" in given else None
        if model is None:
            return value, None, None
        family = self.kinds[site.address](**given["family"], validate_args=False)
        try:
            elements = dist.kl_divergence(family, model)
        except NotImplementedError:
            return value, None, None
        return value, jnp.sum(elements), None


def _batched(site: Site, leaves: Sequence[Any]) -> Any:
    """The site's distribution with all independent elements in its batch shape, if its parameters alone say what it is."""
    batched = batched_distribution(site, leaves) if site.plates else restore(site, leaves).distribution
    core = None if batched is None else elementwise(batched)
    kind: Any = type(core)
    return None if core is None or parameters(kind) is None else core


def _spread(distribution: Any) -> dict[str, Any]:
    kind: Any = type(distribution)
    spread = {}
    for name, event_dim in parameters(kind) or ():
        value = jnp.asarray(getattr(distribution, name))
        event = jnp.shape(value)[jnp.ndim(value) - event_dim :]
        spread[name] = jnp.broadcast_to(value, distribution.batch_shape + event)
    return spread


def _comparable(prepared: Prepared) -> set[Address]:
    """Addresses of latents that count once, whatever is drawn."""
    if any(modification.verb in ("scale", "mask", "substitute") for modification in prepared.modifications):
        return set()
    return {located.site.address for located in prepared.table if _counts_once(located)}


def _counts_once(located: Located) -> bool:
    operands = restore(located.site, [0.0] * located.site.tree.num_leaves)
    given = operands.value is not None or operands.scale is not None or operands.mask is not None
    return located.site.kind == SAMPLE and not (given or located.subsampled or located.in_while or located.exclusive)


def _descendants(graph: DependenceGraph) -> dict[Address, set[Address]]:
    children: dict[Address, set[Address]] = {}
    for edge in graph.edges:
        children.setdefault(edge.parent, set()).add(edge.child)

    return {node.site.address: _reached(node.site.address, children) for node in graph.nodes}


def _parents(graph: DependenceGraph) -> dict[Address, set[Address]]:
    """The parents of every site, and what computed parents are computed from."""
    parents: dict[Address, set[Address]] = {}
    for edge in graph.edges:
        parents.setdefault(edge.child, set()).add(edge.parent)
    computed = {node.site.address for node in graph.nodes if node.site.kind == DETERMINISTIC}

    through = {address: parents.get(address, set()) for address in computed}
    return {a: _reached(a, {**through, a: parents.get(a, set())}) for a in (node.site.address for node in graph.nodes)}


def _reached(start: Address, links: Mapping[Address, set[Address]]) -> set[Address]:
    """What some links lead to in one step or more."""
    found: set[Address] = set()
    waiting = [start]
    while waiting:
        new = links.get(waiting.pop(), set()) - found
        found |= new
        waiting += new
    return found


__all__ = ["closed_form_divergences"]
