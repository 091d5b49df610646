"""Reference posteriors of posteriordb as `ppl` programs, bound to their data.

The models, data and reference draws are those of stan-dev/posteriordb (BSD-3-Clause, Copyright (c) 2011-2024, Stan Developers
and their Assignees), which are read from a folder beside the checkout, `../shared/posteriordb`, or from the folder that the
environment variable `PPL_POSTERIORDB` names. The programs are written from the models' mathematics.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ppl
import ppl.distributions as dist

Data = Mapping[str, np.ndarray]
Variables = Mapping[str, Any]
"""Values by the name of a variable of Stan's program: arrays, without the `[1]`, `[2]` of the reference's names."""


@dataclasses.dataclass(frozen=True)
class Posterior:
    """A model conditioned on its data, and what is known about its posterior distribution.

    `model` has the latent trace of the `ppl` program; the reference speaks of Stan's parameters, `names`. `parameters`
    goes from the first to the second and `trace` back, for one draw each: map them with `jax.vmap`. `mean` and `sd` are by
    name; `cov` is `[d, d]` and `draws` is `[500, d]`, in the order of `names`, both None where the reference has none.
    """

    name: str
    model: ppl.Bound
    names: tuple[str, ...]
    mean: dict[str, float]
    sd: dict[str, float]
    cov: np.ndarray | None
    draws: np.ndarray | None
    data: Data
    recipe: Recipe

    def parameters(self, trace: Mapping[str, Any]) -> jax.Array:
        """The reference's parameters, an array in the order of `names`, of a latent trace."""
        variables = self.recipe.variables(trace)
        parameters = jnp.zeros(len(self.names))
        for variable, places in self._places().items():
            parameters = parameters.at[places].set(variables[variable])
        return parameters

    def trace(self, parameters: Any) -> dict[str, jax.Array]:
        """The latent trace of an array of the reference's parameters."""
        parameters = jnp.asarray(parameters, float)
        return dict(self.recipe.trace({name: parameters[places] for name, places in self._places().items()}))

    def _places(self) -> dict[str, Any]:
        """Where a variable of Stan's program is among the parameters: `beta[1]` is the first element of `beta`."""
        places: dict[str, Any] = {}
        for place, name in enumerate(self.names):
            variable, _, index = name.partition("[")
            if index:
                places[variable] = np.append(places.get(variable, np.zeros(0, int)), place)
            else:
                places[variable] = place
        return places


class Recipe(NamedTuple):
    """How to make a posterior of data, and how Stan's variables and the latent trace follow from one another."""

    bind: Callable[[Data], ppl.Bound]
    variables: Callable[[Mapping[str, Any]], Variables] = lambda trace: trace
    trace: Callable[[Variables], Mapping[str, Any]] = lambda variables: variables


def folder() -> Path:
    """Where the reference posteriors are, whether or not anything is there."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "posteriordb"
    return Path(os.environ.get("PPL_POSTERIORDB") or beside)


def load(name: str, folder: str | os.PathLike[str] | None = None) -> Posterior:
    """A posterior of `RECIPES` with its data and reference.

    Args:
        name: a key of `RECIPES`, the name that posteriordb gives it.
        folder: with one JSON file for each posterior; found as the module's docstring says if None.

    Raises:
        KeyError: no recipe has this name.
        FileNotFoundError: the folder lacks the posterior's file.
    """
    recipe = RECIPES[name]
    content = _read(Path(folder if folder is not None else globals()["folder"]()) / f"{name}.json")
    data = {key: np.asarray(value) for key, value in content["data"].items()}
    reference = content["reference"]
    draws = reference.get("draws_thinned")
    names = tuple(reference["names"])
    return Posterior(
        name=name,
        model=recipe.bind(data),
        names=names,
        mean={key: reference["params"][key]["mean"] for key in names},
        sd={key: reference["params"][key]["sd"] for key in names},
        cov=np.asarray(reference["cov"]) if "cov" in reference else None,
        draws=None if draws is None else np.asarray(draws["values"]),
        data=data,
        recipe=recipe,
    )


@functools.lru_cache(maxsize=32)
def _read(path: Path) -> Any:
    return json.loads(path.read_text())


def flat(*shape: int) -> dist.Distribution:
    """An improper distribution with density one on the reals."""
    return dist.ImproperUniform(dist.constraints.real, (), shape)


def flat_positive() -> dist.Distribution:
    """An improper distribution with density one on the positive reals."""
    return dist.ImproperUniform(dist.constraints.positive, (), ())


# The models. Each leaves its data `y` latent; a recipe conditions on them.


@ppl.program
def eight_schools_centered(sigma):
    mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
    tau = ppl.sample("tau", dist.HalfCauchy(5.0))
    theta = ppl.sample("theta", dist.Normal(mu, tau).expand(sigma.shape))
    ppl.sample("y", dist.Normal(theta, sigma))


@ppl.program
def eight_schools_noncentered(sigma):
    mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
    tau = ppl.sample("tau", dist.HalfCauchy(5.0))
    z = ppl.sample("z", dist.Normal(0.0, 1.0).expand(sigma.shape))
    ppl.sample("y", dist.Normal(mu + tau * z, sigma))


@ppl.program
def kidscore_interaction(mom_hs, mom_iq):
    sigma = ppl.sample("sigma", dist.HalfCauchy(2.5))
    beta = ppl.sample("beta", flat(4))
    mean = beta[0] + beta[1] * mom_hs + beta[2] * mom_iq + beta[3] * mom_hs * mom_iq
    ppl.sample("y", dist.Normal(mean, sigma))


@ppl.program
def logearn_height(height):
    beta = ppl.sample("beta", flat(2))
    sigma = ppl.sample("sigma", flat_positive())
    ppl.sample("y", dist.Normal(beta[0] + beta[1] * height, sigma))


@ppl.program
def logmesquite(covariates):
    """`covariates` is `[n, 6]`."""
    beta = ppl.sample("beta", flat(7))
    sigma = ppl.sample("sigma", flat_positive())
    ppl.sample("y", dist.Normal(beta[0] + covariates @ beta[1:], sigma))


@ppl.program
def nes(covariates):
    """`covariates` is `[n, 8]`."""
    beta = ppl.sample("beta", flat(9))
    sigma = ppl.sample("sigma", flat_positive())
    ppl.sample("y", dist.Normal(beta[0] + covariates @ beta[1:], sigma))


@ppl.program
def autoregression(lags):
    """`lags[t, k]` is the series k + 1 steps before its t-th modelled value."""
    alpha = ppl.sample("alpha", dist.Normal(0.0, 10.0))
    beta = ppl.sample("beta", dist.Normal(0.0, 10.0).expand(lags.shape[1:]))
    sigma = ppl.sample("sigma", dist.HalfCauchy(2.5))
    ppl.sample("y", dist.Normal(alpha + lags @ beta, sigma))


@ppl.program
def gp_regression(x):
    rho = ppl.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = ppl.sample("alpha", dist.HalfNormal(2.0))
    sigma = ppl.sample("sigma", dist.HalfNormal(1.0))
    kernel = alpha**2 * jnp.exp(-0.5 * ((x[:, None] - x) / rho) ** 2)
    # sigma is a variance here: the model says so, its name notwithstanding.
    ppl.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), kernel + sigma * jnp.eye(len(x))))


@ppl.program
def hidden_markov(y):
    """Two states, summed out by the forward algorithm. The initial state has weight one for each, which is no density."""
    theta1 = ppl.sample("theta1", dist.Dirichlet(jnp.ones(2)))
    theta2 = ppl.sample("theta2", dist.Dirichlet(jnp.ones(2)))
    mu = ppl.sample("mu", dist.ImproperUniform(dist.constraints.positive_ordered_vector, (), (2,)))
    ppl.factor("prior", dist.Normal(jnp.array([3.0, 10.0]), 1.0).log_prob(mu))
    log_theta = jnp.log(jnp.stack([theta1, theta2]))
    log_emission = dist.Normal(mu, 1.0).log_prob(y[:, None])

    def step(log_alpha, log_emission):
        return jax.nn.logsumexp(log_alpha[:, None] + log_theta, axis=0) + log_emission, None

    log_alpha, _ = jax.lax.scan(step, log_emission[0], log_emission[1:])
    ppl.factor("y", jax.nn.logsumexp(log_alpha))


@ppl.program
def gaussian_mixture(n):
    mu = ppl.sample("mu", dist.ImproperUniform(dist.constraints.ordered_vector, (), (2,)))
    ppl.factor("prior", dist.Normal(0.0, 2.0).log_prob(mu))
    sigma = ppl.sample("sigma", dist.HalfNormal(2.0).expand([2]))
    theta = ppl.sample("theta", dist.Beta(5.0, 5.0))
    weights = dist.CategoricalProbs(jnp.stack([theta, 1.0 - theta]))
    ppl.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, sigma)).expand([n]))


@ppl.program
def diamonds(centred):
    """`centred` holds the covariates less their means, `[n, 24]`."""
    b = ppl.sample("b", dist.Normal(0.0, 1.0).expand(centred.shape[1:]))
    intercept = ppl.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = ppl.sample("sigma", dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 10.0)))
    ppl.sample("y", dist.Normal(intercept + centred @ b, sigma))


@ppl.program
def wells(covariates):
    """`covariates` is `[n, 3]`: distance, arsenic, education."""
    alpha = ppl.sample("alpha", flat())
    beta = ppl.sample("beta", flat(3))
    ppl.sample("y", dist.Bernoulli(logits=alpha + covariates @ beta))


@ppl.program
def dogs(n_avoid, n_shock):
    """Counts of what happened in a dog's earlier trials, `[dogs, trials]`."""
    beta = ppl.sample("beta", dist.Normal(0.0, 100.0).expand([3]))
    ppl.sample("y", dist.Bernoulli(logits=beta[0] + beta[1] * n_avoid + beta[2] * n_shock))


@ppl.program
def radon(counties, county, log_uppm, floor):
    """`county` is the index of each house's county, from zero."""
    sigma_alpha = ppl.sample("sigma_alpha", dist.HalfNormal(1.0))
    sigma_y = ppl.sample("sigma_y", dist.HalfNormal(1.0))
    mu_alpha = ppl.sample("mu_alpha", dist.Normal(0.0, 10.0))
    beta = ppl.sample("beta", dist.Normal(0.0, 10.0).expand([2]))
    z = ppl.sample("z", dist.Normal(0.0, 1.0).expand([counties]))
    alpha = mu_alpha + sigma_alpha * z
    ppl.sample("y", dist.Normal(alpha[county] + log_uppm * beta[0] + floor * beta[1], sigma_y))


def _bind_mesquite(data: Data) -> ppl.Bound:
    logs = [np.log(data[name]) for name in ("diam1", "diam2", "canopy_height", "total_height", "density")]
    return logmesquite(np.stack([*logs, data["group"]], axis=1)).condition(y=np.log(data["weight"]))


def _bind_nes(data: Data) -> ppl.Bound:
    ages = [data["age_discrete"] == age for age in (2, 3, 4)]
    rest = [data[name] for name in ("educ1", "gender", "income")]
    columns = [data["real_ideo"], data["race_adj"], *ages, *rest]
    return nes(np.stack(columns, axis=1).astype(float)).condition(y=data["partyid7"])


def _bind_autoregression(data: Data) -> ppl.Bound:
    y, order = data["y"], int(data["K"])
    lags = np.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], axis=1)
    return autoregression(lags).condition(y=y[order:])


def _bind_diamonds(data: Data) -> ppl.Bound:
    covariates = data["X"][:, 1:]
    return diamonds(covariates - covariates.mean(axis=0)).condition(y=data["Y"])


def _bind_wells(data: Data) -> ppl.Bound:
    covariates = np.stack([data["dist"] / 100.0, data["arsenic"], data["educ"] / 4.0], axis=1)
    return wells(covariates).condition(y=data["switched"])


def _bind_dogs(data: Data) -> ppl.Bound:
    shocked = data["y"]
    n_shock = np.cumsum(shocked, axis=1) - shocked
    n_avoid = np.arange(shocked.shape[1]) - n_shock
    return dogs(n_avoid.astype(float), n_shock.astype(float)).condition(y=shocked)


def _bind_radon(data: Data) -> ppl.Bound:
    model = radon(int(data["J"]), data["county_idx"] - 1, data["log_uppm"], data["floor_measure"].astype(float))
    return model.condition(y=data["log_radon"])


def _noncentred(effects: str, location: str, scale: str, others: tuple[str, ...] = ()) -> dict[str, Any]:
    """Stan's `effects` are location + scale * z; the latents are `z`, the location, the scale and the `others`."""
    kept = (location, scale, *others)

    def variables(trace: Mapping[str, Any]) -> Variables:
        return {effects: trace[location] + trace[scale] * trace["z"], **{name: trace[name] for name in kept}}

    def trace(variables: Variables) -> Mapping[str, Any]:
        z = (variables[effects] - variables[location]) / variables[scale]
        return {"z": z, **{name: variables[name] for name in kept}}

    return {"variables": variables, "trace": trace}


RECIPES: dict[str, Recipe] = {
    "arK-arK": Recipe(_bind_autoregression),
    "diamonds-diamonds": Recipe(_bind_diamonds),
    "dogs-dogs": Recipe(_bind_dogs),
    "earnings-logearn_height": Recipe(lambda d: logearn_height(d["height"]).condition(y=np.log(d["earn"]))),
    "eight_schools-eight_schools_centered": Recipe(
        lambda d: eight_schools_centered(d["sigma"]).condition(y=d["y"]),
    ),
    "eight_schools-eight_schools_noncentered": Recipe(
        lambda d: eight_schools_noncentered(d["sigma"]).condition(y=d["y"]), **_noncentred("theta", "mu", "tau")
    ),
    "gp_pois_regr-gp_regr": Recipe(lambda d: gp_regression(d["x"]).condition(y=d["y"])),
    "hmm_example-hmm_example": Recipe(lambda d: hidden_markov(d["y"])),
    "kidiq-kidscore_interaction": Recipe(lambda d: kidscore_interaction(d["mom_hs"], d["mom_iq"]).condition(y=d["kid_score"])),
    "low_dim_gauss_mix-low_dim_gauss_mix": Recipe(lambda d: gaussian_mixture(len(d["y"])).condition(y=d["y"])),
    "mesquite-logmesquite": Recipe(_bind_mesquite),
    "nes2000-nes": Recipe(_bind_nes),
    "radon_mn-radon_hierarchical_intercept_noncentered": Recipe(
        _bind_radon, **_noncentred("alpha", "mu_alpha", "sigma_alpha", ("sigma_y", "beta"))
    ),
    "wells_data-wells_dae_model": Recipe(_bind_wells),
}
"""The posteriors, by the name that posteriordb gives them."""
