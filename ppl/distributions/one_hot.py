"""One of K categories as a vector of zeros and a one, and its relaxation to the simplex."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import gammaln, logsumexp
from numpyro.distributions import constraints


class _OneHot(constraints.Constraint):
    """Vectors of zeros with a single one."""

    is_discrete = True
    event_dim = 1

    def __call__(self, x: Any) -> Any:
        return (((x == 0) | (x == 1)).all(axis=-1)) & (x.sum(axis=-1) == 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _OneHot)

    def __hash__(self) -> int:
        return hash(_OneHot)

    def feasible_like(self, prototype: Any) -> Any:
        return jnp.zeros_like(prototype).at[..., 0].set(1)

    def tree_flatten(self) -> Any:
        return (), ((), {})


ONE_HOT = _OneHot()


def _finite(logits: Any) -> Any:
    """Infinite logits count as the largest number, so that 0 * inf is 0."""
    logits = jnp.asarray(logits, jnp.result_type(logits, float))
    largest = jnp.finfo(logits.dtype).max
    return jnp.clip(logits, -largest, largest)


def _log(probs: Any) -> Any:
    probs = jnp.asarray(probs, jnp.result_type(probs, float))
    return jnp.log(jnp.maximum(probs, jnp.finfo(probs.dtype).tiny))


class _Categories(dist.Distribution):
    """What the parametrizations share: `log_weights` are the log probabilities of the categories, up to a constant."""

    @property
    def log_weights(self) -> Any:
        raise NotImplementedError

    @property
    def mean(self) -> Any:
        return jax.nn.softmax(self.log_weights, axis=-1)


class _OneHotCategorical(_Categories):
    support = ONE_HOT
    has_enumerate_support = True

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        index = jax.random.categorical(key, self.log_weights, shape=sample_shape + self.batch_shape)
        return jax.nn.one_hot(index, self.event_shape[-1], dtype=self.log_weights.dtype)

    def log_prob(self, value: Any) -> Any:
        return jnp.sum(value * jax.nn.log_softmax(self.log_weights, axis=-1), axis=-1)

    @property
    def variance(self) -> Any:
        return self.mean * (1.0 - self.mean)

    def entropy(self) -> Any:
        return -jnp.sum(self.mean * jax.nn.log_softmax(self.log_weights, axis=-1), axis=-1)

    def enumerate_support(self, expand: bool = True) -> Any:
        (size,) = self.event_shape
        values = jnp.eye(size, dtype=self.log_weights.dtype)
        values = jnp.reshape(values, (size, *(1,) * len(self.batch_shape), size))
        return jnp.broadcast_to(values, (size, *self.batch_shape, size)) if expand else values


class OneHotCategoricalProbs(_OneHotCategorical):
    """One of K categories as a vector of zeros and a one, by probabilities `(*batch, K)`."""

    arg_constraints = {"probs": constraints.simplex}  # noqa: RUF012 (NumPyro's)

    def __init__(self, probs: Any, *, validate_args: bool | None = None):
        self.probs = probs
        super().__init__(jnp.shape(probs)[:-1], jnp.shape(probs)[-1:], validate_args=validate_args)

    @property
    def log_weights(self) -> Any:
        return _log(self.probs)

    def expand(self, batch_shape: tuple[int, ...]) -> Any:
        return OneHotCategoricalProbs(jnp.broadcast_to(self.probs, (*batch_shape, *self.event_shape)))


class OneHotCategoricalLogits(_OneHotCategorical):
    """One of K categories as a vector of zeros and a one, by logits `(*batch, K)`."""

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012

    def __init__(self, logits: Any, *, validate_args: bool | None = None):
        self.logits = logits
        super().__init__(jnp.shape(logits)[:-1], jnp.shape(logits)[-1:], validate_args=validate_args)

    @property
    def log_weights(self) -> Any:
        return _finite(self.logits)

    def expand(self, batch_shape: tuple[int, ...]) -> Any:
        return OneHotCategoricalLogits(jnp.broadcast_to(self.logits, (*batch_shape, *self.event_shape)))


def OneHotCategorical(probs: Any = None, logits: Any = None, **options: Any) -> Any:
    """One of K categories as a floating-point vector of zeros and a one, by probabilities or by logits `(*batch, K)`.

    The log density (nats) is linear in the value, so that a relaxed value has one too.

    Example:
        >>> import jax, jax.numpy as jnp, ppl.distributions as dist
        >>> coin = dist.OneHotCategorical(probs=jnp.array([0.25, 0.75]))
        >>> coin.sample(jax.random.key(0)).tolist()
        [0.0, 1.0]
        >>> [round(float(p), 6) for p in jnp.exp(coin.log_prob(coin.enumerate_support()))]
        [0.25, 0.75]
    """
    _one_of(probs, logits)
    return OneHotCategoricalProbs(probs, **options) if logits is None else OneHotCategoricalLogits(logits, **options)


def _one_of(probs: Any, logits: Any) -> None:
    if (probs is None) == (logits is None):
        raise ValueError("give either probs or logits")


def relaxed_one_hot(key: Any, log_weights: Any, temperature: Any) -> Any:
    """`softmax((log_weights + Gumbel noise) / temperature)` along the last axis, inside of the simplex."""
    gumbel = jax.random.gumbel(key, jnp.shape(log_weights), jnp.result_type(log_weights))
    return _inside(jax.nn.softmax((log_weights + gumbel) / temperature, axis=-1))


def _inside(x: Any) -> Any:
    """What rounding has put on the boundary of the simplex is put back."""
    info = jnp.finfo(x.dtype)
    return jnp.clip(x, info.tiny, 1.0 - info.eps)


class _RelaxedOneHotCategorical(_Categories):
    support = constraints.simplex

    temperature: Any

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        log_weights = jnp.broadcast_to(self.log_weights, sample_shape + self.batch_shape + self.event_shape)
        return relaxed_one_hot(key, log_weights, jnp.expand_dims(self.temperature, -1))

    def log_prob(self, value: Any) -> Any:
        size = self.event_shape[-1]
        tau, log_x = jnp.expand_dims(self.temperature, -1), jnp.log(value)
        scores = self.log_weights - tau * log_x
        constant = gammaln(float(size)) + (size - 1) * jnp.log(self.temperature)
        return constant + jnp.sum(scores - log_x, axis=-1) - size * logsumexp(scores, axis=-1)

    @property
    def mean(self) -> Any:
        raise NotImplementedError

    def _shapes(self, weights: Any) -> Any:
        return jnp.broadcast_shapes(jnp.shape(weights)[:-1], jnp.shape(self.temperature)), jnp.shape(weights)[-1:]


class RelaxedOneHotCategoricalProbs(_RelaxedOneHotCategorical):
    """The Concrete distribution, by probabilities `(*batch, K)`."""

    arg_constraints = {"temperature": constraints.positive, "probs": constraints.simplex}  # noqa: RUF012
    reparametrized_params = ["temperature", "probs"]  # noqa: RUF012

    def __init__(self, temperature: Any, probs: Any, *, validate_args: bool | None = None):
        self.temperature, self.probs = temperature, probs
        super().__init__(*self._shapes(probs), validate_args=validate_args)

    @property
    def log_weights(self) -> Any:
        return _log(self.probs)


class RelaxedOneHotCategoricalLogits(_RelaxedOneHotCategorical):
    """The Concrete distribution, by logits `(*batch, K)`."""

    arg_constraints = {"temperature": constraints.positive, "logits": constraints.real_vector}  # noqa: RUF012
    reparametrized_params = ["temperature", "logits"]  # noqa: RUF012

    def __init__(self, temperature: Any, logits: Any, *, validate_args: bool | None = None):
        self.temperature, self.logits = temperature, logits
        super().__init__(*self._shapes(logits), validate_args=validate_args)

    @property
    def log_weights(self) -> Any:
        return _finite(self.logits)


def RelaxedOneHotCategorical(temperature: Any, probs: Any = None, logits: Any = None, **options: Any) -> Any:
    """The Concrete distribution on the simplex (Maddison et al. 2017, eq. 10; Jang et al. 2017).

    Draws are `softmax((logits + Gumbel noise) / temperature)`; they approach those of `OneHotCategorical` as the
    temperature falls. In single precision, entries below 1e-38 are rounded up to that.

    Args:
        temperature: positive, `(*batch)`.
        probs, logits: of the K categories, `(*batch, K)`; one of the two.

    Example:
        >>> import jax, jax.numpy as jnp, ppl.distributions as dist
        >>> relaxed = dist.RelaxedOneHotCategorical(1.0, logits=jnp.zeros(2))  # uniform on the simplex of two
        >>> round(float(jnp.exp(relaxed.log_prob(jnp.array([0.3, 0.7])))), 6)
        1.0
    """
    _one_of(probs, logits)
    if logits is None:
        return RelaxedOneHotCategoricalProbs(temperature, probs, **options)
    return RelaxedOneHotCategoricalLogits(temperature, logits, **options)
