"""A Gaussian mixture of 200 points and 8 components, with the assignment of every point latent: rivals for one ELBO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as numpyro_dist
from numpyro.infer import TraceEnum_ELBO, TraceGraph_ELBO

import ppl
import ppl.distributions as dist
from ppl import estimators

POINTS, COMPONENTS = 200, 8


def data(key: Any) -> Any:
    """Points around centres two apart."""
    which, noise = jax.random.split(key)
    return 2.0 * jax.random.randint(which, (POINTS,), -4, 4) + jax.random.normal(noise, (POINTS,))


def start(y: Any) -> Any:
    """Parameters of a family that is moderately sure of the assignments."""
    centres = jnp.linspace(-8.0, 6.0, COMPONENTS)
    logits = -0.1 * (y[:, None] - centres) ** 2
    return {"mean": centres, "log_scale": jnp.full(COMPONENTS, -1.0), "logits": logits}


@ppl.program
def model(y: Any) -> None:
    centres = ppl.sample("centre", dist.Normal(0.0, 5.0).expand([COMPONENTS]))

    def point(y: Any) -> None:
        z = ppl.sample("z", dist.Categorical(logits=jnp.zeros(COMPONENTS)))
        ppl.sample("y", dist.Normal(centres[z], 1.0), obs=y)

    ppl.plate("points", point)(y)


@ppl.program
def family(params: Any) -> None:
    ppl.sample("centre", dist.Normal(params["mean"], jnp.exp(params["log_scale"])))
    ppl.plate("points", lambda logits: ppl.sample("z", dist.Categorical(logits=logits)))(params["logits"])


def ours(estimator: Any, samples: int | None = None) -> Callable[..., Any]:
    @ppl.expectation
    def elbo(params: Any, y: Any) -> Any:
        trace, log_q = ppl.simulate(family(params).with_estimators(z=estimator))
        return model(y).log_density(trace) - log_q

    def gradient(key: Any, params: Any, y: Any) -> Any:
        return elbo.value_and_grad(key, params, y, samples=samples)

    return gradient


def unstructured(key: Any, params: Any, y: Any) -> Any:
    """Hand-written: every score multiplies the whole cost."""
    noise_key, z_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (COMPONENTS,))

    def surrogate(params: Any) -> Any:
        centres = params["mean"] + jnp.exp(params["log_scale"]) * noise
        log_q = jax.nn.log_softmax(params["logits"])
        z = jax.random.categorical(z_key, jax.lax.stop_gradient(params["logits"]))
        score = jnp.sum(jnp.take_along_axis(log_q, z[:, None], axis=1))
        prior = jnp.sum(-0.5 * (centres / 5.0) ** 2 - jnp.log(5.0) - 0.5 * jnp.log(2 * jnp.pi)) - POINTS * jnp.log(COMPONENTS)
        likelihood = jnp.sum(-0.5 * (y - centres[z]) ** 2 - 0.5 * jnp.log(2 * jnp.pi))
        entropy = jnp.sum(0.5 * noise**2 + params["log_scale"] + 0.5 * jnp.log(2 * jnp.pi))
        cost = prior + likelihood + entropy - score
        return jnp.exp(score - jax.lax.stop_gradient(score)) * cost

    return jax.value_and_grad(surrogate)(params)


def numpyro_elbo(elbo: Any) -> Callable[..., Any]:
    enumerate_sites = {"enumerate": "parallel"} if isinstance(elbo, TraceEnum_ELBO) else {}

    def numpyro_model(params: Any, y: Any) -> None:
        with numpyro.plate("components", COMPONENTS):
            centres = numpyro.sample("centre", numpyro_dist.Normal(0.0, 5.0))
        with numpyro.plate("points", POINTS):
            z = numpyro.sample("z", numpyro_dist.Categorical(logits=jnp.zeros(COMPONENTS)))
            numpyro.sample("y", numpyro_dist.Normal(centres[z], 1.0), obs=y)

    def guide(params: Any, y: Any) -> None:
        with numpyro.plate("components", COMPONENTS):
            numpyro.sample("centre", numpyro_dist.Normal(params["mean"], jnp.exp(params["log_scale"])))
        with numpyro.plate("points", POINTS):
            numpyro.sample("z", numpyro_dist.Categorical(logits=params["logits"]), infer=enumerate_sites)

    def gradient(key: Any, params: Any, y: Any) -> Any:
        return jax.value_and_grad(lambda params: -elbo.loss(key, {}, numpyro_model, guide, params, y))(params)

    return gradient


GRADIENTS: dict[str, Callable[..., Any]] = {
    "ppl, enumerate (chosen)": ours(None),
    "ppl, score function": ours(estimators.ScoreFunction()),
    "ppl, leave-one-out, 2 samples": ours(estimators.ScoreFunction(estimators.LeaveOneOut()), samples=2),
    "NumPyro TraceEnum_ELBO": numpyro_elbo(TraceEnum_ELBO()),
    "NumPyro TraceGraph_ELBO": numpyro_elbo(TraceGraph_ELBO()),
    "hand-written, whole cost": unstructured,
}
