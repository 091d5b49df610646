"""Marginal programs in use: changed, in objectives, misused; and the kinds of their densities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import ppl
import ppl.distributions as dist
from ppl import errors
from ppl.notes import note
from ppl.transforms.kinds import UNBIASED_DENSITY, UNBIASED_LOG_DENSITY, uses_of
from ppl.transforms.stage import stage

KEY = jax.random.key(11)
N = 20_000
BOUND = 4.5  # |z| of every comparison; 1e-5 of a false alarm each, over about 60 of them


def z_score(draws, exact):
    draws = np.asarray(draws, float)
    return np.abs((draws.mean(0) - exact) / (draws.std(0) / np.sqrt(len(draws)) + 1e-6 * (1.0 + np.abs(exact)))).max()


def estimates(function, n=N):
    return jax.jit(jax.vmap(function))(jax.random.split(KEY, n))


@ppl.program
def shifted():  # x ~ Normal(0, sqrt(1.09))
    u = ppl.sample("u", dist.Normal(0.0, 0.3))
    ppl.sample("x", dist.Normal(u, 1.0))


@ppl.program
def reverse(mean=0.1, scale=0.4):
    ppl.sample("u", dist.Normal(mean, scale))


@ppl.program
def twice_shifted():  # x ~ Normal(0.2, sqrt(1.25))
    v = ppl.sample("v", dist.Normal(0.2, 0.4))
    u = ppl.sample("u", dist.Normal(v, 0.3))
    ppl.sample("x", dist.Normal(u, 1.0))


@ppl.program
def wide(mean=0.0):
    ppl.sample("v", dist.Normal(mean, 0.5))


THETA = jnp.array([0.3, -0.6])


@ppl.program
def family(theta):
    u = ppl.sample("u", dist.Normal(theta[0], 0.6))
    ppl.sample("x", dist.Normal(u, jnp.exp(theta[1])))


@ppl.program
def back(trace):
    ppl.sample("u", dist.Normal(0.4 * trace["x"], 0.7))


@ppl.expectation
def bound(theta):
    trace, log_q = ppl.simulate(ppl.marginal(family(theta), keep="x", proposal=back, particles=2))
    return dist.Normal(1.0, 0.8).log_prob(trace["x"]) - log_q


@ppl.expectation
def tighter(theta):
    return jax.nn.logsumexp(jax.vmap(lambda _: bound.function(theta))(jnp.arange(2))) - jnp.log(2.0)


# What can be done to a bound program.


KEPT = ppl.marginal(twice_shifted(), keep=("u", "x"), proposal=lambda t: wide(0.6 * t["u"]), particles=3)
ALIKE = ppl.marginal(twice_shifted(), keep=("u", "x"), nodes=20)


def _u(u):
    return scipy.stats.norm.logpdf(u, 0.2, 0.5)


def _x(x, u):
    return scipy.stats.norm.logpdf(x, u, 1.0)


CHANGED = {
    "condition": (lambda p: p.condition(x=0.5), {"u": 0.1}, lambda u, x: _u(0.1) + _x(0.5, 0.1), (0.2, 0.5), "u"),
    "substitute": (lambda p: p.substitute(x=0.5), {"u": 0.1}, lambda u, x: _u(0.1) + _x(0.5, 0.1), (0.2, 0.5), "u"),
    "intervene": (lambda p: p.intervene(u=0.5), {"x": 0.1}, lambda u, x: _x(0.1, 0.5), (0.5, 1.0), "x"),
    "mask": (lambda p: p.mask(x=False), {"u": 0.1, "x": 9.0}, lambda u, x: _u(0.1), (0.2, 0.5), "u"),
    "mask all": (lambda p: p.mask(False), {"u": 0.1, "x": 9.0}, lambda u, x: 0.0, (0.2, 0.5), "u"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_changes_of_a_bound_program(name):
    change, trace, exact, (mean, scale), address = CHANGED[name]
    np.testing.assert_allclose(change(ALIKE).log_density(trace), exact(0.1, 0.5), atol=1e-5)
    log_w = estimates(lambda key: ppl.seed(change(KEPT).log_density)(key, trace))
    assert z_score(jnp.exp(log_w), np.exp(exact(0.1, 0.5))) < BOUND
    drawn, log_w = estimates(change(KEPT).simulate)
    assert z_score(drawn[address], mean) < BOUND
    assert z_score((drawn[address] - mean) ** 2, scale**2) < BOUND
    if name in ("condition", "substitute"):  # drawn from the prior of u, with an unbiased estimate of the joint density
        log_g = dist.Normal(0.3, 0.3).log_prob(drawn["u"])
        assert z_score(jnp.exp(log_w + log_g - dist.Normal(0.2, 0.5).log_prob(drawn["u"])), _expected_joint()) < BOUND


def _expected_joint():
    """The integral of g(u) p(u, x=.5)."""
    t, w = np.polynomial.hermite_e.hermegauss(40)
    u = 0.3 + 0.3 * t
    return (w / w.sum()) @ np.exp(_u(u) + _x(0.5, u))


def test_scales_multiply_the_log_density_and_parts_of_it_are_refused():
    trace = {"u": 0.1, "x": 0.5}
    once, twice = (ppl.seed(p.log_density)(KEY, trace) for p in (KEPT, KEPT.scale(2.0)))
    np.testing.assert_allclose(twice, 2.0 * once, rtol=1e-6)
    with pytest.raises(errors.DensityKindError, match="one joint density"):
        ppl.seed(KEPT.scale(x=2.0).log_density)(KEY, trace)


def test_two_uses_of_one_marginal_are_independent_and_sampling_agrees_with_simulating():
    once = ppl.marginal(shifted(), "x", proposal=reverse())

    def both():
        return once.log_density({"x": 0.5}), once.log_density({"x": 0.5}), ppl.simulate(once), ppl.simulate(once)

    a, b, (c, log_c), (d, log_d) = estimates(lambda key: ppl.seed(both)(key))
    for one, other in ((a, b), (c["x"], d["x"]), (log_c, log_d), (a, log_c)):
        assert abs(np.corrcoef(one, other)[0, 1]) < BOUND / np.sqrt(N)
    assert float(once.sample(KEY)["x"]) == float(once.simulate(KEY)[0]["x"])


def test_gradients_of_a_model_that_samples_a_marginal_without_its_density():
    @ppl.expectation
    def second_moment(theta):
        x = ppl.sample("sub", ppl.marginal(family(theta), "x", proposal=back))["x"]
        return x**2

    values, grads = estimates(lambda key: second_moment.value_and_grad(key, THETA))
    variance = np.exp(2 * THETA[1])
    assert z_score(values, THETA[0] ** 2 + 0.36 + variance) < BOUND
    assert z_score(grads, np.array([2 * THETA[0], 2 * variance])) < BOUND


def test_a_detached_marginal_scores_with_gradients_and_draws_without():
    """E[log q] of a Gaussian, drawn from a frozen copy of itself, has gradient zero; so has its score in expectation."""

    @ppl.expectation
    def cross_entropy(theta, detached):
        q = ppl.marginal(family(theta), "x", nodes=30)
        trace, _ = ppl.simulate(q.detach() if detached else q)
        return ppl.marginal(family(theta), "x", nodes=30).log_density(trace)

    _, grads = estimates(lambda key: cross_entropy.value_and_grad(key, THETA, True))
    assert z_score(grads, np.zeros(2)) < BOUND
    assert grads.std(0).min() > 0.1
    _, grads = estimates(lambda key: cross_entropy.value_and_grad(key, THETA, False))
    variance = np.exp(2 * THETA[1])
    assert z_score(grads, np.array([0.0, -variance / (0.36 + variance)])) < BOUND


# Refusals.


@ppl.program
def narrow():
    ppl.sample("u", dist.Uniform(-1.0, 1.0))


@ppl.program
def in_a_plate():
    u = ppl.sample("u", dist.Normal(0.0, 1.0))
    ppl.plate("data", lambda _: ppl.sample("x", dist.Normal(u, 1.0)), size=10)(jnp.arange(2))


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: ppl.marginal(shifted(), "y", proposal=reverse()), errors.UnknownAddressError, "Did you mean|has: u, x"),
        (lambda: ppl.marginal(shifted(), (), proposal=reverse()), errors.MarginalError, "at least one address"),
        (lambda: ppl.marginal(shifted(), "x", proposal=wide()), errors.ModelFamilyMismatchError, "the family does not draw it"),
        (lambda: ppl.marginal(shifted(), "x", proposal=narrow()), errors.MarginalError, r"from Interval\(-1, 1\) alone"),
        (lambda: ppl.marginal(shifted(), "x", proposal=reverse().scale(2.0)), errors.MarginalError, "only draws"),
        (lambda: ppl.marginal(shifted(), "x", particles=3), errors.MarginalError, "give proposal="),
        (lambda: ppl.marginal(shifted(), "x", proposal=reverse(), particles=0), errors.MarginalError, "at least 1"),
        (lambda: ppl.marginal(shifted(), "x", proposal=reverse(), nodes=5), errors.MarginalError, "either"),
        (lambda: ppl.marginal(in_a_plate(), "x", proposal=reverse()), errors.MarginalError, "inside of the plate"),
        (lambda: ppl.marginal(shifted, "x", proposal=reverse()), TypeError, "bound program"),
    ],
)
def test_mistakes_are_refused(make, error, says):
    with pytest.raises(error, match=says) as caught:
        make().simulate(KEY)
    assert "test_marginal_programs.py" in str(caught.value)


def test_an_estimated_density_without_a_key_is_refused_with_the_way_to_give_one():
    with pytest.raises(errors.OutsideProgramError, match=r"ppl\.seed\(bound\.log_density\)"):
        KEPT.log_density({"u": 0.1, "x": 0.5})


# Kinds of density.


def test_the_kind_of_a_density_travels_to_where_it_is_used():
    def uses(objective):
        return [(use.operation, use.note.reason) for use in uses_of(stage(objective).jaxpr.jaxpr, UNBIASED_DENSITY)]

    def in_a_scan():
        total, _ = jax.lax.scan(lambda s, _: (s + bound.function(THETA), None), 0.0, None, length=2)
        return total

    ((operation, reason),) = uses(lambda: bound.function(THETA))
    assert operation is None
    assert "importance sampling with 2 particles, whose log is too high on average" in reason
    assert "test_marginal_programs.py" in reason
    assert [operation for operation, _ in uses(in_a_scan)] == [None]
    ((_, reason),) = uses(lambda: ppl.marginal(family(THETA), "x", proposal=back).log_density({"x": 0.5}))
    assert "whose log is too low on average" in reason
    assert {operation for operation, _ in uses(lambda: tighter.function(THETA))} == {"reduce_max", "exp"}
    report = bound.check(THETA)
    assert report.ok
    assert [(finding.condition, finding.severity) for finding in report] == [("density", "bound")]
    assert uses(lambda: ALIKE.log_density({"u": 0.1, "x": 0.5})) == []


@pytest.mark.parametrize("use", [jnp.exp, jnp.square, lambda log_q: jax.nn.logsumexp(jnp.stack([log_q, 0.0 * log_q]))])
def test_an_unbiased_log_density_is_refused_where_its_exponential_is_taken(use):
    @ppl.expectation
    def objective(theta, nonlinear):
        x = ppl.sample("x", dist.Normal(theta, 1.0))
        log_q = note(x - 1.0, UNBIASED_LOG_DENSITY, "a stochastic trace")
        return use(log_q) if nonlinear else 2.0 * log_q - x

    assert float(objective.grad(KEY, 0.3, False)) == pytest.approx(1.0)
    with pytest.raises(errors.DensityKindError, match="a stochastic trace is an unbiased estimate of a log density") as caught:
        objective.grad(KEY, 0.3, True)
    assert "test_marginal_programs.py" in str(caught.value)
