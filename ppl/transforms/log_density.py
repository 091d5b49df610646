"""`log_density`: sites take their values from a trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from ppl import errors
from ppl.address import flatten, suggest
from ppl.densities import cost, factor_cost
from ppl.estimated import Estimated, EstimatedOperands
from ppl.site import DETERMINISTIC, FACTOR, OBSERVED, SAMPLE, SUBSAMPLE, Address, Site, has_value, show
from ppl.transforms.compare import collect, fits, mismatch_table
from ppl.transforms.interpret import Record, run_staged
from ppl.transforms.modify import Prepared, Program, mask_of, prepare
from ppl.transforms.simulate import Density, choices_of, fresh, given_value, origin
from ppl.transforms.stage import Located, density_addresses
from ppl.transforms.values import check_value


@dataclasses.dataclass(frozen=True)
class LogDensity(Density):
    def records(self, located: Located) -> bool:
        return False

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        if site.kind == FACTOR:
            return given_value(site, leaves), None, factor_cost(site, leaves)
        if site.kind == DETERMINISTIC:
            return given_value(site, leaves), None, None
        if site.kind == SUBSAMPLE:
            return given["trace"] if "trace" in given else fresh(site, leaves), None, None
        use_trace = site.kind == SAMPLE and "trace" in given
        value = given["trace"] if use_trace else given_value(site, leaves)
        return value, None, cost(site, leaves, value)

    def estimated(self, estimated: Estimated, leaves: Sequence[Any], given: dict[Address, Any]) -> tuple[list[Any], Record]:
        operands, values = self.values(estimated, leaves, given)
        outs = estimated.outs(values)
        if not estimated.scored():
            return outs, Record({}, self.zero())
        changes = estimated.changed(operands)
        log_density = choices_of(lambda: estimated.integral.score(operands.consts, changes, values), estimated.prefix)
        return outs, Record({}, estimated.finish(operands, log_density))

    def values(self, estimated: Estimated, leaves: Sequence[Any], given: dict[Address, Any]) -> tuple[EstimatedOperands, Any]:
        """The operands of an estimated program, and its values: those of the trace, and those that it is given."""
        operands = estimated.restore(leaves)
        latent = {item.site.address for item in estimated.located if item.site.kind == SAMPLE}
        traced = {a: roles["trace"] for a, roles in given.items() if a in latent and "trace" in roles}
        return operands, estimated.given(operands) | {estimated.inner(a): value for a, value in traced.items()}


def log_density(program: Program, trace: Any) -> Any:
    """Log density of a trace (and of the program's observations) under a bound program, a scalar in nats.

    Args:
        program: a bound program.
        trace: nested dict with a value for every latent address. Values of deterministic addresses are ignored,
            those of substituted ones may be left out.

    Raises:
        MissingAddressError, UnknownAddressError: the trace and the program disagree on addresses.
        ModelFamilyMismatchError: the trace was simulated from a family that disagrees on latents or supports.
        ValueShapeError, ValueDtypeError, SupportError: a value does not fit its distribution.
        WhileLoopDensityError: a site stands in a `while_loop`.

    Example:
        >>> import ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def model():
        ...     x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ...     ppl.sample("y", dist.Normal(x, 1.0), obs=0.5)
        >>> print(f"{ppl.log_density(model(), {'x': 0.0}):.4f}")
        -1.9629
    """
    prepared = prepare(program)
    values = check_trace(prepared, flatten(trace))
    _, record = run_staged(prepared.staged, prepared.rule(LogDensity()), prepared.inputs(trace=values))
    return record.total


def check_trace(prepared: Prepared, given: dict[Address, Any]) -> dict[Address, Any]:
    sites = density_addresses(prepared.table)
    substituted = {a for m in prepared.modifications if m.verb == "substitute" for a in m.values}
    substituted |= {a for a, item in sites.items() if has_value(item.site)}  # inside of a nested program
    latents = {address: item for address, item in sites.items() if item.site.kind == SAMPLE}
    accepted = {a for a, item in sites.items() if item.site.kind in (SAMPLE, SUBSAMPLE, DETERMINISTIC)}
    missing = [address for address in latents if address not in given and address not in substituted]
    unknown = [address for address in given if address not in accepted]
    origins = {address: origin(value, address) for address, value in given.items()}
    drawn = {address: item for address, item in origins.items() if item is not None and item.site.kind == SAMPLE}
    # What a family computes or subsamples for itself says nothing about the model's latents.
    unknown = [address for address in unknown if origins[address] is None or address in drawn]
    outside = [address for address, item in drawn.items() if address in latents and not fits(latents[address], item)]
    both = [(latents[address], item) for address, item in drawn.items() if address in latents]
    same_shapes = all(model.shape == family.shape for model, family in both)
    if not missing and not unknown and same_shapes and collect(both):
        outside = []
    if drawn and (missing or unknown or outside):
        raise errors.ModelFamilyMismatchError(
            "the model and the variational family disagree:\n" + mismatch_table(latents, drawn)
        )
    if unknown:
        address = unknown[0]
        observed = address in sites and sites[address].site.kind == OBSERVED
        raise errors.UnknownAddressError(
            f"the trace has the address {show(address)!r}, "
            + (
                f"which is observed in this program; leave it out.\n  {sites[address].site.where}"
                if observed
                else f"which the program lacks.{suggest(address, latents)}"
            )
        )
    if missing:
        where = latents[missing[0]].site.where
        raise errors.MissingAddressError(
            f"the trace lacks {', '.join(repr(show(a)) for a in missing)}.\n  {where}\n"
            "Give every latent a value in the trace, or condition the program on it."
        )
    return {
        address: check_value(
            value,
            _relaxed_like(sites[address].site, origins[address]),
            sites[address].shape,
            observed=False,
            mask=mask_of(sites[address].site, prepared.modifications),
        )
        for address, value in given.items()
        if address in accepted and sites[address].site.kind in (SAMPLE, SUBSAMPLE)
    }


def _relaxed_like(site: Site, drawn: Located | None) -> Site:
    """The site, which takes the floating-point values that a relaxation draws: the supports have been compared already."""
    relaxed = drawn is not None and jnp.issubdtype(drawn.site.dtype, jnp.floating)
    return site.replace(dtype=drawn.site.dtype) if drawn is not None and relaxed else site
