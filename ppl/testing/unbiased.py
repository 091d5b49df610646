"""`assert_unbiased`: an objective's estimates against exact values, at a stated rate of false alarms."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import errors
from ppl.inference.moments import Arguments, Moments, moments
from ppl.testing.exact import exact_derivatives
from ppl.transforms.expectation import Expectation


@dataclasses.dataclass(frozen=True)
class Unbiased:
    """What `assert_unbiased` compared, element by element: the value, then the derivatives.

    Attributes:
        names: of the elements.
        estimate: means of the draws.
        standard_error: of the means; not less than what rounding and the exact values' own errors allow.
        exact: the exact values.
        z: (estimate - exact) / standard_error.
        bound: what |z| may be: the normal quantile, widened where the draws are skewed.
        draws: their number.
        false_positive_rate: of the whole comparison.
    """

    names: tuple[str, ...]
    estimate: np.ndarray
    standard_error: np.ndarray
    exact: np.ndarray
    z: np.ndarray
    bound: np.ndarray
    draws: int
    false_positive_rate: float

    @property
    def failures(self) -> np.ndarray:
        """Positions of the elements that are off, the worst first."""
        off = np.flatnonzero(~(np.abs(self.z) <= self.bound))
        return off[np.argsort(-np.abs(self.z[off] / self.bound[off]))]

    def table(self, which: Sequence[int] | np.ndarray | None = None) -> str:
        """Elements as lines of a table; all if `which` is None."""
        rows: list[tuple[str, ...]] = [("", "estimate", "standard error", "exact", "z", "bound")]
        for i in range(len(self.names)) if which is None else which:
            numbers = (self.estimate[i], self.standard_error[i], self.exact[i], self.z[i], self.bound[i])
            rows.append((self.names[i], *(f"{x:.6g}" for x in numbers[:3]), f"{numbers[3]:+.2f}", f"{numbers[4]:.2f}"))
        widths = [max(len(row[column]) for row in rows) for column in range(6)]
        return "\n".join(
            "  ".join(
                cell.rjust(w) if column else cell.ljust(w) for column, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )

    def __str__(self) -> str:
        return f"{self.table()}\n{self.draws} draws; false positives: {self.false_positive_rate:.2g} of all such tests"


def assert_unbiased(
    objective: Expectation,
    args: Any,
    exact: Any,
    *,
    key: Any = None,
    draws: int = 10_000,
    samples: int | None = None,
    argnums: int | Sequence[int] = 0,
    order: int = 1,
    false_positive_rate: float = 1e-6,
    rounding: float | None = None,
) -> Unbiased:
    """Assert that an objective's value and gradient estimates have the right expectation, by their z-scores.

    All elements are tested together: each against the two-sided normal quantile at which all of them stay within their
    bounds with probability `1 - false_positive_rate`, however they are correlated (Sidak 1967). Draws are not normal,
    so the bound is widened by the first terms of the Cornish-Fisher expansion of Student's t: with the sample's
    skewness g, `|g| (2 z^2 + 1) / (6 sqrt(n)) + (z^3 + z) / (4 n)` (Hall 1992, section 2.4). An event that is rarer than
    about `log(1 / rate) / n` may not be drawn at all, and then the test may alarm although nothing is biased.

    Args:
        objective: an expectation.
        args: its arguments, as a tuple; anything else is the one argument.
        exact: the exact value and gradient, as
            - a function of the same arguments, with its `jax.grad`;
            - numbers, `(value, gradient)`, the gradient in the structure of `args[argnums]`, and with `order=2`
              `(value, gradient, Hessian)`, the Hessian as a matrix; None for what is not to be compared;
            - `"enumerate"`: the sum over all values of all sites, where these are finitely many;
            - `"quadrature"`: the same, with the trapezoidal rule for continuous sites (a few numbers in all), transformed to
              the real line.
        key: a PRNG key; a fixed one if None, so that a test that passes keeps passing.
        draws: independent estimates; they are computed in batches.
        samples: as in `Expectation.estimate`.
        argnums: the arguments to differentiate in.
        order: 2 tests the Hessian too.
        false_positive_rate: the probability that an unbiased objective fails, over keys.
        rounding: relative error that rounding may make, as a share of the largest number compared; 8 epsilon if None.

    Returns:
        An `Unbiased`, a table of what was compared.

    Raises:
        BiasError: an element is off (it is an AssertionError), or not finite.
        NoExactValueError: the exact value was asked for and cannot be found.

    Example:
        >>> import ppl, ppl.distributions as dist
        >>> from ppl.testing import assert_unbiased
        >>> @ppl.expectation
        ... def objective(p):
        ...     heads = ppl.sample("heads", dist.Bernoulli(probs=p), estimator=ppl.estimators.ScoreFunction())
        ...     return ppl.sample("x", dist.Normal(p * heads, 1.0)) ** 2
        >>> result = assert_unbiased(objective, 0.3, exact="quadrature")
        >>> [f"{x:.3f}" for x in result.exact]  # 1 + p^3 and its derivative
        ['1.027', '0.270']
    """
    if order not in (1, 2):
        raise errors.ObjectiveError(f"order must be 1 or 2, got {order}")
    if draws < 100:
        raise errors.ObjectiveError(f"a normal approximation needs at least 100 draws, got {draws}")
    if not 0.0 < false_positive_rate < 1.0:
        raise errors.ObjectiveError(f"the false positive rate is a probability, got {false_positive_rate}")
    arguments = Arguments(args if type(args) is tuple else (args,), argnums)
    truth, error = _exact(objective, arguments, exact, argnums, order)

    def derivatives(key: Any, vector: Any, arrays: Any) -> Any:
        return arguments.derivatives(lambda *a: objective.estimate(key, *a, samples=samples), vector, arrays, order)

    key = jax.random.key(20) if key is None else key
    found = moments(derivatives, key, draws, arguments.vector, arguments.arrays)
    result = _compare(arguments.labels(order), found, truth, error, false_positive_rate, rounding, arguments.vector.dtype)
    if len(result.failures):
        raise errors.BiasError(_message(objective, arguments, result))
    return result


def _exact(
    objective: Expectation, arguments: Arguments, exact: Any, argnums: Any, order: int
) -> tuple[np.ndarray, np.ndarray | float]:
    """The exact vector, NaN where nothing is to be compared, and its own error."""
    if isinstance(exact, str):
        return exact_derivatives(objective, arguments, exact, order)
    if callable(exact):
        compiled = jax.jit(lambda vector, arrays: arguments.derivatives(exact, vector, arrays, order))
        return np.asarray(compiled(arguments.vector, arguments.arrays), float), 0.0
    size = len(arguments.vector)
    if not isinstance(exact, tuple | list) or len(exact) != order + 1:
        wanted = "(value, gradient)" if order == 1 else "(value, gradient, Hessian)"
        raise errors.ObjectiveError(f"the exact numbers for order={order} are {wanted}; got {exact!r}")
    value, gradient, *hessian = exact
    parts = [
        np.array([math.nan if value is None else float(value)]),
        np.full(size, math.nan) if gradient is None else arguments.flatten(gradient, argnums),
    ]
    if order == 2:
        matrix = np.full((size, size), math.nan) if hessian[0] is None else np.asarray(hessian[0], float)
        parts.append(np.reshape(matrix, (size, size))[np.triu_indices(size)])
    return np.concatenate(parts), 0.0


def _compare(
    names: Sequence[str], found: Moments, truth: np.ndarray, error: Any, rate: float, rounding: float | None, dtype: Any
) -> Unbiased:
    wanted = ~np.isnan(truth)
    if not wanted.any():
        raise errors.ObjectiveError("there is no exact number to compare with")
    unit = 8 * float(jnp.finfo(dtype).eps) if rounding is None else rounding
    size = np.sqrt(found.mean**2 + found.second / found.draws)
    scale = max(np.abs(truth[wanted]).max(), np.nan_to_num(size, posinf=0.0)[wanted].max())
    floor = np.maximum(unit * scale, np.broadcast_to(error, truth.shape))
    standard_error = np.maximum(found.standard_error, floor)
    share = -math.expm1(math.log1p(-rate) / wanted.sum())
    z = statistics.NormalDist().inv_cdf(1.0 - share / 2) if share > 1e-15 else -statistics.NormalDist().inv_cdf(share / 2)
    n = found.draws
    bound = z + np.abs(found.skewness) * (2 * z**2 + 1) / (6 * math.sqrt(n)) + (z**3 + z) / (4 * n)
    scores = (found.mean - truth) / np.where(standard_error > 0, standard_error, 1.0)
    named = tuple(name for name, there in zip(names, wanted, strict=True) if there)
    columns = {"estimate": found.mean, "standard_error": standard_error, "exact": truth, "z": scores, "bound": bound}
    return Unbiased(named, **{k: v[wanted] for k, v in columns.items()}, draws=n, false_positive_rate=rate)


def _message(objective: Any, arguments: Arguments, result: Unbiased) -> str:
    failures = result.failures
    more = f"\n... and {len(failures) - 10} more" if len(failures) > 10 else ""
    if not np.isfinite(result.estimate[failures]).all():
        head = f"estimates of {objective!r} are not finite"
    else:
        head = (
            f"{objective!r} is biased: {len(failures)} of {len(result.names)} elements are off, at a rate of false positives "
            f"of {result.false_positive_rate:.2g}"
        )
    return f"{head}.\n{result.table(failures[:10])}{more}\nover {result.draws} draws.{_estimators(objective, arguments)}"


def _estimators(objective: Any, arguments: Arguments) -> str:
    """The table of estimators in force, which says which site may be the reason."""
    table: Callable[..., Any] | None = getattr(objective, "estimators", None)
    if table is None:
        return ""
    return f"\n{table(*arguments.join(arguments.vector, arguments.arrays))}"
