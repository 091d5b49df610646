"""What the weighted draws of a family say about the evidence, and how well they can."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl import errors
from ppl.objectives.particles import log_mean_exp
from ppl.program import Bound
from ppl.transforms.kinds import refuse_misuse
from ppl.transforms.seed import seed
from ppl.transforms.simulate import simulate


class Weighted(NamedTuple):
    """Independent draws and their log weights, in nats.

    Attributes:
        trace: the draws, stacked in front.
        log_weights: shape `(draws,)`.
    """

    trace: Any
    log_weights: Any

    @property
    def log_evidence(self) -> Any:
        """`log mean w`: w is unbiased for the evidence, its logarithm too low by about `standard_error**2 / 2`."""
        return log_mean_exp(self.log_weights)

    @property
    def standard_error(self) -> Any:
        """Of `log_evidence`, by the delta method: `sd(w) / (mean(w) sqrt(draws))`. Not to be trusted where `ess` is small."""
        n = jnp.size(self.log_weights)
        w = n * jax.nn.softmax(self.log_weights)
        return jnp.std(w, ddof=1) / jnp.sqrt(n)

    @property
    def ess(self) -> Any:
        """The effective sample size over the number of draws, `(mean w)^2 / mean w^2`, from 1 / draws to 1 (Kong 1992)."""
        w = jax.nn.softmax(self.log_weights)
        return 1.0 / (jnp.size(w) * jnp.sum(w**2))

    @property
    def elbo(self) -> Any:
        """`mean log w`, a lower bound of the log evidence in expectation."""
        return jnp.mean(self.log_weights)

    @property
    def elbo_standard_error(self) -> Any:
        return jnp.std(self.log_weights, ddof=1) / jnp.sqrt(jnp.size(self.log_weights))

    def resample(self, key: Any, draws: int) -> Any:
        """A trace of draws chosen with probabilities proportional to the weights, stacked in front."""
        chosen = jax.random.categorical(key, self.log_weights, shape=(draws,))
        return jax.tree.map(lambda x: x[chosen], self.trace)


def importance(model: Bound, family: Bound, key: Any, draws: int, *, batch: int | None = None) -> Weighted:
    """Draw from a family and weigh by a model: evidence, its standard error and the effective sample size.

    It compiles at each call; to call it again with other parameters, compile a function of them that calls it.

    Args:
        model: a bound program: the backward process, or any model conditioned on its data.
        family: a bound program over the same addresses, that draws.
        draws: the number of them, independent.
        batch: how many are drawn at a time, where all do not fit into memory.

    Raises:
        DensityKindError: a log density is estimated, by Hutchinson's divergence for instance, so that weights would be biased.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))
        >>> family = ppl.program(lambda: ppl.sample("z", dist.Normal(0.5, 1.0)))
        >>> weights = ppl.transport.importance(model(), family(), jax.random.key(0), 10_000)
        >>> bool(abs(weights.log_evidence) < 4 * weights.standard_error), bool(weights.elbo < -0.1)
        (True, True)
        >>> print(f"{weights.ess:.1f}")  # exp(-0.25)
        0.8
    """
    if draws < 2:
        raise errors.ObjectiveError(f"importance takes at least 2 draws, got {draws}")

    @seed
    def one() -> Any:
        trace, log_q = simulate(family)
        return trace, model.log_density(trace) - log_q

    # Weights are exponentials: an unbiased log density, as Hutchinson's, would bias them.
    refuse_misuse(jax.make_jaxpr(lambda key: jnp.exp(one(key)[1]))(key).jaxpr)
    # Draws under one compiled loop: a bound program called from outside of jit would run step by step.
    run = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=min(batch or draws, draws)))
    return Weighted(*run(jax.random.split(key, draws)))


__all__ = ["Weighted", "importance"]
