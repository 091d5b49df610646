"""The forward divergence, from the posterior to the family, by self-normalized importance sampling."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ppl.objectives.particles import at_least, log_mean_exp, log_weights
from ppl.objectives.surrogates import check_scores, constant, gradient_of, held
from ppl.program import Bound
from ppl.samples import Samples
from ppl.transforms.simulate import simulate


def forward_kl(model: Bound, family: Bound, particles: int) -> Any:
    """`KL(posterior || q)`, with the gradient `-sum_k w~_k d log q(z_k)` (Bornschein and Bengio 2015). In nats; minimize it.

    Draws are from the family, with normalized weights `w~`: value and gradient are consistent, with a bias of order
    1 / particles. No gradient reaches the model.

    Raises:
        EstimatorError: the log density of the family is not that of its draws.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))
        >>> @ppl.expectation
        ... def objective(mean):
        ...     family = ppl.program(lambda: ppl.sample("z", dist.Normal(mean, 1.0)))
        ...     return ppl.objectives.forward_kl(model(), family(), particles=1000)
        >>> value, grad = objective.value_and_grad(jax.random.key(0), 0.5, samples=100)
        >>> bool(abs(value - 0.125) < 0.01), bool(abs(grad - 0.5) < 0.03)  # mean**2 / 2
        (True, True)
    """
    at_least(2, particles, "forward_kl")
    check_scores(family, "forward_kl")
    constant_model = held(model)

    def particle(_: Any) -> Any:
        trace, log_q = simulate(family.detach())
        return constant(constant_model.log_density(trace) - log_q), log_q

    log_w, log_q = jax.vmap(particle)(jnp.arange(particles))
    w = jax.nn.softmax(log_w)
    return jnp.sum(w * log_w) - log_mean_exp(log_w) - jnp.sum(w * gradient_of(log_q))


def eubo(model: Bound, family: Bound, particles: int | Samples) -> Any:
    """`E_posterior[log p(x, z) - log q(z)]`, the evidence upper bound (Ji and Shen 2019), by normalized weights. In nats.

    `sum_k w~_k log w_k` is too low by O(1 / particles), and with one particle it is the ELBO: only with enough of them is it an
    upper bound.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))
        >>> @ppl.expectation
        ... def objective(mean):
        ...     family = ppl.program(lambda: ppl.sample("z", dist.Normal(mean, 1.0)))
        ...     return ppl.objectives.eubo(model(), family(), particles=1000)
        >>> value = objective.estimate(jax.random.key(0), 0.5, samples=100)
        >>> bool(abs(value - 0.125) < 0.01)  # log evidence + KL(posterior || q) = 0 + mean**2 / 2
        True
    """
    log_w = log_weights(model, family, particles)
    return jnp.sum(jax.nn.softmax(log_w) * log_w)
