"""The algebra of expectations against exact values, with their gradients: z-scores at stated rates of false positives."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ppl
import ppl.distributions as dist
from ppl import errors
from ppl.estimators import Enumerate, Reparameterize, ScoreFunction
from ppl.testing import assert_unbiased
from ppl.transforms.algebra import _series

SCORE = ScoreFunction()


def normal(estimator):
    @ppl.expectation
    def square(t):
        return ppl.sample("x", dist.Normal(t[0], 0.5), estimator=estimator) ** 2

    return square  # t0^2 + 1/4


def coin(estimator):
    @ppl.expectation
    def payoff(t):
        return ppl.sample("x", dist.Bernoulli(logits=t[1]), estimator=estimator) * (t[0] + 1.0)

    return payoff  # sigmoid(t1) (t0 + 1)


def normal_exact(t):
    return t[0] ** 2 + 0.25


def coin_exact(t):
    return jax.nn.sigmoid(t[1]) * (t[0] + 1.0)


T = jnp.array([0.4, -0.3])
PAIRS = {
    "path and score": (Reparameterize(), SCORE),
    "path and enumeration": (Reparameterize(), Enumerate()),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_linear_combinations_and_products(pair):
    e, f = (make(estimator) for make, estimator in zip((normal, coin), PAIRS[pair], strict=True))
    combined = (2.0 * e - f / 4.0 + 1.0) * (f + e) - e * f * e + np.float32(3.0) * -f + (1 - e) ** 3

    def exact(t):
        a, b = normal_exact(t), coin_exact(t)
        return (2 * a - b / 4 + 1) * (b + a) - a * b * a - 3 * b + (1 - a) ** 3

    assert isinstance(combined, ppl.Expectation)
    assert_unbiased(combined, T, exact, order=2 if pair == "path and score" else 1, draws=20_000)


def test_a_product_with_itself_is_of_independent_estimates():
    e = coin(None)
    noise = ppl.expectation(lambda t: ppl.sample("x", dist.Normal(t[0], 1.0)))
    assert_unbiased(noise * noise, T, lambda t: t[0] ** 2)  # E[X^2] is one more
    assert_unbiased(noise**3 + ppl.expectation(lambda t: noise(t) * noise(t)), T, lambda t: t[0] ** 3 + t[0] ** 2)
    exact = (e * e * e).value_and_grad(jax.random.key(0), T)  # enumerated: no noise at all
    np.testing.assert_allclose(exact[0], coin_exact(T) ** 3, rtol=1e-5)
    np.testing.assert_allclose(exact[1], jax.grad(lambda t: coin_exact(t) ** 3)(T), rtol=1e-5)


def test_products_keep_the_structure_of_their_operands():
    # 60 coins with costs of their own are enumerated two branches at a time; as one product they would be coupled.
    @ppl.expectation
    def heads(logit):
        coins = ppl.plate("coins", lambda u: 1.0 * ppl.sample("c", dist.Bernoulli(logits=logit + u)))
        return coins(jnp.linspace(-1, 1, 60)).sum() / 60

    value, grad = (heads * heads).value_and_grad(jax.random.key(0), 0.2)

    def exact(logit):
        return jax.nn.sigmoid(logit + jnp.linspace(-1, 1, 60)).mean() ** 2

    np.testing.assert_allclose(value, exact(0.2), rtol=1e-5)
    np.testing.assert_allclose(grad, jax.grad(exact)(0.2), rtol=1e-5)


EXPONENTS = {
    "score": lambda: 0.5 * coin(SCORE),
    "enumerated": lambda: coin(None) - 2.0,
    "two sites": lambda: 0.5 * normal(Reparameterize()) - coin(SCORE),
}


@pytest.mark.parametrize("name", EXPONENTS)
def test_exponentials(name):
    exact = {
        "score": lambda t: 0.5 * coin_exact(t),
        "enumerated": lambda t: coin_exact(t) - 2.0,
        "two sites": lambda t: 0.5 * normal_exact(t) - coin_exact(t),
    }[name]
    result = assert_unbiased(EXPONENTS[name]().exp(), T, lambda t: jnp.exp(exact(t)))
    if name != "enumerated":
        assert result.standard_error[:2].min() > 1e-4


def test_exponentials_with_a_given_shift_and_far_from_zero():
    mean = ppl.expectation(lambda m: ppl.sample("x", dist.Normal(m, 0.7)))
    assert_unbiased(mean.exp(shift=1.0, terms=15), 1.5, jnp.exp, order=2)
    assert_unbiased((mean - 40.0).exp(), 1.5, lambda m: jnp.exp(m - 40.0))  # a series around zero would cancel
    assert_unbiased((mean.exp(terms=8) * 0.1).exp(terms=6), 0.3, lambda m: jnp.exp(0.1 * jnp.exp(m)))


def test_the_remainder_is_what_is_stated():
    deviations = jnp.full(20, -5.0)  # no noise: what is left is the truncation
    exact = np.exp(-5.0)
    assert 1e-4 < abs(_series(deviations) - exact) / exact < 2e-3
    np.testing.assert_allclose(_series(jnp.full(20, 3.0)), np.exp(3.0), rtol=1e-6)
    # The series is in products of different deviations: with n = 2, 1 + (a + b) / 2 + a b / 2.
    np.testing.assert_allclose(_series(jnp.array([2.0, 5.0])), 1 + 3.5 + 5.0, rtol=1e-6)


DATA = {"x": jnp.linspace(-1.0, 2.0, 12), "y": jnp.linspace(0.0, 1.0, 12) ** 2}


def test_minibatch_sums():
    def loss(row, t):
        noisy = ppl.sample("z", dist.Normal(t[0] * row["x"], 0.3))
        return (noisy - row["y"]) ** 2

    def exact(t):
        return jnp.sum((t[0] * DATA["x"] - DATA["y"]) ** 2 + 0.09)

    total = ppl.minibatch_sum(loss, DATA, 5)
    assert_unbiased(total, T, exact)
    by_index = ppl.minibatch_sum(lambda i, t, data: loss(jax.tree.map(lambda a: a[i], data), t), 12, 5)
    assert_unbiased(by_index, (T, DATA), lambda t, data: exact(t))
    coins = ppl.minibatch_sum(ppl.expectation(lambda x, t: x * coin(SCORE)(t)), DATA["x"], 3)
    assert_unbiased(coins * total, T, lambda t: DATA["x"].sum() * coin_exact(t) * exact(t), draws=4000)
    # An unbiased likelihood of all data from a part of them:
    assert_unbiased((-0.1 * total).exp(terms=8), T, lambda t: jnp.exp(-0.1 * exact(t)), draws=2000)


def test_minibatches_that_do_not_fit_are_refused():
    for population, batch in ((5, 6), (5, 0), ({"a": jnp.zeros(3), "b": jnp.zeros(4)}, 2), (jnp.zeros(()), 1)):
        with pytest.raises(errors.ValueShapeError):
            ppl.minibatch_sum(lambda i: 1.0 * i, population, batch)


def test_an_expectation_of_another_objectives_draws():
    inner = ppl.expectation(lambda x: ppl.sample("y", dist.Normal(x, 1.0)))  # E = x
    product, power = inner * inner, (0.5 * inner).exp(terms=8)  # x^2 and exp(x / 2), not moments of y

    for estimator in (Reparameterize(), SCORE):

        @ppl.expectation
        def outer(m):
            x = ppl.sample("x", dist.Normal(m, 0.5), estimator=estimator)  # noqa: B023
            return product(x) * x + power(x)

        assert_unbiased(outer, 0.6, lambda m: m**3 + 0.75 * m + jnp.exp(m / 2 + 0.25 / 8))


def test_an_expectation_of_another_objectives_enumerated_plate():
    inner = ppl.expectation(lambda x: ppl.sample("y", dist.Normal(x, 1.0)))
    product, power = inner * inner, (0.5 * inner).exp(terms=8)

    @ppl.expectation
    def of_coins(m):
        b = ppl.plate("b", lambda _: ppl.sample("b", dist.Bernoulli(probs=m)))(jnp.arange(3))  # enumerated
        return jax.vmap(product)(1.0 * b).sum() + jax.lax.scan(lambda s, x: (s + power(1.0 * x), None), 0.0, b)[0]

    assert_unbiased(of_coins, 0.6, lambda m: 3 * m + 3 * (m * jnp.exp(0.5) + 1 - m))


def test_lanes_and_steps_of_loops_are_independent():
    product = ppl.expectation(lambda: ppl.sample("x", dist.Normal(0.0, 1.0))) * ppl.expectation(lambda: 1.0)

    @ppl.expectation
    def spread(m):
        lanes = jax.vmap(lambda _: product())(jnp.arange(4))
        steps = jax.lax.scan(lambda c, _: (c, product()), 0.0, None, length=4)[1]
        return m * jnp.sum(jnp.concatenate([lanes, steps, product()[None]])) ** 2

    assert_unbiased(spread, 1.0, lambda m: 9.0 * m)


def test_jit_vmap_and_maximize():
    e, f = normal(None), coin(SCORE)
    objective = 2.0 * f - (e * e).exp(terms=3) * 0.5
    keys = jax.random.split(jax.random.key(0), 3)
    batched = jax.jit(jax.vmap(lambda key: objective.value_and_grad(key, T, samples=2)))(keys)
    alone = objective.value_and_grad(keys[1], T, samples=2)
    np.testing.assert_allclose(batched[0][1], alone[0], rtol=1e-4)
    np.testing.assert_allclose(batched[1][1], alone[1], rtol=1e-4, atol=1e-5)

    mean = ppl.expectation(lambda m: ppl.sample("x", dist.Normal(m, 1.0)))
    fit = ppl.maximize(
        -((mean - 3.0) ** 2), 0.0, jax.random.key(1), optimizer=optax.adam(0.1), steps=300, samples=16, progress=False
    )
    assert abs(fit.params - 3.0) < 0.15
    assert abs(fit.history[-100:].mean()) < 0.1  # the square of the mean, without the variance of the draws


def test_what_has_no_unbiased_estimate_is_refused():
    e = coin(None)
    for wrong in (lambda: e / e, lambda: 1.0 / e, lambda: e**0.5, lambda: e**-1, lambda: e**0):
        with pytest.raises(errors.ObjectiveError, match="unbiased estimate"):
            wrong()
    with pytest.raises(errors.ObjectiveError, match="Decorate it"):
        e + (lambda t: t[0])
    with pytest.raises(errors.ObjectiveError, match="real numbers"):
        e * jnp.ones(3)
    with pytest.raises(errors.ObjectiveError, match="terms"):
        e.exp(terms=0)
    assert repr(e * e - 2.0) == "expectation((payoff * payoff + -2))"


def test_operands_whose_sites_are_elsewhere_are_named():
    e, f = coin(None), normal(None)
    assert (e + f).operands == ()
    assert (2.0 * (e * f) - f.exp() / 3.0 + e).operands == (e, f)
