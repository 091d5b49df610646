"""The von Mises-Fisher distribution: the normal distribution's counterpart on a sphere."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import gammaln, logsumexp
from numpyro.distributions import constraints

_BOUNDARY = 30.0
"""From here on the asymptotic expansion is exact to double precision; below, so is the power series with `_TERMS` terms."""
_TERMS = 70


class VonMisesFisher(dist.Distribution):
    """Density proportional to `exp(concentration * <mean_direction, x>)` on the unit sphere in D >= 2 dimensions.

    The log density is in nats, with respect to the sphere's surface measure. In three dimensions draws are differentiable
    functions of noise, by the inverse of the distribution function (Ulrich 1984; Jakob 2012); elsewhere they come from
    Wood's (1994) rejection sampler and are not, so that `ppl` takes the score function.

    Args:
        mean_direction: a unit vector, `(*batch, D)`.
        concentration: positive, `(*batch)`.

    Example:
        >>> import jax, jax.numpy as jnp, ppl.distributions as dist
        >>> pole = dist.VonMisesFisher(jnp.array([0.0, 0.0, 1.0]), 5.0)
        >>> x = pole.sample(jax.random.key(0), (20_000,))
        >>> bool(jnp.allclose(x.mean(0), pole.mean, atol=0.02)), round(float(pole.mean[2]), 3)
        (True, 0.8)
    """

    arg_constraints = {"mean_direction": constraints.sphere, "concentration": constraints.positive}  # noqa: RUF012
    support = constraints.sphere

    def __init__(self, mean_direction: Any, concentration: Any, *, validate_args: bool | None = None):
        if jnp.ndim(mean_direction) < 1 or jnp.shape(mean_direction)[-1] < 2:
            raise ValueError(f"mean_direction must be vectors in two or more dimensions, got shape {jnp.shape(mean_direction)}")
        self.mean_direction, self.concentration = mean_direction, concentration
        batch_shape = jnp.broadcast_shapes(jnp.shape(mean_direction)[:-1], jnp.shape(concentration))
        super().__init__(batch_shape, jnp.shape(mean_direction)[-1:], validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        return self.event_shape[-1] == 3

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        dimension, shape = self.event_shape[-1], sample_shape + self.batch_shape
        key_tangent, key_gap = jax.random.split(key)
        dtype = jnp.result_type(self.mean_direction, self.concentration, float)
        concentration = jnp.broadcast_to(jnp.asarray(self.concentration, dtype), shape)
        draw_gap = _gap_in_space if dimension == 3 else functools.partial(_gap_by_rejection, dimension)
        gap = jnp.expand_dims(draw_gap(key_gap, concentration), -1)  # 1 - <mean_direction, x>
        # A uniform direction in the tangent space: unlike a reflection of a pole, it is smooth in the mean everywhere.
        normal = jax.random.normal(key_tangent, (*shape, dimension), dtype)
        tangent = normal - jnp.sum(normal * self.mean_direction, axis=-1, keepdims=True) * self.mean_direction
        tangent = tangent / jnp.linalg.norm(tangent, axis=-1, keepdims=True)
        x = (1.0 - gap) * self.mean_direction + jnp.sqrt(gap * (2.0 - gap)) * tangent
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def log_prob(self, value: Any) -> Any:
        cosine = jnp.sum(self.mean_direction * value, axis=-1)
        return self.concentration * (cosine - 1.0) + _log_constant(self.event_shape[-1], self.concentration)

    @property
    def mean(self) -> Any:
        concentration = jnp.asarray(self.concentration, jnp.result_type(self.concentration, float))
        log_constant = functools.partial(_log_constant, self.event_shape[-1])
        _, slope = jax.jvp(log_constant, (concentration,), (jnp.ones_like(concentration),))
        mean = jnp.expand_dims(1.0 - slope, -1) * self.mean_direction
        return jnp.broadcast_to(mean, self.batch_shape + self.event_shape)


def _gap_in_space(key: Any, concentration: Any) -> Any:
    tiny = jnp.finfo(concentration.dtype).tiny
    u = jax.random.uniform(key, concentration.shape, concentration.dtype, minval=tiny)
    return jnp.minimum(-jnp.log1p(u * jnp.expm1(-2.0 * concentration)) / concentration, 2.0)


def _gap_by_rejection(dimension: int, key: Any, concentration: Any) -> Any:
    """Wood (1994), algorithm VM*, in terms of 1 - w, which keeps its digits at high concentrations."""
    concentration = jax.lax.stop_gradient(concentration)
    n = dimension - 1.0
    b = n / (2.0 * concentration + jnp.sqrt(4.0 * concentration**2 + n**2))
    x0, gap0 = (1.0 - b) / (1.0 + b), 2.0 * b / (1.0 + b)

    def log_ratio(gap: Any) -> Any:
        """Log of target over proposal, as far as it depends on the value; greatest at `gap0`."""
        return -concentration * gap + n * jnp.log(gap0 + x0 * gap)

    def draw(state: Any) -> Any:
        key, gap, done = state
        key, now = jax.random.split(key)
        angle, radius, accept = jax.random.uniform(now, (3, *concentration.shape), concentration.dtype)
        # Beta(n/2, n/2) without rejection (Ulrich 1984; Devroye 1986, section IX.3.2).
        radius = jnp.sqrt(1.0 - radius ** (2.0 / (n - 1.0))) if n > 1.0 else 1.0
        z = 0.5 + 0.5 * radius * jnp.cos(2.0 * jnp.pi * angle)
        new = 2.0 * b * z / (1.0 - (1.0 - b) * z)
        accepted = log_ratio(new) - log_ratio(gap0) >= jnp.log1p(-accept)
        return key, jnp.where(done, gap, new), done | accepted

    start = (key, jnp.zeros_like(concentration), jnp.zeros(concentration.shape, bool))
    return jnp.clip(jax.lax.while_loop(lambda state: ~jnp.all(state[2]), draw, start)[1], 0.0, 2.0)


def _log_constant(dimension: int, concentration: Any) -> Any:
    """Log of the normalizing constant times `exp(concentration)`: `nu log k - (D/2) log 2 pi - log(exp(-k) I_nu(k))`."""
    nu = dimension / 2.0 - 1.0
    k = jnp.asarray(concentration, jnp.result_type(concentration, float))
    far = k**2 + nu**2 >= _BOUNDARY**2
    asymptotic = _asymptotic(nu, jnp.where(far, k, _BOUNDARY))
    series = _series(nu, jnp.where(far, 1.0, k)) if nu < _BOUNDARY else 0.0
    return jnp.where(far, asymptotic, series) - dimension / 2.0 * np.log(2.0 * np.pi)


def _series(nu: float, k: Any) -> Any:
    """The power series of I_nu (DLMF 10.25.2)."""
    m = np.arange(_TERMS, dtype=float)
    constants = jnp.asarray(-gammaln(m + 1.0) - gammaln(m + nu + 1.0), k.dtype)
    tiny = jnp.finfo(k.dtype).tiny
    powers = 2.0 * jnp.asarray(m, k.dtype) * jnp.expand_dims(jnp.log(jnp.maximum(k / 2.0, tiny)), -1)
    return nu * np.log(2.0) + k - logsumexp(powers + constants, axis=-1)


def _asymptotic(nu: float, k: Any) -> Any:
    """Debye's expansion of I_nu (DLMF 10.41.3), uniform in nu >= 0, where `r` is large."""
    r = jnp.sqrt(k**2 + nu**2)
    total = jnp.zeros_like(r)
    for coefficients in reversed(_debye()):
        total = total / r + jnp.polyval(jnp.asarray(coefficients[::-1], k.dtype), (nu / r) ** 2)
    return nu * jnp.log(nu + r) - nu**2 / (r + k) + 0.5 * jnp.log(2.0 * np.pi * r) - jnp.log(total)


@functools.cache
def _debye(order: int = 13) -> list[np.ndarray]:
    """Coefficients of `U_i(p) / p**i`, polynomials in p**2 (DLMF 10.41.9)."""
    u = np.polynomial.Polynomial([1.0])
    p = np.polynomial.Polynomial([0.0, 1.0])
    found = []
    for i in range(order):
        found.append(np.asarray(u.coef[i::2]))
        u = 0.5 * p**2 * (1 - p**2) * u.deriv() + ((1 - 5 * p**2) * u).integ() / 8.0
    return found


__all__ = ["VonMisesFisher"]
