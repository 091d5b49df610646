"""Whether an optimization has come to rest: the end of its history, and the gradient where it stopped."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np

from ppl.diagnostics.findings import WARNING, Finding
from ppl.inference.moments import BATCH, Arguments, moments
from ppl.transforms.expectation import Expectation

BATCHES = 10


class Signal(NamedTuple):
    """The gradient of one draw: length of its mean over the root of its total variance, and the standard errors that the
    mean is from zero."""

    signal_to_noise: float
    z: float


def trend(history: Any) -> tuple[float, float] | None:
    """How much the objective moved from the second last to the last tenth of its history, with a standard error by means of
    batches; None for a history too short to tell."""
    history = np.asarray(history, float)
    tenth = len(history) // 10 if history.ndim == 1 else 0
    if tenth < BATCHES or not np.isfinite(history[-2 * tenth :]).all():
        return None
    before, after = (_batch_means(part) for part in (history[-2 * tenth : -tenth], history[-tenth:]))
    error = math.sqrt((before.var(ddof=1) + after.var(ddof=1)) / BATCHES)
    return float(after.mean() - before.mean()), error


def _batch_means(values: np.ndarray) -> np.ndarray:
    return np.array([part.mean() for part in np.array_split(values, BATCHES)])


def of_history(history: Any) -> list[Finding]:
    """A warning if the objective still moves."""
    found = trend(history)
    if found is None or abs(found[0]) < max(4 * found[1], 0.05):
        return []
    return [
        Finding(
            "convergence",
            WARNING,
            "",
            f"the objective still moved by {found[0]:+.2g} +- {found[1]:.2g} between the last two tenths of training.",
            "Run more steps, and let the step size fall to zero at the end (optax.cosine_decay_schedule).",
        )
    ]


def signal(objective: Expectation, params: Any, key: Any, draws: int = 512) -> Signal:
    """The signal-to-noise ratio of the objective's gradient, with the noise of its own mean taken out.

    At an optimum the mean is zero: a fit that has come to rest has a small ratio.
    """
    arguments = Arguments((params,), 0)

    def gradient(key: Any, vector: Any, arrays: Any) -> Any:
        return jax.grad(lambda v: objective.estimate(key, *arguments.join(v, arrays)))(vector)

    batch = max(1, min(BATCH, draws, 2**25 // max(1, len(arguments.vector))))
    found = moments(gradient, key, draws, arguments.vector, arguments.arrays, batch=batch)
    noise, square = float(found.variance.sum()), float((found.mean**2).sum())
    if noise == 0:
        return Signal(math.inf if square > 0 else 0.0, math.inf if square > 0 else 0.0)
    return Signal(math.sqrt(max(0.0, square - noise / draws) / noise), math.sqrt(square * draws / noise))


def of_gradient(found: Signal) -> list[Finding]:
    """A warning if the gradient of a single draw knows where to go."""
    if not (found.signal_to_noise > 0.5 and found.z > 4):
        return []
    return [
        Finding(
            "convergence",
            WARNING,
            "",
            f"the gradient still has a direction: its mean is {found.signal_to_noise:.2g} times its noise.",
            "Run more steps or a larger step size. If it was another objective than the ELBO that was optimized, pass it "
            "(objective=).",
        )
    ]


__all__ = ["Signal", "of_gradient", "of_history", "signal", "trend"]
