"""Matching losses: regression of a field on what a path does at a random time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ppl.program import sample


def matching(
    field: Callable[[Any, Any], Any],
    path: Any,
    ends: tuple[Any, ...],
    *,
    target: Callable[[Any], Any],
    time: Any = None,
    weight: Callable[[Any], Any] | None = None,
) -> Any:
    """`weight(t) |field(x_t, t) - target|^2` at one time and one draw of the path's noise, to be minimized.

    With a coupling, a path, a distribution of times and a target this is conditional flow matching (Lipman et al. 2023, eq. 9;
    Tong et al. 2024, eq. 10), rectified flow (Liu et al. 2023, eq. 1), stochastic interpolation (Albergo et al. 2023) or
    denoising score matching (Vincent 2011; Song et al. 2021, eq. 7). The minimizing field is the mean of the target given
    `x_t`, whatever the weight.

    Args:
        field: from a point and a time to the shape of a point. What else it depends on (a class, a condition) it closes over.
        path: a `ppl.transport.Path`.
        ends: what the path connects: one draw of a coupling.
        target: a function of a `ppl.transport.Point`: `velocity`, `score`, `noise` or `data` of `ppl.transport`, or your own.
        time: a distribution on (0, 1), uniform unless told.
        weight: from a time to a number, one unless told.

    Example:
        >>> import jax, jax.numpy as jnp, ppl, ppl.distributions as dist
        >>> from ppl import transport
        >>> @ppl.expectation
        ... def loss(slope):
        ...     ends = (ppl.sample("x0", dist.Normal(0.0, 1.0)), ppl.sample("x1", dist.Normal(0.0, 1.0)))
        ...     field = lambda x, t: slope * (2 * t - 1) / (t**2 + (1 - t) ** 2) * x
        ...     return ppl.objectives.matching(field, transport.linear(), ends, target=transport.velocity)
        >>> slopes = jnp.array([0.5, 1.0, 1.5])  # at 1 it is the exact field
        >>> losses = jax.vmap(lambda s: loss.estimate(jax.random.key(0), s, samples=10_000))(slopes)
        >>> int(jnp.argmin(losses))
        1
    """
    t = sample("time", dist.Uniform(0.0, 1.0) if time is None else time)
    point = path.draw(t, ends)
    errors = jax.tree.map(lambda found, wanted: jnp.sum((found - wanted) ** 2), field(point.x, t), target(point))
    total = sum(jax.tree.leaves(errors))
    return total if weight is None else weight(t) * total


def discrete_matching(
    logits: Callable[[Any, Any], Any], path: Callable[..., Any], ends: tuple[Any, Any], *, time: Any = None
) -> Any:
    """Cross-entropy of the data's tokens given where they are on the way, summed, in nats, to be minimized.

    One time, one draw of the path (Gat et al. 2024, eq. 23). The minimizer is the law of each token of the data given `x_t`.

    Args:
        logits: from tokens and a time to logits of the tokens of the data, with an axis of tokens behind.
        path: from a time and the ends to the tokens on the way: `ppl.transport.switched`.
        ends: tokens of the source (masks, or uniform ones) and of the data.
        time: a distribution on (0, 1), uniform unless told.

    Example:
        >>> import jax, jax.numpy as jnp, ppl
        >>> @ppl.expectation
        ... def loss(logit):
        ...     field = lambda x, t: jnp.stack([jnp.zeros(3), jnp.full(3, logit), jnp.full(3, -jnp.inf)], -1)
        ...     ends = (jnp.full(3, 2), jnp.array([0, 1, 1]))  # 2 is the mask
        ...     return ppl.objectives.discrete_matching(field, ppl.transport.switched, ends)
        >>> print(f"{loss.estimate(jax.random.key(0), 0.0):.4f}")  # three coins
        2.0794
    """
    t = sample("time", dist.Uniform(0.0, 1.0) if time is None else time)
    log_p = jax.nn.log_softmax(logits(path(t, *ends), t))
    return -jnp.sum(jnp.take_along_axis(log_p, jnp.expand_dims(ends[1], -1), axis=-1))


__all__ = ["discrete_matching", "matching"]
