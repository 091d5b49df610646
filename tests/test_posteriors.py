"""The reference posteriors: the programs against NumPyro's log densities, and against the reference draws."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import biject_to, constraints
from numpyro.infer.util import log_density

import ppl
from benchmarks import posteriors

pytestmark = pytest.mark.skipif(
    not posteriors.folder().is_dir(), reason=f"the reference posteriors are not at {posteriors.folder()} (PPL_POSTERIORDB)"
)

NAMES = sorted(posteriors.RECIPES)
WITHOUT_DRAWS = {
    "dogs-dogs",
    "radon_mn-radon_hierarchical_intercept_noncentered",
    "wells_data-wells_dae_model",
}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


# The same models once more, over the names of Stan's variables, from the data as posteriordb has them.


def flat(name, *shape):
    return numpyro.sample(name, dist.ImproperUniform(constraints.real, (), shape))


def positive(name):
    return numpyro.sample(name, dist.ImproperUniform(constraints.positive, (), ()))


def observe(mean, sd, values):
    with numpyro.plate("data", len(values)):
        numpyro.sample("data_", dist.Normal(mean, sd), obs=jnp.asarray(values, float))


def eight_schools_centered(d):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, d["sigma"]), obs=d["y"])


def eight_schools_noncentered(d):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", 8):
        z = numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu + tau * z, d["sigma"]), obs=d["y"])


def kidscore_interaction(d):
    b = flat("beta", 4)
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    x = np.stack([np.ones(len(d["mom_hs"])), d["mom_hs"], d["mom_iq"], d["mom_hs"] * d["mom_iq"]])
    observe(b @ x, sigma, d["kid_score"])


def logearn_height(d):
    b = flat("beta", 2)
    observe(b[0] + b[1] * d["height"], positive("sigma"), np.log(d["earn"]))


def logmesquite(d):
    b = flat("beta", 7)
    mean = b[0] + b[1] * jnp.log(d["diam1"]) + b[2] * jnp.log(d["diam2"]) + b[3] * jnp.log(d["canopy_height"])
    mean = mean + b[4] * jnp.log(d["total_height"]) + b[5] * jnp.log(d["density"]) + b[6] * d["group"]
    observe(mean, positive("sigma"), np.log(d["weight"]))


def nes(d):
    b = flat("beta", 9)
    age = jnp.concatenate([jnp.zeros(2), b[3:6]])[d["age_discrete"]]
    mean = b[0] + b[1] * d["real_ideo"] + b[2] * d["race_adj"] + age + b[6] * d["educ1"] + b[7] * d["gender"]
    observe(mean + b[8] * d["income"], positive("sigma"), d["partyid7"])


def autoregression(d):
    alpha = numpyro.sample("alpha", dist.Normal(0, 10))
    beta = numpyro.sample("beta", dist.Normal(0, 10).expand([5]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    y = jnp.asarray(d["y"])
    mean = alpha + sum(beta[k - 1] * y[5 - k : 200 - k] for k in range(1, 6))
    observe(mean, sigma, y[5:])


def gp_regression(d):
    rho = numpyro.sample("rho", dist.Gamma(25, 4))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    squared = np.subtract.outer(d["x"], d["x"]) ** 2
    cov = alpha**2 * jnp.exp(-squared / (2 * rho**2)) + jnp.diag(jnp.full(11, sigma))
    numpyro.sample("y", dist.MultivariateNormal(0.0, scale_tril=jnp.linalg.cholesky(cov)), obs=d["y"])


def hidden_markov(d):
    """Products of matrices in place of the log-space recursion, rescaled at every step."""
    theta1 = numpyro.sample("theta1", dist.Dirichlet(jnp.ones(2)))
    theta2 = numpyro.sample("theta2", dist.Dirichlet(jnp.ones(2)))
    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.positive_ordered_vector, (), (2,)))
    numpyro.factor("mu1", dist.Normal(3, 1).log_prob(mu[0]))
    numpyro.factor("mu2", dist.Normal(10, 1).log_prob(mu[1]))
    transition = jnp.stack([theta1, theta2])
    density = jnp.exp(-0.5 * (jnp.asarray(d["y"])[:, None] - mu) ** 2) / jnp.sqrt(2 * jnp.pi)

    def step(state, density):
        state = (state @ transition) * density
        return state / state.sum(), jnp.log(state.sum())

    state, log_scales = jax.lax.scan(step, density[0], density[1:])
    numpyro.factor("y", log_scales.sum() + jnp.log(state.sum()))


def gaussian_mixture(d):
    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5, 5))
    numpyro.factor("mu_", dist.Normal(0, 2).log_prob(mu).sum())
    first, second = (dist.Normal(mu[k], sigma[k]).log_prob(jnp.asarray(d["y"])) for k in (0, 1))
    numpyro.factor("y", jnp.logaddexp(jnp.log(theta) + first, jnp.log1p(-theta) + second).sum())


def diamonds(d):
    x = d["X"] - d["X"].mean(axis=0)
    b = numpyro.sample("b", dist.Normal(0, 1).expand([24]).to_event(1))
    intercept = numpyro.sample("Intercept", dist.StudentT(3, 8, 10))
    sigma = positive("sigma")
    numpyro.factor("sigma_", dist.StudentT(3, 0, 10).log_prob(sigma) + jnp.log(2.0))
    observe(intercept + x[:, 1:] @ b, sigma, d["Y"])


def wells(d):
    alpha, b = flat("alpha"), flat("beta", 3)
    logits = alpha + b[0] * d["dist"] / 100 + b[1] * d["arsenic"] + b[2] * d["educ"] / 4
    probs = jnp.where(d["switched"] == 1, jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits))
    numpyro.factor("y", jnp.log(probs).sum())


def dogs(d):
    b = numpyro.sample("beta", dist.Normal(0, 100).expand([3]).to_event(1))
    logits = np.zeros((30, 25, 3))
    for dog in range(30):
        n_avoid = n_shock = 0
        for trial in range(25):
            logits[dog, trial] = 1, n_avoid, n_shock
            n_shock, n_avoid = n_shock + d["y"][dog, trial], n_avoid + 1 - d["y"][dog, trial]
    with numpyro.plate("dogs", 30, dim=-2), numpyro.plate("trials", 25, dim=-1):
        numpyro.sample("y", dist.Bernoulli(logits=logits @ b), obs=d["y"])


def radon(d):
    sigma_alpha = numpyro.sample("sigma_alpha", dist.HalfNormal(1))
    sigma_y = numpyro.sample("sigma_y", dist.HalfNormal(1))
    mu_alpha = numpyro.sample("mu_alpha", dist.Normal(0, 10))
    b = numpyro.sample("beta", dist.Normal(0, 10).expand([2]).to_event(1))
    with numpyro.plate("counties", 85):
        z = numpyro.sample("z", dist.Normal(0, 1))
    member = np.eye(85)[d["county_idx"] - 1]
    mean = member @ (mu_alpha + sigma_alpha * z) + d["log_uppm"] * b[0] + d["floor_measure"] * b[1]
    observe(mean, sigma_y, d["log_radon"])


NUMPYRO = {
    "arK-arK": autoregression,
    "diamonds-diamonds": diamonds,
    "dogs-dogs": dogs,
    "earnings-logearn_height": logearn_height,
    "eight_schools-eight_schools_centered": eight_schools_centered,
    "eight_schools-eight_schools_noncentered": eight_schools_noncentered,
    "gp_pois_regr-gp_regr": gp_regression,
    "hmm_example-hmm_example": hidden_markov,
    "kidiq-kidscore_interaction": kidscore_interaction,
    "low_dim_gauss_mix-low_dim_gauss_mix": gaussian_mixture,
    "mesquite-logmesquite": logmesquite,
    "nes2000-nes": nes,
    "radon_mn-radon_hierarchical_intercept_noncentered": radon,
    "wells_data-wells_dae_model": wells,
}


def points(posterior):
    """Four points of the reference's parameters: draws, or points scattered around the mean."""
    if posterior.draws is not None:
        return posterior.draws[[0, 150, 300, 499]]
    mean, sd = (np.array([by_name[name] for name in posterior.names]) for by_name in (posterior.mean, posterior.sd))
    return mean + sd * np.random.default_rng(0).uniform(-2, 2, (4, len(mean)))


def test_every_file_has_a_recipe():
    assert {path.stem for path in posteriors.folder().glob("*.json")} == set(NAMES) == set(NUMPYRO)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("x64")
def test_log_density_is_that_of_numpyro(name):
    posterior = posteriors.load(name)
    traces = jax.vmap(posterior.trace)(points(posterior))

    def reference(trace):
        return log_density(NUMPYRO[name], (posterior.data,), {}, trace)[0]

    ours = jax.jit(jax.vmap(posterior.model.log_density))(traces)
    theirs = jax.jit(jax.vmap(reference))(traces)
    assert ours.dtype == jnp.float64
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_single_precision_agrees_with_double(name):
    def values():
        posterior = posteriors.load(name)
        return np.asarray(jax.jit(jax.vmap(posterior.model.log_density))(jax.vmap(posterior.trace)(points(posterior))))

    single = values()
    with jax.enable_x64(True):
        double = values()
    assert (single.dtype, double.dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(single, double, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("x64")
def test_parameters_and_trace_are_inverse(name):
    posterior = posteriors.load(name)
    traces = jax.vmap(posterior.trace)(points(posterior))
    latent = {k: (row.shape, row.kind) for k, row in ppl.trace_shapes(posterior.model).items() if row.kind == "sample"}
    assert latent == {k: (v.shape[1:], "sample") for k, v in traces.items()}
    np.testing.assert_allclose(jax.vmap(posterior.parameters)(traces), points(posterior), rtol=1e-12, atol=1e-12)


def stein_t(model, traces, jacobian=1.0):
    """Largest |mean| over its standard error of the gradient of the log density on the unconstrained scale.

    The mean is zero under the posterior itself (Stein's identity).
    """
    bijections = {address: biject_to(row.support) for address, row in ppl.trace_shapes(model).items() if row.kind == "sample"}
    free = {address: jax.vmap(bijections[address].inv)(value) for address, value in traces.items()}

    def log_posterior(free):
        trace = {address: bijections[address](value) for address, value in free.items()}
        jacobians = [bijections[a].log_abs_det_jacobian(value, trace[a]) for a, value in free.items()]
        return model.log_density(trace) + jacobian * sum(jnp.sum(term) for term in jacobians)

    gradients = jax.jit(jax.vmap(jax.grad(log_posterior)))(free)
    flattened = np.concatenate([np.reshape(g, (len(g), -1)) for g in gradients.values()], axis=1)
    standard_error = flattened.std(axis=0, ddof=1) / np.sqrt(len(flattened))
    return float(np.max(np.abs(flattened.mean(axis=0)) / standard_error))


@pytest.mark.parametrize("name", sorted(set(NAMES) - WITHOUT_DRAWS))
@pytest.mark.usefixtures("x64")
def test_reference_draws_satisfy_steins_identity(name):
    posterior = posteriors.load(name)
    assert posterior.draws.shape == (500, len(posterior.names))
    assert stein_t(posterior.model, jax.vmap(posterior.trace)(posterior.draws)) <= 4.0


@ppl.program
def gp_with_a_standard_deviation(x):
    rho = ppl.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = ppl.sample("alpha", dist.HalfNormal(2.0))
    sigma = ppl.sample("sigma", dist.HalfNormal(1.0))
    kernel = alpha**2 * jnp.exp(-0.5 * ((x[:, None] - x) / rho) ** 2)
    ppl.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), kernel + sigma**2 * jnp.eye(len(x))))


WRONG = {
    "gp_pois_regr-gp_regr": lambda d: gp_with_a_standard_deviation(d["x"]).condition(y=d["y"]),
    "hmm_example-hmm_example": lambda d: posteriors.hidden_markov(d["y"] + 0.1),
    "nes2000-nes": lambda d: posteriors.RECIPES["nes2000-nes"].bind({**d, "age_discrete": d["age_discrete"] + 1}),
}


@pytest.mark.parametrize("name", sorted(WRONG))
@pytest.mark.usefixtures("x64")
def test_steins_identity_fails_for_wrong_models(name):
    posterior = posteriors.load(name)
    traces = jax.vmap(posterior.trace)(posterior.draws)
    assert stein_t(WRONG[name](posterior.data), traces) > 6.0


@pytest.mark.usefixtures("x64")
def test_steins_identity_fails_without_the_jacobian():
    posterior = posteriors.load("eight_schools-eight_schools_noncentered")
    assert stein_t(posterior.model, jax.vmap(posterior.trace)(posterior.draws), jacobian=0.0) > 6.0


@pytest.mark.parametrize("name", ["dogs-dogs", "wells_data-wells_dae_model"])
@pytest.mark.usefixtures("x64")
def test_laplace_approximation_matches_the_reference(name):
    """Where there are no draws: these posteriors are nearly normal, so mode and curvature give mean and sd."""
    posterior = posteriors.load(name)
    mean, sd = (np.array([by_name[n] for n in posterior.names]) for by_name in (posterior.mean, posterior.sd))

    @jax.jit
    def slope_and_curvature(parameters):
        def log_posterior(parameters):
            return posterior.model.log_density(posterior.trace(parameters))

        return jax.grad(log_posterior)(parameters), jax.hessian(log_posterior)(parameters)

    mode = jnp.asarray(mean)
    for _ in range(5):
        slope, curvature = slope_and_curvature(mode)
        mode = mode - jnp.linalg.solve(curvature, slope)
    np.testing.assert_array_less(np.abs(mode - mean) / sd, 0.2)
    np.testing.assert_allclose(jnp.sqrt(jnp.diag(jnp.linalg.inv(-curvature))), sd, rtol=0.05)
