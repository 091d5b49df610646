"""`gradient_variance`: how noisy an objective's gradient is, which sites make it so, and what it costs."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import errors
from ppl.address import covers, flatten, suggest
from ppl.inference.moments import Arguments, moments
from ppl.site import SAMPLE, SUBSAMPLE, Address, Site, bind, show
from ppl.transforms.expand import expanded
from ppl.transforms.expectation import Expectation
from ppl.transforms.interpret import run_staged, site_ids
from ppl.transforms.modify import with_estimator
from ppl.transforms.plan import first_choice, make_plan, value_axes
from ppl.transforms.seed import Seed
from ppl.transforms.stage import sites, stage


@dataclasses.dataclass(frozen=True)
class Contribution:
    """One site's part in the variance of a gradient.

    Attributes:
        address: of the site.
        distribution: the name of its distribution.
        estimator: the estimator in force.
        branches: how many values its elements take together.
        variance: the expected variance of the gradient (summed over its elements) when this site alone is drawn anew.
    """

    address: str
    distribution: str
    estimator: str
    branches: int
    variance: float


@dataclasses.dataclass(frozen=True)
class GradientEstimate:
    """One way to estimate a gradient.

    Attributes:
        name: of the way.
        leaves: names of the parameters' leaves, and how many elements each has.
        mean, variance: of one estimate, by element of all leaves.
        draws: estimates they are from.
        seconds: median time of one gradient, after compilation.
        branches: the most branches that any value of the objective has.
        sites: their contributions.
    """

    name: str
    leaves: tuple[tuple[str, int], ...]
    mean: np.ndarray
    variance: np.ndarray
    draws: int
    seconds: float
    branches: int
    sites: tuple[Contribution, ...]

    @property
    def total_variance(self) -> float:
        """Summed over all elements: the trace of the gradient's covariance."""
        return float(self.variance.sum())

    @property
    def signal_to_noise(self) -> float:
        """Length of the mean over the root of the total variance."""
        return _ratio(self.mean, self.variance)

    @property
    def variance_time(self) -> float:
        """Total variance x seconds: what a given precision costs, whatever the number of samples."""
        return self.total_variance * self.seconds

    def by_leaf(self) -> list[tuple[str, float, float, float]]:
        """For each leaf its name, the length of the mean, the variance summed over elements, and their signal to noise."""
        ends = np.cumsum([size for _, size in self.leaves])[:-1]
        parts = zip(self.leaves, np.split(self.mean, ends), np.split(self.variance, ends), strict=True)
        return [(name, float(np.linalg.norm(m)), float(v.sum()), _ratio(m, v)) for (name, _), m, v in parts]


def _ratio(mean: np.ndarray, variance: np.ndarray) -> float:
    signal, noise = float(np.linalg.norm(mean)), math.sqrt(variance.sum())
    return signal / noise if noise > 0 else (math.inf if signal > 0 else 0.0)


@dataclasses.dataclass(frozen=True)
class GradientVariance:
    """What `gradient_variance` found, by estimator. Printed, it is a table; `plot` draws it."""

    estimators: dict[str, GradientEstimate]

    def __getitem__(self, name: str) -> GradientEstimate:
        return self.estimators[name]

    def __str__(self) -> str:
        overall = [("estimator", "variance", "signal/noise", "ms", "branches", "variance x ms")]
        leaves = [("estimator", "parameter", "|mean|", "variance", "signal/noise")]
        parts = [("estimator", "site", "distribution", "estimated by", "branches", "variance", "share")]
        for name, e in self.estimators.items():
            ms = 1e3 * e.seconds
            row = (
                f"{e.total_variance:.4g}",
                f"{e.signal_to_noise:.3g}",
                f"{ms:.3g}",
                str(e.branches),
                f"{e.variance_time * 1e3:.4g}",
            )
            overall.append((name, *row))
            leaves += [(name, leaf, f"{m:.4g}", f"{v:.4g}", f"{r:.3g}") for leaf, m, v, r in e.by_leaf()]
            for s in e.sites:
                share = f"{s.variance / e.total_variance:.0%}" if e.total_variance > 0 else "-"
                parts.append((name, s.address, s.distribution, s.estimator, str(s.branches), f"{s.variance:.4g}", share))
        shown = [_table(overall), _table(leaves)] + ([_table(parts)] if len(parts) > 1 else [])
        return "\n\n".join(shown)

    def plot(self, figure: Any = None) -> Any:
        """Bars of the variance, with each site's contribution marked, and of variance x time; needs matplotlib.

        Args:
            figure: a matplotlib figure to draw on; a new one if None.

        Returns:
            The figure.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("plot needs matplotlib: pip install 'ppl[examples]'") from error
        figure = figure or Figure(figsize=(10, 0.5 * len(self.estimators) + 2.4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        names, found = list(self.estimators), list(self.estimators.values())
        y = np.arange(len(names))
        addresses = list(dict.fromkeys(s.address for e in found for s in e.sites))
        colours = {address: f"C{i % 10}" for i, address in enumerate(addresses)}
        _bars(left, y, [e.total_variance for e in found], "total variance of one gradient")
        for i, e in enumerate(found):
            for s in e.sites:
                if s.variance > 0:
                    left.plot(s.variance, i, "o", color=colours[s.address], markeredgecolor="white", markersize=8)
        for address, colour in colours.items():
            left.plot([], [], "o", color=colour, label=f"{address} alone")
        if addresses:
            left.legend(
                fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=min(4, len(addresses)), frameon=False
            )
        _bars(right, y, [1e3 * e.variance_time for e in found], "variance x milliseconds")
        left.set_yticks(y, names)
        left.invert_yaxis()
        return figure


def _bars(axes: Any, y: Any, values: Sequence[float], label: str) -> None:
    positive = [value for value in values if value > 0]
    start = min(positive, default=1.0) / 30
    axes.barh(y, [max(value, start) - start for value in values], left=start, color="#b8c4d6", height=0.6)
    axes.set_xscale("log")
    axes.set_xlim(start, max(positive, default=1.0) * 10)
    for i, value in enumerate(values):
        axes.annotate(_number(value), (max(value, start), i), (6, 0), textcoords="offset points", va="center")
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1e3 <= value < 1e7 else f"{value:.3g}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def gradient_variance(
    objective: Expectation,
    *args: Any,
    key: Any,
    draws: int = 1000,
    samples: int | None = None,
    argnums: int | Sequence[int] = 0,
    estimators: Mapping[str, Any] | None = None,
    sites: bool = True,
) -> GradientVariance:
    """Measure the noise of an objective's gradient and what it costs, for one or several choices of estimators.

    The variance of each site is `E[Var(g | all other sites)]`, estimated by drawing that site anew and keeping the rest,
    `E[|g - g'|^2] / 2` (Jansen 1999). It is by how much the variance would fall if the site were integrated out exactly, by
    enumeration for example. Contributions add up to the variance where the sites act separately, and to more where they
    act together. Sites in which an estimate is exact contribute nothing. Sites of equal address count as one; random
    subsamples, and the independent estimates inside of products and exponentials, are listed with the sites.

    Args:
        objective: an expectation.
        *args: its arguments.
        key: a PRNG key.
        draws: gradients that are drawn of each; a variance is then known to about `sqrt(2 / draws)` of itself.
        samples: as in `Expectation.value_and_grad`; all numbers are of the mean over these.
        argnums: the arguments to differentiate in.
        estimators: by name, what to compare: an expectation; or a mapping from addresses or prefixes to estimators, one
            estimator for all sites, or None for the objective as it is.
        sites: whether to measure the contributions of sites, at the cost of one more gradient for each.

    Returns:
        A `GradientVariance`.

    Raises:
        UnknownAddressError: a mapping names an address that the objective lacks.
        EstimatorError: an estimator cannot serve its site.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> from ppl.estimators import ScoreFunction
        >>> @ppl.expectation
        ... def objective(m):
        ...     return ppl.sample("x", dist.Normal(m, 1.0)) ** 2
        >>> choices = {"path": None, "score": {"x": ScoreFunction()}}
        >>> found = ppl.gradient_variance(objective, 1.0, key=jax.random.key(0), estimators=choices)
        >>> bool(found["path"].total_variance < 5 < 20 < found["score"].total_variance)  # 4 and 30
        True
    """
    if draws < 2:
        raise errors.ObjectiveError(f"a variance needs at least 2 draws, got {draws}")
    arguments = Arguments(args, argnums)
    choices = {"as it is": None} if estimators is None else estimators
    if not choices:
        raise errors.ObjectiveError("there are no estimators to compare")
    objectives = {name: _chosen(objective, choice, arguments) for name, choice in choices.items()}
    times = _times({name: _gradient(e, arguments, samples) for name, e in objectives.items()}, arguments, key)
    found = {name: _measure(name, e, arguments, key, draws, samples, times[name], sites) for name, e in objectives.items()}
    return GradientVariance(found)


@dataclasses.dataclass(frozen=True)
class _Rename(Seed):
    """Another address, and so other randomness, for the sites at one address; other estimators for some."""

    estimators: Mapping[Address, Any] = dataclasses.field(default_factory=dict)
    renamed: Address | None = None

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        prefix = max((p for p in self.estimators if covers(p, site.address)), key=len, default=None)
        if site.kind == SAMPLE and prefix is not None:
            site, leaves = with_estimator(site, leaves, self.estimators[prefix])
        if site.address == self.renamed:
            site = site.replace(address=("drawn anew", *site.address))
        return bind(site, leaves), None, None


def _changed(objective: Expectation, rule: _Rename) -> Expectation:
    def function(*args: Any, **kwargs: Any) -> Any:
        return run_staged(expanded(stage(objective.function, *args, **kwargs)), rule)[0]

    function.__name__ = getattr(objective, "__name__", "objective")
    return Expectation(function)


def _chosen(objective: Expectation, choice: Any, arguments: Arguments) -> Expectation:
    if choice is None:
        return objective
    if isinstance(choice, Expectation):
        return choice
    by_address: dict[Address, Any] = flatten(choice) if isinstance(choice, Mapping) else {(): choice}
    known = {located.site.address for located in _sites(objective, arguments)}
    for address in by_address:
        if not any(covers(address, other) for other in known):
            raise errors.UnknownAddressError(
                f"the estimators name {show(address)!r}, which the objective lacks.{suggest(address, known)}"
            )
    return _changed(objective, _Rename(by_address))


def _staged(objective: Expectation, arguments: Arguments) -> Any:
    box: list[Any] = []
    jax.eval_shape(lambda *i: box.append(objective._stage(tuple(arguments.join(*i)), {})), arguments.vector, arguments.arrays)
    return box[0]


def _sites(objective: Expectation, arguments: Arguments) -> list[Any]:
    return [located for located in sites(_staged(objective, arguments).jaxpr.jaxpr) if located.site.kind == SAMPLE]


def _gradient(objective: Expectation, arguments: Arguments, samples: int | None) -> Any:
    def gradient(key: Any, vector: Any, arrays: Any) -> Any:
        return jax.grad(lambda v: objective.estimate(key, *arguments.join(v, arrays), samples=samples))(vector)

    return gradient


def _times(gradients: Mapping[str, Any], arguments: Arguments, key: Any, rounds: int = 15) -> dict[str, float]:
    """Medians over rounds in which the rivals take turns, so that a drifting machine favours nobody."""
    inputs = (key, arguments.vector, arguments.arrays)
    compiled = {name: jax.jit(gradient) for name, gradient in gradients.items()}
    calls: dict[str, int] = {}
    for name, function in compiled.items():
        jax.block_until_ready(function(*inputs))
        calls[name] = max(1, min(100, round(2e-3 / max(_time(function, inputs, 1), 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in compiled}
    for _ in range(rounds):
        for name, function in compiled.items():
            times[name].append(_time(function, inputs, calls[name]))
    return {name: statistics.median(found) for name, found in times.items()}


def _time(function: Any, inputs: Any, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(function(*inputs))
    return (time.perf_counter() - start) / calls


def _measure(
    name: str,
    objective: Expectation,
    arguments: Arguments,
    key: Any,
    draws: int,
    samples: int | None,
    seconds: float,
    by_site: bool,
) -> GradientEstimate:
    inputs = (arguments.vector, arguments.arrays)
    gradient = _gradient(objective, arguments, samples)
    table, most = _estimators(objective, arguments)
    found = []
    others = [_gradient(_changed(objective, _Rename(renamed=a)), arguments, samples) for a in table] if by_site else []

    def both(key: Any, vector: Any, arrays: Any) -> Any:
        here = gradient(key, vector, arrays)
        squares = [jnp.sum((here - other(key, vector, arrays)) ** 2) / 2 for other in others]
        return jnp.concatenate([here, jnp.stack(squares)]) if squares else here

    result = moments(both, key, draws, *inputs)
    size = len(arguments.vector)
    # Another address can change the order of sums, and so the rounding of an exact estimate.
    rounding = (8 * jnp.finfo(arguments.vector.dtype).eps) ** 2 * float(
        np.sum(result.mean[:size] ** 2 + result.variance[:size])
    )
    for (address, (distribution, estimator, branches)), variance in zip(table.items(), result.mean[size:], strict=False):
        variance = float(variance) if variance > rounding else 0.0
        found.append(Contribution(show(address), distribution, estimator, branches, variance))
    leaves = tuple(arguments.leaves)
    return GradientEstimate(name, leaves, result.mean[:size], result.variance[:size], draws, seconds, most, tuple(found))


def _estimators(objective: Expectation, arguments: Arguments) -> tuple[dict[Address, tuple[str, str, int]], int]:
    """What serves the sites at each address, with its branches, and the most branches that a value has."""
    staged = _staged(objective, arguments)
    jaxpr, consts = staged.jaxpr.jaxpr, staged.jaxpr.consts
    chosen: Mapping[Any, Any] = first_choice(jaxpr)
    most = 1
    if any(plan.weighted for plan in chosen.values()):
        plan = make_plan(jaxpr, consts, chosen)
        chosen = plan.sites
        for influences in (*plan.steps.influences, *plan.parents.values()):
            most = max(most, math.prod(axis.size for axis in value_axes(influences, plan.sites)))
    table: dict[Address, tuple[str, str, int]] = {}
    for site_id, located in zip(site_ids(jaxpr), sites(jaxpr), strict=True):
        site, planned = located.site, chosen.get(site_id)
        if site.kind == SUBSAMPLE:
            table.setdefault(site.address, (site.distribution_name, "-", 1))
        elif planned is not None:
            how = "detached" if site.detached else type(planned.estimator).__name__
            table.setdefault(site.address, (site.distribution_name, how, math.prod(axis.size for axis in planned.axes)))
    return table, most
