"""Forward and backward processes: chains of kernels, as programs over the same addresses.

States `x_0 ... x_K` run from a simple distribution to a target. Both programs have them at the addresses `x` (the first K,
stacked, shape `(K, ...)`; none if K = 0) and `end` (`x_K`), whatever the direction in which they draw, so that the log weight
of a trajectory is a difference of two densities of one trace, exact at every K:

    log w = log rho(x_K) + sum_k log B_k(x_k | x_k+1) - log q(x_0) - sum_k log F_k(x_k+1 | x_k),    E_forward[w] = Z

(Crooks 1998; Neal 2001; Vargas et al. 2024). Each kernel is traced once and stands in a `scan`: neither the trace
nor the compiled program grows with K.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ppl import errors
from ppl.program import Bound, Program, sample
from ppl.unnormalized import unnormalized

Kernel = Callable[[Any, Any], Any]
"""From a state and the number `k` of a step, 0 to K - 1, to a distribution."""


def forward_process(start: Any, kernel: Kernel, steps: int) -> Bound:
    """A chain: `x_0 ~ start`, `x_k+1 ~ kernel(x_k, k)`, for k = 0 ... steps - 1. A bound program that returns the last state.

    Args:
        start: the distribution of `x_0`, of the same kind and shape as those of the kernel (all `gaussian(...)`, for instance).
        kernel: from a state and the number of the step to the distribution of the next state.
        steps: how often the kernel is applied.

    Raises:
        ValueShapeError: the kernel's distributions are not like `start`.

    Example:
        >>> import jax, ppl
        >>> from ppl.transport import forward_process, gaussian
        >>> walk = forward_process(gaussian(jax.numpy.zeros(2), 1.0), lambda x, k: gaussian(x, 0.5), steps=10)
        >>> trace, log_density = walk.simulate(jax.random.key(0))
        >>> trace["x"].shape, trace["end"].shape
        ((10, 2), (2,))
    """
    if steps < 0:
        raise errors.ValueShapeError(f"a process takes a number of steps, got {steps}")
    return Program(_forward)(start, kernel, steps)


def _forward(start: Any, kernel: Kernel, steps: int) -> Any:
    # What is carried is the distribution of the next state, so that every state is drawn at one place and the kernel is traced
    # once.
    if steps == 0:
        return sample("end", start)
    _check_alike(start, kernel)

    def step(next_state: Any, k: Any) -> tuple[Any, None]:
        return kernel(sample("x", next_state), k), None

    last, _ = jax.lax.scan(step, start, jnp.arange(steps))
    return sample("end", last)


def _check_alike(start: Any, kernel: Kernel) -> None:
    if not isinstance(start, dist.Distribution):
        raise errors.ValueShapeError(f"a process starts with a distribution, got {start!r}")
    state = jax.eval_shape(start.sample, jax.random.key(0))
    found = jax.eval_shape(lambda: kernel(jnp.zeros(state.shape, state.dtype), jnp.zeros((), jnp.result_type(int))))
    if not isinstance(found, dist.Distribution):
        raise errors.ValueShapeError(f"the kernel of a process returns a distribution, got {found!r}")
    trees: list[Any] = [jax.tree.structure(distribution) for distribution in (start, found)]
    shapes = [
        [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(distribution)] for distribution in (start, found)
    ]
    if trees[0] != trees[1] or shapes[0] != shapes[1]:
        raise errors.ValueShapeError(
            "the start and the kernel of a process have to be distributions of one kind, with parameters of the same shapes "
            f"and dtypes, since one takes the other's place from step to step; got\n  start   {_outline(start, shapes[0])}\n"
            f"  kernel  {_outline(found, shapes[1])}\nppl.transport.gaussian(mean, scale) makes them alike."
        )


def _outline(distribution: Any, leaves: list[Any]) -> str:
    inside = distribution.base_dist if isinstance(distribution, dist.Independent) else distribution
    shown = ", ".join(f"{dtype}{list(shape)}" for shape, dtype in leaves)
    return f"{type(inside).__name__}({shown}) of shape {distribution.shape()}"


def backward_process(target: Any, kernel: Kernel, steps: int, like: Any = None) -> Bound:
    """The chain run from its end: `x_K ~ target`, `x_k ~ kernel(x_k+1, k)`, for k = steps - 1 ... 0. A bound program.

    Args:
        target: what the chain is to end in: a function from a state to an unnormalized log density in nats, or a
            distribution (then the program can be sampled too).
        kernel: from the state `x_k+1` and the number k to the distribution of `x_k`. Of any kind.
        steps: how often the kernel is applied, as in the forward process.
        like: for a function, a state (or `jax.ShapeDtypeStruct`).

    Example:
        >>> import jax.numpy as jnp, ppl
        >>> from ppl.transport import backward_process, gaussian
        >>> process = backward_process(lambda x: -jnp.sum(x**2), lambda x, k: gaussian(x, 0.5), 3, like=jnp.zeros(2))
        >>> print(f"{process.log_density({'x': jnp.ones((3, 2)), 'end': jnp.ones(2)}):.3f}")
        -3.355
    """
    if steps < 0:
        raise errors.ValueShapeError(f"a process takes a number of steps, got {steps}")
    if not isinstance(target, dist.Distribution) and like is None:
        raise errors.ValueShapeError("a target that is a function needs like=, a state of the shape that it takes")
    return Program(_backward)(target, kernel, steps, like)


def _backward(target: Any, kernel: Kernel, steps: int, like: Any) -> Any:
    def density(state: Any) -> Any:
        return target(jnp.asarray(state, jnp.result_type(like)))

    end = sample("end", target if isinstance(target, dist.Distribution) else unnormalized(density, like=like))
    if not isinstance(target, dist.Distribution):
        end = jnp.asarray(end, jnp.result_type(like))  # integers, where the states are
    if steps == 0:
        return end

    def step(state: Any, k: Any) -> tuple[Any, None]:
        return sample("x", kernel(state, k)), None

    first, _ = jax.lax.scan(step, end, jnp.arange(steps), reverse=True)
    return first


def gaussian(mean: Any, scale: Any) -> dist.Distribution:
    """A Gaussian with independent coordinates: `mean` is the state's shape, `scale` broadcasts to it.

    Example:
        >>> import jax.numpy as jnp
        >>> from ppl.transport import gaussian
        >>> gaussian(jnp.zeros(3), 2.0).event_shape
        (3,)
    """
    mean = jnp.asarray(mean, jnp.result_type(float))
    scale = jnp.broadcast_to(jnp.asarray(scale, mean.dtype), mean.shape)
    return dist.Normal(mean, scale, validate_args=False).to_event(mean.ndim)


def noisier(forward: Bound, noise: Any) -> Bound:
    """A forward process of Gaussian kernels with more noise, for exploration: every variance grows by `noise**2`.

    Args:
        forward: what `forward_process` or a sampler returned.
        noise: a standard deviation, broadcasting to the state; an array may change in the course of training.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ppl.transport import forward_process, gaussian, noisier
        >>> walk = forward_process(gaussian(jnp.zeros(1), 3.0), lambda x, k: gaussian(x, 3.0), steps=0)
        >>> print(f"{noisier(walk, 4.0).log_density({'end': jnp.zeros(1)}):.4f}")  # scale 5
        -2.5284
    """
    if getattr(forward, "function", None) is not _forward or forward.modifications:
        raise errors.ObjectiveError(
            f"noisier takes what forward_process returned, got {forward!r}. Another program explores by a variant of its own: "
            "any program over the same addresses may be the behaviour."
        )
    start, kernel, steps = forward.args
    return Program(_forward)(_widened(start, noise), lambda x, k: _widened(kernel(x, k), noise), steps)


def _widened(distribution: Any, noise: Any) -> Any:
    inside = distribution.base_dist if isinstance(distribution, dist.Independent) else distribution
    if type(inside) is not dist.Normal:
        raise errors.ObjectiveError(f"noisier widens Gaussian kernels, got {type(inside).__name__}")
    wide = dist.Normal(inside.loc, jnp.sqrt(inside.scale**2 + noise**2), validate_args=False)
    return wide.to_event(len(distribution.event_shape))


def states(trace: Any, rank: int = 1) -> Any:
    """The trajectory in a trace of a process as one array, `x_0 ... x_K`: shape `(..., K + 1, *state)`.

    Args:
        trace: of a process; may have leading axes of independent draws.
        rank: the number of dimensions of a state: 1 for vectors, 0 for numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> from ppl.transport import states
        >>> states({"x": jnp.zeros((50, 10, 2)), "end": jnp.zeros((50, 2))}).shape  # 50 trajectories of 10 steps
        (50, 11, 2)
    """
    end = jnp.expand_dims(trace["end"], -rank - 1)
    return end if "x" not in trace else jnp.concatenate([jnp.asarray(trace["x"], end.dtype), end], axis=-rank - 1)


__all__ = ["Kernel", "backward_process", "forward_process", "gaussian", "noisier", "states"]
