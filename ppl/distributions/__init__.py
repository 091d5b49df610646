"""NumPyro's distributions, under one name with the project's own."""

import numpyro.distributions as _dist
from numpyro.distributions import *  # noqa: F403
from numpyro.distributions import constraints, transforms

from ppl.distributions.corrected import Bernoulli, BernoulliLogits, Binomial, BinomialLogits, corrected
from ppl.distributions.one_hot import (
    OneHotCategorical,
    OneHotCategoricalLogits,
    OneHotCategoricalProbs,
    RelaxedOneHotCategorical,
    RelaxedOneHotCategoricalLogits,
    RelaxedOneHotCategoricalProbs,
)
from ppl.distributions.von_mises_fisher import VonMisesFisher

__all__ = [
    *(name for name in _dist.__all__ if name not in ("Bernoulli", "BernoulliLogits", "Binomial", "BinomialLogits")),
    "Bernoulli",
    "BernoulliLogits",
    "Binomial",
    "BinomialLogits",
    "OneHotCategorical",
    "OneHotCategoricalLogits",
    "OneHotCategoricalProbs",
    "RelaxedOneHotCategorical",
    "RelaxedOneHotCategoricalLogits",
    "RelaxedOneHotCategoricalProbs",
    "VonMisesFisher",
    "constraints",
    "corrected",
    "transforms",
]
