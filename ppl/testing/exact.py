"""Exact expectations of small objectives: sums over finite supports, and quadrature over the continuous sites."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives as jp
from numpyro.distributions import biject_to

from ppl import errors
from ppl.densities import log_prob
from ppl.estimators import Reparameterize, support_size
from ppl.inference.moments import Arguments
from ppl.site import DETERMINISTIC, FACTOR, OBSERVED, SAMPLE, SUBSAMPLE, Address, PlateAxis, Site
from ppl.transforms.draws import sole_value
from ppl.transforms.expectation import Expectation
from ppl.transforms.interpret import Inputs, SiteId, run_staged, site_ids
from ppl.transforms.plan import template
from ppl.transforms.seed import Seed, random_inputs
from ppl.transforms.stage import Located, Staged, sites

LIMIT = 2**21
"""The most points at which an objective is evaluated."""

CHUNK = 2048
"""Points that are evaluated together."""

PILOT = 512
"""Draws that say where the continuous sites lie."""

NEGLIGIBLE = -60.0
"""Points of a smaller log weight are left out: the objective may overflow there."""

HOW = ("enumerate", "quadrature")


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """The unknowns of one site, as digits: `count` of them, of `radix` values each (None: as many as the rule has points).

    `batch` are the independent elements, with those of loops and lanes.
    """

    located: Located
    role: str
    count: int
    batch: tuple[int, ...]
    radix: int | None = None
    values: Any = None
    transform: Any = None
    centre: Any = None
    spread: Any = None

    def given(self, digits: Any, points: Points) -> tuple[Any, Any]:
        """The site's value, and the log of the density (by element) that equal weights of all points stand for."""
        site = self.located.site
        if self.radix is not None:
            value = self.values[jnp.reshape(digits, self.batch)].astype(site.dtype)
            return value, jnp.full(self.batch, -math.log(self.radix))
        s = points.step * (jnp.reshape(digits, jnp.shape(self.centre)) - (points.number - 1) / 2)
        u = self.centre + self.spread * jnp.sinh(s)
        value = self.transform(u)
        log_cell = jnp.log(points.number * points.step * self.spread) + jnp.log(jnp.cosh(s))
        log_cell = jnp.sum(jnp.reshape(log_cell, (*self.batch, -1)), axis=-1)
        log_volume = jnp.reshape(self.transform.log_abs_det_jacobian(u, value), self.batch)
        return value.astype(site.dtype), -(log_cell + log_volume)


class Points(NamedTuple):
    """The trapezoidal rule in s, where an unconstrained coordinate is `centre + spread * sinh(s)`.

    It converges exponentially for smooth integrands, with tails that decay like a power too (Takahasi and Mori 1974).
    """

    number: Any
    step: Any


def points(n: int) -> Points:
    return Points(n, 1.5 * math.sqrt(n) / (n - 1))


@dataclasses.dataclass(frozen=True)
class Weigh(Seed):
    """Every site takes a given value; the total is its log density over that of the points."""

    roles: Mapping[int, str]

    def records(self, located: Located) -> bool:
        return False

    def zero(self) -> Any:
        return jnp.zeros((), jnp.result_type(float))

    def in_lane(self, axis: PlateAxis | None) -> Weigh:
        return self

    def join(self, axis: PlateAxis | None, size: int, totals: Any) -> Any:
        return jnp.sum(totals, axis=0)

    def check(self, eqn: Any, site: Site) -> None:
        if eqn.primitive is jp.while_p:
            raise _refusal(site, "stands in a while_loop")

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        if site.kind in (DETERMINISTIC, OBSERVED, FACTOR):
            return sole_value(site, leaves, key, None), None, None
        if site.distribution_name == "Delta":
            return sole_value(site, leaves, jax.random.key(0), Reparameterize()), None, None
        value, log_reference = given[self.roles[id(site)]]
        if site.detached:
            leaves = [jax.lax.stop_gradient(leaf) for leaf in leaves]
        return value, None, jnp.sum(log_prob(site, leaves, value)) - jnp.sum(log_reference)


@dataclasses.dataclass(frozen=True)
class _Pilot(Seed):
    def records(self, located: Located) -> bool:
        return located.site.kind == SAMPLE

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        value, _, _ = super().site(site, leaves, given, key)
        return value, value if site.kind == SAMPLE else None, None


def exact_derivatives(objective: Expectation, arguments: Arguments, how: str, order: int) -> tuple[np.ndarray, np.ndarray]:
    """The vector of `Arguments.derivatives`, and the error that quadrature leaves, by element.

    Raises:
        NoExactValueError: the objective is too large, has a site without a finite or fixed support, or the quadrature does not
            converge.
    """
    if how not in HOW:
        raise errors.NoExactValueError(f"exact is a function, numbers, 'enumerate' or 'quadrature'; got {how!r}")
    coordinates = _coordinates(objective, arguments, how)
    integrate = _integrator(objective, arguments, coordinates, order)
    discrete = math.prod(c.radix**c.count for c in coordinates if c.radix is not None)
    continuous = sum(c.count for c in coordinates if c.radix is None)
    n, last = {1: 65, 2: 33}.get(continuous, 13), None
    while discrete * n**continuous <= LIMIT:
        found, mass = integrate(points(n))
        if not continuous:
            return found, np.zeros_like(found)
        tolerance = np.finfo(arguments.vector.dtype).eps * max(64.0, _resolution(coordinates)) * np.abs(found).max()
        if last is not None and abs(mass - 1.0) < 1e-3 and np.abs(found - last).max() <= tolerance:
            return found, np.full_like(found, tolerance / 8)
        last, n = found, int(n * (2.0 if continuous == 1 else 1.42)) // 2 * 2 + 1
    names = ", ".join(f"{c.located.site.name!r} ({c.count})" for c in coordinates)
    if last is None:
        raise errors.NoExactValueError(
            f"{how!r} would take more than {LIMIT} evaluations: the unknowns are {names}. Make the program smaller, or give "
            "the exact value as a function."
        )
    raise errors.NoExactValueError(
        f"the quadrature over {names} has not converged within {LIMIT} evaluations: the integrand has a jump, a scale far "
        "below that of the draws, or too many dimensions. Give the exact value as a function."
    )


def _resolution(coordinates: Sequence[Coordinates]) -> float:
    """How many times the spread of the draws their size is: what their rounding is multiplied by in a log density."""
    ratios = [float(jnp.max(jnp.abs(c.centre) / c.spread)) for c in coordinates if c.radix is None]
    return min(8.0 * max(ratios, default=0.0), 8000.0)


def _stage(objective: Expectation, args: Sequence[Any]) -> Staged:
    return objective._stage(tuple(args), {})


def _roles(staged: Staged) -> dict[int, str]:
    """Which occurrence of its address each site is: the name under which its values travel."""
    jaxpr = staged.jaxpr.jaxpr
    roles: dict[int, str] = {}
    for (_, occurrence), located in zip(site_ids(jaxpr), sites(jaxpr), strict=True):
        if roles.setdefault(id(located.site), str(occurrence)) != str(occurrence):
            raise _refusal(located.site, "is drawn several times by one jitted function")
    return roles


def _coordinates(objective: Expectation, arguments: Arguments, how: str) -> list[Coordinates]:
    box: list[Staged] = []
    # Traced, since it is under jit and grad: a support that depends on an argument is not fixed.
    jax.eval_shape(lambda *inputs: box.append(_stage(objective, arguments.join(*inputs))), arguments.vector, arguments.arrays)
    (staged,) = box
    jaxpr, roles = staged.jaxpr.jaxpr, _roles(staged)
    found: dict[SiteId, Coordinates] = {}
    pilot: Mapping[Address, Any] | None = None
    for site_id, located in zip(site_ids(jaxpr), sites(jaxpr), strict=True):
        site = located.site
        if site.kind == SUBSAMPLE:
            raise _refusal(site, "is a random subsample or the key of an independent estimate")
        if located.in_while:
            raise _refusal(site, "stands in a while_loop")
        if site.kind != SAMPLE or site.distribution_name == "Delta":
            continue
        if site_id in found:
            raise _refusal(site, "stands in several branches of a cond")
        distribution, role = template(located), roles[id(site)]
        size = support_size(distribution)
        if size is not None:
            batch = located.shape[: len(located.shape) - distribution.event_dim]
            values = jnp.reshape(distribution.enumerate_support(expand=False), (size, *distribution.event_shape))
            found[site_id] = Coordinates(located, role, math.prod(batch), batch, size, values)
            continue
        if jnp.issubdtype(site.dtype, jnp.integer):
            raise _refusal(site, f"~ {site.distribution_name} has infinitely many values, or their number is not known")
        if how == "enumerate":
            raise _refusal(site, f"~ {site.distribution_name} is continuous", "Use exact='quadrature'")
        if site.support is None:
            raise _refusal(site, "has a support that depends on parameters")
        pilot = _pilot(objective, arguments) if pilot is None else pilot
        found[site_id] = _continuous(located, role, pilot[site.address])
    return list(found.values())


def _refusal(site: Site, why: str, instead: str = "Give the exact value as a function") -> errors.NoExactValueError:
    return errors.NoExactValueError(f"no exact value can be found: {site.name!r} {why}.\n  {site.where}\n{instead}.")


def _pilot(objective: Expectation, arguments: Arguments) -> Mapping[Address, Any]:
    def draws(keys: Any, vector: Any, arrays: Any) -> Any:
        staged = _stage(objective, arguments.join(vector, arrays))

        def one(key: Any) -> Any:
            return run_staged(staged, _Pilot(), random_inputs(key, staged.jaxpr.jaxpr, lambda _: False))[1].values

        return jax.vmap(one)(keys)

    return jax.jit(draws)(jax.random.split(jax.random.key(0), PILOT), arguments.vector, arguments.arrays)


def _continuous(located: Located, role: str, draws: Any) -> Coordinates:
    site = located.site
    transform = biject_to(site.support)
    u = np.asarray(transform._inverse(draws), float)
    u = np.where(np.isfinite(u), u, np.nan)
    low, centre, high = np.nanquantile(u, [0.16, 0.5, 0.84], axis=0)
    spread = np.where(high > low, (high - low) / 2, 1.0)
    dtype = jnp.result_type(float)
    middle, width = jnp.asarray(np.nan_to_num(centre), dtype), jnp.asarray(np.nan_to_num(spread, nan=1.0), dtype)
    batch = located.shape[: len(located.shape) - site.event_dim]
    return Coordinates(located, role, middle.size, batch, transform=transform, centre=middle, spread=width)


def _integrator(
    objective: Expectation, arguments: Arguments, coordinates: Sequence[Coordinates], order: int
) -> Callable[[Points], tuple[np.ndarray, float]]:
    """A function that gives the derivatives, and the sum of all weights, which is one if the points are enough."""
    floor = NEGLIGIBLE if any(c.radix is None for c in coordinates) else -np.inf

    def at_points(args: Any, indices: Any, rule: Points) -> tuple[Any, Any]:
        staged = _stage(objective, args)
        roles = _roles(staged)

        def one(index: Any) -> tuple[Any, Any]:
            values: dict[str, dict[Address, Any]] = {}
            for c in coordinates:
                radix = rule.number if c.radix is None else c.radix
                digits = []
                for _ in range(c.count):
                    digits.append(index % radix)
                    index = index // radix
                if c.count:
                    values.setdefault(c.role, {})[c.located.site.address] = c.given(jnp.stack(digits), rule)
            value, record = run_staged(staged, Weigh(roles), Inputs(values))
            return value, record.total

        return jax.vmap(one)(indices)

    @jax.jit
    def log_weights(indices: Any, rule: Points, vector: Any, arrays: Any) -> Any:
        return at_points(arguments.join(vector, arrays), indices, rule)[1]

    @jax.jit
    def derivatives(indices: Any, present: Any, rule: Points, vector: Any, arrays: Any) -> Any:
        def share(*args: Any) -> Any:
            values, logs = at_points(args, indices, rule)
            return jnp.sum(jnp.where(present, jnp.exp(logs) * values, 0.0))

        return arguments.derivatives(share, vector, arrays, order)

    inputs = (arguments.vector, arguments.arrays)

    def integrate(rule: Points) -> tuple[np.ndarray, float]:
        total = math.prod((c.radix or rule.number) ** c.count for c in coordinates)
        chunks = [np.minimum(np.arange(i, i + CHUNK), total - 1) for i in range(0, total, CHUNK)]
        logs = np.concatenate([np.asarray(log_weights(chunk, rule, *inputs), float) for chunk in chunks])[:total]
        logs = np.where(np.isnan(logs), -np.inf, logs)
        kept, result = np.flatnonzero(logs > floor), np.zeros(len(arguments.labels(order)))
        for i in range(0, len(kept), CHUNK):
            chunk = kept[i : i + CHUNK]
            indices = np.full(CHUNK, logs.argmax())
            indices[: len(chunk)] = chunk
            result += np.asarray(derivatives(indices, np.arange(CHUNK) < len(chunk), rule, *inputs), float)
        return result / total, float(np.exp(logs[kept]).sum() / total)

    return integrate
