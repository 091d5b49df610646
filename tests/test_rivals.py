"""Programs on which other libraries give a wrong result without an error, with the exact values.

NumPyro is run beside `ppl`. GenJAX 1.0.14 is not installed; the gradients that it was seen to give stand in the comments.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as npd
import pytest
from numpyro.handlers import seed, substitute, trace
from numpyro.infer import RenyiELBO, Trace_ELBO, TraceGraph_ELBO

import ppl
import ppl.distributions as dist
from ppl import errors
from ppl.estimators import Enumerate, Reparameterize, ScoreFunction

N = 20_000
KEYS = jax.random.split(jax.random.key(11), N)


def z_score(draws, exact):
    draws = np.asarray(draws, float)
    return (draws.mean() - exact) / (draws.std() / np.sqrt(len(draws)) + 1e-6)


def gradients(objective, theta, **options):
    return jax.jit(jax.vmap(lambda key: objective.grad(key, theta, **options)))(KEYS)


def numpyro_gradients(loss, model, guide, phi):
    """Of minus the loss."""
    return jax.jit(jax.vmap(jax.grad(lambda phi, key: -loss.loss(key, {"phi": phi}, model, guide)), (None, 0)))(phi, KEYS)


# GenJAX, at theta = 0.3


def walk(estimator):
    def step(x, _, theta):
        return x + ppl.sample("x", dist.Normal(theta, 1.0), estimator=estimator), None

    return lambda theta: jax.lax.scan(lambda x, u: step(x, u, theta), 0.0, None, length=3)[0] ** 2


def coins(theta):
    def step(n, _):
        return n + ppl.sample("b", dist.Bernoulli(probs=theta), estimator=Enumerate()), None

    return 1.0 * jax.lax.scan(step, 0, None, length=3)[0] ** 2


def counted(theta):
    return jax.lax.fori_loop(0, 3, lambda i, x: x + ppl.sample("x", dist.Normal(theta, 1.0)), 0.0) ** 2


def elbo_of_a_scan(theta):
    def steps(mean):
        return jax.lax.scan(lambda x, _: (ppl.sample("x", dist.Normal(x + mean, 1.0)), None), 0.0, None, length=3)[0]

    model = ppl.program(lambda: ppl.sample("y", dist.Normal(steps(0.0), 1.0), obs=10.1 / 3))
    family, log_q = ppl.simulate(ppl.program(steps)(theta))
    return model().log_density(family) - log_q


WRONG_IN_GENJAX = {
    "a reparameterized normal in a scan": (walk(Reparameterize()), 5.4),  # 11.89
    "a scored normal in a scan": (walk(ScoreFunction()), 5.4),  # -20.6
    "an enumerated coin in a scan": (coins, 6.6),  # 0
    "a fori_loop": (counted, 5.4),  # 3.88
    "an inner jit": (lambda t: 4.0 * jax.jit(lambda t: ppl.sample("b", dist.Bernoulli(probs=t)))(t), 4.0),  # 0
    "a checkpoint": (lambda t: jax.checkpoint(lambda t: ppl.sample("x", dist.Normal(t, 1.0)) ** 2)(t), 0.6),  # -0.50
    "an ELBO whose family is a scan": (elbo_of_a_scan, 6.5),  # 20.35
}


@pytest.mark.parametrize("name", WRONG_IN_GENJAX)
def test_control_flow_that_genjax_gets_wrong(name):
    function, exact = WRONG_IN_GENJAX[name]
    assert abs(z_score(gradients(ppl.expectation(function), 0.3), exact)) < 4.5


# NumPyro

Y = 0.8
PHI = 0.5


def log_joint(b, scale=1.0):
    """Of a coin and a normal observation of it."""
    return scale * (dist.Bernoulli(probs=0.3).log_prob(b) + dist.Normal(2.0 * b - 1.0, 1.0).log_prob(Y))


def log_family(phi, b):
    return dist.Bernoulli(logits=phi).log_prob(b)


def coin_model():
    b = numpyro.sample("b", npd.Bernoulli(probs=0.3))
    numpyro.sample("y", npd.Normal(2.0 * b - 1.0, 1.0), obs=Y)


def coin_guide():
    numpyro.sample("b", npd.Bernoulli(logits=numpyro.param("phi", PHI)))


@ppl.program
def coin_target():
    b = ppl.sample("b", dist.Bernoulli(probs=0.3))
    ppl.sample("y", dist.Normal(2.0 * b - 1.0, 1.0), obs=Y)


@ppl.program
def coin_family(phi, estimator):
    ppl.sample("b", dist.Bernoulli(logits=phi), estimator=estimator)


@pytest.mark.parametrize("estimator", [Enumerate(), ScoreFunction()], ids=["enumerated", "scored"])
def test_an_importance_weighted_bound_with_a_discrete_latent(estimator):
    def exact(phi):
        total = 0.0
        for a in (0, 1):
            for b in (0, 1):
                log_w = jnp.stack([log_joint(x) - log_family(phi, x) for x in (a, b)])
                total += jnp.exp(log_family(phi, a) + log_family(phi, b)) * (jax.nn.logsumexp(log_w) - jnp.log(2.0))
        return total

    @ppl.expectation
    def iwae(phi):
        def log_weight(_):
            sample, log_q = ppl.simulate(coin_family(phi, estimator))
            return coin_target().log_density(sample) - log_q

        return jax.nn.logsumexp(jax.vmap(log_weight)(jnp.arange(2))) - jnp.log(2.0)

    truth = jax.grad(exact)(PHI)
    assert abs(z_score(gradients(iwae, PHI), truth)) < 4.5
    theirs = numpyro_gradients(RenyiELBO(alpha=0.0, num_particles=2), coin_model, coin_guide, PHI)
    assert abs(z_score(theirs, truth)) > 20


@pytest.mark.parametrize("batch", [1, 2])
def test_discrete_latents_in_a_subsampled_plate(batch):
    """Four equal data, so that it does not matter which of them are in the batch."""

    def exact(phi):
        return 4.0 * sum(jnp.exp(log_family(phi, b)) * (log_joint(b) - log_family(phi, b)) for b in (0, 1))

    def plated(body):
        with numpyro.plate("data", 4, subsample_size=batch):
            body()

    @ppl.expectation
    def elbo(phi):
        def family():
            ppl.plate("data", lambda _: ppl.sample("b", dist.Bernoulli(logits=phi), estimator=ScoreFunction()), size=4)(
                jnp.arange(batch)
            )

        def model():
            def datum(_):
                b = ppl.sample("b", dist.Bernoulli(probs=0.3))
                ppl.sample("y", dist.Normal(2.0 * b - 1.0, 1.0), obs=Y)

            ppl.plate("data", datum, size=4)(jnp.arange(batch))

        sample, log_q = ppl.simulate(ppl.program(family)())
        return ppl.program(model)().log_density(sample) - log_q

    def model():
        plated(lambda: coin_model_in_plate())

    def coin_model_in_plate():
        b = numpyro.sample("b", npd.Bernoulli(probs=0.3))
        numpyro.sample("y", npd.Normal(2.0 * b - 1.0, 1.0), obs=Y * jnp.ones(batch))

    truth = jax.grad(exact)(PHI)
    assert abs(z_score(gradients(elbo, PHI), truth)) < 4.5
    theirs = numpyro_gradients(TraceGraph_ELBO(), model, lambda: plated(coin_guide), PHI)
    np.testing.assert_allclose(theirs.mean(), 4.0 / batch * truth, rtol=0.1)


def test_the_weights_of_a_mixture():
    def mixture(d, phi):
        return d.MixtureSameFamily(d.Categorical(logits=jnp.stack([phi, -phi])), d.Normal(jnp.array([-1.0, 2.0]), 0.7))

    def exact(phi):  # E[log N(x; 0, 1)] - E[log q(x)], by quadrature
        x = jnp.linspace(-8.0, 9.0, 4001)
        log_q = mixture(dist, phi).log_prob(x)
        return jnp.sum(jnp.exp(log_q) * (dist.Normal(0.0, 1.0).log_prob(x) - log_q)) * (x[1] - x[0])

    @ppl.expectation
    def elbo(phi):
        sample, log_q = ppl.simulate(ppl.program(lambda: ppl.sample("x", mixture(dist, phi)))())
        return ppl.program(lambda: ppl.sample("x", dist.Normal(0.0, 1.0)))().log_density(sample) - log_q

    def guide():
        numpyro.sample("x", mixture(npd, numpyro.param("phi", 0.2)))

    truth = jax.grad(exact)(0.2)
    assert abs(z_score(gradients(elbo, 0.2), truth)) < 4.5
    theirs = numpyro_gradients(Trace_ELBO(), lambda: numpyro.sample("x", npd.Normal(0.0, 1.0)), guide, 0.2)
    assert abs(z_score(theirs, truth)) > 20


def test_logits_and_an_observation_of_other_shapes():
    logits, y = jnp.zeros(100), jnp.ones((100, 1))
    theirs = trace(seed(lambda: numpyro.sample("y", npd.Bernoulli(logits=logits), obs=y), 0)).get_trace()["y"]
    assert theirs["fn"].log_prob(theirs["value"]).sum() == pytest.approx(-6931.47, rel=1e-4)
    wrong = ppl.program(lambda y: ppl.sample("y", dist.Bernoulli(logits=logits), obs=y))
    with pytest.raises(errors.ObservationShapeError, match=r"(?s)y.*100, 1.*test_rivals.py"):
        wrong(y).log_density({})
    assert wrong(y[:, 0]).log_density({}) == pytest.approx(-69.3147, rel=1e-4)


def test_a_family_that_misses_a_site():
    def model():
        b = numpyro.sample("b", npd.Normal(0.0, 1.0))
        numpyro.sample("c", npd.Normal(b, 1.0))

    def guide():
        numpyro.sample("b", npd.Normal(numpyro.param("phi", 0.0), 1.0))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the guide misses a site
        losses = jax.vmap(lambda key: Trace_ELBO().loss(key, {"phi": 0.0}, model, guide))(KEYS)
    np.testing.assert_allclose(losses.mean(), 0.5 * np.log(2 * np.pi * np.e), rtol=0.05)  # for a log evidence of 0

    @ppl.expectation
    def elbo(phi):
        sample, log_q = ppl.simulate(ppl.program(lambda: ppl.sample("b", dist.Normal(phi, 1.0)))())
        return ppl.from_numpyro(model)().log_density(sample) - log_q

    with pytest.raises(errors.ModelFamilyMismatchError, match="c "):
        elbo.grad(KEYS[0], 0.0)


def test_an_inserted_site_leaves_later_draws_alone():
    def body(sample, d, extra):
        if extra:
            sample("extra", d.Normal(0.0, 1.0))
        return sample("x", d.Normal(0.0, 1.0))

    theirs = [seed(substitute(body, data={}), 0)(numpyro.sample, npd, extra) for extra in (False, True)]
    ours = [ppl.program(body)(ppl.sample, dist, extra).sample(KEYS[0]) for extra in (False, True)]
    assert theirs[0] != theirs[1]
    assert ours[0] == ours[1]
