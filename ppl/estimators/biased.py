"""Relaxations of discrete draws. Their gradients are biased, and they say so."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ppl import errors
from ppl.distributions.one_hot import OneHotCategoricalLogits, OneHotCategoricalProbs, relaxed_one_hot
from ppl.estimators.protocol import OneValue, Particle
from ppl.site import Site


class _Relaxed(OneValue):
    """One floating-point value in place of a discrete one, without a weight."""

    weighted = False
    relaxes = True


def _refuse_index(distribution: Any, site: Site) -> str | None:
    if isinstance(_base(distribution), dist.CategoricalProbs | dist.CategoricalLogits):
        return f"{site.distribution_name} draws an index, which nothing lies between; use OneHotCategorical"
    return None


def _base(distribution: Any) -> Any:
    while isinstance(distribution, dist.ExpandedDistribution):
        distribution = distribution.base_dist
    return distribution


_BINARY = (dist.BernoulliProbs, dist.BernoulliLogits)
_ONE_HOT = (OneHotCategoricalProbs, OneHotCategoricalLogits)


def _refuse(distribution: Any, site: Site, temperature: Any) -> str | None:
    if temperature is not None and np.any(np.asarray(temperature) <= 0):  # an unknown one is NaN
        return f"its temperature is {temperature} and must be positive"
    if isinstance(_base(distribution), _BINARY + _ONE_HOT):
        return None
    return _refuse_index(distribution, site) or f"{site.distribution_name} is neither Bernoulli nor OneHotCategorical"


def _log_odds(distribution: Any) -> Any:
    base = _base(distribution)
    if isinstance(base, dist.BernoulliLogits):
        odds = jnp.asarray(base.logits, jnp.result_type(base.logits, float))
    else:
        probs = jnp.asarray(base.probs, jnp.result_type(base.probs, float))
        info = jnp.finfo(probs.dtype)
        probs = jnp.clip(probs, info.tiny, 1.0 - info.epsneg)
        odds = jnp.log(probs) - jnp.log1p(-probs)
    return jnp.broadcast_to(odds, distribution.batch_shape)


def _relaxed(key: Any, distribution: Any, temperature: Any) -> Any:
    if isinstance(_base(distribution), _BINARY):
        odds = _log_odds(distribution)
        return jax.nn.sigmoid((odds + jax.random.logistic(key, odds.shape, odds.dtype)) / temperature)
    return relaxed_one_hot(key, distribution.log_weights, temperature)


def _mean(distribution: Any) -> Any:
    return jax.nn.sigmoid(_log_odds(distribution)) if isinstance(_base(distribution), _BINARY) else distribution.mean


def _hard(relaxed: Any, binary: bool) -> Any:
    """The draw that a relaxed value stands for, whatever its temperature."""
    if binary:
        return jnp.where(relaxed > 0.5, 1.0, 0.0).astype(relaxed.dtype)
    return jax.nn.one_hot(jnp.argmax(relaxed, axis=-1), relaxed.shape[-1], dtype=relaxed.dtype)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["temperature"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class GumbelSoftmax(_Relaxed):
    """A draw of the Concrete distribution in place of a discrete one (Maddison et al. 2017; Jang et al. 2017).

    For Bernoulli and OneHotCategorical. The value lies inside of the unit interval or the simplex, and the gradient is exact
    for the relaxed objective: both are **biased** for the discrete one. The bias falls with the temperature, and the variance
    of the gradient grows. A Bernoulli site draws floating-point numbers then.

    Args:
        temperature: positive.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.expectation
        ... def chance(logit):
        ...     return ppl.sample("b", dist.Bernoulli(logits=logit), estimator=ppl.estimators.GumbelSoftmax(1.0))
        >>> g = chance.grad(jax.random.key(0), 0.0, samples=50_000)
        >>> bool(abs(g - 1 / 6) < 0.01)  # exact for the relaxed objective; that of the discrete one is 1/4
        True
    """

    temperature: Any
    unbiased = False

    def refuses(self, distribution: Any, site: Site) -> str | None:
        return _refuse(distribution, site, self.temperature)

    def particle(self, key: Any, distribution: Any) -> Particle:
        return Particle(_relaxed(key, distribution, self.temperature))


@functools.partial(jax.tree_util.register_dataclass, data_fields=["temperature"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class StraightThrough(_Relaxed):
    """The discrete value itself, with the gradient of something smooth in its place.

    For Bernoulli and OneHotCategorical. Values of the objective are unbiased, its gradients are **biased**, unless it is
    linear in each site's value. A Bernoulli site draws floating-point zeros and ones then.

    Args:
        temperature: None takes the gradient of the mean (Bengio et al. 2013); a positive number that of a Gumbel-softmax
            draw of this temperature with the same noise (Jang et al. 2017, section 2.2).

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.expectation
        ... def chance(p):
        ...     return 3.0 * ppl.sample("b", dist.Bernoulli(probs=p), estimator=ppl.estimators.StraightThrough())
        >>> float(chance.grad(jax.random.key(0), 0.25))
        3.0
    """

    temperature: Any = None
    unbiased = False

    def refuses(self, distribution: Any, site: Site) -> str | None:
        return _refuse(distribution, site, self.temperature)

    def particle(self, key: Any, distribution: Any) -> Particle:
        relaxed = _relaxed(key, distribution, 1.0 if self.temperature is None else self.temperature)
        hard = jax.lax.stop_gradient(_hard(relaxed, isinstance(_base(distribution), _BINARY)))
        soft = _mean(distribution) if self.temperature is None else relaxed
        return Particle(hard + (soft - jax.lax.stop_gradient(soft)))


@dataclasses.dataclass(frozen=True)
class Relaxation(_Relaxed):
    """A relaxation of the user's own: one differentiable value, without a weight, **biased** for all that is known.

    Args:
        function: `function(key, distribution) -> value`, a floating-point array of the distribution's shape. The
            distribution's batch shape holds the independent elements: plates first.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> mean_field = ppl.estimators.Relaxation(lambda key, p: p.mean)
        >>> @ppl.expectation
        ... def square(p):
        ...     return ppl.sample("b", dist.Bernoulli(probs=p), estimator=mean_field) ** 2
        >>> float(square.grad(jax.random.key(0), 0.25))  # of the squared mean; that of the mean square is 1
        0.5
    """

    function: Callable[[Any, Any], Any]
    unbiased: bool = dataclasses.field(default=False, init=False)

    def refuses(self, distribution: Any, site: Site) -> str | None:
        return _refuse_index(distribution, site)

    def particle(self, key: Any, distribution: Any) -> Particle:
        value = jnp.asarray(self.function(key, distribution))
        if value.shape != distribution.shape() or not jnp.issubdtype(value.dtype, jnp.floating):
            raise errors.EstimatorError(
                f"the relaxation of {type(distribution).__name__} gave {value.dtype}{list(value.shape)}; it must give "
                f"floating-point numbers of shape {list(distribution.shape())}"
            )
        return Particle(value)
