"""`pointwise`: the log density of a trace, element by element and site by site, and the observations that are in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from ppl.address import flatten
from ppl.densities import elementwise
from ppl.estimated import Estimated
from ppl.site import OBSERVED, SAMPLE, Address, Operands, Site, feasible, lanes
from ppl.transforms.interpret import Record, run_staged
from ppl.transforms.log_density import LogDensity, check_trace
from ppl.transforms.modify import Program, prepare
from ppl.transforms.stage import Located


@dataclasses.dataclass(frozen=True)
class Pointwise(LogDensity):
    """Scales do not count: what is recorded is the density of one datum, whatever it stands for. Masked elements have zero.

    With `split`, events of independent elements are taken apart. Sites in `branches` may not run, and are not recorded.
    """

    split: bool = False
    branches: frozenset[Address] = frozenset()

    def records(self, located: Located) -> bool:
        return located.site.kind in (SAMPLE, OBSERVED) and located.site.address not in self.branches

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        value, _, _ = super().site(site, leaves, given, key)
        if site.kind not in (SAMPLE, OBSERVED) or site.address in self.branches:
            return value, None, None

        def one(operands: Operands, value: Any) -> Any:
            distribution, mask = operands.distribution, operands.mask
            if mask is None:
                return (elementwise(distribution) if self.split else distribution).log_prob(value)
            spread = jnp.reshape(mask, jnp.shape(mask) + (1,) * (jnp.ndim(value) - jnp.ndim(mask)))
            value = jnp.where(spread, value, feasible(site, jnp.shape(value)))
            elements = (elementwise(distribution) if self.split else distribution).log_prob(value)
            return jnp.where(jnp.reshape(mask, jnp.shape(mask) + (1,) * (jnp.ndim(elements) - jnp.ndim(mask))), elements, 0.0)

        return value, lanes(site, leaves, one, value), None

    def estimated(self, estimated: Estimated, leaves: Sequence[Any], given: dict[Address, Any]) -> tuple[list[Any], Record]:
        # Its elements have one joint density, which is no sum over them.
        _, values = self.values(estimated, leaves, given)
        return estimated.outs(values), Record({}, None)

    def zero(self) -> Any:
        return None

    def join(self, axis: Any, size: int, totals: Any) -> Any:
        return None


@dataclasses.dataclass(frozen=True)
class Observations(Pointwise):
    """The observed values."""

    def records(self, located: Located) -> bool:
        return located.site.kind == OBSERVED and located.site.address not in self.branches

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        value, _, _ = LogDensity.site(self, site, leaves, given, key)
        return value, value if site.kind == OBSERVED else None, None


def pointwise(program: Program, trace: Any, *, split: bool = False) -> dict[Address, Any]:
    """Log densities by address of the latent and observed sites, in nats: plates first, then the distribution's batch shape.

    Sites in branches of a `cond`, and densities that are integrals, are left out.
    """
    return _run(program, trace, Pointwise(split))


def observations(program: Program, trace: Any) -> dict[Address, Any]:
    """The values of the observed sites by address, without those that `pointwise` leaves out."""
    return _run(program, trace, Observations())


def _run(program: Program, trace: Any, rule: Pointwise) -> dict[Address, Any]:
    prepared = prepare(program)
    values = check_trace(prepared, flatten(trace))
    branches = frozenset(item.site.address for item in prepared.table if item.exclusive)
    rule = dataclasses.replace(rule, branches=branches)
    return run_staged(prepared.staged, prepared.rule(rule), prepared.inputs(trace=values))[1].values


__all__ = ["observations", "pointwise"]
