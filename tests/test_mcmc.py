"""NUTS by NumPyro and by BlackJAX on any program, against conjugate posteriors."""

from __future__ import annotations

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import ppl

LIBRARIES = ["numpyro", "blackjax"]


@ppl.program
def walk(y):
    """A random walk observed with noise; the drift is a group of its own."""
    drift = ppl.sample("group", ppl.program(lambda: ppl.sample("drift", dist.Normal(0.0, 1.0)))())

    def step(x, y):
        x = ppl.sample("x", dist.Normal(x + drift, 0.5))
        ppl.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    end, _ = jax.lax.scan(step, 0.0, y)
    ppl.deterministic("end", end)


def exact(y):
    """Mean and covariance of (drift, x_1, ..., x_n) given y: x = n drift + L noise."""
    n = len(y)
    ones = np.tril(np.ones((n, n)))
    design = np.concatenate([np.arange(1, n + 1)[:, None], 0.5 * ones], axis=1)  # of (drift, noise)
    precision = np.eye(n + 1) + design.T @ design / 0.25
    mean, cov = np.linalg.solve(precision, design.T @ y / 0.25), np.linalg.inv(precision)
    full = np.concatenate([np.eye(1, n + 1), design])
    return full @ mean, full @ cov @ full.T


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_posterior_of_a_chain(library):
    y = np.array([0.8, 1.1, 2.9, 3.2])
    found = ppl.nuts(walk(jnp.asarray(y)), jax.random.key(2), warmup=300, draws=1000, chains=4, library=library)
    assert found.trace["x"].shape == (4, 1000, 4)
    assert found.trace["group"]["drift"].shape == (4, 1000)
    assert found.divergences.shape == found.steps.shape == (4, 1000)
    mean, cov = exact(y)
    flat = found.flat()
    draws = np.concatenate([np.asarray(flat["group"]["drift"])[:, None], np.asarray(flat["x"])], axis=1)
    size = min(np.min(leaf) for leaf in jax.tree.leaves(found.effective_sample_size()))
    assert size > 500
    assert np.all(np.abs(draws.mean(0) - mean) < 4.5 * np.sqrt(np.diag(cov) / size))
    np.testing.assert_allclose(np.cov(draws.T), cov, atol=6 * np.max(np.diag(cov)) * np.sqrt(2 / size))
    np.testing.assert_allclose(flat["end"], flat["x"][:, -1], rtol=1e-5)
    assert all(np.all(leaf < 1.02) for leaf in jax.tree.leaves(found.r_hat()))


@pytest.mark.parametrize("library", LIBRARIES)
def test_constrained_values_come_back(library):
    """Beta-Binomial, with a simplex and a support that depends on another latent beside it."""

    @ppl.program
    def model():
        p = ppl.sample("p", dist.Beta(2.0, 3.0))
        ppl.sample("heads", dist.Binomial(10, p), obs=7)
        ppl.sample("weights", dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])))
        ppl.sample("below", dist.Uniform(0.0, p))

    trace = ppl.nuts(model(), jax.random.key(0), warmup=300, draws=1500, chains=2, library=library).flat()
    assert abs(trace["p"].mean() - 9 / 15) < 0.025
    np.testing.assert_allclose(trace["weights"].mean(0), [1 / 6, 2 / 6, 3 / 6], atol=0.025)
    np.testing.assert_allclose(trace["weights"].sum(-1), 1.0, rtol=1e-5)
    assert bool(jnp.all((trace["below"] > 0) & (trace["below"] < trace["p"])))
    assert abs((trace["below"] / trace["p"]).mean() - 0.5) < 0.03


@pytest.mark.parametrize("library", LIBRARIES)
def test_chains_start_where_they_are_told(library):
    """Two far modes: each chain stays in the one it starts in."""

    @ppl.program
    def modes():
        ppl.sample("x", dist.MixtureSameFamily(dist.Categorical(jnp.ones(2) / 2), dist.Normal(jnp.array([-40.0, 40.0]), 1.0)))

    class Fitted:
        def initial_values(self, key, chains):
            return {"x": jnp.where(jnp.arange(chains) % 2 == 0, -40.0, 40.0)}

    for initial in (Fitted(), Fitted().initial_values(None, 3)):
        found = ppl.nuts(modes(), jax.random.key(0), warmup=100, draws=100, chains=3, initial=initial, library=library)
        np.testing.assert_allclose(found.trace["x"].mean(1), [-40.0, 40.0, -40.0], atol=1.5)


def test_arviz_and_a_table():
    found = ppl.nuts(walk(jnp.zeros(2)), jax.random.key(0), warmup=50, draws=50, chains=2)
    exported = found.to_arviz()
    assert exported.posterior["group/drift"].shape == (2, 50)
    assert bool((exported.sample_stats["diverging"].values == found.divergences).all())
    assert set(arviz.summary(exported).index) == {"group/drift", "x[0]", "x[1]", "end"}
    assert "group/drift" in str(found)
    assert repr(found).startswith("Draws(2 chains of 50")


def test_what_cannot_be_sampled_is_refused():
    @ppl.program
    def discrete():
        ppl.sample("k", dist.Poisson(3.0))

    with pytest.raises(ppl.errors.EstimatorError, match="'k' is discrete"):
        ppl.nuts(discrete(), jax.random.key(0))
    with pytest.raises(ppl.errors.UnknownAddressError, match="no latent"):
        ppl.nuts(discrete().condition(k=2), jax.random.key(0))
    with pytest.raises(ppl.errors.MissingAddressError, match="'x'"):
        ppl.nuts(walk(jnp.zeros(2)), jax.random.key(0), chains=2, initial={"group": {"drift": jnp.zeros(2)}})
    initial = {"group": {"drift": jnp.zeros(2)}, "x": jnp.zeros(2)}
    with pytest.raises(ppl.errors.ValueShapeError, match=r"\[2, 2\]"):
        ppl.nuts(walk(jnp.zeros(2)), jax.random.key(0), chains=2, initial=initial)
    with pytest.raises(ValueError, match="library"):
        ppl.nuts(walk(jnp.zeros(2)), jax.random.key(0), library="stan")
