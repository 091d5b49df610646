"""A fitted family handed to Markov chains: where they start, and what they propose."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from ppl import errors
from ppl.address import flatten, nest
from ppl.diagnostics.draws import weighted
from ppl.diagnostics.weighable import require_weights
from ppl.diagnostics.weights import finite
from ppl.program import Bound
from ppl.transforms.compare import latents


class Chains(NamedTuple):
    """Draws of Markov chains, arrays with leading axes `(chains, n)`, and the part of the proposals that was accepted."""

    trace: Any
    acceptance: float


def initial_values(model: Bound, family: Bound, key: Any, chains: int) -> Any:
    """Values to start Markov chains from: independent draws of the family with a finite density under the model.

    Returns:
        The nested dict of the model's latents, constrained as they are in a trace, with leading axis `chains`.

    Raises:
        FitError: the family has too few such draws.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> from ppl.diagnostics.handover import initial_values
        >>> program = ppl.program(lambda: ppl.sample("scale", dist.HalfNormal(1.0)))
        >>> initial_values(program(), program(), jax.random.key(0), chains=4)["scale"].shape
        (4,)
    """
    drawn = weighted(model, family, key, 20 * chains)
    good = np.flatnonzero(np.isfinite(drawn.log_p))[:chains]
    if len(good) < chains:
        raise errors.FitError(
            f"only {len(good)} of {20 * chains} draws of the family have a finite log density under the model, for {chains} "
            "chains."
        )
    sites = latents(model)
    return nest({address: value[good] for address, value in flatten(drawn.trace).items() if address in sites})


def metropolis(model: Bound, family: Bound, key: Any, n: int, chains: int = 4) -> Chains:
    """Markov chains for the posterior whose proposals are independent draws of the family (Tierney 1994, section 2.3.3).

    A proposal of weight `w' = p / q` replaces a state of weight `w` with probability `min(1, w' / w)`. Chains start from draws
    of the family. Right in the limit for any family that covers the posterior, and quick for a good one; where the
    posterior has heavier tails, chains get stuck in them: look at the acceptance, and at R-hat of the chains.

    Raises:
        FitError: the weights are no importance weights (a minibatch, a point), or are no numbers.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> from ppl.diagnostics.handover import metropolis
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))
        >>> family = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, 1.5)))
        >>> found = metropolis(model(), family(), jax.random.key(0), 1000)
        >>> found.trace["z"].shape, bool(0.5 < found.acceptance < 1.0)
        ((4, 1000), True)
    """
    require_weights(model, family)
    draw_key, accept_key = jax.random.split(key)
    drawn = weighted(model, family, draw_key, chains * (n + 1))
    log_w = finite(drawn).reshape(chains, n + 1)
    log_uniform = np.log1p(-np.asarray(jax.random.uniform(accept_key, (chains, n)), float))
    rows = np.arange(chains)
    state = np.zeros(chains, int)
    states, accepted = np.empty((chains, n), int), 0
    for i in range(n):
        current, proposed = log_w[rows, state], log_w[:, i + 1]
        # A start outside of the posterior's support is left at once.
        take = (proposed > -np.inf) & (
            (current == -np.inf) | (log_uniform[:, i] < proposed - np.where(current > -np.inf, current, 0))
        )
        state = np.where(take, i + 1, state)
        states[:, i] = state
        accepted += int(take.sum())
    chosen = (rows[:, None] * (n + 1) + states).ravel()
    trace = jax.tree.map(lambda x: x[chosen].reshape(chains, n, *x.shape[1:]), drawn.trace)
    return Chains(trace, accepted / (chains * n))


__all__ = ["Chains", "initial_values", "metropolis"]
