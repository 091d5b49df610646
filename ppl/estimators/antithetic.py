"""A draw together with the one that has the opposite noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

# Twice the point that each distribution is symmetric about.
_TWICE_THE_CENTRE: dict[Any, Callable[[Any], Any]] = {
    **dict.fromkeys((dist.Normal, dist.StudentT, dist.Laplace, dist.Logistic, dist.Cauchy), lambda d: 2.0 * d.loc),
    **dict.fromkeys(
        (dist.MultivariateNormal, dist.LowRankMultivariateNormal, dist.MultivariateStudentT, dist.MatrixNormal),
        lambda d: 2.0 * d.loc,
    ),
    dist.Uniform: lambda d: d.low + d.high,
    dist.GaussianRandomWalk: lambda d: 0.0,
}
_TRANSFORMED = (dist.TransformedDistribution, dist.LogNormal, dist.LogUniform)


def symmetric(distribution: Any) -> bool:
    """Whether the distribution is symmetric about a point, or a transform of such a one."""
    if isinstance(distribution, dist.ExpandedDistribution | dist.Independent) or type(distribution) in _TRANSFORMED:
        return symmetric(distribution.base_dist)
    return type(distribution) in _TWICE_THE_CENTRE


def mirrored(distribution: Any, key: Any) -> Any:
    """Two draws with opposite noise, `(2, *batch_shape, *event_shape)`."""
    return _mirrored(distribution, key, distribution.batch_shape)


def _mirrored(distribution: Any, key: Any, shape: tuple[int, ...]) -> Any:
    if isinstance(distribution, dist.ExpandedDistribution):
        return _mirrored(distribution.base_dist, key, shape)
    if isinstance(distribution, dist.Independent):
        inner = distribution.base_dist
        return _mirrored(inner, key, (*shape, *inner.batch_shape[len(distribution.batch_shape) :]))
    if type(distribution) in _TRANSFORMED:
        inner = distribution.base_dist
        values = _mirrored(inner, key, (*shape, *inner.batch_shape[len(distribution.batch_shape) :]))
        for transform in distribution.transforms:
            values = transform(values)
        return values
    full = distribution if shape == distribution.batch_shape else distribution.expand(shape)
    value = full.sample(key)
    return jnp.stack([value, _TWICE_THE_CENTRE[type(distribution)](distribution) - value])
