"""Couplings: exact assignments, permutations, conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import ppl
import ppl.distributions as dist
from ppl import errors, objectives, transport

COSTS = {
    "random": lambda key, n: jax.random.uniform(key, (n, n)),
    "points": lambda key, n: transport.cost_matrix(
        jax.random.normal(key, (n, 2)), 3.0 + 2 * jax.random.normal(key, (n, 2)) ** 2
    ),
    "ties": lambda key, n: jax.random.randint(key, (n, n), 0, 3).astype(float),
    "one dimension": lambda key, n: transport.cost_matrix(jax.random.normal(key, (n,)), jax.random.gamma(key, 0.3, (n,))),
    "equal": lambda key, n: jnp.ones((n, n)),
}


@pytest.mark.parametrize("n", [1, 96])
def test_assignment_is_exact(n):
    solve = jax.jit(transport.assignment)
    for name, cost in COSTS.items():
        for seed in range(5):
            matrix = cost(jax.random.key(seed), n)
            found = np.asarray(solve(matrix))
            assert sorted(found) == list(range(n)), name
            matrix = np.asarray(matrix, np.float64)
            rows, columns = scipy.optimize.linear_sum_assignment(matrix)
            assert matrix[range(n), found].sum() == pytest.approx(matrix[rows, columns].sum(), rel=1e-5), name


def test_assignment_ends_whatever_it_is_given():
    matrix = jnp.full((5, 5), jnp.nan)
    assert sorted(np.asarray(jax.jit(transport.assignment)(matrix))) == list(range(5))
    batch = jax.random.normal(jax.random.key(0), (3, 6, 6))
    for matrix, found in zip(batch, jax.jit(jax.vmap(transport.assignment))(batch), strict=True):
        np.testing.assert_array_equal(found, scipy.optimize.linear_sum_assignment(matrix)[1])
    with pytest.raises(errors.ValueShapeError, match=r"square matrix of costs, got the shape \(2, 3\)"):
        transport.assignment(jnp.ones((2, 3)))


def test_optimal_pairs_are_a_permutation_of_what_was_drawn():
    pairs = transport.independent(
        dist.Normal(jnp.zeros(2), 1.0).to_event(1), dist.Normal(jnp.ones(2), 1.0).to_event(1), size=32
    )
    key = jax.random.key(0)
    plain = jax.jit(ppl.Bound(lambda: ppl.sample("pairs", pairs)).sample)(
        key
    )  # at the address that `optimal` gives it: the same draws
    for match in (transport.assignment, transport.entropic(0.5)):
        x0, x1 = jax.jit(transport.optimal(pairs, match=match).sample)(key)
        np.testing.assert_allclose(x0, plain[0], rtol=1e-6)
        np.testing.assert_allclose(sorted(map(tuple, np.asarray(x1))), sorted(map(tuple, np.asarray(plain[1]))), rtol=1e-5)
        assert jnp.sum((x0 - x1) ** 2) < 0.8 * jnp.sum((plain[0] - plain[1]) ** 2)


def test_entropic_pairs_follow_the_plan():
    """Mean cost of drawn permutations against that of Sinkhorn's plan, and both against the two extremes."""
    from ott.geometry import geometry
    from ott.solvers import linear

    x0, x1 = (jax.random.normal(key, (48, 1)) for key in jax.random.split(jax.random.key(1)))
    cost = transport.cost_matrix(x0, x1)

    for epsilon in (0.5,):
        match = transport.entropic(epsilon)
        plan = linear.solve(geometry.Geometry(cost_matrix=cost, epsilon=epsilon)).matrix
        draw = jax.jit(lambda key, match=match: jnp.mean(cost[jnp.arange(48), ppl.seed(match)(key, cost)]))
        drawn = np.asarray([draw(key) for key in jax.random.split(jax.random.key(2), 100)])
        best, mean = cost[jnp.arange(48), transport.assignment(cost)].mean(), cost.mean()
        assert abs(drawn.mean() - float(jnp.sum(plan * cost))) < 0.1 * float(mean - best)


def test_a_cost_that_knows_conditions_keeps_them_together():
    def draw():
        c = ppl.sample("c", ppl.Bound(lambda: ppl.sample("c", dist.Bernoulli(probs=jnp.full(64, 0.5)))).detach())
        x0 = ppl.sample("x0", dist.Normal(jnp.zeros(64), 1.0))
        x1 = ppl.sample("x1", dist.Normal(4.0 * c, 0.1))
        return (x0, c), (x1, c)

    pairs = ppl.Bound(draw)

    def same(cost):
        (_, c0), (_, c1) = transport.optimal(pairs, cost=cost).sample(jax.random.key(0))
        return float(jnp.mean(c0 == c1))

    assert same(lambda a, b: (a[0] - b[0]) ** 2) < 0.8
    assert same(lambda a, b: (a[0] - b[0]) ** 2 + 1e3 * (a[1] - b[1]) ** 2) == 1.0


def test_training_on_a_batch_of_optimal_pairs_finds_the_optimal_map():
    """From N(0, 1) to N(2, 0.5^2) the monotone map is x -> 2 + x/2, with straight lines: v(x_t, t) is known."""
    import optax

    pairs = transport.optimal(transport.independent(dist.Normal(0.0, 1.0), dist.Normal(2.0, 0.5), size=128))
    path = transport.linear()

    def velocity(theta):
        return lambda x, t: theta[0] + theta[1] * (x - 2.0 * t) / (1.0 - 0.5 * t)

    @ppl.expectation
    def loss(theta):
        x0, x1 = ppl.sample("pairs", pairs)

        def one(x0, x1):
            return objectives.matching(velocity(theta), path, (x0, x1), target=transport.velocity)

        return jnp.mean(ppl.plate("pairs", one)(x0, x1))

    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 300))
    fit = ppl.minimize(loss, jnp.zeros(2), jax.random.key(0), optimizer=optimizer, steps=300, progress=False)
    np.testing.assert_allclose(fit.params, [2.0, -0.5], atol=0.03)
    assert fit.history[-50:].mean() < 0.05  # independent pairs leave 1.25


def test_rectified_pairs_are_carried_by_the_flow():
    flow = transport.ode_flow(dist.Normal(jnp.zeros(2), 1.0).to_event(1), lambda x, t: -x, steps=12)
    x0, x1 = transport.pairs_of(flow, 5).sample(jax.random.key(0))
    np.testing.assert_allclose(x1, x0 * np.exp(-1.0), atol=1e-4)
    with pytest.raises(TypeError, match="unmodified flow"):
        transport.pairs_of(flow.detach())


def test_rows_are_drawn_uniformly():
    data = (jnp.arange(10.0), jnp.arange(10))
    (x, label), _ = transport.independent(transport.rows(data), transport.rows(data), size=1000).sample(jax.random.key(0))
    np.testing.assert_array_equal(x, label)
    counts = np.bincount(np.asarray(label), minlength=10)
    assert np.abs(counts - 100).max() < 4 * 90**0.5
    for wrong in ((jnp.zeros(3), jnp.zeros(4)), (jnp.zeros(3), 1.0)):
        with pytest.raises(errors.ValueShapeError, match="leading axes"):
            transport.rows(wrong)
