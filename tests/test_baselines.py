"""Baselines of the score function: unbiased in every construct, and of lower variance where they are known to be."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ppl
import ppl.distributions as dist
from ppl import errors
from ppl.estimators import Enumerate, Learned, LeaveOneOut, MovingAverage, ScoreFunction, Vimco

KEY = jax.random.key(11)
N = 20_000
BOUND = 4.5  # |z|; 7e-6 of a false alarm each, over about 60 of them


def gradients(objective, theta, samples=3, **options):
    run = jax.jit(jax.vmap(lambda key: objective.value_and_grad(key, theta, samples=samples, **options)[:2]))
    return tuple(np.asarray(x, float) for x in run(jax.random.split(KEY, N)))


def assert_unbiased(draws, exact):
    error = np.max(np.abs(draws.mean(0) - np.asarray(exact)) / (draws.std(0) / np.sqrt(N) + 1e-6 * (1 + np.abs(exact))))
    assert error < BOUND


def sigmoid(p):
    return jax.nn.sigmoid(p)


def coin(address, logits, estimator):
    return 1.0 * ppl.sample(address, dist.Bernoulli(logits=logits), estimator=estimator)


def plate(p, e):
    return jax.vmap(lambda c: (c + p * coin("x", p + c, e())) ** 2)(jnp.array([-1.0, 0.5, 2.0])).sum()


def mixed_plate(p, e):
    return jnp.exp(0.5 * jax.vmap(lambda c: coin("x", p + c, e()))(jnp.array([-1.0, 0.5])).sum())


def sequence(p, e):
    x = coin("x", p, e())
    y = coin("y", p - x, e())
    return (1.0 + x) * (2.0 + y) * jnp.exp(p)


def walk(p, e):
    def step(x, _):
        x = coin("x", 0.5 * x + p, e())
        return x, (x - p) ** 2

    return jax.lax.scan(step, 0.0, None, length=3)[1].sum()


def branch(p, e):
    x = coin("x", p, e())
    return jax.lax.cond(x > 0, lambda: 3.0 + p * coin("a", 2 * p, e()), lambda: p - coin("b", -p, e()))


def below_enumerated(p, e):
    z = coin("z", p, Enumerate())
    return (3.0 + z) * coin("x", p + z, e()) + z


def looped(p, e):
    return jax.lax.fori_loop(0, 2, lambda i, x: x + coin("x", p * x, e()), 1.0) ** 2


PROGRAMS = [plate, mixed_plate, sequence, walk, branch, below_enumerated, looped]
BASELINES = {
    "number": lambda: 1.5,
    "leave one out": LeaveOneOut,
    "learned": lambda: Learned(jnp.float32(2.0)),
    "vimco": Vimco,
}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_every_baseline_is_unbiased_in_every_construct(program):
    """Against enumeration, which tests/test_enumeration.py compares with sums over all values."""
    theta = 0.4
    exact = ppl.expectation(lambda p: program(p, Enumerate)).value_and_grad(KEY, theta)
    for baseline in BASELINES.values():
        objective = ppl.expectation(lambda p, b=baseline: program(p, lambda: ScoreFunction(b())))
        values, grads = gradients(objective, theta)
        assert_unbiased(values, exact[0])
        assert_unbiased(grads, exact[1])


def test_hessians_with_baselines_are_unbiased():
    exact = jax.hessian(ppl.expectation(lambda p: mixed_plate(p, Enumerate)).estimate, argnums=1)(KEY, 0.4)
    for baseline in BASELINES.values():
        objective = ppl.expectation(lambda p, b=baseline: mixed_plate(p, lambda: ScoreFunction(b())))
        hessian = jax.jit(jax.vmap(lambda k, o=objective: jax.hessian(lambda p: o.estimate(k, p, samples=3))(0.4)))
        assert_unbiased(np.asarray(hessian(jax.random.split(KEY, N))), exact)


def shifted(baseline):
    return ppl.expectation(lambda p: (10.0 + ppl.sample("x", dist.Poisson(p), estimator=ScoreFunction(baseline))) ** 2)


def test_leave_one_out_takes_the_mean_of_the_cost_away():
    """E (10 + x)^2, x ~ Poisson(2): gradient 25. A score alone has a standard deviation of about 150 for one draw."""
    _, plain = gradients(shifted(None), 2.0, samples=8)
    _, lower = gradients(shifted(LeaveOneOut()), 2.0, samples=8)
    assert_unbiased(lower, 25.0)
    assert lower.var() < plain.var() / 8
    alone = shifted(LeaveOneOut()).grad(KEY, 2.0)
    assert alone == shifted(None).grad(KEY, 2.0)  # nothing to leave out


def test_vimco_beats_leave_one_out_on_a_bound_of_many_particles():
    y = jnp.array([0.5, -1.0, 2.0])

    def bound(make):
        def objective(p):
            def log_weight(_):
                def datum(y):
                    q = dist.Bernoulli(logits=p)
                    z = ppl.sample("z", q, estimator=make())
                    return dist.Bernoulli(logits=0.3).log_prob(z) + dist.Normal(1.0 * z, 1.0).log_prob(y) - q.log_prob(z)

                return jax.vmap(datum)(y).sum()

            return jax.nn.logsumexp(jax.vmap(log_weight)(jnp.arange(5))) - jnp.log(5.0)

        return ppl.expectation(objective)

    _, plain = gradients(bound(lambda: ScoreFunction(LeaveOneOut())), 0.4)
    _, vimco = gradients(bound(lambda: ScoreFunction(Vimco())), 0.4)
    assert vimco.var() < plain.var() / 10
    spread = np.sqrt((plain.var() + vimco.var()) / N)
    assert abs(plain.mean() - vimco.mean()) < BOUND * spread


def test_a_moving_average_is_debiased_unbiased_and_carried_by_its_state():
    objective = shifted(MovingAverage(0.5))
    with pytest.raises(errors.EstimatorError, match=r"(?s)'x'.*init_state"):
        objective.grad(KEY, 2.0)
    state = objective.init_state(2.0)
    returns = []
    for key in jax.random.split(KEY, 3):
        value, _, state = objective.value_and_grad(key, 2.0, state=state)
        returns.append(float(value))
    debiased = state["x"]["mean"] / (1 - state["x"]["forgotten"])
    np.testing.assert_allclose(debiased, np.average(returns, weights=[1, 2, 4]), rtol=1e-5)
    _, grads = gradients(objective, 2.0, samples=None, state=state)
    _, plain = gradients(shifted(None), 2.0, samples=None)
    assert_unbiased(grads, 25.0)
    assert grads.var() < plain.var() / 4
    with pytest.raises(errors.EstimatorError, match="shapes"):
        objective.grad(KEY, 2.0, state={})


def test_training_carries_moving_averages_and_fits_predictions():
    """The return of x is (4 + x)^2; at the last step its mean is 16 + 9 q."""
    options = {"optimizer": optax.adam(0.2), "steps": 400, "samples": 64, "progress": False}
    exact = 16.0 + 9.0 * sigmoid(0.3)
    for run, sign in ((ppl.minimize, 1.0), (ppl.maximize, -1.0)):
        learned = ppl.expectation(lambda b, s=sign: s * (coin("x", 0.3, ScoreFunction(Learned(b))) + 4.0) ** 2)
        np.testing.assert_allclose(run(learned, 0.0, KEY, **options).params, sign * exact, atol=0.5)
    moving = ppl.expectation(lambda p: (coin("x", 0.3 + 0.0 * p, ScoreFunction(MovingAverage())) + 4.0) ** 2)
    np.testing.assert_allclose(ppl.minimize(moving, 1.0, KEY, **options).estimator_state["x"]["mean"], exact, atol=0.5)


def test_baseline_loss_is_the_squared_error_of_the_prediction():
    objective = ppl.expectation(lambda p, b: (coin("x", p, ScoreFunction(Learned(b))) + 4.0) ** 2)
    p, b = 0.3, 20.0
    q = sigmoid(p)
    losses = jax.jit(jax.vmap(lambda key: objective.baseline_loss(key, p, b)))(jax.random.split(KEY, N))
    assert_unbiased(np.asarray(losses, float), (1 - q) * (16 - b) ** 2 + q * (25 - b) ** 2)
    assert objective.grad(KEY, p, b, argnums=1) == 0.0


def test_a_baseline_of_the_wrong_shape_is_refused():
    wrong = ppl.expectation(lambda p: coin("x", p, ScoreFunction(jnp.ones(3))))
    with pytest.raises(errors.EstimatorError, match=r"(?s)baseline of 'x' has shape \[3\].*test_baselines.py"):
        wrong.grad(KEY, 0.5)

    def loop(p):
        step = lambda c: (c[0] + 1, c[1] + coin("x", p, ScoreFunction(2.0)))  # noqa: E731
        return jax.lax.while_loop(lambda c: c[0] < 3, step, (0, 0.0))[1]

    with pytest.raises(errors.EstimatorError, match=r"(?s)'x'.*while_loop.*LeaveOneOut"):
        ppl.expectation(loop).estimate(KEY, 0.5)
