"""Estimators with several values in place of a draw, at one site: against enumeration, quadrature and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl import errors
from ppl.estimators import ARM, Branches, DisARM, Enumerate, LocalExpectation, MeasureValued, OneElement, Samples, ScoreFunction
from ppl.transforms.plan import first_choice, make_plan
from ppl.transforms.stage import stage

KEY = jax.random.key(5)
N = 10_000
BOUND = 4.5  # |z| of every comparison; 1e-5 of a false alarm each, over about 120 of them


def z_scores(draws, exact):
    draws = np.asarray(draws, float)
    error = draws.mean(0) - np.asarray(exact, float)
    rounding = 1e-5 * (1.0 + np.abs(exact))
    return error / np.maximum(draws.std(0) / np.sqrt(len(draws)), rounding)


def assert_unbiased(objective, theta, exact):
    """Value and gradient of N estimates; returns the standard deviation of the gradient."""
    values, grads = jax.jit(jax.vmap(lambda key: objective.value_and_grad(key, theta)))(jax.random.split(KEY, N))
    with jax.enable_x64(True):
        value, grad = jax.jit(jax.value_and_grad(exact))(jnp.asarray(np.asarray(theta), jnp.float64))
    assert np.abs(z_scores(values, value)).max() < BOUND
    assert np.abs(z_scores(grads, grad)).max() < BOUND
    return np.std(grads, axis=0)


def cost(x):
    """With a jump, which a pathwise derivative would miss."""
    return jnp.where(x > 0.8, 1.0, 0.0) + jnp.cos(1.3 * x)


def quadrature(make, low, high):
    def exact(p):
        with jax.enable_x64(True):
            edges = jnp.linspace(low, high, 200_001)
            x = 0.5 * (edges[1:] + edges[:-1])
            return jnp.sum(jnp.exp(make(p).log_prob(x)) * cost(x)) * (edges[1] - edges[0])

    return exact


CONTINUOUS = {
    "normal": (lambda p: dist.Normal(p[0], p[1]), [0.5, 1.2], -12.0, 12.0),
    "half normal": (lambda p: dist.HalfNormal(p[0]), [1.2], 0.0, 12.0),
    "laplace": (lambda p: dist.Laplace(p[0], p[1]), [0.5, 0.9], -25.0, 25.0),
    "exponential": (lambda p: dist.Exponential(p[0]), [1.2], 0.0, 25.0),
    "weibull scale": (lambda p: dist.Weibull(p[0], 1.7), [1.2], 0.0, 15.0),
    "gamma": (lambda p: dist.Gamma(p[0], p[1]), [1.7, 1.2], 0.0, 30.0),
    "log normal": (lambda p: dist.LogNormal(p[0], p[1]), [0.2, 0.6], 1e-9, 60.0),
    "inverse gamma": (lambda p: dist.InverseGamma(p[0], p[1]), [4.5, 2.0], 1e-4, 60.0),
    "beta": (lambda p: dist.Beta(p[0], p[1]), [2.5, 1.4], 0.0, 1.0),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_measure_valued_derivatives_of_a_discontinuous_cost(name):
    make, p, low, high = CONTINUOUS[name]
    objective = ppl.expectation(lambda p: cost(ppl.sample("x", make(p), estimator=MeasureValued())))
    assert_unbiased(objective, jnp.array(p), quadrature(make, low, high))


def test_measure_valued_derivatives_where_closed_forms_are_known():
    """Gamma with a shape below one (fractional moments of order 1/2), bounds of Uniform, Dirichlet moments."""
    each = MeasureValued()

    @ppl.expectation
    def objective(p):
        gamma = ppl.sample("gamma", dist.Gamma(p["a"], 0.7), estimator=each)
        uniform = ppl.sample("uniform", dist.Uniform(p["low"], p["high"]), estimator=each)
        simplex = ppl.sample("simplex", dist.Dirichlet(p["c"]), estimator=each)
        return jnp.sqrt(gamma) + cost(uniform) + 10.0 * simplex[0] ** 2 * simplex[1]

    def exact(p):
        root = jnp.exp(jax.scipy.special.gammaln(p["a"] + 0.5) - jax.scipy.special.gammaln(p["a"])) / jnp.sqrt(0.7)
        area = lambda x: jnp.maximum(x - 0.8, 0.0) + jnp.sin(1.3 * x) / 1.3  # noqa: E731
        c, total = p["c"], p["c"].sum()
        moment = c[0] * (c[0] + 1.0) * c[1] / (total * (total + 1.0) * (total + 2.0))
        return root + (area(p["high"]) - area(p["low"])) / (p["high"] - p["low"]) + 10.0 * moment

    p = {"a": 0.6, "low": -0.4, "high": 1.7, "c": jnp.array([0.8, 1.5, 2.0])}
    values, grads = jax.jit(jax.vmap(lambda key: objective.value_and_grad(key, p)))(jax.random.split(KEY, N))
    value, expected = jax.value_and_grad(exact)(p)
    assert abs(z_scores(values, value)) < BOUND
    for name in p:
        assert np.abs(z_scores(grads[name], expected[name])).max() < BOUND, name


def coins(p):
    return dist.Bernoulli(logits=p)


DISCRETE = {
    "bernoulli probs": (lambda p: dist.Bernoulli(probs=jax.nn.sigmoid(p)), 2, [MeasureValued(), ARM(), DisARM()]),
    "bernoulli logits": (coins, 2, [MeasureValued(), LocalExpectation(), ARM(), DisARM(), Samples(3)]),
    "categorical probs": (
        lambda p: dist.Categorical(probs=jax.nn.softmax(jnp.array([0.0, p, -p]))),
        3,
        [MeasureValued(), LocalExpectation()],
    ),
    "categorical logits": (lambda p: dist.Categorical(logits=jnp.array([0.0, p, -p])), 3, [MeasureValued(), Samples(2)]),
    "binomial": (lambda p: dist.Binomial(3, logits=p), 4, [MeasureValued(), LocalExpectation()]),
    "poisson": (lambda p: dist.Poisson(jnp.exp(p)), 40, [MeasureValued(), Samples(4)]),
    "geometric": (lambda p: dist.Geometric(logits=p), 80, [MeasureValued()]),
}


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_sites_against_enumeration(name):
    make, size, estimators = DISCRETE[name]

    def discrete_cost(x):
        return jnp.cos(1.0 * x) + 0.1 * x

    def exact(p):
        support = jnp.arange(size)
        return jnp.sum(jnp.exp(jax.vmap(make(p).log_prob)(support)) * discrete_cost(support))

    for estimator in estimators:
        objective = ppl.expectation(lambda p, e=estimator: discrete_cost(ppl.sample("x", make(p), estimator=e)))
        assert_unbiased(objective, 0.4, exact)


def plan_of(body, *args):
    """What the sites of an objective cost, by address."""
    found = {}

    def staged(*args):
        jaxpr = stage(body, *args).jaxpr
        plan = make_plan(jaxpr.jaxpr, jaxpr.consts, first_choice(jaxpr.jaxpr, jaxpr.consts))
        found.update({site_id[0][0]: site_plan for site_id, site_plan in plan.sites.items()})
        return args

    jax.make_jaxpr(staged)(*args)
    return found


def test_constant_parameters_and_independent_elements_cost_no_branches():
    each = MeasureValued()

    def rows(body):
        return plan_of(body, 0.6)["x"].rows

    assert rows(lambda t: ppl.sample("x", dist.Normal(t, 1.0), estimator=each)) == 2
    assert rows(lambda t: ppl.sample("x", dist.Normal(0.0, t), estimator=each)) == 1
    assert rows(lambda t: ppl.sample("x", dist.Normal(t, t), estimator=each)) == 3
    assert rows(lambda t: ppl.sample("x", dist.Normal(t * jnp.ones(3), 2.0).to_event(1), estimator=each).sum()) == 2
    assert rows(lambda t: ppl.sample("x", dist.Normal(t * jnp.ones(3), 2.0).to_event(1), estimator=each).prod()) == 6
    assert rows(lambda t: t * ppl.sample("x", dist.Normal(0.0, 1.0), estimator=each)) == 0
    assert rows(lambda t: ppl.sample("x", dist.Weibull(t * jnp.ones(2), 2.0).to_event(1), estimator=each).sum()) == 1
    plate = jnp.linspace(-1.0, 1.0, 200)
    assert rows(lambda t: jax.vmap(lambda l: cost(ppl.sample("x", coins(l * t), estimator=each)))(plate).sum()) == 1
    assert rows(lambda t: jax.vmap(lambda l: 1.0 * ppl.sample("x", coins(l * t), estimator=each))(plate).prod()) == 200
    one = OneElement(each)
    assert rows(lambda t: jax.vmap(lambda l: 1.0 * ppl.sample("x", coins(l * t), estimator=one))(plate).prod()) == 1


ALL = [MeasureValued(), LocalExpectation(), OneElement(LocalExpectation()), ARM(), DisARM(), Samples(2)]


@pytest.mark.parametrize("estimator", ALL, ids=lambda e: type(e).__name__)
def test_a_second_derivative_is_refused(estimator):
    objective = ppl.expectation(lambda p: jnp.cos(1.0 * ppl.sample("x", coins(p).expand([2]), estimator=estimator).sum()))
    surrogate = lambda p: objective.estimate(KEY, p)  # noqa: E731
    for second in (jax.hessian(surrogate), jax.jit(jax.hessian(surrogate)), jax.grad(jax.jit(jax.grad(surrogate)))):
        with pytest.raises(
            errors.EstimatorError, match=r"(?s)'x'.*first derivatives alone.*test_multi_branch.py.*ScoreFunction"
        ):
            jax.eval_shape(second, 0.5)


def test_first_derivatives_are_the_same_in_every_mode():
    objective = ppl.expectation(lambda p: jnp.cos(1.0 * ppl.sample("x", coins(p).expand([2]), estimator=DisARM()).sum()))

    def modes(p):
        surrogate = lambda p: objective.estimate(KEY, p)  # noqa: E731
        grad = jax.grad(surrogate)
        return grad(p), jax.jacfwd(surrogate)(p), jax.vmap(grad)(p[None])[0], jax.linearize(surrogate, p)[1](1.0)

    found = jax.jit(modes)(jnp.array(0.5))
    assert abs(found[0]) > 0.0
    np.testing.assert_allclose(found, found[0] * np.ones(4), rtol=1e-5)


class Pairs:
    """Antithetic pairs of a pathwise value: weights that are constants."""

    unbiased, coupling, axis = True, "joint", "pairs"

    def refuses(self, distribution, site):
        return None

    def branches(self, distribution):
        return 2

    def particle(self, key, distribution):
        noise = jax.random.normal(key, distribution.batch_shape)
        values = jnp.stack([distribution.loc + distribution.scale * sign * noise for sign in (1.0, -1.0)])
        return Branches(values, jnp.full(values.shape, 0.5))


def test_constant_weights_have_derivatives_of_every_order():
    """E (x - 1)^3 at x ~ N(m, s), with pairs; where they cancel odd powers of the noise, estimates are exact."""
    objective = ppl.expectation(lambda p: (ppl.sample("x", dist.Normal(p[0], p[1]), estimator=Pairs()) - 1.0) ** 3)
    keys = jax.random.split(KEY, N)
    p = jnp.array([0.4, 0.8])
    exact = jax.hessian(lambda p: (p[0] - 1.0) ** 3 + 3.0 * (p[0] - 1.0) * p[1] ** 2)(p)
    hessians = jax.jit(jax.vmap(lambda key: jax.hessian(objective.estimate, argnums=1)(key, p)))(keys)
    assert np.abs(z_scores(hessians, exact)).max() < BOUND
    np.testing.assert_allclose(hessians[:, 0, 0], exact[0, 0], rtol=1e-4)
    # A measure-valued site without varying parameters does not stand in the way.
    still = ppl.expectation(lambda p: p**3 * ppl.sample("x", dist.Normal(1.0, 1.0), estimator=MeasureValued()))
    both = lambda key: jnp.array([still.estimate(key, 2.0), jax.hessian(still.estimate, argnums=1)(key, 2.0)])  # noqa: E731
    values = jax.jit(jax.vmap(both))(keys[:100])
    np.testing.assert_allclose(values[:, 1], 12.0 / 8.0 * values[:, 0], rtol=1e-4)


REFUSED = {
    "weibull": (lambda t: dist.Weibull(1.0, t), MeasureValued(), "'concentration' is not constant"),
    "student": (lambda t: dist.StudentT(3.0, t, 1.0), MeasureValued(), "no decomposition"),
    "pareto": (lambda t: dist.Pareto(t, 3.0), MeasureValued(), "parameters of its transform"),
    "multivariate": (lambda t: dist.MultivariateNormal(t * jnp.ones(2), jnp.eye(2)), MeasureValued(), "no decomposition"),
    "poisson": (dist.Poisson, LocalExpectation(), "not finitely many"),
    "categorical": (lambda t: dist.Categorical(logits=t * jnp.ones(3)), DisARM(), "Bernoulli alone"),
    "uniform": (lambda t: dist.Uniform(0.0, t), Samples(2), "support moves"),
    "crowd": (lambda t: coins(t * jnp.ones(5000)).to_event(1), LocalExpectation(), "OneElement"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_why_and_where(name):
    make, estimator, why = REFUSED[name]
    objective = ppl.expectation(lambda t: jnp.cos(jnp.sum(ppl.sample("x", make(t), estimator=estimator))))
    with pytest.raises(errors.EstimatorError, match=rf"(?s)'x'.*({why}.*test_multi_branch.py|test_multi_branch.py.*{why})"):
        objective.grad(KEY, 0.5)


def test_estimators_that_cannot_be_made():
    for inner in (Enumerate(), ScoreFunction(), Samples(2)):
        with pytest.raises(errors.EstimatorError, match=rf"OneElement cannot hold {type(inner).__name__}"):
            OneElement(inner)
    with pytest.raises(errors.EstimatorError, match="at least 2 draws, got 1"):
        Samples(1)


def test_variances_are_ordered_as_the_papers_say():
    """20 coins with one cost: DisARM below ARM below the plain score, leave-one-out below it too, local expectations lowest."""
    target = jnp.linspace(0.1, 0.9, 20)

    def spread(estimator):
        @ppl.expectation
        def objective(logits):
            x = ppl.sample("x", coins(logits).to_event(1), estimator=estimator)
            return jnp.sum((x - target) ** 2) + 0.01 * x.sum() ** 2

        grads = jax.jit(jax.vmap(lambda key: objective.grad(key, jnp.zeros(20))))(jax.random.split(KEY, 500))
        return float(np.sum(np.var(grads, axis=0)))

    score, samples, arm, disarm, local = map(spread, [ScoreFunction(), Samples(2), ARM(), DisARM(), LocalExpectation()])
    assert disarm < 0.9 * arm
    assert arm < 0.2 * score
    assert samples < 0.5 * score
    assert local < 0.1 * disarm
