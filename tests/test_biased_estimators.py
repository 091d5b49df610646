"""Relaxations: the values and gradients that they are known to have, and that what they cannot serve is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl import errors
from ppl.estimators import Enumerate, GumbelSoftmax, Relaxation, ScoreFunction, StraightThrough

KEY = jax.random.key(5)
N = 10_000
BOUND = 4.5  # |z| of every comparison; 1e-5 of a false alarm each, over about 40 of them


def z_scores(draws, exact):
    draws = np.asarray(draws, float)
    rounding = 2e-6 * (1.0 + np.abs(exact))
    return (draws.mean(0) - np.asarray(exact, float)) / np.maximum(draws.std(0) / np.sqrt(len(draws)), rounding)


def draws_of(objective, theta, n=N):
    return jax.jit(jax.vmap(lambda key: objective.value_and_grad(key, theta)))(jax.random.split(KEY, n))


def assert_means(objective, theta, value, gradient, n=N):
    values, grads = draws_of(objective, theta, n)
    assert np.abs(z_scores(values, value)).max() < BOUND
    assert np.abs(z_scores(grads, gradient)).max() < BOUND


def relaxed_coin(cost, temperature):
    """E[cost(relaxed coin)] by the midpoint rule over the logistic noise's uniform."""
    u = jnp.asarray((np.arange(200_000) + 0.5) / 200_000, jnp.float32)
    noise = jnp.log(u) - jnp.log1p(-u)
    return lambda logit: jnp.mean(cost(jax.nn.sigmoid((logit + noise) / temperature)))


def bend(b):
    return (b - 0.45) ** 2 + 0.5 * b


def site(estimator, logit, name="b"):
    return ppl.sample(name, dist.Bernoulli(logits=logit), estimator=estimator)


def plain(e, t):
    return bend(site(e, t))


def by_probs(e, t):
    return bend(ppl.sample("b", dist.Bernoulli(probs=jax.nn.sigmoid(t)), estimator=e))


def plate(e, t):
    return jnp.sum(bend(jax.vmap(lambda s: site(e, t + s))(jnp.zeros(2)))) - bend(site(e, t, "c"))


def scan(e, t):
    total, costs = jax.lax.scan(lambda c, _: (c + site(e, t), bend(site(e, t, "c"))), 0.0, None, length=3)
    return jnp.sum(costs) - 2.0 * bend(site(e, t, "d")) + 0.0 * total


def cond(e, t):
    coin = ppl.sample("coin", dist.Bernoulli(probs=0.4), estimator=ScoreFunction())
    return jax.lax.cond(coin == 1, lambda: bend(site(e, t)), lambda: bend(site(e, t, "c")))


def nested(e, t):
    inner = ppl.program(lambda: ppl.sample("b", dist.Bernoulli(logits=t)))
    outer = ppl.program(lambda: ppl.sample("sub", inner()))
    return bend(ppl.simulate(outer().with_estimators({"sub/b": e}))[0]["sub"]["b"])


@pytest.mark.parametrize("body", [plain, by_probs, plate, scan, cond, nested])
def test_the_gradient_is_exact_for_the_relaxed_objective(body):
    exact = relaxed_coin(bend, 0.7)
    assert_means(ppl.expectation(lambda t: body(GumbelSoftmax(0.7), t)), 0.4, exact(0.4), jax.grad(exact)(0.4))


def test_averages_over_samples():
    objective = ppl.expectation(lambda t: plain(GumbelSoftmax(0.7), t))
    value, grad = jax.jit(lambda key: objective.value_and_grad(key, 0.4, samples=N))(KEY)
    exact = relaxed_coin(bend, 0.7)
    assert abs(value - exact(0.4)) < 0.01
    assert abs(grad - jax.grad(exact)(0.4)) < 0.01


def test_a_relaxed_vector_by_quadrature():
    """K = 2: the first component is the relaxed coin of the difference of the logits."""
    exact = relaxed_coin(bend, 0.5)
    for make in (
        lambda t: dist.OneHotCategorical(logits=jnp.array([t + 1.0, 1.0])),
        lambda t: dist.OneHotCategorical(probs=jnp.array([jax.nn.sigmoid(t), jax.nn.sigmoid(-t)])),
    ):
        objective = ppl.expectation(lambda t, make=make: bend(ppl.sample("x", make(t), estimator=GumbelSoftmax(0.5))[0]))
        assert_means(objective, 0.4, exact(0.4), jax.grad(exact)(0.4))


def test_the_bias_vanishes_at_low_temperatures_only():
    exact = float((bend(1.0) - bend(0.0)) * jax.nn.sigmoid(0.4) * jax.nn.sigmoid(-0.4))

    def z(temperature):
        return z_scores(draws_of(ppl.expectation(lambda t: plain(GumbelSoftmax(temperature), t)), 0.4)[1], exact)

    assert abs(z(0.02)) < BOUND
    assert abs(z(2.0)) > 20
    assert not GumbelSoftmax(1.0).unbiased
    assert not StraightThrough().unbiased
    assert not Relaxation(lambda key, p: p.mean).unbiased


def test_straight_through_has_the_exact_value_and_the_gradient_of_its_definition():
    """Forward E[f(b)]; backward E[f'(b)] p' (Bengio et al. 2013), by enumeration."""
    p, slope = float(jax.nn.sigmoid(0.4)), jax.grad(bend)
    value = p * bend(1.0) + (1 - p) * bend(0.0)
    gradient = (p * slope(1.0) + (1 - p) * slope(0.0)) * p * (1 - p)
    assert_means(ppl.expectation(lambda t: plain(StraightThrough(), t)), 0.4, value, gradient)
    seen = jax.jit(jax.vmap(lambda key: ppl.expectation(lambda t: site(StraightThrough(0.3), t)).estimate(key, 0.4)))
    drawn = np.asarray(seen(jax.random.split(KEY, N)))
    assert set(np.unique(drawn)) == {0.0, 1.0}
    assert abs(z_scores(drawn, p)) < BOUND


def test_straight_through_of_gumbel_softmax_by_quadrature():
    tau, u = 0.6, (np.arange(400_000) + 0.5) / 400_000
    relaxed = 1 / (1 + np.exp(-(0.4 + np.log(u) - np.log1p(-u)) / tau))
    hard = (relaxed > 0.5) * 1.0
    gradient = np.mean((2 * (hard - 0.45) + 0.5) * relaxed * (1 - relaxed) / tau)
    assert_means(ppl.expectation(lambda t: plain(StraightThrough(tau), t)), 0.4, np.mean(bend(hard)), gradient)


def test_straight_through_vectors_are_one_hot_and_linear_costs_exact():
    costs = jnp.array([1.0, -2.0, 4.0])

    def exact(t):
        return jax.nn.softmax(t) @ costs

    t = jnp.array([0.2, 0.5, -0.4])
    objective = ppl.expectation(
        lambda t: ppl.sample("x", dist.OneHotCategorical(logits=t), estimator=StraightThrough()) @ costs
    )
    values, grads = draws_of(objective, t)
    assert set(np.unique(values)) == {1.0, -2.0, 4.0}
    assert abs(z_scores(values, exact(t))) < BOUND
    np.testing.assert_allclose(grads, np.broadcast_to(jax.grad(exact)(t), grads.shape), atol=1e-6)


def test_a_relaxation_of_the_users_own():
    """Rounded towards a quarter of the noise: any function of key and distribution, here of a Poisson site in a plate."""

    def normal_approximation(key, p):
        return p.rate + jnp.sqrt(p.rate) * jax.random.normal(key, p.batch_shape)

    def body(t):
        rates = jnp.array([2.0, 5.0])
        x = jax.vmap(lambda r: ppl.sample("x", dist.Poisson(r * t), estimator=Relaxation(normal_approximation)))(rates)
        return jnp.sum(x**2)

    def exact(t):
        return 29.0 * t**2 + 7.0 * t

    assert_means(ppl.expectation(body), 1.3, exact(1.3), jax.grad(exact)(1.3))


@ppl.program
def family(logits):
    z = jax.vmap(lambda l: ppl.sample("z", dist.Bernoulli(logits=l)))(logits)
    ppl.deterministic("count", z * 2 + 1)
    ppl.sample("y", dist.Normal(1.0 * z.sum(), 1.0))


@ppl.program
def model():
    z = jax.vmap(lambda _: ppl.sample("z", dist.Bernoulli(probs=0.3)))(jnp.arange(2))
    ppl.sample("y", dist.Normal(jnp.concatenate([z, z]) @ jnp.array([1, 2, 3, 4]) + z[0] * z[1], 1.0))


def test_a_program_traced_with_integers_is_evaluated_with_relaxed_ones():
    """The ELBO of a relaxed family: densities and decoders take the relaxed values, in integer arithmetic extended to reals."""
    logits = jnp.array([0.4, -0.3])

    @ppl.expectation
    def elbo(logits):
        trace, log_q = ppl.simulate(family(logits).with_estimators(z=GumbelSoftmax(0.8)))
        return model().log_density(trace) - log_q

    def by_hand(logits, z, y):
        log_q = jnp.sum(z * jax.nn.log_sigmoid(logits) + (1 - z) * jax.nn.log_sigmoid(-logits))
        log_q += jax.scipy.stats.norm.logpdf(y, jnp.sum(z), 1.0)
        prior = jnp.sum(z * jnp.log(0.3) + (1 - z) * jnp.log(0.7))
        mean = z[0] * 4 + z[1] * 6 + z[0] * z[1]
        return prior + jax.scipy.stats.norm.logpdf(y, mean, 1.0) - log_q

    def reference(logits, key):
        one, other = jax.random.split(key)
        z = jax.nn.sigmoid((logits + jax.random.logistic(one, (2,))) / 0.8)
        return by_hand(logits, z, jnp.sum(z) + jax.random.normal(other))

    keys = jax.random.split(jax.random.key(77), 40_000)
    ref_values, ref_grads = jax.jit(jax.vmap(jax.value_and_grad(reference), (None, 0)))(logits, keys)
    values, grads = draws_of(elbo, logits, 40_000)
    for ours, theirs in ((values, ref_values), (grads, ref_grads)):
        ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
        spread = np.sqrt((ours.var(0) + theirs.var(0)) / len(ours))
        assert np.abs((ours.mean(0) - theirs.mean(0)) / spread).max() < BOUND


def test_the_dtype_of_a_relaxed_site():
    bound = family(jnp.zeros(2)).with_estimators(z=GumbelSoftmax(0.5))
    shapes = ppl.trace_shapes(bound)
    assert shapes["z"].dtype == jnp.float32
    trace, log_p = bound.simulate(KEY)
    assert set(np.unique(trace["z"])) <= {0.0, 1.0}  # relaxed only where an expectation differentiates
    assert trace["z"].dtype == jnp.float32
    np.testing.assert_allclose(log_p, family(jnp.zeros(2)).log_density({k: trace[k] for k in ("z", "y")}), rtol=1e-6)
    relaxed = {"z": jnp.array([0.25, 0.5]), "y": 0.0}
    jax.jit(bound.log_density)(relaxed)
    with pytest.raises(errors.ValueDtypeError, match="'z' has dtype float32 and Bernoulli draws int32"):
        jax.jit(family(jnp.zeros(2)).log_density)(relaxed)


@pytest.mark.parametrize("estimator", [ScoreFunction(), Enumerate(), None])
def test_another_estimator_may_replace_a_relaxation(estimator):
    @ppl.program
    def coin(t):
        return ppl.sample("b", dist.Bernoulli(logits=t), estimator=GumbelSoftmax(0.5))

    @ppl.expectation
    def objective(t):
        bound = coin(t) if estimator is None else coin(t).with_estimators(b=estimator)
        return bend(ppl.simulate(bound)[0]["b"])

    if estimator is None:
        value, slope = relaxed_coin(bend, 0.5)(0.4), jax.grad(relaxed_coin(bend, 0.5))(0.4)
    else:
        p = jax.nn.sigmoid(0.4)
        value, slope = p * bend(1.0) + (1 - p) * bend(0.0), (bend(1.0) - bend(0.0)) * p * (1 - p)
    assert_means(objective, 0.4, value, slope)


INTEGER_ONLY = {
    "eq": lambda b: jnp.where(b == 1, 2.0, 3.0),
    "lt": lambda b: jnp.arange(3.0)[b],
    "and": lambda b: 1.0 * (b & 1),
    "ne": lambda b: jax.lax.cond(b, lambda: 1.0, lambda: 2.0),
}


@pytest.mark.parametrize("operation", INTEGER_ONLY)
def test_integer_operations_on_a_relaxed_value_are_refused(operation):
    bound = ppl.program(lambda t: INTEGER_ONLY[operation](ppl.sample("b", dist.Bernoulli(logits=t))))
    objective = ppl.expectation(lambda t: ppl.sample("sub", bound(t).with_estimators(b=GumbelSoftmax(0.5))))
    with pytest.raises(errors.EstimatorError, match=f"(?s)relaxed value of 'sub/b|relaxed value of 'b'.*{operation}"):
        objective.grad(KEY, 0.4)


def test_an_integer_carried_by_a_loop_cannot_take_relaxed_values():
    def step(count, t):
        return count + ppl.sample("b", dist.Bernoulli(logits=t)), None

    bound = ppl.program(lambda t: 1.0 * jax.lax.scan(step, 0, t * jnp.ones(3))[0])
    objective = ppl.expectation(lambda t: ppl.sample("sub", bound(t).with_estimators(b=GumbelSoftmax(0.5))))
    with pytest.raises(errors.EstimatorError, match="'b' reaches a value carried by a loop that starts as an integer"):
        objective.grad(KEY, 0.4)


@pytest.mark.parametrize("estimator", [GumbelSoftmax(0.5), StraightThrough(), Relaxation(lambda key, p: p.mean)])
def test_an_index_has_no_relaxation(estimator):
    objective = ppl.expectation(lambda t: 1.0 * ppl.sample("k", dist.Categorical(logits=t * jnp.ones(3)), estimator=estimator))
    with pytest.raises(errors.EstimatorError, match=r"(?s)'k' ~ Categorical: .*an index.*OneHotCategorical.*test_biased"):
        objective.grad(KEY, 0.4)


def test_other_refusals():
    def objective(distribution, estimator):
        return ppl.expectation(lambda t: t * jnp.sum(ppl.sample("x", distribution, estimator=estimator)))

    with pytest.raises(errors.EstimatorError, match="Poisson is neither Bernoulli nor OneHotCategorical"):
        objective(dist.Poisson(1.0), GumbelSoftmax(0.5)).grad(KEY, 0.4)
    for function in (lambda key, p: jnp.zeros(3), lambda key, p: jnp.zeros((), int)):
        with pytest.raises(errors.EstimatorError, match="it must give floating-point numbers of shape"):
            objective(dist.Bernoulli(0.5), Relaxation(function)).grad(KEY, 0.4)
    with pytest.raises(errors.EstimatorError, match=r"temperature is .* and must be positive"):
        objective(dist.Bernoulli(0.5), GumbelSoftmax(0.0)).grad(KEY, 0.4)


def test_the_temperature_may_be_an_argument_of_the_objective():
    objective = ppl.expectation(lambda t, tau: plain(GumbelSoftmax(tau), t))
    values = jax.jit(jax.vmap(lambda key: objective.value_and_grad(key, 0.4, 0.7)[1]))(jax.random.split(KEY, N))
    annealed = jax.jit(jax.vmap(lambda key, tau: objective.value_and_grad(key, 0.4, tau)[1], (0, None)))
    np.testing.assert_allclose(annealed(jax.random.split(KEY, N), 0.7), values, rtol=1e-5, atol=1e-5)
