"""Discrete flow matching: tokens jump from a source to data in continuous time (Campbell et al. 2024; Gat et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ppl import errors
from ppl.program import Bound, sample
from ppl.site import user_frame


def switched(t: Any, x0: Any, x1: Any, kept: Callable[[Any], Any] = lambda t: t) -> Any:
    """Tokens on the way: each is that of `x1` with probability `kept(t)`, else that of `x0` (Gat et al. 2024, eq. 8).

    `x0` is a constant array of mask tokens, or drawn uniformly; `x1` are data, integers of one shape. For use inside of an
    objective: a random choice at `switched`, of which no gradient is taken, since it depends on no parameter.

    Example:
        >>> import jax, jax.numpy as jnp, ppl
        >>> mask, x1 = jnp.full(1000, 4), jnp.zeros(1000, int)
        >>> x = ppl.seed(ppl.transport.switched)(jax.random.key(0), 0.3, mask, x1)
        >>> bool(abs(jnp.mean(x == x1) - 0.3) < 0.05)
        True
    """
    x0, x1 = jnp.broadcast_arrays(x0, x1)

    def draw() -> Any:
        return sample("switched", dist.Uniform(jnp.zeros(x1.shape), 1.0).to_event(x1.ndim))

    return jnp.where(sample("path", Bound(draw).detach()) < kept(t), x1, x0)


def jump_rates(posterior: Any, x: Any, t: Any, kept: Callable[[Any], Any] = lambda t: t) -> Any:
    """Rates of jumps to each token at time t, with zero in place of the rate to stay (Gat et al. 2024, eq. 14).

    The process with these rates has the marginals of `switched` if `posterior` is the law of the token of `x1` given `x`.

    Args:
        posterior: probabilities, the last axis over tokens.
        x: tokens.
        t: a time before 1.
        kept: as in `switched`.

    Example:
        >>> import jax.numpy as jnp, ppl
        >>> print(ppl.transport.jump_rates(jnp.array([0.5, 0.5, 0.0]), jnp.array(2), 0.5))
        [1. 1. 0.]
    """
    t = jnp.asarray(t, jnp.result_type(float))
    value, rate = jax.jvp(kept, (t,), (jnp.ones_like(t),))
    rates = rate / (1.0 - value) * posterior
    return rates * (1.0 - jax.nn.one_hot(x, posterior.shape[-1], dtype=rates.dtype))


def jump_process(
    source: Any,
    posterior: Callable[[Any, Any], Any],
    *,
    steps: int,
    kept: Callable[[Any], Any] = lambda t: t,
) -> Bound:
    """A program that jumps from a source to data, all tokens at once, in `steps` steps; it returns the tokens at time 1.

    In each step a token stays or is drawn anew from the posterior, with the probability that is exact if the posterior does not
    change during the step: the last step draws every token that is left. With the tokens' joint dependence and with what the
    posterior changes, the error falls as 1 / steps.

    Args:
        source: a distribution over tokens, or a bound program that returns them; `dist.Delta(mask)` for masks.
        posterior: from tokens and a time to probabilities of the token of `x1`, with an axis of tokens behind.
        steps: number of steps.
        kept: as in `switched`.

    Example:
        >>> import jax, jax.numpy as jnp, ppl, ppl.distributions as dist
        >>> always = jnp.array([0.2, 0.8, 0.0])  # two tokens and a mask
        >>> process = ppl.transport.jump_process(dist.Delta(jnp.array(2)), lambda x, t: always, steps=1)
        >>> tokens = jax.vmap(process.sample)(jax.random.split(jax.random.key(0), 10_000))
        >>> print(f"{jnp.mean(tokens):.1f}")
        0.8
    """
    if steps < 1:
        raise errors.ValueShapeError(f"a process takes at least one step, got steps={steps}.\n  {user_frame()}")

    def process() -> Any:
        def step(x: Any, i: Any) -> Any:
            now, after = kept(i / steps), kept((i + 1) / steps)
            leaves = (after - now) / (1.0 - now)
            probabilities = posterior(x, i / steps)
            stays = jax.nn.one_hot(x, probabilities.shape[-1], dtype=probabilities.dtype)
            mixed = leaves * probabilities + (1.0 - leaves) * stays
            x = sample("path", dist.Categorical(probs=mixed).to_event(jnp.ndim(x)))
            return x, None

        return jax.lax.scan(step, jnp.asarray(sample("start", source), int), jnp.arange(steps))[0]

    return Bound(process)


__all__ = ["jump_process", "jump_rates", "switched"]
