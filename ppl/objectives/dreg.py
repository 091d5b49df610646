"""The importance-weighted bound with doubly reparameterized gradients."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ppl.objectives.particles import at_least, log_mean_exp
from ppl.objectives.surrogates import check_scores, constant, frozen, gradient_of, pathwise
from ppl.program import Bound
from ppl.transforms.simulate import simulate


def dreg(model: Bound, family: Bound, particles: int) -> Any:
    """`iwae` with the gradient `sum_k w~_k^2 d_z log w_k d_phi z_k` in the family (Tucker et al. 2019, section 3). In nats.

    `w~` are the normalized weights; the gradient in the model is the usual `sum_k w~_k d_theta log p(x, z_k)`. Both are
    unbiased for those of `iwae`, and the signal-to-noise ratio in the family grows with particles.

    Raises:
        EstimatorError: a site of the family is not reparameterized (there the formula is biased), or its density is not that
            of its draws.
        DifferentiationError: second derivatives.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(3.0, 2.0)))
        >>> @ppl.expectation
        ... def objective(mean):
        ...     family = ppl.program(lambda: ppl.sample("z", dist.Normal(mean, 2.0)))
        ...     return ppl.objectives.dreg(model(), family(), particles=5)
        >>> float(objective.grad(jax.random.key(0), 3.0))  # at the posterior, without noise
        0.0
    """
    at_least(1, particles, "dreg")
    check_scores(family, "dreg", pathwise=True)

    def particle(_: Any) -> Any:
        trace, log_q = simulate(family)
        log_w = constant(model.log_density(trace) - log_q)
        of_model = model.log_density(jax.lax.stop_gradient(trace))
        of_draw = frozen(lambda z: model.log_density(z) - family.log_density(z), pathwise(trace, "the gradient of dreg"))
        return log_w, of_model, of_draw

    log_w, of_model, of_draw = jax.vmap(particle)(jnp.arange(particles))
    w = jax.nn.softmax(log_w)
    return log_mean_exp(log_w) + jnp.sum(w * gradient_of(of_model) + w**2 * gradient_of(of_draw))
