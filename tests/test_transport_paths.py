"""Paths, regression targets and matching losses, against exact fields of Gaussians and Gaussian mixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl import objectives, transport

SCHEDULES = {
    "linear": transport.linear(),
    "sigma_min": transport.linear(0.1),
    "trigonometric": transport.trigonometric(),
    "variance preserving": transport.variance_preserving(),
    "variance exploding": transport.variance_exploding(0.1, 3.0),
}
WEIGHTS, MEANS, SCALE = jnp.array([0.3, 0.7]), jnp.array([-1.0, 1.5]), 0.4
TARGETS = (transport.velocity, transport.score, transport.noise, transport.data)


def marginal(path, t):
    """`x_t` of a normal source and the mixture: another mixture."""
    scale = jnp.sqrt((path.scale(t) * SCALE) ** 2 + path.sigma(t) ** 2)
    return dist.MixtureSameFamily(dist.Categorical(probs=WEIGHTS), dist.Normal(path.scale(t) * MEANS, scale))


def conditional_data(path, x, t):
    """`E[x_1 | x_t = x]` of the mixture, by Bayes' rule for each component."""
    a, s = path.scale(t), path.sigma(t)
    variance = (a * SCALE) ** 2 + s**2
    weight = jax.nn.softmax(jnp.log(WEIGHTS) + dist.Normal(a * MEANS, jnp.sqrt(variance)).log_prob(x))
    return jnp.sum(weight * (MEANS + a * SCALE**2 / variance * (x - a * MEANS)))


def exact(path, x, t, target):
    return path.convert(conditional_data(path, x, t), x, t, given=transport.data, to=target)


@pytest.mark.parametrize("name", SCHEDULES)
def test_conversions_agree_with_the_score_and_with_each_other(name):
    path = SCHEDULES[name]
    for t, x in ((0.3, -0.4), (0.8, 1.1)):
        t, x = jnp.array(t), jnp.array(x)
        wanted = {target: exact(path, x, t, target) for target in TARGETS}
        assert float(wanted[transport.score]) == pytest.approx(float(jax.grad(marginal(path, t).log_prob)(x)), rel=1e-3)
        for given in TARGETS:
            for to in TARGETS:
                found = path.convert(wanted[given], x, t, given=given, to=to)
                assert float(found) == pytest.approx(float(wanted[to]), rel=2e-3, abs=2e-3), (given, to)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_exact_velocity_moves_the_marginals(name):
    """The continuity equation, `d p / dt = - d (p v) / dx`, of the mixture's marginals."""
    path = SCHEDULES[name]

    def density(x, t):
        return jnp.exp(marginal(path, t).log_prob(x))

    def flux(x, t):
        return density(x, t) * exact(path, x, t, transport.velocity)

    x, t = (grid.ravel() for grid in jnp.meshgrid(jnp.linspace(-2.0, 2.0, 9), jnp.array([0.2, 0.5, 0.9])))
    change = jax.vmap(jax.grad(density, 1))(x, t)
    inflow = -jax.vmap(jax.grad(flux, 0))(x, t)
    np.testing.assert_allclose(change, inflow, atol=2e-3 * float(jnp.abs(change).max()))
    assert float(jnp.abs(change).max()) > 0.05


def ends():
    x0 = ppl.sample("x0", dist.Normal(0.0, 1.0))
    component = ppl.sample("component", ppl.Bound(lambda: ppl.sample("which", dist.Categorical(probs=WEIGHTS))).detach())
    return x0, MEANS[component] + SCALE * ppl.sample("x1", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_minimizer_of_each_loss_is_the_exact_field(name):
    """At the exact field the gradient has mean zero, in directions that are functions of place and time."""
    path = SCHEDULES[name]

    def gradients(key):
        def loss(target):
            @ppl.expectation
            def objective(theta):
                def field(x, t):
                    off = theta[0] + theta[1] * x + theta[2] * jnp.sin(3 * x + t) + theta[3] * t
                    return exact(path, x, t, target) + off

                spread = {"weight": lambda t: path.sigma(t) ** 2, "time": dist.Uniform(0.05, 0.95)}
                return objectives.matching(field, path, ends(), target=target, **spread)

            return objective.grad(key, jnp.zeros(4))

        return jnp.stack([loss(target) for target in TARGETS])

    draws = np.asarray(jax.jit(jax.vmap(gradients))(jax.random.split(jax.random.key(0), 5_000)))
    z = draws.mean(0) / (draws.std(0) / len(draws) ** 0.5)
    assert np.abs(z).max() < 4.2  # 16 directions
    assert draws.std(0).min() > 1e-3


def test_interpolants_with_noise_have_the_velocity_score_and_denoiser_of_gaussians():
    """Jointly normal ends: everything given `x_t` is linear regression."""
    rho, s1 = 0.6, 1.7
    path = transport.Path(lambda t, x0, x1: (1 - t) * x0 + t**2 * x1).with_spread(transport.bridge(0.8))

    def moments(t):
        a, b, g2 = 1 - t, t**2, 0.64 * t * (1 - t)
        variance = a**2 + b**2 * s1**2 + 2 * a * b * rho * s1 + g2
        rate = -a + 2 * t * b * s1**2 + rho * s1 * (2 * t * a - b) + 0.5 * 0.64 * (1 - 2 * t)  # Cov(dx/dt, x)
        return variance, rate, jnp.sqrt(g2)

    def fields(x, t):
        variance, rate, spread = moments(t)
        return {transport.velocity: rate / variance * x, transport.score: -x / variance, transport.noise: spread / variance * x}

    @ppl.expectation
    def loss(theta, which):
        x0 = ppl.sample("x0", dist.Normal(0.0, 1.0))
        x1 = s1 * (rho * x0 + (1 - rho**2) ** 0.5 * ppl.sample("x1", dist.Normal(0.0, 1.0)))
        target = list(fields(0.0, 0.5))[which]

        def field(x, t):
            return fields(x, t)[target] + theta[0] * x + theta[1] * t * x

        time = dist.Uniform(0.02, 0.98)
        return objectives.matching(field, path, (x0, x1), target=target, time=time, weight=lambda t: t * (1 - t))

    keys = jax.random.split(jax.random.key(0), 5_000)
    for which in range(3):
        draws = np.asarray(jax.jit(jax.vmap(lambda key, w=which: loss.grad(key, jnp.zeros(2), w)))(keys))
        assert np.abs(draws.mean(0) / (draws.std(0) / len(draws) ** 0.5)).max() < 4, which


def test_ends_of_paths_are_safe():
    path = transport.linear().with_spread(transport.bridge(1.0))
    ends_of = (jnp.array(1.0), jnp.array(-1.0))
    for t, end in zip((0.0, 1.0), ends_of, strict=True):
        assert float(path.at(t, ends_of, jnp.array(5.0))) == float(end)
        assert float(path.velocity(t, ends_of, jnp.array(5.0))) == -2.0
        _, slope = jax.value_and_grad(lambda t: path.at(t, ends_of, jnp.array(5.0)))(jnp.array(t))
        assert float(slope) == -2.0
    vp = transport.variance_preserving()
    assert float(vp.sigma(1.0)) == 0.0
    assert np.isfinite(vp.velocity(1.0, ends_of))
    for schedule in (transport.linear(), transport.trigonometric()):
        for t, end in zip((0.0, 1.0), ends_of, strict=True):
            assert float(schedule.at(t, ends_of)) == pytest.approx(float(end), abs=1e-6)


def test_path_through_several_marginals():
    times = jnp.array([0.0, 0.3, 0.7, 1.0])
    path = transport.Path(lambda t, *points: transport.through(times, points, t))
    points = tuple(jax.random.normal(jax.random.key(i), (2,)) for i in range(4))
    for t, point in zip(times, points, strict=True):
        np.testing.assert_allclose(path.at(t, points), point, atol=1e-5)
    from scipy.interpolate import CubicSpline

    spline = CubicSpline(times, np.stack(points), bc_type="natural")
    for t in (0.1, 0.31, 0.69, 0.95):
        np.testing.assert_allclose(path.at(t, points), spline(t), atol=1e-5)
        np.testing.assert_allclose(path.velocity(t, points), spline(t, 1), atol=1e-4)


@pytest.mark.parametrize("name", ["linear", "variance preserving"])
def test_ode_and_sde_reach_the_data(name):
    """The probability flow, the reversed noising process and another diffusion, all from exact fields of the mixture."""
    path = SCHEDULES[name]

    def velocity(x, t):
        return exact(path, x, t, transport.velocity)

    def score(x, t):
        return exact(path, x, t, transport.score)

    early, late = (0.02, 0.98)
    base = marginal(path, early)
    deterministic = transport.ode_flow(base, velocity, start=early, end=late, steps=40)
    x = jnp.linspace(-2.0, 3.0, 7)
    np.testing.assert_allclose(jax.jit(jax.vmap(deterministic.log_density))(x), marginal(path, late).log_prob(x), atol=0.02)
    moments = [float((WEIGHTS * MEANS).sum()), float((WEIGHTS * (MEANS**2 + SCALE**2)).sum())]
    a, s = path.scale(late), path.sigma(late)
    wanted = np.array([a * moments[0], a**2 * moments[1] + s**2])
    for diffusion in (path.diffusion, lambda t: 0.7 * jnp.sin(jnp.pi * t)):
        drift = transport.with_diffusion(velocity, score, diffusion)
        process = transport.sde(base, drift, diffusion, steps=250, start=early, end=late)
        x = np.asarray(jax.jit(jax.vmap(process.sample))(jax.random.split(jax.random.key(0), 4000)))
        powers = np.stack([x, x**2], 1)
        error = powers.mean(0) - wanted
        assert (np.abs(error) < 4 * powers.std(0) / len(x) ** 0.5 + 0.015).all(), error  # and what 250 steps are off
