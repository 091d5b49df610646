"""The score function, or REINFORCE."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax

from ppl.estimators.protocol import OneValue, Particle
from ppl.site import Site


@functools.partial(jax.tree_util.register_dataclass, data_fields=["baseline"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class ScoreFunction(OneValue):
    """Weight `exp(log p(x) - sg(log p(x)))`: value one, gradient that of `log p` (Williams 1992; Foerster et al. 2018).

    Works for any distribution with a density whose support does not move with its parameters, and any objective;
    higher derivatives are unbiased too.

    Attributes:
        baseline: what is subtracted from the cost that the score multiplies: a number or an array (by element),
            `LeaveOneOut()`, `MovingAverage()`, `Learned(prediction)`, `Vimco()`, or None.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.expectation
        ... def chance(p):
        ...     return 1.0 * ppl.sample("x", dist.Bernoulli(probs=p), estimator=ppl.estimators.ScoreFunction())
        >>> g = chance.grad(jax.random.key(0), 0.3, samples=20_000)
        >>> bool(abs(g - 1.0) < 0.1)
        True
    """

    baseline: Any = None
    unbiased = True
    reads_arrays = False  # the engine reads the baseline

    def refuses(self, distribution: Any, site: Site) -> str | None:
        if site.distribution_name in ("Delta", "ImproperUniform"):
            return f"{site.distribution_name} has no score"
        if site.moving_support:
            return (
                "the support moves with its parameters, and a score function misses what happens at the boundary "
                "(bounds that are Python numbers are fine)"
            )
        return None

    def particle(self, key: Any, distribution: Any) -> Particle:
        value = jax.lax.stop_gradient(distribution.sample(key))
        log_p = distribution.log_prob(value)
        return Particle(value, log_p - jax.lax.stop_gradient(log_p))
