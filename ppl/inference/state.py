"""`State`: all that a run of `maximize` goes on from, as one pytree."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """What an optimization goes on from; `maximize(..., state=fit.state)` gives what one uninterrupted run gives.

    Attributes:
        step: steps taken.
        key: the key that all randomness of the run comes from.
        params: the trainable arrays, unconstrained, in the structure of the parameters.
        optimizer: optax's states, one for each objective.
        estimators: the moving averages of baselines, by site, for each objective.
        data: where the minibatches are: the epoch, the index of the next batch in it, and the order of rows.
        average: the average of the iterates; empty where none is asked for.
        best: the best window's mean, and the parameters at its end; empty where nobody asks for it.
        skipped: updates that were skipped because they were not finite.
        history: the estimates at each step, `(step,)`, for each objective.
    """

    step: Any
    key: Any
    params: Any
    optimizer: tuple[Any, ...]
    estimators: tuple[Any, ...]
    data: Any
    average: Any
    best: Any
    skipped: Any
    history: tuple[Any, ...]

    def replace(self, **changes: Any) -> State:
        return dataclasses.replace(self, **changes)
