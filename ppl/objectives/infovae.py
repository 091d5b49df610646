"""InfoVAE: the ELBO with its divergence from the prior replaced, in part, by one of the aggregated posterior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ppl.objectives.elbo import elbo_terms
from ppl.objectives.particles import at_least
from ppl.program import Bound
from ppl.transforms.simulate import simulate


def gaussian_kernel(x: Any, y: Any) -> Any:
    """`exp(-|x - y|^2 / d)` of two traces with d numbers in each (Zhao et al. 2019, appendix)."""
    (x, _), (y, _) = ravel_pytree(x), ravel_pytree(y)
    return jnp.exp(-jnp.mean((x - y) ** 2))


def mmd(one: Bound, other: Bound, particles: int, kernel: Callable[[Any, Any], Any] = gaussian_kernel) -> Any:
    """The squared maximum mean discrepancy between two programs' draws (Gretton et al. 2012, equation 3): unbiased.

    Both draw `particles` traces of one structure; `kernel` takes two of them. It is zero in expectation where the programs
    agree, and single estimates may be negative.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.expectation
        ... def objective(mean):
        ...     one, other = (ppl.program(lambda m=m: ppl.sample("z", dist.Normal(m, 1.0))) for m in (mean, 0.0))
        ...     return ppl.objectives.mmd(one(), other(), particles=100)
        >>> at_zero, at_one = (objective.estimate(jax.random.key(0), mean, samples=100) for mean in (0.0, 1.0))
        >>> bool(abs(at_zero) < 0.005), bool(at_one > 0.1)
        (True, True)
    """
    at_least(2, particles, "mmd")

    def draw(_: Any) -> Any:
        return simulate(one)[0], simulate(other)[0]

    def between(x: Any, y: Any) -> Any:
        return jax.vmap(lambda a: jax.vmap(lambda b: kernel(a, b))(y))(x)

    x, y = jax.vmap(draw)(jnp.arange(particles))
    pairs = between(x, x) + between(y, y) - between(x, y) - between(y, x)
    return jnp.sum(jnp.where(jnp.eye(particles, dtype=bool), 0.0, pairs)) / (particles * (particles - 1))


def infovae(model: Bound, family: Bound, aggregate: Bound, prior: Bound, particles: int, alpha: float, lam: float) -> Any:
    """`E_q[log p(x | z)] - (1 - alpha) KL(q(z | x) || p(z)) - (alpha + lam - 1) MMD(q(z), p(z))`. In nats, but for the MMD.

    Zhao et al. 2019, equation 6.

    Args:
        model: conditioned on its data.
        family: draws its latents.
        aggregate: draws one latent of the aggregated posterior: of a datum picked at random, say.
        prior: draws one latent of the prior, at the same addresses.
        particles: draws of each of the last two.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def model():
        ...     z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ...     ppl.sample("x", dist.Normal(z, 1.0), obs=1.0)
        >>> normal = ppl.program(lambda mean: ppl.sample("z", dist.Normal(mean, 1.0)))
        >>> @ppl.expectation
        ... def objective(mean):
        ...     q = normal(mean)
        ...     return ppl.objectives.infovae(model(), q, q, normal(0.0), particles=2, alpha=0.0, lam=1.0)
        >>> value = objective.estimate(jax.random.key(0), 0.0, samples=1000)
        >>> bool(abs(value + 1.92) < 0.1)  # the ELBO: alpha = 0, lam = 1
        True
    """
    terms = elbo_terms(model, family)
    divergence = terms.log_q - terms.log_prior
    return terms.log_likelihood - (1 - alpha) * divergence - (alpha + lam - 1) * mmd(aggregate, prior, particles)
