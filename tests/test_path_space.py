"""Pairs of processes: the weights of every sampler at every number of steps, and what their losses have in common."""

import itertools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions.transforms import AffineTransform

import ppl
import ppl.distributions as dist
from ppl import objectives as obj
from ppl import transport
from tests.objective_models import BOUND, KEY, z_scores

DRAWS = 10_000
LOG_Z = 1.3
MIXTURE = dist.MixtureSameFamily(
    dist.Categorical(probs=jnp.array([0.4, 0.6])),
    dist.Normal(jnp.array([[-0.5, 0.4], [0.7, -0.3]]), 0.8).to_event(1),
)
START = transport.gaussian(jnp.array([0.1, -0.1]), 0.9)
WEIGHTS = {"w": 0.3 * jax.random.normal(jax.random.key(3), (2, 3)), "b": jnp.array([0.2, -0.1])}


def target(x):
    return LOG_Z + MIXTURE.log_prob(x)


def field(weights, x, t):
    """Any smooth field: the weights have to be right wherever it points."""
    return jnp.tanh(weights["w"] @ jnp.append(x, t) + weights["b"])


def samplers(density, steps, weights=WEIGHTS):
    def learned(x, t):
        return field(weights, x, t)

    def layer(k):
        return AffineTransform(0.1 * weights["b"], 0.9 + 0.1 / (k + 1))

    schedule = jnp.linspace(0.0, 1.0, steps + 1) ** 1.5
    return {
        "pis": transport.pis(density, learned, 2, steps),
        "dds": transport.dds(density, learned, 2, steps),
        "dis": transport.dis(density, lambda x, t: learned(x, t) - x, 2, steps, rates=jnp.full(steps, 0.4)),
        "cmcd": transport.cmcd(density, learned, START, steps, 0.1),
        "annealed": transport.annealed(density, START, steps, 0.1, schedule, learned),
        "stochastic flow": transport.stochastic_flow(density, layer, START, steps, 0.1),
    }


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_weights_are_unbiased_for_the_evidence(steps):
    """E[w] = Z and ELBO <= log Z under forward, E[1/w] = 1/Z and the upper bound under backward, at every number of steps."""

    @jax.jit
    def log_weights(key):
        found = {}
        for name, (forward, backward) in samplers(target, steps).items():
            found[name] = [transport.importance(backward, forward, key, DRAWS).log_weights - LOG_Z]
            if steps == 2:  # a backward process of a distribution can draw
                drawable = samplers(MIXTURE, steps)[name].backward
                found[name].append(transport.importance(forward, drawable, key, DRAWS).log_weights)
        return found

    for name, directions in log_weights(KEY).items():
        for direction in directions:
            assert abs(z_scores(np.exp(direction), 1.0)) < BOUND, name
            assert np.std(direction) > 0.02, name  # or it would not be a test
            assert np.mean(direction) < -4 * np.std(direction) / DRAWS**0.5, name  # ELBO <= log Z <= upper bound


def test_importance_says_how_sure_it_is():
    """Over many runs, errors of the log evidence have the stated size, and the effective sample size that of exact weights."""
    forward, backward = (
        process(transport.gaussian(jnp.full(1, mean), 1.0), lambda x, k: transport.gaussian(x, 1.0), 0)
        for process, mean in ((transport.forward_process, 0.0), (transport.backward_process, 0.7))
    )

    @jax.jit
    @jax.vmap
    def run(key):
        weights = transport.importance(backward, forward, key, 1000)
        return weights.log_evidence / weights.standard_error, weights.ess, weights.elbo, weights.elbo_standard_error

    z, ess, elbo, elbo_error = run(jax.random.split(KEY, 400))
    assert abs(np.mean(z)) < 4 / 20
    assert abs(np.std(z) - 1) < 4 / (2 * 400) ** 0.5
    assert np.mean(ess) == pytest.approx(np.exp(-0.49), abs=0.02)
    assert np.std((elbo + 0.245) / elbo_error) == pytest.approx(1.0, abs=4 / (2 * 400) ** 0.5)

    weights = transport.importance(backward, forward, KEY, 5000, batch=512)
    resampled = weights.resample(KEY, 5000)["end"]
    assert abs(z_scores(resampled - 0.7, 0.0)).max() < 2 * BOUND  # the draws repeat: their error is larger


def pair(weights, steps=3):
    return transport.dds(target, lambda x, t: field(weights, x, t), 2, steps)


def flat(tree):
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_losses_agree_draw_by_draw():
    """Of the same draws: log-variance is leave-one-out score-function ELBO, trajectory balance has a baseline of log Z, and
    sub-trajectory balance of the whole and of single steps is trajectory and detailed balance."""
    particles, log_z = 4, 0.9

    @ppl.expectation
    def leave_one_out(weights):
        def one(_):
            forward, backward = pair(weights)
            trace, log_q = ppl.simulate(forward.detach())
            return log_q, jax.lax.stop_gradient(backward.log_density(trace) - log_q)

        log_q, log_w = jax.vmap(one)(jnp.arange(particles))
        return jnp.mean(log_q * (log_w - (jnp.sum(log_w) - log_w) / (particles - 1)))

    def log_q(weights, trace):
        return pair(weights).forward.log_density(trace)

    def flow(x, k):
        return -0.3 * jnp.sum(x**2) + 0.1 * k

    @ppl.expectation
    def log_variance(weights):
        return obj.log_variance(*reversed(pair(weights)), particles)

    @ppl.expectation
    def balance(weights, trace):
        forward, backward = pair(weights)
        return obj.trajectory_balance(backward, forward, log_z, behaviour=forward.substitute(trace))

    @ppl.expectation
    def by_parts(weights, trace, decay):
        forward, backward = pair(weights)
        return obj.sub_trajectory_balance(backward, forward, log_z, flow, decay, forward.substitute(trace))

    @ppl.expectation
    def detailed(weights, trace):
        forward, backward = pair(weights)
        return obj.detailed_balance(backward, forward, log_z, flow, forward.substitute(trace))

    @jax.jit
    def compare(key):
        forward, backward = pair(WEIGHTS)
        trace, _ = forward.simulate(key)
        log_w, score = backward.log_density(trace) - log_q(WEIGHTS, trace), flat(jax.grad(log_q)(WEIGHTS, trace))
        return {
            "log-variance": (-0.5 * flat(log_variance.grad(key, WEIGHTS)), flat(leave_one_out.grad(key, WEIGHTS))),
            "trajectory balance": (flat(balance.grad(key, WEIGHTS, trace)), (log_z - log_w) * score),
            "whole": (flat(by_parts.grad(key, WEIGHTS, trace, jnp.inf)), flat(balance.grad(key, WEIGHTS, trace))),
            "value": (by_parts.estimate(key, WEIGHTS, trace, jnp.inf), 0.5 * (log_z - log_w) ** 2),
            "single": (flat(by_parts.grad(key, WEIGHTS, trace, 0.0)), flat(detailed.grad(key, WEIGHTS, trace))),
        }

    for key in jax.random.split(KEY, 3):
        for name, (one, other) in compare(key).items():
            np.testing.assert_allclose(one, other, rtol=1e-3, atol=2e-5, err_msg=name)
            assert np.abs(other).max() > 1e-2, name


def test_trajectory_balance_on_policy_has_the_gradient_of_the_divergence():
    """In expectation, the score-function gradient of trajectory balance is the pathwise gradient of minus the ELBO, for every
    log Z; with exploration it is another."""

    @ppl.expectation
    def divergence(weights):
        return -obj.elbo(*reversed(pair(weights)))

    @ppl.expectation
    def balance(weights):
        return obj.trajectory_balance(*reversed(pair(weights)), 0.5)

    @ppl.expectation
    def exploring(weights):
        forward, backward = pair(weights)
        return obj.trajectory_balance(backward, forward, 0.5, behaviour=transport.noisier(forward, 0.8))

    @jax.jit
    @jax.vmap
    def gradients(key):
        return [flat(objective.grad(key, WEIGHTS)) for objective in (divergence, balance, exploring)]

    pathwise, on_policy, off_policy = gradients(jax.random.split(KEY, DRAWS))
    assert np.abs(z_scores(on_policy - pathwise, 0.0)).max() < BOUND
    assert np.abs(z_scores(pathwise, 0.0)).max() > 3 * BOUND
    assert np.abs(z_scores(off_policy - pathwise, 0.0)).max() > 2 * BOUND


def linear_gaussian(steps, log_z=0.0):
    """A chain `x' = a x + c + s noise` whose reversal and marginals are known: everything is in balance."""
    a, c, s = 0.8, 0.3, 0.6
    mean, variance = [0.0], [1.0]
    for _ in range(steps):
        mean.append(a * mean[-1] + c)
        variance.append(a**2 * variance[-1] + s**2)
    mean, variance = jnp.array(mean), jnp.array(variance)

    def marginal(k):
        return transport.gaussian(jnp.full(2, mean[k]), jnp.sqrt(variance[k]))

    def reverse(y, k):
        gain = a * variance[k] / variance[k + 1]
        return transport.gaussian(mean[k] + gain * (y - mean[k + 1]), jnp.sqrt(variance[k] * (1 - a * gain)))

    forward = transport.forward_process(marginal(0), lambda x, k: transport.gaussian(a * x + c, s), steps)
    backward = transport.backward_process(lambda x: log_z + marginal(steps).log_prob(x), reverse, steps, like=jnp.zeros(2))
    return forward, backward, lambda x, k: log_z + marginal(k).log_prob(x)


def test_all_balances_vanish_at_the_exact_reversal_and_nowhere_else():
    log_z = -0.8
    forward, backward, flow = linear_gaussian(5, log_z)
    losses = {
        "trajectory": lambda z, flow, behaviour: obj.trajectory_balance(backward, forward, z, behaviour),
        "sub": lambda z, flow, behaviour: obj.sub_trajectory_balance(backward, forward, z, flow, 0.9, behaviour),
        "detailed": lambda z, flow, behaviour: obj.detailed_balance(backward, forward, z, flow, behaviour),
    }

    @jax.jit
    def evaluate(key):
        cases = {"right": (log_z, flow), "evidence": (log_z + 1.0, flow), "flow": (log_z, lambda x, k: flow(x, k) + (k == 2))}
        behaviours = {"on": None, "off": transport.noisier(forward, 1.0)}

        def value(loss, case, policy):
            return ppl.expectation(lambda: losses[loss](*cases[case], behaviours[policy])).estimate(key)

        return {names: value(*names) for names in itertools.product(losses, cases, behaviours)}

    values = evaluate(KEY)
    for (loss, case, policy), value in values.items():
        expected = {  # an error of one nat in log Z is in the first step; in one flow, in two of the five
            ("trajectory", "evidence"): 0.5,
            ("detailed", "evidence"): 0.1,
            ("detailed", "flow"): 0.2,
            ("sub", "evidence"): 0.5 * sum(0.9**j for j in range(1, 6)) / (n := sum((6 - j) * 0.9**j for j in range(1, 6))),
            ("sub", "flow"): 0.5 * sum(0.9 ** abs(j - 2) for j in (0, 1, 3, 4, 5)) / n,
        }.get((loss, case), 0.0)
        assert value == pytest.approx(expected, abs=1e-4), (loss, case, policy)


def test_neither_the_trace_nor_the_program_grows_with_the_steps():
    def equations(steps):
        objective = ppl.expectation(lambda weights: obj.elbo(*reversed(pair(weights, steps))))
        return str(jax.make_jaxpr(lambda key: objective.grad(key, WEIGHTS))(KEY)).count("\n")

    assert equations(300) == equations(20)


def test_a_pair_of_ones_own_needs_no_helpers():
    """Two programs in plain statements, with a hidden state of two parts and kernels that share no code with the library."""

    @ppl.program
    def forward(shift):
        a = ppl.sample("a", dist.Normal(0.0, 1.0))
        b = ppl.sample("b", dist.Normal(0.5 * a + shift, 1.2))
        ppl.sample("c", dist.Gamma(2.0, jnp.exp(0.1 * b)))

    @ppl.program
    def backward():
        c = ppl.sample("c", dist.Gamma(2.5, 1.2))
        b = ppl.sample("b", dist.Normal(0.1 * c, 1.0))
        ppl.sample("a", dist.Normal(0.4 * b, 0.9))
        ppl.factor("Z", LOG_Z)

    weights = transport.importance(backward(), forward(0.1), KEY, DRAWS)
    assert abs(z_scores(np.exp(weights.log_weights - LOG_Z), 1.0)) < BOUND
    assert weights.elbo < LOG_Z - 0.01


def test_mistakes_are_named():
    normal = transport.gaussian(jnp.zeros(2), 1.0)
    with pytest.raises(ppl.errors.ValueShapeError, match=r"of one kind.*\n  start   Normal.*\n  kernel  Laplace"):
        transport.forward_process(normal, lambda x, k: dist.Laplace(x, jnp.ones(2)).to_event(1), 3).simulate(KEY)
    with pytest.raises(ppl.errors.ValueShapeError, match="the kernel of a process returns a distribution, got"):
        transport.forward_process(normal, lambda x, k: x, 3).simulate(KEY)
    with pytest.raises(ppl.errors.ValueShapeError, match="needs like="):
        transport.backward_process(lambda x: 0.0, lambda x, k: normal, 3)
    with pytest.raises(ppl.errors.ValueShapeError, match="array of 4, one for each step, got shape \\(3,\\)"):
        transport.dds(target, lambda x, t: x, 2, 4, rates=jnp.ones(3) / 2)
    with pytest.raises(ppl.errors.ValueShapeError, match="schedule of 4 steps is an array of 5 numbers"):
        transport.annealed(target, normal, 4, 0.1, schedule=jnp.ones(4))
    with pytest.raises(ppl.errors.ObjectiveError, match="noisier takes what forward_process returned"):
        transport.noisier(pair(WEIGHTS).backward, 0.1)
    own = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))()
    with pytest.raises(ppl.errors.ObjectiveError, match="the forward program has 'z'"):
        ppl.seed(lambda: obj.detailed_balance(own, own, 0.0, lambda x, k: 0.0))(KEY)
    with pytest.raises(ppl.errors.ModelFamilyMismatchError, match="x "):  # another number of steps
        transport.importance(pair(WEIGHTS, 4).backward, pair(WEIGHTS, 3).forward, KEY, 10)


def test_the_documentation_page_prints_what_it_says(capsys):
    page = (pathlib.Path(__file__).parents[1] / "docs" / "path_space.md").read_text()
    blocks = re.findall(r"```(python|text)\n(.*?)```", page, flags=re.DOTALL)
    namespace = {}
    for language, block in blocks:
        if language == "python":
            exec(compile(block, "docs/path_space.md", "exec"), namespace)
        else:
            assert capsys.readouterr().out == block
