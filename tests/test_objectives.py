"""Values and gradients of the objectives that are expectations, against enumeration and quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import logsumexp
from objective_models import (
    BOUND,
    KEY,
    Coins,
    Normals,
    assert_unbiased,
    compiled,
    draws_of,
    draws_of_each,
    exact_mean,
    log_evidence,
    z_scores,
)

import ppl
import ppl.distributions as dist
import ppl.objectives as obj
from ppl import errors
from ppl.estimators import Enumerate, Reparameterize, ScoreFunction

WORLDS = {"coins": Coins, "normals": Normals}


def mean_log(log_w, power=1.0):
    return (logsumexp(power * log_w, axis=1) - jnp.log(log_w.shape[1])) / power


OBJECTIVES = {
    "elbo": (lambda p, q: obj.elbo(p, q), 1, lambda l: l[:, 0]),
    "iwae": (lambda p, q: obj.iwae(p, q, 2), 2, mean_log),
    "renyi": (lambda p, q: obj.renyi(p, q, 0.5, 2), 2, lambda l: mean_log(l, 0.5)),
    "renyi above one": (lambda p, q: obj.renyi(p, q, 2.0, 2), 2, lambda l: mean_log(l, -1.0)),
    "renyi at one": (lambda p, q: obj.renyi(p, q, 1, 2), 2, lambda l: l.mean(1)),
    "cubo": (lambda p, q: obj.cubo(p, q, 2), 2, lambda l: mean_log(l, 2.0)),
    "eubo": (lambda p, q: obj.eubo(p, q, 2), 2, lambda l: jnp.sum(jax.nn.softmax(l, axis=1) * l, axis=1)),
    "chi-square": (lambda p, q: obj.chi_square(p, q, -1.0), 1, lambda l: jnp.exp(2 * l[:, 0] + 2)),
    "total variation": (
        lambda p, q: obj.f_divergence(p, q, lambda l: 0.5 * jnp.abs(jnp.exp(l) - 1), -1.0),
        1,
        lambda l: 0.5 * jnp.abs(jnp.exp(l[:, 0] + 1) - 1),
    ),
    "sticking the landing": (lambda p, q: obj.sticking_the_landing(p, q), 1, lambda l: l[:, 0]),
    "vimco": (lambda p, q: obj.vimco(p, q, 2), 2, mean_log),
}
ESTIMATORS = {
    "coins": {"enumerate": Enumerate(), "score": ScoreFunction()},
    "normals": {"reparameterize": Reparameterize(), "score": ScoreFunction()},
}


@pytest.mark.parametrize(("world", "estimator"), [(w, e) for w in WORLDS for e in ESTIMATORS[w]])
def test_values_and_gradients_are_exact(world, estimator):
    world, estimator = WORLDS[world], ESTIMATORS[world][estimator]

    def objective(name):
        program = OBJECTIVES[name][0]
        return lambda p: program(world.model(p), world.family(p).with_estimators(estimator))

    @jax.jit
    def exact(params):
        exact = {name: exact_mean(world, of, particles) for name, (_, particles, of) in OBJECTIVES.items()}
        return {name: jax.value_and_grad(mean)(params) for name, mean in exact.items()}

    # Enumeration has no noise; VIMCO and the others draw for themselves.
    few = [name for name in OBJECTIVES if isinstance(estimator, Enumerate) and name != "vimco"]
    draws = draws_of_each({name: objective(name) for name in few}, world.params, 10)
    draws |= draws_of_each({name: objective(name) for name in OBJECTIVES if name not in few}, world.params, 20_000)
    for name, (value, grad) in exact(world.params).items():
        values, grads = draws[name]
        assert abs(z_scores(values, value)) < BOUND, name
        assert np.abs(z_scores(grads, grad)).max() < BOUND, name


def test_dreg_has_the_value_and_the_gradient_of_iwae():
    exact = exact_mean(Normals, mean_log, 2)
    assert_unbiased(lambda p: obj.dreg(Normals.model(p), Normals.family(p), 2), Normals.params, exact)


def test_weighted_likelihoods_and_priors():
    def exact(weigh):
        def value(params):
            log_prior, log_likelihood, log_q = Coins.tables(params)
            return jnp.sum(jnp.exp(log_q) * weigh(log_prior, log_likelihood, log_q))

        return value

    cases = {
        "beta": (lambda p, q: obj.beta_elbo(p, q, 0.3), lambda prior, lik, q: lik + 0.3 * (prior - q)),
        "power": (lambda p, q: obj.power_elbo(p, q, 0.3), lambda prior, lik, q: 0.3 * lik + prior - q),
        "likelihood": (lambda p, q: obj.elbo_terms(p, q).log_likelihood, lambda prior, lik, q: lik),
        "prior": (lambda p, q: obj.elbo_terms(p, q).log_prior, lambda prior, lik, q: prior),
        "log q": (lambda p, q: obj.elbo_terms(p, q).log_q, lambda prior, lik, q: q),
    }

    def objective(program):
        return lambda p: program(Coins.model(p), Coins.family(p))

    draws = draws_of_each({name: objective(program) for name, (program, _) in cases.items()}, Coins.params, 10)
    for name, (_, weigh) in cases.items():
        value, grad = compiled(exact(weigh), Coins.params)
        assert abs(z_scores(draws[name][0], value)) < BOUND, name
        assert np.abs(z_scores(draws[name][1], grad)).max() < BOUND, name


def test_a_factor_counts_as_likelihood():
    @ppl.program
    def model():
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ppl.factor("loss", -(z**2))

    def terms(mean):
        return obj.elbo_terms(model(), ppl.program(lambda: ppl.sample("z", dist.Delta(mean)))())

    likelihood, prior, _ = ppl.seed(lambda: terms(0.5))(KEY)
    np.testing.assert_allclose((likelihood, prior), (-0.25, dist.Normal(0.0, 1.0).log_prob(0.5)), rtol=1e-5)
    np.testing.assert_allclose(ppl.seed(lambda: obj.power_elbo(model(), model_family(0.5), 3.0))(KEY), prior - 0.75, rtol=1e-5)


def model_family(at):
    return ppl.program(lambda: ppl.sample("z", dist.Delta(at)))()


def test_the_order_of_the_bounds():
    """Enumerated, so that each number is exact; the bounds from above take many particles."""
    model, family = Coins.model(Coins.params), Coins.family(Coins.params)
    programs = {
        "elbo": obj.elbo,
        "renyi .75": lambda p, q: obj.renyi(p, q, 0.75, 2),
        "renyi .25": lambda p, q: obj.renyi(p, q, 0.25, 2),
        "iwae 2": lambda p, q: obj.iwae(p, q, 2),
        "iwae 3": lambda p, q: obj.iwae(p, q, 3),
        "chi-square": obj.chi_square,
    }

    @jax.jit
    def run(key):
        values = {name: ppl.expectation(lambda f=f: f(model, family)).estimate(key) for name, f in programs.items()}
        return values, ppl.seed(lambda: obj.sandwich(model, family, 200_000))(key)

    values, many = run(KEY)
    evidence = log_evidence(Coins)(Coins.params)
    rising = np.array([values[name] for name in list(programs)[:-1]] + [evidence])
    assert np.all(np.diff(rising) > 0.01), rising
    cubo = np.log(values["chi-square"]) / 2
    np.testing.assert_allclose([many.elbo, many.iwae, many.cubo], [values["elbo"], evidence, cubo], atol=0.01)
    assert min(cubo, many.eubo) > evidence + 0.1


def test_one_objective_for_each_datum_of_a_plate():
    """The sum over data of bounds, mapped: every particle of every datum is drawn by itself."""
    data = jnp.array([-0.5, 0.7, 1.9])

    def objective(program, world, estimator):
        def one(params, x):
            return program(world.joint(params).condition(x=x), world.family(params).with_estimators(estimator))

        return lambda params: jnp.sum(jax.vmap(lambda x: one(params, x))(data))

    def exact(params):
        z, log_q = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]]), Coins.tables(params)[2]
        log_p = jax.vmap(lambda x: jax.vmap(lambda s: Coins.joint(params).log_density({"a": s[0], "b": s[1], "x": x}))(z))(data)
        first, second = jnp.divmod(jnp.arange(16), 4)
        pairs = jnp.stack([(log_p - log_q)[:, first], (log_p - log_q)[:, second]], -1)
        return jnp.sum(jnp.exp(log_q[first] + log_q[second]) * jax.vmap(mean_log)(pairs))

    assert_unbiased(objective(lambda p, q: obj.iwae(p, q, 2), Coins, Enumerate()), Coins.params, exact, 10)
    assert_unbiased(objective(lambda p, q: obj.vimco(p, q, 2), Coins, Enumerate()), Coins.params, exact)


def rbf(mean, variance):
    """`E[exp(-d^2)]`, d ~ N(mean, variance)."""
    return jnp.exp(-(mean**2) / (1 + 2 * variance)) / jnp.sqrt(1 + 2 * variance)


def test_mmd_and_infovae():
    def family(params):
        return Normals.family(params)

    prior = ppl.program(lambda p: ppl.sample("z", dist.Normal(p[0], 1.0)))

    def exact_mmd(p):
        variance = jnp.exp(2 * p[2])
        return rbf(0.0, 2 * variance) + rbf(0.0, 2.0) - 2 * rbf(p[1] - p[0], 1 + variance)

    assert_unbiased(lambda p: obj.mmd(family(p), prior(p), 3), Normals.params, exact_mmd)

    def exact(p):
        log_prior, log_likelihood, log_q = Normals.tables(p)
        divergence = jnp.sum(jnp.exp(log_q) * (log_q - log_prior))
        return jnp.sum(jnp.exp(log_q) * log_likelihood) - 0.6 * divergence - 2.4 * exact_mmd(p)

    def infovae(p):
        return obj.infovae(Normals.model(p), family(p), family(p), prior(p), 3, alpha=0.4, lam=3.0)

    assert_unbiased(infovae, Normals.params, exact)


def test_sleep_phi_is_the_mean_over_dreams():
    @ppl.program
    def dream(t):
        z = ppl.sample("z", dist.Bernoulli(probs=0.3))
        ppl.sample("x", dist.Bernoulli(probs=jax.nn.sigmoid(t[0]) * (0.2 + 0.6 * z)))

    @ppl.program
    def recognize(t, x):
        ppl.sample("z", dist.Bernoulli(logits=t[1] + t[2] * x))

    def exact(t):
        total = 0.0
        for z in (0, 1):
            for x in (0, 1):
                p = jnp.exp(dream(jax.lax.stop_gradient(t)).log_density({"z": z, "x": x}))
                total += p * recognize(t, x).log_density({"z": z})
        return total

    def objective(t):
        return obj.sleep_phi(dream(t), lambda data: recognize(t, data["x"]), ["x"])

    assert_unbiased(objective, jnp.array([0.5, -0.4, 0.8]), exact)
    with pytest.raises(errors.MissingAddressError, match="without conditioning"):
        ppl.expectation(lambda t: obj.sleep_phi(dream(t).condition(x=1), lambda data: 0.0, ["x"])).grad(KEY, jnp.zeros(3))


def test_wake_theta_trains_the_model_as_iwae_does_and_leaves_the_family():
    for world in (Coins, Normals):
        value, grad = compiled(exact_mean(world, mean_log, 2), world.params)
        values, grads = draws_of(lambda p, w=world: obj.wake_theta(w.model(p), w.family(p), 2), world.params, 20_000)
        assert abs(z_scores(values, value)) < BOUND
        assert abs(z_scores(grads[:, 0], grad[0])) < BOUND
        assert not np.any(grads[:, 1:])


def test_too_few_particles():
    for program in (obj.vimco, obj.forward_kl, obj.wake_phi, obj.log_variance, obj.tail_adaptive):
        with pytest.raises(errors.ObjectiveError, match=f"{program.__name__} takes at least 2 particles, got 1"):
            draws_of(lambda p, f=program: f(Normals.model(p), Normals.family(p), 1), Normals.params, 1)
    for program in (obj.iwae, obj.cubo, obj.dreg, obj.wake_theta, obj.vis_family, obj.vis_family_pathwise):
        with pytest.raises(errors.ObjectiveError, match="takes at least 1 particle, got 0"):
            draws_of(lambda p, f=program: f(Normals.model(p), Normals.family(p), 0), Normals.params, 1)


def test_a_family_that_leaves_the_support_is_refused_by_all():
    """Also where the objective scores a trace whose gradient it has taken apart."""
    model = ppl.program(lambda: ppl.sample("z", dist.Gamma(2.0, 1.0)))()
    alone = (obj.elbo, obj.elbo_analytic, obj.elbo_terms, obj.sticking_the_landing, obj.chi_square)
    several = (obj.iwae, obj.dreg, obj.vimco, obj.forward_kl, obj.wake_phi, obj.log_variance, obj.tail_adaptive, obj.vis_model)
    several += (obj.vis_family, obj.vis_family_pathwise, obj.vis_family_doubly_reparameterized)
    for program in alone + several:
        with pytest.raises(errors.ModelFamilyMismatchError, match="the family leaves the model's support"):
            ppl.seed(lambda f=program: f(model, Normals.family(Normals.params), *((2,) if f in several else ())))(KEY)
