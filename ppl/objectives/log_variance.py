"""The log-variance divergence."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ppl.objectives.particles import at_least, constant_draw
from ppl.program import Bound


def log_variance(model: Bound, family: Bound, particles: int, behaviour: Bound | None = None) -> Any:
    """`Var_r[log p(x, z) - log q(z)]`, r held constant (Richter et al. 2020; Richter and Berner 2024).

    In squared nats, to be minimized: zero where the family is the posterior, whatever the evidence. Value and gradient are
    unbiased for the variance under draws from *constant* r, and no derivative of `Var_q`. Where r is the family, half the
    gradient is minus the leave-one-out score-function gradient of the ELBO, draw by draw (Richter et al. 2020, proposition 1),
    so that this trains any family, by no estimator of its own.

    Args:
        behaviour: r, a bound program over the same addresses; the family if None. See `trajectory_balance`.

    Raises:
        DensityKindError: the log density of the model or of the family is estimated from draws, whose variance would count.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))
        >>> @ppl.expectation
        ... def objective(mean):
        ...     family = ppl.program(lambda: ppl.sample("z", dist.Normal(mean, 1.0)))
        ...     return ppl.objectives.log_variance(model(), family(), particles=100)
        >>> value, grad = objective.value_and_grad(jax.random.key(0), 0.5, samples=1000)
        >>> bool(abs(value - 0.25) < 0.01), bool(abs(grad - 1.0) < 0.03)  # mean**2, twice the derivative of mean**2 / 2
        (True, True)
    """
    at_least(2, particles, "log_variance")

    def log_weight(_: Any) -> Any:
        trace, log_q = constant_draw(family, behaviour)
        return model.log_density(trace) - log_q

    return jnp.var(jax.vmap(log_weight)(jnp.arange(particles)), ddof=1)
