"""Independent particles of a family, and their log weights."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ppl import errors
from ppl.program import Bound
from ppl.samples import Samples, as_samples
from ppl.transforms.by_site import log_density_by_site, simulate_by_site
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


def constant_draw(family: Bound, behaviour: Bound | None, *, by_site: bool = False) -> tuple[Any, Any]:
    """A trace held constant, of a program that draws (the family if None), and its log density under the family, in nats.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> from ppl.objectives.particles import constant_draw
        >>> family = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))()
        >>> trace, log_q = ppl.seed(lambda: constant_draw(family, family.substitute(z=0.0)))(jax.random.key(0))
        >>> print(f"{log_q:.4f}")
        -0.9189
    """
    if behaviour is None:
        return simulate_by_site(family.detach()) if by_site else simulate(family.detach())
    trace = jax.lax.stop_gradient(simulate(behaviour.detach())[0])
    return trace, log_density_by_site(family, trace) if by_site else family.log_density(trace)


def at_least(minimum: int, particles: int | Samples, objective: str) -> None:
    particles = particles.number if isinstance(particles, Samples) else particles
    if particles < minimum:
        raise errors.ObjectiveError(f"{objective} takes at least {minimum} particle{'s'[: minimum - 1]}, got {particles}")


__all__ = ["at_least", "constant_draw", "log_mean_exp", "log_weights"]
