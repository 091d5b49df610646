"""The log evidence between bounds from below and from above."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl.objectives.particles import log_mean_exp, log_weights
from ppl.program import Bound
from ppl.samples import Samples


class Sandwich(NamedTuple):
    """Estimates in nats from the same particles: `elbo <= iwae <= log evidence <= eubo, cubo` in the limit of many."""

    elbo: Any
    iwae: Any
    eubo: Any
    cubo: Any


def sandwich(model: Bound, family: Bound, particles: int | Samples) -> Sandwich:
    """Bounds of the log evidence from both sides (Dieng et al. 2017, section 2.2; Grosse et al. 2015). In nats.

    With weights `w`, normalized `w~`: `mean log w`, `log mean w`, `sum w~ log w`, `log(mean w^2) / 2`. The first two are lower
    bounds with any number of particles. The other two estimate upper bounds and are too low by O(1 / particles): a family
    whose weights have heavy tails can make them lie. Any weighted sum of them is an objective.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))
        >>> family = ppl.program(lambda: ppl.sample("z", dist.Normal(0.5, 1.0)))
        >>> bounds = ppl.seed(lambda: ppl.objectives.sandwich(model(), family(), particles=10_000))(jax.random.key(0))
        >>> bool(bounds.elbo < -0.1 < bounds.iwae < 0.01), bool(bounds.eubo > 0.1), bool(bounds.cubo > 0.1)  # log evidence: 0
        (True, True, True)
    """
    log_w = log_weights(model, family, particles)
    return Sandwich(
        elbo=jnp.mean(log_w),
        iwae=log_mean_exp(log_w),
        eubo=jnp.sum(jax.nn.softmax(log_w) * log_w),
        cubo=log_mean_exp(2 * log_w) / 2,
    )
