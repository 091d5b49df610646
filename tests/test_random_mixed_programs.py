"""Random programs of coins and normal variables with quadratic costs, by random estimators, against sums and conjugacy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ppl
import ppl.distributions as dist
from ppl.estimators import Enumerate, LeaveOneOut, LocalExpectation, MeasureValued, Reparameterize, Samples, ScoreFunction

N = 4_000
BOUND = 5.0  # |z|, of some 40 comparisons with fixed examples
THETA = jnp.array([0.3, -0.4])
FOR_COINS = [None, Enumerate(), ScoreFunction(), ScoreFunction(LeaveOneOut()), LocalExpectation(), Samples(2)]
FOR_NORMALS = [None, Reparameterize(), Reparameterize(antithetic=True), ScoreFunction(), MeasureValued()]

number = st.sampled_from([-1.0, -0.5, 0.0, 0.4, 0.8])


@st.composite
def programs(draw):
    """Weights of a program: coins depend on earlier coins, normals on all coins and earlier normals."""
    coins, normals = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    total = coins + normals
    matrix = np.array(draw(st.lists(number, min_size=total * total, max_size=total * total))).reshape(total, total)
    quadratic = np.array(draw(st.lists(number, min_size=total * total, max_size=total * total))).reshape(total, total)
    estimators = [draw(st.sampled_from(FOR_COINS)) for _ in range(coins)]
    estimators += [draw(st.sampled_from(FOR_NORMALS)) for _ in range(normals)]
    return coins, np.tril(matrix, -1), quadratic, estimators, draw(st.booleans())


def run(program, theta):
    """The cost of one run; `looped` draws the last variable in a scan, whose steps are alike and whose costs are averaged."""
    coins, matrix, quadratic, estimators, looped = program
    values = []

    def site(i, values):
        location = matrix[i, : len(values)] @ jnp.stack(values) if values else 0.0
        if i < coins:
            return 1.0 * ppl.sample(f"v{i}", dist.Bernoulli(logits=theta[0] + location), estimator=estimators[i])
        return ppl.sample(f"v{i}", dist.Normal(theta[0] + location, jnp.exp(theta[1])), estimator=estimators[i])

    for i in range(len(matrix) - looped):
        values.append(site(i, values))
    if not looped:
        v = jnp.stack(values)
        return v @ quadratic @ v

    def step(total, _):
        v = jnp.stack([*values, site(len(matrix) - 1, values)])
        return total + 0.5 * v @ quadratic @ v, None

    return jax.lax.scan(step, 0.0, None, length=2)[0]


def exact(program, theta):
    coins, matrix, quadratic, _, _ = program
    total = 0.0
    gaussian = slice(coins, None)
    mixing = jnp.linalg.inv(jnp.eye(len(matrix) - coins) - matrix[gaussian, gaussian])
    covariance = jnp.exp(2 * theta[1]) * mixing @ mixing.T
    for outcome in itertools.product([0.0, 1.0], repeat=coins):
        b = jnp.array(outcome)
        logits = theta[0] + matrix[:coins, :coins] @ b
        chance = jnp.exp(jnp.sum(b * logits - jax.nn.softplus(logits)))
        mean = mixing @ (theta[0] + matrix[gaussian, :coins] @ b)
        v = jnp.concatenate([b, mean])
        total += chance * (v @ quadratic @ v + jnp.sum(quadratic[gaussian, gaussian] * covariance))
    return total


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(programs())
def test_mixed_programs_are_unbiased(program):
    objective = ppl.expectation(lambda theta: run(program, theta))
    estimates = jax.jit(jax.vmap(lambda key: objective.value_and_grad(key, THETA, samples=2)))
    values, grads = estimates(jax.random.split(jax.random.key(5), N))
    value, slope = jax.value_and_grad(lambda theta: exact(program, theta))(THETA)
    found = np.column_stack([values, grads]).astype(float)
    error = found.mean(0) - np.array([value, *slope])
    assert np.max(np.abs(error) / (found.std(0) / np.sqrt(N) + 1e-5 * (1 + np.abs(error)))) < BOUND
