"""Programs whose value is a smooth invertible map of another program's: flows, whatever computes the map."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.extend.core import Jaxpr

from ppl import errors
from ppl.address import flatten, nest
from ppl.estimated import Changes, Estimated, EstimatedOperands, Values, bind
from ppl.notes import note
from ppl.program import Bound, inline, sample
from ppl.site import SAMPLE, Address, Operands, Site, Where, describe_support, show, user_frame
from ppl.supports import interval
from ppl.transforms.kinds import UNBIASED_LOG_DENSITY
from ppl.transforms.log_density import log_density
from ppl.transforms.marginal import is_sampler, program_of
from ppl.transforms.simulate import simulate
from ppl.transforms.stage import Located, check_addresses, density_addresses, sites, stage

_BASE = "<base>"
"""Where the base's draws stand, so that they are told from the values that they are mapped to."""


class Transport(Protocol):
    """A map from values of the base to values of the program. `parameters` are the arrays in it, any pytree.

    Each gives the logarithm of the determinant of the map's derivative, at the value of the base, with the other value.

    Attributes:
        name: for tables and messages.
        support: of each value, a NumPyro constraint.
        estimate: if the log determinant is an unbiased estimate, what it is estimated by; None if it is exact.
    """

    @property
    def name(self) -> str: ...

    @property
    def support(self) -> Any: ...

    @property
    def estimate(self) -> str | None: ...

    def forward(self, parameters: Any, z: Any) -> Any: ...

    def forward_and_log_det(self, parameters: Any, z: Any) -> tuple[Any, Any]: ...

    def inverse_and_log_det(self, parameters: Any, x: Any) -> tuple[Any, Any]: ...

    def forward_with_score(self, parameters: Any, z: Any, score: Any) -> tuple[Any, Any, Any]:
        """The value, the log determinant, and the derivative of the log density by the value, from that by the base's."""
        ...


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Flow(Bound):
    """A bound program that maps a base; see `ppl.transport.ode_flow` and `ppl.transport.flow`."""

    base: Any = None
    transport: Any = None
    parameters: Any = None


def push_forward(base: Bound, transport: Transport, parameters: Any, where: Where) -> Flow:
    """The program that draws from a base (`as_program`) and applies a map."""

    def moved() -> Any:
        staged = stage(lambda: inline(base, ()))
        table = sites(staged.jaxpr.jaxpr)
        check_addresses(table)
        located = [item for item in density_addresses(table).values() if item.site.kind == SAMPLE]
        _check_base(staged.jaxpr.jaxpr, located, transport.name, where)
        latents = tuple(_moved(item, transport, where) for item in located)
        addresses = tuple(item.site.address for item in latents)
        bounded = tuple((item.site.address, item.site.support) for item in located if _bounded(item.site.support))
        integral = Moved(staged.jaxpr.jaxpr, addresses, bounded, transport, where)
        outs = bind(Estimated(integral, None, latents), EstimatedOperands((staged.jaxpr.consts, parameters)))
        return nest(dict(zip(addresses, outs, strict=True)))

    moved.__name__ = transport.name
    return Flow(moved, base=base, transport=transport, parameters=parameters)


def as_program(base: Any, name: str, where: Where) -> Bound:
    """A base with its draws under `<base>`: a distribution has its value there, a program its addresses."""
    if isinstance(base, Bound):
        drawn = Bound(lambda: inline(base, (_BASE,)))
    elif isinstance(base, dist.Distribution):
        drawn = Bound(lambda: sample(_BASE, base))
    else:
        raise TypeError(f"{name} maps a NumPyro distribution or a bound program, got {base!r}.\n  {where}")
    return drawn


def base_like(base: Bound) -> Any:
    """The shapes and dtypes of the base's value."""
    located = density_addresses(sites(stage(lambda: inline(base, ())).jaxpr.jaxpr)).values()
    latents = {item.site.address: item for item in located if item.site.kind == SAMPLE}
    return nest({address: jax.ShapeDtypeStruct(item.shape, item.site.dtype) for address, item in latents.items()})[_BASE]


def _moved(item: Located, transport: Transport, where: Where) -> Located:
    shape = item.shape
    tree = jax.tree.structure(Operands(distribution=dist.ImproperUniform(dist.constraints.real, (), shape)))
    address = item.site.address[1:]
    return Located(Site(address, SAMPLE, tree, shape, item.site.dtype, transport.support, where, transport.name, len(shape)))


def _check_base(jaxpr: Jaxpr, located: list[Located], name: str, where: Where) -> None:
    if not located:
        raise errors.MarginalError(f"the base of {name} draws nothing.\n  {where}")
    if not is_sampler(jaxpr):
        raise errors.MarginalError(
            f"the base of {name} holds an observation, a factor, a mask or a scale, so that it does not draw from the density "
            f"that it states.\n  {where}\nGive a program that only draws."
        )
    for item in located:
        if item.site.moving_support:
            raise errors.SupportError(
                f"the support of {show(item.site.address[1:])!r}, in the base of {name}, moves with parameters, so that where "
                f"its image ends could not be told.\n  {item.site.where}\nDraw from a fixed support and let the flow scale it."
            )
        if not jnp.issubdtype(item.site.dtype, jnp.floating):
            raise errors.ValueDtypeError(
                f"{name} moves real numbers, and the base draws {show(item.site.address[1:])!r} from "
                f"{item.site.distribution_name} ({describe_support(item.site.support)}).\n  {item.site.where}"
            )


def _bounded(support: Any) -> bool:
    """Whether a support is a part of the real line."""
    found = interval(support) if support is not None else None
    return found is not None and found[1:] != (-np.inf, np.inf)


@dataclasses.dataclass(frozen=True, eq=False)
class Moved:
    """How a flow is drawn and scored (see `ppl.estimated.Integral`): drawn with its density in one pass of the map."""

    base: Jaxpr
    addresses: tuple[Address, ...]
    bounded: tuple[tuple[Address, Any], ...]
    transport: Transport
    where: Where

    def draw(self, consts: Any, changes: Changes) -> Values:
        if self._known(changes):
            return {}
        trace, _ = simulate(self._base(consts, changes))
        return self._detached(changes, flatten(self.transport.forward(consts[1], trace[_BASE])))

    def simulate(self, consts: Any, changes: Changes) -> tuple[Values, Any]:
        if any(verb == "detach" for verb, _ in changes):  # no path to the value: the density is that of the value as it stands
            values = self.draw(consts, changes)
            return values, self.score(consts, changes, values)
        self._known(changes)
        trace, log_base = simulate(self._base(consts, changes))
        value, log_det = self.transport.forward_and_log_det(consts[1], trace[_BASE])
        return flatten(value), self._noted(log_base - log_det)

    def score(self, consts: Any, changes: Changes, values: Values) -> Any:
        self._known(changes)
        value = nest({a: values[a] for a in self.addresses})
        base, log_det = self.transport.inverse_and_log_det(consts[1], value)
        log_base = log_density(self._base(consts, ()), {_BASE: base})
        reached = flatten({_BASE: base})
        for address, support in self.bounded:  # NumPyro's densities do not look: outside of the image there is none
            log_base = jnp.where(jnp.all(support(reached[address])), log_base, -jnp.inf)
        return self._noted(log_base - log_det)

    def _base(self, consts: Any, changes: Changes) -> Bound:
        """The base, with estimators of the flow's addresses as those of its draws."""
        moved = [
            (verb, {(_BASE, *address): value for address, value in given.items()})
            for verb, given in changes
            if verb in ("with_estimators", "detach")
        ]
        return program_of(self.base, consts[0], (), moved)

    def _known(self, changes: Changes) -> bool:
        """Whether changes give the value. It is moved whole: what is given of it has to be all of it."""
        known = {a for verb, given in changes if verb in ("condition", "intervene", "substitute") for a in given}
        masked = any(verb == "mask" for verb, _ in changes)
        if masked or (known and known != set(self.addresses)):
            what = "a mask" if masked else ", ".join(map(show, known))
            raise errors.MarginalError(
                f"{self.transport.name} moves {', '.join(map(show, self.addresses))} together, and {what} asks for a part of "
                f"it.\n  {self.where}\nGive all of the values, or do this to a base or a model."
            )
        return bool(known)

    def _detached(self, changes: Changes, values: Values) -> Values:
        if any(verb == "detach" for verb, _ in changes):
            return {address: jax.lax.stop_gradient(value) for address, value in values.items()}
        return values

    def _noted(self, log_density: Any) -> Any:
        if self.transport.estimate is None:
            return log_density
        names = ", ".join(map(show, self.addresses))
        reason = f"the density of {names} under {self.transport.name}, with {self.transport.estimate},"
        return note(log_density, UNBIASED_LOG_DENSITY, f"{reason} ({self.where})")


def simulate_with_score(flow: Flow) -> tuple[Any, Any, Any]:
    """A value of a flow, its log density and the derivative of that by the value, in one pass and without the inverse.

    The derivative is that at fixed parameters: `d log q(x) / dx` (Vaitl, Nicoli, Nakajima & Kessel 2022; 2024 for maps that are
    costly to invert). The draws become random choices of the caller, as in `ppl.simulate`.

    Raises:
        TypeError: `flow` is no flow.
        EstimatorError: the flow is modified (conditioned, detached, ...).

    Example:
        >>> import jax, jax.numpy as jnp, numpyro.distributions as dist, ppl
        >>> flow = ppl.transport.ode_flow(dist.Normal(0.0, 1.0), lambda x, t: x)  # N(0, e^2)
        >>> x, log_q, score = ppl.seed(ppl.transport.simulate_with_score)(jax.random.key(0), flow)
        >>> bool(jnp.allclose(score, -x * jnp.exp(-2.0), rtol=1e-3))
        True
    """
    where = user_frame()
    if not isinstance(flow, Flow):
        raise TypeError(f"a score comes with the draw of a flow (ode_flow, flow), got {flow!r}.\n  {where}")
    if flow.modifications:
        verbs = ", ".join(modification.verb for modification in flow.modifications)
        raise errors.EstimatorError(f"the score of a draw is that of the whole flow, and this one has {verbs}.\n  {where}")
    trace, log_base = simulate(flow.base)
    z = trace[_BASE]
    score = jax.grad(lambda z: log_density(flow.base, {_BASE: z}))(z)
    x, log_det, score = flow.transport.forward_with_score(flow.parameters, z, score)
    log_q = log_base - log_det
    if flow.transport.estimate is not None:
        log_q = note(log_q, UNBIASED_LOG_DENSITY, f"the density under {flow.transport.name}, with {flow.transport.estimate},")
    return x, log_q, score


__all__ = ["Flow", "Transport", "push_forward", "simulate_with_score"]
