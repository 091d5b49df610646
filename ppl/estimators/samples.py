"""Several draws of a site, with the mean over the others as a baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any

import jax

from ppl import errors
from ppl.estimators.protocol import JOINT, Branches
from ppl.estimators.score_function import ScoreFunction
from ppl.site import Site


@dataclasses.dataclass(frozen=True)
class Samples:
    """`count` independent draws, each with the score function and the mean cost of the others as a baseline.

    (Salimans and Knowles 2014; Kool, van Hoof and Welling 2019, eq. 8; Mnih and Rezende 2016.) What depends on the site is
    evaluated `count` times. Sites with the same count are drawn together: draw i of one is a function of draw i of those it
    depends on, so that several sites cost no more than one. Derivatives are of the first order.

    Args:
        count: how many draws, at least two.

    Raises:
        EstimatorError: if `count` is less than two.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.expectation
        ... def mean(rate):
        ...     return 1.0 * ppl.sample("x", dist.Poisson(rate), estimator=ppl.estimators.Samples(4))
        >>> g = mean.grad(jax.random.key(0), 3.0, samples=20_000)
        >>> bool(abs(g - 1.0) < 0.05)
        True
    """

    count: int
    unbiased: bool = dataclasses.field(default=True, init=False)
    coupling = JOINT
    leave_one_out = True

    def __post_init__(self) -> None:
        if self.count < 2:
            raise errors.EstimatorError(f"Samples needs at least 2 draws, got {self.count}; for one, use ScoreFunction()")

    @property
    def axis(self) -> Hashable:
        return ("samples", self.count)

    def refuses(self, distribution: Any, site: Site) -> str | None:
        return ScoreFunction().refuses(distribution, site)

    def branches(self, distribution: Any) -> int:
        return self.count

    def particle(self, key: Any, distribution: Any) -> Branches:
        values = jax.lax.stop_gradient(distribution.sample(key, (self.count,)))
        log_p = distribution.log_prob(values)
        score = log_p - jax.lax.stop_gradient(log_p)
        return Branches(values, (1.0 + score) / self.count)
