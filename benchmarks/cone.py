"""The noisy cone: three implementations of two objectives, and where plain gradient ascent takes them.

x, y ~ N(0, 10); z ~ N(r, 0.1 + r / 100) with r = x^2 + y^2; z = 5 is observed. The family is mean-field. The settings
are those of Becker et al. (PLDI 2024): step size 1e-3, 5,000 steps, 64 samples a step from (0, 0, 1, 1) for the
ELBO, one from (3, 0, 1, 1) for IWAE with K = 5; reported is the mean over 5,000 fresh estimates.

    python -m benchmarks.cone [--quick] [--json FILE]
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as numpyro_dist
import optax
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO

import ppl
import ppl.distributions as dist
from benchmarks.timing import arguments, print_environment, print_table, report

Z, STEP_SIZE = 5.0, 1e-3
STARTS = {"ELBO": (0.0, 0.0, 1.0, 1.0), "IWAE": (3.0, 0.0, 1.0, 1.0)}
SAMPLES = {"ELBO": 64, "IWAE": 1}
PARTICLES = 5
PUBLISHED = {  # Becker et al. 2024
    "ELBO": {"genjax.vi": -8.08, "NumPyro": -8.08, "Pyro": -8.08},
    "IWAE": {"genjax.vi": -7.79, "NumPyro": -7.77, "Pyro": -7.75},
}


def start(objective: str) -> dict[str, jax.Array]:
    values = jnp.array(STARTS[objective])
    return {"mu": values[:2], "log_sigma": values[2:]}


# ppl


@ppl.program
def cone():
    x = ppl.sample("x", dist.Normal(0.0, 10.0))
    y = ppl.sample("y", dist.Normal(0.0, 10.0))
    r = x**2 + y**2
    ppl.sample("z", dist.Normal(r, 0.1 + r / 100.0))


@ppl.program
def mean_field(phi):
    ppl.sample("x", dist.Normal(phi["mu"][0], jnp.exp(phi["log_sigma"][0])))
    ppl.sample("y", dist.Normal(phi["mu"][1], jnp.exp(phi["log_sigma"][1])))


target = cone().condition(z=Z)


@ppl.expectation
def elbo(phi):
    trace, log_q = ppl.simulate(mean_field(phi))
    return target.log_density(trace) - log_q


@ppl.expectation
def iwae(phi):
    def log_weight(_):
        trace, log_q = ppl.simulate(mean_field(phi))
        return target.log_density(trace) - log_q

    return jax.nn.logsumexp(jax.vmap(log_weight)(jnp.arange(PARTICLES))) - jnp.log(PARTICLES)


OBJECTIVES = {"ELBO": elbo, "IWAE": iwae}


def ppl_estimate(objective: str, key: Any, phi: Any) -> Any:
    """The estimate that one step of the training uses."""
    samples = SAMPLES[objective]
    return OBJECTIVES[objective].estimate(key, phi, samples=None if samples == 1 else samples)


# Hand-written JAX


def log_normal(x: Any, mean: Any, scale: Any) -> Any:
    return -0.5 * ((x - mean) / scale) ** 2 - jnp.log(scale) - 0.5 * jnp.log(2 * jnp.pi)


def log_weights(key: Any, phi: Any, shape: tuple[int, ...]) -> Any:
    """Log of model over family for many draws. The family's density at its own draw is a function of the noise."""
    noise = jax.random.normal(key, (*shape, 2))
    latents = phi["mu"] + jnp.exp(phi["log_sigma"]) * noise
    r = jnp.sum(latents**2, -1)
    log_q = jnp.sum(-0.5 * noise**2 - phi["log_sigma"], -1) - jnp.log(2 * jnp.pi)
    return jnp.sum(log_normal(latents, 0.0, 10.0), -1) + log_normal(Z, r, 0.1 + r / 100.0) - log_q


def hand_estimate(objective: str, key: Any, phi: Any) -> Any:
    if objective == "ELBO":
        return jnp.mean(log_weights(key, phi, (SAMPLES["ELBO"],)))
    return jax.nn.logsumexp(log_weights(key, phi, (PARTICLES,))) - jnp.log(PARTICLES)


# NumPyro


def numpyro_model():
    x = numpyro.sample("x", numpyro_dist.Normal(0.0, 10.0))
    y = numpyro.sample("y", numpyro_dist.Normal(0.0, 10.0))
    r = x**2 + y**2
    numpyro.sample("z", numpyro_dist.Normal(r, 0.1 + r / 100.0), obs=Z)


def numpyro_guide(phi: Any):
    mu = numpyro.param("mu", phi["mu"])
    sigma = jnp.exp(numpyro.param("log_sigma", phi["log_sigma"]))
    numpyro.sample("x", numpyro_dist.Normal(mu[0], sigma[0]))
    numpyro.sample("y", numpyro_dist.Normal(mu[1], sigma[1]))


def numpyro_loss(objective: str) -> Any:
    return Trace_ELBO(num_particles=SAMPLES["ELBO"]) if objective == "ELBO" else RenyiELBO(alpha=0, num_particles=PARTICLES)


def numpyro_estimate(objective: str, key: Any, phi: Any) -> Any:
    return -numpyro_loss(objective).loss(key, phi, numpyro_model, functools.partial(numpyro_guide, phi))


ESTIMATES: dict[str, Callable[[str, Any, Any], Any]] = {
    "hand-written": hand_estimate,
    "ppl": ppl_estimate,
    "NumPyro": numpyro_estimate,
}


# Fits: the whole optimization in one scan


def ascend(gradient: Callable[[Any, Any], Any], phi: Any, key: Any, steps: int) -> Any:
    """Plain gradient ascent, compiled into one loop."""

    def step(phi: Any, key: Any) -> tuple[Any, Any]:
        value, grad = gradient(key, phi)
        return jax.tree.map(lambda p, g: p + STEP_SIZE * g, phi, grad), value

    return jax.lax.scan(step, phi, jax.random.split(key, steps))


def ppl_fit(objective: str, phi: Any, key: Any, steps: int) -> Any:
    samples = None if SAMPLES[objective] == 1 else SAMPLES[objective]

    def gradient(key: Any, phi: Any) -> Any:
        return OBJECTIVES[objective].value_and_grad(key, phi, samples=samples)

    return ascend(gradient, phi, key, steps)


def hand_fit(objective: str, phi: Any, key: Any, steps: int) -> Any:
    def gradient(key: Any, phi: Any) -> Any:
        return jax.value_and_grad(lambda phi: hand_estimate(objective, key, phi))(phi)

    return ascend(gradient, phi, key, steps)


def numpyro_fit(objective: str, phi: Any, key: Any, steps: int) -> Any:
    guide = functools.partial(numpyro_guide, phi)
    svi = SVI(numpyro_model, guide, numpyro.optim.SGD(STEP_SIZE), numpyro_loss(objective))

    def step(state: Any, _: Any) -> tuple[Any, Any]:
        state, loss = svi.update(state)
        return state, -loss

    state, values = jax.lax.scan(step, svi.init(key), None, length=steps)
    return svi.get_params(state), values


FITS = {"hand-written": hand_fit, "ppl": ppl_fit, "NumPyro": numpyro_fit}


def final_value(name: str, objective: str, phi: Any, key: Any, estimates: int) -> Any:
    """Mean of fresh estimates, each as in a step of the training."""
    keys = jax.random.split(key, estimates)
    return jnp.mean(jax.lax.map(lambda key: ESTIMATES[name](objective, key, phi), keys, batch_size=500))


def main() -> None:
    options = arguments(__doc__)
    print_environment()
    steps, seeds, estimates = (500, 2, 1000) if options.quick else (5000, 5, 5000)
    results: dict[str, Any] = {}
    for objective in OBJECTIVES:
        rows = []
        for name in FITS:
            fit = jax.jit(functools.partial(FITS[name], objective, steps=steps))
            evaluate = jax.jit(functools.partial(final_value, name, objective, estimates=estimates))
            values = []
            for seed in range(seeds):
                fit_key, test_key = jax.random.split(jax.random.key(seed))
                values.append(float(evaluate(fit(start(objective), fit_key)[0], test_key)))
            results[f"{objective} {name}"] = values
            rows.append((name, statistics.median(values), min(values), max(values)))
        if objective == "ELBO":
            values = [_maximize(seed, steps, estimates) for seed in range(seeds)]
            results["ELBO ppl.maximize"] = values
            rows.append(("ppl.maximize", statistics.median(values), min(values), max(values)))
        rows += [(f"{name}, published", value, None, None) for name, value in PUBLISHED[objective].items()]
        title = f"{objective}{' K=5' if objective == 'IWAE' else ''} after {steps} steps, {seeds} seeds; log p(z) = -5.323"
        print_table(title, ("", "median", "lowest", "highest"), [(n, *map(_show, v)) for n, *v in rows])
    report(results, options)


def _maximize(seed: int, steps: int, estimates: int) -> float:
    """What a user would write."""
    fit_key, test_key = jax.random.split(jax.random.key(seed))
    optimizer = optax.sgd(STEP_SIZE)
    fit = ppl.maximize(elbo, start("ELBO"), fit_key, optimizer=optimizer, steps=steps, samples=64, progress=False)
    return float(elbo.estimate(test_key, fit.params, samples=64 * estimates))


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
