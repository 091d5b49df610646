"""VIMCO: score-function gradients of the importance-weighted bound, with a baseline from the other particles."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ppl.objectives.particles import at_least, log_mean_exp
from ppl.objectives.surrogates import check_scores, constant, gradient_of
from ppl.program import Bound
from ppl.transforms.simulate import simulate


def vimco(model: Bound, family: Bound, particles: int) -> Any:
    """`iwae` with the gradient `sum_k (L - L_k) d log q(z_k) + w~_k d log w_k` (Mnih and Rezende 2016). In nats.

    `L` is the bound and `L_k` the same with particle k's weight replaced by the geometric mean of the others'. Unbiased for any
    family that has a density; the family's own estimators are not used.

    Raises:
        EstimatorError: the log density of the family is not that of its draws.
        DifferentiationError: second derivatives.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Bernoulli(probs=0.7)))
        >>> @ppl.expectation
        ... def objective(p):
        ...     family = ppl.program(lambda: ppl.sample("z", dist.Bernoulli(probs=p)))
        ...     return ppl.objectives.vimco(model(), family(), particles=5)
        >>> bool(abs(objective.grad(jax.random.key(0), 0.7, samples=10_000)) < 0.05)  # at the posterior
        True
    """
    at_least(2, particles, "vimco")
    check_scores(family, "vimco")

    def particle(_: Any) -> Any:
        trace, log_q = simulate(family.detach())
        return model.log_density(trace) - log_q, log_q

    log_w, log_q = jax.vmap(particle)(jnp.arange(particles))
    bound = log_mean_exp(log_w)
    own, others = jnp.eye(particles, dtype=bool), constant(log_w)[None, :]
    geometric = jnp.sum(jnp.where(own, 0.0, others), axis=1, keepdims=True) / (particles - 1)
    baseline = log_mean_exp(jnp.where(own, geometric, others), axis=1)
    return bound + jnp.sum((constant(bound) - baseline) * gradient_of(log_q))
