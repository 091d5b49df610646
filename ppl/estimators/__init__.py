"""Gradient estimators. Each replaces a draw from `d(theta)` by a weighted value whose gradient is unbiased.

The protocol is `Estimator`; a file a family.
"""

from ppl.estimators.accept_reject import AcceptReject
from ppl.estimators.biased import GumbelSoftmax, Relaxation, StraightThrough
from ppl.estimators.choose import pathwise_choice
from ppl.estimators.enumerate import Enumerate, support_size
from ppl.estimators.importance import ImportanceSampling
from ppl.estimators.protocol import Branches, Estimator, Particle
from ppl.estimators.reparameterize import Reparameterize
from ppl.estimators.score_function import ScoreFunction

__all__ = [
    "AcceptReject",
    "Branches",
    "Enumerate",
    "Estimator",
    "GumbelSoftmax",
    "ImportanceSampling",
    "Particle",
    "Relaxation",
    "Reparameterize",
    "ScoreFunction",
    "StraightThrough",
    "pathwise_choice",
    "support_size",
]
