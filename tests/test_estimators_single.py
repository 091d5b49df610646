"""Accept-reject, importance-sampled and antithetic draws against exact values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import digamma

import ppl
import ppl.distributions as dist
from ppl import errors
from ppl.estimators import AcceptReject, ImportanceSampling, Reparameterize, ScoreFunction

KEY = jax.random.key(11)
N = 10_000
BOUND = 4.5  # |z| of every comparison; 1e-5 of a false alarm each, over about 150 of them


def z_scores(draws, exact):
    draws = np.asarray(draws, float)
    rounding = 2e-6 * (1.0 + np.abs(exact))  # a mean of float32 numbers is no better
    return (draws.mean(0) - np.asarray(exact, float)) / np.maximum(draws.std(0) / np.sqrt(len(draws)), rounding)


def assert_unbiased(objective, theta, exact, n=N, samples=None):
    run = jax.jit(jax.vmap(lambda key: objective.value_and_grad(key, theta, samples=samples)))
    values, grads = run(jax.random.split(KEY, n))
    assert np.abs(z_scores(values, exact(theta))).max() < BOUND
    assert np.abs(z_scores(grads, jax.grad(exact)(theta))).max() < BOUND
    return np.asarray(values), np.asarray(grads)


# Laws: the distribution of theta, its first two moments, the estimator.
LAWS = {
    "accept-reject": (
        lambda t: dist.Gamma(0.4 + t, 1.5),
        lambda t: (0.4 + t) / 1.5,
        lambda t: (0.4 + t) * (1.4 + t) / 1.5**2,
        AcceptReject(),
    ),
    "importance": (
        lambda t: dist.Normal(t, 0.7),
        lambda t: t,
        lambda t: t**2 + 0.49,
        ImportanceSampling(lambda p: dist.StudentT(6.0, p.loc, 1.2 * p.scale)),
    ),
    "antithetic": (
        lambda t: dist.LogNormal(t, 0.4),
        lambda t: jnp.exp(t + 0.08),
        lambda t: jnp.exp(2 * t + 0.32),
        Reparameterize(antithetic=True),
    ),
}


def plate(draw, t):
    return jnp.prod(jax.vmap(lambda shift: draw("x", t + shift))(jnp.array([0.0, 0.3])))


def scan(draw, t):
    def step(total, shift):
        x = draw("x", t + shift)
        return total + x, x**2

    total, squares = jax.lax.scan(step, 0.0, jnp.array([0.0, 0.3]))
    return total**2 + jnp.sum(squares)


def cond(draw, t):
    coin = ppl.sample("b", dist.Bernoulli(probs=0.4))
    return jax.lax.cond(coin == 1, lambda: draw("x", t) ** 2, lambda: draw("y", t))


def nested(draw, t):
    outer = ppl.program(lambda: ppl.sample("sub", ppl.program(lambda: draw("x", t, None))()))
    return ppl.simulate(outer().with_estimators(sub=draw.estimator))[0]["sub"]["x"] ** 2


CONSTRUCTS = {
    "plate": (plate, lambda m, s, t: m(t) * m(t + 0.3)),
    "scan": (scan, lambda m, s, t: 2 * s(t) + 2 * s(t + 0.3) + 2 * m(t) * m(t + 0.3)),
    "cond": (cond, lambda m, s, t: 0.4 * s(t) + 0.6 * m(t)),
    "nested": (nested, lambda m, s, t: s(t)),
}


class Site:
    def __init__(self, make, estimator):
        self.make, self.estimator = make, estimator

    def __call__(self, name, t, *chosen):
        return ppl.sample(name, self.make(t), estimator=chosen[0] if chosen else self.estimator)


@pytest.mark.parametrize("construct", CONSTRUCTS)
@pytest.mark.parametrize("law", LAWS)
def test_every_estimator_in_every_construct(law, construct):
    make, first, second, estimator = LAWS[law]
    body, exact = CONSTRUCTS[construct]
    objective = ppl.expectation(lambda t: body(Site(make, estimator), t))
    samples = 4 if construct in ("plate", "scan") else None
    assert_unbiased(objective, 0.5, lambda t: exact(first, second, t), samples=samples, n=N // (samples or 1))


@pytest.mark.parametrize("law", LAWS)
def test_a_later_site_depends_on_the_value_and_costs_are_scaled(law):
    """E[5 log p(y | x)] + E[x y], y ~ N(x, 1): the weight of x goes with all that depends on y."""
    make, _, second, estimator = LAWS[law]

    @ppl.program
    def family(t):
        x = ppl.sample("x", make(t))
        ppl.sample("y", dist.Normal(x, 1.0))

    @ppl.program
    def model(x):
        ppl.sample("y", dist.Normal(0.5 * x, 1.0))

    @ppl.expectation
    def objective(t):
        trace, _ = ppl.simulate(family(t).with_estimators(x=estimator))
        return model(trace["x"]).scale(5.0).log_density({"y": trace["y"]}) + trace["x"] * trace["y"]

    def exact(t):
        return 5.0 * (-0.5 * (0.25 * second(t) + 1.0) - 0.5 * np.log(2 * np.pi)) + second(t)

    assert_unbiased(objective, 0.5, exact)


@pytest.mark.parametrize("law", LAWS)
def test_second_derivatives(law):
    make, _, second, estimator = LAWS[law]
    objective = ppl.expectation(lambda t: t * ppl.sample("x", make(t), estimator=estimator) ** 2)
    run = jax.jit(jax.vmap(lambda key: jax.grad(jax.grad(objective.estimate, argnums=1), argnums=1)(key, 0.5)))
    exact = jax.grad(jax.grad(lambda t: t * second(t)))(0.5)
    assert abs(z_scores(run(jax.random.split(KEY, N)), exact)) < BOUND


# Accept-reject


def gamma_logs(a, b):
    """E[log x] + E[x] / 2"""
    return digamma(a) - jnp.log(b) + 0.5 * a / b


@pytest.mark.parametrize("boost", [1, 4])
def test_gamma_at_all_shapes(boost):
    shapes = jnp.array([0.3, 1.0, 2.5, 40.0, 150.0])  # far above, rounding of digamma shows in single precision

    @ppl.expectation
    def objective(theta):
        x = ppl.sample("x", dist.Gamma(theta * shapes, theta), estimator=AcceptReject(boost))
        return jnp.sum(jnp.log(x) + 0.5 * x)

    grads = jax.jit(jax.vmap(lambda key: objective.grad(key, jnp.ones(5))))(jax.random.split(KEY, N))
    exact = jax.grad(lambda theta: jnp.sum(gamma_logs(theta * shapes, theta)))(jnp.ones(5))
    assert np.abs(z_scores(grads, exact)).max() < BOUND


def beta_moment(a, b):
    """E[x^2] + E[log(1 - x)]"""
    return a * (a + 1) / ((a + b) * (a + b + 1)) + digamma(b) - digamma(a + b)


ACCEPT_REJECT = {
    "Beta": (lambda t: dist.Beta(t, 2.0 - t), lambda x: x**2 + jnp.log1p(-x), lambda t: beta_moment(t, 2.0 - t)),
    "BetaProportion": (
        lambda t: dist.BetaProportion(t, 3.0),
        lambda x: x**2 + jnp.log1p(-x),
        lambda t: beta_moment(3 * t, 3 - 3 * t),
    ),
    "Chi2": (lambda t: dist.Chi2(3 * t), lambda x: x**2, lambda t: 3 * t * (3 * t + 2)),
    "InverseGamma": (lambda t: dist.InverseGamma(5.0 + t, 2.0 * t), lambda x: x, lambda t: 2.0 * t / (4.0 + t)),
    "expanded": (lambda t: dist.Gamma(t, 2.0).expand([3]), lambda x: jnp.prod(x), lambda t: (t / 2.0) ** 3),
    "log": (
        lambda t: dist.TransformedDistribution(dist.Gamma(t, 2.0), dist.transforms.ExpTransform().inv),
        lambda x: x,
        lambda t: digamma(t) - jnp.log(2.0),
    ),
    "Dirichlet": (
        lambda t: dist.Dirichlet(jnp.array([t, 0.5, 2.0])),
        lambda x: x[0] * x[2] + jnp.log(x[1]),
        lambda t: t * 2.0 / ((t + 2.5) * (t + 3.5)) + digamma(0.5) - digamma(t + 2.5),
    ),
}


@pytest.mark.parametrize("name", ACCEPT_REJECT)
def test_accept_reject_of_what_is_made_of_gammas(name):
    make, cost, exact = ACCEPT_REJECT[name]
    assert_unbiased(ppl.expectation(lambda t: cost(ppl.sample("x", make(t), estimator=AcceptReject()))), 0.6, exact)


def test_a_plate_of_dirichlets():
    def objective(t):
        def one(a):
            x = ppl.sample("x", dist.Dirichlet(jnp.stack([t * a, 1.0 + 0.0 * t, 0.3 + t])), estimator=AcceptReject(2))
            return x[0] ** 2

        return jnp.prod(jax.vmap(one)(jnp.array([0.5, 3.0])))

    def exact(t):
        def one(a):
            total = t * a + 1.3 + t
            return t * a * (t * a + 1) / (total * (total + 1))

        return one(0.5) * one(3.0)

    assert_unbiased(ppl.expectation(objective), 0.7, exact)


def test_boosting_moves_the_gradient_from_the_weight_to_the_path():
    """The gradient of a constant cost comes from the weight alone."""

    def variance(boost):
        def one(a, key):
            return AcceptReject(boost).particle(key, dist.Gamma(a, 1.0)).log_weight

        return np.var(jax.jit(jax.vmap(jax.grad(one), (None, 0)))(0.5, jax.random.split(KEY, 4_000)))

    assert variance(8) < 0.3 * variance(1)


def test_tiny_shapes_in_single_precision():
    """At these shapes most draws underflow; the mean lives on the rest."""

    @ppl.expectation
    def objective(a):
        x = ppl.sample("x", dist.Gamma(a, 1.0), estimator=AcceptReject(3))
        y = ppl.sample("y", dist.Dirichlet(0.1 * a * jnp.ones(3)), estimator=AcceptReject())
        return x + y @ jnp.arange(3.0) + 0.0 * (jnp.log(x) + jnp.log(y).sum())  # not NaN

    assert_unbiased(objective, 1e-2, lambda a: a + 1.0)


def test_accept_reject_refusals():
    objective = ppl.expectation(lambda m: ppl.sample("x", dist.Normal(m, 1.0), estimator=AcceptReject()))
    with pytest.raises(
        errors.EstimatorError, match=r"(?s)AcceptReject.*'x' ~ Normal.*not made of gamma.*test_estimators_single"
    ):
        objective.grad(KEY, 0.5)
    with pytest.raises(ValueError, match="boost must be at least 1"):
        AcceptReject(0)


# Importance sampling

IMPORTANCE = {
    "categorical": (
        lambda t: dist.Categorical(logits=jnp.array([0.0, t, -t])),
        dist.Categorical(probs=jnp.array([0.3, 0.3, 0.4])),
        lambda x: jnp.array([1.0, -2.0, 4.0])[x],
        lambda t: jax.nn.softmax(jnp.array([0.0, t, -t])) @ jnp.array([1.0, -2.0, 4.0]),
    ),
    "coins in a fixed proposal": (
        lambda t: dist.Bernoulli(logits=t * jnp.ones(3)).to_event(1),
        dist.Bernoulli(0.5),
        lambda x: 1.0 * jnp.prod(1 + x),
        lambda t: (1 + jax.nn.sigmoid(t)) ** 3,
    ),
    "poisson": (
        lambda t: dist.Poisson(jnp.exp(t)),
        lambda p: dist.NegativeBinomial2(jnp.maximum(p.rate, 1.0), 2.0),
        lambda x: 1.0 * x**2,
        lambda t: jnp.exp(t) + jnp.exp(2 * t),
    ),
    "exponential from a gamma": (
        lambda t: dist.Exponential(jnp.exp(t)),
        lambda p: dist.Gamma(0.9, 0.8 * p.rate),
        lambda x: x**2,
        lambda t: 2.0 * jnp.exp(-2 * t),
    ),
    "multivariate from independent": (
        lambda t: dist.MultivariateNormal(t * jnp.ones(2), jnp.array([[1.0, 0.3], [0.3, 1.0]])),
        dist.StudentT(5.0, jnp.zeros(2), 1.5),
        lambda x: x[0] * x[1],
        lambda t: t**2 + 0.3,
    ),
    "dirichlet": (
        lambda t: dist.Dirichlet(jnp.array([1.0 + t, 2.0])),
        dist.Dirichlet(jnp.array([1.0, 1.5])),
        lambda x: x[0],
        lambda t: (1 + t) / (3 + t),
    ),
    "in a plate": (
        lambda t: dist.Normal(t, 1.0).expand([2]),
        dist.Normal(0.2, 1.3),
        lambda x: jnp.prod(x) + jnp.sum(x**2),
        lambda t: 3 * t**2 + 2,
    ),
}


@pytest.mark.parametrize("name", IMPORTANCE)
def test_importance_sampling(name):
    make, proposal, cost, exact = IMPORTANCE[name]
    objective = ppl.expectation(lambda t: cost(ppl.sample("x", make(t), estimator=ImportanceSampling(proposal))))
    assert_unbiased(objective, 0.4, exact)


def test_a_fixed_proposal_in_a_plate_draws_for_each_element():
    estimator = ImportanceSampling(dist.Normal(0.2, 1.3))

    def body(t):
        return jnp.prod(
            jax.vmap(lambda s: ppl.sample("x", dist.Normal(t + s, 1.0), estimator=estimator))(jnp.array([0.0, 0.5]))
        )

    assert_unbiased(ppl.expectation(body), 0.4, lambda t: t * (t + 0.5))


def test_the_best_proposal_has_no_variance():
    """p(x) cost(x) / r(x) is constant if r is proportional to p times cost: x^2 Exp(1) is a Gamma(3, 1)."""
    best = ImportanceSampling(lambda p: dist.Gamma(3.0, p.rate))
    objective = ppl.expectation(lambda rate: ppl.sample("x", dist.Exponential(rate), estimator=best) ** 2)
    values = jax.vmap(lambda key: objective.estimate(key, 1.5))(jax.random.split(KEY, 200))
    np.testing.assert_allclose(values, 2.0 / 1.5**2, rtol=1e-4)


@pytest.mark.parametrize(
    ("distribution", "proposal", "match"),
    [
        (dist.Normal(0.0, 1.0), dist.HalfNormal(1.0), "support is Positive and the site's is Real; they must be the same"),
        (dist.Exponential(1.0), dist.Normal(0.0, 1.0), "support is Real and the site's is Positive"),
        (dist.Poisson(1.0), dist.Exponential(1.0), "the proposal draws float32 and the site int32"),
        (
            dist.Categorical(probs=jnp.ones(3) / 3),
            dist.Categorical(probs=jnp.ones(2) / 2),
            r"Interval\(0, 1\).*Interval\(0, 2\)",
        ),
        (dist.Dirichlet(jnp.ones(3)), dist.Dirichlet(jnp.ones(2)), r"events of shape \[2\], and the site draws \[3\]"),
        (dist.Normal(jnp.zeros(2), 1.0), dist.Normal(jnp.zeros(3), 1.0), "does not fit: Cannot broadcast"),
        (
            dist.Normal(jnp.zeros(2), 1.0),
            dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
            r"events of shape \[2\].*draws \[\]",
        ),
        (dist.Normal(0.0, 1.0), lambda p: 3.0, "it is no distribution but float"),
        (dist.Normal(0.0, 1.0), lambda p: dist.Normal(p.rate, 1.0), "no attribute 'rate'"),
        (dist.Delta(0.0), dist.Normal(0.0, 1.0), "no density to be weighted"),
    ],
)
def test_proposals_that_do_not_fit_are_refused(distribution, proposal, match):
    objective = ppl.expectation(
        lambda t: t * jnp.sum(1.0 * ppl.sample("x", distribution, estimator=ImportanceSampling(proposal)))
    )
    with pytest.raises(errors.EstimatorError, match=f"(?s)ImportanceSampling.*'x'.*{match}.*test_estimators_single"):
        objective.grad(KEY, 0.5)


def test_no_gradient_flows_through_a_proposal_with_the_parameters_of_the_objective():
    for make in (lambda t: dist.Normal(t, 1.5), lambda t: lambda p: dist.Normal(t, 1.5)):

        @ppl.expectation
        def objective(t, make=make):
            return ppl.sample("x", dist.Normal(t, 1.0), estimator=ImportanceSampling(make(t))) ** 2

        assert_unbiased(objective, 0.5, lambda t: t**2 + 1.0)


def test_a_proposal_may_hold_values_of_other_sites():
    @ppl.expectation
    def objective(t):
        x = ppl.sample("x", dist.Normal(t, 1.0))
        return ppl.sample("y", dist.Normal(x, 1.0), estimator=ImportanceSampling(dist.Normal(x, 2.0))) ** 2

    assert_unbiased(objective, 0.5, lambda t: t**2 + 2.0)


def test_a_moving_support_cannot_be_importance_sampled():
    moving = ppl.expectation(
        lambda t: ppl.sample("x", dist.Uniform(0.0, t), estimator=ImportanceSampling(dist.Uniform(0.0, 1.0)))
    )
    with pytest.raises(errors.EstimatorError, match="support moves"):
        moving.grad(KEY, 0.5)


# Antithetic noise

LINEAR = {
    "Normal": lambda t: dist.Normal(t, jnp.exp(t)),
    "StudentT": lambda t: dist.StudentT(5.0 + t, t, jnp.exp(t)),
    "Laplace": lambda t: dist.Laplace(t, jnp.exp(t)),
    "Logistic": lambda t: dist.Logistic(t, jnp.exp(t)),
    "Cauchy": lambda t: dist.Cauchy(t, jnp.exp(t)),
    "Uniform": lambda t: dist.Uniform(t - jnp.exp(t), t + jnp.exp(t)),
    "expanded": lambda t: dist.Normal(t, 1.0).expand([3, 2]).to_event(1),
    "affine": lambda t: dist.TransformedDistribution(dist.Normal(0.0, 1.0), dist.transforms.AffineTransform(t, 2.0)),
    "MultivariateNormal": lambda t: dist.MultivariateNormal(t * jnp.ones(2), jnp.exp(t) * jnp.eye(2)),
    "LowRankMultivariateNormal": lambda t: dist.LowRankMultivariateNormal(t * jnp.ones(2), jnp.ones((2, 1)), jnp.ones(2)),
    "MultivariateStudentT": lambda t: dist.MultivariateStudentT(5.0, t * jnp.ones(2), jnp.exp(t) * jnp.eye(2)),
    "MatrixNormal": lambda t: dist.MatrixNormal(t * jnp.ones((2, 3)), jnp.eye(2), jnp.eye(3)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_gradients_of_linear_costs_have_no_variance(name):
    """The mean of each element is t, whatever else t moves."""
    make = LINEAR[name]
    objective = ppl.expectation(lambda t: jnp.mean(ppl.sample("x", make(t), estimator=Reparameterize(antithetic=True))))
    values, grads = jax.jit(jax.vmap(lambda key: objective.value_and_grad(key, 0.4)))(jax.random.split(KEY, 200))
    largest = 1e3 if name == "Cauchy" else 20.0  # rounding is relative to the noise
    np.testing.assert_allclose(values, 0.4, atol=largest * 2e-7)
    np.testing.assert_allclose(grads, 1.0, atol=largest * 2e-7)


def test_the_two_draws_have_the_right_law():
    """Not only their mean: E[x^2] of each, and the walk's last step."""
    objective = ppl.expectation(
        lambda s: ppl.sample("x", dist.GaussianRandomWalk(s, num_steps=3), estimator=Reparameterize(antithetic=True))[-1] ** 2
    )
    assert_unbiased(objective, 0.8, lambda s: 3 * s**2)


def test_all_sites_are_mirrored_together():
    """Products of two sites and a plate: branch i of one goes with branch i of another."""

    @ppl.expectation
    def objective(t):
        antithetic = Reparameterize(antithetic=True)
        x = ppl.sample("x", dist.Normal(t, 1.0), estimator=antithetic)
        y = ppl.sample("y", dist.Normal(2.0 * x, 0.5), estimator=antithetic)
        z = jax.vmap(lambda s: ppl.sample("z", dist.Normal(y, s), estimator=antithetic))(jnp.array([0.5, 1.0, 2.0]))
        return x * y * jnp.sum(z) + x + y + jnp.sum(z)

    def exact(t):  # z has mean y: E[3 x y^2] + 9 t with y = 2x + e
        return 3 * (4 * (t**3 + 3 * t) + 0.25 * t) + 9 * t

    assert_unbiased(objective, 0.6, exact)


def test_mixed_with_other_estimators():
    @ppl.expectation
    def objective(t):
        b = ppl.sample("b", dist.Bernoulli(logits=t), estimator=ScoreFunction())
        x = ppl.sample("x", dist.Normal(t * b, 1.0), estimator=Reparameterize(antithetic=True))
        c = ppl.sample("c", dist.Bernoulli(logits=x))  # enumerated
        y = ppl.sample("y", dist.Normal(x, 1.0))
        return y**2 + c * t

    nodes, weights = np.polynomial.hermite_e.hermegauss(60)

    def exact(t):
        q = jax.nn.sigmoid(t)
        chance = [jnp.sum(weights * jax.nn.sigmoid(m + nodes)) / np.sqrt(2 * np.pi) for m in (0.0 * t, t)]
        return q * t**2 + 2.0 + t * ((1 - q) * chance[0] + q * chance[1])

    assert_unbiased(objective, 0.6, exact)


def test_what_is_not_symmetric_is_refused():
    for distribution in (dist.Gamma(2.0, 1.0), dist.HalfNormal(1.0), dist.Gumbel(0.0, 1.0)):
        objective = ppl.expectation(lambda t, d=distribution: t * ppl.sample("x", d, estimator=Reparameterize(antithetic=True)))
        with pytest.raises(errors.EstimatorError, match=r"(?s)'x'.*not symmetric about a location.*test_estimators_single"):
            objective.grad(KEY, 0.5)


def test_variance_falls_where_the_cost_is_nearly_linear():
    def variance(estimator, samples):
        objective = ppl.expectation(lambda t: jnp.exp(0.2 * ppl.sample("x", dist.Normal(t, 1.0), estimator=estimator)))
        return np.var(jax.jit(jax.vmap(lambda k: objective.grad(k, 0.5, samples=samples)))(jax.random.split(KEY, 5_000)))

    assert variance(Reparameterize(antithetic=True), None) < 0.1 * variance(Reparameterize(), 2)
