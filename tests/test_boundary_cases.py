"""Objectives at the edge of what is usual: plates without elements, and keys that are not one key."""

import jax
import jax.numpy as jnp
import pytest

import ppl
import ppl.distributions as dist
from ppl import errors
from ppl.estimators import DisARM, Learned, LeaveOneOut, LocalExpectation, Reparameterize, Samples, ScoreFunction

KEY = jax.random.key(3)
EMPTY = {
    "samples": (Samples(3), dist.BernoulliLogits),
    "antithetic": (Reparameterize(antithetic=True), lambda x: dist.Normal(x, 1.0)),
    "coins": (DisARM(), dist.BernoulliLogits),
    "one by one": (LocalExpectation(), dist.BernoulliLogits),
    "score": (ScoreFunction(), dist.BernoulliLogits),
    "automatic": (None, dist.BernoulliLogits),
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_plate_without_elements_adds_nothing(name):
    estimator, make = EMPTY[name]

    def objective(p, xs):
        x = ppl.plate("n", lambda x: ppl.sample("x", make(p * x), estimator=estimator))(xs)
        return jnp.sum(p * x) ** 2 + 3.0 * p

    value, grad = ppl.expectation(objective).value_and_grad(KEY, 0.4, jnp.zeros(0))
    assert (float(value), float(grad)) == (pytest.approx(1.2), 3.0)


def test_an_empty_plate_among_draws_that_branch_together_changes_nothing():
    """The weights of the branches are those of the site that has elements."""

    def objective(p, n):
        x = ppl.plate("n", lambda x: ppl.sample("x", dist.BernoulliLogits(p * x), estimator=Samples(3)))(jnp.zeros(n))
        y = ppl.sample("y", dist.Poisson(p), estimator=Samples(3))
        return (jnp.sum(x) + y) ** 2.0

    ppl.testing.assert_unbiased(ppl.expectation(lambda p: objective(p, 0)), 1.3, exact=lambda p: p + p**2, draws=20_000)


def test_several_keys_are_refused():
    objective = ppl.expectation(lambda m: ppl.sample("x", dist.Normal(m, 1.0), estimator=ScoreFunction()))
    keys = jax.random.split(KEY, 3)
    for several in (keys, jax.random.key_data(keys)):
        with pytest.raises(errors.ValueShapeError, match=r"one key.*\[3\].*vmap"):
            objective.estimate(several, 2.0)
    with pytest.raises(errors.ValueShapeError, match="one key"):
        ppl.seed(lambda: ppl.sample("x", dist.Normal(0.0, 1.0)))(keys)


def test_a_result_that_is_no_real_number_is_named():
    with pytest.raises(errors.ObjectiveError, match=r"one real number.*got int32 of shape \(\)"):
        ppl.expectation(lambda p: ppl.sample("x", dist.Poisson(p))).estimate(KEY, 2.0)
    with pytest.raises(errors.ObjectiveError, match=r"one real number.*'a': 'float32 of shape \(3,\)'"):
        ppl.expectation(lambda p: {"a": p * jnp.ones(3)}).estimate(KEY, 2.0)


def test_a_program_that_is_returned_and_not_drawn_is_named():
    coin = ppl.program(lambda p: ppl.sample("x", dist.Bernoulli(probs=p)))
    with pytest.raises(errors.ObjectiveError, match=r"one real number.*lambda"):
        ppl.expectation(lambda p: coin(p)).estimate(KEY, 0.5)


@pytest.mark.parametrize("baseline", ["leave one out", LeaveOneOut, Learned(lambda x: x)], ids=["word", "class", "function"])
def test_a_baseline_that_is_none_is_refused(baseline):
    objective = ppl.expectation(lambda p: 1.0 * ppl.sample("x", dist.Poisson(p), estimator=ScoreFunction(baseline)))
    with pytest.raises(errors.EstimatorError, match=r"(?s)baseline of 'x'.*neither a number nor an array.*test_boundary"):
        objective.estimate(KEY, 2.0)


def test_a_loop_of_no_steps_has_a_trace_without_elements():
    @ppl.program
    def chain(p, steps):
        def step(total, _):
            return total + ppl.sample("x", dist.Bernoulli(probs=p)), None

        total, _ = jax.lax.scan(step, 0, None, length=steps)
        ppl.sample("end", dist.Normal(2.0 + total, 1.0))

    trace, log_density = chain(0.3, 0).simulate(KEY)
    assert trace["x"].shape == (0,)
    wanted = dist.Normal(2.0, 1.0).log_prob(trace["end"])
    assert float(log_density) == float(chain(0.3, 0).log_density(trace)) == pytest.approx(float(wanted), rel=1e-6)
    objective = ppl.expectation(lambda p: ppl.simulate(chain(p, 0))[0]["end"] * p)
    value, grad = objective.value_and_grad(KEY, 0.3)
    assert float(value) == pytest.approx(0.3 * float(grad))
