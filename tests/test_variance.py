"""How noisy gradients are: what the structure of a program buys, beside NumPyro and known laws."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pytest
from numpyro.infer import TraceGraph_ELBO

import ppl
import ppl.distributions as dist
from benchmarks import discrete_vae
from ppl.estimators import DisARM, LeaveOneOut, ScoreFunction

KEY = jax.random.key(5)


def total_variance(gradient, draws):
    grads = jax.lax.map(gradient, jax.random.split(KEY, draws), batch_size=64)
    return float(np.var(np.asarray(jax.vmap(lambda g: jax.flatten_util.ravel_pytree(g)[0])(grads), float), axis=0).sum())


SITES = 200
COSTS = jnp.sin(jnp.arange(SITES))


@ppl.program
def switches():
    def one(cost):
        on = ppl.sample("on", dist.Bernoulli(probs=0.5))
        ppl.factor("cost", (2.0 + cost) * on)

    ppl.plate("switches", one)(COSTS)


@ppl.program
def guess(logits):
    ppl.plate("switches", lambda logit: ppl.sample("on", dist.Bernoulli(logits=logit)))(logits)


@ppl.expectation
def elbo(logits):
    trace, log_q = ppl.simulate(guess(logits).with_estimators(ScoreFunction()))
    return switches().log_density(trace) - log_q


def numpyro_gradient(key, logits):
    def model():
        with numpyro.plate("switches", SITES):
            on = numpyro.sample("on", numpyro_dist.Bernoulli(probs=0.5))
            numpyro.factor("cost", (2.0 + COSTS) * on)

    def guide():
        with numpyro.plate("switches", SITES):
            numpyro.sample("on", numpyro_dist.Bernoulli(logits=logits))

    return TraceGraph_ELBO().loss(key, {}, model, guide)


def test_a_plate_of_separate_costs_has_the_variance_of_one_element():
    """200 Bernoulli sites: each score multiplies the cost of its own element alone."""
    logits = 0.3 * jnp.cos(jnp.arange(SITES))

    def unstructured(logits, key):
        on = jax.lax.stop_gradient(jax.random.bernoulli(key, jax.nn.sigmoid(logits)).astype(jnp.float32))
        score = dist.Bernoulli(logits=logits).log_prob(on).sum()
        cost = switches().log_density({"on": on.astype(jnp.int32)}) - score
        return jnp.exp(score - jax.lax.stop_gradient(score)) * cost

    ours = total_variance(lambda key: elbo.grad(key, logits), 2_000)
    theirs = total_variance(lambda key: jax.grad(numpyro_gradient, argnums=1)(key, logits), 2_000)
    flat = total_variance(lambda key: jax.grad(unstructured)(logits, key), 2_000)
    assert ours < flat / 100
    assert ours < 1.1 * theirs  # 2,000 draws of 200 gradients: 1.1 is ten standard errors


@pytest.mark.parametrize("dim", [2, 8, 32])
def test_full_rank_families_are_noisier_by_a_factor_of_the_dimension(dim):
    """Gradients of E log N(x; 0, I) in the factor of x = C u at C = I: by Isserlis' theorem the total variance is 2 d for a
    diagonal factor and 2 d + d (d - 1) / 2 for a triangular one (Kim et al. 2023 on the gap between the two)."""

    def objective(make):
        @ppl.expectation
        def cost(factor):
            return dist.Normal(0.0, 1.0).log_prob(ppl.sample("x", make(factor))).sum()

        return cost

    mean_field = objective(lambda scale: dist.Normal(jnp.zeros(dim), scale).to_event(1))
    full_rank = objective(lambda factor: dist.MultivariateNormal(jnp.zeros(dim), scale_tril=factor))
    lower = jnp.tril(jnp.ones((dim, dim)))
    diagonal = total_variance(lambda key: mean_field.grad(key, jnp.ones(dim)), 20_000)
    full = total_variance(lambda key: full_rank.grad(key, jnp.eye(dim)) * lower, 20_000)
    np.testing.assert_allclose(diagonal, 2.0 * dim, rtol=0.1)
    # Below the diagonal each entry u_i u_j has variance one, on it two.
    np.testing.assert_allclose(full, 2.0 * dim + dim * (dim - 1) / 2, rtol=0.1)


def test_baselines_and_antithetic_coins_beat_the_score_function_on_a_discrete_autoencoder():
    """32 binary latents a digit, four real digits, the gradient of the encoder; two evaluations of the ELBO each."""
    params, batch = discrete_vae.init(jax.random.key(0)), discrete_vae.digits(4)

    def variance(estimator, samples):
        gradient = discrete_vae.ours(estimator, samples)
        return total_variance(lambda key: gradient(key, params, batch)[1]["encoder"], 192)

    score = variance(ScoreFunction(), 2)
    assert variance(ScoreFunction(LeaveOneOut()), 2) < score / 100
    assert variance(DisARM(), None) < score / 100
