"""The estimator of a site for which the user names none, where its distribution alone decides."""

from __future__ import annotations

from typing import Any

from ppl.estimators.protocol import Estimator
from ppl.estimators.reparameterize import Reparameterize, pathwise


def pathwise_choice(distribution: Any) -> Estimator | None:
    """Reparameterize, where draws have right pathwise derivatives."""
    return Reparameterize() if pathwise(distribution) else None
