"""Flows and paths on the sphere and the torus, and jumps on discrete spaces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl import objectives, transport

SPHERE, TORUS = transport.Sphere(), transport.Torus()
POLE = jnp.array([0.0, 0.0, 1.0])


def sphere_flow(**options):
    """A field that is not tangent by itself, from a distribution about a pole."""
    shift = jnp.array([[0.3, 1.0, -0.2], [0.1, -0.4, 0.8], [0.5, 0.2, 0.6]])
    base = dist.VonMisesFisher(POLE, 1.5)
    return transport.ode_flow(base, lambda x, t: 0.5 * shift @ x * (1 + t) + 0.2 * jnp.sin(3 * x), manifold=SPHERE, **options)


def sphere_grid(n):
    """Points and weights of a quadrature of the sphere: Gauss-Legendre in height, equal steps in longitude."""
    z, weights = np.polynomial.legendre.leggauss(n)
    angle = 2 * np.pi * np.arange(2 * n) / (2 * n)
    z, angle = (grid.ravel() for grid in np.meshgrid(z, angle, indexing="ij"))
    r = np.sqrt(1 - z**2)
    return jnp.stack([r * np.cos(angle), r * np.sin(angle), z], -1), np.repeat(weights, 2 * n) * np.pi / n


def test_flow_on_the_sphere():
    flow = sphere_flow(steps=24)
    draws, log_q = jax.jit(jax.vmap(flow.simulate))(jax.random.split(jax.random.key(0), 200))
    np.testing.assert_allclose(jnp.linalg.norm(draws, axis=1), 1.0, atol=1e-6)
    score = jax.jit(jax.vmap(flow.log_density))
    np.testing.assert_allclose(score(draws), log_q, atol=5e-3)
    points, weights = sphere_grid(24)
    density = jnp.exp(score(points))
    assert float(density @ weights) == pytest.approx(1.0, abs=2e-3)
    mean = np.asarray(density * weights) @ np.asarray(points)
    error = draws.mean(0) - mean
    assert np.abs(error / (draws.std(0) / 200**0.5)).max() < 4


def test_flow_on_the_torus():
    base = dist.VonMises(jnp.zeros(2), 0.7).to_event(1)
    flow = transport.ode_flow(base, lambda x, t: 2.0 + jnp.sin(x) + jnp.cos(x[::-1] + t), manifold=TORUS, steps=20)
    x = jax.jit(jax.vmap(flow.sample))(jax.random.split(jax.random.key(0), 100))
    assert float(jnp.abs(x).max()) <= np.pi + 1e-6
    assert float(jnp.abs(x).max()) > 2.5
    axis = -np.pi + 2 * np.pi * jnp.arange(48) / 48
    grid = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
    density = jnp.exp(jax.jit(jax.vmap(flow.log_density))(grid))
    assert float(density.mean()) * (2 * np.pi) ** 2 == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("manifold", [SPHERE, TORUS], ids=["sphere", "torus"])
def test_geodesics(manifold):
    """On the manifold, tangent, at constant speed, from one end to the other: also for near and equal ends."""
    path = transport.geodesic(manifold)
    x0, x1 = (manifold.project(3 * jax.random.normal(jax.random.key(i), (50, 3))) for i in range(2))
    x1 = x1.at[0].set(x0[0]).at[1].set(manifold.project(x0[1] + 1e-5)).at[2].set(manifold.project(x0[2] + 1e-2))
    times = jnp.linspace(0.0, 1.0, 5)
    run = jax.vmap(jax.vmap(lambda t, a, b: (path.at(t, (a, b)), path.velocity(t, (a, b))), (None, 0, 0)), (0, None, None))
    x, v = jax.jit(run)(times, x0, x1)
    for end, wanted in ((0, x0), (-1, x1)):
        np.testing.assert_allclose(manifold.project(x[end] - wanted) if manifold is TORUS else x[end] - wanted, 0.0, atol=1e-5)
    np.testing.assert_allclose(manifold.project(x), x, atol=1e-5)
    np.testing.assert_allclose(manifold.tangent(x, v), v, atol=1e-4)
    speed = jnp.linalg.norm(v, axis=-1)
    np.testing.assert_allclose(speed, jnp.broadcast_to(speed[:1], speed.shape), atol=1e-3)
    if manifold is SPHERE:
        np.testing.assert_allclose(speed[0], jnp.arccos(jnp.clip(jnp.sum(x0 * x1, -1), -1, 1)), atol=2e-3)
    gradient = jax.grad(lambda x0: jnp.sum(path.velocity(0.5, (x0, x1)) ** 2))(x0)
    assert np.isfinite(np.asarray(gradient)).all()


def test_matching_on_the_sphere_learns_a_rotation():
    """Ends that are rotated by a fixed angle about an axis, and shorter ways between them: v is a function of x_t and t."""
    c, s = np.cos(0.8), np.sin(0.8)
    turn = jnp.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])

    @ppl.expectation
    def loss(rate):
        angle = ppl.sample("angle", dist.Uniform(-np.pi, np.pi))
        x0 = jnp.stack([jnp.cos(angle), jnp.sin(angle), 0.0 * angle])  # on the equator great circles are orbits

        def field(x, t):
            return rate * jnp.stack([-x[1], x[0], 0.0 * x[0]])

        return objectives.matching(field, transport.geodesic(SPHERE), (x0, turn @ x0), target=transport.velocity)

    value, slope = loss.value_and_grad(jax.random.key(0), 0.8, samples=100)
    assert float(value) < 1e-6
    assert abs(float(slope)) < 1e-3
    assert float(loss.estimate(jax.random.key(0), 0.3, samples=100)) == pytest.approx(0.25, abs=1e-4)


# --- Jumps. Two tokens of four values (the last is the mask), with a joint law of the data by a table. ----------------------

LAW = np.array([[0.30, 0.05, 0.02], [0.04, 0.20, 0.03], [0.01, 0.10, 0.25]])
STATES = np.stack(np.meshgrid(range(4), range(4), indexing="ij"), -1).reshape(-1, 2)


def start_of(source):
    """Probability of each token of the source."""
    return np.array([0.0, 0.0, 0.0, 1.0]) if source == "mask" else np.full(4, 0.25)


def marginals(source, t):
    """P(x_t) and E[one-hot of each token of x_1 | x_t], by summing over the data."""
    start = start_of(source)
    p, posterior = np.zeros(16), np.zeros((16, 2, 4))
    for a in range(3):
        for b in range(3):
            each = [(1 - t) * start[STATES[:, i]] + t * (STATES[:, i] == end) for i, end in enumerate((a, b))]
            weight = LAW[a, b] * each[0] * each[1]
            p += weight
            posterior[:, 0, a] += weight
            posterior[:, 1, b] += weight
    return p, posterior / np.maximum(p, 1e-30)[:, None, None]


@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_jump_rates_have_the_marginals_of_the_path(source):
    """The forward equation of the chain with these rates, on all sixteen states."""
    for t in (0.2, 0.6, 0.9):
        p, posterior = marginals(source, t)
        generator = np.zeros((16, 16))
        rates = np.asarray(transport.jump_rates(jnp.asarray(posterior), jnp.asarray(STATES), t))
        for state in range(16):
            for token in range(2):
                for value in range(4):
                    after = STATES[state].copy()
                    after[token] = value
                    generator[state, 4 * after[0] + after[1]] += rates[state, token, value]
        generator -= np.diag(generator.sum(1))
        change = (marginals(source, t + 1e-4)[0] - marginals(source, t - 1e-4)[0]) / 2e-4
        np.testing.assert_allclose(p @ generator, change, atol=1e-4)
        assert np.abs(change).max() > 0.05


@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_jump_process_reaches_the_data(source):
    steps = 64
    table = jnp.asarray(np.stack([marginals(source, i / steps)[1] for i in range(steps)]))
    base = dist.Categorical(probs=jnp.asarray(np.tile(start_of(source), (2, 1)))).to_event(1)
    process = transport.jump_process(base, lambda x, t: table[jnp.round(t * steps).astype(int), 4 * x[0] + x[1]], steps=steps)
    n = 20_000
    x = np.asarray(jax.jit(jax.vmap(process.sample))(jax.random.split(jax.random.key(0), n)))
    found = np.bincount(4 * x[:, 0] + x[:, 1], minlength=16).reshape(4, 4) / n
    assert found[3].sum() + found[:, 3].sum() == 0.0
    error = np.abs(found[:3, :3] - LAW) - 4 * np.sqrt(LAW * (1 - LAW) / n)
    assert error.max() < 0.5 / steps  # what both tokens jumping in one step costs


def test_discrete_matching_finds_the_posterior():
    """At the exact posterior of masked tokens the gradient of the cross-entropy has mean zero."""
    posterior = jnp.asarray(marginals("mask", 0.5)[1])  # for masks it does not depend on time

    @ppl.expectation
    def loss(theta):
        which = ppl.sample("data", ppl.Bound(lambda: ppl.sample("x1", dist.Categorical(probs=LAW.ravel()))).detach())
        x1 = jnp.stack([which // 3, which % 3])

        def logits(x, t):
            return jnp.log(jnp.maximum(posterior[4 * x[0] + x[1]], 1e-9)) + jnp.append(theta, 0.0) * (x[::-1] == 0)[:, None]

        return objectives.discrete_matching(logits, transport.switched, (jnp.full(2, 3), x1))

    draws = np.asarray(jax.jit(jax.vmap(lambda key: loss.grad(key, jnp.zeros(3))))(jax.random.split(jax.random.key(0), 20_000)))
    assert np.abs(draws.mean(0) / (draws.std(0) / 20_000**0.5)).max() < 4
    assert draws.std(0).min() > 0.05
