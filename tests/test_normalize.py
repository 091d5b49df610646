"""Sampling-importance-resampling as a program: its density, gradients and what it gives in objectives, against exact values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import ppl
import ppl.distributions as dist
from ppl import errors
from ppl.estimators import Ignore, ScoreFunction
from ppl.transforms.kinds import UNBIASED_DENSITY, uses_of
from ppl.transforms.stage import stage

KEY = jax.random.key(5)
N = 20_000
BOUND = 4.5  # |z| of every comparison; 1e-5 of a false alarm each, over about 40 of them
PHI = jnp.array([0.3, 0.1])


def z_score(draws, exact):
    draws = np.asarray(draws, float)
    return np.abs((draws.mean(0) - exact) / (draws.std(0) / np.sqrt(len(draws)) + 1e-6 * (1.0 + np.abs(exact)))).max()


def estimates(function, n=N):
    return jax.jit(jax.vmap(function))(jax.random.split(KEY, n))


@ppl.program
def model():  # x | y ~ Normal(.671, .573), y ~ Normal(0, sqrt(1.49))
    x = ppl.sample("x", dist.Normal(0.0, 1.0))
    ppl.sample("y", dist.Normal(x, 0.7), obs=1.0)


@ppl.program
def proposal(phi=PHI):
    ppl.sample("x", dist.Normal(phi[0], jnp.exp(phi[1])))


@ppl.program
def hidden_model():  # the same, x integrated out of a longer chain
    v = ppl.sample("v", dist.Normal(0.0, 0.6))
    ppl.sample("x", dist.Normal(v, 0.8))


@ppl.program
def estimated_model():
    prior = ppl.marginal(hidden_model(), "x", proposal=lambda t: around(0.3 * t["x"], 0.6), particles=2)
    x = ppl.sample("prior", prior)["x"]
    ppl.sample("y", dist.Normal(x, 0.7), obs=1.0)


@ppl.program
def around(mean, scale):
    ppl.sample("v", dist.Normal(mean, scale))


@ppl.program
def hierarchical_proposal():
    def shifted():
        v = ppl.sample("v", dist.Normal(PHI[0], 0.5))
        ppl.sample("x", dist.Normal(v, jnp.sqrt(jnp.exp(2 * PHI[1]) - 0.25)))

    ppl.sample("prior", ppl.marginal(ppl.program(shifted)(), "x", proposal=lambda t: around(0.5 * t["x"], 0.6)))


def log_weight(x, phi=PHI):
    """log p(x, y) - log q(x)."""
    log_p = dist.Normal(0.0, 1.0).log_prob(x) + dist.Normal(x, 0.7).log_prob(1.0)
    return log_p - dist.Normal(phi[0], jnp.exp(phi[1])).log_prob(x)


def of_draws(function, dimensions, nodes):
    """The expectation of a function of independent draws from the proposal, by Gauss-Hermite quadrature."""
    t, w = np.polynomial.hermite_e.hermegauss(nodes)
    grid = jnp.stack(jnp.meshgrid(*[t] * dimensions, indexing="ij"), -1).reshape(-1, dimensions)
    weights = jnp.asarray(np.prod(np.stack(np.meshgrid(*[w / w.sum()] * dimensions, indexing="ij"), -1), -1).ravel())
    return lambda phi: weights @ jax.vmap(lambda e: function(phi, phi[0] + jnp.exp(phi[1]) * e))(grid)


def resampled_density(x, particles):
    """p(x) E[1 / Z(x)], the density of sampling-importance-resampling."""

    def inverse(phi, others):
        z = jnp.mean(jnp.exp(jnp.append(log_weight(others), log_weight(x))))
        return 1.0 / z

    log_p = log_weight(x) + dist.Normal(PHI[0], jnp.exp(PHI[1])).log_prob(x)
    return float(jnp.exp(log_p) * of_draws(inverse, particles - 1, 40)(PHI))


SIR = {
    "one particle": (ppl.normalize(model(), proposal=proposal(), particles=1), 1, lambda x: {"x": x}),
    "three particles": (ppl.normalize(model(), proposal=proposal(), particles=3), 3, lambda x: {"x": x}),
    "estimated densities": (
        ppl.normalize(estimated_model(), proposal=hierarchical_proposal(), particles=3),
        None,
        lambda x: {"prior": {"x": x}},
    ),
}


@pytest.mark.parametrize("name", SIR)
def test_contracts(name):
    """E[w] = density where x is scored; E[1/w | x] = 1/density where it is drawn; and the draws have that density."""
    posterior, particles, trace = SIR[name]
    scored = jnp.exp(estimates(lambda key: ppl.seed(posterior.log_density)(key, trace(0.9))))
    if particles is not None:
        exact = resampled_density(0.9, particles) if particles > 1 else scipy.stats.norm.pdf(0.9, PHI[0], np.exp(PHI[1]))
        assert z_score(scored, exact) < BOUND
    drawn, log_w = estimates(posterior.simulate)
    x = jax.tree.leaves(drawn)[0]
    for g in (dist.Normal(0.2, 0.4), dist.Normal(1.0, 0.4)):
        assert z_score(jnp.exp(g.log_prob(x) - log_w), 1.0) < BOUND
    # What E[g(x)] is by draws, and by scores of points from g.
    scores = estimates(lambda key: _score_at(posterior, trace, key, g))
    assert z_score(jnp.exp(g.log_prob(x)) - scores, 0.0) < BOUND


def _score_at(posterior, trace, key, g):
    place, random = jax.random.split(key)
    return jnp.exp(ppl.seed(posterior.log_density)(random, trace(g.sample(place))))


def test_many_particles_draw_from_the_posterior():
    drawn, _ = estimates(ppl.normalize(model(), proposal=proposal(), particles=500).simulate, 5000)
    mean, variance = 1.0 / 1.49, 0.49 / 1.49
    assert z_score(drawn["x"], mean) < BOUND
    assert z_score((drawn["x"] - mean) ** 2, variance) < BOUND


def family(phi, particles, estimator):
    return ppl.normalize(model(), proposal=proposal(phi), particles=particles, estimator=estimator)


@ppl.expectation
def elbo(phi, particles, estimator):
    trace, log_q = ppl.simulate(family(phi, particles, estimator))
    return model().log_density(trace) - log_q


@ppl.expectation
def moment(phi, particles, estimator):
    return ppl.sample("sub", family(phi, particles, estimator))["x"] ** 2


def exact_bound(phi):
    return of_draws(lambda phi, x: jax.nn.logsumexp(log_weight(x, phi)) - jnp.log(2.0), 2, 40)(phi)


def exact_moment(phi):
    return of_draws(lambda phi, x: jax.nn.softmax(log_weight(x, phi)) @ x**2, 2, 40)(phi)


@pytest.mark.parametrize(("objective", "exact"), [(elbo, exact_bound), (moment, exact_moment)])
@pytest.mark.parametrize("estimator", [None, ScoreFunction()])
def test_gradients_through_the_resampling(objective, exact, estimator):
    """The ELBO of the resampled family is the importance-weighted bound; a moment depends on the index itself."""
    values, grads = estimates(lambda key: objective.value_and_grad(key, PHI, 2, estimator))
    assert z_score(values, float(exact(PHI))) < BOUND
    assert z_score(grads, np.asarray(jax.grad(exact)(PHI))) < BOUND


def test_leaving_the_resampling_out_of_the_gradient_is_biased_and_says_so():
    values, grads = estimates(lambda key: moment.value_and_grad(key, PHI, 2, Ignore()))
    assert z_score(values, float(exact_moment(PHI))) < BOUND
    pathwise = jax.grad(
        lambda phi: of_draws(lambda p, x: jax.lax.stop_gradient(jax.nn.softmax(log_weight(x, p))) @ x**2, 2, 40)(phi)
    )
    assert z_score(grads, np.asarray(pathwise(PHI))) < BOUND
    assert z_score(grads, np.asarray(jax.grad(exact_moment)(PHI))) > 2 * BOUND
    assert not Ignore().unbiased


def test_in_another_program_under_vmap_and_scan():
    """Two lanes and a scan of two steps: the density of all is the product of the resampled densities."""

    @ppl.program
    def several():
        jax.vmap(lambda _: ppl.sample("lane", family(PHI, 2, None)))(jnp.arange(2))
        jax.lax.scan(lambda c, _: (c, ppl.sample("step", family(PHI, 2, None))), None, None, length=2)

    xs = {"lane": {"x": jnp.array([0.9, -0.4])}, "step": {"x": jnp.array([0.2, 0.9])}}
    scored = jnp.exp(estimates(lambda key: ppl.seed(several().log_density)(key, xs)))
    exact = np.prod([resampled_density(x, 2) for x in (0.9, -0.4, 0.2, 0.9)])
    assert z_score(scored, exact) < BOUND
    drawn, _ = estimates(several().simulate)
    draws = np.concatenate([drawn["lane"]["x"], drawn["step"]["x"]], axis=1)
    off = np.corrcoef(draws.T) - np.eye(4)
    assert np.abs(off).max() < BOUND / np.sqrt(N)
    assert z_score((draws**2).mean(1), float(exact_moment(PHI))) < BOUND


def test_as_the_proposal_of_a_marginal():
    """Evidence by importance sampling from a resampled posterior: E[w] = p(y)."""

    @ppl.program
    def joint():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(x, 0.7))

    evidence = ppl.marginal(joint(), "y", proposal=family(PHI, 3, None), particles=2)
    log_w = estimates(lambda key: ppl.seed(evidence.log_density)(key, {"y": 1.0}))
    assert z_score(jnp.exp(log_w), scipy.stats.norm.pdf(1.0, 0.0, np.sqrt(1.49))) < BOUND


def test_conditioning_and_unnormalized_targets():
    whole = ppl.normalize(model(), proposal=proposal(), particles=3)
    given = estimates(lambda key: ppl.seed(whole.condition(x=0.9).log_density)(key, {}))
    assert z_score(jnp.exp(given), resampled_density(0.9, 3)) < BOUND
    like = {"x": jax.ShapeDtypeStruct((), jnp.float32)}
    rho = ppl.unnormalized(lambda t: 3.0 + log_weight(t["x"]) + dist.Normal(PHI[0], jnp.exp(PHI[1])).log_prob(t["x"]), like)
    free = ppl.normalize(rho, proposal=proposal(), particles=3)
    scored = estimates(lambda key: ppl.seed(free.log_density)(key, {"x": 0.9}))
    assert z_score(jnp.exp(scored), resampled_density(0.9, 3)) < BOUND


def test_the_kind_of_the_density_is_noted():
    (use,) = uses_of(stage(lambda: elbo.function(PHI, 3, None)).jaxpr.jaxpr, UNBIASED_DENSITY)
    assert use.operation is None
    assert "sampling-importance-resampling from 3 particles, estimated, whose log is too high" in use.note.reason


@ppl.program
def two_latents():
    x = ppl.sample("x", dist.Normal(0.0, 1.0))
    ppl.sample("z", dist.Normal(x, 1.0))


@ppl.program
def both():
    ppl.sample("x", dist.Normal(0.0, 1.0))
    ppl.sample("z", dist.Normal(0.0, 1.0))


@ppl.program
def bounded():
    ppl.sample("x", dist.Uniform(-2.0, 2.0))


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (
            lambda: ppl.normalize(model(), proposal=both(), particles=2),
            errors.ModelFamilyMismatchError,
            "no latent of the model",
        ),
        (lambda: ppl.normalize(model(), proposal=bounded(), particles=2), errors.MarginalError, "covers the support"),
        (lambda: ppl.normalize(model(), proposal=model(), particles=2), errors.MarginalError, "only draws"),
        (lambda: ppl.normalize(model(), proposal=proposal(), particles=0), errors.MarginalError, "at least 1"),
        (lambda: ppl.normalize(model, proposal=proposal(), particles=2), TypeError, "bound program"),
        (
            lambda: ppl.normalize(two_latents(), proposal=both(), particles=2).condition(x=0.3),
            errors.MarginalError,
            "before it is normalized",
        ),
        (
            lambda: ppl.normalize(two_latents(), proposal=both(), particles=2).intervene(x=0.3),
            errors.MarginalError,
            "intervene of x",
        ),
    ],
)
def test_mistakes_are_refused(make, error, says):
    with pytest.raises(error, match=says) as caught:
        make().simulate(KEY)
    assert "test_normalize.py" in str(caught.value)
