"""`Fit`: what an optimization ends with, and what can be asked of it."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Fit:
    """The end of an optimization.

    Attributes:
        params: the parameters, in the structure they came in.
        history: the estimate of the objective at each step, an array of shape `(steps,)`.
        optimizer_state: optax's, to go on from.
        estimator_state: the moving averages of baselines, by site.
        model: the model that was fitted, a bound program or a function from parameters to one; None if not told.
        family: the variational family, a function from parameters to a bound program; None if not told.
        state: all that the run goes on from, by `maximize(..., state=fit.state)`.
        stopped: why it ended: "steps", "plateau", "callback", or "not finite" in the fit that an error carries.

    Of several objectives, `history`, `optimizer_state` and `estimator_state` are dicts by their names.
    """

    params: Any
    history: Any
    optimizer_state: Any
    estimator_state: Any = dataclasses.field(default_factory=dict)
    model: Any = None
    family: Any = None
    state: Any = None
    stopped: str = "steps"

    def __repr__(self) -> str:
        histories = self.history if isinstance(self.history, dict) else {"objective": self.history}
        steps = min(len(history) for history in histories.values())
        tail = max(1, steps // 10)
        if not steps:
            return "Fit(steps=0)"
        means = ", ".join(f"{name}={history[-tail:].mean():.4f}" for name, history in histories.items())
        return f"Fit(steps={steps}, {means} (mean of the last {min(tail, steps)} steps))"
