"""Draws of a family, with their weights, in bounded memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl import errors
from ppl.program import Bound
from ppl.transforms.kinds import refuse_misuse
from ppl.transforms.seed import seed
from ppl.transforms.simulate import simulate

BATCH = 1024
"""Draws that are computed together."""


class Draws(NamedTuple):
    """Draws of a family: traces with a leading axis, and their log densities under model and family, each `(n,)` in nats."""

    trace: Any
    log_p: np.ndarray
    log_q: np.ndarray

    @property
    def log_weights(self) -> np.ndarray:
        """`log p(x, z) - log q(z)`, in double precision."""
        return self.log_p - self.log_q


def repeat(function: Callable[..., Any], key: Any, n: int, *inputs: Any) -> Any:
    """`function(key, *inputs)` for `n` independent keys and the elements of `inputs`, stacked; `function` is `mapped`.

    More than a batch is computed in batches of one size, so that no other number of draws compiles anything.
    """
    if n < 1:
        raise errors.FitError(f"it takes at least one draw, got n={n}")
    keys = jax.random.split(key, n)
    if n <= BATCH:
        return function(keys, *inputs)
    inputs = jax.tree.map(np.asarray, inputs)
    parts = []
    for start in range(0, n, BATCH):
        at = np.minimum(np.arange(start, start + BATCH), n - 1)
        part = function(keys[at], *jax.tree.map(lambda x: x[at], inputs))  # noqa: B023 (used at once)
        parts.append(jax.tree.map(lambda x: np.asarray(x)[: n - start], part))  # noqa: B023
    return jax.tree.map(lambda *parts: jnp.asarray(np.concatenate(parts)), *parts)


def mapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of one draw, compiled for a stack of them."""
    return jax.jit(jax.vmap(function))


# Programs hash by identity. The last few keep what was compiled for them, so that asking again compiles nothing.
remember = functools.lru_cache(maxsize=8)


@remember
def _traces(program: Bound) -> Callable[..., Any]:
    return mapped(lambda key: program.simulate(key)[0])


def sample(program: Bound, key: Any, n: int) -> Any:
    """Traces of a program: the nested dict with arrays of leading axis `n`."""
    return repeat(_traces(program), key, n)


@remember
def _weighted(model: Bound, family: Bound) -> Callable[..., Any]:
    def both() -> Any:
        trace, log_q = simulate(family)
        return trace, model.log_density(trace), log_q

    drawn = seed(both)
    # Their difference goes into exp: an unbiased log density, as Hutchinson's, would bias every weight.
    refuse_misuse(jax.make_jaxpr(lambda key: [jnp.exp(log_x) for log_x in drawn(key)[1:]])(jax.random.key(0)).jaxpr)
    return mapped(drawn)


def weighted(model: Bound, family: Bound, key: Any, n: int) -> Draws:
    """Draws of a family with their log densities under both programs.

    Raises:
        ModelFamilyMismatchError: the programs disagree on latents.
        DensityKindError: a log density is estimated, by Hutchinson's divergence for instance, so that weights would be biased.
    """
    trace, log_p, log_q = repeat(_weighted(model, family), key, n)
    return Draws(trace, np.asarray(log_p, float), np.asarray(log_q, float))


__all__ = ["Draws", "mapped", "remember", "repeat", "sample", "weighted"]
