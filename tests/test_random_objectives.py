"""Objectives made at random against sums over all values of their sites: values and gradients are exact or unbiased.

The same statements are run twice: as a JAX program with sites, and in plain NumPy (64 bits, loops unrolled) once for every
combination of the sites' values.
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import ppl
import ppl.distributions as dist
from ppl import errors
from ppl.estimators import Enumerate, ScoreFunction

SIZE = 2  # of every vector and of every loop
W = np.array([[0.6, -0.3], [0.2, 0.9]])
TABLE = np.array([0.4, -0.7, 1.1])
THETA = np.array([0.4, -0.6])
BOUND = 5.0  # |z|
PATHS = 300

SITES = ["coin", "coins", "three", "threes"]
OPERATIONS = {  # a state is (x, v, cost): a scalar, a vector and a scalar
    "spread": lambda xp, t, x, v, c: (x, v * 0.5 + x, c),
    "sum": lambda xp, t, x, v, c: (xp.sum(v), v, c),
    "first": lambda xp, t, x, v, c: (v[0], v, c),
    "last": lambda xp, t, x, v, c: (v[-1] - x, v, c),
    "product": lambda xp, t, x, v, c: (xp.prod(v), v, c),
    "most": lambda xp, t, x, v, c: (xp.max(v), v, c),
    "dot": lambda xp, t, x, v, c: (xp.dot(v, xp.asarray(W[0])) + x, v, c),
    "flip": lambda xp, t, x, v, c: (x, v[::-1] + 0.1 * v, c),
    "roll": lambda xp, t, x, v, c: (x, xp.roll(v, 1), c),
    "shift": lambda xp, t, x, v, c: (x, xp.concatenate([xp.stack([x]), v[:-1]]), c),
    "cumsum": lambda xp, t, x, v, c: (x, xp.cumsum(v), c),
    "sort": lambda xp, t, x, v, c: (x, xp.sort(v), c),
    "matrix": lambda xp, t, x, v, c: (x, xp.asarray(W) @ v, c),
    "outer": lambda xp, t, x, v, c: (x, xp.sum(v[:, None] * v[None, :] * xp.asarray(W), 0), c),
    "fold": lambda xp, t, x, v, c: (x, xp.reshape(xp.reshape(xp.outer(v, xp.asarray(W[1])), (4,)), (2, 2)).sum(1), c),
    "tanh": lambda xp, t, x, v, c: (xp.tanh(x), xp.tanh(v), c),
    "cost of x": lambda xp, t, x, v, c: (x, v, c + t[0] * x**2),
    "linear cost": lambda xp, t, x, v, c: (x, v, c + x),
    "minus": lambda xp, t, x, v, c: (x, v, c - xp.sin(x)),
    "costs of v": lambda xp, t, x, v, c: (x, v, c + xp.sum(v**2 * xp.asarray(W[0]))),
    "costs of both": lambda xp, t, x, v, c: (x, v, c + xp.sum(v * x)),
    "cost times x": lambda xp, t, x, v, c: (x, v, c * x + t[1]),
    "tanh of cost": lambda xp, t, x, v, c: (x, v, xp.tanh(c)),
    "cost to x": lambda xp, t, x, v, c: (0.5 * c, v, c),
}


class Names:
    """Addresses by place in the tree, so that every trace of a body gives the same ones."""

    def __init__(self, path="s"):
        self.path, self.count = path, 0

    def next(self):
        self.count += 1
        return f"{self.path}{self.count}"


class Programs:
    """Statements as JAX with sites. `choose` makes a leaf's estimator of the one that it names."""

    xp = jnp

    def __init__(self, choose):
        self.choose = choose

    def sample(self, name, logits, estimator):
        d = dist.Bernoulli(logits=logits[..., 0]) if logits.shape[-1] == 1 else dist.Categorical(logits=logits)
        return ppl.sample(name, d, estimator=self.choose(estimator))

    def take(self, index):
        return jnp.asarray(TABLE, jnp.float32)[index]

    def loop(self, kind, body, carry, xs):
        return jax.lax.scan(body, carry, xs, reverse=kind == "reverse scan")

    def lanes(self, body, xs):
        return jax.vmap(body)(xs)

    def cond(self, predicate, one, other, state):
        return jax.lax.cond(predicate, one, other, state)

    def wrap(self, kind, body, state):
        if kind == "jit":
            return jax.jit(body)(state)
        if kind == "checkpoint":
            return jax.checkpoint(body)(state)
        return ppl.expectation(body)(state)


class Paths:
    """Statements as NumPy, with one choice after the other prescribed; `counts` says how many there were to choose from."""

    xp = np

    def __init__(self, choices):
        self.choices, self.counts, self.probability = list(choices), [], 1.0

    def one(self, logits):
        logits = np.concatenate([[0.0], logits]) if len(logits) == 1 else logits
        p = np.exp(logits - logits.max())
        k = self.choices[len(self.counts)] if len(self.counts) < len(self.choices) else 0
        self.counts.append(len(p))
        self.probability *= p[k] / p.sum()
        return k

    def sample(self, name, logits, estimator):
        if logits.ndim == 1:
            return self.one(logits)
        return np.array([self.one(row) for row in logits])

    def take(self, index):
        return TABLE[index]

    def loop(self, kind, body, carry, xs):
        steps = range(SIZE)[:: -1 if kind == "reverse scan" else 1]
        ys = [None] * SIZE
        for t in steps:
            carry, ys[t] = body(carry, xs[t])
        return carry, np.array(ys)

    def lanes(self, body, xs):
        return tuple(map(np.array, zip(*map(body, xs), strict=True)))

    def cond(self, predicate, one, other, state):
        return one(state) if predicate else other(state)

    def wrap(self, kind, body, state):
        return body(state)


def execute(block, theta, state, names, how):
    for statement in block:
        state = one(statement, theta, state, names, how)
    return state


def one(statement, theta, state, names, how):
    kind, *rest = statement
    xp, (x, v, cost) = how.xp, state
    if kind in OPERATIONS:
        return OPERATIONS[kind](xp, theta, x, v, cost)
    if kind == "coin":
        b = how.sample(names.next(), xp.stack([theta[0] + xp.tanh(x)]), rest[0])
        return 0.3 * x + 0.9 * b, v, cost
    if kind == "coins":
        b = how.sample(names.next(), (theta[1] - xp.tanh(v))[:, None], rest[0])
        return x, 0.4 * v - b, cost
    if kind == "three":
        b = how.sample(names.next(), xp.stack([0.0 * x, theta[0] * xp.tanh(x), theta[1]]), rest[0])
        return how.take(b) + 0.2 * x, v, cost
    if kind == "threes":
        b = how.sample(names.next(), xp.stack([0.0 * v, theta[0] * xp.tanh(v), xp.tanh(x) - v], -1), rest[0])
        return x, how.take(b) - 0.1 * v, cost
    path = names.next()

    def run(block, branch=""):
        return lambda state: execute(block, theta, state, Names(f"{path}{branch}_"), how)

    if kind in ("scan", "reverse scan"):

        def step(carry, u):
            x, _, cost = run(rest[0])((carry[0] + u, v, carry[1]))
            return (x, cost), x

        (x, cost), v = how.loop(kind, step, (x, cost), v)
        return x, v, cost
    if kind == "vmap":

        def lane(u):
            y, _, c = run(rest[0])((u + 0.5 * x, v, 0.0 * u))
            return y, c

        ys, costs = how.lanes(lane, v)
        return x, ys, cost + xp.sum(costs)
    if kind == "cond":
        predicate = theta[0] > 0 if rest[2] else x > 0.21
        return how.cond(predicate, run(rest[0], "a"), run(rest[1], "b"), state)
    if kind == "expectation":  # one draw of a scalar
        added = how.wrap(kind, lambda state: run(rest[0])(state)[2], (x, v, 0.0 * cost))
        return x, v, cost + added
    return how.wrap(kind, run(rest[0]), state)


leaf = st.one_of(
    st.tuples(st.sampled_from(SITES), st.sampled_from(["enumerate", "score", None])),
    st.tuples(st.sampled_from(sorted(OPERATIONS))),
)


def blocks(children):
    body = st.lists(children, min_size=1, max_size=3)
    return st.one_of(
        st.tuples(st.sampled_from(["scan", "reverse scan", "vmap", "jit", "checkpoint", "expectation"]), body),
        st.tuples(st.just("cond"), body, body, st.booleans()),
    )


statements = st.lists(st.recursive(leaf, blocks, max_leaves=8), min_size=3, max_size=7)


def random_state(theta, xp):
    return 0.3 + 0.0 * theta[0], xp.asarray([0.2, -0.5]) + 0.0 * theta[0], 0.0 * theta[0]


def result(block, theta, how):
    x, v, cost = execute(block, theta, random_state(theta, how.xp), Names(), how)
    return cost + 0.5 * x + how.xp.sum(v)


def expected(block, theta):
    """The sum over all paths."""
    total, choices, n = 0.0, [], 0
    while True:
        how = Paths(choices)
        value = result(block, theta, how)
        total += how.probability * value
        n += 1
        assume(n <= PATHS)
        choices = choices + [0] * (len(how.counts) - len(choices))
        choices = choices[: len(how.counts)]
        while choices and choices[-1] == how.counts[len(choices) - 1] - 1:
            choices.pop()
        if not choices:
            return total, n
        choices[-1] += 1


def exact(block):
    value, n = expected(block, THETA)
    assume(n > 1)
    h = 1e-5
    shifts = h * np.eye(2)
    grad = [(expected(block, THETA + s)[0] - expected(block, THETA - s)[0]) / (2 * h) for s in shifts]
    return np.array([value, *grad])


def estimates(block, choose, n):
    how = Programs(choose)
    objective = ppl.expectation(lambda theta: result(block, theta, how))

    def one(key):
        value, grad = objective.value_and_grad(key, jnp.asarray(THETA, jnp.float32))
        return jnp.concatenate([value[None], grad])

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(7), n)), float)


NAMED = {"enumerate": Enumerate(), "score": ScoreFunction(), None: None}


def check_exact(block):
    truth = exact(block)
    with contextlib.suppress(errors.EstimatorError):  # too many combinations, or no order to sum them in
        (found,) = estimates(block, lambda _: Enumerate(), 1)
        np.testing.assert_allclose(found, truth, rtol=2e-4, atol=2e-4)


def check_unbiased(block, choose=NAMED.__getitem__, n=4000):
    truth = exact(block)
    with contextlib.suppress(errors.EstimatorError):
        draws = estimates(block, choose, n)
        error = draws.std(0) / np.sqrt(n) + 1e-5 * (1 + np.abs(truth))
        assert np.abs((draws.mean(0) - truth) / error).max() < BOUND


def run(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


@run(8)
@given(statements)
def test_enumeration_is_exact(block):
    check_exact(block)


@run(3)
@given(statements)
def test_score_functions_are_unbiased(block):
    check_unbiased(block, lambda _: ScoreFunction())


@run(6)
@given(statements)
def test_any_estimators_together_are_unbiased(block):
    check_unbiased(block)


def test_sums_of_integers_are_sums_of_costs():
    """The mean of many coins costs what one coin costs; what rounds (a quotient of integers) is no sum."""
    shifts = jnp.linspace(-1.0, 1.0, 60)

    def coins(p, estimator):
        return jax.vmap(lambda c: ppl.sample("coin", dist.Bernoulli(logits=p + c), estimator=estimator))(shifts)

    def cost(p, estimator):
        b = coins(p, estimator)
        return p * b.mean() + (2 * b[::2] - 1).mean() + 0.1 * (b > 0).sum()

    def exact(p):
        q = jax.nn.sigmoid(p + shifts)
        return p * q.mean() + (2 * q[::2] - 1).mean() + 0.1 * q.sum()

    found = ppl.expectation(lambda p: cost(p, Enumerate())).value_and_grad(jax.random.key(0), 0.3)
    np.testing.assert_allclose(found, jax.value_and_grad(exact)(0.3), rtol=1e-5)
    with pytest.raises(errors.EstimatorError, match="act together"):
        ppl.expectation(lambda p: 1.0 * (coins(p, Enumerate()).sum() // 2)).estimate(jax.random.key(0), 0.3)
