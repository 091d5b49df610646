"""Pathwise gradients: the value is a differentiable function of noise and parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist

from ppl.densities import sample
from ppl.estimators.antithetic import mirrored, symmetric
from ppl.estimators.protocol import JOINT, SINGLE, Branches, OneValue, Particle
from ppl.site import Site

# Pathwise derivatives through NumPyro's samplers, explicit or implicit, that have been compared with exact gradients
# (tests/test_pathwise.py). `has_rsample` alone does not say: mixtures drop the gradient of their weights.
_PATHWISE = """
Normal Gamma Beta BetaProportion Dirichlet InverseGamma Chi2 StudentT MultivariateStudentT Weibull Kumaraswamy
Gompertz Laplace AsymmetricLaplace Logistic Gumbel Cauchy HalfCauchy HalfNormal LogNormal LogUniform Exponential LKJ
LKJCholesky MultivariateNormal LowRankMultivariateNormal MatrixNormal GaussianRandomWalk Uniform Pareto
RelaxedBernoulli RelaxedBernoulliLogits RelaxedOneHotCategoricalProbs RelaxedOneHotCategoricalLogits
LeftTruncatedDistribution RightTruncatedDistribution TwoSidedTruncatedDistribution
"""
PATHWISE = frozenset(_PATHWISE.split())


def pathwise(distribution: Any) -> bool:
    """Whether draws of the distribution have right pathwise derivatives in all of its parameters."""
    if isinstance(distribution, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        return pathwise(distribution.base_dist)
    kind = type(distribution)
    if kind.__name__ in PATHWISE or kind is dist.Delta:
        return not hasattr(distribution, "base_dist") or kind.__name__ not in TRUNCATED or pathwise(distribution.base_dist)
    if kind is dist.TransformedDistribution:
        return pathwise(distribution.base_dist)
    if kind.__module__.startswith("numpyro."):
        return False
    return bool(distribution.has_rsample)


TRUNCATED = ("LeftTruncatedDistribution", "RightTruncatedDistribution", "TwoSidedTruncatedDistribution")


@dataclasses.dataclass(frozen=True)
class Reparameterize(OneValue):
    """`x = g(noise, theta)`, weight one (Kingma and Welling 2014; implicitly, Figurnov et al. 2018).

    Unbiased where the rest of the objective is continuous in the value.

    Args:
        antithetic: evaluate the noise and its mirror image and take the mean (Hammersley and Morton 1956), for distributions
            that are symmetric about a location and for transforms of these. All such sites are mirrored together: two
            branches, however many they are. What is linear in the noise cancels.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.expectation
        ... def double(mean):
        ...     return 2.0 * ppl.sample("x", dist.Normal(mean, 1.0), estimator=ppl.estimators.Reparameterize())
        >>> float(double.grad(jax.random.key(0), 3.0))
        2.0
    """

    antithetic: bool = False
    unbiased: bool = dataclasses.field(default=True, init=False)

    @property
    def coupling(self) -> str:  # type: ignore[override]
        return JOINT if self.antithetic else SINGLE

    @property
    def axis(self) -> Hashable | None:  # type: ignore[override]
        return ("antithetic", 2) if self.antithetic else None

    @property
    def weighted(self) -> bool:  # type: ignore[override]
        return self.antithetic

    def branches(self, distribution: Any) -> int:
        return 2 if self.antithetic else 1

    def refuses(self, distribution: Any, site: Site) -> str | None:
        if pathwise(distribution):
            if self.antithetic and not symmetric(distribution):
                return f"{site.distribution_name} is not symmetric about a location, nor a transform of what is"
            return None
        return f"draws of {site.distribution_name} have no right pathwise derivative in all of its parameters"

    def particle(self, key: Any, distribution: Any) -> Particle | Branches:
        if self.antithetic:
            values = mirrored(distribution, key)
            return Branches(values, jnp.full((2, *distribution.batch_shape), 0.5, jnp.result_type(float)))
        return Particle(sample(distribution, key))
