"""What an estimator is: a weighted value in place of a draw."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from ppl.site import Site


class Particle(NamedTuple):
    """A value and the log of its weight for each independent element (`None`: weight one).

    The contract: under automatic differentiation, the value and the gradient of `exp(sum(log_weight)) * k(value)` are unbiased
    for those of `E[k(X)]`, X ~ d(theta), for every function k.
    """

    value: Any
    log_weight: Any = None


class Estimator(Protocol):
    """A gradient estimator. Any object with these members is one."""

    @property
    def unbiased(self) -> bool:
        """Whether the contract of `Particle` holds exactly."""
        ...

    @property
    def weighted(self) -> bool:
        """Whether `particle` returns weights."""
        ...

    def refuses(self, distribution: Any, site: Site) -> str | None:
        """Why it cannot serve a distribution; None if it can."""
        ...

    def particle(self, key: Any, distribution: Any) -> Particle:
        """Draw. `log_weight` has the distribution's `batch_shape`."""
        ...
