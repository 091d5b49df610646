"""The table of distributions whose draws are differentiated pathwise, established against quadrature and score functions.

Each case is a function theta -> distribution that moves all parameters; the cost is cos(x) + x/4 summed over the event.
"""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import ppl.distributions as ppl_dist
from ppl.estimators import Reparameterize, ScoreFunction
from ppl.estimators.reparameterize import PATHWISE, pathwise

N = 10_000
BOUND = 4.5  # over about 50 comparisons: a false alarm in 3,000 runs


def cost(x):
    return jnp.cos(x) + 0.25 * x


# name: (distribution of theta, bounds of integration, of theta where the support moves); theta = 0.3 throughout
SCALAR = {
    "Normal": (lambda t: dist.Normal(t, jnp.exp(t)), (-14.0, 14.0)),
    "Gamma": (lambda t: dist.Gamma(1.5 + t, jnp.exp(t)), (1e-6, 30.0)),
    "Beta": (lambda t: dist.Beta(1.5 + t, 2.0 - t), (1e-6, 1 - 1e-6)),
    "BetaProportion": (lambda t: dist.BetaProportion(0.4 + 0.3 * t, 4.0 + t), (1e-6, 1 - 1e-6)),
    "InverseGamma": (lambda t: dist.InverseGamma(6.0 + t, 4.0 * jnp.exp(t)), (1e-3, 60.0)),
    "Chi2": (lambda t: dist.Chi2(3.0 + t), (1e-6, 60.0)),
    "StudentT": (lambda t: dist.StudentT(8.0 + t, t, jnp.exp(t)), (-200.0, 200.0)),
    "Weibull": (lambda t: dist.Weibull(jnp.exp(t), 2.0 + t), (1e-6, 15.0)),
    "Kumaraswamy": (lambda t: dist.Kumaraswamy(1.5 + t, 2.0 - t), (1e-6, 1 - 1e-6)),
    "Gompertz": (lambda t: dist.Gompertz(jnp.exp(t), 1.0 + t), (1e-6, 15.0)),
    "Laplace": (lambda t: dist.Laplace(t, jnp.exp(t)), (-40.0, 40.0)),
    "AsymmetricLaplace": (lambda t: dist.AsymmetricLaplace(t, jnp.exp(t), 1.0 + t), (-60.0, 60.0)),
    "Logistic": (lambda t: dist.Logistic(t, jnp.exp(0.5 * t)), (-50.0, 50.0)),
    "Gumbel": (lambda t: dist.Gumbel(t, jnp.exp(0.5 * t)), (-10.0, 50.0)),
    "HalfNormal": (lambda t: dist.HalfNormal(jnp.exp(t)), (0.0, 20.0)),
    "LogNormal": (lambda t: dist.LogNormal(t, 0.4 * jnp.exp(t)), (1e-6, 60.0)),
    "LogUniform": (lambda t: dist.LogUniform(jnp.exp(t), 3.0 * jnp.exp(t)), lambda t: (np.exp(t), 3 * np.exp(t))),
    "Exponential": (lambda t: dist.Exponential(jnp.exp(t)), (0.0, 40.0)),
    "Uniform": (lambda t: dist.Uniform(t, 2.0 + 2 * t), lambda t: (t, 2.0 + 2 * t)),
    "Pareto": (lambda t: dist.Pareto(jnp.exp(t), 8.0 + t), lambda t: (np.exp(t) * (1 + 1e-9), 60.0)),
    "RelaxedBernoulli": (lambda t: dist.RelaxedBernoulli(1.5, logits=t), (1e-6, 1 - 1e-6)),
    "TwoSidedTruncatedDistribution": (
        lambda t: dist.TruncatedNormal(t, jnp.exp(t), low=-1.0 + t, high=2.0 + t),
        lambda t: (-1.0 + t, 2.0 + t),
    ),
    "LeftTruncatedDistribution": (lambda t: dist.TruncatedNormal(t, jnp.exp(t), low=-1.0 + t), lambda t: (-1.0 + t, 20.0)),
    "RightTruncatedDistribution": (lambda t: dist.TruncatedNormal(t, jnp.exp(t), high=2.0 + t), lambda t: (-20.0, 2.0 + t)),
    "left-truncated Cauchy": (
        lambda t: dist.TruncatedCauchy(t, jnp.exp(t), low=-1.0 + t, high=2.0 - t),
        lambda t: (-1.0 + t, 2.0 - t),
    ),
}
HEAVY = {  # no mean: a bounded cost
    "Cauchy": (lambda t: dist.Cauchy(t, jnp.exp(t)), 1.0),
    "HalfCauchy": (lambda t: dist.HalfCauchy(jnp.exp(t)), 0.5),
}
MULTIVARIATE = {
    "Dirichlet": lambda t: dist.Dirichlet(jnp.array([1.5 + t, 2.0, 1.0 - t])),
    "MultivariateNormal": lambda t: dist.MultivariateNormal(
        jnp.array([t, 0.0]), scale_tril=jnp.array([[jnp.exp(t), 0.0], [t, 1.0]])
    ),
    "LowRankMultivariateNormal": lambda t: dist.LowRankMultivariateNormal(
        jnp.array([t, 0.0]), jnp.array([[jnp.exp(t)], [t]]), jnp.array([1.0, jnp.exp(t)])
    ),
    "MultivariateStudentT": lambda t: dist.MultivariateStudentT(
        9.0 + t, jnp.array([t, 0.0]), jnp.array([[jnp.exp(t), 0.0], [t, 1.0]])
    ),
    "MatrixNormal": lambda t: dist.MatrixNormal(
        t * jnp.ones((2, 2)), jnp.array([[jnp.exp(t), 0.0], [t, 1.0]]), jnp.array([[1.0, 0.0], [t, jnp.exp(t)]])
    ),
    "GaussianRandomWalk": lambda t: dist.GaussianRandomWalk(jnp.exp(t), num_steps=3),
    "LKJ": lambda t: dist.LKJ(3, 1.5 + t),
    "LKJCholesky": lambda t: dist.LKJCholesky(3, 1.5 + t),
    "RelaxedOneHotCategoricalLogits": lambda t: ppl_dist.RelaxedOneHotCategorical(
        0.8 * jnp.exp(t), logits=jnp.array([t, 0.0, -t])
    ),
    "RelaxedOneHotCategoricalProbs": lambda t: ppl_dist.RelaxedOneHotCategorical(
        0.8 * jnp.exp(t), probs=jax.nn.softmax(jnp.array([2 * t, 0.0, 0.3]))
    ),
    "VonMisesFisher": lambda t: ppl_dist.VonMisesFisher(
        jnp.array([jnp.sin(t), jnp.cos(t) * 0.6, jnp.cos(t) * 0.8]), 3.0 * jnp.exp(t)
    ),
}
THETA = 0.3


def pathwise_gradients(make, cost):
    assert Reparameterize().refuses(make(THETA), None) is None

    def value(theta, key):
        return jnp.sum(cost(Reparameterize().particle(key, make(theta)).value))

    return np.asarray(jax.jit(jax.vmap(jax.grad(value), (None, 0)))(THETA, jax.random.split(jax.random.key(1), N)), float)


def z_score(draws, exact):
    return (draws.mean() - exact) / (draws.std() / np.sqrt(len(draws)))


def quadrature(make, bounds):
    """d/dtheta of the expected cost: central differences of Gauss-Legendre integrals in double precision."""
    nodes, weights = np.polynomial.legendre.leggauss(2000)

    def expected(theta):
        distribution = make(theta)
        low, high = bounds(float(theta)) if callable(bounds) else bounds
        # cubic spacing: dense at the lower end, where densities may have a singularity
        u = (nodes + 1) / 2
        x = low + (high - low) * u**3
        jacobian = (high - low) * 3 * u**2 / 2
        density = np.exp(np.asarray(distribution.log_prob(jnp.asarray(x))))
        return np.sum(weights * jacobian * density * np.asarray(cost(x)))

    with jax.enable_x64(True):
        step = 1e-4
        return (expected(jnp.float64(THETA + step)) - expected(jnp.float64(THETA - step))) / (2 * step)


@pytest.mark.parametrize("name", SCALAR)
def test_against_quadrature(name):
    make, bounds = SCALAR[name]
    exact = quadrature(make, bounds)
    assert abs(exact) > 0.02  # otherwise the comparison says little
    assert abs(z_score(pathwise_gradients(make, cost), exact)) < BOUND


@pytest.mark.parametrize("name", HEAVY)
def test_heavy_tails_with_a_bounded_cost(name):
    """E[cos x] of a Cauchy is exp(-scale) cos(loc); of the half Cauchy the gradient comes from the score function."""
    make, _ = HEAVY[name]
    ours = pathwise_gradients(make, jnp.cos if name == "Cauchy" else lambda x: 1.0 / (1.0 + x))
    if name == "Cauchy":
        exact = float(jax.grad(lambda t: jnp.exp(-jnp.exp(t)) * jnp.cos(t))(THETA))
        assert abs(z_score(ours, exact)) < BOUND
    else:
        score = score_gradients(make, lambda x: 1.0 / (1.0 + x))
        assert abs(z_difference(ours, score)) < BOUND


def score_gradients(make, cost):
    def value(theta, key):
        particle = ScoreFunction().particle(key, make(theta))
        return jnp.sum(cost(particle.value)) * jnp.exp(jnp.sum(particle.log_weight))

    return np.asarray(jax.jit(jax.vmap(jax.grad(value), (None, 0)))(THETA, jax.random.split(jax.random.key(2), N)), float)


def z_difference(a, b):
    return (a.mean() - b.mean()) / np.sqrt((a.var() + b.var()) / N)


@pytest.mark.parametrize("name", MULTIVARIATE)
def test_multivariate_against_the_score_function(name):
    make = MULTIVARIATE[name]

    shift = 0.0

    def of_event(x):
        # The last off-diagonal or first elements alone, less their mean: what a score function can resolve.
        part = x[-1, 0] if x.ndim == 2 else x[0]
        return part**2 + part - shift

    shift = jnp.mean(jax.vmap(of_event)(make(THETA).sample(jax.random.key(3), (N,))))
    ours, score = pathwise_gradients(make, of_event), score_gradients(make, of_event)
    spread = np.sqrt((ours.var() + score.var()) / N)
    assert abs(ours.mean()) > 6 * spread  # the gradient is not lost in the noise
    assert abs(z_difference(ours, score)) < BOUND


def test_the_table_has_nothing_untested():
    tested = set(SCALAR) | set(HEAVY) | set(MULTIVARIATE) | {"RelaxedBernoulliLogits"}
    assert tested >= PATHWISE


def test_what_is_wrong_in_numpyro_is_not_pathwise():
    mixture = dist.MixtureSameFamily(dist.Categorical(probs=jnp.ones(2) / 2), dist.Normal(jnp.zeros(2), 1.0))
    skewed = dist.SineSkewed(dist.VonMises(0.0, 1.0).expand([1]).to_event(1), jnp.array([0.3]))
    for distribution in (mixture, mixture.expand([3]).to_event(1), dist.VonMises(0.0, 1.0), skewed, dist.Poisson(1.0)):
        assert not pathwise(distribution)
    for distribution in (dist.Normal(0.0, 1.0).expand([2]).to_event(1), dist.Delta(0.0)):
        assert pathwise(distribution)
