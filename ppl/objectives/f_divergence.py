"""Divergences by a user's function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ppl.program import Bound
from ppl.transforms.simulate import simulate


def f_divergence(model: Bound, family: Bound, f: Callable[[Any], Any], log_evidence: Any = 0.0) -> Any:
    """`E_q[f(log w)]`, `w = p(x, z) / (q(z) e^log_evidence)`, from one draw: unbiased (Csiszar 1967; Wan et al. 2020).

    `f` is a function of the *log* ratio: `lambda l: -l` for `KL(q || p)`, `lambda l: exp(l) * l` for `KL(p || q)`, `lambda l:
    exp(2 * l) - 1` for chi-square, `lambda l: abs(exp(l) - 1) / 2` for total variation. It is a divergence of the posterior
    where the log evidence is given; without it, one of unnormalized measures.

    Example:
        >>> import jax, jax.numpy as jnp, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))
        >>> @ppl.expectation
        ... def hellinger(mean):
        ...     family = ppl.program(lambda: ppl.sample("z", dist.Normal(mean, 1.0)))
        ...     return ppl.objectives.f_divergence(model(), family(), lambda l: 1 - jnp.exp(l / 2))
        >>> value = hellinger.estimate(jax.random.key(0), 1.0, samples=10_000)
        >>> bool(abs(value - (1 - jnp.exp(-1 / 8))) < 0.02)
        True
    """
    trace, log_q = simulate(family)
    return f(model.log_density(trace) - log_q - log_evidence)
