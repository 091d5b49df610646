"""Programs as NumPyro models: the same density, the same prior, the same predictions, under NumPyro's own handlers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import SVI, Predictive, Trace_ELBO, log_likelihood
from numpyro.infer.autoguide import AutoMultivariateNormal
from numpyro.infer.util import log_density
from numpyro.optim import Adam

import ppl
from ppl.address import flatten

Y = jnp.array([0.3, -1.2, 2.5])


@ppl.program
def plates():
    scale = ppl.sample("scale", dist.HalfNormal(2.0))
    means = ppl.plate("groups", lambda s: ppl.sample("mean", dist.Normal(s, scale)))(jnp.arange(3.0))
    weights = ppl.sample("weights", dist.Dirichlet(jnp.ones(3)))
    top = ppl.sample("top", dist.Uniform(0.0, scale))  # a support that moves with another latent
    ppl.deterministic("sum", means.sum() + top)
    ppl.factor("penalty", -0.1 * top)
    ppl.plate("data", lambda m, y: ppl.sample("y", dist.StudentT(4.0, m, scale), obs=y))(means, Y)
    return weights


@ppl.program
def chain():
    drift = ppl.sample("drift", dist.Normal(1.0, 0.5))

    def step(x, y):
        x = ppl.sample("x", dist.Normal(x + drift, 0.3))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, None

    end, _ = jax.lax.scan(step, 0.0, Y)
    ppl.deterministic("end", end)
    high = ppl.sample("high", dist.Bernoulli(logits=end))
    jax.lax.cond(high == 1, lambda: ppl.sample("up", dist.Gamma(2.0, 1.0)), lambda: ppl.sample("down", dist.Normal(0.0, 1.0)))


@ppl.program
def nested():
    inner = ppl.sample("inner", plates())
    ppl.plate("batch", lambda y: ppl.sample("z", dist.Normal(inner[0], 1.0), obs=y), size=30)(Y)


@ppl.program
def mixed():
    def component():
        which = ppl.sample("which", dist.Bernoulli(probs=0.3))
        ppl.sample("x", dist.Normal(3.0 * which, 1.0))

    ppl.sample("sub", ppl.marginal(ppl.program(component)(), keep="x"))


CASES = {
    "plates": plates(),
    "tempered": plates().scale(0.5),
    "masked": plates().mask(y=jnp.array([True, False, True])),
    "substituted": plates().substitute(scale=1.5),
    "chain": chain(),
    "conditioned chain": chain().condition(drift=0.2),
    "nested": nested(),
    "marginal": mixed(),
}


@pytest.mark.parametrize("name", CASES)
def test_the_density_is_the_program_s(name):
    bound = CASES[name]
    trace, expected = bound.simulate(jax.random.key(3))
    values = {"/".join(address): value for address, value in flatten(trace).items()}
    model = ppl.to_numpyro(bound)
    np.testing.assert_allclose(log_density(model, (), {}, values)[0], expected, rtol=2e-5)


def test_sites_outside_of_control_flow_are_numpyro_s_own():
    found = handlers.trace(handlers.seed(ppl.to_numpyro(plates()), 0)).get_trace()
    assert type(found["weights"]["fn"]) is dist.Dirichlet
    assert found["mean"]["value"].shape == (3,)
    assert found["y"]["is_observed"]
    assert {"sum", "penalty"} <= set(found)


@pytest.mark.parametrize("given", [{}, {"drift": jnp.full(4000, 2.0)}])
def test_the_prior_is_the_program_s_also_given_some_latents(given):
    """Draws of x in a loop follow a drift that a handler has set: the mean of the last is 3 drift, the variance .27 + 9 Var."""
    draws = Predictive(ppl.to_numpyro(chain()), given or None, num_samples=4000)(jax.random.key(0))
    end = np.asarray(draws["end"])
    mean, variance = (6.0, 3 * 0.09) if given else (3.0, 3 * 0.09 + 9 * 0.25)
    assert abs(end.mean() - mean) < 4.5 * np.sqrt(variance / 4000)
    assert abs(end.var() / variance - 1) < 4.5 * np.sqrt(2 / 4000)
    np.testing.assert_allclose(draws["x"][:, -1], end, rtol=1e-6)


def test_log_likelihoods_by_observation():
    trace, _ = plates().simulate(jax.random.key(1))
    found = log_likelihood(ppl.to_numpyro(plates()), {name: value[None] for name, value in trace.items()})["y"]
    expected = dist.StudentT(4.0, trace["mean"], trace["scale"]).log_prob(Y)
    np.testing.assert_allclose(found.sum(), expected.sum(), rtol=1e-5)


def test_numpyro_s_svi_and_autoguides_take_it():
    @ppl.program
    def model():
        mean = ppl.sample("mean", dist.Normal(0.0, 2.0))
        ppl.plate("data", lambda y: ppl.sample("y", dist.Normal(mean, 1.0), obs=y))(Y)

    numpyro_model = ppl.to_numpyro(model())
    guide = AutoMultivariateNormal(numpyro_model)
    svi = SVI(numpyro_model, guide, Adam(0.05), Trace_ELBO(num_particles=8))
    found = svi.run(jax.random.key(0), 500, progress_bar=False).params
    posterior = guide.get_posterior(found)
    assert abs(float(posterior.mean[0]) - float(Y.sum()) / 3.25) < 0.05
    assert abs(float(posterior.variance[0]) - 1 / 3.25) < 0.05


def test_there_and_back():
    bound = ppl.from_numpyro(ppl.to_numpyro(plates()))()
    trace, expected = plates().simulate(jax.random.key(5))
    latent = {name: value for name, value in trace.items() if name != "sum"}
    np.testing.assert_allclose(bound.log_density(latent), expected, rtol=1e-5)


def test_estimated_densities_are_refused():
    @ppl.program
    def reverse():
        ppl.sample("which", dist.Bernoulli(probs=0.5))

    @ppl.program
    def model():
        which = ppl.sample("which", dist.Bernoulli(probs=0.3))
        ppl.sample("x", dist.Normal(3.0 * which, 1.0))

    estimated = ppl.marginal(model(), keep="x", proposal=reverse(), particles=2)
    with pytest.raises(ppl.errors.NumPyroError, match="estimated from random draws"):
        log_density(ppl.to_numpyro(estimated), (), {}, {"x": 0.5})


def test_a_program_without_arguments_bound_is_refused():
    with pytest.raises(TypeError, match="called with its arguments"):
        ppl.to_numpyro(plates)
