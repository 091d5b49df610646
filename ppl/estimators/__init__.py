"""Gradient estimators. Each replaces a draw from `d(theta)` by a weighted value whose gradient is unbiased.

The protocol is `Estimator`; a file a family.
"""

from ppl.estimators.choose import pathwise_choice
from ppl.estimators.enumerate import Enumerate, support_size
from ppl.estimators.ignore import Ignore
from ppl.estimators.protocol import Branches, Estimator, Particle
from ppl.estimators.reparameterize import Reparameterize
from ppl.estimators.score_function import ScoreFunction

__all__ = [
    "Branches",
    "Enumerate",
    "Estimator",
    "Ignore",
    "Particle",
    "Reparameterize",
    "ScoreFunction",
    "pathwise_choice",
    "support_size",
]
