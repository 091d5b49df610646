"""`Fit`: what an optimization ends with, and what can be asked of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Fit:
    """The end of an optimization.

    Attributes:
        params: the parameters, in the structure they came in.
        history: the estimate of the objective at each step, shape `(steps,)`.
        optimizer_state: optax's, to go on from.
        estimator_state: the moving averages of baselines, by site.
        model: the model that was fitted, a bound program or a function from parameters to one; None if not told.
        family: the variational family, a function from parameters to a bound program; None if not told.
    """

    params: Any
    history: np.ndarray
    optimizer_state: Any
    estimator_state: Any = dataclasses.field(default_factory=dict)
    model: Any = None
    family: Any = None

    def __repr__(self) -> str:
        tail = self.history[-max(1, len(self.history) // 10) :]
        return f"Fit(steps={len(self.history)}, objective={tail.mean():.4f} (mean of the last {len(tail)} steps))"
