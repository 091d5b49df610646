"""Watching the numbers at sites while an objective runs, to find where one that is not finite comes from.

Under `watch` every density and every draw that is traced reports its numbers when it runs, and the derivatives that come back
to them. Without it nothing is added to any program.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ppl.site import Site, restore


@dataclasses.dataclass(frozen=True)
class Report:
    """Numbers at a site, one of which is not finite. `what` is "density", "draw" or "derivative"."""

    what: str
    site: Site
    value: Any
    parameters: dict[str, Any]
    number: Any

    def describe(self) -> str:
        """In words, with the user's source line."""
        distribution = f"{self.site.distribution_name}({', '.join(f'{n}={_short(v)}' for n, v in self.parameters.items())})"
        number = _short(self.number)
        said = {
            "density": f"has the log density {number} at the value {_short(self.value)}",
            "draw": f"drew {number}",
            "derivative": f"was given the derivative {number} in its value {_short(self.value)}",
        }[self.what]
        if not self.site.distribution_name:
            distribution = self.site.kind
        return f"The site {self.site.name!r}, {distribution}, {said}.\n  {self.site.where}"


_reports: contextvars.ContextVar[list[Report] | None] = contextvars.ContextVar("reports", default=None)


@contextlib.contextmanager
def watch() -> Iterator[list[Report]]:
    """A list to which sites report, in the order in which things are computed. Run what is traced inside without `jit`."""
    reports: list[Report] = []
    token = _reports.set(reports)
    try:
        yield reports
        jax.effects_barrier()
    finally:
        _reports.reset(token)


def watched_cost(cost: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a site, its operands and its value that gives a density, which reports what is not finite."""

    @functools.wraps(cost)
    def watched(site: Site, leaves: Sequence[Any], value: Any = None) -> Any:
        reports = _reports.get()
        arguments = (site, leaves) if value is None else (site, leaves, value)
        if reports is None:
            return cost(*arguments)
        if value is not None:
            value = _probe(reports, "derivative", site, value, value, _parameters(site, leaves))
            arguments = (site, leaves, value)
        density = cost(*arguments)
        return _probe(reports, "density", site, density, 0.0 if value is None else value, _parameters(site, leaves))

    return watched


def watched_draw(site: Site, leaves: Sequence[Any], value: Any) -> Any:
    """The value, which reports where it, or a derivative that comes back to it, is not finite."""
    reports = _reports.get()
    if reports is None:
        return value
    parameters = _parameters(site, leaves)
    return _probe(reports, "derivative", site, _probe(reports, "draw", site, value, value, parameters), value, parameters)


def _parameters(site: Site, leaves: Sequence[Any]) -> dict[str, Any]:
    distribution = restore(site, leaves).distribution
    while hasattr(distribution, "base_dist"):
        distribution = distribution.base_dist
    constraints = getattr(distribution, "arg_constraints", None)
    names = constraints if isinstance(constraints, dict) else ()
    found = {name: getattr(distribution, name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _probe(reports: list[Report], what: str, site: Site, x: Any, value: Any, parameters: dict[str, Any]) -> Any:
    """`x` itself. A "derivative" is what comes back to it; everything else is what goes through it."""

    def report(x: Any, value: Any, parameters: Any) -> None:
        number = np.asarray(x)
        if number.dtype.kind not in "iub" and not np.all(np.isfinite(number.astype(float))):
            reports.append(Report(what, site, np.asarray(value), jax.tree.map(np.asarray, parameters), number))

    @jax.custom_vjp
    def probe(x: Any, value: Any, parameters: Any) -> Any:
        return x

    def forward(x: Any, value: Any, parameters: Any) -> Any:
        return x, (value, parameters)

    def backward(saved: Any, cotangent: Any) -> Any:
        value, parameters = saved
        if getattr(cotangent, "dtype", None) != jax.dtypes.float0:
            jax.debug.callback(report, cotangent, value, parameters)
        return cotangent, *jax.tree.map(_zero, saved)

    probe.defvjp(forward, backward)
    if what != "derivative":
        jax.debug.callback(report, x, value, parameters)
        return x
    return probe(x, value, parameters)


def _zero(x: Any) -> Any:
    dtype = jax.numpy.result_type(x)
    floating = jax.numpy.issubdtype(dtype, jax.numpy.inexact)
    return jax.numpy.zeros_like(x) if floating else np.zeros(np.shape(x), jax.dtypes.float0)


def _short(value: Any) -> str:
    return np.array2string(np.asarray(value, float), precision=4, threshold=8, edgeitems=3, separator=", ").replace("\n", "")
