"""The algebra of expectations: sums, scalings, products, powers and exponentials, unbiased with their gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from ppl import errors
from ppl.site import SUBSAMPLE, Operands, Site, bind, user_frame


class Algebra:
    """What expectations can be combined to. Each result is an expectation of the same arguments.

    Sums, differences and multiples (`E + F`, `E - F`, `-E`, `c * E`, `E / c`, `E + c`) are linear: the operands' sites
    become those of the result, each with its own estimator. In products, powers and `exp` each occurrence of an operand
    is an independent estimate, weighted by itself: `E * E` is for `E[X]**2` and not for `E[X**2]`.

    There is no `log E`, `1 / E` or `E / F`: an unbiased estimate with a bounded number of draws exists for polynomials
    of a mean alone (Keane and O'Brien 1994). Written inside an objective, `jnp.log(E(x))` is the expectation of a
    logarithm, which is only consistent: its bias falls with the number of draws averaged inside.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.expectation
        ... def mean(m):
        ...     return ppl.sample("x", dist.Normal(m, 1.0))
        >>> square = 2.0 * mean * mean - 1.0
        >>> value, grad = square.value_and_grad(jax.random.key(0), 3.0, samples=100_000)
        >>> bool(abs(value - 17.0) < 0.2), bool(abs(grad - 12.0) < 0.2)
        (True, True)
    """

    __array_ufunc__ = None  # NumPy's numbers leave `c * E` to us

    estimate: Callable[..., Any]

    operands: tuple[Any, ...] = ()
    """The expectations of which this one uses independent estimates: their sites are not among its own."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    def __add__(self, other: Any) -> Any:
        term = _operand(other)
        name, operands = f"({_name(self)} + {_name(other)})", (*self.operands, *getattr(other, "operands", ()))
        return self._like(lambda *args, **kwargs: self(*args, **kwargs) + term(*args, **kwargs), name, operands)

    def __radd__(self, other: Any) -> Any:
        return self + other

    def __neg__(self) -> Any:
        return -1.0 * self

    def __sub__(self, other: Any) -> Any:
        return self + (-other)

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    def __mul__(self, other: Any) -> Any:
        name = f"{_name(self)} * {_name(other)}"
        if isinstance(other, Algebra):
            return self._like(
                lambda *a, **k: self._independent(1, a, k)[0] * other._independent(1, a, k)[0], name, (self, other)
            )
        factor = _operand(other)
        return self._like(lambda *args, **kwargs: factor() * self(*args, **kwargs), name, self.operands)

    def __rmul__(self, other: Any) -> Any:
        return self * other

    def __truediv__(self, other: Any) -> Any:
        if isinstance(other, Algebra):
            return _refuse_quotient()
        divisor = _operand(other)
        return self._like(
            lambda *args, **kwargs: self(*args, **kwargs) / divisor(), f"{_name(self)} / {_name(other)}", self.operands
        )

    def __rtruediv__(self, other: Any) -> Any:
        return _refuse_quotient()

    def __pow__(self, power: Any) -> Any:
        """`E**n` for a positive integer n: the product of n independent estimates, for `E[X]**n`."""
        if isinstance(power, bool) or not isinstance(power, int | np.integer) or power < 1:
            raise errors.ObjectiveError(
                f"{_name(self)}**{power}: only powers with a positive Python integer have an unbiased estimate of bounded cost."
            )
        return self._like(lambda *a, **k: jnp.prod(self._independent(int(power), a, k)), f"{_name(self)}**{power}", (self,))

    def exp(self, *, terms: int = 20, shift: Any = None) -> Any:
        """The exponential of the expectation, `exp(E[X])`, which is less than `E[exp(X)]` unless X is constant.

        With `terms` independent estimates and a centre c, it is `exp(c)` times Taylor's series in which the power k of
        `E[X] - c` is the average over all products of k of the deviations (a U-statistic; Hoeffding 1948). This is the
        Poisson estimator (Wagner 1987; Fearnhead et al. 2008) averaged over its random number of factors and their order.

        No bounded number of draws is exactly unbiased for an exponential: what is left out is the series' remainder,
        `exp(c) * sum((E[X] - c)**k / k!, k > terms)`. With 20 terms it is below 1e-8 of the result where
        `|E[X] - c| <= 3`, which is less than float32 resolves, below 1e-5 up to 4, and below 2e-3 up to 5; derivatives of
        order m have m terms less.

        Args:
            terms: independent estimates used, and terms of the series.
            shift: the centre c, a number. None: one more independent estimate, through which no gradient flows. That is
                good where the standard deviation of an estimate is below about one; average inside of the objective
                where it is larger, since the variance grows with the exponential of its square.

        Example:
            >>> import jax, ppl, ppl.distributions as dist
            >>> @ppl.expectation
            ... def log_weight(m):
            ...     return ppl.sample("x", dist.Normal(m, 0.3))
            >>> value, grad = log_weight.exp().value_and_grad(jax.random.key(0), 0.0, samples=50_000)
            >>> bool(abs(value - 1.0) < 0.02), bool(abs(grad - 1.0) < 0.02)
            (True, True)
        """
        if terms < 1:
            raise errors.ObjectiveError(f"terms must be at least 1, got {terms}")
        if shift is not None:
            _operand(shift)

        def exponential(*args: Any, **kwargs: Any) -> Any:
            draws = self._independent(terms + (shift is None), args, kwargs)
            centre = jax.lax.stop_gradient(draws[terms] if shift is None else jnp.asarray(shift, draws.dtype))
            return jnp.exp(centre) * _series(draws[:terms] - centre)

        return self._like(exponential, f"exp({_name(self)})", (self,))

    def _independent(self, count: int, args: Any, kwargs: Any) -> Any:
        """Independent estimates inside the objective that is being traced, each resolved: weighted by itself."""
        words = _key_words(_name(self), count)
        keys = jax.random.wrap_key_data(words, impl="threefry2x32")
        return jax.vmap(lambda key: self.estimate(key, *args, **kwargs))(keys)

    def _like(self, function: Callable[..., Any], name: str, operands: Sequence[Any]) -> Any:
        function.__name__ = function.__qualname__ = name
        result = type(self)(function)  # type: ignore[call-arg]
        result.operands = tuple(dict.fromkeys(operands))
        return result


def _series(deviations: Any) -> Any:
    """`sum_k e_k / (C(n, k) k!)`, where e_k are the elementary symmetric polynomials of n deviations."""
    n = len(deviations)

    def include(means: Any, x: Any) -> Any:
        # means[k] = e_k / C(i, k) of the first i; a further x makes it ((i + 1 - k) means[k] + k x means[k-1]) / (i + 1).
        i, deviation = x
        share = jnp.arange(n + 1) / (i + 1.0)
        new = jnp.maximum(1.0 - share, 0.0) * means + share * deviation * jnp.roll(means, 1).at[0].set(0.0)
        return new.astype(means.dtype), None

    start = jnp.zeros(n + 1, deviations.dtype).at[0].set(1.0)
    means, _ = jax.lax.scan(include, start, (jnp.arange(n), deviations))
    inverse_factorials = np.cumprod(1.0 / np.maximum(np.arange(n + 1), 1))
    return jnp.sum(means * inverse_factorials.astype(deviations.dtype))


class KeyWords(dist.Distribution):
    """The words of PRNG keys, `(count, 2)`. They have no density."""

    support = dist.constraints.nonnegative_integer
    pytree_aux_fields = ("count",)

    def __init__(self, count: int):
        self.count = count
        super().__init__((), (count, 2))

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        return jax.random.bits(key, (*sample_shape, self.count, 2), jnp.uint32)


def _key_words(name: str, count: int) -> Any:
    leaves, tree = jax.tree.flatten(Operands(distribution=KeyWords(count)))
    # As with the indices of a subsample: random, without a density, and no gradient flows through them.
    site = Site((name,), SUBSAMPLE, tree, (count, 2), jnp.uint32, None, user_frame(), "KeyWords", 2, simulated=True)
    return bind(site, leaves)


def _operand(other: Any) -> Callable[..., Any]:
    """An expectation, or a real number as a function of anything."""
    if isinstance(other, Algebra):
        return other
    if callable(other) or jnp.shape(other) != () or not jnp.issubdtype(jnp.result_type(other), jnp.number):
        raise errors.ObjectiveError(
            f"an expectation is combined with expectations and real numbers, got {other!r}."
            + (" Decorate it with @ppl.expectation." if callable(other) else "")
        )
    return lambda *args, **kwargs: other


def _refuse_quotient() -> Any:
    raise errors.ObjectiveError(
        "the quotient of an expectation has no unbiased estimate of bounded cost. Inside an objective, a / jnp.mean(draws) is "
        "consistent: its bias falls with the number of draws."
    )


def _name(operand: Any) -> str:
    return getattr(operand, "__name__", None) or (f"{operand:g}" if isinstance(operand, int | float) else "c")


__all__ = ["Algebra", "KeyWords"]
