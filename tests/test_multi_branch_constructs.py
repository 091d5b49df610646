"""Estimators with several values in place of a draw, in every construct: against enumeration of small programs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.estimators import DisARM, Enumerate, LocalExpectation, MeasureValued, OneElement, Samples, ScoreFunction

KEY = jax.random.key(6)
N = 10_000
BOUND = 4.5  # |z| of every comparison; 1e-5 of a false alarm each, over about 100 of them

ESTIMATORS = {
    "local": LocalExpectation(),
    "one": OneElement(MeasureValued()),
    "disarm": DisARM(),
    "samples": Samples(2),
    "one_disarm": OneElement(DisARM()),
}
LOGITS = jnp.array([0.1, 0.5, -0.4])
STEPS = jnp.arange(3.0)


def coin(logit):
    return dist.Bernoulli(logits=logit)


def chance(logit, value):
    return jax.nn.sigmoid(logit if value else -logit)


def f(s):
    return jnp.cos(1.7 * s) + 0.4 * s * s


def words(count):
    return itertools.product((0, 1), repeat=count)


NODES, MASSES = np.polynomial.hermite_e.hermegauss(40)
MASSES = jnp.asarray(MASSES / MASSES.sum())


def coupled(t, e):
    return f(1.0 * ppl.sample("x", coin(LOGITS + t).to_event(1), estimator=e).sum())


def coupled_exact(t):
    return sum(
        jnp.prod(jnp.array([chance(t + l, x) for l, x in zip(LOGITS, xs, strict=True)])) * f(1.0 * sum(xs)) for xs in words(3)
    )


def plate(t, e):
    return jax.vmap(lambda l: f(2.0 * ppl.sample("x", coin(l + t), estimator=e) + l))(LOGITS).sum()


def plate_exact(t):
    return sum(chance(t + l, x) * f(2.0 * x + l) for l in LOGITS for (x,) in words(1))


def mixed_plate(t, e):
    """Costs of single elements, of all, and of one in another's place."""
    x = jax.vmap(lambda l: 1.0 * ppl.sample("x", coin(l + t), estimator=e))(LOGITS)
    return f(x.sum()) + x[0] * t + jnp.sum(x**2 * STEPS) + jnp.sum(x * x[::-1])


def mixed_plate_exact(t):
    total = 0.0
    for a, b, c in words(3):
        weight = chance(t + 0.1, a) * chance(t + 0.5, b) * chance(t - 0.4, c)
        total += weight * (f(1.0 * (a + b + c)) + a * t + b + 2 * c + 2 * a * c + b)
    return total


def sequence(t, e):
    a = ppl.sample("a", coin(t), estimator=e)
    b = ppl.sample("b", coin(t * a - 0.3), estimator=e)
    c = ppl.sample("c", coin(t * (b - a) + 0.2), estimator=e)
    return f(a + 2.0 * b - c) * (1 + a * c)


def sequence_exact(t):
    return sum(
        chance(t, a) * chance(t * a - 0.3, b) * chance(t * (b - a) + 0.2, c) * f(a + 2.0 * b - c) * (1 + a * c)
        for a, b, c in words(3)
    )


def scan(t, e, reverse=False):
    def step(s, i):
        x = ppl.sample("x", coin(t * s - 0.2 * i), estimator=e)
        return s * 0.5 + x, f(s + 2.0 * x)

    s, costs = jax.lax.scan(step, 1.0, STEPS[::-1] if reverse else STEPS, reverse=reverse)
    return f(s) + costs.sum()


def scan_exact(t):
    total = 0.0
    for xs in words(3):
        s, weight, value = 1.0, 1.0, 0.0
        for i, x in enumerate(xs):
            weight, value, s = weight * chance(t * s - 0.2 * i, x), value + f(s + 2.0 * x), s * 0.5 + x
        total += weight * (value + f(s))
    return total


def fori_loop(t, e):
    return f(jax.lax.fori_loop(0, 3, lambda i, s: s * 0.5 + ppl.sample("x", coin(t * s - 0.2 * i), estimator=e), 1.0))


def fori_loop_exact(t):
    total = 0.0
    for xs in words(3):
        s, weight = 1.0, 1.0
        for i, x in enumerate(xs):
            weight, s = weight * chance(t * s - 0.2 * i, x), s * 0.5 + x
        total += weight * f(s)
    return total


def vmap_of_loops(t, e):
    """Each lane's loop by itself, and the product of them."""
    each = jax.vmap(lambda l: fori_loop(t + l, e))(jnp.array([0.0, 0.4]))
    return each.sum() + 3.0 * each.prod()


def vmap_of_loops_exact(t):
    one, other = fori_loop_exact(t), fori_loop_exact(t + 0.4)
    return one + other + 3.0 * one * other


def scan_of_vmap(t, e):
    def step(s, i):
        x = jax.vmap(lambda l: ppl.sample("x", coin(t * s.sum() - 0.2 * i + l), estimator=e))(jnp.array([0.0, 0.4]))
        return s * 0.5 + x, f(s.sum())

    return jax.lax.scan(step, jnp.ones(2), STEPS[:2])[1].sum()


def scan_of_vmap_exact(t):
    return f(jnp.array(2.0)) + sum(chance(2.0 * t, a) * chance(2.0 * t + 0.4, b) * f(1.0 + a + b) for a, b in words(2))


def site_in_cond(t, e):
    return jax.lax.cond(
        ppl.sample("b", coin(t), estimator=ScoreFunction()) == 1,
        lambda: f(1.0 + 2.0 * ppl.sample("x", coin(2 * t), estimator=e)),
        lambda: f(0.5 * ppl.sample("y", coin(-t), estimator=e)) * t,
    )


def site_in_cond_exact(t):
    taken = sum(chance(2 * t, x) * f(1.0 + 2.0 * x) for (x,) in words(1))
    other = sum(chance(-t, y) * f(0.5 * y) * t for (y,) in words(1))
    return chance(t, 1) * taken + chance(t, 0) * other


def switch_on_site(t, e):
    """The branch depends on two sites, and holds a third; in one branch there is a pathwise site."""
    i = ppl.sample("i", coin(t), estimator=e) + ppl.sample("j", coin(t - 0.3), estimator=e)
    branches = [
        lambda: t,
        lambda: 1.0 * ppl.sample("x", coin(2 * t + i), estimator=e),
        lambda: ppl.sample("z", dist.Normal(t, 1.0)),
    ]
    y = jax.lax.switch(i, branches)
    return f(y * 0.5) + i * y


def switch_on_site_exact(t):
    none, both = chance(t, 0) * chance(t - 0.3, 0), chance(t, 1) * chance(t - 0.3, 1)
    z = t + jnp.asarray(NODES)
    single = sum(chance(2 * t + 1, x) * (f(x * 0.5) + x) for (x,) in words(1))
    return none * f(t * 0.5) + (1 - none - both) * single + both * jnp.sum(MASSES * (f(0.5 * z) + 2 * z))


def checkpoint(t, e):
    return jax.checkpoint(lambda t: jax.jit(lambda t: sequence(t, e))(t) ** 2)(t)


def checkpoint_exact(t):
    return sum(
        chance(t, a) * chance(t * a - 0.3, b) * chance(t * (b - a) + 0.2, c) * (f(a + 2.0 * b - c) * (1 + a * c)) ** 2
        for a, b, c in words(3)
    )


def nested_program(t, e):
    """A scale of three multiplies the densities, not the weights."""
    inner = ppl.program(lambda: ppl.sample("x", coin(t)))

    def outer():
        s = ppl.sample("s", inner())
        ppl.sample("y", coin(t * s + 0.1))

    trace, log_q = ppl.simulate(ppl.program(outer)().scale(3.0).with_estimators(e))
    return f(trace["s"]["x"] + 2.0 * trace["y"]) - log_q


def nested_program_exact(t):
    total = 0.0
    for x, y in words(2):
        p, q = chance(t, x), chance(t * x + 0.1, y)
        total += p * q * (f(x + 2.0 * y) - 3.0 * jnp.log(p * q))
    return total


def other_estimators(t, e):
    """Pathwise, enumerated and score-function sites before, between and after."""
    a = ppl.sample("a", coin(t), estimator=e)
    z = ppl.sample("z", dist.Normal(t * a, 1.0))
    b = ppl.sample("b", coin(0.5 * a - t), estimator=Enumerate())
    c = ppl.sample("c", coin(z + b), estimator=e)
    d = ppl.sample("d", coin(t * c - a), estimator=ScoreFunction())
    g = ppl.sample("g", coin(d + t * b), estimator=e)
    return f(a + b + 2.0 * c - d + g) + z * c * g


def other_estimators_exact(t):
    total = 0.0
    for a, b, c, d, g in words(5):
        z = t * a + jnp.asarray(NODES)
        weight = chance(t, a) * chance(0.5 * a - t, b) * chance(z + b, c) * chance(t * c - a, d) * chance(d + t * b, g)
        total += jnp.sum(MASSES * weight * (f(a + b + 2.0 * c - d + g) + z * c * g))
    return total


def enumerated_chain(t, e):
    """The sites of a hidden Markov chain are eliminated in every branch of a site that they depend on."""
    a = ppl.sample("a", coin(t), estimator=e)

    def step(s, _):
        x = ppl.sample("x", coin(t * s + a - 0.5), estimator=Enumerate())
        return 1.0 * x, f(x + 2.0 * s + a)

    s, costs = jax.lax.scan(step, 1.0, None, length=3)
    return f(2.0 * s) + costs.sum()


def enumerated_chain_exact(t):
    total = 0.0
    for a, *xs in words(4):
        weight, s, value = chance(t, a), 1.0, 0.0
        for x in xs:
            weight, value, s = weight * chance(t * s + a - 0.5, x), value + f(x + 2.0 * s + a), 1.0 * x
        total += weight * (value + f(2.0 * s))
    return total


def hidden_markov(t, e):
    """Two sites a step; costs of neighbouring steps, and of all."""

    def step(s, i):
        x = ppl.sample("x", coin(t * s - 0.2 * i), estimator=e)
        y = ppl.sample("y", coin(t * x + 0.1), estimator=e)
        return 1.0 * x, (x, y)

    xs, ys = jax.lax.scan(step, 1.0, STEPS)[1]
    return jnp.sum(f(xs[1:] + 2.0 * ys[:-1])) + f(1.0 * ys.sum())


def hidden_markov_exact(t):
    total = 0.0
    for word in words(6):
        xs, ys = word[:3], word[3:]
        s, weight = 1.0, 1.0
        for i in range(3):
            weight, s = weight * chance(t * s - 0.2 * i, xs[i]) * chance(t * xs[i] + 0.1, ys[i]), 1.0 * xs[i]
        total += weight * (sum(f(xs[i + 1] + 2.0 * ys[i]) for i in range(2)) + f(1.0 * sum(ys)))
    return total


CASES = [
    (coupled, coupled_exact, "one"),
    (plate, plate_exact, "local disarm"),
    (mixed_plate, mixed_plate_exact, "one disarm samples"),
    (sequence, sequence_exact, "samples"),
    (scan, scan_exact, "local disarm samples one_disarm"),
    (lambda t, e: scan(t, e, reverse=True), scan_exact, "one"),
    (vmap_of_loops, vmap_of_loops_exact, "one samples"),
    (scan_of_vmap, scan_of_vmap_exact, "disarm"),
    (site_in_cond, site_in_cond_exact, "disarm"),
    (switch_on_site, switch_on_site_exact, "local samples"),
    (checkpoint, checkpoint_exact, "local"),
    (nested_program, nested_program_exact, "disarm"),
    (other_estimators, other_estimators_exact, "local samples"),
    (enumerated_chain, enumerated_chain_exact, "local samples"),
    (hidden_markov, hidden_markov_exact, "one disarm"),
]
PAIRS = [(i, name) for i, (_, _, names) in enumerate(CASES) for name in names.split()]


@pytest.mark.parametrize(("case", "estimator"), PAIRS, ids=[f"{CASES[i][1].__name__[:-6]}-{i}-{name}" for i, name in PAIRS])
def test_unbiased_in_every_construct(case, estimator):
    body, exact, _ = CASES[case]
    objective = ppl.expectation(lambda t: body(t, ESTIMATORS[estimator]))
    check(objective, exact)


def check(objective, exact, samples=None, n=N):
    values, grads = jax.jit(jax.vmap(lambda key: objective.value_and_grad(key, 0.6, samples=samples)))(jax.random.split(KEY, n))
    value, grad = jax.jit(jax.value_and_grad(exact))(0.6)
    for draws, expected in ((values, value), (grads, grad)):
        error = np.mean(np.asarray(draws, float)) - float(expected)
        assert abs(error) < BOUND * max(np.std(draws) / np.sqrt(n), 1e-5 * (1.0 + abs(float(expected))))
    return np.var(grads)


def test_repetitions_keep_their_branches_and_their_choice_of_element_to_themselves():
    one = ppl.expectation(lambda t: scan(t, OneElement(LocalExpectation())))
    alone, together = check(one, scan_exact), check(one, scan_exact, samples=8, n=2_000)
    assert together < 1.5 * alone / 8  # a choice that all repetitions shared would not average out
    several = ppl.expectation(lambda t: scan(t, Samples(2)))
    check(several, scan_exact, samples=3, n=4_000)
