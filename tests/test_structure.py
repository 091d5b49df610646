"""Objectives of coins, with all manner of control flow and coupling, against sums over all outcomes, Hessians included."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.estimators import Enumerate, ScoreFunction

N = 6000
BOUND = 5.0  # |z|, of some 300 comparisons
THETA = 0.4  # some logits are exactly zero there
MATRIX = jnp.array([[0.5, -0.2, 0.1], [0.3, 0.8, -0.4]])


def log_coin(logit, z):
    return jax.nn.log_sigmoid(jnp.where(z == 1, logit, -logit))


def coin(name, logits, estimator):
    return 1.0 * ppl.sample(name, dist.Bernoulli(logits=logits), estimator=estimator)


# Each program: an objective of (t, e), e(i) being the estimator of its i-th site; and the log probability and the cost of
# the values z of its coins.


def hierarchy(t, e):
    a = coin("a", t, e(0))
    b = coin("b", t * a - 0.3, e(1))
    c = coin("c", t - b + a, e(2))
    return jnp.sin(a + 2 * b) + c * b * t - c


def hierarchy_exact(t, z):
    a, b, c = z
    return log_coin(t, a) + log_coin(t * a - 0.3, b) + log_coin(t - b + a, c), jnp.sin(a + 2 * b) + c * b * t - c


def chain_exact(t, z, cost):
    """Coins that depend on their predecessor; the cost of each pair."""
    log_p, total, last = 0.0, 0.0, 0.0
    for x in z:
        log_p, total, last = log_p + log_coin(t - last, x), total + cost(last, x), x
    return log_p, total


def pair(last, x):
    return jnp.sin(1.0 + last + 3 * x) - x * last


def unrolled(t, e):
    last = total = 0.0
    for i in range(4):
        x = coin(f"x{i}", t - last, e(i))
        total, last = total + pair(last, x), x
    return total


def scanned(t, e, reverse=False):
    def step(carry, _):
        last, total = carry
        x = coin("x", t - last, e(0))
        return (x, total + pair(last, x)), None

    return jax.lax.scan(step, (0.0, 0.0), None, length=4, reverse=reverse)[0][1]


def stacked(t, e):
    """Emission costs that are computed after the scan, one step at a time."""
    _, xs = jax.lax.scan(lambda last, _: (coin("x", t - last, e(0)),) * 2, 0.0, None, length=4)
    return jnp.sum(jnp.log1p(xs) * jnp.arange(1.0, 5.0) * t)


def stacked_exact(t, z):
    return chain_exact(t, z, lambda *_: 0.0)[0], jnp.sum(jnp.log1p(z) * jnp.arange(1.0, 5.0) * t)


def neighbours(t, e):
    _, xs = jax.lax.scan(lambda last, _: (coin("x", t - last, e(0)),) * 2, 0.0, None, length=4)
    return jnp.sum(pair(jnp.concatenate([jnp.zeros(1), xs[:-1]]), xs))


def at_the_end(t, e):
    last, _ = jax.lax.scan(lambda last, _: (coin("x", t - last, e(0)), None), 0.0, None, length=4)
    return jnp.cos(t + last)


def two_chains(t, e):
    def step(carry, u):
        x, y = carry
        x = coin("x", t - y + u, e(0))
        y = coin("y", t * x + 0.5 * y, e(1))
        return (x, y), jnp.cos(x + 2 * y + u)

    us = jnp.array([0.1, -0.4, 0.3])
    return jnp.sum(jax.lax.scan(step, (0.0, 0.0), us)[1] * jnp.array([1.0, 2.0, 0.5]))


def two_chains_exact(t, z):
    x, y, log_p, total = 0.0, 0.0, 0.0, 0.0
    for u, w, i in zip([0.1, -0.4, 0.3], [1.0, 2.0, 0.5], range(3), strict=True):
        log_p += log_coin(t - y + u, z[2 * i])
        x = z[2 * i]
        log_p += log_coin(t * x + 0.5 * y, z[2 * i + 1])
        y = z[2 * i + 1]
        total += w * jnp.cos(x + 2 * y + u)
    return log_p, total


def memory_of_two(t, e):
    def step(carry, _):
        x, y = carry
        z = coin("z", t + x - 2 * y, e(0))
        return (y, z), jnp.sin(x + z)

    return jnp.sum(jax.lax.scan(step, (0.0, 1.0), None, length=4)[1])


def memory_exact(t, z):
    x, y, log_p, total = 0.0, 1.0, 0.0, 0.0
    for v in z:
        log_p, total = log_p + log_coin(t + x - 2 * y, v), total + jnp.sin(x + v)
        x, y = y, v
    return log_p, total


def plate(t, e):
    """A global coin, local ones, and costs of each lane."""
    a = coin("a", t, e(0))
    return jnp.sum(jax.vmap(lambda u: jnp.sin(u + a + 2 * coin("z", t * a + u, e(1))) * t)(jnp.arange(3.0)))


def plate_exact(t, z):
    u = jnp.arange(3.0)
    log_p = log_coin(t, z[0]) + jnp.sum(log_coin(t * z[0] + u, z[1:]))
    return log_p, jnp.sum(jnp.sin(u + z[0] + 2 * z[1:]) * t)


def mixed_plate(t, e):
    z = jax.vmap(lambda u: coin("z", t - u, e(0)))(jnp.arange(3.0))
    return jnp.sum(jnp.tanh(MATRIX @ z)) + jnp.sum(jnp.sin(z)) + jnp.max(z * t)


def mixed_plate_exact(t, z):
    return jnp.sum(log_coin(t - jnp.arange(3.0), z)), jnp.sum(jnp.tanh(MATRIX @ z)) + jnp.sum(jnp.sin(z)) + jnp.max(z * t)


def nested_plates(t, e):
    def row(u):
        a = coin("a", t + u, e(0))
        costs = jax.vmap(lambda w: jnp.cos(a + coin("b", t * w - a, e(1)) + w))(jnp.array([0.2, -0.7]))
        return jnp.sum(costs) * (1.0 + a)

    return jnp.sum(jax.vmap(row)(jnp.array([0.0, 1.0])))


def nested_plates_exact(t, z):
    a, b, w = z[:2], z[2:].reshape(2, 2), jnp.array([0.2, -0.7])
    log_p = jnp.sum(log_coin(t + jnp.arange(2.0), a)) + jnp.sum(log_coin(t * w - a[:, None], b))
    return log_p, jnp.sum(jnp.sum(jnp.cos(a[:, None] + b + w), 1) * (1.0 + a))


def chosen_by_index(t, e):
    z = ppl.sample("z", dist.Bernoulli(logits=t * jnp.arange(3.0)), estimator=e(0))
    i = ppl.sample("i", dist.Bernoulli(logits=-t), estimator=e(1))
    return jnp.take(jnp.sin(1.0 + z * t), i) + z[2 * i] * jnp.cos(t)


def chosen_exact(t, z):
    i = z[3].astype(int)
    log_p = jnp.sum(log_coin(t * jnp.arange(3.0), z[:3])) + log_coin(-t, z[3])
    return log_p, jnp.take(jnp.sin(1.0 + z[:3] * t), i) + z[2 * i] * jnp.cos(t)


def branches(t, e):
    """Sites in the branches of a site's value; one address is in both."""
    a = coin("a", t, e(0))

    def yes(t):
        return jnp.sin(coin("b", t + 1, e(1)) + 2 * coin("c", -t, e(2)))

    def no(t):
        return t * coin("b", 2 * t, e(1))

    x = jax.lax.cond(a > 0, yes, no, t)
    d = coin("d", t * x, e(0))
    return jax.lax.switch(jnp.int32(a + d), [lambda x: x, lambda x: x**2 + t, lambda x: t - x], x)


def branches_exact(t, z):
    a, b, c, d = z  # c is drawn in vain if a is 0
    x = jnp.where(a > 0, jnp.sin(b + 2 * c), t * b)
    log_p = log_coin(t, a) + jnp.where(a > 0, log_coin(t + 1, b), log_coin(2 * t, b)) + log_coin(-t, c) + log_coin(t * x, d)
    return log_p, jnp.where(a + d == 0, x, jnp.where(a + d == 1, x**2 + t, t - x))


def loop_of_plates(t, e):
    def step(total, u):
        z = jax.checkpoint(jax.jit(lambda u: jax.vmap(lambda w: coin("z", t * u + w, e(0)))(jnp.array([0.0, 0.5]))))(u)
        return total - jnp.sum(jnp.sin(z * u + t)), None

    return jax.lax.scan(step, t, jnp.array([1.0, 2.0]))[0]


def loop_of_plates_exact(t, z):
    u, z = jnp.array([[1.0], [2.0]]), z.reshape(2, 2)
    return jnp.sum(log_coin(t * u + jnp.array([0.0, 0.5]), z)), t - jnp.sum(jnp.sin(z * u + t))


def plate_of_loops(t, e):
    def lane(u):
        def step(carry, _):
            last, total = carry
            x = coin("x", t - last * u, e(0))
            return (x, total + pair(last, x)), None

        return jax.lax.scan(step, (0.0, 0.0), None, length=3)[0][1]

    return jnp.sum(jax.vmap(lane)(jnp.array([1.0, -0.5])) * jnp.array([1.0, 2.0]))


def plate_of_loops_exact(t, z):
    log_p = total = 0.0
    for u, w, lane in zip([1.0, -0.5], [1.0, 2.0], z.reshape(2, 3), strict=True):
        last = 0.0
        for x in lane:
            log_p, total, last = log_p + log_coin(t - last * u, x), total + w * pair(last, x), x
    return log_p, total


def loop_of_loops(t, e):
    def outer(total, u):
        def inner(carry, _):
            last, total = carry
            x = coin("x", t - last * u, e(0))
            return (x, total + pair(last, x)), x

        (_, total), xs = jax.lax.scan(inner, (0.0, total), None, length=2)
        return total * 0.5, jnp.sum(xs)

    total, counts = jax.lax.scan(outer, 0.0, jnp.array([1.0, 2.0]))
    return total + jnp.sum(counts**2)


def loop_of_loops_exact(t, z):
    log_p = total = squares = 0.0
    for u, lane in zip([1.0, 2.0], z.reshape(2, 2), strict=True):
        last = 0.0
        for x in lane:
            log_p, total, last = log_p + log_coin(t - last * u, x), total + pair(last, x), x
        total, squares = total * 0.5, squares + jnp.sum(lane) ** 2
    return log_p, total + squares


def sums_in_use(t, e):
    """Sums that start at random, that are read by later steps, that are vectors, with minus signs and in branches."""
    a = coin("a", t, e(0))

    def step(carry, u):
        read, pure, vector, maybe = carry
        x = coin("x", t * read + u, e(1))
        new = (
            read + x,
            pure - jnp.sin(x) + x * u,
            vector + x * jnp.array([1.0, t]),
            maybe + jax.lax.cond(u > 0, lambda: x, lambda: u),
        )
        return new, read

    start = (0.0, a * t, jnp.zeros(2), 1.0)
    (read, pure, vector, maybe), reads = jax.lax.scan(step, start, jnp.array([0.3, -0.2, 0.1]))
    return read * t + 2.0 * pure - vector @ jnp.array([1.0, 2.0]) + maybe + jnp.sum(reads**2)


def sums_in_use_exact(t, z):
    a, *xs = z
    log_p, read, rest = log_coin(t, a), 0.0, 2.0 * a * t + 1.0
    for u, x in zip([0.3, -0.2, 0.1], xs, strict=True):
        log_p += log_coin(t * read + u, x)
        rest += read**2 + 2.0 * (x * u - jnp.sin(x)) - x - 2 * x * t + (x if u > 0 else u)
        read += x
    return log_p, read * t + rest


def guide(t, e):
    a = coin("a", t, e(0))
    jax.vmap(lambda u: ppl.sample("z", dist.Bernoulli(logits=t * u - a), estimator=e(1)))(jnp.arange(2.0))


def model(t):
    a = ppl.sample("a", dist.Bernoulli(probs=0.3))
    ppl.plate("z", lambda u: ppl.sample("z", dist.Bernoulli(logits=a * u + t)), size=6)(jnp.arange(2.0))
    ppl.factor("f", jnp.sin(t * a))


def elbo(t, e):
    trace, log_q = ppl.simulate(ppl.program(guide)(t, e).scale(1.0))
    return ppl.program(model)(t).log_density(trace) - log_q


def log_weight_exact(t, z):
    u = jnp.arange(2.0)
    log_q = log_coin(t, z[0]) + jnp.sum(log_coin(t * u - z[0], z[1:]))
    log_p = log_coin(jnp.log(3.0 / 7.0), z[0]) + 3.0 * jnp.sum(log_coin(z[0] * u + t, z[1:])) + jnp.sin(t * z[0])
    return log_q, log_p - log_q


def iwae(t, e):
    return jax.nn.logsumexp(jax.vmap(lambda _: elbo(t, e))(jnp.arange(2)))


def iwae_exact(t, z):
    (q1, w1), (q2, w2) = (log_weight_exact(t, half) for half in z.reshape(2, 3))
    return q1 + q2, jnp.logaddexp(w1, w2)


def twice(t, e):
    (one, log_q), (other, _) = (ppl.simulate(ppl.program(guide)(t, e)) for _ in range(2))
    return jnp.sin(one["a"] + 2.0 * other["a"] + one["z"] @ other["z"]) * log_q


def twice_exact(t, z):
    (q1, _), (q2, _) = (log_weight_exact(t, half) for half in z.reshape(2, 3))
    return q1 + q2, jnp.sin(z[0] + 2.0 * z[3] + z[1:3] @ z[4:]) * q1


PROGRAMS = {
    "hierarchy": (hierarchy, 3, hierarchy_exact),
    "unrolled chain": (unrolled, 4, lambda t, z: chain_exact(t, z, pair)),
    "scan": (scanned, 4, lambda t, z: chain_exact(t, z, pair)),
    "reverse scan": (lambda t, e: scanned(t, e, True), 4, lambda t, z: chain_exact(t, z, pair)),
    "stacked states": (stacked, 4, stacked_exact),
    "neighbours": (neighbours, 4, lambda t, z: chain_exact(t, z, pair)),
    "the last state": (at_the_end, 4, lambda t, z: (chain_exact(t, z, pair)[0], jnp.cos(t + z[-1]))),
    "two chains": (two_chains, 6, two_chains_exact),
    "memory of two": (memory_of_two, 4, memory_exact),
    "plate": (plate, 4, plate_exact),
    "mixed plate": (mixed_plate, 3, mixed_plate_exact),
    "nested plates": (nested_plates, 6, nested_plates_exact),
    "chosen by index": (chosen_by_index, 4, chosen_exact),
    "branches": (branches, 4, branches_exact),
    "loop of plates": (loop_of_plates, 4, loop_of_plates_exact),
    "plate of loops": (plate_of_loops, 6, plate_of_loops_exact),
    "loop of loops": (loop_of_loops, 4, loop_of_loops_exact),
    "sums in use": (sums_in_use, 4, sums_in_use_exact),
    "elbo": (elbo, 3, log_weight_exact),
    "iwae": (iwae, 6, iwae_exact),
    "two draws": (twice, 6, twice_exact),
}
ESTIMATORS = {
    "enumerated": lambda i: Enumerate(),
    "scored": lambda i: ScoreFunction(),
    "both": lambda i: ScoreFunction() if i % 2 else Enumerate(),
}


def derivatives(function):
    """Value, gradient and second derivative, of one backward pass each."""

    def all_three(t):
        (value, grad), pull = jax.vjp(lambda t: jax.value_and_grad(function)(t), t)
        return jnp.stack([value, grad, *pull((jnp.zeros_like(value), jnp.ones_like(grad)))])

    return all_three


def exact(name):
    _, n, outcome = PROGRAMS[name]
    outcomes = jnp.array(list(itertools.product([0.0, 1.0], repeat=n)))

    def mean(t):
        log_p, cost = jax.vmap(outcome, (None, 0))(t, outcomes)
        return jnp.sum(jnp.exp(log_p) * cost)

    return np.asarray(jax.jit(derivatives(mean))(THETA))


@pytest.mark.parametrize("name", PROGRAMS)
def test_against_all_outcomes(name):
    objective, truth = PROGRAMS[name][0], exact(name)
    numbers = set()
    for how, estimator in ESTIMATORS.items():
        if how == "both" and max(numbers) == 0:  # there is one site
            continue
        run = ppl.expectation(lambda t, e=estimator: objective(t, lambda i: numbers.add(i) or e(i)))
        many = jax.vmap(lambda key, run=run: derivatives(lambda t: run.estimate(key, t))(THETA))
        n = 2 if how == "enumerated" else N
        draws = np.asarray(jax.jit(many)(jax.random.split(jax.random.key(1), n)), float)
        if np.ptp(draws, 0).max() < 1e-4:  # nothing was drawn
            np.testing.assert_allclose(draws[0], truth, rtol=2e-4, atol=1e-4, err_msg=how)
            continue
        assert how != "enumerated"
        z = (draws.mean(0) - truth) / (draws.std(0) / np.sqrt(n) + 1e-5)
        assert np.abs(z).max() < BOUND, (how, z)
