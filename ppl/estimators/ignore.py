"""No gradient at all: a choice that is treated as if it did not depend on parameters."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from ppl.densities import sample
from ppl.estimators.protocol import OneValue, Particle
from ppl.site import Site


@dataclasses.dataclass(frozen=True)
class Ignore(OneValue):
    """A draw whose dependence on parameters is left out of the gradient. Values are right, gradients are biased.

    For resampling steps, where the score function of the index is noisy (as in variational sequential Monte Carlo; Naesseth et
    al. 2018, sec. 3). To stop gradients on purpose, as in wake-sleep, use `.detach()`.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.expectation
        ... def chance(p):
        ...     return 1.0 * ppl.sample("x", dist.Bernoulli(probs=p), estimator=ppl.estimators.Ignore())
        >>> float(chance.grad(jax.random.key(0), 0.25))
        0.0
    """

    unbiased: bool = dataclasses.field(default=False, init=False)
    weighted = False

    def refuses(self, distribution: Any, site: Site) -> str | None:
        return None

    def particle(self, key: Any, distribution: Any) -> Particle:
        return Particle(jax.lax.stop_gradient(sample(distribution, key)))
