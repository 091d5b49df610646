"""Two small models with exact expectations, for the tests of objectives: one is enumerated, the other integrated on a grid.

Parameters are one vector: the model's first, then the family's. Each model comes with the programs and with the exact
expectation of any function of the log weights `(tuples, particles)` of independent particles.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import ppl
import ppl.distributions as dist

KEY = jax.random.key(11)
BOUND = 4.5  # |z| of every comparison; 1e-5 of a false alarm each, over some hundreds of them


def z_scores(draws, exact):
    draws = np.asarray(draws, float)
    rounding = 2e-6 * (1.0 + np.abs(exact) + np.abs(draws).max(0))  # a mean of float32 numbers is no better
    return (draws.mean(0) - np.asarray(exact, float)) / np.maximum(draws.std(0) / np.sqrt(len(draws)), rounding)


def compiled(exact, params):
    """Value and gradient of an exact expectation."""
    return jax.jit(jax.value_and_grad(exact))(params)


def draws_of(function, params, n):
    """Values and gradients of n independent estimates of an objective."""
    objective = ppl.expectation(function)
    return jax.jit(jax.vmap(lambda key: objective.value_and_grad(key, params)))(jax.random.split(KEY, n))


def draws_of_each(functions, params, n):
    """The same of several objectives, compiled together."""
    objectives = {name: ppl.expectation(function) for name, function in functions.items()}

    def estimates(key):
        return {name: objective.value_and_grad(key, params) for name, objective in objectives.items()}

    return jax.jit(jax.vmap(estimates))(jax.random.split(KEY, n))


def assert_unbiased(function, params, exact, n=20_000):
    values, grads = draws_of(function, params, n)
    value, grad = compiled(exact, params)
    assert np.abs(z_scores(values, value)).max() < BOUND
    assert np.abs(z_scores(grads, grad)).max() < BOUND


class Coins:
    """Two coupled coins, seen through noise: prior logits, a family of the same structure."""

    params = jnp.array([0.4, -0.3, 0.6, -0.8])

    @staticmethod
    @ppl.program
    def joint(params):
        a = ppl.sample("a", dist.Bernoulli(logits=params[0]))
        b = ppl.sample("b", dist.Bernoulli(probs=0.3 + 0.4 * a))
        ppl.sample("x", dist.Normal(1.5 * a - b, 1.0))

    @staticmethod
    def model(params):
        return Coins.joint(params).condition(x=0.7)

    @staticmethod
    @ppl.program
    def family(params):
        a = ppl.sample("a", dist.Bernoulli(logits=params[1]))
        ppl.sample("b", dist.Bernoulli(logits=params[2] + params[3] * a))

    @staticmethod
    def tables(params):
        """Log prior, log likelihood and log q of the four states."""
        a, b = jnp.array(list(itertools.product([0.0, 1.0], repeat=2))).T
        log_prior = dist.Bernoulli(logits=params[0]).log_prob(a) + dist.Bernoulli(probs=0.3 + 0.4 * a).log_prob(b)
        log_likelihood = dist.Normal(1.5 * a - b, 1.0).log_prob(0.7)
        log_q = dist.Bernoulli(logits=params[1]).log_prob(a) + dist.Bernoulli(logits=params[2] + params[3] * a).log_prob(b)
        return log_prior, log_likelihood, log_q


class Normals:
    """A conjugate normal: prior mean, the mean and log scale of the family."""

    params = jnp.array([0.2, 0.9, -0.1])

    @staticmethod
    @ppl.program
    def joint(params):
        z = ppl.sample("z", dist.Normal(params[0], 1.0))
        ppl.sample("x", dist.Normal(z, 0.8))

    @staticmethod
    def model(params):
        return Normals.joint(params).condition(x=1.1)

    @staticmethod
    @ppl.program
    def family(params):
        ppl.sample("z", dist.Normal(params[1], jnp.exp(params[2])))

    @staticmethod
    def tables(params, n=401):
        """On a grid of standardized noise; its spacing counts as part of q."""
        noise = jnp.linspace(-9.0, 9.0, n)
        z = params[1] + jnp.exp(params[2]) * noise
        log_q = dist.Normal(0.0, 1.0).log_prob(noise)
        log_jacobian = -params[2]
        log_prior = dist.Normal(params[0], 1.0).log_prob(z) - log_jacobian
        cell = jnp.log(noise[1] - noise[0])
        return log_prior + cell, dist.Normal(z, 0.8).log_prob(1.1), log_q + cell


def exact_mean(world, of_log_weights, particles=1):
    """`E[of_log_weights(l)]`, l of shape `(tuples, particles)`, as a function of the parameters."""

    def mean(params):
        log_prior, log_likelihood, log_q = world.tables(params)
        tuples = np.array(list(itertools.product(range(len(log_q)), repeat=particles)))
        log_w = (log_prior + log_likelihood - log_q)[tuples]
        return jnp.sum(jnp.exp(jnp.sum(log_q[tuples], 1)) * of_log_weights(log_w))

    return mean


def log_evidence(world):
    def value(params):
        log_prior, log_likelihood, _ = world.tables(params)
        return jax.nn.logsumexp(log_prior + log_likelihood)

    return value
