"""Eight schools, noncentered: three implementations of a mean-field and a full-rank ELBO, one sample a step.

The latent variables are mu, tau and z[1..8]. The full-rank family is a Gaussian over u = (mu, log tau, z), one site. The
mean-field family is written twice: with a site for each latent variable, and as one site like the full-rank one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as numpyro_dist
import optax
from numpyro.infer import SVI, Trace_ELBO

import ppl
import ppl.distributions as dist

Y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
SIZE = 2 + len(Y)
LEARNING_RATE = 0.01


def start(rank: str) -> dict[str, jax.Array]:
    if rank == "mean-field":
        return {"loc": jnp.zeros(SIZE), "log_scale": jnp.zeros(SIZE)}
    return {"loc": jnp.zeros(SIZE), "scale": jnp.zeros((SIZE, SIZE))}


def cholesky(scale: Any) -> Any:
    """Lower triangular, the diagonal given as logs."""
    return jnp.tril(scale, -1) + jnp.diag(jnp.exp(jnp.diag(scale)))


# ppl


@ppl.program
def model():
    mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
    tau = ppl.sample("tau", dist.HalfCauchy(5.0))
    z = ppl.sample("z", dist.Normal(jnp.zeros(len(Y)), 1.0).to_event(1))
    ppl.sample("y", dist.Normal(mu + tau * z, SIGMA).to_event(1), obs=Y)


@ppl.program
def mean_field(phi):
    loc, scale = phi["loc"], jnp.exp(phi["log_scale"])
    ppl.sample("mu", dist.Normal(loc[0], scale[0]))
    ppl.sample("tau", dist.LogNormal(loc[1], scale[1]))
    ppl.sample("z", dist.Normal(loc[2:], scale[2:]).to_event(1))


@ppl.program
def full_rank(phi):
    ppl.sample("u", dist.MultivariateNormal(phi["loc"], scale_tril=cholesky(phi["scale"])))


@ppl.expectation
def mean_field_elbo(phi):
    trace, log_q = ppl.simulate(mean_field(phi))
    return model().log_density(trace) - log_q


@ppl.program
def mean_field_vector(phi):
    ppl.sample("u", dist.Normal(phi["loc"], jnp.exp(phi["log_scale"])).to_event(1))


def vector_elbo(family):
    """Of a family over u = (mu, log tau, z)."""

    @ppl.expectation
    def elbo(phi):
        trace, log_q = ppl.simulate(family(phi))
        u = trace["u"]
        latents = {"mu": u[0], "tau": jnp.exp(u[1]), "z": u[2:]}
        return model().log_density(latents) + u[1] - log_q  # log |d tau / d u| = u

    return elbo


ELBOS = {
    "mean-field": {"ppl": mean_field_elbo, "ppl (one site)": vector_elbo(mean_field_vector)},
    "full-rank": {"ppl (one site)": vector_elbo(full_rank)},
}


# Hand-written JAX


def log_normal(x: Any, mean: Any, scale: Any) -> Any:
    return jnp.sum(-0.5 * ((x - mean) / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi))


def hand_estimate(rank: str, key: Any, phi: Any) -> Any:
    """The family's density at its own draw is a function of the noise."""
    noise = jax.random.normal(key, (SIZE,))
    if rank == "mean-field":
        u = phi["loc"] + jnp.exp(phi["log_scale"]) * noise
        log_scales = phi["log_scale"]
    else:
        u = phi["loc"] + cholesky(phi["scale"]) @ noise
        log_scales = jnp.diag(phi["scale"])
    log_q = jnp.sum(-0.5 * noise**2 - log_scales) - 0.5 * SIZE * jnp.log(2 * jnp.pi)
    mu, tau, z = u[0], jnp.exp(u[1]), u[2:]
    log_half_cauchy = jnp.log(2 / (jnp.pi * 5.0)) - jnp.log1p((tau / 5.0) ** 2) + u[1]
    log_prior = log_normal(mu, 0.0, 5.0) + log_half_cauchy + log_normal(z, 0.0, 1.0)
    return log_prior + log_normal(Y, mu + tau * z, SIGMA) - log_q


def hand_gradient(rank: str) -> Callable[[Any, Any], Any]:
    def gradient(key: Any, phi: Any) -> Any:
        return jax.value_and_grad(lambda phi: hand_estimate(rank, key, phi))(phi)

    return gradient


# NumPyro


def numpyro_model():
    mu = numpyro.sample("mu", numpyro_dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", numpyro_dist.HalfCauchy(5.0))
    with numpyro.plate("schools", len(Y)):
        z = numpyro.sample("z", numpyro_dist.Normal(0.0, 1.0))
        numpyro.sample("y", numpyro_dist.Normal(mu + tau * z, SIGMA), obs=Y)


def numpyro_guide(rank: str) -> Callable[[], None]:
    phi = start(rank)

    def mean_field() -> None:
        loc = numpyro.param("loc", phi["loc"])
        scale = jnp.exp(numpyro.param("log_scale", phi["log_scale"]))
        numpyro.sample("mu", numpyro_dist.Normal(loc[0], scale[0]))
        numpyro.sample("tau", numpyro_dist.LogNormal(loc[1], scale[1]))
        with numpyro.plate("schools", len(Y)):
            numpyro.sample("z", numpyro_dist.Normal(loc[2:], scale[2:]))

    def full_rank() -> None:
        """As NumPyro's AutoMultivariateNormal does it: one auxiliary site, and the latents as Deltas."""
        loc = numpyro.param("loc", phi["loc"])
        tril = cholesky(numpyro.param("scale", phi["scale"]))
        u = numpyro.sample("u", numpyro_dist.MultivariateNormal(loc, scale_tril=tril), infer={"is_auxiliary": True})
        numpyro.sample("mu", numpyro_dist.Delta(u[0]))
        numpyro.sample("tau", numpyro_dist.Delta(jnp.exp(u[1]), log_density=-u[1]))
        with numpyro.plate("schools", len(Y)):
            numpyro.sample("z", numpyro_dist.Delta(u[2:]))

    return mean_field if rank == "mean-field" else full_rank


def numpyro_gradient(rank: str) -> Callable[[Any, Any], Any]:
    guide = numpyro_guide(rank)

    def gradient(key: Any, phi: Any) -> Any:
        return jax.value_and_grad(lambda phi: -Trace_ELBO().loss(key, phi, numpyro_model, guide))(phi)

    return gradient


def gradients(rank: str) -> dict[str, Callable[[Any, Any], Any]]:
    """Of all implementations: `(key, phi)` to the value and the gradient."""
    ours = {name: elbo.value_and_grad for name, elbo in ELBOS[rank].items()}
    return {"hand-written": hand_gradient(rank), **ours, "NumPyro": numpyro_gradient(rank)}


# Fits: the whole optimization in one scan


def _adam_fit(gradient: Callable[[Any, Any], Any], phi: Any, key: Any, steps: int) -> Any:
    optimizer = optax.adam(LEARNING_RATE)

    def step(carry: Any, key: Any) -> tuple[Any, Any]:
        phi, state = carry
        value, grad = gradient(key, phi)
        updates, state = optimizer.update(jax.tree.map(jnp.negative, grad), state)
        return (optax.apply_updates(phi, updates), state), value

    (phi, _), values = jax.lax.scan(step, (phi, optimizer.init(phi)), jax.random.split(key, steps))
    return phi, values


def _numpyro_fit(rank: str, phi: Any, key: Any, steps: int) -> Any:
    svi = SVI(numpyro_model, numpyro_guide(rank), optax.adam(LEARNING_RATE), Trace_ELBO())

    def step(state: Any, _: Any) -> tuple[Any, Any]:
        state, loss = svi.update(state)
        return state, -loss

    state, values = jax.lax.scan(step, svi.init(key), None, length=steps)
    return svi.get_params(state), values


def fit(name: str, rank: str, steps: int) -> Callable[[Any, Any], Any]:
    """`(phi, key)` to the fitted parameters and the history."""
    if name == "NumPyro":
        return lambda phi, key: _numpyro_fit(rank, phi, key, steps)
    return lambda phi, key: _adam_fit(gradients(rank)[name], phi, key, steps)
