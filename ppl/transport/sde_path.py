"""Paths of stochastic differential equations as random choices, with their Girsanov weights: latent SDE models."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ppl import errors
from ppl.program import sample

Drift = Callable[[Any, Any], Any]
"""From a time and a state, a vector, to a vector."""


class SDEPath(NamedTuple):
    """A path, and how it compares with one of another drift.

    Attributes:
        states: at the times asked for, shape `(times, d)`.
        kl: `1/2 int |u|^2 dt`, `u = (drift - prior) / diffusion`: its mean is the divergence from the prior, in nats. Zero
            without a prior.
        log_ratio: the log density of this path under the prior over that under the drift that it was drawn with,
            `-int u dW - 1/2 int |u|^2 dt`, in nats.
    """

    states: Any
    kl: Any
    log_ratio: Any


def sde_path(
    address: str,
    start: Any,
    drift: Drift,
    diffusion: Drift,
    times: Any,
    *,
    step: float,
    prior: Drift | None = None,
    start_time: float = 0.0,
    solver: Any = None,
    adjoint: Any = None,
) -> SDEPath:
    """Draw a path of `dX = drift(t, X) dt + diffusion(t, X) dW`, by diffrax, inside a program or an objective.

    The random choice at `address` is the Brownian motion's standardized increments. With a prior drift the path has its
    Girsanov weight against the prior SDE, which has the same diffusion (Li et al. 2020): `log p(y | path) - kl` is
    the path's part of an ELBO, and `exp(log_ratio) p(y | path)` is unbiased for the evidence of the discretized prior, at every
    step size.

    Args:
        start: the state at `start_time`, a vector.
        drift, diffusion: of a time and a state; the noise is diagonal, `diffusion` one positive number for each coordinate.
        times: where the path is wanted: increasing, at or after `start_time`, of any spacing; known when the program is traced.
        step: the longest step of the solver. It also stops at each of the times.
        prior: the drift to compare with.
        solver: a diffrax solver for Ito equations, `diffrax.Euler()` by default; the weights are exact for Euler's steps alone.
        adjoint: how gradients are taken, as in `diffrax.diffeqsolve`.

    Raises:
        ValueShapeError: the times do not increase, or start too early; the start is no vector.

    Example:
        >>> import jax, jax.numpy as jnp, ppl
        >>> @ppl.expectation
        ... def divergence(pull):
        ...     path = ppl.transport.sde_path(
        ...         "noise", jnp.ones(1), lambda t, x: -pull * x, lambda t, x: jnp.ones(1), [0.3, 1.0],
        ...         step=0.05, prior=lambda t, x: 0.0 * x,
        ...     )
        ...     return path.kl
        >>> bool(divergence.estimate(jax.random.key(0), 2.0, samples=1000) > 0.5)
        True
    """
    import diffrax

    grid, times = _grid(times, start_time, step)
    start = jnp.asarray(start, jnp.result_type(float))
    if start.ndim != 1:
        raise errors.ValueShapeError(f"an SDE starts at a vector, got shape {start.shape}")
    steps, size = len(grid) - 1, start.shape[0]
    noise = sample(address, dist.Normal(jnp.zeros((steps, size)), 1.0, validate_args=False).to_event(2))
    increments = jnp.sqrt(jnp.asarray(np.diff(grid)))[:, None] * noise
    brownian = jnp.concatenate([jnp.zeros((1, size)), jnp.cumsum(increments, axis=0)])
    control = diffrax.LinearInterpolation(jnp.asarray(grid, start.dtype), brownian)

    def excess(t: Any, x: Any) -> Any:
        return jnp.zeros(size) if prior is None else (drift(t, x) - prior(t, x)) / diffusion(t, x)

    def field(t: Any, state: Any, args: Any) -> Any:
        cost = 0.5 * jnp.sum(excess(t, state[:size]) ** 2)
        return jnp.concatenate([drift(t, state[:size]), jnp.stack([cost, -cost])])

    def noise_field(t: Any, state: Any, args: Any) -> Any:
        rows = jnp.stack([jnp.zeros(size), -excess(t, state[:size])])
        return jnp.concatenate([jnp.diag(jnp.broadcast_to(diffusion(t, state[:size]), (size,))), rows])

    terms: Any = diffrax.MultiTerm(diffrax.ODETerm(field), diffrax.ControlTerm(noise_field, control))
    solution = diffrax.diffeqsolve(
        terms,
        diffrax.Euler() if solver is None else solver,
        t0=grid[0],
        t1=grid[-1],
        dt0=None,
        y0=jnp.concatenate([start, jnp.zeros(2)]),  # the path, and the two integrals along it
        saveat=diffrax.SaveAt(ts=jnp.asarray(times, start.dtype)),
        stepsize_controller=diffrax.StepTo(ts=jnp.asarray(grid, start.dtype)),
        adjoint=diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
        max_steps=steps,
    )
    assert solution.ys is not None
    return SDEPath(solution.ys[:, :size], solution.ys[-1, size], solution.ys[-1, size + 1])


def _grid(times: Any, start_time: float, step: float) -> tuple[np.ndarray, np.ndarray]:
    """The times at which the solver stops: those asked for, and enough between them."""
    if isinstance(times, jax.core.Tracer):
        raise errors.ValueShapeError("the times of a path must be known when the program is traced: give a NumPy array")
    times = np.asarray(times, float)
    if times.ndim != 1 or times.size == 0 or np.any(np.diff(times) <= 0) or times[0] < start_time or times[-1] == start_time:
        raise errors.ValueShapeError(f"the times of a path increase from start_time={start_time}, got {times}")
    stops = np.union1d([start_time], times)
    pieces = [np.linspace(a, b, 1 + int(np.ceil((b - a) / step - 1e-9)))[1:] for a, b in itertools.pairwise(stops)]
    return np.concatenate([[start_time], *pieces]), times


__all__ = ["Drift", "SDEPath", "sde_path"]
