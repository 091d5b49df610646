"""Four implementations of one ELBO: a variational autoencoder of binary images, 784-200-20 and 10-200-784, leaky ReLU.

The encoder gives 10 means and 10 scales (by softplus); the value is summed over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as numpyro_dist
from numpyro.infer import Trace_ELBO

import ppl
import ppl.distributions as dist

PIXELS, HIDDEN, LATENTS = 784, 200, 10


def init(key: Any) -> Any:
    """Weights of both networks."""
    sizes = ((PIXELS, HIDDEN), (HIDDEN, 2 * LATENTS), (LATENTS, HIDDEN), (HIDDEN, PIXELS))
    keys = jax.random.split(key, len(sizes))
    layers = [(jax.random.normal(k, s) / jnp.sqrt(s[0]), jnp.zeros(s[1])) for k, s in zip(keys, sizes, strict=True)]
    return {"encoder": layers[:2], "decoder": layers[2:]}


def images(key: Any, batch: int) -> Any:
    return jax.random.bernoulli(key, 0.3, (batch, PIXELS)).astype(float)


def network(layers: Any, x: Any) -> Any:
    (w1, b1), (w2, b2) = layers
    return jax.nn.leaky_relu(x @ w1 + b1) @ w2 + b2


def encode(params: Any, x: Any) -> tuple[Any, Any]:
    out = network(params["encoder"], x)
    return out[..., :LATENTS], jax.nn.softplus(out[..., LATENTS:])


def decode(params: Any, z: Any) -> Any:
    return network(params["decoder"], z)


# Hand-written JAX


def hand_elbo(params: Any, key: Any, batch: Any) -> Any:
    mean, scale = encode(params, batch)
    noise = jax.random.normal(key, mean.shape)
    z = mean + scale * noise
    logits = decode(params, z)
    log_likelihood = jnp.sum(batch * logits - jnp.clip(logits, 0) - jnp.log1p(jnp.exp(-jnp.abs(logits))))
    return log_likelihood + jnp.sum(0.5 * (noise**2 - z**2) + jnp.log(scale))


# ppl, one image at a time


@ppl.program
def model(params, batch):
    def one(x):
        z = ppl.sample("z", dist.Normal(jnp.zeros(LATENTS), 1.0).to_event(1))
        ppl.sample("x", dist.Bernoulli(logits=decode(params, z)).to_event(1), obs=x)

    jax.vmap(one)(batch)


@ppl.program
def family(params, batch):
    def one(x):
        ppl.sample("z", dist.Normal(*encode(params, x)).to_event(1))

    jax.vmap(one)(batch)


@ppl.expectation
def elbo(params, batch):
    trace, log_q = ppl.simulate(family(params, batch))
    return model(params, batch).log_density(trace) - log_q


# ppl, the batch at once


@ppl.program
def batched_model(params, batch):
    z = ppl.sample("z", dist.Normal(jnp.zeros((len(batch), LATENTS)), 1.0).to_event(2))
    ppl.sample("x", dist.Bernoulli(logits=decode(params, z)).to_event(2), obs=batch)


@ppl.program
def batched_family(params, batch):
    ppl.sample("z", dist.Normal(*encode(params, batch)).to_event(2))


@ppl.expectation
def batched_elbo(params, batch):
    trace, log_q = ppl.simulate(batched_family(params, batch))
    return batched_model(params, batch).log_density(trace) - log_q


# NumPyro


def numpyro_model(params: Any, batch: Any) -> None:
    with numpyro.plate("data", len(batch)):
        z = numpyro.sample("z", numpyro_dist.Normal(jnp.zeros(LATENTS), 1.0).to_event(1))
        numpyro.sample("x", numpyro_dist.Bernoulli(logits=decode(params, z)).to_event(1), obs=batch)


def numpyro_guide(params: Any, batch: Any) -> None:
    with numpyro.plate("data", len(batch)):
        numpyro.sample("z", numpyro_dist.Normal(*encode(params, batch)).to_event(1))


def numpyro_elbo(params: Any, key: Any, batch: Any) -> Any:
    return -Trace_ELBO().loss(key, {}, numpyro_model, numpyro_guide, params, batch)


def _gradient(value: Callable[..., Any]) -> Callable[..., Any]:
    def value_and_grad(key: Any, params: Any, batch: Any) -> Any:
        return jax.value_and_grad(value)(params, key, batch)

    return value_and_grad


GRADIENTS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "hand-written": _gradient(hand_elbo),
    "ppl (vmap)": elbo.value_and_grad,
    "ppl (batched)": batched_elbo.value_and_grad,
    "NumPyro": _gradient(numpyro_elbo),
}
"""`(key, params, batch)` to the value and the gradient in `params`."""
