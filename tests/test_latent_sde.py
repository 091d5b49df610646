"""Latent SDEs: Girsanov weights against the closed forms of linear equations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import multivariate_normal

import ppl
import ppl.distributions as dist
from ppl.transport import sde_path
from tests.objective_models import BOUND, KEY, z_scores

THETA, SIGMA, NOISE, START = 0.7, 0.8, 0.3, 1.2
TIMES = np.array([0.13, 0.2, 0.71, 1.5, 1.58])
OBSERVED = jnp.array([1.0, 1.3, 0.4, -0.2, 0.1])
DRAWS = 20_000


def prior(t, x):
    return -THETA * x


def diffusion(t, x):
    return jnp.full_like(x, SIGMA)


def linear(pull, push):
    """A posterior drift: `-pull x + push`."""
    return lambda t, x: -pull * x + push


def drawn(drift, step):
    return sde_path("noise", jnp.array([START]), drift, diffusion, TIMES, step=step, prior=prior)


def stops(step):
    """Where a solver with steps of at most `step` stops."""
    edges = np.append(0.0, TIMES)
    grid = [np.linspace(a, b, 1 + int(np.ceil(round((b - a) / step, 9))))[1:] for a, b in itertools.pairwise(edges)]
    return np.concatenate([[0.0], *grid])


def exact_divergence(pull, push, step):
    """`1/2 sum h E[u^2]`, from the moments of the path."""
    mean, variance, total = START, 0.0, 0.0
    for h in np.diff(stops(step)):
        c = (THETA - pull) / SIGMA
        total += 0.5 * h * (c**2 * (variance + mean**2) + 2 * c * push / SIGMA * mean + (push / SIGMA) ** 2)
        mean, variance = mean + h * (push - pull * mean), (1 - pull * h) ** 2 * variance + SIGMA**2 * h
    return total


def exact_evidence(step):
    """The series is jointly Gaussian: `y = START decay + (Brownian increments) @ weights + noise`."""
    grid = stops(step)
    h, places = np.diff(grid), np.searchsorted(grid, TIMES - 1e-9)
    decay = np.concatenate([[1.0], np.cumprod(1 - THETA * h)])
    weights = np.array([[decay[k] / decay[j + 1] * (j < k) for j in range(len(h))] for k in places])
    covariance = (weights * SIGMA**2 * h) @ weights.T + NOISE**2 * np.eye(len(TIMES))
    return multivariate_normal(START * decay[places], covariance).logpdf(np.asarray(OBSERVED))


def test_kl_and_weights_are_exact_at_every_step_size():
    @jax.jit
    @jax.vmap
    def draw(key):
        found = {}
        for step in (0.05, 0.6):
            path = ppl.seed(lambda step=step: drawn(linear(1.6, 0.4), step))(key)
            found[step] = path.kl, path.log_ratio, dist.Normal(path.states[:, 0], NOISE).log_prob(OBSERVED).sum()
        return found

    for step, (kl, log_ratio, log_likelihood) in draw(jax.random.split(KEY, DRAWS)).items():
        assert abs(z_scores(kl, exact_divergence(1.6, 0.4, step))) < BOUND
        assert abs(z_scores(-np.asarray(log_ratio), exact_divergence(1.6, 0.4, step))) < BOUND
        assert abs(z_scores(np.exp(log_ratio), 1.0)) < BOUND
        assert abs(z_scores(np.exp(log_ratio + log_likelihood - exact_evidence(step)), 1.0)) < BOUND
        assert np.mean(log_likelihood - kl) < exact_evidence(step) - 0.3
    # The limit of small steps, by the moments of the continuous path: mean 1/4 + .95 exp(-1.6 t), variance .2 (1 - exp(-3.2
    # t)).
    t = np.linspace(0, TIMES[-1], 20_001)
    mean, variance = 0.25 + 0.95 * np.exp(-1.6 * t), SIGMA**2 / 3.2 * (1 - np.exp(-3.2 * t))
    rate = 0.5 * (0.81 * (variance + mean**2) - 0.72 * mean + 0.16) / SIGMA**2
    assert exact_divergence(1.6, 0.4, 0.001) == pytest.approx(np.trapezoid(rate, t), rel=2e-3)


def test_a_series_is_fitted_up_to_its_evidence():
    """A linear drift with coefficients that vary in time nearly contains the posterior: most that the ELBO lacks is gained."""
    knots = np.linspace(0.0, TIMES[-1], 25)

    @ppl.expectation
    def elbo(coefficients):
        def drift(t, x):
            pull, push = (jnp.interp(t, knots, row) for row in coefficients)
            return -pull * x + push

        path = drawn(drift, 0.1)
        return dist.Normal(path.states[:, 0], NOISE).log_prob(OBSERVED).sum() - path.kl

    start = jnp.stack([jnp.full(25, THETA), jnp.zeros(25)])
    optimizer = optax.adam(optax.cosine_decay_schedule(0.2, 150))
    fit = ppl.maximize(elbo, start, KEY, optimizer=optimizer, steps=150, samples=16, progress=False)
    evidence = exact_evidence(0.1)
    estimates = jax.jit(jax.vmap(elbo.estimate, in_axes=(0, None)))
    before, after = (np.asarray(estimates(jax.random.split(KEY, 2000), p)) for p in (start, fit.params))
    assert before.mean() < evidence - 1.0
    assert evidence - 0.25 * (evidence - before.mean()) < after.mean() < evidence + 4 * after.std() / 2000**0.5


def test_mistakes_are_named():
    for times, match in (
        ([0.3, 0.2], r"increase from start_time=0.0, got \[0.3 0.2\]"),
        ([-1.0, 1.0], "increase"),
        ([], "increase"),
    ):
        with pytest.raises(ppl.errors.ValueShapeError, match=match):
            ppl.seed(lambda t=times: sde_path("n", jnp.ones(1), prior, diffusion, t, step=0.1))(KEY)
    with pytest.raises(ppl.errors.ValueShapeError, match="an SDE starts at a vector, got shape \\(\\)"):
        ppl.seed(lambda: sde_path("n", 1.0, prior, diffusion, [1.0], step=0.1))(KEY)
