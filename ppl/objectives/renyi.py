"""The variational Renyi bound."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ppl.objectives.particles import log_mean_exp, log_weights
from ppl.program import Bound
from ppl.samples import Samples


def renyi(model: Bound, family: Bound, alpha: float, particles: int | Samples) -> Any:
    """`log(mean_k w_k^(1 - alpha)) / (1 - alpha)` (Li and Turner 2016, sections 3 and 4.1). In nats.

    The mean stands inside a logarithm, so this is a consistent estimate of `log E_q[w^(1-alpha)] / (1 - alpha)` with a bias of
    order 1 / particles: too low for alpha < 1, too high for alpha > 1 (their theorem 2). Value and gradient are unbiased for
    the expectation with this number of particles, which is a lower bound on the log evidence for alpha >= 0. `alpha=1` is the
    ELBO, `alpha=0` is `iwae`, `alpha=-1` is `cubo`.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))
        >>> @ppl.expectation
        ... def objective(mean):
        ...     family = ppl.program(lambda: ppl.sample("z", dist.Normal(mean, 1.0)))
        ...     return ppl.objectives.renyi(model(), family(), alpha=0.5, particles=100)
        >>> value = objective.estimate(jax.random.key(0), 1.0, samples=100)
        >>> bool(abs(value + 0.25) < 0.05)  # -alpha mean**2 / 2
        True
    """
    log_w = log_weights(model, family, particles)
    return jnp.mean(log_w) if alpha == 1 else log_mean_exp((1 - alpha) * log_w) / (1 - alpha)
