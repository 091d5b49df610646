"""Many samples in chunks: the same expectations and gradients, in the memory of one chunk (numpyro#1624)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.estimators import LeaveOneOut, MovingAverage, ScoreFunction

KEY = jax.random.key(11)


@ppl.program
def model():
    b = ppl.sample("b", dist.Bernoulli(probs=0.3))
    ppl.sample("y", dist.Normal(2.0 * b, 1.0), obs=1.5)


@ppl.program
def family(phi, estimator=None):
    ppl.sample("b", dist.Bernoulli(logits=phi), estimator=estimator)


@pytest.mark.parametrize("estimator", [None, ScoreFunction()], ids=["enumerate", "score"])
def test_particles_in_chunks_are_unbiased(estimator):
    """Four particles, two at a time: all sixteen outcomes against 40,000 draws."""

    @ppl.expectation
    def objective(phi):
        return ppl.objectives.iwae(model(), family(phi, estimator), ppl.Samples(4, chunk=2))

    def exact(phi):
        log_p = jax.nn.log_sigmoid(jnp.array([-phi, phi]))
        log_joint = jnp.log(jnp.array([0.7, 0.3])) + dist.Normal(jnp.array([0.0, 2.0]), 1.0).log_prob(1.5)
        outcomes = jnp.stack(jnp.meshgrid(*[jnp.arange(2)] * 4), -1).reshape(-1, 4)
        bounds = jax.nn.logsumexp((log_joint - log_p)[outcomes], axis=1) - jnp.log(4.0)
        return jnp.sum(jnp.exp(log_p[outcomes].sum(1)) * bounds)

    keys = jax.random.split(KEY, 40_000)
    values, grads = jax.jit(jax.vmap(objective.value_and_grad, in_axes=(0, None)))(keys, 0.4)
    for draws, expected in zip((values, grads), jax.value_and_grad(exact)(0.4), strict=True):
        assert abs(draws.mean() - expected) < 4.5 * draws.std() / 200 + 1e-5


@ppl.expectation
def moments(phi, estimator=None):
    """Its expectation is 3 sigmoid(phi) + phi + phi**2 + 1."""
    b = ppl.sample("b", dist.Bernoulli(logits=phi), estimator=estimator)
    x = ppl.sample("x", dist.Normal(phi, 1.0))
    return 3.0 * b + x + x**2


@pytest.mark.parametrize(
    "estimator", [None, ScoreFunction(), ScoreFunction(baseline=LeaveOneOut())], ids=["sum", "score", "loo"]
)
def test_samples_in_chunks_are_unbiased(estimator):
    """Ten thousand runs of six samples, three at a time."""
    phi, samples = 0.3, ppl.Samples(6, chunk=3)

    def run(key):
        return moments.value_and_grad(key, phi, estimator, samples=samples)

    values, grads = jax.jit(jax.vmap(run))(jax.random.split(KEY, 10_000))
    p = 1 / (1 + np.exp(-phi))
    for draws, expected in ((values, 3 * p + phi + phi**2 + 1), (grads, 3 * p * (1 - p) + 1 + 2 * phi)):
        assert abs(draws.mean() - expected) < 4.5 * draws.std() / 100
    assert 0.7 < values.std() * np.sqrt(6) / np.sqrt(9 * p * (1 - p) + 1 + 2 + 4 * phi**2 + 4 * phi) < 1.3


def test_moving_averages_are_kept_across_chunks():
    """The average return of all chunks enters the state: the mean of 3 b is 3 sigmoid(phi)."""
    estimator = ScoreFunction(baseline=MovingAverage(0.0))
    state = moments.init_state(0.3, estimator)
    _, after = moments.estimate(KEY, 0.3, estimator, samples=ppl.Samples(20_000, chunk=2_000), state=state)
    (average,) = [entry["mean"] / (1 - entry["forgotten"]) for entry in after.values()]
    p = 1 / (1 + np.exp(-0.3))
    assert abs(average - 3 * p) < 4.5 * 3 * np.sqrt(p * (1 - p) / 20_000)


def temporary_bytes(samples):
    """Of the value and gradient of an IWAE of a VAE with 784 pixels, as compiled."""
    weights = {"in": jnp.ones((10, 200)), "out": jnp.ones((200, 784))}

    @ppl.program
    def vae(weights):
        z = ppl.sample("z", dist.Normal(jnp.zeros(10), 1.0).to_event(1))
        logits = jnp.tanh(z @ weights["in"]) @ weights["out"]
        ppl.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=jnp.ones(784))

    @ppl.expectation
    def objective(weights):
        prior = ppl.program(lambda: ppl.sample("z", dist.Normal(jnp.zeros(10), 1.0).to_event(1)))
        return ppl.objectives.iwae(vae(weights), prior(), samples)

    @ppl.expectation
    def elbo(weights):
        return ppl.objectives.elbo(
            vae(weights), ppl.program(lambda: ppl.sample("z", dist.Normal(jnp.zeros(10), 1.0).to_event(1)))()
        )

    iwae = jax.jit(objective.value_and_grad).lower(KEY, weights).compile()
    repeated = jax.jit(lambda key, weights: elbo.value_and_grad(key, weights, samples=samples)).lower(KEY, weights).compile()
    return [compiled.memory_analysis().temp_size_in_bytes for compiled in (iwae, repeated)]


def test_memory_is_that_of_a_chunk_numpyro_1624():
    """100,000 particles hold 627 MB in their logits alone."""
    chunked, whole = temporary_bytes(ppl.Samples(100_000, chunk=1_000)), temporary_bytes(100_000)
    assert max(chunked) < 60e6
    assert min(whole) > 600e6


def test_chunks_that_do_not_fit_are_refused():
    with pytest.raises(ppl.errors.ObjectiveError, match=r"chunk of 30 does not divide 100 .* 25"):
        ppl.Samples(100, chunk=30)
    with pytest.raises(ppl.errors.ObjectiveError, match="at least 1, got 0"):
        moments.estimate(KEY, 0.3, samples=0)
