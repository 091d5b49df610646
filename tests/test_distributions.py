"""The project's own distributions against enumeration, quadrature and SciPy, and in programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import ppl
import ppl.distributions as dist
from ppl import errors
from ppl.estimators import Enumerate, Reparameterize, ScoreFunction
from ppl.transforms.plan import first_choice
from ppl.transforms.stage import stage

KEY = jax.random.key(21)
N = 10_000
BOUND = 4.5  # |z| of every comparison; 1e-5 of a false alarm each, over about 60 of them


def z_scores(draws, exact):
    draws = np.asarray(draws, float)
    rounding = 2e-6 * (1.0 + np.abs(exact))
    return (draws.mean(0) - np.asarray(exact, float)) / np.maximum(draws.std(0) / np.sqrt(len(draws)), rounding)


def assert_unbiased(objective, theta, exact, n=N):
    values, grads = jax.jit(jax.vmap(lambda key: objective.value_and_grad(key, theta)))(jax.random.split(KEY, n))
    assert np.abs(z_scores(values, exact(theta))).max() < BOUND
    assert np.abs(z_scores(grads, jax.grad(exact)(theta))).max() < BOUND


def chosen(distribution):
    (plan,) = first_choice(stage(lambda: ppl.sample("x", distribution)).jaxpr.jaxpr).values()
    return type(plan.estimator)


# One-hot vectors

PROBS = jnp.array([0.2, 0.5, 0.3])


@pytest.mark.parametrize("make", [lambda p: dist.OneHotCategorical(p), lambda p: dist.OneHotCategorical(logits=2 + jnp.log(p))])
def test_one_hot_density_draws_and_moments(make):
    d = make(PROBS)
    values = d.enumerate_support()
    np.testing.assert_array_equal(values, np.eye(3))
    np.testing.assert_allclose(jnp.exp(d.log_prob(values)), PROBS, rtol=1e-6)
    draws = np.asarray(d.sample(KEY, (N,)))
    assert draws.dtype == np.float32
    assert d.support(draws).all()
    assert np.abs(z_scores(draws, PROBS)).max() < BOUND
    np.testing.assert_allclose(d.mean, PROBS, rtol=1e-6)
    np.testing.assert_allclose(d.variance, PROBS * (1 - PROBS), rtol=1e-6)
    np.testing.assert_allclose(d.entropy(), scipy.stats.entropy(PROBS), rtol=1e-6)
    np.testing.assert_allclose(
        d.expand([4]).log_prob(jnp.eye(3)[jnp.array([0, 1, 2, 1])]), np.log(PROBS)[[0, 1, 2, 1]], rtol=1e-5
    )


def test_categories_that_cannot_happen():
    def by_logits(logits):
        return dist.OneHotCategorical(logits=logits, validate_args=False)

    for d in (dist.OneHotCategorical(jnp.array([0.0, 1.0])), by_logits(jnp.array([-jnp.inf, 0.0]))):
        np.testing.assert_allclose(d.log_prob(jnp.array([0.0, 1.0])), 0.0, atol=1e-6)
        np.testing.assert_array_equal(d.sample(KEY, (100,))[:, 0], 0.0)
    gradient = jax.grad(lambda l: by_logits(l).log_prob(jnp.array([0.0, 1.0])))(jnp.array([-jnp.inf, 0.0]))
    np.testing.assert_array_equal(gradient, 0.0)


def test_one_of_probs_and_logits():
    for make in (dist.OneHotCategorical, lambda **both: dist.RelaxedOneHotCategorical(1.0, **both)):
        for arguments in ({}, {"probs": PROBS, "logits": PROBS}):
            with pytest.raises(ValueError, match="either probs or logits"):
                make(**arguments)


COSTS = jnp.array([1.0, -2.0, 4.0])


def softmax_cost(t, power=1):
    return jax.nn.softmax(jnp.array([t, 0.0, -t])) @ COSTS**power


def one_hot(t):
    return dist.OneHotCategorical(logits=jnp.array([t, 0.0, -t]))


def plate(e, t):
    return jnp.sum(jax.vmap(lambda s: ppl.sample("x", one_hot(t + s), estimator=e) @ COSTS)(jnp.array([0.0, 0.5]))) ** 2


def chain(e, t):
    def step(x, _):
        return ppl.sample("x", dist.OneHotCategorical(logits=x @ (t * jnp.eye(3))), estimator=e), None

    return jax.lax.scan(step, jnp.array([0.0, 0.0, 1.0]), None, length=3)[0] @ COSTS


ONE_HOT = {
    "plain": (lambda e, t: ppl.sample("x", one_hot(t), estimator=e) @ COSTS, softmax_cost),
    "expanded": (
        lambda e, t: jnp.prod(ppl.sample("x", one_hot(t).expand([2]), estimator=e) @ COSTS),
        lambda t: softmax_cost(t) ** 2,
    ),
    "to_event": (
        lambda e, t: jnp.sum((ppl.sample("x", one_hot(t).expand([2]).to_event(1), estimator=e) @ COSTS) ** 2),
        lambda t: 2 * softmax_cost(t, 2),
    ),
    "plate": (
        plate,
        lambda t: softmax_cost(t, 2) + softmax_cost(t + 0.5, 2) + 2 * softmax_cost(t) * softmax_cost(t + 0.5),
    ),
    "chain": (chain, lambda t: jnp.linalg.matrix_power(jax.nn.softmax(t * jnp.eye(3), axis=-1), 3)[2] @ COSTS),
}


@pytest.mark.parametrize("construct", ONE_HOT)
def test_one_hot_sites_are_enumerated_exactly_and_scored(construct):
    body, exact = ONE_HOT[construct]
    value, grad = jax.jit(ppl.expectation(lambda t: body(None, t)).value_and_grad)(KEY, 0.4)
    np.testing.assert_allclose(value, exact(0.4), rtol=1e-5)
    np.testing.assert_allclose(grad, jax.grad(exact)(0.4), rtol=1e-4)
    assert_unbiased(ppl.expectation(lambda t: body(ScoreFunction(), t)), 0.4, exact)


def test_a_wrong_one_hot_observation_is_refused():
    bound = ppl.program(lambda: ppl.sample("x", dist.OneHotCategorical(PROBS)))()
    with pytest.raises(errors.SupportError, match="outside of the support of OneHotCategorical"):
        bound.condition(x=jnp.array([1.0, 1.0, 0.0])).log_density({})
    np.testing.assert_allclose(bound.condition(x=jnp.array([0, 1, 0])).log_density({}), np.log(0.5), rtol=1e-6)
    assert chosen(dist.OneHotCategorical(PROBS)) is Enumerate
    assert chosen(dist.OneHotCategorical(PROBS).expand([2, 3]).to_event(2)) is Enumerate


# Their relaxation


def test_relaxed_density_of_two_is_the_relaxed_bernoulli():
    x = jnp.linspace(0.02, 0.98, 25)
    ours = dist.RelaxedOneHotCategorical(0.7, logits=jnp.array([0.5, -0.3])).log_prob(jnp.stack([x, 1 - x], -1))
    np.testing.assert_allclose(ours, dist.RelaxedBernoulli(0.7, logits=0.8).log_prob(x), rtol=1e-4, atol=1e-5)


def test_relaxed_density_integrates_to_one_and_agrees_with_the_draws():
    """In u_i = log(x_i / x_3), whose Jacobian is x_1 x_2 x_3, by the trapezoid rule, in double precision."""
    with jax.enable_x64(True):
        d = dist.RelaxedOneHotCategorical(jnp.array([0.6, 1.5]), probs=jnp.array([0.2, 0.5, 0.3]))
        assert d.batch_shape == (2,)
        u = jnp.linspace(-60.0, 60.0, 601)
        x = jax.nn.softmax(jnp.stack([*jnp.meshgrid(u, u), jnp.zeros((601, 601))], -1), -1)[:, :, None]
        weights = jnp.exp(d.log_prob(x) + jnp.sum(jnp.log(x), -1)) * (u[1] - u[0]) ** 2
        np.testing.assert_allclose(jnp.sum(weights, (0, 1)), 1.0, rtol=1e-6)
        moment = np.asarray(jnp.sum(weights[..., None] * x**2, (0, 1)))
    draws = dist.RelaxedOneHotCategorical(jnp.array([0.6, 1.5]), probs=PROBS).sample(KEY, (N,))
    assert np.abs(z_scores(np.asarray(draws) ** 2, moment)).max() < BOUND


def test_a_cold_relaxation_is_nearly_discrete():
    draws = dist.RelaxedOneHotCategorical(0.02, PROBS).sample(KEY, (N,))
    assert np.abs(z_scores(np.argmax(draws, -1)[:, None] == np.arange(3), PROBS)).max() < BOUND
    assert np.mean(np.max(draws, -1) > 0.99) > 0.9
    assert np.isfinite(dist.RelaxedOneHotCategorical(0.02, PROBS).log_prob(draws)).all()
    assert chosen(dist.RelaxedOneHotCategorical(0.5, PROBS)) is Reparameterize


# Spheres


def direction(dimension, t=0.3):
    """A unit vector that turns with t."""
    return jnp.zeros(dimension).at[0].set(jnp.cos(t)).at[-1].set(jnp.sin(t))


@pytest.mark.parametrize("dimension", [2, 7, 61, 300])
def test_the_normalizer_against_bessel_functions(dimension):
    """SciPy's I_nu, in double precision: the series, the expansion, and both sides of where they meet."""
    nu, k = dimension / 2 - 1, np.array([0.03, 1.0, 9.0, 29.9, 30.1, 200.0, 1e4])
    pole = np.eye(dimension)[0]
    with jax.enable_x64(True):
        at_pole = dist.VonMisesFisher(jnp.asarray(pole), jnp.asarray(k))
        values, lengths = np.asarray(at_pole.log_prob(jnp.asarray(pole))), np.asarray(at_pole.mean)[:, 0]
        slopes = np.asarray(jax.grad(lambda k: dist.VonMisesFisher(pole, k).log_prob(pole).sum())(jnp.asarray(k)))
    bessel = scipy.special.ive(nu, k)
    known = bessel > 0  # SciPy's underflow at small concentrations in many dimensions
    assert known.sum() >= 4
    k, bessel = k[known], bessel[known]
    ratio = scipy.special.ive(nu + 1, k) / bessel
    exact = nu * np.log(k) - dimension / 2 * np.log(2 * np.pi) - np.log(bessel)
    np.testing.assert_allclose(values[known], exact, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(lengths[known], ratio, rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(slopes[known], 1 - ratio, rtol=1e-9)
    single = dist.VonMisesFisher(pole.astype(np.float32), k.astype(np.float32)).log_prob(pole.astype(np.float32))
    np.testing.assert_allclose(single, exact, rtol=1e-5, atol=1e-4)


def test_in_space_the_density_has_a_closed_form():
    k, x = jnp.array([0.5, 4.0, 50.0]), jnp.array([0.6, 0.0, 0.8])
    exact = jnp.log(k / (4 * jnp.pi * jnp.sinh(k))) + k * 0.8
    np.testing.assert_allclose(dist.VonMisesFisher(jnp.array([0.0, 0.0, 1.0]), k).log_prob(x), exact, rtol=2e-5)


@pytest.mark.parametrize("dimension", [2, 3, 8])
def test_spherical_density_integrates_to_one(dimension):
    """Over the angle from the mean, in slices that are spheres one dimension lower."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    angle, weights = np.pi * (nodes + 1) / 2, np.pi * weights / 2
    points = jnp.zeros((200, dimension)).at[:, 0].set(np.cos(angle)).at[:, 1].set(np.sin(angle))
    area = 2 * np.pi ** ((dimension - 1) / 2) / scipy.special.gamma((dimension - 1) / 2)
    for k in (0.1, 3.0, 35.0):
        density = jnp.exp(dist.VonMisesFisher(jnp.eye(dimension)[0], k).log_prob(points))
        np.testing.assert_allclose(np.sum(weights * density * np.sin(angle) ** (dimension - 2)) * area, 1.0, rtol=2e-5)


@pytest.mark.parametrize("dimension", [2, 3, 40])
def test_spherical_draws_have_the_right_moments(dimension):
    k = jnp.array([0.05, 2.0, 1e3])
    mean = direction(dimension)
    d = dist.VonMisesFisher(mean, k)
    draws = jax.jit(lambda key: d.sample(key, (N,)))(KEY)
    assert d.support(draws).all()
    assert np.abs(z_scores(draws, d.mean)).max() < BOUND
    # E[w^2] = 1 - (D - 1) A / k, and the rest is spread evenly over the tangent directions.
    cosine, ratio = np.asarray(draws @ mean, float), np.asarray(d.mean @ mean, float)
    assert np.abs(z_scores(1 - cosine**2, (dimension - 1) * ratio / np.asarray(k))).max() < BOUND
    tangent = jnp.zeros(dimension).at[0].set(-jnp.sin(0.3)).at[-1].set(jnp.cos(0.3))
    assert np.abs(z_scores(np.asarray(draws @ tangent) ** 2, ratio / np.asarray(k))).max() < BOUND


def test_a_high_concentration_in_single_precision():
    """Near the mean it is a normal distribution in the tangent plane: k |x - mean|^2 is chi-squared with D - 1 degrees."""
    for dimension in (2, 3, 6):
        x = dist.VonMisesFisher(jnp.eye(dimension)[0], 1e7).sample(KEY, (N,))
        assert abs(z_scores(1e7 * jnp.sum(x[:, 1:] ** 2, -1), dimension - 1)) < BOUND


def spherical_mean(dimension):
    """E[<x, e_1> + 2 <x, e_D>] as the mean turns and the concentration grows."""

    def exact(t):
        k = 2.0 * jnp.exp(t)
        ratio = jax.scipy.special.i1e(k) / jax.scipy.special.i0e(k) if dimension == 2 else 1 / jnp.tanh(k) - 1 / k
        return ratio * (jnp.cos(t) + 2 * jnp.sin(t))

    return exact


@pytest.mark.parametrize(("dimension", "estimator"), [(2, ScoreFunction), (3, Reparameterize)])
def test_gradients_on_spheres(dimension, estimator):
    def draw(t):
        return ppl.sample("x", dist.VonMisesFisher(direction(dimension, t), 2.0 * jnp.exp(t)), estimator=estimator())

    costs = jnp.zeros(dimension).at[0].set(1.0).at[-1].set(2.0)
    exact = spherical_mean(dimension)
    assert_unbiased(ppl.expectation(lambda t: draw(t) @ costs), 0.3, exact)
    product = ppl.expectation(lambda t: jnp.prod(jax.vmap(lambda s: draw(t + s))(jnp.array([0.0, 0.4])) @ costs))
    assert_unbiased(product, 0.3, lambda t: exact(t) * exact(t + 0.4))


def test_the_estimator_of_a_sphere():
    assert chosen(dist.VonMisesFisher(direction(3), 2.0)) is Reparameterize
    assert chosen(dist.VonMisesFisher(direction(3), jnp.ones(4)).to_event(1)) is Reparameterize
    assert chosen(dist.VonMisesFisher(direction(2), 2.0)) is ScoreFunction
    assert chosen(dist.VonMisesFisher(direction(5), 2.0).expand([2])) is ScoreFunction
    objective = ppl.expectation(
        lambda k: ppl.sample("x", dist.VonMisesFisher(direction(5), k), estimator=Reparameterize())[0],
    )
    with pytest.raises(errors.EstimatorError, match="no right pathwise derivative"):
        objective.grad(KEY, 2.0)
    with pytest.raises(ValueError, match="two or more dimensions"):
        dist.VonMisesFisher(jnp.ones(1), 2.0)
    pole = jnp.array([1.0, 0.0, 0.0])  # where a reflection of a pole would be singular
    assert np.isfinite(jax.grad(lambda m: dist.VonMisesFisher(m, 2.0).sample(KEY)[1])(pole)).all()


@pytest.mark.parametrize(
    "distribution",
    [
        dist.OneHotCategorical(jnp.stack([PROBS, PROBS[::-1]])),
        dist.RelaxedOneHotCategorical(jnp.array([0.5, 1.0]), logits=PROBS),
        dist.VonMisesFisher(direction(4), jnp.array([0.5, 3.0])),
    ],
    ids=["one-hot", "relaxed", "sphere"],
)
def test_in_programs_traces_and_plates(distribution):
    @ppl.program
    def program(weights):
        jax.vmap(lambda w: ppl.sample("x", distribution.to_event(1)))(weights)
        ppl.sample("y", distribution)

    bound = program(jnp.arange(3.0))
    trace, log_p = jax.jit(bound.simulate)(KEY)
    assert trace["x"].shape == (3, 2, *distribution.event_shape)
    exact = jnp.sum(distribution.log_prob(trace["x"])) + jnp.sum(distribution.log_prob(trace["y"]))
    np.testing.assert_allclose(log_p, exact, rtol=1e-5)
    np.testing.assert_allclose(bound.log_density(trace), exact, rtol=1e-5)
    leaves, tree = jax.tree.flatten(distribution)
    again = jax.tree.unflatten(tree, leaves)
    np.testing.assert_array_equal(again.log_prob(trace["y"]), distribution.log_prob(trace["y"]))
