"""Contracts of estimated densities, and the bounds that families with them give, against exact values by z-scores."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import ppl
import ppl.distributions as dist
from ppl.estimators import ScoreFunction

KEY = jax.random.key(11)
N = 20_000
BOUND = 4.5  # |z| of every comparison; 1e-5 of a false alarm each, over about 60 of them


def z_score(draws, exact):
    draws = np.asarray(draws, float)
    return np.abs((draws.mean(0) - exact) / (draws.std(0) / np.sqrt(len(draws)) + 1e-6 * (1.0 + np.abs(exact)))).max()


def estimates(function, n=N):
    return jax.jit(jax.vmap(function))(jax.random.split(KEY, n))


# What is integrated by sampling.


@ppl.program
def shifted():  # x ~ Normal(0, sqrt(1.09))
    u = ppl.sample("u", dist.Normal(0.0, 0.3))
    ppl.sample("x", dist.Normal(u, 1.0))


@ppl.program
def reverse(mean=0.1, scale=0.4):
    ppl.sample("u", dist.Normal(mean, scale))


@ppl.program
def twice_shifted():  # x ~ Normal(0.2, sqrt(1.25))
    v = ppl.sample("v", dist.Normal(0.2, 0.4))
    u = ppl.sample("u", dist.Normal(v, 0.3))
    ppl.sample("x", dist.Normal(u, 1.0))


@ppl.program
def wide(mean=0.0):
    ppl.sample("v", dist.Normal(mean, 0.5))


@ppl.program
def hierarchical_reverse():  # u ~ Normal(0.1, 0.5), itself a marginal
    w = ppl.sample("w", dist.Normal(0.1, 0.3))
    ppl.sample("u", dist.Normal(w, 0.4))


@ppl.program
def guess():
    ppl.sample("w", dist.Normal(0.0, 0.4))


def by_x(trace):
    return reverse(0.1 * trace["x"], 0.35)


def inner_marginal():
    return ppl.marginal(twice_shifted(), keep=("u", "x"), proposal=lambda t: wide(0.6 * t["u"]), particles=2)


@ppl.program
def lanes():
    ppl.plate("points", lambda _: ppl.sample("sub", ppl.marginal(shifted(), keep="x", proposal=reverse(), particles=2)))(
        jnp.arange(2)
    )


@ppl.program
def scanned():
    def step(before, _):
        @ppl.program
        def moved():
            u = ppl.sample("u", dist.Normal(before, 0.3))
            ppl.sample("x", dist.Normal(u, 1.0))

        x = ppl.sample("sub", ppl.marginal(moved(), keep="x", proposal=lambda t: reverse(t["x"] / 2, 0.5), particles=2))["x"]
        return x, None

    jax.lax.scan(step, 0.0, None, length=2)


NEARLY = np.sqrt(1.09)
CASES = {
    "one particle": (ppl.marginal(shifted(), "x", proposal=reverse()), {"x": 0.5}, [(0.0, NEARLY)]),
    "three, by x": (ppl.marginal(shifted(), "x", proposal=by_x, particles=3), {"x": 0.5}, [(0.0, NEARLY)]),
    "in a marginal": (
        ppl.marginal(inner_marginal(), "x", proposal=reverse(), particles=2),
        {"x": 0.5},
        [(0.2, np.sqrt(1.25))],
    ),
    "proposed by one": (
        ppl.marginal(shifted(), "x", proposal=ppl.marginal(hierarchical_reverse(), "u", proposal=guess(), particles=2)),
        {"x": 0.5},
        [(0.0, NEARLY)],
    ),
    "vmap": (lanes(), {"sub": {"x": jnp.array([0.5, -1.0])}}, [(0.0, NEARLY)] * 2),
    "scan": (scanned(), {"sub": {"x": jnp.array([0.5, -1.0])}}, [(0.0, NEARLY), (0.5, NEARLY)]),
}


@pytest.mark.parametrize("name", CASES)
def test_contracts(name):
    """E[w] = p(x) where x is scored; E[1/w | x] = 1/p(x) where it is drawn, so that E[g(x)/w] is the integral of g."""
    program, trace, normals = CASES[name]
    log_w = estimates(lambda key: ppl.seed(lambda: program.log_density(trace))(key))
    x = jnp.ravel(jax.tree.leaves(trace)[0])
    exact = np.prod([scipy.stats.norm.pdf(value, *normal) for value, normal in zip(x, normals, strict=True)])
    assert z_score(jnp.exp(log_w), exact) < BOUND
    assert np.std(log_w) > 0.01
    drawn, log_w = estimates(program.simulate)
    xs = jnp.reshape(jax.tree.leaves(drawn)[0], (N, -1))
    for mean in (-0.5, 0.7):
        log_g = dist.Normal(mean, 0.6).log_prob(xs).sum(-1)
        assert z_score(jnp.exp(log_g - log_w), 1.0) < BOUND


def test_the_density_that_another_library_gets_wrong():
    with jax.enable_x64(True):
        exact = float(ppl.marginal(shifted(), keep="x", nodes=30).log_density({"x": 0.5}))
    assert exact == pytest.approx(scipy.stats.norm.logpdf(0.5, 0.0, NEARLY), abs=1e-9)
    assert np.exp(exact) == pytest.approx(0.3407, abs=1e-4)


# Bounds: a Gaussian target, u ~ N(a, .6), x ~ N(u, .5), r(u | x) = N(.4 x, .7).

THETA = jnp.array([0.3, -0.6])


@ppl.program
def target():
    ppl.sample("x", dist.Normal(1.0, 0.8))


@ppl.program
def family(theta):
    u = ppl.sample("u", dist.Normal(theta[0], 0.6))
    ppl.sample("x", dist.Normal(u, jnp.exp(theta[1])))


@ppl.program
def back(trace):
    ppl.sample("u", dist.Normal(0.4 * trace["x"], 0.7))


def hierarchical(theta, particles):
    return ppl.marginal(family(theta), keep="x", proposal=back, particles=particles)


@ppl.expectation
def hvi(theta):
    return ppl.objectives.hvi(target(), family(theta), "x", back)


@ppl.expectation
def iwhvi(theta, particles=2):
    return ppl.objectives.iwhvi(target(), family(theta), "x", back, particles)


@ppl.expectation
def diwhvi(theta):
    return ppl.objectives.diwhvi(target(), family(theta), "x", back, particles=1, outer=2)


def quadrature(function, dimensions, nodes=20):
    """The expectation of a function of independent standard normals."""
    t, w = np.polynomial.hermite_e.hermegauss(nodes)
    grid = jnp.stack(jnp.meshgrid(*[t] * dimensions, indexing="ij"), -1).reshape(-1, dimensions)
    weights = jnp.asarray(np.prod(np.stack(np.meshgrid(*[w / w.sum()] * dimensions, indexing="ij"), -1), -1).ravel())
    return lambda theta: weights @ jax.vmap(lambda e: function(theta, e))(grid)


def _draw(theta, e):
    u = theta[0] + 0.6 * e[0]
    return u, u + jnp.exp(theta[1]) * e[1]


def _log_joint(theta, u, x):
    return dist.Normal(theta[0], 0.6).log_prob(u) + dist.Normal(u, jnp.exp(theta[1])).log_prob(x)


def _log_ratio(theta, u, x):
    return _log_joint(theta, u, x) - dist.Normal(0.4 * x, 0.7).log_prob(u)


def _exact_iwhvi(theta, e):
    u, x = _draw(theta, e)
    others = [0.4 * x + 0.7 * noise for noise in e[2:]]
    log_q = jax.nn.logsumexp(jnp.stack([_log_ratio(theta, v, x) for v in (u, *others)])) - jnp.log(1.0 + len(others))
    return dist.Normal(1.0, 0.8).log_prob(x) - log_q


def _exact_diwhvi(theta, e):
    return jax.nn.logsumexp(jnp.stack([_exact_iwhvi(theta, e[:2]), _exact_iwhvi(theta, e[2:])])) - jnp.log(2.0)


@pytest.mark.parametrize(
    ("objective", "exact"),
    [(hvi, quadrature(_exact_iwhvi, 2)), (iwhvi, quadrature(_exact_iwhvi, 3)), (diwhvi, quadrature(_exact_diwhvi, 4))],
)
def test_hierarchical_bounds_and_their_gradients(objective, exact):
    values, grads = estimates(lambda key: objective.value_and_grad(key, THETA))
    assert z_score(values, float(exact(THETA))) < BOUND
    assert z_score(grads, np.asarray(jax.grad(exact)(THETA))) < BOUND


def test_more_particles_tighten_the_bound_towards_the_exact_one():
    def bound(particles):
        return np.asarray(estimates(lambda key: iwhvi.estimate(key, THETA, particles)))

    def exact(theta, e):
        x = theta[0] + jnp.sqrt(0.36 + jnp.exp(2 * theta[1])) * e[0]
        log_q = dist.Normal(theta[0], jnp.sqrt(0.36 + jnp.exp(2 * theta[1]))).log_prob(x)
        return dist.Normal(1.0, 0.8).log_prob(x) - log_q

    bounds = [bound(particles) for particles in (1, 4, 64)]
    for looser, tighter in itertools.pairwise(bounds):
        assert (tighter.mean() - looser.mean()) > 4 * np.hypot(looser.std(), tighter.std()) / np.sqrt(N)
    limit = float(quadrature(exact, 1)(THETA))
    assert bounds[1].mean() < limit
    assert abs(bounds[2].mean() - limit) < 0.02


def test_auxiliaries_keep_their_gradient_estimators():
    """The score function of u, which is no choice of the marginal's, gives the same gradient with more variance."""

    @ppl.expectation
    def by_score(theta):
        mixture = ppl.marginal(family(theta).with_estimators(u=ScoreFunction()), keep="x", proposal=back)
        trace, log_q = ppl.simulate(mixture)
        return target().log_density(trace) - log_q

    _, grads = estimates(lambda key: by_score.value_and_grad(key, THETA))
    assert z_score(grads, np.asarray(jax.grad(quadrature(_exact_iwhvi, 2))(THETA))) < BOUND
    _, pathwise = estimates(lambda key: hvi.value_and_grad(key, THETA))
    assert grads.std(0)[0] > 1.5 * pathwise.std(0)[0]
