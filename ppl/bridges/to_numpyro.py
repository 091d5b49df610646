"""`to_numpyro`: a bound program as a NumPyro model, for NumPyro's samplers, handlers and diagnostics."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

from ppl import errors
from ppl.address import flatten, nest
from ppl.densities import batched_distribution, cost, elementwise, factor_cost, parameters
from ppl.program import Bound
from ppl.site import DETERMINISTIC, FACTOR, OBSERVED, SAMPLE, SUBSAMPLE, Address, Site, feasible, has_value, restore
from ppl.transforms.expand import holds_estimated
from ppl.transforms.interpret import run_staged
from ppl.transforms.log_density import LogDensity
from ppl.transforms.modify import Prepared, prepare
from ppl.transforms.simulate import given_value
from ppl.transforms.stage import Located, density_addresses


def to_numpyro(model: Bound) -> Callable[[], None]:
    """A NumPyro model with the latents, observations and density of a bound program.

    Sites keep their addresses, `"sub/x"` for one in a nested program. Where no latent stands in the body of control flow,
    every site becomes a `numpyro.sample` of its own distribution. Otherwise (chains in a `scan`, branches of a `cond`,
    `marginal`) latents become sites without density that are drawn together from the program, and the program's log density
    is one `numpyro.factor`; NumPyro's handlers then see supports and values, but no distributions.

    Args:
        model: a bound program with a density.

    Returns:
        A function of no arguments with NumPyro statements.

    Raises:
        NumPyroError: where the model is used: the density is an estimate that needs random draws, or the support of a latent
            in control flow depends on other latents.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> from numpyro.infer.util import log_density
        >>> @ppl.program
        ... def model():
        ...     rate = ppl.sample("rate", dist.Gamma(2.0, 1.0))
        ...     ppl.sample("count", dist.Poisson(rate), obs=3)
        >>> trace = {"rate": 2.5}
        >>> both = log_density(ppl.to_numpyro(model()), (), {}, trace)[0], model().log_density(trace)
        >>> print("{:.4f} {:.4f}".format(*both))
        -3.1266 -3.1266
    """
    if not isinstance(model, Bound):
        raise TypeError(f"to_numpyro takes a bound program (a program called with its arguments), got {model!r}")

    def numpyro_model() -> None:
        prepared = prepare(model)
        if _native(prepared):
            own = frozenset(item.site.address for item in prepared.table if not item.in_body)
            _, record = run_staged(prepared.staged, prepared.rule(_Statements(own)), prepared.inputs())
            if any(item.in_body for item in prepared.table):
                numpyro.factor("observed in control flow", record.total)
        else:
            _jointly(model, prepared)

    numpyro_model.__name__ = getattr(model.function, "__name__", "program")
    return numpyro_model


def _native(prepared: Prepared) -> bool:
    """Whether each latent can be a statement of its own."""
    return not holds_estimated(prepared.staged.jaxpr.jaxpr) and all(map(_statement, prepared.table))


def _statement(located: Located) -> bool:
    site = located.site
    if site.kind == FACTOR or (site.kind == DETERMINISTIC and not located.in_body):
        return True
    if located.in_body or site.kind in (DETERMINISTIC, SUBSAMPLE):
        return site.kind == OBSERVED
    kind: Any = type(elementwise(restore(site, [0.0] * site.tree.num_leaves).distribution))
    return not site.plates or parameters(kind) is not None


@dataclasses.dataclass(frozen=True)
class _Statements(LogDensity):
    """The sites at `own` addresses as NumPyro statements; what stands in the body of control flow adds to the total."""

    own: frozenset[Address]

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        if site.address not in self.own:
            return super().site(site, leaves, given, key)
        value = given_value(site, leaves)
        if site.kind == DETERMINISTIC:
            return numpyro.deterministic(site.name, value), None, None
        if site.kind == FACTOR:
            return numpyro.factor(site.name, factor_cost(site, leaves)), None, None
        operands = restore(site, leaves)
        distribution = batched_distribution(site, leaves) if site.plates else operands.distribution
        as_is = operands.scale is None and operands.mask is None and site.plate_scale == 1.0
        drawn = numpyro.sample(site.name, (distribution if as_is else distribution.mask(False)).to_event(), obs=value)
        value = jnp.asarray(drawn, site.dtype)
        if not as_is:  # a subsample, a mask or a scale: NumPyro draws, and the cost is counted here
            numpyro.factor(f"{site.name} cost", cost(site, leaves, value))
        return value, None, None


def _jointly(model: Bound, prepared: Prepared) -> None:
    """Latents without density of their own, drawn from the program given those that a handler has set, and one factor."""
    latents = {a: item for a, item in density_addresses(prepared.table).items() if item.site.kind == SAMPLE}
    latents = {a: item for a, item in latents.items() if not has_value(item.site)}
    for item in latents.values():
        if item.site.support is None:
            raise errors.NumPyroError(
                f"the support of {item.site.name!r} depends on other variables, and the program has latents in control flow, a "
                f"subsample or an integral, so that NumPyro has to be told it in advance.\n  {item.site.where}\n"
                "Draw from a fixed support and transform the draw, or move the site out of the control flow."
            )
    key = numpyro.prng_key()
    drawn = None if key is None else flatten(model.simulate(key)[0])
    values: dict[Address, Any] = {}
    for address, item in latents.items():
        default = feasible(item.site, item.shape) if drawn is None else drawn[address]
        values[address] = numpyro.sample(item.site.name, _Undensity(default, item.site.support))
        if drawn is not None and values[address] is not default:  # set by a handler: draw the others given it
            drawn = flatten(model.substitute(nest(values)).simulate(key)[0])
    complete = model.substitute(nest(values)) if values else model
    if any(item.site.kind == DETERMINISTIC for item in prepared.table):
        trace = flatten(complete.simulate(jax.random.key(0))[0])  # all latents are given: nothing is drawn
        for item in prepared.table:
            if item.site.kind == DETERMINISTIC:
                numpyro.deterministic(item.site.name, trace[item.site.address])
    try:
        numpyro.factor("log density", model.log_density(nest(values)))
    except errors.OutsideProgramError as error:
        raise errors.NumPyroError(
            f"the density of {model!r} is estimated from random draws, and NumPyro's samplers take exact densities only. "
            "Integrate with ppl.marginal by exact sums or quadrature, or keep the auxiliary variables as latents."
        ) from error


class _Undensity(dist.Distribution):
    """A support and a value drawn elsewhere, with density one."""

    pytree_data_fields = ("value", "_support")

    def __init__(self, value: Any, support: Any):
        self.value, self._support = value, support
        super().__init__(event_shape=jnp.shape(value), validate_args=False)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        return constraints.independent(self._support, jnp.ndim(self.value) - self._support.event_dim)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        return jnp.broadcast_to(self.value, sample_shape + self.event_shape) if sample_shape else self.value

    def log_prob(self, value: Any) -> Any:
        return jnp.zeros(jnp.shape(value)[: jnp.ndim(value) - self.event_dim])
