"""`assert_unbiased` finds bias, and finds none where there is none; the exact values it finds by itself are right."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import ppl
import ppl.distributions as dist
from ppl import errors
from ppl.estimators import Particle, ScoreFunction
from ppl.estimators.protocol import OneValue
from ppl.inference.moments import Arguments, Moments, moments
from ppl.testing import assert_unbiased
from ppl.testing.exact import exact_derivatives
from ppl.testing.unbiased import _compare

SCORE = ScoreFunction()


@dataclasses.dataclass(frozen=True)
class Custom(OneValue):
    """A user's estimator, right or wrong."""

    kind: str
    unbiased: bool = True

    def refuses(self, distribution, site):
        return None

    def particle(self, key, distribution):
        value = jax.lax.stop_gradient(distribution.sample(key))
        log_p = distribution.log_prob(value)
        score = log_p - jax.lax.stop_gradient(log_p)
        return {
            "right": lambda: Particle(value, score),
            "no weight": lambda: Particle(value),
            "first order only": lambda: Particle(value, jnp.log1p(score)),
            "straight through": lambda: Particle(value + distribution.mean - jax.lax.stop_gradient(distribution.mean)),
            "half a score": lambda: Particle(value, 0.5 * score),
            "ten percent off": lambda: Particle(value, 1.1 * score),
        }[self.kind]()


def flip(estimator):
    @ppl.expectation
    def objective(params):
        heads = ppl.sample("heads", dist.Bernoulli(logits=params["logit"]), estimator=estimator)
        return (heads - params["target"][1]) ** 2 + heads * params["target"][0]

    return objective


PARAMS = {"logit": jnp.array(0.4), "target": jnp.array([0.5, 0.2]), "steps": 3}


@pytest.mark.parametrize("exact", ["enumerate", "quadrature"])
def test_a_right_estimator_passes(exact):
    result = assert_unbiased(flip(Custom("right")), PARAMS, exact, order=2)
    assert result.names[:3] == ("value", "d/d args[0]['logit']", "d/d args[0]['target'][0]")
    assert len(result.names) == 1 + 3 + 6
    p = scipy.special.expit(0.4)
    np.testing.assert_allclose(result.exact[0], p * (0.8**2 + 0.5) + (1 - p) * 0.04, rtol=1e-6)
    np.testing.assert_allclose(result.exact[1:4], [p * (1 - p) * 1.1, p, -2 * (p - 0.2)], rtol=1e-5)


@pytest.mark.parametrize("kind", ["no weight", "straight through", "half a score"])
def test_wrong_estimators_are_caught_by_name(kind):
    with pytest.raises(errors.BiasError, match=r"d/d args\[0\]\['logit'\]") as caught:
        assert_unbiased(flip(Custom(kind)), PARAMS, "enumerate")
    assert isinstance(caught.value, AssertionError)
    message = str(caught.value)
    assert "d/d args[0]['target']" not in message  # that gradient is right
    assert "10000 draws" in message


def test_a_small_bias_needs_many_draws_and_is_caught_then():
    # Score-function gradients have a standard deviation of about 0.3 here, so the bias of 0.026 is about 3 standard errors
    # of a thousand draws and 17 of 40,000.
    objective = flip(Custom("ten percent off"))
    assert_unbiased(objective, PARAMS, "enumerate", draws=1000)
    with pytest.raises(errors.BiasError):
        assert_unbiased(objective, PARAMS, "enumerate", draws=40_000)


def test_only_the_hessian_shows_an_estimator_of_first_order():
    objective = flip(Custom("first order only"))
    assert_unbiased(objective, PARAMS, "enumerate")
    with pytest.raises(errors.BiasError, match=r"d2/d args\[0\]\['logit'\] d args\[0\]\['logit'\]"):
        assert_unbiased(objective, PARAMS, "enumerate", order=2)


def test_deterministic_estimates_are_held_to_rounding():
    objective = ppl.expectation(lambda x: 10.0 * ppl.sample("b", dist.Bernoulli(probs=x)) - 9.0 * x)
    result = assert_unbiased(objective, 0.3, lambda x: x)
    assert (result.standard_error > 0).all()
    for wrong in ((0.3 + 0.01, 1.0), (0.3, 1.01)):
        with pytest.raises(errors.BiasError):
            assert_unbiased(objective, 0.3, wrong)


def test_tiny_objectives_are_compared_on_their_own_scale():
    objective = ppl.expectation(lambda x: 1e-9 * ppl.sample("b", dist.Normal(x, 1.0)))
    assert_unbiased(objective, 2.0, lambda x: 1e-9 * x)
    with pytest.raises(errors.BiasError, match="value"):
        assert_unbiased(objective, 2.0, (2.2e-9, 1e-9))


def test_estimates_that_are_not_finite_fail():
    objective = ppl.expectation(lambda x: jnp.log(ppl.sample("z", dist.Normal(x, 1.0))))
    with pytest.raises(errors.BiasError, match="not finite"):
        assert_unbiased(objective, 1.0, (0.0, None))


def alarms(rates, repetitions, n):
    """How often an unbiased objective with skewed, correlated gradients fails, of many independent tests at these rates."""

    @ppl.expectation
    def objective(theta):
        rare = ppl.sample("rare", dist.Bernoulli(probs=jax.nn.sigmoid(theta[0])), estimator=SCORE)
        return (1.0 + rare) * ppl.sample("x", dist.Normal(theta[1] * theta[2], 1.0)) ** 2

    theta = jnp.array([-3.0, 0.5, 2.0])  # sigmoid(-3) = 0.047
    arguments = Arguments((theta,), 0)
    truth, error = exact_derivatives(objective, arguments, "quadrature", 1)

    @jax.jit
    def draws(key):
        def one(key):
            return arguments.derivatives(lambda t: objective.estimate(key, t), theta, [], 1)

        return jax.vmap(one)(jax.random.split(key, n))

    failed = []
    for key in jax.random.split(jax.random.key(5), repetitions):
        x = np.asarray(draws(key), float)
        gap = x - x.mean(0)
        found = Moments(n, x.mean(0), (gap**2).sum(0), (gap**3).sum(0))
        tests = [_compare(arguments.labels(1), found, truth, error, rate, None, jnp.float32) for rate in rates]
        failed.append([len(test.failures) > 0 for test in tests])
    return np.mean(failed, axis=0)


def test_false_positives_come_at_about_the_stated_rate():
    # The four elements are correlated and the bounds widened for skewness, so the rate is below the nominal one.
    often, rarely = alarms([0.2, 0.01], repetitions=400, n=1000)
    assert 0.04 < often < 0.2 + 3 * np.sqrt(0.2 * 0.8 / 400)
    assert rarely < 0.01 + 3 * np.sqrt(0.01 * 0.99 / 400)


def test_moments_agree_with_numpy_over_batches_of_unequal_size():
    def draw(key, shift):
        return jnp.exp(jax.random.normal(key, (3,))) + shift

    found = moments(draw, jax.random.key(0), 1000, jnp.array([0.0, 10.0, -5.0]), batch=300)
    batches = enumerate((300, 300, 300, 100))
    keys = jnp.concatenate([jax.random.split(jax.random.fold_in(jax.random.key(0), i), 300)[:count] for i, count in batches])
    x = np.asarray(jax.vmap(draw, in_axes=(0, None))(keys, jnp.array([0.0, 10.0, -5.0])), float)
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.variance, x.var(0, ddof=1), rtol=1e-4)
    gap = x - x.mean(0)
    np.testing.assert_allclose(found.skewness, (gap**3).mean(0) / (gap**2).mean(0) ** 1.5, rtol=1e-3)


# Exact values, against closed forms.


def mixture(a):
    """A discrete site in a plate decides over continuous ones, one of which stands in one branch of a cond."""

    def lane(shift):
        b = ppl.sample("b", dist.Bernoulli(probs=jax.nn.sigmoid(a)))
        return shift * b

    total = jax.vmap(lane)(jnp.array([1.0, 2.0])).sum()  # E = 3 s, Var = 5 s (1 - s)
    spread = jax.lax.cond(total > 2.5, lambda: ppl.sample("y", dist.Gamma(2.0, jnp.exp(a))), lambda: a)  # both: probability s^2
    return total**2 * spread


def mixture_exact(a):
    s = jax.nn.sigmoid(a)
    return s**2 * 9.0 * 2.0 * jnp.exp(-a) + a * s * (1 - s) * (1.0 + 4.0)


def chain(m):
    def step(x, _):
        x = ppl.sample("x", dist.Normal(m * x, 0.5))
        return x, None

    return jax.lax.scan(step, 1.0, None, length=2)[0] ** 2


def twice(m):
    family = ppl.program(lambda: ppl.sample("x", dist.StudentT(8.0, m, 1.0)))
    (one, _), (other, _) = ppl.simulate(family()), ppl.simulate(family())
    return one["x"] * other["x"] ** 2


def supports(m):
    u = ppl.sample("u", dist.Uniform(1.0, 3.0))
    w = ppl.sample("w", dist.Beta(jnp.exp(m), 2.0))
    return u * w


EXACT = {
    "mixture": (mixture, mixture_exact),
    "scan": (chain, lambda m: m**4 + 0.25 * (1 + m**2)),
    "twice": (twice, lambda m: m * (m**2 + 8.0 / 6.0)),
    "supports": (supports, lambda m: 2.0 * jnp.exp(m) / (jnp.exp(m) + 2.0)),
    "dirichlet": (
        lambda m: ppl.sample("d", dist.Dirichlet(jnp.stack([jnp.exp(m), 1.0, 2.0])))[0] ** 2,
        lambda m: jnp.exp(m) * (jnp.exp(m) + 1) / ((jnp.exp(m) + 3) * (jnp.exp(m) + 4)),
    ),
    "detached": (
        lambda m: ppl.simulate(ppl.program(lambda: ppl.sample("x", dist.Normal(m, 1.0)))().detach())[0]["x"] ** 2 * m,
        lambda m: (jax.lax.stop_gradient(m**2) + 1.0) * m,
    ),
    "delta": (
        lambda m: ppl.sample("d", dist.Delta(m)) * ppl.sample("x", dist.LogNormal(m, 0.5)),
        lambda m: m * jnp.exp(m + 0.125),
    ),
}


@pytest.mark.parametrize("name", EXACT)
def test_quadrature_agrees_with_closed_forms(name):
    function, exact = EXACT[name]
    order = 2 if name == "scan" else 1
    arguments = Arguments((0.3,), 0)
    found, error = exact_derivatives(ppl.expectation(function), arguments, "quadrature", order)
    truth = arguments.derivatives(exact, arguments.vector, [], order)
    np.testing.assert_allclose(found, truth, rtol=5e-5, atol=5e-5)
    assert error.max() < 1e-4


def test_a_density_far_from_the_origin_and_narrow():
    objective = ppl.expectation(lambda m: (ppl.sample("x", dist.Normal(m, 0.01)) - 5.0) ** 2)
    arguments = Arguments((5.5,), 0)
    found, error = exact_derivatives(objective, arguments, "quadrature", 1)
    np.testing.assert_allclose(found, [0.2501, 1.0], rtol=2e-4)  # float32 resolves 5 to 5e-7, or 5e-5 standard deviations
    assert 2e-5 < error[1] < 2e-4  # and it says so
    assert_unbiased(objective, 5.5, "quadrature")


@pytest.mark.parametrize(
    ("function", "how", "message"),
    [
        (lambda m: ppl.sample("x", dist.Normal(m, 1.0)), "enumerate", "'x' ~ Normal is continuous"),
        (lambda m: 1.0 * ppl.sample("x", dist.Poisson(m)), "quadrature", "infinitely many"),
        (lambda m: ppl.sample("x", dist.Uniform(0.0, m)), "quadrature", "support that depends on parameters"),
        (lambda m: ppl.sample("x", dist.Normal(m, 1.0).expand([7])).sum(), "quadrature", r"more than .*'x' \(7\)"),
        (lambda m: 1.0 * ppl.sample("x", dist.Bernoulli(m).expand([40])).sum(), "enumerate", r"more than .*'x' \(40\)"),
        (lambda m: 1.0 * (ppl.sample("x", dist.Normal(jnp.stack([m, 1.0]), 1.0)).sum() > m), "quadrature", "has not converged"),
        (lambda m: m * ppl.subsample("rows", 5, 2).sum(), "enumerate", "random subsample"),
        (lambda m: m, "monte carlo", "got 'monte carlo'"),
    ],
)
def test_what_cannot_be_found_is_refused(function, how, message):
    with pytest.raises(errors.NoExactValueError, match=message):
        assert_unbiased(ppl.expectation(function), 0.4, how)


def test_exact_numbers_have_the_structure_of_the_arguments():
    objective = ppl.expectation(lambda a, b: a["x"] * ppl.sample("z", dist.Normal(b, 1.0)))
    args = ({"x": jnp.array(2.0)}, jnp.array(3.0))
    assert_unbiased(objective, args, (6.0, ({"x": 3.0}, 2.0)), argnums=(0, 1))
    result = assert_unbiased(objective, args, (6.0, 2.0), argnums=1, samples=4)
    assert result.names == ("value", "d/d args[1]")
    assert result.standard_error[0] == pytest.approx(2.0 / np.sqrt(4 * 10_000), rel=0.05)
    with pytest.raises(errors.ValueShapeError, match="leaves of shapes"):
        assert_unbiased(objective, args, (6.0, jnp.zeros(2)), argnums=1)
    with pytest.raises(errors.ObjectiveError, match=r"\(value, gradient\)"):
        assert_unbiased(objective, args, 6.0)
