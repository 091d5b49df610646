"""Paths between draws: where a point is at a time, and how fast it moves there.

Time runs from 0 (the source, usually noise) to 1 (the target, usually data). A path is stated by its position alone; velocities
are derivatives along time, by `jax.jvp`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ppl.program import sample


class Point(NamedTuple):
    """A place on a path between two (or more) ends, `ends`, with the noise that was added to it, or None."""

    path: Any
    x: Any
    t: Any
    ends: tuple[Any, ...]
    noise: Any = None


@dataclasses.dataclass(frozen=True)
class Path:
    """`x_t = position(t, *ends) + spread(t) z`, with standard normal z (stochastic interpolants; Albergo et al. 2023, eq. 2.1).

    Ends are pytrees of arrays of one structure.

    Args:
        position: from the time and the ends to a point: the first end at 0, the last at 1.
        spread: from the time to a number; None adds no noise.

    Example:
        >>> import jax.numpy as jnp, ppl
        >>> path = ppl.transport.Path(lambda t, x0, x1: (1 - t**2) * x0 + t**2 * x1)
        >>> print(path.velocity(0.5, (jnp.zeros(2), jnp.ones(2))))
        [1. 1.]
    """

    position: Callable[..., Any]
    spread: Callable[[Any], Any] | None = None

    def at(self, t: Any, ends: tuple[Any, ...], noise: Any = None) -> Any:
        """The point at a time. `noise` has the shape of a point; None leaves it out."""
        center = self.position(t, *ends)
        if noise is None or self.spread is None:
            return center
        return jax.tree.map(lambda x, z: x + self.spread(t) * z, center, noise)  # type: ignore[misc]

    def velocity(self, t: Any, ends: tuple[Any, ...], noise: Any = None) -> Any:
        """The derivative of the point by time, at fixed ends and noise."""
        t = jnp.asarray(t, jnp.result_type(float))
        return jax.jvp(lambda t: self.at(t, ends, noise), (t,), (jnp.ones_like(t),))[1]

    def draw(self, t: Any, ends: tuple[Any, ...]) -> Point:
        """A point, inside of an objective or a program: its noise becomes a random choice at `noise`."""
        if self.spread is None:
            return Point(self, self.at(t, ends), t, ends)
        like = jax.eval_shape(lambda: self.position(t, *ends))
        leaves, tree = jax.tree.flatten(like)
        names = ["noise"] if len(leaves) == 1 else [f"noise/{i}" for i in range(len(leaves))]
        draws = [
            sample(name, dist.Normal(jnp.zeros(leaf.shape, leaf.dtype), 1.0).to_event(len(leaf.shape)))
            for name, leaf in zip(names, leaves, strict=True)
        ]
        noise = jax.tree.unflatten(tree, draws)
        return Point(self, self.at(t, ends, noise), t, ends, noise)

    def with_spread(self, spread: Callable[[Any], Any]) -> Path:
        """The same path with noise around it, for example `ppl.transport.bridge(0.5)`."""
        return Path(self.position, spread)


@dataclasses.dataclass(frozen=True)
class Schedule(Path):
    """`x_t = scale(t) x_1 + sigma(t) x_0`. With a standard normal source, noise, data, score and velocity say the same.

    `convert` takes one of their conditional means given `x_t` to another (Lipman et al. 2024, table 1). Note that scores are
    infinite where `sigma` is zero, and data where `scale` is.
    """

    position: Callable[..., Any] = dataclasses.field(init=False)
    spread: Callable[[Any], Any] | None = dataclasses.field(init=False, default=None)
    scale: Callable[[Any], Any] = dataclasses.field(kw_only=True)
    sigma: Callable[[Any], Any] = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        scale, sigma = self.scale, self.sigma

        def position(t: Any, x0: Any, x1: Any) -> Any:
            return jax.tree.map(lambda x0, x1: scale(t) * x1 + sigma(t) * x0, x0, x1)

        object.__setattr__(self, "position", position)

    def rates(self, t: Any) -> tuple[Any, Any]:
        """The derivatives of `scale` and `sigma`."""
        t = jnp.asarray(t, jnp.result_type(float))
        derivatives: tuple[Any, Any] = jax.jvp(lambda t: (self.scale(t), self.sigma(t)), (t,), (jnp.ones_like(t),))[1]
        return derivatives

    def diffusion(self, t: Any) -> Any:
        """`g(t)`, with which reversing the stochastic noising process of this path takes the source to the target.

        Running backwards, `dx = (scale'/scale) x dt + g dw` makes data noisy along this path (Song et al. 2021, eq. 5 and 6).
        """
        (scale_rate, sigma_rate), scale, sigma = self.rates(t), self.scale(t), self.sigma(t)
        return jnp.sqrt(2.0 * sigma * (scale_rate / scale * sigma - sigma_rate))

    def convert(self, value: Any, x: Any, t: Any, *, given: Callable[..., Any], to: Callable[..., Any]) -> Any:
        """What the mean of one regression target given `x_t = x` says of another's.

        Args:
            value: the conditional mean of `given`.
            x, t: where.
            given, to: `velocity`, `score`, `noise` or `data` of `ppl.transport`.

        Raises:
            TypeError: another target.

        Example:
            >>> import jax.numpy as jnp, ppl
            >>> from ppl.transport import linear, noise, velocity
            >>> x0, x1 = jnp.array(2.0), jnp.array(-1.0)
            >>> float(linear().convert(x1 - x0, 0.5 * x0 + 0.5 * x1, 0.5, given=velocity, to=noise))
            2.0
        """
        (scale_rate, sigma_rate), scale, sigma = self.rates(t), self.scale(t), self.sigma(t)
        for target in (given, to):
            if target not in (velocity, score, noise, data):
                raise TypeError(f"convert knows ppl.transport's velocity, score, noise and data, got {target!r}")
        if given is to:
            return value

        def one(value: Any, x: Any) -> Any:
            if given is data:
                x0 = (x - scale * value) / sigma
            elif given is velocity:  # two equations in x0 and x1
                x0 = (scale_rate * x - scale * value) / (scale_rate * sigma - scale * sigma_rate)
            else:
                x0 = value if given is noise else -sigma * value
            if to is score:
                return -x0 / sigma
            if to is noise:
                return x0
            x1 = value if given is data else (x - sigma * x0) / scale
            if given is velocity:  # without dividing by the scale, which is zero at the source
                x1 = (sigma * value - sigma_rate * x) / (scale_rate * sigma - scale * sigma_rate)
            if to is data:
                return x1
            return scale_rate * x1 + sigma_rate * x0

        return jax.tree.map(one, value, x)


def linear(sigma_min: float = 0.0) -> Schedule:
    """`x_t = t x_1 + (1 - (1 - sigma_min) t) x_0` (Lipman et al. 2023, eq. 22; at 0 rectified flow, Liu et al. 2023)."""
    return Schedule(scale=lambda t: t, sigma=lambda t: 1.0 - (1.0 - sigma_min) * t)


def trigonometric() -> Schedule:
    """`x_t = sin(pi t / 2) x_1 + cos(pi t / 2) x_0` (Albergo and Vanden-Eijnden 2023, eq. 5)."""
    return Schedule(scale=lambda t: jnp.sin(0.5 * jnp.pi * t), sigma=lambda t: jnp.cos(0.5 * jnp.pi * t))


def variance_preserving(beta_min: float = 0.1, beta_max: float = 20.0) -> Schedule:
    """`scale^2 + sigma^2 = 1`, noise added at a rate linear in time (Song et al. 2021, eq. 33; Lipman et al. 2023, 19)."""

    def log_scale(t: Any) -> Any:
        s = 1.0 - t
        return -0.25 * s**2 * (beta_max - beta_min) - 0.5 * s * beta_min

    # log(1 - scale^2) by expm1: near the data sigma^2 is a difference of near equals.
    return Schedule(scale=lambda t: jnp.exp(log_scale(t)), sigma=lambda t: root(-jnp.expm1(2.0 * log_scale(t))))


def variance_exploding(sigma_min: float = 0.01, sigma_max: float = 10.0) -> Schedule:
    """`x_t = x_1 + sigma(t) x_0` with sigma geometric from `sigma_max` to `sigma_min` (Song et al. 2021, eq. 30).

    At time 0 it is not the source but the data under noise of scale `sigma_max`: start from `Normal(0, sigma_max)`.
    """
    return Schedule(scale=jnp.ones_like, sigma=lambda t: sigma_max * (sigma_min / sigma_max) ** jnp.asarray(t))


def root(x: Any) -> Any:
    """The square root of `x >= 0`, with derivative zero where it would be infinite."""
    return jnp.sqrt(jnp.where(x > 0.0, x, 1.0)) * (x > 0.0)


def bridge(scale: float) -> Callable[[Any], Any]:
    """`scale sqrt(t (1 - t))`, the spread of a Brownian bridge (Tong et al. 2024, eq. 12), for `Path.with_spread`.

    Its derivative is infinite at the ends, where this one has zero: a measure of zero. A time distribution that keeps away from
    the ends has less variance.
    """
    return lambda t: scale * root(t * (1.0 - t))


def through(times: Any, points: Any, t: Any) -> Any:
    """The natural cubic spline through points at times, at one time: for paths with several marginals.

    Example:
        >>> import jax.numpy as jnp, ppl
        >>> times = jnp.array([0.0, 0.5, 1.0])
        >>> path = ppl.transport.Path(lambda t, *points: ppl.transport.through(times, points, t))
        >>> print(path.at(0.5, (jnp.zeros(2), jnp.ones(2), jnp.zeros(2))))
        [1. 1.]
    """
    times = jnp.asarray(times)
    gap = jnp.diff(times)
    count = times.shape[0]
    # Second derivatives at the knots: natural at both ends.
    matrix = jnp.diag(jnp.ones(count))
    if count > 2:
        inner = jnp.arange(1, count - 1)
        matrix = matrix.at[inner, inner - 1].set(gap[:-1] / 6.0).at[inner, inner + 1].set(gap[1:] / 6.0)
        matrix = matrix.at[inner, inner].set((gap[:-1] + gap[1:]) / 3.0)
    i = jnp.clip(jnp.searchsorted(times, t, side="right") - 1, 0, count - 2)

    def one(*knots: Any) -> Any:
        y = jnp.stack(knots)
        slope = jnp.diff(y, axis=0) / jnp.reshape(gap, (-1,) + (1,) * (y.ndim - 1))
        bend = jnp.zeros_like(y).at[1:-1].set(jnp.diff(slope, axis=0))
        bend = jnp.reshape(jnp.linalg.solve(matrix, jnp.reshape(bend, (count, -1))), y.shape)
        h, a, b = gap[i], times[i + 1] - t, t - times[i]
        cubic = (bend[i] * a**3 + bend[i + 1] * b**3) / (6.0 * h)
        return cubic + (y[i] / h - bend[i] * h / 6.0) * a + (y[i + 1] / h - bend[i + 1] * h / 6.0) * b

    return jax.tree.map(one, *points)


# What a field is regressed on: functions of a point. Each field's minimizer is the mean of these given the point.


def velocity(point: Point) -> Any:
    """`d x_t / dt` at fixed ends and noise. Its mean given `x_t` moves the marginals (Lipman et al. 2023, theorem 1)."""
    return point.path.velocity(point.t, point.ends, point.noise)


def noise(point: Point) -> Any:
    """The normal noise: that of the path if it has a spread, the first end of a `Schedule` otherwise (a denoiser's target)."""
    if point.noise is not None:
        return point.noise
    _require_schedule(point)
    return point.ends[0]


def score(point: Point) -> Any:
    """`d log p(x_t | ends) / d x_t = -noise / spread`; its mean given `x_t` is the score of the marginal (Vincent 2011)."""
    spread = noise_scale(point)
    return jax.tree.map(lambda z: -z / spread, noise(point))


def data(point: Point) -> Any:
    """The last end."""
    return point.ends[-1]


def noise_scale(point: Point) -> Any:
    """What the noise is multiplied by."""
    if point.noise is not None:
        return point.path.spread(point.t)
    _require_schedule(point)
    return point.path.sigma(point.t)


def _require_schedule(point: Point) -> None:
    if not isinstance(point.path, Schedule):
        raise TypeError(
            "this path has no normal noise to regress on: use one of ppl.transport's schedules (linear, trigonometric, "
            "variance_preserving, ...) with a standard normal source, or path.with_spread(...)"
        )


__all__ = [
    "Path",
    "Point",
    "Schedule",
    "bridge",
    "data",
    "linear",
    "noise",
    "noise_scale",
    "score",
    "through",
    "trigonometric",
    "variance_exploding",
    "variance_preserving",
    "velocity",
]
