"""Gradient estimators. Each replaces a draw from `d(theta)` by a weighted value whose gradient is unbiased.

The protocol is `Estimator`; a file a family.
"""

from ppl.estimators.accept_reject import AcceptReject
from ppl.estimators.arm import ARM
from ppl.estimators.baselines import Learned, LeaveOneOut, MovingAverage, Vimco
from ppl.estimators.biased import GumbelSoftmax, Relaxation, StraightThrough
from ppl.estimators.choose import pathwise_choice
from ppl.estimators.disarm import DisARM
from ppl.estimators.enumerate import Enumerate, support_size
from ppl.estimators.ignore import Ignore
from ppl.estimators.importance import ImportanceSampling
from ppl.estimators.local_expectation import LocalExpectation
from ppl.estimators.measure_valued import MeasureValued
from ppl.estimators.one_element import OneElement
from ppl.estimators.protocol import Branches, Estimator, Particle
from ppl.estimators.reparameterize import Reparameterize
from ppl.estimators.samples import Samples
from ppl.estimators.score_function import ScoreFunction

__all__ = [
    "ARM",
    "AcceptReject",
    "Branches",
    "DisARM",
    "Enumerate",
    "Estimator",
    "GumbelSoftmax",
    "Ignore",
    "ImportanceSampling",
    "Learned",
    "LeaveOneOut",
    "LocalExpectation",
    "MeasureValued",
    "MovingAverage",
    "OneElement",
    "Particle",
    "Relaxation",
    "Reparameterize",
    "Samples",
    "ScoreFunction",
    "StraightThrough",
    "Vimco",
    "pathwise_choice",
    "support_size",
]
