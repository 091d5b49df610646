"""What a family has made of each latent: units that never left the prior, scales at zero, draws at the edge of a support."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from ppl import errors
from ppl.address import flatten, nest
from ppl.diagnostics.draws import mapped, remember, repeat
from ppl.diagnostics.findings import NOTE, WARNING, Finding
from ppl.diagnostics.predictive import prior_predictive
from ppl.program import Bound
from ppl.site import Address, describe_support, show
from ppl.supports import interval
from ppl.transforms.compare import contains, latents
from ppl.transforms.pointwise import pointwise
from ppl.transforms.seed import seed
from ppl.transforms.stage import Located

INACTIVE = 0.01
"""A unit whose divergence from its prior is below this many nats has learned nothing (a hundredth, as in Burda et al. 2016)."""

POINT = 1e-4
"""A family that is this much narrower than the prior is a point."""

ENOUGH = 256
"""Draws that a divergence from the prior is estimated from."""

EDGE = 1e-6
"""Draws are at a bound when they are this close, as a part of the width of the support or of the prior's median distance."""


def points(family: Bound) -> list[str]:
    """Addresses at which a family puts all its mass on one value."""
    return [show(address) for address, item in latents(family).items() if item.site.distribution_name == "Delta"]


def uncovered(model: Bound, family: Bound) -> Iterator[Finding]:
    """Latents of which the family can never draw some values that the model allows."""
    drawn = latents(family)
    for address, item in latents(model).items():
        if address in drawn and contains(drawn[address].site, item.site) is False:
            yield Finding(
                "support",
                WARNING,
                show(address),
                f"the family draws {describe_support(drawn[address].site.support)} and the model allows "
                f"{describe_support(item.site.support)}: some values are never tried.",
                "Use a family with the model's support, unless you know that the posterior is zero there: no bound and no "
                "importance weight can see what is never drawn.",
            )


def of_draws(model: Bound, family: Bound, key: Any, trace: Any) -> list[Finding]:
    """What draws of the family say, compared with draws of the prior where there are any."""
    sites = latents(model)
    drawn = {address: np.asarray(value, float) for address, value in flatten(trace).items() if address in sites}
    try:
        n = min(1000, *(len(value) for value in drawn.values()))
        prior = {a: np.asarray(v, float) for a, v in flatten(prior_predictive(model, key, n)).items() if a in sites}
    except (errors.NoSamplerError, NotImplementedError):
        prior = {}
    found: list[Finding] = []
    for address, values in drawn.items():
        if sites[address].site.support is None or not sites[address].site.support.is_discrete:
            found += _point(address, values, prior.get(address))
            found += _edge(sites[address], values, prior.get(address))
    return found


def _width(values: np.ndarray) -> Any:
    """Between the quartiles, by element: a prior may have no variance."""
    low, high = np.quantile(values, [0.25, 0.75], axis=0)
    return high - low


def _point(address: Address, values: np.ndarray, prior: np.ndarray | None) -> Iterator[Finding]:
    width = _width(values)
    narrow = width <= 8 * np.finfo(np.float32).eps * np.abs(np.median(values, axis=0))
    if prior is not None:
        narrow |= width < POINT * _width(prior)
    if np.any(narrow):
        yield Finding(
            "collapse",
            WARNING,
            show(address),
            f"the family's scale is at its floor{_which(narrow)}: it is a point, less than {POINT:g} of the prior's width.",
            "Unless the data are that informative, the objective drives it there: see that it has the family's entropy "
            "(- log q), that the model's density is bounded (where a scale can reach zero it is not), and that the learning "
            "rate is not too large.",
        )


def _edge(located: Located, values: np.ndarray, prior: np.ndarray | None) -> Iterator[Finding]:
    bounds = None if located.site.support is None else interval(located.site.support)
    if bounds is None:
        return
    _, low, high = bounds
    for bound, other in ((low, high), (high, low)):
        if not np.all(np.isfinite(bound)):
            continue
        if np.all(np.isfinite(other)):
            scale = np.abs(np.asarray(other, float) - bound)
        else:
            scale = 1.0 if prior is None else np.median(np.abs(prior - bound), axis=0)
        at = np.mean(np.abs(values - bound) <= EDGE * scale, axis=0)
        if np.any(at > 0.01):
            yield Finding(
                "support",
                WARNING,
                located.site.name,
                f"{np.max(at):.0%} of the draws{_which(at > 0.01)} pile up at the bound {float(np.ravel(bound)[0]):g}.",
                "The posterior wants to be at the edge, or the family has run off: look at the draws (plot_densities), write "
                "the model in another parametrization (noncentered), or give the prior less mass there.",
            )


def inactive(model: Bound, family: Bound, key: Any, trace: Any) -> list[Finding]:
    """Units whose posterior family is their prior, for all data: what the objective calls a collapsed posterior.

    The divergence of each element from its prior given the other latents, half the mean of `(log q - log p)^2`, which equals
    it to second order where it is small.
    """
    sites, known, found = latents(model), {**latents(model), **latents(family)}, []
    values = {address: value[:ENOUGH] for address, value in flatten(trace).items() if address in known}
    n = len(next(iter(values.values())))
    for name, divergence in repeat(_divergences(model, family), key, n, values).items():
        located = next(item for item in sites.values() if item.site.name == name)
        mean = np.mean(np.asarray(divergence, float), axis=0)
        stacked = min(len(located.axes), mean.ndim)
        idle = np.all(mean < INACTIVE, axis=tuple(range(stacked)))
        if np.any(idle):
            per_datum = stacked > 0
            found.append(
                Finding(
                    "collapse",
                    WARNING if per_datum else NOTE,
                    name,
                    f"the family equals the prior{_which(idle)}{' for all data' if per_datum else ''} "
                    f"(within {INACTIVE} nats): nothing was learned about it.",
                    "A collapsed unit: warm up the weight of the divergence, weaken the decoder, or use fewer units."
                    if per_datum
                    else "Either the data hold no information about it, or the model does not use it, or training has not "
                    "begun to move it.",
                )
            )
    return found


@remember
def _divergences(model: Bound, family: Bound) -> Callable[..., Mapping[str, Any]]:
    def one(values: Mapping[Address, Any]) -> dict[str, Any]:
        p, q = (
            pointwise(program, nest({a: v for a, v in values.items() if a in latents(program)}), split=True)
            for program in (model, family)
        )
        return {
            show(address): (_common(q[address], p[address])) ** 2 / 2 for address in latents(model) if address in {*p} & {*q}
        }

    return mapped(seed(one))


def _common(one: Any, other: Any) -> Any:
    """Their difference, summed over the axes that not both have: one may hold a vector as one event."""
    shared = 0
    for a, b in zip(jnp.shape(one), jnp.shape(other), strict=False):
        if a != b:
            break
        shared += 1
    return jnp.sum(one, axis=_axes_from(shared, one)) - jnp.sum(other, axis=_axes_from(shared, other))


def _axes_from(start: int, array: Any) -> tuple[int, ...]:
    return tuple(range(start, jnp.ndim(array)))


def _which(flags: Any) -> str:
    """Which elements of an array are meant: nothing where it is all of them."""
    flags = np.asarray(flags)
    if flags.all():
        return ""
    places = [", ".join(map(str, place)) for place in np.argwhere(flags)]
    shown = "; ".join(f"[{place}]" for place in places[:8])
    return f" at {shown}" + (f" and {len(places) - 8} more" if len(places) > 8 else "")


__all__ = ["inactive", "of_draws", "points", "uncovered"]
