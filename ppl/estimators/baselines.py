"""Baselines of the score function: what is subtracted from the cost that a score multiplies.

A baseline that does not depend on the draw leaves every derivative unbiased and can lower its variance by orders of
magnitude. It is subtracted by element: from what each element of a site can still change of the objective.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class LeaveOneOut:
    """The mean over the other independent repetitions of the objective (Kool, van Hoof and Welling 2019).

    It needs `samples=` of two or more; with one repetition there is nothing to leave out, and no baseline.

    Example:
        >>> import jax, jax.numpy as jnp, ppl, ppl.distributions as dist
        >>> from ppl.estimators import LeaveOneOut, ScoreFunction
        >>> @ppl.expectation
        ... def cost(p):
        ...     return 100.0 + ppl.sample("x", dist.Poisson(p), estimator=ScoreFunction(LeaveOneOut()))
        >>> spread = lambda f: jnp.std(jax.vmap(f)(jax.random.split(jax.random.key(0), 500)))
        >>> bool(spread(lambda key: cost.grad(key, 2.0, samples=2)) < 3.0)  # without a baseline it is about 50
        True
    """


@dataclasses.dataclass(frozen=True)
class MovingAverage:
    """A running mean of earlier costs, by element, debiased for its start as Adam's are.

    The mean is a state: `objective.init_state(*args)` makes it, `state=` takes it and hands it on, and `maximize` and
    `minimize` carry it along.

    Attributes:
        decay: how much of the mean a step keeps.
    """

    decay: float = 0.9

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"the decay of a moving average must be at least 0 and less than 1, got {self.decay}")


@functools.partial(jax.tree_util.register_dataclass, data_fields=["value"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Learned:
    """A prediction of the cost, such as a network's of what the site depends on (NVIL: Mnih and Gregor 2014).

    The objective's gradient in the prediction is zero. `objective.baseline_loss` is the mean squared error of all predictions;
    `maximize` and `minimize` minimize it together with their objective.

    Attributes:
        value: one number for each element of the site (its shape without event dimensions), or one for all of them.
    """

    value: Any


@dataclasses.dataclass(frozen=True)
class Vimco:
    """For objectives that mix the elements of a plate, such as `log mean_k w_k` over K particles (Mnih and Rezende 2016).

    The baseline of particle k is the cost with everything that particle k contributes replaced by the mean over the other
    particles: for log weights, the geometric mean of the other weights. It costs K evaluations of what mixes the particles, and
    of nothing else. The particles are the outermost dimension of the site that a cost mixes.
    """


__all__ = ["Learned", "LeaveOneOut", "MovingAverage", "Vimco"]
