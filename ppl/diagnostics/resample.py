"""`resample`: draws of a fitted family, corrected by importance weights."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp

from ppl import errors
from ppl.diagnostics.draws import weighted
from ppl.diagnostics.weighable import require_weights
from ppl.diagnostics.weights import LIGHT, finite, reliable_k_hat, smooth, tail_weight
from ppl.program import Bound


def resample(model: Bound, family: Bound, key: Any, n: int, particles: int | None = None) -> Any:
    """Draws of the family, chosen with replacement with probabilities proportional to Pareto-smoothed weights (Rubin 1988).

    They come nearer to the posterior with more particles, if the weights have a light enough tail.

    Args:
        model, family: bound programs.
        key: a PRNG key.
        n: number of draws to choose.
        particles: number of draws to choose from: 10 n, and at least 4000, if None.

    Raises:
        FitError: the weights are no importance weights (a minibatch, a point), or are no numbers.

    Warns:
        UnreliableWarning: the tail of the weights is too heavy.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> from ppl.diagnostics.resample import resample
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(1.0, 1.0)))
        >>> family = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, 1.5)))
        >>> z = resample(model(), family(), jax.random.key(0), 10_000, particles=50_000)["z"]
        >>> bool(abs(z.mean() - 1.0) < 0.05), bool(abs(z.std() - 1.0) < 0.05)
        (True, True)
    """
    require_weights(model, family)
    draw_key, choice_key = jax.random.split(key)
    drawn = weighted(model, family, draw_key, max(10 * n, 4000) if particles is None else particles)
    log_w = finite(drawn)
    weights, k_hat = smooth(log_w)
    limit = reliable_k_hat(len(log_w))
    if k_hat > limit and tail_weight(finite(drawn)) >= LIGHT:
        warnings.warn(
            f"the weights have k-hat {k_hat:.2f}, above {limit:.2f}: the family is too far from the posterior for importance "
            "weights to correct it, and resampled draws still have its errors. Fit a richer family, or run MCMC from "
            "fit.initial_values.",
            errors.UnreliableWarning,
            stacklevel=3,
        )
    chosen = jax.random.choice(choice_key, len(weights), (n,), p=jnp.asarray(weights))
    return jax.tree.map(lambda x: x[chosen], drawn.trace)


__all__ = ["resample"]
