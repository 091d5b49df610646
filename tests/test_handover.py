"""A fit handed on: to ArviZ, as importance resampled draws, to Markov chains, to pictures."""

import warnings

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ppl
import ppl.distributions as dist
from ppl.diagnostics import plots
from ppl.diagnostics.check import check
from tutorials import eight_schools as schools

KEY = jax.random.key(5)
Y = np.array([1.3, 0.2, 2.1, 0.9])
POSTERIOR = (Y.sum() / 5, 5**-0.5)


@ppl.program
def model():
    """`part/mean` given four data has a normal posterior; `scale` has its prior."""
    mean = ppl.sample("part", ppl.program(lambda: ppl.sample("mean", dist.Normal(0.0, 1.0)))())
    scale = ppl.sample("scale", dist.HalfNormal(1.0))
    ppl.deterministic("twice", 2.0 * mean)

    def datum(y):
        ppl.sample("y", dist.Normal(mean, 1.0), obs=y)

    ppl.plate("people", datum)(jnp.asarray(Y))
    jax.lax.scan(lambda c, _: (c, ppl.sample("walk", dist.Normal(0.0, scale))), 0.0, None, length=2)


@ppl.program
def family(params):
    ppl.sample("part/mean", dist.Normal(params["loc"], params["scale"]))
    scale = ppl.sample("scale", dist.HalfNormal(1.0))
    jax.lax.scan(lambda c, _: (c, ppl.sample("walk", dist.Normal(0.0, scale))), 0.0, None, length=2)


def fitted(shift, factor):
    params = {"loc": jnp.array(POSTERIOR[0] + shift), "scale": jnp.array(factor * POSTERIOR[1])}
    return ppl.Fit(params, -np.exp(-np.arange(100.0)), None, model=model(), family=family)


FIT = fitted(0.3, 1.5)
PARTICLES = 4 * 4001


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield


def test_arviz_export_arviz_2453(tmp_path):
    """Groups, names, dimensions and numbers; `summary`, `loo` and NetCDF take it."""
    exact = fitted(0.0, 1.0)
    data = exact.to_arviz(KEY, 4000)
    az.to_netcdf(data, tmp_path / "fit.nc")
    data = az.from_netcdf(tmp_path / "fit.nc")
    assert set(data.groups()) == {
        "posterior", "posterior_predictive", "log_likelihood", "sample_stats", "prior", "prior_predictive", "observed_data"
    }  # fmt: skip
    assert set(data.posterior.data_vars) == {"part.mean", "scale", "twice", "walk"} == set(data.prior.data_vars)
    assert data.posterior_predictive["y"].dims == ("chain", "draw", "people")
    assert data.posterior["walk"].dims == ("chain", "draw", "walk_dim_0")
    assert np.allclose(data.observed_data["y"], Y)
    mean = data.posterior["part.mean"].values[0]
    assert np.allclose(data.posterior["twice"].values[0], 2 * mean, atol=1e-5)
    exact_likelihood = stats.norm(mean[:, None], 1.0).logpdf(Y)
    assert np.allclose(data.log_likelihood["y"].values[0], exact_likelihood, atol=1e-4)
    scale, walk = data.posterior["scale"].values[0], data.posterior["walk"].values[0]
    lp = stats.norm.logpdf(mean) + stats.halfnorm.logpdf(scale) + stats.norm(0, scale[:, None]).logpdf(walk).sum(1)
    assert np.allclose(data.sample_stats["lp"].values[0], lp + exact_likelihood.sum(1), rtol=1e-4, atol=1e-3)

    summary = az.summary(data, var_names=["part.mean"], kind="stats", round_to=6)
    assert abs(summary["mean"].iloc[0] - POSTERIOR[0]) < 4.5 * POSTERIOR[1] / 4000**0.5
    # Leaving a datum out has a closed form: the others' posterior predictive.
    loo = az.loo(data)
    rest = (Y.sum() - Y) / 4
    assert abs(loo.elpd_loo - stats.norm(rest, (1 + 1 / 4) ** 0.5).logpdf(Y).sum()) < 0.1


def test_improper_priors_and_masked_data_in_arviz():
    @ppl.program
    def flat():
        mean = ppl.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
        seen = jnp.array([True, False, True])
        ppl.sample("y", dist.Normal(jnp.full(3, mean), 1.0).mask(seen), obs=jnp.array([1.0, jnp.nan, 2.0]))

    fit = ppl.Fit(0.0, np.zeros(0), None, model=flat(), family=lambda _: about())
    about = ppl.program(lambda: ppl.sample("mean", dist.Normal(1.5, 0.7)))
    data = fit.to_arviz(KEY, 50)
    assert "prior" not in data.groups()
    likelihood = data.log_likelihood["y"].values[0]
    mean = data.posterior["mean"].values[0]
    assert np.allclose(likelihood[:, [0, 2]], stats.norm(mean[:, None], 1.0).logpdf([1.0, 2.0]), atol=1e-4)
    assert np.all(likelihood[:, 1] == 0)
    assert np.isfinite(data.posterior_predictive["y"].values).all()


def test_resampled_draws_are_the_posterior():
    draws = np.asarray(FIT.resample(KEY, 4000, particles=PARTICLES)["part"]["mean"], float)
    assert abs(draws.mean() - POSTERIOR[0]) < 5 * POSTERIOR[1] / 4000**0.5
    assert abs(draws.std() / POSTERIOR[1] - 1) < 5 / (2 * 4000) ** 0.5
    program = ppl.program(lambda sd: ppl.sample("x", dist.Normal(jnp.zeros(10), sd)))
    narrow = ppl.Fit(0.2, np.zeros(0), None, model=program(1.0), family=program)
    with pytest.warns(ppl.errors.UnreliableWarning, match="too far from the posterior"):
        narrow.resample(KEY, 100, particles=1000)


def test_independence_metropolis_reaches_the_posterior():
    found = FIT.metropolis(KEY, 4000, chains=4)
    draws = np.asarray(found.trace["part"]["mean"], float)
    assert draws.shape == (4, 4000)
    assert found.trace["walk"].shape == (4, 4000, 2)
    effective = float(az.ess(draws))
    assert effective > 2000
    assert float(az.rhat(draws)) < 1.01
    assert abs(draws.mean() - POSTERIOR[0]) < 4.5 * POSTERIOR[1] / effective**0.5
    assert abs(draws.std() / POSTERIOR[1] - 1) < 4.5 / effective**0.5
    # E min(1, w' / w) between a state of the posterior and a draw of the family, over exact draws of both.
    rng = np.random.default_rng(0)
    q = stats.norm(POSTERIOR[0] + 0.3, 1.5 * POSTERIOR[1])
    states, proposed = rng.normal(*POSTERIOR, 100_000), q.rvs(100_000, random_state=1)

    def log_w(z):
        return stats.norm(*POSTERIOR).logpdf(z) - q.logpdf(z)

    acceptance = np.minimum(1, np.exp(log_w(proposed) - log_w(states))).mean()
    assert abs(found.acceptance - acceptance) < 0.02


def test_initial_values_are_latents_with_a_density():
    @ppl.program
    def half():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.deterministic("y", x)
        ppl.factor("right", jnp.where(x > 1.0, 0.0, -jnp.inf))

    standard = ppl.program(lambda _: [ppl.sample("x", dist.Normal(0.0, 1.0)), ppl.deterministic("z", 1.0)])
    fit = ppl.Fit(0.0, np.zeros(0), None, model=half(), family=standard)
    values = fit.initial_values(KEY, 10)
    assert set(values) == {"x"}
    assert values["x"].shape == (10,)
    assert bool((values["x"] > 1.0).all())
    assert len(np.unique(values["x"])) == 10
    none = ppl.program(lambda: ppl.factor("f", jnp.log(ppl.sample("x", dist.Normal(0.0, 1.0)) * 0.0)))
    with pytest.raises(ppl.errors.FitError, match="only 0 of 80 draws"):
        ppl.Fit(0.0, np.zeros(0), None, model=none(), family=standard).initial_values(KEY, 4)


def test_pictures():
    """The numbers that are drawn, with a reference in chains; on the axes that are given."""
    from matplotlib.figure import Figure

    draws = {"a": np.arange(1000.0), "b": np.arange(2000.0).reshape(1000, 2)}
    chains = {"a": np.arange(1000.0).reshape(2, 500) + 1.0, "b": np.arange(2000.0).reshape(2, 500, 2) + 1.0}
    axes = Figure().subplots()
    assert plots.forest(draws, chains, axes=axes) is axes.figure
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b[0]", "b[1]"]
    fit, reference = axes.lines
    assert np.allclose(fit.get_xdata(), [499.5, 999.0, 1000.0])
    assert np.allclose(reference.get_xdata(), np.array([499.5, 999.0, 1000.0]) + 1)

    figure = plots.densities(draws, chains, addresses=["b"])
    assert [a.get_title() for a in figure.axes if a.get_visible()] == ["b[0]", "b[1]"]
    for patch in figure.axes[0].patches:
        heights, edges, _ = patch.get_data()
        assert np.sum(heights * np.diff(edges)) == pytest.approx(1.0, abs=0.02)
    assert plots.pairs(draws, chains, figure=Figure()).axes[3].lines[0].get_xdata()[1] == 1.0

    history = np.concatenate([np.full(50, -100.0), np.zeros(950)])
    figure = plots.loss(history, window=10)
    assert figure.axes[0].get_ylim()[0] > -10
    assert "starts at -100" in figure.axes[0].get_title(loc="left")
    with pytest.raises(ppl.errors.UnknownAddressError, match="Did you mean 'b'"):
        plots.forest(draws, addresses=["bb"])
    with pytest.raises(ppl.errors.UnknownAddressError, match="the reference has no draws of what is shown"):
        plots.forest(draws, {"c": np.zeros(3)})
    assert len(FIT.plot_forest(KEY, n=100).axes[0].get_yticklabels()) == 4
    assert len(FIT.plot_loss().axes) == 1


def test_eight_schools_against_the_reference():
    """A family that fits the eight schools' posterior, resampled: means of the reference to 0.1 standard deviations, and the
    evidence that two ways of looking at it agree on."""
    params = {
        "tau": jnp.log(jnp.array([3.7, 1.1])),
        "mu": jnp.array([4.3, 0.05]),
        "log_sd_mu": jnp.array([1.1, 0.05]),
        "effect": schools.Y,
        "log_noise": jnp.log(schools.SIGMA),
    }
    fit = ppl.Fit(params, np.zeros(0), None, model=schools.eight_schools(), family=schools.shrinkage)
    draws = fit.resample(KEY, 4000, particles=20_000)
    reference = schools.DATA["reference"]
    for i, name in enumerate(("mu", "tau")):
        value = np.asarray(draws[name], float)
        assert abs(value.mean() - reference["mean"][i]) < 0.1 * reference["sd"][i]
        assert abs(value.std() / reference["sd"][i] - 1) < 0.1
    theta = np.asarray(draws["mu"][:, None] + draws["tau"][:, None] * draws["z"], float)
    assert np.all(np.abs(theta.mean(0) - reference["mean"][2:]) < 0.1 * np.array(reference["sd"][2:]))
    report = check(fit.target, fit.posterior, KEY, draws=20_000)
    assert report.elbo.value < report.log_evidence.value < report.eubo.value
    assert abs(report.log_evidence.value + 31.31) < 0.03
