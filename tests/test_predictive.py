"""Predictions of a fit, against exact moments."""

import contextlib

import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist

KEY = jax.random.key(3)
N = 20_000


@ppl.program
def coin(logit):
    return ppl.sample("heads", dist.Bernoulli(logits=logit))


@ppl.program
def model(x, treated=1.0):
    """A confounded treatment, a plate with a covariate, a nested program, a loop, and something computed."""
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    treatment = ppl.sample("treatment", dist.Normal(slope, 1.0), obs=treated)
    ppl.deterministic("double", 2.0 * slope)
    ppl.sample("coin", coin(slope))

    def datum(x):
        ppl.sample("y", dist.Normal(slope * x + treatment, 0.5))

    ppl.plate("data", datum)(x)

    def step(state, _):
        state = ppl.sample("state", dist.Normal(0.5 * state, 1.0))
        ppl.sample("seen", dist.Poisson(2.0))
        return state, None

    jax.lax.scan(step, slope, None, length=2)


X = jnp.array([1.0, 2.0, 3.0])
SEEN = jnp.array([1, 4])
MEAN, SD = 1.5, 0.3


@ppl.program
def family(params):
    ppl.sample("slope", dist.Normal(params, SD))
    ppl.sample("coin/heads", dist.Bernoulli(probs=0.2))
    ppl.plate("steps", lambda m: ppl.sample("state", dist.Normal(m, 1.0)))(jnp.array([5.0, 6.0]))


FIT = ppl.Fit(jnp.array(MEAN), np.zeros(0), None, model=model(X).condition(y=jnp.zeros(3), seen=SEEN), family=family)


@contextlib.contextmanager
def compilations():
    """The names of the events of compiling while this is open."""
    seen, on = [], [True]

    def listen(name, *_, **__):
        if on[0] and "backend_compile" in name:
            seen.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        on[0] = False


def agree(draws, mean, sd):
    """Means and standard deviations of normal-like draws within 4.5 standard errors."""
    draws, mean, sd = np.asarray(draws, float), np.asarray(mean), np.asarray(sd)
    assert np.all(np.abs(draws.mean(0) - mean) < 4.5 * sd / N**0.5 + 1e-6), (draws.mean(0), mean)
    assert np.all(np.abs(draws.std(0) - sd) < 4.5 * sd / N**0.5 + 1e-6), (draws.std(0), sd)


def test_posterior_predictive():
    """Latents are the family's, in plates, loops and nested programs; observed sites are drawn anew, given all else."""
    draws = FIT.predictive(KEY, N)
    assert jax.tree.map(lambda x: x.shape[1:], draws) == {
        "slope": (), "treatment": (), "double": (), "coin": {"heads": ()}, "y": (3,), "state": (2,), "seen": (2,)
    }  # fmt: skip
    agree(draws["slope"], MEAN, SD)
    agree(draws["double"], 2 * MEAN, 2 * SD)
    agree(draws["state"], [5.0, 6.0], [1.0, 1.0])
    agree(draws["treatment"], MEAN, (1 + SD**2) ** 0.5)
    agree(draws["coin"]["heads"], 0.2, 0.4)
    x = np.asarray(X)
    agree(draws["y"], MEAN * (x + 1), np.sqrt(0.25 + 1 + SD**2 * (x + 1) ** 2))
    assert abs(draws["seen"].mean() - 2.0) < 4.5 * (2.0 / (2 * N)) ** 0.5
    assert draws["seen"].dtype == SEEN.dtype
    # The draws belong together: what is left of y is independent noise.
    rest = draws["y"] - draws["slope"][:, None] * X - draws["treatment"][:, None]
    agree(rest, np.zeros(3), np.full(3, 0.5))
    # Again: the same draws, and nothing is compiled.
    with compilations() as count:
        again = FIT.predictive(KEY, N)
    assert not count
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), draws, again))


def test_intervention_is_not_conditioning():
    """do(treatment = 2), an observed site, cuts its arrow from the slope; do(slope = 0) reaches everything after it."""
    both = FIT.predictive(KEY, N, intervene={"treatment": 2.0})
    agree(both["slope"], MEAN, SD)
    x = np.asarray(X)
    agree(both["y"], MEAN * x + 2.0, np.sqrt(0.25 + SD**2 * x**2))
    cut = FIT.predictive(KEY, N, intervene={"slope": 0.0, "coin/heads": 1})
    agree(cut["treatment"], 0.0, 1.0)
    agree(cut["y"], np.zeros(3), np.full(3, 1.25**0.5))
    assert bool((cut["coin"]["heads"] == 1).all())
    prior = FIT.predictive(KEY, N, prior=True, intervene={"treatment": 2.0})
    agree(prior["y"], np.full(3, 2.0), np.sqrt(0.25 + x**2))


def test_prior_predictive():
    draws = FIT.predictive(KEY, N, prior=True)
    x = np.asarray(X)
    agree(draws["slope"], 0.0, 1.0)
    agree(draws["y"], np.zeros(3), np.sqrt(0.25 + 1 + (x + 1) ** 2))
    agree(draws["state"], np.zeros(2), np.sqrt([1.25, 1 + 0.25 * 1.25]))


def test_other_covariates_and_new_groups():
    """Another bound program, with other covariates; the loop's states are those of a new series."""
    draws = FIT.predictive(KEY, N, model=model(jnp.array([10.0])), redraw=["state"])
    agree(draws["y"], [MEAN * 11], [np.sqrt(0.25 + 1 + (11 * SD) ** 2)])
    agree(draws["state"], 0.5 ** np.arange(1, 3) * MEAN, np.sqrt([1 + 0.25 * SD**2, 1.25 + SD**2 / 16]))


def test_marginalized_observations_are_drawn():
    """A mixture whose component is summed out is observed: its replicates are draws of the mixture."""

    @ppl.program
    def mixture(mean):
        right = ppl.sample("right", dist.Bernoulli(probs=0.3))
        ppl.sample("x", dist.Normal(mean + 4.0 * right, 1.0))

    @ppl.program
    def whole():
        mean = ppl.sample("mean", dist.Normal(0.0, 1.0))
        ppl.sample("data", ppl.marginal(mixture(mean), keep="x"), obs={"x": 1.0})

    fit = ppl.Fit(jnp.array(2.0), np.zeros(0), None, model=whole(), family=lambda m: point_mean(m))
    point_mean = ppl.program(lambda m: ppl.sample("mean", dist.Normal(m, 0.5)))
    agree(fit.predictive(KEY, N)["data"]["x"], 2.0 + 1.2, np.sqrt(0.25 + 1 + 16 * 0.21))


def test_branches_and_missing_data():
    @ppl.program
    def branching():
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        jax.lax.cond(z > 0, lambda: ppl.sample("up", dist.Gamma(2.0, 1.0)), lambda: ppl.sample("down", dist.Normal(-1.0, 1.0)))
        ppl.sample("w", dist.Normal(jnp.full(2, z), 1.0).mask(jnp.array([True, False])), obs=jnp.array([0.0, jnp.nan]))

    branch_family = ppl.program(
        lambda: [
            ppl.sample("z", dist.Normal(1.0, 1.0)),
            ppl.sample("up", dist.Gamma(3.0, 1.0)),
            ppl.sample("down", dist.Normal(-1.0, 1.0)),
        ]
    )
    fit = ppl.Fit(jnp.zeros(()), np.zeros(0), None, model=branching(), family=lambda _: branch_family())
    draws = fit.predictive(KEY, N)
    taken = np.asarray(draws["z"]) > 0
    assert abs(np.asarray(draws["up"])[taken].mean() - 3.0) < 4.5 * (3 / taken.sum()) ** 0.5
    agree(draws["w"], [1.0, 1.0], [2**0.5] * 2)  # the missing element is predicted


def test_refusals():
    with pytest.raises(ppl.errors.UnknownAddressError, match="the family draws 'slope', which this model lacks"):
        FIT.predictive(KEY, 3, model=ppl.program(lambda: ppl.sample("slop", dist.Normal(0.0, 1.0)))())
    with pytest.raises(ppl.errors.UnknownAddressError, match="intervene names 'double', which the model does not draw"):
        FIT.predictive(KEY, 3, intervene={"double": 1.0})
    with pytest.raises(ppl.errors.ValueShapeError, match=r"value of 'y' has shape \[\]"):
        FIT.predictive(KEY, 3, intervene={"y": 1.0})
    with pytest.raises(ppl.errors.FitError, match="this model observes 'slope'"):
        FIT.predictive(KEY, 3, model=model(X).condition(slope=1.0))
    with pytest.raises(ppl.errors.UnknownAddressError, match="redraw names 'states'"):
        FIT.predictive(KEY, 3, redraw=["states"])
    longer = ppl.program(lambda: [ppl.sample("slope", dist.Normal(jnp.zeros(2), 1.0))])
    with pytest.raises(ppl.errors.ValueShapeError, match=r"the family draws 'slope' of shape \[\], and this model has \[2\]"):
        ppl.Fit(0.0, np.zeros(0), None, model=longer(), family=lambda m: slope(m)).predictive(KEY, 3)
    with pytest.raises(ppl.errors.FitError, match="n=0"):
        FIT.sample(KEY, 0)


slope = ppl.program(lambda m: ppl.sample("slope", dist.Normal(m, 1.0)))
