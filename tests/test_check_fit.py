"""Did it work? The check of a fit, against posteriors and evidence that are known exactly (numpyro#1804)."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import ppl
import ppl.distributions as dist
from ppl.diagnostics import convergence, latents, weights
from ppl.diagnostics.check import check

KEY = jax.random.key(0)
Y = np.array([1.3, 0.2, 2.1, 0.9])


@ppl.program
def conjugate(y=Y):
    """A mean with a standard normal prior and unit noise: everything about its posterior is known."""
    mean = ppl.sample("mean", dist.Normal(0.0, 1.0))
    ppl.plate("data", lambda y: ppl.sample("y", dist.Normal(mean, 1.0), obs=y))(jnp.asarray(y))


POSTERIOR = (Y.sum() / (len(Y) + 1), (len(Y) + 1) ** -0.5)
LOG_EVIDENCE = stats.multivariate_normal(np.zeros(4), np.eye(4) + 1).logpdf(Y)


@ppl.program
def normal(params):
    ppl.sample("mean", dist.Normal(params["loc"], params["scale"]))


def fitted(loc, scale, **options):
    params = {"loc": jnp.asarray(loc, float), "scale": jnp.asarray(scale, float)}
    return ppl.Fit(params, np.zeros(0), None, model=conjugate(), family=normal, **options)


def divergence(loc, scale):
    """KL(q || p) and KL(p || q) of a normal family from the posterior."""
    m, s = POSTERIOR

    def kl(a, b, c, d):
        return math.log(d / b) + (b**2 + (a - c) ** 2) / (2 * d**2) - 0.5

    return kl(loc, scale, m, s), kl(m, s, loc, scale)


def close(estimate, exact, z=4.0):
    assert abs(estimate.value - exact) < z * estimate.standard_error + 1e-5, (str(estimate), exact)


def test_evidence_between_bounds():
    """The family is off, and wide enough: every number has an exact value, 4 standard errors away at most."""
    loc, scale = POSTERIOR[0] + 0.2, 1.3 * POSTERIOR[1]
    report = check(conjugate(), normal({"loc": loc, "scale": scale}), KEY, draws=20_000)
    forward, backward = divergence(loc, scale)
    close(report.elbo, LOG_EVIDENCE - forward)
    close(report.log_evidence, LOG_EVIDENCE)
    close(report.eubo, LOG_EVIDENCE + backward)
    z = np.linspace(-8.0, 10.0, 200_001)
    p, q = stats.norm(*POSTERIOR).pdf(z), stats.norm(loc, scale).pdf(z)
    close(report.cubo, LOG_EVIDENCE + 0.5 * math.log(np.trapezoid(p**2 / q, z)))
    share = 1 / np.trapezoid(p**2 / q, z)
    assert abs(report.effective_sample_size / 20_000 - share) < 0.02
    assert report.elbo.value < LOG_EVIDENCE < min(report.eubo.value, report.cubo.value)
    assert report.k_hat < 0.5


def test_standard_errors_are_right():
    """The numbers spread over 200 keys as they say that they do (chi-square, 4 standard errors are 0.2)."""
    loc, scale = POSTERIOR[0] + 0.2, 1.3 * POSTERIOR[1]
    fit = fitted(loc, scale)
    found = []
    for i in range(200):
        log_w = np.asarray(ppl.diagnostics.draws.weighted(fit.target, fit.posterior, jax.random.key(i), 500).log_weights)
        found.append([weights.mean(log_w), weights.log_mean(log_w), weights.upper_bound(log_w)])
    found = np.array(found)
    ratio = found[:, :, 0].std(axis=0, ddof=1) / found[:, :, 1].mean(axis=0)
    assert np.all(np.abs(ratio - 1) < 0.2), ratio


def test_did_it_work_numpyro_1804():
    """The exact posterior: nothing speaks against it. Half as wide as the posterior: the report says so, and what to do."""
    good = fitted(*POSTERIOR).check(KEY, draws=1000)
    assert good.ok
    assert good.k_hat == -math.inf
    assert abs(good.log_evidence.value - LOG_EVIDENCE) < 1e-4
    assert good.effective_sample_size == pytest.approx(good.draws, rel=1e-4)
    assert str(good).startswith("nothing speaks against this fit")

    narrow = check(conjugate(), normal({"loc": sum(POSTERIOR), "scale": 0.3 * POSTERIOR[1]}), KEY, draws=1000)
    assert not narrow.ok
    assert narrow.k_hat > 0.7
    assert "narrower than the posterior" in str(narrow)
    assert "NUTS from fit.initial_values" in words(narrow)
    assert str(narrow).count("not reliable: see k-hat") == 2


def test_weights_say_how_far_off_means_and_deviations_are():
    """A family that is too wide and beside the posterior: the tail is light, and the report gives the posterior's moments."""
    m, s = POSTERIOR
    report = check(conjugate(), normal({"loc": m + 0.5 * s, "scale": 1.5 * s}), KEY, draws=20_000)
    (finding,) = report.findings
    assert (finding.about, finding.severity, finding.address) == ("weights", "warning", "mean")
    told = [float(x) for x in re.findall(r"-?\d+\.?\d*", finding.message)]
    assert np.allclose(told, [m + 0.5 * s, 1.5 * s, m, s], atol=4 * 1.5 * s / 20_000**0.5 + 0.005), finding.message


def test_k_hat_is_that_of_the_tail():
    """Weights whose tail is a power law: k-hat is its exponent, to 4 of its standard errors (about (1 + k) / sqrt(tail))."""
    uniform = np.random.default_rng(0).uniform(size=40_000)
    tail = 3 * 40_000**0.5
    for k in (0.3, 0.6, 0.9, 1.5):
        assert abs(weights.smooth(-k * np.log(uniform)).k_hat - k) < 4 * (1 + k) / math.sqrt(tail)


def test_k_hat_of_few_values():
    """Weights of a discrete latent tie: there is no tail, unless some value is much too rare."""
    assert weights.smooth(np.repeat([0.0, 1.0], 500)).k_hat == -math.inf
    rare = np.concatenate([np.zeros(996), np.full(4, 8.0)])
    assert weights.smooth(rare).k_hat > 0.7


def test_gradient_and_history_say_whether_training_came_to_rest():
    m, s = POSTERIOR
    away = fitted(m + 1.0, s)
    report = away.check(KEY, draws=1000)
    # By the location, with prior and likelihood together -5 (z - m)^2 / 2: mean 5 (m - loc), variance 25 s^2. By the scale
    # -5 (z - m) e + 1 / s with z = loc + s e: mean -5 s + 1 / s = 0, variance 25 ((loc - m)^2 + 2 s^2).
    assert report.signal_to_noise == pytest.approx(5 / math.sqrt(25 * s**2 + 25 * (1 + 2 * s**2)), rel=0.1)
    assert any(finding.about == "convergence" for finding in report.warnings)

    noise = np.random.default_rng(0).normal(size=2000)
    still, climbing = noise, noise + np.arange(2000) / 100
    told = ["still moved by +2" in str(convergence.of_history(fit)) for fit in (still, climbing)]
    assert told == [False, True]


def test_optimized_fit_is_checked():
    objective = ppl.expectation(lambda params: ppl.objectives.elbo(conjugate(), family(params)))
    family = ppl.program(lambda params: ppl.sample("mean", dist.Normal(params["loc"], jnp.exp(params["log_scale"]))))
    fit = ppl.maximize(
        objective,
        {"loc": 0.0, "log_scale": 0.0},
        KEY,
        optimizer=optax.adam(optax.cosine_decay_schedule(0.1, 600)),
        steps=600,
        samples=8,
        progress=False,
        model=conjugate(),
        family=family,
    )
    report = fit.check(KEY)
    assert report.ok, str(report)
    close(report.log_evidence, LOG_EVIDENCE)


@ppl.program
def rates():
    ppl.sample("rate", dist.HalfNormal(1.0))
    ppl.sample("share", dist.Beta(2.0, 2.0))


def words(report):
    return " ".join(str(report).split())


def about(report, address):
    return [(finding.about, finding.severity) for finding in report.findings if finding.address == address]


def test_supports():
    """A family that never draws what the model allows, draws at a bound, and a point."""

    @ppl.program
    def family(low):
        ppl.sample("rate", dist.LogNormal(-40.0 if low else -0.5, 2.0))
        ppl.sample("share", dist.Uniform(0.1, 0.6) if low else dist.Beta(2.0, 2.0))

    report = check(rates(), family(True), KEY, draws=1000)
    assert ("support", "warning") in about(report, "share")
    assert "some values are never tried" in words(report)
    assert ("support", "warning") in about(report, "rate")
    assert "pile up at the bound 0" in words(report)
    assert list(latents.uncovered(rates(), family(False))) == []

    point = ppl.program(lambda: [ppl.sample("rate", dist.Delta(0.5)), ppl.sample("share", dist.Beta(2.0, 2.0))])
    told = check(rates(), point(), KEY, draws=200)
    assert about(told, "rate") == [("support", "warning")]
    assert math.isnan(told.k_hat)
    assert math.isnan(told.log_evidence.value)


def test_draws_outside_of_the_model():
    """A bound that the check of supports cannot see: 30% of the family lies beyond it."""

    @ppl.program
    def model():
        x = ppl.sample("x", dist.Uniform(0.0, 2.0))
        ppl.factor("bound", jnp.where(x < 1.0, 0.0, -jnp.inf))

    family = ppl.program(lambda: ppl.sample("x", dist.Uniform(0.0, 1.0 / 0.7)))
    with pytest.raises(ppl.errors.ModelFamilyMismatchError):
        check(conjugate(), family(), KEY)
    report = check(model(), family(), KEY, draws=4000)
    share = float(next(f for f in report.findings if "density zero" in f.message).message.split("%")[0])
    assert abs(share - 30.0) < 4 * 100 * math.sqrt(0.21 / 4000)
    assert report.elbo.value == -math.inf


def test_density_that_is_no_number():
    model = ppl.program(lambda: ppl.factor("f", jnp.log(ppl.sample("x", dist.Normal(0.0, 1.0)))))
    family = ppl.program(lambda: ppl.sample("x", dist.Normal(0.0, 1.0)))
    report = check(model(), family(), KEY, draws=1000)
    assert not report.ok
    assert "draws of the family have a log density that is no number" in words(report)
    assert math.isnan(report.log_evidence.value)


def test_collapsed_units_of_an_autoencoder():
    """Three latents for each datum. The decoder reads the first; the encoder has left the second at the prior for all data, and
    the third for one of them."""
    data = jnp.array([1.0, -2.0, 0.5])

    @ppl.program
    def decoder():
        def one(x):
            z = ppl.sample("z", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
            ppl.sample("x", dist.Normal(z[0] + 0.5 * z[2], 1.0), obs=x)

        ppl.plate("images", one)(data)

    @ppl.program
    def encoder(params):
        def one(x, third):
            mean = jnp.array([0.5 * x, 0.0, third])
            ppl.sample("z", dist.Normal(mean, jnp.array([0.7, params, 1.0])).to_event(1))

        ppl.plate("images", one)(data, jnp.array([0.0, 0.5, 0.5]))

    collapsed = check(decoder(), encoder(1.0), KEY, draws=500)
    assert ("collapse", "warning") in about(collapsed, "z")
    assert "equals the prior at [1] for all data" in words(collapsed)


def test_scale_at_its_floor():
    report = check(conjugate(), normal({"loc": POSTERIOR[0], "scale": 1e-6}), KEY, draws=500)
    assert ("collapse", "warning") in about(report, "mean")
    assert "scale is at its floor" in str(report)


def test_nothing_learned():
    unlearned = latents.inactive(conjugate(), normal({"loc": 0.0, "scale": 1.0}), KEY, {"mean": np.linspace(-2, 2, 50)})
    assert [(finding.about, finding.severity) for finding in unlearned] == [("collapse", "note")]


def test_minibatches_have_an_elbo_and_no_weights():
    @ppl.program
    def model(batch):
        mean = ppl.sample("mean", dist.Normal(0.0, 1.0))
        ppl.plate("data", lambda y: ppl.sample("y", dist.Normal(mean, 1.0), obs=y), size=4)(jnp.asarray(batch))

    loc, scale = POSTERIOR[0], POSTERIOR[1]
    params = {"loc": jnp.array(loc), "scale": jnp.array(scale)}
    fit = ppl.Fit(params, np.zeros(0), None, model=model(Y[:2]), family=normal)
    report = check(fit.target, fit.posterior, KEY, draws=1000)
    # The mean of the ELBO: the two data stand for four.
    log_p = stats.norm(loc, 1.0).logpdf(Y[:2]) - scale**2 / 2
    prior = stats.norm(0.0, 1.0).logpdf(loc) - scale**2 / 2
    entropy = 0.5 * math.log(2 * math.pi * math.e * scale**2)
    close(report.elbo, 2 * log_p.sum() + prior + entropy)
    assert math.isnan(report.k_hat)
    assert "plate 'data' stands for more data than it holds" in words(report)
    with pytest.raises(ppl.errors.FitError, match="minibatch"):
        fit.resample(KEY, 10)
    whole = fit.check(KEY, draws=1000, model=model(Y))  # a plate that holds its whole population is no minibatch
    assert abs(whole.log_evidence.value - LOG_EVIDENCE) < 1e-4


def test_fit_that_was_not_told():
    with pytest.raises(ppl.errors.FitError, match=r"ppl.maximize\(..., family=...\)"):
        ppl.Fit({}, np.zeros(0), None, model=conjugate()).check(KEY)
    with pytest.raises(ppl.errors.FitError, match=r"ppl.maximize\(..., model=...\)"):
        ppl.Fit({}, np.zeros(0), None, family=lambda params: normal(params)).predictive(KEY, 3)
    with pytest.raises(ppl.errors.FitError, match="must be a bound program"):
        ppl.Fit({}, np.zeros(0), None, family=lambda params: normal).sample(KEY, 3)
    with pytest.raises(ppl.errors.FitError, match="at least 100 draws"):
        fitted(0.0, 1.0).check(KEY, draws=50)


def test_a_tail_that_carries_nothing_is_a_note():
    """A log-normal family of a Gamma(16, 5) posterior has thinner tails, where hardly any of the posterior is."""
    counts = jnp.array([3, 5, 4, 2])

    @ppl.program
    def model():
        rate = ppl.sample("rate", dist.Gamma(2.0, 1.0))
        ppl.plate("counts", lambda n: ppl.sample("count", dist.Poisson(rate), obs=n))(counts)

    @ppl.program
    def family(params):
        ppl.sample("rate", dist.LogNormal(*params))

    variance = float(jax.scipy.special.polygamma(1, 16.0))
    params = jnp.array([float(jax.scipy.special.digamma(16.0)) - np.log(5.0), variance**0.5])
    fit = ppl.Fit(params, np.zeros(0), None, {}, model(), family)
    report = fit.check(jax.random.key(0))
    assert report.k_hat > report.k_hat_limit
    assert report.tail_weight < 1.5
    assert report.ok
    assert [finding.about for finding in report.findings if finding.about == "weights"] == ["weights"]
    log_evidence = float(sum(-jax.scipy.special.gammaln(n + 1.0) for n in counts)) + float(
        jax.scipy.special.gammaln(16.0) - 16 * np.log(5.0)
    )
    assert abs(report.log_evidence.value - log_evidence) < 4.5 * report.log_evidence.standard_error
