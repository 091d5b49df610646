"""Augment, REINFORCE, merge."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ppl.estimators.disarm import Coins, logits_of_coins, pair
from ppl.estimators.protocol import Branches


@dataclasses.dataclass(frozen=True)
class ARM(Coins):
    """Two antithetic coins, with the noise that gives them as the coefficient (Yin and Zhou 2019, eq. 7).

    `DisARM` costs the same and varies less. Derivatives are of the first order.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.expectation
        ... def chance(logit):
        ...     return 1.0 * ppl.sample("x", dist.Bernoulli(logits=logit), estimator=ppl.estimators.ARM())
        >>> g = chance.grad(jax.random.key(0), 0.0, samples=20_000)  # exactly 0.25
        >>> bool(abs(g - 0.25) < 0.01)
        True
    """

    unbiased: bool = dataclasses.field(default=True, init=False)

    def particle(self, key: Any, distribution: Any) -> Branches:
        logits = logits_of_coins(distribution)
        noise = jax.random.logistic(key, jnp.shape(logits), jnp.result_type(logits))
        return pair(logits, noise, jax.nn.sigmoid(noise) - 0.5, jnp.int32)
