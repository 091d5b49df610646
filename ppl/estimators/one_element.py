"""One random element branches, in place of one element after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any

from ppl import errors
from ppl.estimators.protocol import EACH, JOINT, Branches, Estimator, specialized
from ppl.site import Site


@dataclasses.dataclass(frozen=True)
class OneElement:
    """Of the elements that would branch one by one, one does, chosen at random, with its gradient times their number.

    For `MeasureValued`, `LocalExpectation`, and estimators like them, inside loops and in large plates of coupled elements: the
    cost is that of one element, the variance grows with their number. Elements that branch together anyhow are not affected.
    Derivatives are of the first order.

    Args:
        estimator: what the chosen element branches by.

    Raises:
        EstimatorError: if the estimator's branches are not alternatives to a draw.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> from ppl.estimators import LocalExpectation, OneElement
        >>> @ppl.expectation
        ... def third_moment(p):
        ...     coins = ppl.sample("x", dist.Bernoulli(probs=p).expand([5]), estimator=OneElement(LocalExpectation()))
        ...     return 1.0 * coins.sum() ** 3
        >>> g = third_moment.grad(jax.random.key(0), 0.5, samples=20_000)  # exactly 110
        >>> bool(abs(g - 110.0) < 3.0)
        True
    """

    estimator: Estimator
    one_element = True

    def __post_init__(self) -> None:
        inner = self.estimator
        if inner.coupling not in (EACH, JOINT) or inner.axis is not None:
            raise errors.EstimatorError(
                f"OneElement cannot hold {type(inner).__name__}, whose branches are no alternatives to a draw.\n"
                "It can hold MeasureValued(), LocalExpectation(), DisARM() and ARM()."
            )

    @property
    def unbiased(self) -> bool:
        return self.estimator.unbiased

    @property
    def coupling(self) -> str:
        return self.estimator.coupling

    @property
    def axis(self) -> Hashable | None:
        return None

    def refuses(self, distribution: Any, site: Site) -> str | None:
        return self.estimator.refuses(distribution, site)

    def specialize(self, distribution: Any) -> OneElement:
        return OneElement(specialized(self.estimator, distribution))

    def branches(self, distribution: Any) -> int:
        return self.estimator.branches(distribution)

    def particle(self, key: Any, distribution: Any) -> Branches:
        particle = self.estimator.particle(key, distribution)
        assert isinstance(particle, Branches)
        return particle
