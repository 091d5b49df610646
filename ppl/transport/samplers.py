"""Samplers of unnormalized densities: each is a pair of kernels, as in its paper.

All take `target`, a function from a state (a vector of length `dim`) to a log density in nats up to a constant (or a
distribution: then backward can draw too, and bounds the evidence from above), and return the bound programs `(forward,
backward)`: the forward process draws, and `backward.log_density(trace) - log_forward` is the log weight of a trajectory, whose
exponential has the mean Z at every number of steps. Which loss trains them is another matter:

    @ppl.expectation
    def objective(net):
        forward, backward = ppl.transport.dds(target, lambda x, t: net(x, t), dim=2, steps=64)
        return ppl.objectives.elbo(backward, forward)

A learned field is a function `(x, t) -> vector`, t from 0 (the simple distribution) to 1 (the target), in units of a score (a
gradient of a log density). Its parameters are whatever it closes over. A pair of one's own is written with
`forward_process` and `backward_process`, or as any two programs over the same addresses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ppl import errors
from ppl.program import Bound
from ppl.transport.process import backward_process, forward_process, gaussian

Density = Any
"""A function from a state to nats, or a distribution."""

Field = Callable[[Any, Any], Any]
"""From a state and a time to a vector."""


class Pair(NamedTuple):
    """A forward process, which draws, and a backward process, which the weights of its draws are about."""

    forward: Bound
    backward: Bound


def pis(target: Density, control: Field, dim: int, steps: int, scale: Any = 1.0) -> Pair:
    """The path integral sampler: a controlled Brownian motion from zero, `dX = scale^2 u dt + scale dW` (Zhang and Chen 2022).

    Backward is the Brownian bridge to zero. The first kernel leaves zero, so that the states are those of the times 1 / steps
    to 1: the trace's `x` has `steps - 1` of them. The optimal control is the gradient of log E[target / reference | x_t].

    Example:
        >>> import jax, jax.numpy as jnp, ppl
        >>> def target(x):
        ...     return -0.5 * jnp.sum(x**2)  # the end of an uncontrolled motion, unnormalized: no weight varies
        >>> forward, backward = ppl.transport.pis(target, lambda x, t: 0.0 * x, dim=2, steps=8)
        >>> trace, log_forward = forward.simulate(jax.random.key(0))
        >>> print(f"{backward.log_density(trace) - log_forward:.4f}")  # log(2 pi)
        1.8379
    """
    _positive(steps)
    deviation = scale / jnp.sqrt(steps)

    def forward(x: Any, k: Any) -> Any:  # from time k + 1 to k + 2
        return gaussian(x + deviation**2 * control(x, (k + 1) / steps), deviation)

    def backward(x: Any, k: Any) -> Any:
        kept = (k + 1) / (k + 2)
        return gaussian(kept * x, deviation * jnp.sqrt(kept))

    zero = jnp.zeros(dim)
    return Pair(forward_process(forward(zero, -1), forward, steps - 1), backward_process(target, backward, steps - 1, zero))


def dds(target: Density, control: Field, dim: int, steps: int, scale: Any = 1.0, rates: Any = None) -> Pair:
    """The denoising diffusion sampler: exact steps of an Ornstein-Uhlenbeck process and a control (Vargas et al. 2023).

    Args:
        rates: `alpha_k`, the part of the variance that a step renews: a number or an array of `steps` in (0, 1). By default a
            squared cosine that sums to 5, so that about exp(-5) of the variance of x_0 is left at the end.
        scale: the stationary standard deviation. The control is a score plus `x / scale^2`: zero is optimal for `N(0,
            scale^2)`.

    Example:
        >>> import jax, jax.numpy as jnp, ppl
        >>> forward, backward = ppl.transport.dds(lambda x: -0.5 * jnp.sum(x**2), lambda x, t: 0.0 * x, dim=2, steps=8)
        >>> trace, log_forward = forward.simulate(jax.random.key(0))
        >>> print(f"{backward.log_density(trace) - log_forward:.4f}")
        1.8379
    """
    _positive(steps)
    phase = jnp.cos(0.5 * jnp.pi * (jnp.arange(steps) + 0.5) / steps) ** 2
    alpha = _each_step(-jnp.expm1(-5.0 * phase / jnp.sum(phase)) if rates is None else rates, steps)
    kept = jnp.sqrt(1 - alpha)

    def forward(x: Any, k: Any) -> Any:
        pull = 2 * scale**2 * (1 - kept[k]) * control(x, k / steps)
        return gaussian(kept[k] * x + pull, scale * jnp.sqrt(alpha[k]))

    def backward(x: Any, k: Any) -> Any:
        return gaussian(kept[k] * x, scale * jnp.sqrt(alpha[k]))

    start = gaussian(jnp.zeros(dim), scale)
    return Pair(forward_process(start, forward, steps), backward_process(target, backward, steps, jnp.zeros(dim)))


def dis(target: Density, score: Field, dim: int, steps: int, scale: Any = 1.0, rates: Any = None) -> Pair:
    """The time-reversed diffusion sampler, by Euler-Maruyama (Berner et al. 2024).

    The target is noised by `dY = -beta/2 Y ds + sqrt(beta) scale dW`; forward undoes that,
    `dX = (beta/2 X + beta scale^2 score) dt + sqrt(beta) scale dW`.

    Args:
        score: the optimal one is that of the noised target.
        rates: beta times the length of a step: a number or an array of `steps`, from the simple distribution to the target. By
            default linear from 20 to 0.1 over a unit of time.

    Example:
        >>> import jax, jax.numpy as jnp, ppl
        >>> forward, backward = ppl.transport.dis(lambda x: -0.5 * jnp.sum(x**2), lambda x, t: -x, dim=2, steps=400)
        >>> trace, log_forward = forward.simulate(jax.random.key(0))
        >>> bool(abs(backward.log_density(trace) - log_forward - 1.8379) < 1.0)  # a step of Euler-Maruyama is not exact
        True
    """
    _positive(steps)
    beta = _each_step((20.0 + (0.1 - 20.0) * (jnp.arange(steps) + 0.5) / steps) / steps if rates is None else rates, steps)

    def forward(x: Any, k: Any) -> Any:
        return gaussian(x + beta[k] * (0.5 * x + scale**2 * score(x, k / steps)), scale * jnp.sqrt(beta[k]))

    def backward(x: Any, k: Any) -> Any:
        return gaussian((1 - 0.5 * beta[k]) * x, scale * jnp.sqrt(beta[k]))

    start = gaussian(jnp.zeros(dim), scale)
    return Pair(forward_process(start, forward, steps), backward_process(target, backward, steps, jnp.zeros(dim)))


def annealed(
    target: Density,
    start: Any,
    steps: int,
    step_size: Any,
    schedule: Any = None,
    correction: Field | None = None,
    score: Any = None,
) -> Pair:
    """Annealed Langevin sampling with everything learnable (Heng et al. 2020; Thin et al. 2021; Doucet et al. 2022).

    Forward are steps of unadjusted Langevin dynamics of `pi_k = start^(1 - b_k) target^b_k`. Backward are the same steps,
    with a learned correction of the drift, zero for reversible dynamics (Doucet et al. 2022).

    Args:
        start: `gaussian(mean, scale)`, whose parameters may be learned.
        step_size: h of `x + h grad log pi + sqrt(2 h) noise`: a number or an array of `steps`.
        schedule: `b_0 ... b_K` from 0 to 1, an array of `steps + 1`; linear by default.
        correction: `c(x, t)`: backward drifts by `h (grad log pi + c)`. Optimal is twice the score of where forward is at time
            t, less twice that of `pi`.
        score: the gradient of the target's log density, if not by `jax.grad`. The weights are right with any function from
            state to vector: give a clipped one where gradients explode.

    Example:
        >>> import jax, jax.numpy as jnp, ppl
        >>> from ppl.transport import annealed, gaussian
        >>> forward, backward = annealed(lambda x: -jnp.sum((x - 1.0) ** 2), gaussian(jnp.zeros(2), 1.0), 8, step_size=0.2)
        >>> weights = ppl.transport.importance(backward, forward, jax.random.key(0), 2000)
        >>> bool(abs(weights.log_evidence - jnp.log(jnp.pi)) < 0.1)
        True
    """
    _positive(steps)
    bridge, h = _bridge(target, start, schedule, score, steps), _each_step(step_size, steps)

    def forward(x: Any, k: Any) -> Any:
        return gaussian(x + h[k] * bridge(x, k + 1), jnp.sqrt(2 * h[k]))

    def backward(x: Any, k: Any) -> Any:
        drift = bridge(x, k + 1) if correction is None else bridge(x, k + 1) + correction(x, (k + 1) / steps)
        return gaussian(x + h[k] * drift, jnp.sqrt(2 * h[k]))

    return Pair(forward_process(start, forward, steps), backward_process(target, backward, steps, _state(start)))


def cmcd(
    target: Density, control: Field, start: Any, steps: int, step_size: Any, schedule: Any = None, score: Any = None
) -> Pair:
    """Controlled Monte Carlo diffusion: annealed Langevin steps that a control keeps on `pi_k` (Vargas et al. 2024).

    Forward drifts by `grad log pi + u`, backward by `grad log pi - u`, each at the state and time that it starts from.

    Args:
        control: `u(x, t)`.
        start, step_size, schedule, score: as in `annealed`.

    Example:
        >>> import jax, jax.numpy as jnp, ppl
        >>> from ppl.transport import cmcd, gaussian
        >>> def target(x):
        ...     return -jnp.sum((x - 1.0) ** 2)
        >>> forward, backward = cmcd(target, lambda x, t: 1.0 - x, gaussian(jnp.zeros(2), 1.0), 8, step_size=0.1)
        >>> weights = ppl.transport.importance(backward, forward, jax.random.key(0), 2000)
        >>> bool(abs(weights.log_evidence - jnp.log(jnp.pi)) < 0.1)
        True
    """
    _positive(steps)
    bridge, h = _bridge(target, start, schedule, score, steps), _each_step(step_size, steps)

    def forward(x: Any, k: Any) -> Any:
        return gaussian(x + h[k] * (bridge(x, k) + control(x, k / steps)), jnp.sqrt(2 * h[k]))

    def backward(x: Any, k: Any) -> Any:
        return gaussian(x + h[k] * (bridge(x, k + 1) - control(x, (k + 1) / steps)), jnp.sqrt(2 * h[k]))

    return Pair(forward_process(start, forward, steps), backward_process(target, backward, steps, _state(start)))


def stochastic_flow(
    target: Density,
    layer: Callable[[Any], Any],
    start: Any,
    steps: int,
    step_size: Any,
    schedule: Any = None,
    score: Any = None,
) -> Pair:
    """A stochastic normalizing flow: an invertible layer and a Langevin step in turns (Wu et al. 2020).

    Forward maps x to `y = T_k(x)` and takes a step of unadjusted Langevin dynamics of `pi_k+1` from there; backward takes a
    step from the other end, and maps back: its density at x has the Jacobian of the layer.

    Args:
        layer: from the number of a step to `T_k`, a NumPyro transform of vectors, say an `AffineTransform` with parameters
            `params[k]` or a coupling layer.
        start, step_size, schedule, score: as in `annealed`.

    Example:
        >>> import jax, jax.numpy as jnp, ppl
        >>> from numpyro.distributions.transforms import AffineTransform
        >>> from ppl.transport import gaussian, stochastic_flow
        >>> def layer(k):
        ...     return AffineTransform(0.25, 0.95)
        >>> forward, backward = stochastic_flow(lambda x: -jnp.sum((x - 1.0) ** 2), layer, gaussian(jnp.zeros(2), 1.0), 4, 0.1)
        >>> weights = ppl.transport.importance(backward, forward, jax.random.key(0), 2000)
        >>> bool(abs(weights.log_evidence - jnp.log(jnp.pi)) < 0.1)
        True
    """
    _positive(steps)
    bridge, h = _bridge(target, start, schedule, score, steps), _each_step(step_size, steps)

    def langevin(y: Any, k: Any) -> Any:
        return gaussian(y + h[k] * bridge(y, k + 1), jnp.sqrt(2 * h[k]))

    def forward(x: Any, k: Any) -> Any:
        return langevin(layer(k)(x), k)

    def backward(x: Any, k: Any) -> Any:
        return dist.TransformedDistribution(langevin(x, k), layer(k).inv, validate_args=False)

    return Pair(forward_process(start, forward, steps), backward_process(target, backward, steps, _state(start)))


def _bridge(target: Density, start: Any, schedule: Any, score: Any, steps: int) -> Callable[[Any, Any], Any]:
    """The gradient of `log pi_k` at x."""
    if not isinstance(start, dist.Distribution):
        raise errors.ValueShapeError(
            f"annealing starts from a distribution, got {start!r}: ppl.transport.gaussian(mean, scale)"
        )
    b = jnp.linspace(0.0, 1.0, steps + 1) if schedule is None else jnp.asarray(schedule)
    if b.shape != (steps + 1,):
        raise errors.ValueShapeError(f"a schedule of {steps} steps is an array of {steps + 1} numbers, got shape {b.shape}")
    at_start, at_target = jax.grad(start.log_prob), jax.grad(_log_density(target)) if score is None else score
    return lambda x, k: (1 - b[k]) * at_start(x) + b[k] * at_target(x)


def _log_density(target: Density) -> Callable[[Any], Any]:
    return target.log_prob if isinstance(target, dist.Distribution) else target


def _each_step(values: Any, steps: int) -> Any:
    values = jnp.asarray(values, jnp.result_type(float))
    if values.shape not in ((), (steps,)):
        raise errors.ValueShapeError(f"expected a number or an array of {steps}, one for each step, got shape {values.shape}")
    return jnp.broadcast_to(values, (steps,))


def _state(start: Any) -> Any:
    return jnp.zeros(start.event_shape)


def _positive(steps: int) -> None:
    if steps < 1:
        raise errors.ValueShapeError(f"a sampler takes at least one step, got {steps}")


__all__ = ["Density", "Field", "Pair", "annealed", "cmcd", "dds", "dis", "pis", "stochastic_flow"]
