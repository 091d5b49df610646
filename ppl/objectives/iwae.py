"""The importance-weighted bound."""

from __future__ import annotations

from typing import Any

from ppl.objectives.particles import log_mean_exp, log_weights
from ppl.program import Bound
from ppl.samples import Samples


def iwae(model: Bound, family: Bound, particles: int | Samples) -> Any:
    """`E[log mean_k w_k]`, `w = p(x, z) / q(z)` (Burda et al. 2016, equation 8). In nats.

    Between the ELBO (one particle) and the log evidence, and higher with every particle. The gradient in the family has more
    noise for its size with more particles (Rainforth et al. 2018): see `dreg` and `vimco`.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def model():
        ...     z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ...     ppl.sample("x", dist.Normal(z, 1.0), obs=1.0)
        >>> @ppl.expectation
        ... def objective(mean):
        ...     family = ppl.program(lambda: ppl.sample("z", dist.Normal(mean, 1.0)))
        ...     return ppl.objectives.iwae(model(), family(), particles=50)
        >>> value = objective.estimate(jax.random.key(0), 0.5, samples=1000)
        >>> print(f"{value:.2f}")  # log evidence -1.5155
        -1.52
    """
    return log_mean_exp(log_weights(model, family, particles))
