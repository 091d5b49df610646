"""Variational importance sampling with the forward chi-square divergence (Li et al. 2024, arXiv 2311.02516).

The model ascends `vis_model`, and the family descends one of the others. Each holds the other program's parameters constant, so
that one step may follow `vis_model(model, family, K) - vis_family(model, family, K)`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ppl.objectives.particles import at_least, log_mean_exp
from ppl.objectives.surrogates import check_scores, constant, frozen, gradient_of, held, pathwise
from ppl.program import Bound
from ppl.transforms.simulate import simulate


def vis_model(model: Bound, family: Bound, particles: int) -> Any:
    """`log mean_k w_k` with draws and densities of the family held constant: to be ascended, in nats.

    The gradient in the model is `sum_k w~_k grad log p(x, z_k)`, unbiased for that of `iwae` with this number of particles.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.expectation
        ... def objective(mean):
        ...     model, family = (ppl.program(lambda m=m: ppl.sample("z", dist.Normal(m, 1.0))) for m in (mean, 0.0))
        ...     return ppl.objectives.vis_model(model(), family(), particles=10)
        >>> value = objective.estimate(jax.random.key(0), 0.0)
        >>> float(value)
        0.0
    """
    at_least(1, particles, "vis_model")
    constant_family = held(family)

    def log_weight(_: Any) -> Any:
        trace, log_q = simulate(constant_family)
        return model.log_density(trace) - log_q

    return log_mean_exp(jax.vmap(log_weight)(jnp.arange(particles)))


def vis_family(model: Bound, family: Bound, particles: int) -> Any:
    """`log mean_k w_k^2` with the gradient `-sum_k softmax(2 log w)_k grad log q(z_k)`: to be descended, in nats.

    For any family. Value and gradient are consistent for those of `log E_q[w^2]`, with a bias of order 1 / particles
    (`chi_square` has none). This is the score-function gradient of their section 3.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))
        >>> @ppl.expectation
        ... def objective(mean):
        ...     family = ppl.program(lambda: ppl.sample("z", dist.Normal(mean, 1.0)))
        ...     return ppl.objectives.vis_family(model(), family(), particles=1000)
        >>> value, grad = objective.value_and_grad(jax.random.key(0), 0.5, samples=100)
        >>> bool(abs(value - 0.25) < 0.05), bool(abs(grad - 1.0) < 0.1)  # mean**2 and its derivative
        (True, True)
    """
    at_least(1, particles, "vis_family")
    check_scores(family, "vis_family")
    constant_model = held(model)

    def log_weight(_: Any) -> Any:
        trace, log_q = simulate(family.detach())
        return constant(constant_model.log_density(trace)) - log_q

    log_v = log_mean_exp(2 * jax.vmap(log_weight)(jnp.arange(particles)))
    return constant(log_v) + gradient_of(log_v) / 2


def vis_family_pathwise(model: Bound, family: Bound, particles: int) -> Any:
    """`log mean_k w_k^2`, differentiated through the draws by the family's own estimators: to be descended, in nats.

    Unbiased for `E[log mean_k w_k^2]`. On its own it can fail where `vis_family` does not: a family that starts far from the
    posterior's mass follows the slope of the few weights there are.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))
        >>> @ppl.expectation
        ... def objective(mean):
        ...     family = ppl.program(lambda: ppl.sample("z", dist.Normal(mean, 1.0)))
        ...     return ppl.objectives.vis_family_pathwise(model(), family(), particles=1000)
        >>> bool(abs(objective.grad(jax.random.key(0), 0.5, samples=100) - 1.0) < 0.1)
        True
    """
    at_least(1, particles, "vis_family_pathwise")

    def log_weight(_: Any) -> Any:
        trace, log_q = simulate(family)
        return constant(model.log_density(trace)) + gradient_of(frozen(model.log_density, trace)) - log_q

    return log_mean_exp(2 * jax.vmap(log_weight)(jnp.arange(particles)))


def vis_family_doubly_reparameterized(model: Bound, family: Bound, particles: int) -> Any:
    """`log mean_k w_k^2` with the gradient `-2 sum_k softmax(2 log w)_k d_z log w_k d_phi z_k`: to be descended, in nats.

    The score in `vis_family` reparameterized once more, as in `dreg`: no gradient noise where the family is the posterior.

    Raises:
        EstimatorError: a site of the family is not reparameterized, or its density is not that of its draws.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))
        >>> @ppl.expectation
        ... def objective(mean):
        ...     family = ppl.program(lambda: ppl.sample("z", dist.Normal(mean, 1.0)))
        ...     return ppl.objectives.vis_family_doubly_reparameterized(model(), family(), particles=1000)
        >>> bool(abs(objective.grad(jax.random.key(0), 0.5, samples=100) - 1.0) < 0.1)
        True
    """
    at_least(1, particles, "vis_family_doubly_reparameterized")
    check_scores(family, "vis_family_doubly_reparameterized", pathwise=True)

    def log_weight(_: Any) -> Any:
        trace, log_q = simulate(family)
        log_w = constant(model.log_density(trace) - log_q)
        noted = pathwise(trace, "a doubly reparameterized gradient")
        return log_w, frozen(lambda z: model.log_density(z) - family.log_density(z), noted)

    log_w, of_draws = jax.vmap(log_weight)(jnp.arange(particles))
    return log_mean_exp(2 * log_w) - 2 * jnp.sum(jax.nn.softmax(2 * log_w) * gradient_of(of_draws))
