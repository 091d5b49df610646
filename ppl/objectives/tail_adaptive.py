"""The tail-adaptive f-divergence."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ppl.objectives.particles import at_least
from ppl.objectives.surrogates import check_scores, constant, frozen, pathwise
from ppl.program import Bound
from ppl.transforms.simulate import simulate


def tail_adaptive(model: Bound, family: Bound, particles: int, beta: float = -1.0) -> Any:
    """Descend an f-divergence that adapts to the tail of the weights (Wang et al. 2018, algorithm 1). To be maximized.

    The gradient is `sum_k g_k d_z log w_k d_phi z_k`, `g_k` proportional to `F(w_k)^beta`, F(w_k) the share of particles whose
    weight is at least as large: only the order of the weights matters, and it is stable however heavy their tail is. The
    value is `sum_k g_k log w_k`, in nats: no bound, and not comparable between runs. There is no fixed objective behind it:
    the divergence changes with the family. No gradient reaches the model.

    Raises:
        EstimatorError: a site of the family is not reparameterized, or its density is not that of its draws.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(3.0, 2.0)))
        >>> @ppl.expectation
        ... def objective(mean):
        ...     family = ppl.program(lambda: ppl.sample("z", dist.Normal(mean, 2.0)))
        ...     return ppl.objectives.tail_adaptive(model(), family(), particles=10)
        >>> grads = [float(objective.grad(jax.random.key(0), mean)) for mean in (2.0, 3.0)]
        >>> grads[0] > 0, grads[1]  # towards the posterior, and at rest there
        (True, 0.0)
    """
    at_least(2, particles, "tail_adaptive")
    check_scores(family, "tail_adaptive", pathwise=True)

    def log_weight(_: Any) -> Any:
        trace, log_q = simulate(family)
        noted = pathwise(trace, "the gradient of tail_adaptive")
        of_draw = frozen(lambda z: model.log_density(z) - family.log_density(z), noted)
        return constant(model.log_density(trace) - log_q), of_draw

    log_w, of_draw = jax.vmap(log_weight)(jnp.arange(particles))
    tail = jnp.mean(log_w[None, :] >= log_w[:, None], axis=1) ** beta
    return jnp.sum(tail / jnp.sum(tail) * of_draw)
