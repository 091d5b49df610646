"""Derivatives of densities as differences of densities, with coupled draws from both: the table of `MeasureValued`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import betaln


class Slope(NamedTuple):
    """The derivative in a parameter: `coefficient * (k(plus) - k(minus))` in expectation. None is the draw itself."""

    parameter: Any
    coefficient: Any
    plus: Any
    minus: Any


class Draw(NamedTuple):
    """A draw, and slopes by parameter: one for each scalar in it."""

    value: Any
    slopes: dict[str, list[Slope]]


def _maxwell(key: Any, shape: tuple[int, ...]) -> Any:
    return jnp.linalg.norm(jax.random.normal(key, (3, *shape)), axis=0)


def _normal(key: Any, d: Any, shape: tuple[int, ...]) -> Draw:
    """The mean by Rayleigh steps to both sides, the scale by a double-sided Maxwell and a uniform fraction of it."""
    radius, sign, fraction, step = jax.random.split(key, 4)
    maxwell = _maxwell(radius, shape) * jax.random.rademacher(sign, shape)
    rayleigh = jnp.sqrt(2.0 * jax.random.exponential(step, shape))
    value = d.loc + d.scale * maxwell * jax.random.uniform(fraction, shape)
    apart = d.scale * rayleigh
    loc = Slope(d.loc, 1.0 / (d.scale * jnp.sqrt(2.0 * jnp.pi)), d.loc + apart, d.loc - apart)
    return Draw(value, {"loc": [loc], "scale": [Slope(d.scale, 1.0 / d.scale, d.loc + d.scale * maxwell, None)]})


def _half_normal(key: Any, d: Any, shape: tuple[int, ...]) -> Draw:
    radius, fraction = jax.random.split(key)
    maxwell = d.scale * _maxwell(radius, shape)
    return Draw(maxwell * jax.random.uniform(fraction, shape), {"scale": [Slope(d.scale, 1.0 / d.scale, maxwell, None)]})


def _laplace(key: Any, d: Any, shape: tuple[int, ...]) -> Draw:
    """The mean by exponential steps to both sides, the scale by a longer step to the same side."""
    first, second, side = jax.random.split(key, 3)
    step, more = jax.random.exponential(first, shape), jax.random.exponential(second, shape)
    sign = jax.random.rademacher(side, shape)
    loc = Slope(d.loc, 0.5 / d.scale, d.loc + d.scale * step, d.loc - d.scale * step)
    scale = Slope(d.scale, 1.0 / d.scale, d.loc + d.scale * sign * (step + more), None)
    return Draw(d.loc + d.scale * sign * step, {"loc": [loc], "scale": [scale]})


def _exponential(key: Any, d: Any, shape: tuple[int, ...]) -> Draw:
    first, second = jax.random.split(key)
    value = jax.random.exponential(first, shape) / d.rate
    longer = value + jax.random.exponential(second, shape) / d.rate
    return Draw(value, {"rate": [Slope(d.rate, 1.0 / d.rate, None, longer)]})


def _weibull(key: Any, d: Any, shape: tuple[int, ...]) -> Draw:
    """`(x / scale) ** concentration` is exponential."""
    first, second = jax.random.split(key)
    step = jax.random.exponential(first, shape)
    longer = step + jax.random.exponential(second, shape)
    power = 1.0 / d.concentration
    slope = Slope(d.scale, d.concentration / d.scale, d.scale * longer**power, None)
    return Draw(d.scale * step**power, {"scale": [slope]})


def _shrinking(key: Any, concentration: Any) -> tuple[Any, Any]:
    """The derivative of a Gamma density in its shape a, as a coefficient and a factor s for the draw x.

    With log x = int (exp(-t) - exp(-t x)) dt / t, and the same of its mean digamma(a), the derivative `p (log x - digamma(a))`
    is the integral over s in (0, 1) of `s^(a-1) / (1-s)` times p less the density of s x. Here 1 - s is drawn from
    Beta(1/2, a), for which the variance is finite whatever bounded function is averaged.
    """
    less = jax.random.beta(key, 0.5, concentration)
    less = jnp.maximum(less, jnp.finfo(less.dtype).eps ** 2)  # below, s is one and the difference zero
    return jnp.exp(betaln(0.5, concentration)) / jnp.sqrt(less), 1.0 - less


def _gamma(key: Any, d: Any, shape: tuple[int, ...]) -> Draw:
    first, second, third = jax.random.split(key, 3)
    shape_parameter = jnp.broadcast_to(jax.lax.stop_gradient(d.concentration), shape)
    value = jax.random.gamma(first, shape_parameter) / d.rate
    longer = value + jax.random.exponential(second, shape) / d.rate
    coefficient, factor = _shrinking(third, shape_parameter)
    concentration = Slope(d.concentration, coefficient, None, factor * value)
    return Draw(value, {"concentration": [concentration], "rate": [Slope(d.rate, shape_parameter / d.rate, None, longer)]})


def _beta(key: Any, d: Any, shape: tuple[int, ...]) -> Draw:
    """A Gamma variable over the sum of it and another one."""
    parameters = {"concentration1": d.concentration1, "concentration0": d.concentration0}
    both = jnp.stack([jnp.broadcast_to(p, shape) for p in parameters.values()], axis=-1)
    value, coefficients, shrunk = _normalized_gammas(key, jax.lax.stop_gradient(both))
    slopes = {
        name: [Slope(parameter, coefficients[..., i], None, shrunk[i][..., 0])]
        for i, (name, parameter) in enumerate(parameters.items())
    }
    return Draw(value[..., 0], slopes)


def _dirichlet(key: Any, d: Any, shape: tuple[int, ...]) -> Draw:
    size = d.event_shape[0]
    concentration = jnp.broadcast_to(d.concentration, (*shape, size))
    value, coefficients, shrunk = _normalized_gammas(key, jax.lax.stop_gradient(concentration))
    slopes = [Slope(concentration[..., i], coefficients[..., i], None, shrunk[i]) for i in range(size)]
    return Draw(value, {"concentration": slopes})


def _normalized_gammas(key: Any, concentration: Any) -> tuple[Any, Any, list[Any]]:
    """A Dirichlet draw; the coefficients of its slopes, and what it becomes where one of its Gamma variables shrinks."""
    first, second = jax.random.split(key)
    logs = jax.random.loggamma(first, concentration)
    coefficients, factors = _shrinking(second, concentration)
    shrink = jnp.log(jnp.maximum(factors, jnp.finfo(factors.dtype).tiny))
    size = concentration.shape[-1]
    shrunk = [jax.nn.softmax(logs + shrink * (jnp.arange(size) == i), axis=-1) for i in range(size)]
    return jax.nn.softmax(logs, axis=-1), coefficients, shrunk


def _uniform(key: Any, d: Any, shape: tuple[int, ...]) -> Draw:
    """The derivative in a bound is the value there less the mean."""
    width = d.high - d.low
    value = d.low + width * jax.random.uniform(key, shape)
    return Draw(value, {"low": [Slope(d.low, 1.0 / width, None, d.low)], "high": [Slope(d.high, 1.0 / width, d.high, None)]})


def _poisson(key: Any, d: Any, shape: tuple[int, ...]) -> Draw:
    value = jax.random.poisson(key, jax.lax.stop_gradient(d.rate), shape)
    return Draw(value, {"rate": [Slope(d.rate, jnp.ones(shape), value + 1, None)]})


def _geometric(key: Any, d: Any, shape: tuple[int, ...]) -> Draw:
    first, second = jax.random.split(key)
    fixed = dist.GeometricProbs(jnp.broadcast_to(jax.lax.stop_gradient(d.probs), shape))
    value = fixed.sample(first)
    return Draw(value, {"probs": [Slope(d.probs, 1.0 / d.probs, None, value + 1 + fixed.sample(second))]})


def _bernoulli(key: Any, d: Any, shape: tuple[int, ...]) -> Draw:
    value = jax.random.bernoulli(key, jax.lax.stop_gradient(d.probs), shape).astype(jnp.int32)
    return Draw(value, {"probs": [Slope(d.probs, 2.0 * value - 1.0, None, 1 - value)]})


def _binomial(key: Any, d: Any, shape: tuple[int, ...]) -> Draw:
    """One of the trials, at random, has the other outcome."""
    first, second = jax.random.split(key)
    trials = jnp.broadcast_to(d.total_count, shape)
    value = dist.BinomialProbs(jnp.broadcast_to(jax.lax.stop_gradient(d.probs), shape), trials).sample(first)
    success = jax.random.uniform(second, shape) * trials < value
    sign = 2.0 * success - 1.0
    return Draw(value, {"probs": [Slope(d.probs, trials * sign, None, jnp.where(trials > 0, value - sign, 0))]})


class Known(NamedTuple):
    """The parameters that a class's derivatives are known in; `constants` are those that they are not known in."""

    derive: Callable[[Any, Any, tuple[int, ...]], Draw]
    parameters: tuple[str, ...]
    constants: tuple[str, ...] = ()


WEAK_DERIVATIVES: dict[Any, Known] = {
    dist.Normal: Known(_normal, ("loc", "scale")),
    dist.HalfNormal: Known(_half_normal, ("scale",)),
    dist.Laplace: Known(_laplace, ("loc", "scale")),
    dist.Exponential: Known(_exponential, ("rate",)),
    dist.Weibull: Known(_weibull, ("scale",), ("concentration",)),
    dist.Gamma: Known(_gamma, ("concentration", "rate")),
    dist.Beta: Known(_beta, ("concentration1", "concentration0")),
    dist.Dirichlet: Known(_dirichlet, ("concentration",)),
    dist.Uniform: Known(_uniform, ("low", "high")),
    dist.Poisson: Known(_poisson, ("rate",)),
    dist.GeometricProbs: Known(_geometric, ("probs",)),
    dist.GeometricLogits: Known(_geometric, ("probs",)),
    dist.BernoulliProbs: Known(_bernoulli, ("probs",)),
    dist.BernoulliLogits: Known(_bernoulli, ("probs",)),
    dist.BinomialProbs: Known(_binomial, ("probs",)),
    dist.BinomialLogits: Known(_binomial, ("probs",)),
}
