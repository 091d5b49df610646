"""Gradient estimators. Each replaces a draw from `d(theta)` by a weighted value whose gradient is unbiased.

The protocol is `Estimator`; a file a family; `choose` picks one where the user names none.
"""

from ppl.estimators.choose import choose
from ppl.estimators.protocol import Branches, Estimator, Particle
from ppl.estimators.reparameterize import Reparameterize
from ppl.estimators.score_function import ScoreFunction

__all__ = ["Branches", "Estimator", "Particle", "Reparameterize", "ScoreFunction", "choose"]
