"""Importance weights of a fitted family: how heavy their tail is, and what they estimate."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np

from ppl import errors
from ppl.diagnostics.draws import Draws

LIGHT = 1.5
"""A tail that carries less than this many times its share of the weight decides nothing, whatever its shape."""
FEWEST = 100
"""Draws below which no tail can be looked at."""


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    standard_error: float

    def __str__(self) -> str:
        if not math.isfinite(self.standard_error):
            return f"{self.value:.4g}"
        digits = 4 if self.standard_error == 0 else min(4, max(0, 1 - math.floor(math.log10(self.standard_error))))
        return f"{self.value:.{digits}f} +- {self.standard_error:.{digits}f}"


class Smoothed(NamedTuple):
    """Pareto-smoothed weights that sum to one, and the shape of their tail."""

    weights: np.ndarray
    k_hat: float


def arviz() -> Any:
    """ArviZ, which is an optional dependency."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import arviz
    except ImportError as error:
        raise ImportError("this needs ArviZ: pip install 'ppl[diagnostics]'") from error
    return arviz


def smooth(log_weights: np.ndarray) -> Smoothed:
    """Pareto-smoothed importance sampling (Vehtari et al. 2024), through ArviZ.

    `k_hat` is the estimated shape of the tail: weights have about `1 / k_hat` moments. It is minus infinity where there is
    no tail: all weights equal to 0.1%, or ties for the largest (discrete latents), each below the bound `1 / sqrt(n)` under
    which no weight harms (Ionides 2008).
    """
    if len(log_weights) < FEWEST:
        raise errors.FitError(f"the tail of importance weights needs at least {FEWEST} draws, got {len(log_weights)}")
    log_w = log_weights - log_weights.max()
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        smoothed, k_hat = arviz().psislw(log_w)
    raw = np.exp(log_w) / np.exp(log_w).sum()
    equal = log_w.min() > -1e-3
    ties = np.isinf(k_hat) and raw.max() < len(raw) ** -0.5
    return Smoothed(raw, -math.inf) if equal or ties else Smoothed(np.exp(smoothed), float(k_hat))


def tail_weight(log_w: np.ndarray) -> float:
    """The weight of the tail that `k_hat` is fitted to, the largest `min(n / 5, 3 sqrt(n))`, over their share of the draws.

    Example:
        >>> import numpy as np
        >>> from ppl.diagnostics.weights import tail_weight
        >>> tail_weight(np.zeros(100))
        1.0
    """
    n = len(log_w)
    tail = int(np.ceil(min(n / 5, 3 * np.sqrt(n))))
    weights = np.exp(log_w - log_w.max())
    return float(np.sort(weights)[-tail:].sum() / weights.sum() * n / tail)


def reliable_k_hat(n: int) -> float:
    """The largest `k_hat` at which `n` weights can be trusted: `min(1 - 1 / log10(n), 0.7)` (Vehtari et al. 2024)."""
    return min(1 - 1 / math.log10(n), 0.7)


def log_mean(log_x: np.ndarray) -> Estimate:
    """The logarithm of a mean, given logarithms. Its standard error is that of the mean over the mean (delta method)."""
    top = log_x.max()
    x = np.exp(log_x - top)
    return Estimate(float(top + np.log(x.mean())), float(x.std(ddof=1) / x.mean() / math.sqrt(len(x))))


def mean(x: np.ndarray) -> Estimate:
    """A mean and its standard error."""
    return Estimate(float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x))))


def upper_bound(log_weights: np.ndarray) -> Estimate:
    """`E_p[log w]` under the posterior, at least the log evidence (the EUBO), from self-normalized weights.

    The standard error is the delta method's for a ratio of means (Owen 2013, equation 9.9).
    """
    w = np.exp(log_weights - log_weights.max())
    w = w / w.sum()
    finite = np.where(w > 0, log_weights, 0.0)
    value = float(w @ finite)
    return Estimate(value, float(np.sqrt(np.sum(w**2 * (finite - value) ** 2))))


def effective_sample_size(log_weights: np.ndarray) -> float:
    """Kish's `(sum w)^2 / sum w^2`."""
    w = np.exp(log_weights - log_weights.max())
    return float(w.sum() ** 2 / (w**2).sum())


def finite(draws: Draws) -> np.ndarray:
    """The log weights, refused where some are not numbers. A draw outside the model's support has weight zero, which is one."""
    log_w = draws.log_weights
    bad = np.isnan(log_w) | (log_w == np.inf)
    if bad.any():
        raise errors.FitError(
            f"{bad.sum()} of {len(bad)} draws of the family have a log density that is no number "
            f"(the first: model {draws.log_p[bad][0]}, family {draws.log_q[bad][0]}). Look for a scale that reaches zero, a "
            "value that leaves its support, or a density that overflows; float64 may help "
            "(jax.config.update('jax_enable_x64', True))."
        )
    if np.all(log_w == -np.inf):
        raise errors.FitError("every draw of the family has density zero under the model: the two do not overlap.")
    return log_w


__all__ = [
    "Estimate",
    "Smoothed",
    "arviz",
    "effective_sample_size",
    "finite",
    "log_mean",
    "mean",
    "reliable_k_hat",
    "smooth",
    "tail_weight",
    "upper_bound",
]
