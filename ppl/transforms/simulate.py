"""`simulate`: the samples stay samples, and the trace and its log density come along."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import primitives as jp

from ppl import errors
from ppl.address import nest
from ppl.densities import cost, factor_cost
from ppl.estimated import Estimated
from ppl.site import DETERMINISTIC, FACTOR, OBSERVED, SUBSAMPLE, Address, PlateAxis, Site, lanes, rebind
from ppl.transforms.expand import Expand
from ppl.transforms.interpret import Record, run_staged
from ppl.transforms.modify import Program, prepare
from ppl.transforms.stage import Located, stage


class Density:
    """What `simulate` and `log_density` share: the total is a log density, in nats."""

    def zero(self) -> Any:
        return jnp.zeros((), jnp.result_type(float))

    def in_lane(self, axis: PlateAxis | None) -> Any:
        return self

    def join(self, axis: PlateAxis | None, size: int, totals: Any) -> Any:
        total = jnp.sum(totals, axis=0)
        return total if axis is None or axis.total is None else (axis.total / size) * total

    def check(self, eqn: Any, site: Site) -> None:
        if eqn.primitive is jp.while_p:
            raise errors.WhileLoopDensityError(
                f"a density was asked for of the site {site.name!r}, which stands in a while_loop.\n  {site.where}\n"
                "The number of its draws is unknown, so they have no addresses of their own. Such a program can be "
                "sampled (bound.sample(key), ppl.seed); for a density use scan or fori_loop with a fixed length."
            )


def given_value(site: Site, leaves: Sequence[Any]) -> Any:
    """The value operand, for every lane."""
    return lanes(site, leaves, lambda operands: operands.value)


def fresh(site: Site, leaves: Sequence[Any]) -> Any:
    """A draw of the site, as a random choice of the function that simulates it."""
    refuse_improper(site)
    return rebind(site, leaves, keep=("distribution", "estimator"), simulated=True)


def refuse_improper(site: Site) -> None:
    if site.distribution_name == "ImproperUniform":
        raise errors.NoSamplerError(
            f"{site.name!r} has a density and no sampler (it is improper or unnormalized).\n  {site.where}\n"
            "Score it with log_density, condition or substitute it, or draw it from a variational family."
        )


@dataclasses.dataclass(frozen=True)
class Simulate(Density):
    def records(self, located: Located) -> bool:
        return located.recorded

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        if site.kind == FACTOR:
            return given_value(site, leaves), None, factor_cost(site, leaves)
        if site.kind == OBSERVED:
            value = given_value(site, leaves)
            return value, None, cost(site, leaves, value)
        if site.kind == DETERMINISTIC:
            value = given_value(site, leaves)
            return value, value, None
        if site.kind == SUBSAMPLE:
            value = fresh(site, leaves)
            return value, value, None
        substituted = given_value(site, leaves)
        value = fresh(site, leaves) if substituted is None else substituted
        return value, value, cost(site, leaves, value)

    def estimated(self, estimated: Estimated, leaves: Sequence[Any], given: dict[Address, Any]) -> tuple[list[Any], Record]:
        operands = estimated.restore(leaves)
        known, scored = estimated.given(operands), estimated.scored()
        changes = estimated.changed(operands)

        def both() -> tuple[list[Any], Any]:
            if not scored:
                values, log_density = estimated.integral.draw(operands.consts, changes), self.zero()
            elif all(address in known for address in scored):
                values, log_density = known, estimated.integral.score(operands.consts, changes, known)
            else:
                values, log_density = estimated.integral.simulate(operands.consts, changes)
            return estimated.outs({**known, **values}), log_density

        outs, log_density = choices_of(both, estimated.prefix)
        values = {item.site.address: value for item, value in zip(estimated.located, outs, strict=True) if self.records(item)}
        return outs, Record(values, estimated.finish(operands, log_density))


def choices_of(function: Callable[[], Any], prefix: Address) -> Any:
    """The result of a function whose random choices become those of the caller, under a prefix."""
    staged = stage(function)
    try:
        return run_staged(staged, Expand(prefix, simulated=True))[0]
    except errors.OutsideProgramError as error:
        raise errors.OutsideProgramError(
            f"{error.args[0]}\nThe density that was asked for is estimated from random draws. With a key it is "
            "ppl.seed(bound.log_density)(key, trace)."
        ) from None


def simulate(program: Program) -> tuple[Any, Any]:
    """Draw a trace of a bound program, with its log density.

    For use inside objectives and programs: the draws become random choices of the function that calls this. With a
    key in hand, call `bound.simulate(key)`.

    Returns:
        The trace, a nested dict of the latent and deterministic values by address (observed values are not in it), and
        the log density of the trace and all observations, a scalar in nats. Costs count with their `scale`.

    Raises:
        WhileLoopDensityError: a site stands in a `while_loop`.
        NoSamplerError: the program has an improper or unnormalized part.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def coin():
        ...     p = ppl.sample("p", dist.Beta(2.0, 2.0))
        ...     ppl.sample("heads", dist.Bernoulli(probs=p), obs=1)
        >>> def both():
        ...     return ppl.simulate(coin()), ppl.simulate(coin())
        >>> (one, log_p), (other, _) = ppl.seed(both)(jax.random.key(0))
        >>> bool(one["p"] != other["p"])
        True
    """
    prepared = prepare(program)
    _, record = run_staged(prepared.staged, prepared.rule(Simulate()), prepared.inputs())
    for located in prepared.table:
        if located.recorded:
            value = record.values[located.site.address]
            # A deterministic value may be a literal of the jaxpr, which is no array and cannot be remembered.
            record.values[located.site.address] = value = value if isinstance(value, jax.Array) else jnp.asarray(value)
            _remember(value, located)
    return nest(record.values), record.total


_origins: dict[tuple[int, Address], tuple[Any, Located]] = {}


def _remember(value: Any, located: Located) -> None:
    """Note which site a value of a trace comes from, so that a model scoring it can say when the two disagree."""
    token = (id(value), located.site.address)
    try:
        reference = weakref.ref(value, lambda _: _origins.pop(token, None))
    except TypeError:
        return
    _origins[token] = (reference, located)


def origin(value: Any, address: Address) -> Located | None:
    """The site that this very array comes from, if a `simulate` put it at this address of a trace."""
    reference, located = _origins.get((id(value), address), (lambda: None, None))
    return located if reference() is value else None
