"""Flows as programs: densities against exact changes of variables, gradients against exact ones, kinds of density."""

import diffrax
import flowjax.distributions
import flowjax.flows
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl import errors, objectives
from ppl.diagnostics.check import check
from ppl.transport import Hutchinson, flow, importance, ode_flow, simulate_with_score

A = jnp.array([[0.3, 0.7], [-0.5, 0.1]])
BASE = dist.Normal(jnp.zeros(2), 1.0).to_event(1)


def linear_flow(a, **options):
    """Carries a standard normal to N(0, M M'), M = expm(a)."""
    return ode_flow(BASE, lambda x, t: a @ x, **options)


def exact(a):
    m = jax.scipy.linalg.expm(a)
    return dist.MultivariateNormal(jnp.zeros(2), m @ m.T)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"steps": 12, "adjoint": diffrax.DirectAdjoint()},
        {"adjoint": diffrax.BacksolveAdjoint(), "solver": diffrax.Dopri5()},
        {"steps": 60, "solver": diffrax.Heun(), "start": 1.0, "end": 2.0},
    ],
    ids=["adaptive", "direct", "backsolve", "heun"],
)
def test_density_and_its_gradient_are_those_of_the_matrix_exponential(options):
    x = jnp.array([[0.4, -1.2], [2.0, 0.3], [-0.1, 0.0]])

    @jax.jit
    def both(a):
        program = linear_flow(a, **options)
        drawn, log_q = program.simulate(jax.random.key(0))
        both = jax.value_and_grad(lambda a, x: linear_flow(a, **options).log_density(x), (0, 1))
        return jax.vmap(lambda x: both(a, x))(x), drawn, log_q

    (found, gradients), drawn, log_q = both(A)
    np.testing.assert_allclose(found, exact(A).log_prob(x), atol=1e-3)
    wanted = jax.vmap(lambda x: jax.grad(lambda a, x: exact(a).log_prob(x), (0, 1))(A, x))(x)
    for one, other in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-3)
    np.testing.assert_allclose(log_q, exact(A).log_prob(drawn), atol=1e-3)


@pytest.mark.parametrize("dimension", [1, 2])
def test_densities_integrate_to_one(dimension):
    def velocity(x, t):
        return jnp.sin(2.0 * x + t) + 0.5 * jnp.roll(x, 1) * t

    program = ode_flow(dist.Normal(jnp.zeros(dimension), 0.7).to_event(1), velocity, steps=24)
    axis = jnp.linspace(-7.0, 7.0, 141)
    grid = jnp.stack(jnp.meshgrid(*[axis] * dimension), -1).reshape(-1, dimension)
    total = jnp.sum(jnp.exp(jax.jit(jax.vmap(program.log_density))(grid))) * (axis[1] - axis[0]) ** dimension
    assert float(total) == pytest.approx(1.0, abs=2e-3)


def test_reverse_direction_undoes_a_flow():
    forward = ode_flow(BASE, lambda x, t: jnp.sin(x) * (1 + t))
    backward = ode_flow(forward, lambda x, t: jnp.sin(x) * (1 + t), start=1.0, end=0.0)
    x = jnp.array([0.3, -0.8])
    assert float(backward.log_density(x)) == pytest.approx(float(BASE.log_prob(x)), abs=1e-3)


def elbo_of(family):
    model = ppl.program(lambda: ppl.sample("x", dist.MultivariateNormal(jnp.array([1.0, -0.5]), 1.3 * jnp.eye(2))))

    @ppl.expectation
    def objective(a):
        return objectives.elbo(model(), ppl.Bound(lambda: ppl.sample("x", family(a))))

    return objective


def exact_elbo(a):
    """`E_q[log p] + entropy` of Gaussians."""
    covariance = exact(a).covariance_matrix
    mean = jnp.array([1.0, -0.5])
    cross = -0.5 * (jnp.trace(covariance) + mean @ mean) / 1.3 - jnp.log(2 * jnp.pi * 1.3)
    return cross + 0.5 * jnp.linalg.slogdet(covariance)[1] + jnp.log(2 * jnp.pi) + 1.0


@pytest.mark.parametrize("options", [{}, {"divergence": Hutchinson(3)}])
def test_elbo_and_its_gradient_are_unbiased(options):
    objective = elbo_of(lambda a: linear_flow(a, steps=4, **options))
    keys = jax.random.split(jax.random.key(1), 2000)
    value, gradient = jax.jit(jax.vmap(lambda key: objective.value_and_grad(key, A)))(keys)
    draws = np.concatenate([np.asarray(value)[:, None], np.asarray(gradient).reshape(-1, 4)], 1)
    wanted = np.append(exact_elbo(A), jax.grad(exact_elbo)(A).ravel())
    z = (draws.mean(0) - wanted) / (draws.std(0) / len(draws) ** 0.5)
    assert np.abs(z).max() < 4


def test_score_function_gradients_are_unbiased_too():
    objective = elbo_of(lambda a: linear_flow(a, steps=4).with_estimators(ppl.estimators.ScoreFunction()))
    assert [type(row.estimator).__name__ for row in objective.estimators(A)] == ["ScoreFunction"]
    gradient = jax.jit(jax.vmap(lambda key: objective.grad(key, A)))(jax.random.split(jax.random.key(1), 2000))
    z = (gradient.mean(0) - jax.grad(exact_elbo)(A)) / (gradient.std(0) / 2000**0.5)
    assert np.abs(z).max() < 4


def hutchinson(a=A):
    return linear_flow(a, divergence=Hutchinson(), steps=4)


MISUSES = {
    "iwae": lambda model, family: objectives.iwae(model, family, particles=2),
    "chi_square": objectives.chi_square,
    "weight": lambda model, family: jnp.exp(objectives.elbo(model, family)),
    "square": lambda model, family: ppl.simulate(family)[1] ** 2,
    "log variance": lambda model, family: objectives.log_variance(model, family, particles=3),
    "marginal": lambda model, family: ppl.marginal(
        ppl.Bound(lambda: (ppl.sample("u", dist.Normal(0.0, 1.0)), ppl.sample("x", family))),
        keep="x",
        proposal=ppl.Bound(lambda: ppl.sample("u", dist.Normal(0.0, 1.0))),
    ).log_density({"x": jnp.zeros(2)}),
}


@pytest.mark.parametrize("name", MISUSES)
def test_an_unbiased_log_density_is_refused_where_it_is_biased(name):
    model = linear_flow(0.5 * A, steps=4)
    if name == "log variance":
        with pytest.raises((errors.DensityKindError, errors.EstimatorError)):
            ppl.expectation(lambda a: MISUSES[name](model, hutchinson(a))).estimate(jax.random.key(0), A)
        return
    with pytest.raises(errors.DensityKindError, match=r"Hutchinson's divergence.*(\n.*)*log density"):
        ppl.expectation(lambda a: MISUSES[name](model, hutchinson(a))).estimate(jax.random.key(0), A)
    exact_divergence = ppl.expectation(lambda a: MISUSES[name](model, linear_flow(a, steps=4)))
    assert jax.eval_shape(exact_divergence.estimate, jax.random.key(0), A).shape == ()  # staged, which is when it is refused


def test_importance_weights_refuse_an_unbiased_log_density():
    with pytest.raises(errors.DensityKindError, match="Hutchinson's divergence"):
        importance(linear_flow(0.5 * A, steps=4), hutchinson(), jax.random.key(0), 10)
    with pytest.raises(errors.DensityKindError, match="Hutchinson's divergence"):
        check(linear_flow(0.5 * A, steps=4), hutchinson(), jax.random.key(0), draws=100)


def test_two_independent_probes_give_an_unbiased_square():
    x = jnp.array([1.0, -0.4])

    @ppl.expectation
    def squared_residual(a):
        one, other = (hutchinson(a).log_density(x) for _ in range(2))
        return (one + 2.0) * (other + 2.0)

    draws = jax.jit(jax.vmap(lambda key: squared_residual.estimate(key, A)))(jax.random.split(jax.random.key(2), 2000))
    wanted = (linear_flow(A).log_density(x) + 2.0) ** 2
    assert abs(draws.mean() - wanted) < 4 * draws.std() / 2000**0.5
    assert draws.std() > 0.1


def test_a_flow_as_prior_of_a_conditioned_model():
    @ppl.program
    def model():
        x = ppl.sample("x", linear_flow(A, steps=4))
        ppl.sample("y", dist.Normal(x[0], 0.5), obs=1.0)

    @ppl.program
    def proposal():
        ppl.sample("x", dist.Normal(jnp.array([0.8, 0.0]), 1.2).to_event(1))

    def log_weight(key):
        trace, log_q = proposal().simulate(key)
        return model().log_density(trace) - log_q

    weights = np.exp(jax.jit(jax.vmap(log_weight))(jax.random.split(jax.random.key(3), 2000)))
    evidence = np.exp(dist.Normal(0.0, jnp.sqrt(exact(A).covariance_matrix[0, 0] + 0.25)).log_prob(1.0))
    assert abs(weights.mean() - evidence) < 4 * weights.std() / 2000**0.5


@ppl.program
def two_sites():
    ppl.sample("a", dist.Normal(0.0, 1.0))
    ppl.sample("b", dist.Normal(jnp.zeros(3), 1.0))


def test_a_flow_over_the_addresses_of_a_program():
    program = ode_flow(two_sites(), lambda x, t: {"a": x["a"], "b": 0.5 * x["b"] + x["a"]}, steps=20)
    trace, log_q = program.simulate(jax.random.key(0))
    # Triangular: b(1) = e^.5 b(0) + a(0) (e - e^.5) / (1 - .5), with the determinant e^(1 + 3/2)
    a = trace["a"] / np.e
    b = (trace["b"] - a * (np.e - np.e**0.5) / 0.5) / np.e**0.5
    wanted = two_sites().log_density({"a": a, "b": b}) - 2.5
    assert float(log_q) == pytest.approx(float(wanted), abs=1e-3)
    assert float(program.log_density(trace)) == pytest.approx(float(wanted), abs=1e-3)
    conditioned = program.condition(trace).scale(2.0)
    assert float(conditioned.log_density({})) == pytest.approx(2 * float(wanted), abs=2e-3)
    assert program.intervene(trace).log_density({}) == 0.0
    with pytest.raises(errors.MarginalError, match="a, b together, and a asks for a part"):
        program.condition(a=1.0).log_density({"b": jnp.zeros(3)})


def test_there_is_no_density_outside_of_the_image():
    """The image of a uniform under x -> e x."""
    program = ode_flow(dist.Uniform(0.0, 1.0), lambda x, t: x, steps=4)
    x = jnp.array([-0.1, 0.1, 2.6, 2.8])
    np.testing.assert_allclose(jax.vmap(program.log_density)(x), [-np.inf, -1.0, -1.0, -np.inf], atol=1e-4)

    def moving(high):
        return ode_flow(dist.Uniform(0.0, high), lambda x, t: x).log_density(1.0)

    with pytest.raises(errors.SupportError, match="moves with parameters"):
        jax.jit(moving)(2.0)


def test_detached_draws_leave_the_score_of_the_density():
    """`E[d log q(x)] = 0` at fixed x, which is what is left."""
    objective = ppl.expectation(lambda a: ppl.simulate(linear_flow(a, steps=4).detach())[1])
    gradient = jax.jit(jax.vmap(lambda key: objective.grad(key, A)))(jax.random.split(jax.random.key(1), 2000))
    assert np.abs(gradient.mean(0) / (gradient.std(0) / 2000**0.5)).max() < 4
    assert np.abs(gradient).mean() > 0.1


def test_what_is_refused():
    for base, velocity, error, match in (
        (two_sites(), lambda x, t: x["a"], errors.ValueShapeError, "the velocity has the shape"),
        (dist.Poisson(3.0), lambda x, t: x, errors.ValueDtypeError, "moves real numbers.*Poisson"),
        (two_sites().condition(a=1.0), lambda x, t: x, errors.MarginalError, "observation"),
        (3.0, lambda x, t: x, TypeError, "a NumPyro distribution or a bound program"),
    ):
        with pytest.raises(error, match=match):
            ode_flow(base, velocity).simulate(jax.random.key(0))
    for options in (
        {"divergence": "hutchinson"},
        {"steps": 0},
        {"steps": 3, "stepsize_controller": diffrax.PIDController(1, 1)},
    ):
        with pytest.raises(TypeError):
            ode_flow(BASE, lambda x, t: x, **options)
    with pytest.raises(TypeError, match="draw of a flow"):
        ppl.seed(simulate_with_score)(jax.random.key(0), two_sites())


def spline_flow():
    return flowjax.flows.masked_autoregressive_flow(
        jax.random.key(0),
        base_dist=flowjax.distributions.Normal(jnp.zeros(2)),
        flow_layers=2,
        nn_width=8,
        nn_depth=1,
        invert=False,
    )


def test_flowjax_densities_drawn_and_scored():
    module = spline_flow()
    x, log_q = jax.jit(jax.vmap(flow(module).simulate))(jax.random.split(jax.random.key(1), 50))
    wanted = module.log_prob(x)
    np.testing.assert_allclose(log_q, wanted, atol=1e-4)
    np.testing.assert_allclose(jax.jit(jax.vmap(flow(module).log_density))(x), wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["flowjax", "ode"])
def test_path_gradients_are_those_of_sticking_the_landing(kind):
    """Draw by draw: the score that comes along with the draw is that of the inverse."""
    model = linear_flow(A, steps=4)
    if kind == "flowjax":
        params, family = spline_flow(), flow
    else:
        params, family = A + 0.2, lambda a: ode_flow(BASE, lambda x, t: jnp.tanh(a @ x), steps=16)
    import equinox as eqx

    arrays, static = eqx.partition(params, eqx.is_inexact_array)

    @ppl.expectation
    def slow(arrays):
        return objectives.sticking_the_landing(model, family(eqx.combine(arrays, static)))

    @ppl.expectation
    def fast(arrays):
        return objectives.path_gradient(model, lambda: simulate_with_score(family(eqx.combine(arrays, static))))

    key = jax.random.key(4)
    for one, other in zip(*(jax.tree.leaves(jax.jit(f.value_and_grad)(key, arrays)) for f in (slow, fast)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=2e-3)


def test_conditional_flowjax_distribution():
    module = flowjax.flows.coupling_flow(
        jax.random.key(0), base_dist=flowjax.distributions.Normal(jnp.zeros(2)), cond_dim=1, flow_layers=1, nn_width=4
    )
    condition = jnp.array([0.7])
    x, log_q = flow(module, condition).simulate(jax.random.key(0))
    assert float(log_q) == pytest.approx(float(module.log_prob(x, condition)), abs=1e-4)
    with pytest.raises(errors.ValueShapeError, match=r"conditions of shape \(1,\)"):
        flow(module)
