"""Log densities site by site instead of their sum: what losses over parts of a trace are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ppl import errors
from ppl.address import flatten, nest
from ppl.site import DETERMINISTIC, FACTOR, OBSERVED, SAMPLE, Address, Site, show
from ppl.transforms.interpret import run_staged
from ppl.transforms.log_density import LogDensity, check_trace
from ppl.transforms.modify import Prepared, Program, prepare
from ppl.transforms.simulate import Simulate
from ppl.transforms.stage import Located

DENSE = (SAMPLE, OBSERVED, FACTOR)
"""The kinds of site that have a density."""


@dataclasses.dataclass(frozen=True)
class SimulateBySite(Simulate):
    """As `Simulate`, but what is recorded of a site is its value and its share of the density."""

    def records(self, located: Located) -> bool:
        return located.site.kind in (*DENSE, DETERMINISTIC)

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        value, _, share = super().site(site, leaves, given, key)
        return value, (value, share), share


@dataclasses.dataclass(frozen=True)
class LogDensityBySite(LogDensity):
    """As `LogDensity`, and records the shares."""

    def records(self, located: Located) -> bool:
        return located.site.kind in DENSE

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        value, _, share = super().site(site, leaves, given, key)
        return value, share, share


def simulate_by_site(program: Program) -> tuple[Any, dict[str, Any]]:
    """`ppl.simulate`, with the log density of each site in place of their sum.

    Returns:
        The trace, and by address the log density of each site (latent, observed or factor) in nats: a scalar, or stacked along
        the scans around the site as its values are.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> from ppl.transforms.by_site import simulate_by_site
        >>> @ppl.program
        ... def walk():
        ...     step = lambda x, _: (ppl.sample("x", dist.Normal(x, 1.0)), None)
        ...     ppl.sample("y", dist.Normal(jax.lax.scan(step, 0.0, None, length=3)[0], 1.0))
        >>> trace, log_densities = ppl.seed(lambda: simulate_by_site(walk()))(jax.random.key(0))
        >>> jax.tree.map(jax.numpy.shape, log_densities)
        {'x': (3,), 'y': ()}
    """
    prepared = _prepared(program)
    _, record = run_staged(prepared.staged, prepared.rule(SimulateBySite()), prepared.inputs())
    latent = {item.site.address for item in prepared.table if item.recorded}
    trace = nest({address: value for address, (value, _) in record.values.items() if address in latent})
    return trace, {show(address): share for address, (_, share) in record.values.items() if share is not None}


def log_density_by_site(program: Program, trace: Any) -> dict[str, Any]:
    """`ppl.log_density`, site by site: as `simulate_by_site` returns them, of a given trace.

    Example:
        >>> import ppl, ppl.distributions as dist
        >>> from ppl.transforms.by_site import log_density_by_site
        >>> @ppl.program
        ... def model():
        ...     x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ...     ppl.sample("y", dist.Normal(x, 1.0), obs=2.0)
        >>> {name: round(float(share), 3) for name, share in log_density_by_site(model(), {"x": 0.0}).items()}
        {'x': -0.919, 'y': -2.919}
    """
    prepared = _prepared(program)
    values = check_trace(prepared, flatten(trace))
    _, record = run_staged(prepared.staged, prepared.rule(LogDensityBySite()), prepared.inputs(trace=values))
    return {show(address): share for address, share in record.values.items()}


def _prepared(program: Program) -> Prepared:
    prepared = prepare(program)
    for located in prepared.table:
        if located.exclusive or located.subsampled:
            raise errors.ObjectiveError(
                f"log densities site by site are for sites in plain code and scans, and {located.site.name!r} stands in a "
                f"{'cond' if located.exclusive else 'plate with a size'}.\n  {located.site.where}"
            )
    addresses: set[Address] = set()
    for located in prepared.table:
        if located.site.address in addresses:  # a factor may share the name of a variable
            raise errors.DuplicateAddressError(f"{located.site.name!r} names two densities.\n  {located.site.where}")
        addresses.add(located.site.address)
    return prepared


def add_up(log_densities: dict[str, Any], address: str) -> Any:
    """The log density at an address and of everything nested under it, where all are stacked alike.

    Example:
        >>> from ppl.transforms.by_site import add_up
        >>> add_up({"end": 1.0, "end/log_rho": 2.0, "ending": 4.0}, "end")
        3.0
    """
    return sum(share for name, share in log_densities.items() if name == address or name.startswith(address + "/"))


__all__ = ["add_up", "log_density_by_site", "simulate_by_site"]
