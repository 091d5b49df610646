"""A hidden Markov chain of 50 steps and 8 states with a chain for a family: an ELBO that enumeration makes exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import ppl
import ppl.distributions as dist
from ppl import estimators

STEPS, STATES = 50, 8


def data(key: Any) -> Any:
    return jnp.cumsum(0.7 * jax.random.normal(key, (STEPS,)))


def start(key: Any) -> Any:
    return {"stay": jnp.array(1.0), "logits": 0.3 * jax.random.normal(key, (STEPS, STATES, STATES))}


def _prior(params: Any) -> Any:
    return params["stay"] * jnp.eye(STATES)


@ppl.program
def model(params: Any, y: Any) -> None:
    def step(z: Any, y: Any) -> Any:
        z = ppl.sample("z", dist.Categorical(logits=_prior(params)[z]))
        ppl.sample("y", dist.Normal(1.0 * z, 1.0), obs=y)
        return z, None

    jax.lax.scan(step, 0, y)


@ppl.program
def family(params: Any) -> None:
    jax.lax.scan(lambda z, logits: (ppl.sample("z", dist.Categorical(logits=logits[z])), None), 0, params["logits"])


def ours(estimator: Any, samples: int | None = None) -> Callable[..., Any]:
    @ppl.expectation
    def elbo(params: Any, y: Any) -> Any:
        trace, log_q = ppl.simulate(family(params).with_estimators(estimator))
        return model(params, y).log_density(trace) - log_q

    def gradient(key: Any, params: Any, y: Any) -> Any:
        return elbo.value_and_grad(key, params, y, samples=samples)

    return gradient


def forward(key: Any, params: Any, y: Any) -> Any:
    """Hand-written: the marginals of the family by the forward recursion, and the expected cost of each step."""

    def elbo(params: Any) -> Any:
        log_p = jax.nn.log_softmax(_prior(params), axis=-1)

        def step(before: Any, inputs: Any) -> Any:
            logits, y = inputs
            log_q = jax.nn.log_softmax(logits, axis=-1)
            pair = before[:, None] * jnp.exp(log_q)
            emission = -0.5 * (y - jnp.arange(STATES)) ** 2 - 0.5 * jnp.log(2 * jnp.pi)
            return pair.sum(0), jnp.sum(pair * (log_p + emission - log_q))

        return jax.lax.scan(step, jnp.eye(STATES)[0], (params["logits"], y))[1].sum()

    return jax.value_and_grad(elbo)(params)


GRADIENTS: dict[str, Callable[..., Any]] = {
    "hand-written forward recursion": forward,
    "ppl, enumerate (chosen)": ours(estimators.Enumerate()),
    "ppl, score function": ours(estimators.ScoreFunction()),
    "ppl, leave-one-out, 2 samples": ours(estimators.ScoreFunction(estimators.LeaveOneOut()), samples=2),
}
