"""Independent particles of a family, and their log weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ppl import errors
from ppl.program import Bound
from ppl.samples import Samples, as_samples
from ppl.transforms.simulate import simulate


def log_weights(model: Bound, family: Bound, particles: int | Samples) -> Any:
    """`log p(x, z_k) - log q(z_k)` of independent draws from the family: shape `(particles,)`, in nats.

    Many particles need little memory in chunks: `particles=ppl.Samples(100_000, chunk=1000)`.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))
        >>> ppl.seed(lambda: ppl.objectives.log_weights(model(), model(), 3))(jax.random.key(0)).tolist()
        [0.0, 0.0, 0.0]
    """
    at_least(1, particles, "an objective")

    def log_weight() -> Any:
        trace, log_q = simulate(family)
        return model.log_density(trace) - log_q

    return as_samples(particles).map(log_weight)


def log_mean_exp(x: Any, axis: int = 0) -> Any:
    """The logarithm of the mean of `exp(x)` along an axis.

    Example:
        >>> import jax.numpy as jnp, ppl
        >>> float(ppl.objectives.log_mean_exp(jnp.array([2.0, 2.0])))
        2.0
    """
    return jax.nn.logsumexp(x, axis=axis) - jnp.log(jnp.shape(x)[axis])


def at_least(minimum: int, particles: int | Samples, objective: str) -> None:
    particles = particles.number if isinstance(particles, Samples) else particles
    if particles < minimum:
        raise errors.ObjectiveError(f"{objective} takes at least {minimum} particle{'s'[: minimum - 1]}, got {particles}")


__all__ = ["at_least", "log_mean_exp", "log_weights"]
