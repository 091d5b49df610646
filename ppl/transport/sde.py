"""Stochastic differential equations as programs, in a compiled loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ppl import errors
from ppl.program import Bound, sample
from ppl.site import user_frame


def sde(
    base: Any,
    drift: Callable[[Any, Any], Any],
    diffusion: Callable[[Any], Any],
    *,
    steps: int,
    start: float = 0.0,
    end: float = 1.0,
) -> Bound:
    """`dx = drift(x, t) dt + diffusion(t) dw` from a base, by Euler-Maruyama: a program that returns the value at `end`.

    The base's value stands at `start` and what the steps reach, stacked, at `path`. The density is that of the whole discrete
    path, exactly. Where the diffusion is zero there is none; then only draw (`.sample`). With zero diffusion use `ode_flow`.

    Args:
        base: a distribution, or a bound program that returns an array.
        drift: from an array and a time to an array.
        diffusion: from a time to a number: at the beginning of each step.
        steps: number of steps of equal length.
        start, end: times.

    Example:
        >>> import jax, jax.numpy as jnp, ppl, ppl.distributions as dist
        >>> process = ppl.transport.sde(dist.Normal(0.0, 1.0), lambda x, t: -x, lambda t: 2.0**0.5, steps=50)
        >>> ends = jax.vmap(process.sample)(jax.random.split(jax.random.key(0), 10_000))
        >>> bool(abs(jnp.std(ends) - 1.0) < 0.05)  # stationary
        True
    """
    if steps < 1:
        raise errors.ValueShapeError(f"a process takes at least one step, got steps={steps}.\n  {user_frame()}")

    def process() -> Any:
        x = sample("start", base)
        dt = (end - start) / steps

        def step(x: Any, i: Any) -> Any:
            t = start + i * dt
            x = sample("path", dist.Normal(x + dt * drift(x, t), diffusion(t) * abs(dt) ** 0.5).to_event(jnp.ndim(x)))
            return x, None

        return jax.lax.scan(step, x, jnp.arange(steps))[0]

    return Bound(process)


def with_diffusion(
    velocity: Callable[[Any, Any], Any], score: Callable[[Any, Any], Any], diffusion: Callable[[Any], Any]
) -> Callable[[Any, Any], Any]:
    """The drift with which noise of any size leaves the marginals of a flow as they are: `v + g(t)^2 / 2 score`.

    `sde(base, with_diffusion(v, s, g), g, steps=...)` draws from what `ode_flow(base, v)` draws from (Albergo et al. 2023,
    corollary 2.18). With `g = schedule.diffusion` it is the reversal of a noising process (Anderson 1982; Song et al. 2021, eq.
    6), and without noise the probability flow (eq. 13).

    Example:
        >>> import ppl
        >>> drift = ppl.transport.with_diffusion(lambda x, t: 0.0 * x, lambda x, t: -x, lambda t: 2.0)
        >>> float(drift(3.0, 0.5))  # -2 x: Langevin dynamics
        -6.0
    """
    return lambda x, t: velocity(x, t) + 0.5 * diffusion(t) ** 2 * score(x, t)


__all__ = ["sde", "with_diffusion"]
