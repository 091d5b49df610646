"""The chi-square divergence and the upper bound it gives."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ppl.objectives.particles import log_mean_exp, log_weights
from ppl.program import Bound
from ppl.samples import Samples
from ppl.transforms.simulate import simulate


def chi_square(model: Bound, family: Bound, log_evidence: Any = 0.0) -> Any:
    """`E_q[w^2]`, `w = p(x, z) / (q(z) e^log_evidence)`, from one draw: value and gradient are unbiased. No logarithm.

    With the log evidence given it is one plus the chi-square divergence from the posterior to the family (Dieng et al. 2017,
    section 2.1); any guess of it keeps the numbers in range. Half the logarithm of its expectation, plus `log_evidence`, bounds
    the log evidence from above.

    Example:
        >>> import jax, math, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))
        >>> @ppl.expectation
        ... def objective(mean):
        ...     family = ppl.program(lambda: ppl.sample("z", dist.Normal(mean, 1.0)))
        ...     return ppl.objectives.chi_square(model(), family())
        >>> value = objective.estimate(jax.random.key(0), 0.5, samples=100_000)
        >>> bool(abs(value - math.exp(0.25)) < 0.01)  # exp(mean**2)
        True
    """
    trace, log_q = simulate(family)
    return jnp.exp(2 * (model.log_density(trace) - log_q - log_evidence))


def cubo(model: Bound, family: Bound, particles: int | Samples, power: float = 2.0) -> Any:
    """`log(mean_k w_k^power) / power`, the chi upper bound for power >= 1 (Dieng et al. 2017, section 2.1). In nats.

    `log E_q[w^power] / power` lies above the log evidence. This estimate of it is too low by O(1 / particles), and with one
    particle it is the ELBO: only with enough of them is it an upper bound. Without bias: `chi_square`.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))
        >>> @ppl.expectation
        ... def objective(mean):
        ...     family = ppl.program(lambda: ppl.sample("z", dist.Normal(mean, 1.0)))
        ...     return ppl.objectives.cubo(model(), family(), particles=1000)
        >>> value = objective.estimate(jax.random.key(0), 0.5, samples=100)
        >>> bool(abs(value - 0.125) < 0.02)  # mean**2 / 2
        True
    """
    return log_mean_exp(power * log_weights(model, family, particles)) / power
