"""Objectives whose gradient is stated apart from the value: what it equals, when its noise is gone, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_models import BOUND, KEY, Coins, Normals, assert_unbiased, compiled, draws_of, exact_mean, log_evidence, z_scores

import ppl
import ppl.distributions as dist
import ppl.objectives as obj
from ppl import errors
from ppl.estimators import ScoreFunction

POSTERIOR = jnp.array([0.2, (0.2 + 1.1 / 0.64) / (1 + 1 / 0.64), -0.5 * np.log(1 + 1 / 0.64)])
"""Parameters of `Normals` at which the family is the posterior."""


def bound(program, world=Normals, **options):
    return lambda p: program(world.model(p), world.family(p), **options)


def test_gradients_without_noise_at_the_posterior():
    for program in (
        bound(obj.sticking_the_landing),
        bound(obj.dreg, particles=3),
        bound(obj.vis_family_doubly_reparameterized, particles=3),
        bound(obj.tail_adaptive, particles=3),
    ):
        _, grads = draws_of(program, POSTERIOR, 200)
        assert np.abs(grads[:, 1:]).max() < 2e-5
    _, plain = draws_of(bound(obj.elbo), POSTERIOR, 200)
    assert np.asarray(plain[:, 1:]).std(0).max() > 0.3


def test_variances_in_the_known_order():
    """DReG against the plain pathwise gradient of IWAE (Tucker et al. 2019), VIMCO against the score function (Mnih 2016)."""
    params = jnp.array([0.2, 0.9, -0.4])

    def variance(program, params):
        return np.var(draws_of(program, params, 4000)[1], axis=0)[1:].sum()

    dreg, pathwise = (variance(bound(program, particles=50), params) for program in (obj.dreg, obj.iwae))
    assert dreg < pathwise / 5

    def by_score(p):
        return obj.iwae(Coins.model(p), Coins.family(p).with_estimators(ScoreFunction()), 10)

    vimco, score = (variance(program, Coins.params) for program in (bound(obj.vimco, Coins, particles=10), by_score))
    assert vimco < score / 5


def test_log_variance_is_the_leave_one_out_elbo_draw_by_draw():
    """Half the gradient of the sample variance of detached draws, against leave-one-out learning signals written out."""
    particles = 4

    @jax.jit
    def both(key, params):
        loss = ppl.expectation(lambda p: obj.log_variance(Normals.model(0 * p), Normals.family(p), particles))

        def draws(p):
            def one(_):
                trace, log_q = ppl.simulate(Normals.family(p).detach())
                return Normals.model(0 * p).log_density(trace) - log_q, log_q

            return jax.vmap(one)(jnp.arange(particles))

        (log_w, _), scores = ppl.seed(draws)(key, params), jax.jacobian(lambda p: pinned(key, p, params))(params)
        signals = log_w - (jnp.sum(log_w) - log_w) / (particles - 1)
        return loss.grad(key, params), jnp.mean(signals[:, None] * scores, 0)

    def pinned(key, p, at):
        """`log q` of the same draws."""
        traces = ppl.seed(lambda: jax.vmap(lambda _: ppl.simulate(Normals.family(at))[0])(jnp.arange(particles)))(key)
        return jax.vmap(lambda trace: Normals.family(p).log_density(trace))(traces)

    for key in jax.random.split(KEY, 3):
        loss, elbo = both(key, Normals.params)
        np.testing.assert_allclose(-loss / 2, elbo, rtol=2e-4, atol=1e-5)
        assert np.abs(elbo[1:]).min() > 1e-3


def test_log_variance_against_exact_variance():
    for world in (Coins, Normals):

        def exact(p, world=world):
            held = jax.lax.stop_gradient(world.tables(p)[2])
            log_prior, log_likelihood, log_q = world.tables(jnp.concatenate([p[:1], jax.lax.stop_gradient(p[1:])]))
            if world is Coins:
                log_q = world.tables(p)[2]
            else:
                z = jax.lax.stop_gradient(p[1] + jnp.exp(p[2]) * jnp.linspace(-9.0, 9.0, 401))
                # The grid's density includes its cell and the Jacobian of the noise, which do not move with held draws.
                log_q = log_q + dist.Normal(p[1], jnp.exp(p[2])).log_prob(z)
                log_q = log_q - jax.lax.stop_gradient(dist.Normal(p[1], jnp.exp(p[2])).log_prob(z))
            log_w = log_prior + log_likelihood - log_q
            mean = jnp.sum(jnp.exp(held) * log_w)
            return jnp.sum(jnp.exp(held) * (log_w - mean) ** 2)

        assert_unbiased(bound(obj.log_variance, world, particles=3), world.params, exact)


MANY = 2000


def test_consistent_objectives_with_many_particles():
    """Their bias, of order 1 / particles, is below the noise here."""

    def family_only(world, exact):
        return lambda p: exact(jnp.concatenate([jax.lax.stop_gradient(p[:1]), p[1:]]))

    for world in (Coins, Normals):

        def kl(p, world=world):
            log_prior, log_likelihood, log_q = world.tables(p)
            posterior = jax.nn.softmax(log_prior + log_likelihood)
            return jnp.sum(posterior * (jax.nn.log_softmax(log_prior + log_likelihood) - log_q))

        def log_v(p, world=world):
            return jnp.log(exact_mean(world, lambda l: jnp.exp(2 * l[:, 0]))(p))

        cases = [(obj.forward_kl, kl), (obj.vis_family, log_v), (obj.vis_family_pathwise, log_v)]
        if world is Normals:
            cases += [(obj.vis_family_doubly_reparameterized, log_v)]
        else:
            cases = cases[:2]  # enumerating the particles together would be too much, and the score function too noisy
        for program, exact in cases:
            assert_unbiased(bound(program, world, particles=MANY), world.params, family_only(world, exact), 60)
        # No value to compare with: the cross-entropy differs from the divergence by a constant.
        _, grads = draws_of(bound(obj.wake_phi, world, particles=MANY), world.params, 60)
        assert np.abs(z_scores(-grads, compiled(family_only(world, kl), world.params)[1])).max() < BOUND


def test_vis_through_the_draws_is_unbiased_for_its_number_of_particles():
    """With enumerated coins; no gradient reaches the model."""
    values, grads = draws_of(bound(obj.vis_family_pathwise, Coins, particles=2), Coins.params, 10)
    exact = exact_mean(Coins, lambda l: jax.nn.logsumexp(2 * l, axis=1) - jnp.log(2), 2)
    value, grad = compiled(exact, Coins.params)
    assert np.abs(z_scores(values, value)).max() < BOUND
    assert np.abs(z_scores(grads[:, 1:], grad[1:])).max() < BOUND
    assert not np.any(grads[:, 0])


def test_tail_adaptive_weights_depend_on_the_order_alone():
    def shifted(p, constant):
        def model():
            ppl.sample("model", Normals.joint(p))
            ppl.factor("constant", constant)

        def family():
            ppl.sample("model", Normals.family(p))

        conditioned = ppl.program(model)().condition({"model/x": 1.1})
        return obj.tail_adaptive(conditioned, ppl.program(family)(), 5)

    one, other = (draws_of(lambda p, c=c: shifted(p, c), Normals.params, 50)[1] for c in (0.0, 30.0))
    np.testing.assert_allclose(one, other, atol=1e-4)
    # With equal weights for all it is the ELBO, with no gradient in the model.
    values, grads = draws_of(bound(obj.tail_adaptive, particles=3, beta=0.0), Normals.params, 20_000)
    value, grad = compiled(exact_mean(Normals, lambda l: l[:, 0]), Normals.params)
    assert abs(z_scores(values, value)) < BOUND
    assert np.abs(z_scores(grads[:, 1:], grad[1:])).max() < BOUND
    assert not np.any(grads[:, 0])
    # Heavier weights for the tail of q widen a family that is too narrow more than the ELBO does.
    narrow = jnp.array([0.2, POSTERIOR[1], POSTERIOR[2] - 1.0])
    wide, elbo = (draws_of(bound(obj.tail_adaptive, particles=20, beta=b), narrow, 2000)[1][:, 2].mean() for b in (-1.0, 0.0))
    assert wide > 1.3 * elbo > 0


PATH_NEEDED = {
    "dreg": obj.dreg,
    "tail_adaptive": obj.tail_adaptive,
    "doubly reparameterized": obj.vis_family_doubly_reparameterized,
}


@pytest.mark.parametrize("name", PATH_NEEDED)
def test_sites_without_a_path_are_refused(name):
    def mixed(p):
        a = ppl.sample("a", dist.Bernoulli(logits=p))
        ppl.sample("z", dist.Normal(p + a, 1.0))

    def run(family, estimator=None):
        family = family if estimator is None else family.with_estimators(z=estimator)
        model = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))
        if "a" in ppl.trace_shapes(family):
            model = ppl.program(lambda: (ppl.sample("a", dist.Bernoulli(probs=0.4)), ppl.sample("z", dist.Normal(0.0, 1.0))))
        return ppl.expectation(lambda: PATH_NEEDED[name](model(), family, 3)).estimate(KEY)

    with pytest.raises(errors.EstimatorError, match=r"(?s)right for reparameterized sites alone.*'a' is.*gradients.py.*vimco"):
        run(ppl.program(mixed)(0.3))
    with pytest.raises(errors.EstimatorError, match=r"(?s)right for reparameterized sites alone.*'z' is"):
        run(Normals.family(Normals.params), ScoreFunction())
    coins = ppl.expectation(lambda p: PATH_NEEDED[name](Coins.model(p), Coins.family(p), 2))  # integers alone
    with pytest.raises(errors.EstimatorError, match=r"(?s)right for reparameterized sites alone.*'a' is"):
        coins.grad(KEY, Coins.params)
    assert not coins.check(Coins.params).ok
    with pytest.raises(errors.EstimatorError, match="detach changes one alone"):
        run(Normals.family(Normals.params).detach())


def families(p):
    @ppl.program
    def observing():
        ppl.sample("z", dist.Normal(p, 1.0))
        ppl.sample("y", dist.Normal(p, 1.0), obs=2.0)

    @ppl.program
    def weighing():
        ppl.sample("z", dist.Normal(p, 1.0))
        ppl.factor("bonus", p)

    @ppl.program
    def moving():
        ppl.sample("z", dist.Uniform(0.0, jnp.exp(p)))

    @ppl.program
    def normal():
        ppl.sample("z", dist.Normal(p, 1.0))

    @ppl.program
    def plated():
        ppl.plate("rows", lambda _: ppl.sample("z", dist.Normal(p, 1.0)), size=10)(jnp.arange(2))

    return {
        "the observation 'y'": observing(),
        "the factor 'bonus'": weighing(),
        r"the support moves with the parameters at 'z'.*gradients.py": moving(),
        "substitute changes": normal().substitute(z=0.3),
        "scale changes": normal().scale(2.0),
        "mask changes": normal().mask(z=True),
        "a scale multiplies the density at 'z'": plated(),
    }


def test_families_whose_score_has_no_mean_zero_are_refused():
    """The exact gradient differs there: for Uniform(0, e^p) the entropy's derivative, 1, would be lost, for instance."""

    @ppl.program
    def model():
        ppl.sample("z", dist.Normal(0.0, 1.0))

    programs = {"vimco": obj.vimco, "forward_kl": obj.forward_kl, "wake_phi": obj.wake_phi, "vis_family": obj.vis_family}
    for name, program in {**programs, **PATH_NEEDED, "sticking_the_landing": None}.items():
        for message, family in families(0.3).items():
            if program is None and any(word in message for word in ("scale", "mask", "plate")):
                continue

            def objective(family=family, program=program):
                return obj.sticking_the_landing(model(), family) if program is None else program(model(), family, 3)

            with pytest.raises(errors.EstimatorError, match=rf"(?s)needs a family.*{message}"):
                ppl.expectation(objective).estimate(KEY)
            assert name


def test_sticking_the_landing_with_subsampled_plates_and_closures():
    """Scaled local latents, and parameters that the program closes over instead of taking as arguments."""
    data, batch = jnp.array([0.3, -1.0, 2.0]), 2.0

    def objective(p):
        def model():
            def datum(x):
                z = ppl.sample("z", dist.Normal(p[0], 1.0))
                ppl.sample("x", dist.Normal(z, 0.8), obs=x)

            ppl.plate("rows", datum, size=6)(data)

        def family():
            ppl.plate("rows", lambda _: ppl.sample("z", dist.Normal(p[1], jnp.exp(p[2]))), size=6)(data)

        return obj.sticking_the_landing(ppl.program(model)(), ppl.program(family)())

    def exact(p):
        def one(x):
            log_prior, _, log_q = Normals.tables(p)
            z = p[1] + jnp.exp(p[2]) * jnp.linspace(-9.0, 9.0, 401)
            return jnp.sum(jnp.exp(log_q) * (log_prior + dist.Normal(z, 0.8).log_prob(x) - log_q))

        return batch * jnp.sum(jax.vmap(one)(data))

    assert_unbiased(objective, Normals.params, exact)


SURROGATES = {
    "sticking_the_landing": bound(obj.sticking_the_landing),
    "dreg": bound(obj.dreg, particles=2),
    "vimco": bound(obj.vimco, Coins, particles=2),
    "vis_family": bound(obj.vis_family, particles=2),
    "forward_kl": bound(obj.forward_kl, particles=2),
    "wake_phi": bound(obj.wake_phi, particles=2),
    "tail_adaptive": bound(obj.tail_adaptive, particles=2),
}


@pytest.mark.parametrize("name", SURROGATES)
def test_second_derivatives_of_surrogates_are_refused(name):
    objective = ppl.expectation(SURROGATES[name])
    params = Coins.params if name == "vimco" else Normals.params
    for derivative in (jax.hessian, lambda f: jax.jit(jax.jacrev(jax.grad(f)))):
        with pytest.raises(errors.DifferentiationError, match="second derivatives of this objective"):
            derivative(lambda p: objective.estimate(KEY, p))(params)


def test_second_derivatives_in_the_model_of_a_wake_step_are_right():
    def objective(t):
        return obj.wake_theta(Coins.model(jnp.append(t, Coins.params[1:])), Coins.family(Coins.params), 2)

    @jax.jit
    def hessians(keys):
        return jax.vmap(lambda key: jax.hessian(lambda t: ppl.expectation(objective).estimate(key, t))(0.4))(keys)

    def exact(t):
        log_w = exact_mean(Coins, lambda l: jax.nn.logsumexp(l, axis=1) - jnp.log(2), 2)
        return log_w(jnp.append(t, Coins.params[1:]))

    assert abs(z_scores(hessians(jax.random.split(KEY, 20_000)), jax.jit(jax.hessian(exact))(0.4))) < BOUND


def test_log_evidence_is_what_the_tables_say():
    """The yardstick itself: Normals in closed form."""
    at = log_evidence(Normals)(Normals.params)
    np.testing.assert_allclose(at, dist.Normal(0.2, np.sqrt(1 + 0.64)).log_prob(1.1), rtol=1e-4)
