"""Gradient estimators. Each replaces a draw from `d(theta)` by a weighted value whose gradient is unbiased.

The protocol is `Estimator`; a file a family.
"""

from ppl.estimators.arm import ARM
from ppl.estimators.baselines import Learned, LeaveOneOut, MovingAverage, Vimco
from ppl.estimators.choose import pathwise_choice
from ppl.estimators.disarm import DisARM
from ppl.estimators.enumerate import Enumerate, support_size
from ppl.estimators.local_expectation import LocalExpectation
from ppl.estimators.measure_valued import MeasureValued
from ppl.estimators.one_element import OneElement
from ppl.estimators.protocol import Branches, Estimator, Particle
from ppl.estimators.reparameterize import Reparameterize
from ppl.estimators.samples import Samples
from ppl.estimators.score_function import ScoreFunction

__all__ = [
    "ARM",
    "Branches",
    "DisARM",
    "Enumerate",
    "Estimator",
    "Learned",
    "LeaveOneOut",
    "LocalExpectation",
    "MeasureValued",
    "MovingAverage",
    "OneElement",
    "Particle",
    "Reparameterize",
    "Samples",
    "ScoreFunction",
    "Vimco",
    "pathwise_choice",
    "support_size",
]
