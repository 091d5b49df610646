"""NumPyro's densities that are wrong, made right.

Two of them have a wrong gradient at logits of exactly zero, where training often starts: `corrected` replaces them, and
`ppl.sample` applies it to whatever it is given.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as _dist
from jax import lax
from jax.scipy.special import gammaln


@jax.custom_jvp
def _softplus(x: Any) -> Any:
    return _softplus_and_exp(x)[0]


def _softplus_and_exp(x: Any) -> Any:
    # Each side of zero is a smooth function: where JAX drops the rule below, as it does inside a scan, no derivative is wrong.
    positive = x >= 0
    e = lax.exp(lax.select(positive, -x, x))
    return lax.select(positive, x, lax.full_like(x, 0.0)) + lax.log1p(e), e


@_softplus.defjvp
def _softplus_jvp(primals: Any, tangents: Any) -> Any:
    _, e = _softplus_and_exp(primals[0])  # the value and the slope share the exponential, once compiled
    return _softplus(primals[0]), _sigmoid(primals[0], e) * tangents[0]


@jax.custom_jvp
def _sigmoid(x: Any, e: Any) -> Any:
    return lax.select(x >= 0, lax.full_like(e, 1.0), e) / (1.0 + e)


@_sigmoid.defjvp
def _sigmoid_jvp(primals: Any, tangents: Any) -> Any:
    s = _sigmoid(*primals)
    return s, s * (1.0 - s) * tangents[0]  # `e` is a function of `x`


def _binary_log_prob(logits: Any, successes: Any, trials: Any) -> Any:
    """`successes * logits - trials * softplus(logits)`; infinite logits count as the largest number, so that 0 * inf is 0."""
    logits = jnp.asarray(logits, jnp.result_type(logits, jnp.result_type(float)))
    largest = float(jnp.finfo(logits.dtype).max)
    logits = lax.clamp(lax.full_like(logits, -largest, shape=()), logits, lax.full_like(logits, largest, shape=()))
    return successes * logits - trials * _softplus(logits)


class BernoulliLogits(_dist.BernoulliLogits):
    """NumPyro's, with a right score at logits of zero."""

    def log_prob(self, value: Any) -> Any:
        return _binary_log_prob(self.logits, value, 1.0)


class BinomialLogits(_dist.BinomialLogits):
    """NumPyro's, with a right score at logits of zero."""

    def log_prob(self, value: Any) -> Any:
        n = self.total_count
        ways = gammaln(n + 1.0) - gammaln(value + 1.0) - gammaln(n - value + 1.0)
        return ways + _binary_log_prob(self.logits, value, n)


def Bernoulli(probs: Any = None, logits: Any = None, **options: Any) -> Any:
    """Bernoulli by probability or by logits; values are integers 0 and 1.

    Example:
        >>> import jax, ppl.distributions as dist
        >>> float(jax.grad(lambda l: dist.Bernoulli(logits=l).log_prob(1))(0.0))
        0.5
    """
    return corrected(_dist.Bernoulli(probs, logits, **options))


def Binomial(total_count: Any = 1, probs: Any = None, logits: Any = None, **options: Any) -> Any:
    """Binomial by probability or by logits; values are integers from 0 to `total_count`.

    Example:
        >>> import jax, ppl.distributions as dist
        >>> round(float(jax.grad(lambda l: dist.Binomial(4, logits=l).log_prob(3))(0.0)), 6)
        1.0
    """
    return corrected(_dist.Binomial(total_count, probs, logits, **options))


_CORRECTED: dict[Any, Any] = {_dist.BernoulliLogits: BernoulliLogits, _dist.BinomialLogits: BinomialLogits}


def corrected(distribution: Any) -> Any:
    """The distribution, with densities whose gradients are right everywhere."""
    kind: Any = type(distribution)
    if kind in _CORRECTED:
        leaves, aux = distribution.tree_flatten()
        return _CORRECTED[kind].tree_unflatten(aux, leaves)
    for part in ("base_dist", "_component_distribution"):
        inner = getattr(distribution, part, None)
        if isinstance(inner, _dist.Distribution) and corrected(inner) is not inner:
            leaves, aux = distribution.tree_flatten()
            distribution = kind.tree_unflatten(aux, leaves)
            setattr(distribution, part, corrected(inner))
    return distribution
