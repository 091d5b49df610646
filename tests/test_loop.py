"""The training loop: alternating objectives, constraints, no recompilation, when to stop, averages, callbacks, dtypes."""

import io
import itertools
import os
import re
import signal
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpyro.distributions import constraints

import ppl
import ppl.distributions as dist
from ppl import errors
from ppl.inference import progress
from ppl.inference.plateau import improvement, on_plateau

KEY = jax.random.key(0)
QUIET = {"progress": False}


@ppl.expectation
def bowl(x, centre=3.0):
    return (x - centre - ppl.sample("e", dist.Normal(0.0, 0.1))) ** 2


@ppl.program
def model(theta):
    ppl.sample("x", dist.Normal(ppl.sample("z", dist.Normal(theta, 1.0)), 1.0), obs=2.0)


@ppl.program
def family(phi):
    ppl.sample("z", dist.Normal(phi["mean"], jnp.exp(phi["log_scale"])))


def programs(params):
    return model(params["theta"]), family(params["phi"])


wake_theta = ppl.expectation(lambda params: ppl.objectives.wake_theta(*programs(params), particles=10))
wake_phi = ppl.expectation(lambda params: ppl.objectives.wake_phi(*programs(params), particles=10))
elbo = ppl.expectation(lambda params: ppl.objectives.elbo(*programs(params)))
START = {"theta": 0.0, "phi": {"mean": 0.0, "log_scale": 0.0}}


def backend_compilations(seen=[]):  # noqa: B006
    """A list that grows by one for every program that is compiled."""
    if not seen:
        seen.append("registered")
        jax.monitoring.register_event_duration_secs_listener(
            lambda event, *_, **__: seen.append(event) if "backend_compile" in event else None
        )
    return seen


def test_wake_sleep_alternates_to_the_exact_model_and_posterior():
    """z ~ N(theta, 1), x ~ N(z, 1), x = 2: the evidence is highest at theta = 2, where the posterior is N(2, 1/2)."""
    options = {"optimizer": {"theta": optax.sgd(0.05), "phi": optax.adam(0.02)}, "steps": 2000, "average": True, **QUIET}
    fit = ppl.maximize({"theta": wake_theta, "phi": wake_phi}, START, KEY, **options)
    assert list(fit.history) == ["theta", "phi"]
    alone = ppl.Fit(fit.params, fit.history, None, model=lambda p: model(p["theta"]), family=lambda p: family(p["phi"]))
    report = alone.check(KEY, draws=1000)
    assert report.ok
    assert np.isnan(report.signal_to_noise)  # which of the objectives' it would be, nobody said
    assert abs(report.log_evidence.value - -0.5 * np.log(4 * np.pi)) < 0.02  # x ~ N(2, 2) at its mean
    np.testing.assert_allclose(fit.params["theta"], 2.0, atol=0.03)
    np.testing.assert_allclose(fit.params["phi"]["mean"], 2.0, atol=0.03)
    np.testing.assert_allclose(jnp.exp(fit.params["phi"]["log_scale"]), np.sqrt(0.5), atol=0.03)


def test_each_objective_trains_its_group_after_those_before_it():
    """One step of gradient descent, by hand: x first, then y twice at the new x."""
    game = ppl.expectation(lambda p: p["x"] * p["y"] ** 2 + p["x"] ** 2)
    start = {"x": jnp.float32(1.0), "y": jnp.float32(2.0)}
    options = {"optimizer": optax.sgd(0.1), "steps": 1, "inner_steps": {"x": 1, "y": 2}, **QUIET}
    fit = ppl.minimize({"x": game, "y": -game}, start, KEY, **options)
    x = 1.0 - 0.1 * (4.0 + 2.0)
    y = 2.0 * (1.0 + 0.2 * x) ** 2
    np.testing.assert_allclose([fit.params["x"], fit.params["y"]], [x, y], rtol=1e-6)
    other = ppl.minimize({"y": -game, "x": game}, start, KEY, **options)
    np.testing.assert_allclose(other.params["y"], 2.0 * 1.2**2, rtol=1e-6)


def test_several_objectives_draw_independently():
    noise = ppl.expectation(lambda p: ppl.sample("e", dist.Normal(0.0, 1.0)) + 0.0 * (p["a"] + p["b"]))
    options = {"optimizer": optax.sgd(0.0), "steps": 4000, **QUIET}
    fit = ppl.minimize({"a": noise, "b": noise}, {"a": 0.0, "b": 0.0}, KEY, **options)
    correlation = np.corrcoef([fit.history["a"], fit.history["b"], np.roll(fit.history["a"], -1)])[np.triu_indices(3, 1)]
    assert np.all(np.abs(correlation) * np.sqrt(4000) < 4.0)  # one false alarm in 5,000


def test_objectives_and_parameters_that_do_not_fit_are_refused():
    options = {"optimizer": optax.sgd(0.1), "steps": 1, **QUIET}
    with pytest.raises(errors.ObjectiveError, match="no objective trains"):
        ppl.maximize({"theta": elbo}, START, KEY, **options)
    with pytest.raises(errors.ObjectiveError, match="optimizer is given for"):
        ppl.maximize({"theta": elbo, "phi": elbo}, START, KEY, **{**options, "optimizer": {"theta": optax.sgd(0.1)}})
    with pytest.raises(errors.ObjectiveError, match=r"params\['phi'\] has no floating"):
        ppl.maximize({"theta": elbo, "phi": elbo}, {**START, "phi": 1}, KEY, **options)
    with pytest.raises(errors.ObjectiveError, match="Decorate it"):
        ppl.maximize(lambda x: x, 1.0, KEY, **options)
    for wrong in ({"steps": 0}, {"steps_per_call": 0}, {"window": 1}, {"inner_steps": 0}, {"on_nonfinite": "ignore"}):
        with pytest.raises(errors.ObjectiveError, match=str(next(iter(wrong.values())))):
            ppl.minimize(bowl, 0.0, KEY, **{**options, **wrong})


def test_constraints_hold_at_every_step_and_reach_the_optimum():
    """The family N(mean, scale) and a mixing weight on the simplex, all seen as what they are."""

    @ppl.expectation
    def objective(params):
        divergence = 0.5 * jnp.sum((params["mean"] - 1.0) ** 2) + 0.5 * params["scale"] ** 2 - jnp.log(params["scale"])
        return divergence - jnp.sum(jnp.array([0.2, 0.3, 0.5]) * jnp.log(params["weights"]))

    start = {"mean": jnp.zeros(2), "scale": 5.0, "weights": jnp.array([0.8, 0.1, 0.1])}
    seen = []
    options = {"optimizer": optax.adam(0.05), "steps": 600, "steps_per_call": 20, **QUIET}
    options["constraints"] = {"scale": constraints.positive, "weights": constraints.simplex}
    fit = ppl.minimize(objective, start, KEY, callback=lambda fit: seen.append(fit.params), **options)
    np.testing.assert_allclose(fit.params["mean"], 1.0, atol=1e-3)
    np.testing.assert_allclose(fit.params["scale"], 1.0, atol=1e-3)
    np.testing.assert_allclose(fit.params["weights"], [0.2, 0.3, 0.5], atol=1e-3)
    assert len(seen) == 30
    assert all(float(p["scale"]) > 0 and abs(float(p["weights"].sum()) - 1.0) < 1e-5 for p in seen)
    assert fit.state.params["weights"].shape == (2,)
    for wrong, message in (
        ({"scale": constraints.unit_interval}, r"params\['scale'\] starts at 5"),
        ({"scales": constraints.positive}, r"params\['scales'\]"),
        ({"scale": constraints.simplex}, "0 dimensions"),
        ([constraints.positive], "structure"),
        (constraints.positive, r"params\['mean'\] starts at"),
    ):
        with pytest.raises(errors.ConstraintError, match=message):
            ppl.minimize(objective, start, KEY, **{**options, "constraints": wrong})


def test_no_recompilation_numpyro_814_pymc_1778():
    """Another key, start, data, number of steps and an equal, newly made optimizer: nothing is compiled again."""
    seen = backend_compilations()
    groups = {"theta": wake_theta, "phi": wake_phi}

    def both(key, start, centre, steps, rate=0.1):
        fit = ppl.minimize(bowl, start, key, centre, optimizer=optax.adam(rate), steps=steps, average=True, **QUIET)
        ppl.maximize(groups, START, key, optimizer=optax.adam(0.1), steps=steps, **QUIET)
        return fit

    before = len(seen)
    both(KEY, jnp.float32(0.0), jnp.float32(3.0), 30)
    compiled = len(seen)
    assert compiled > before
    second = both(jax.random.key(1), jnp.float32(5.0), jnp.float32(1.0), 300)
    assert len(seen) == compiled
    assert abs(second.params - 1.0) < 0.2
    both(KEY, jnp.float32(0.0), jnp.float32(3.0), 30, rate=0.2)  # another program
    assert len(seen) > compiled


def test_any_optimizer_may_ask_for_the_value():
    """A line search, by L-BFGS; a rate that falls on a plateau."""
    rosenbrock = ppl.expectation(lambda p: (1.0 - p[0]) ** 2 + 100.0 * (p[1] - p[0] ** 2) ** 2)
    fit = ppl.minimize(rosenbrock, jnp.array([-1.0, 1.0]), KEY, optimizer=optax.lbfgs(), steps=60, **QUIET)
    np.testing.assert_allclose(fit.params, 1.0, atol=1e-3)
    falling = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=5))
    fit = ppl.minimize(bowl, 0.0, KEY, optimizer=falling, steps=200, **QUIET)
    assert fit.optimizer_state[1].scale < 1.0


def test_when_to_stop_pymc_1778():
    """The run ends on the plateau and not on the slope, at the same step however it is cut into calls."""
    options = {"optimizer": optax.adam(0.02), "steps": 20_000, "early_stop": True, "window": 100, **QUIET}
    fit = ppl.minimize(bowl, jnp.float32(0.0), KEY, **options)
    assert fit.stopped == "plateau"
    assert 300 <= len(fit.history) < 2000
    assert abs(fit.params - 3.0) < 0.1
    again = ppl.minimize(bowl, jnp.float32(0.0), KEY, **options, steps_per_call=7)
    np.testing.assert_array_equal(again.history, fit.history)
    slope = ppl.minimize(bowl, jnp.float32(0.0), KEY, **{**options, "optimizer": optax.sgd(1e-4), "steps": 1500})
    assert slope.stopped == "steps"


def test_the_plateau_test_has_its_stated_rates():
    """Under no change its statistic is standard normal, for heavy tails too; ties are even; the sign says what is better."""
    rng = np.random.default_rng(0)
    draws = np.array([improvement(*rng.standard_cauchy((2, 50)), 1.0) for _ in range(4000)])
    assert abs(draws.mean()) < 4 / np.sqrt(4000)
    assert abs(draws.var() - 1.0) < 4 * np.sqrt(2 / 4000)
    share = np.mean(draws >= 2.0)
    assert abs(share - 0.0228) < 4 * np.sqrt(0.0228 / 4000)
    assert improvement(np.ones(20), np.ones(20), 1.0) == 0.0
    falling = np.linspace(1.0, 0.0, 300)
    assert improvement(falling[:100], falling[100:200], 1.0) == -improvement(falling[:100], falling[100:200], -1.0) > 10.0
    assert [on_plateau(falling, 100, sign) for sign in (1.0, -1.0)] == [False, True]
    assert not on_plateau(falling[:299], 100, -1.0)


def test_the_average_has_less_noise_than_the_last_iterate_and_is_the_stated_one():
    options = {"optimizer": optax.sgd(0.4), "steps": 60, "steps_per_call": 1, **QUIET}
    noisy = ppl.expectation(lambda x: (x - ppl.sample("e", dist.Normal(0.0, 1.0))) ** 2 / 2.0)
    iterates = []
    ppl.minimize(noisy, 5.0, KEY, callback=lambda fit: iterates.append(float(fit.params)), **options)
    mean = 0.0
    for t, x in enumerate(iterates, 1):
        mean += 4.0 / (t + 3.0) * (x - mean)
    fit = ppl.minimize(noisy, 5.0, KEY, average=True, **options)
    np.testing.assert_allclose(fit.params, mean, rtol=1e-5)
    options |= {"steps": 2000, "steps_per_call": None}
    averages = [ppl.minimize(noisy, 5.0, jax.random.key(i), average=True, **options).params for i in range(8)]
    last = [ppl.minimize(noisy, 5.0, jax.random.key(i), **options).params for i in range(8)]
    # Variances: of the last iterate 0.4 / 1.6, of the average 16/7 / 2000 of independent gradients.
    assert np.sqrt(np.mean(np.square(averages))) < 0.1 < np.sqrt(np.mean(np.square(last)))


def test_the_best_window_is_restored():
    """A rate that is too large after step 300 spoils what was found before."""
    rate = optax.piecewise_constant_schedule(0.05, {300: 42.0})
    options = {"optimizer": optax.sgd(rate), "steps": 310, **QUIET}
    last = ppl.minimize(bowl, 0.0, KEY, **options)
    best = ppl.minimize(bowl, 0.0, KEY, restore_best=True, window=50, **options)
    assert abs(last.params - 3.0) > 0.3 > 0.1 > abs(best.params - 3.0)
    np.testing.assert_array_equal(best.history, last.history)
    windows = last.history[:300].reshape(6, 50).mean(1)
    np.testing.assert_allclose(best.state.best["mean"], windows.min(), rtol=1e-6)
    with pytest.raises(errors.ObjectiveError, match="one of them"):
        ppl.minimize(bowl, 0.0, KEY, restore_best=True, average=True, **options)


def test_callbacks_see_the_fit_and_stop_it():
    steps = []

    def callback(fit):
        steps.append(len(fit.history))
        return abs(fit.params - 3.0) < 1.0

    fit = ppl.minimize(bowl, 0.0, KEY, optimizer=optax.sgd(0.01), steps=1000, steps_per_call=25, callback=callback, **QUIET)
    assert fit.stopped == "callback"
    assert steps == list(range(25, steps[-1] + 1, 25))
    assert len(fit.history) == steps[-1] < 1000
    assert abs(fit.params - 3.0) < 1.0


def test_a_fit_is_continued_as_if_never_interrupted():
    for options in ({"average": True}, {"restore_best": True, "window": 30}, {"samples": 3}):
        options |= {"optimizer": optax.adam(0.05), **QUIET}
        whole = ppl.minimize(bowl, jnp.float32(0.0), KEY, steps=200, **options)
        part = ppl.minimize(bowl, jnp.float32(0.0), KEY, steps=77, **options)
        rest = ppl.minimize(bowl, jnp.float32(9.0), jax.random.key(9), steps=200, state=part.state, **options)
        jax.tree.map(np.testing.assert_array_equal, rest.state.replace(key=0), whole.state.replace(key=0))
        np.testing.assert_array_equal(rest.params, whole.params)
    with pytest.raises(errors.ObjectiveError, match="has taken 77 steps"):
        ppl.minimize(bowl, 0.0, KEY, optimizer=optax.adam(0.05), steps=50, state=part.state, samples=3, **QUIET)
    with pytest.raises(errors.ObjectiveError, match="another run"):
        ppl.minimize(bowl, 0.0, KEY, optimizer=optax.sgd(0.05), steps=500, state=part.state, **QUIET)


def test_what_ends_a_run_early_carries_it():
    """An interrupt from the keyboard, a callback that fails, a stream that ends: the run so far goes on to the same bits."""

    def interrupt(fit):
        if len(fit.history) == 20:
            os.kill(os.getpid(), signal.SIGINT)

    def fail(fit):
        if len(fit.history) == 20:
            raise OSError("no space left")

    def once():
        return ppl.Stream(itertools.repeat(np.float32(3.0), 20))

    options = {"optimizer": optax.adam(0.05), "steps_per_call": 5, "average": True, **QUIET}
    start, data = jnp.float32(0.0), ppl.Stream([np.float32(3.0)])
    whole = ppl.minimize(bowl, start, KEY, data, steps=50, **options)
    for kind, stream, callback in (
        (KeyboardInterrupt, data, interrupt),
        (OSError, data, fail),
        (errors.DataError, once(), None),
    ):
        with pytest.raises(kind) as caught:
            ppl.minimize(bowl, start, KEY, stream, steps=50, callback=callback, **options)
        fit = caught.value.fit
        assert (fit.stopped, int(fit.state.step)) == ("interrupted", 20)
        assert "up to step 20" in caught.value.__notes__[0]
        np.testing.assert_array_equal(fit.history, whole.history[:20])
        if kind is not errors.DataError:
            rest = ppl.minimize(bowl, start, KEY, data, steps=50, state=fit.state, **options)
            np.testing.assert_array_equal(rest.history, whole.history)
            assert rest.params == whole.params


def test_progress_in_a_log_file_is_a_few_lines(monkeypatch):
    """A hundred calls, a second each by the clock: lines after 10, 20 and 40 more seconds, and at the end."""
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=itertools.count().__next__))
    ppl.minimize(bowl, 0.0, KEY, optimizer=optax.sgd(0.1), steps=300, steps_per_call=3)
    lines = log.getvalue().splitlines()
    steps = [int(re.match(r"step (\d+)/300, objective \d\.\d+ \+- 0\.\d+, 3 steps/s$", line)[1]) for line in lines]
    assert len(steps) == 4
    assert steps[0] == 30
    assert steps[-1] == 300
    assert "\r" not in log.getvalue()


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_precision_of_the_parameters_is_kept(dtype):
    """Gradient descent on a bowl without noise, in NumPy's arithmetic of that precision."""
    with jax.enable_x64(dtype == "float64"):
        objective = ppl.expectation(lambda x: (x - jnp.asarray(3.0, x.dtype)) ** 2)
        start = jnp.asarray(0.0, dtype)
        fit = ppl.minimize(objective, start, KEY, optimizer=optax.sgd(0.125), steps=20, average=True, **QUIET)
        last = fit.state.params
    x = np.asarray(start)
    for _ in range(20):
        x = (x - np.asarray(0.125, x.dtype) * (2 * (x - np.asarray(3.0, x.dtype)))).astype(x.dtype)
    assert last.dtype == fit.params.dtype == x.dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(np.asarray(last), x)
    assert fit.state.average.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)
