"""Samplers of unnormalized densities, trained with three losses: how well do they know the evidence, and what do they find?

Each target is sampled by a denoising diffusion sampler (DDS) or controlled Monte Carlo diffusion (CMCD), a pair of two kernels
in `ppl.transport`, trained with the reverse KL divergence (pathwise), the log-variance divergence and trajectory balance (both
on constant draws). Five seeds train at once: their parameters are stacked and their losses added.

Reported are the errors of two estimates of log Z, the ELBO and the importance-weighted one, each from 2,000 draws, the
effective sample size and the number of modes found: medians over the seeds. No setting knows the evidence: the learned log Z
of trajectory balance starts at the ELBO of the untrained pair. The published figures are from more steps and much longer
training (Sendera et al. 2024, table 1: T = 100; Vargas et al. 2023 for ionosphere; Richter and Berner 2024 for nine
Gaussians).

    python -m benchmarks.path_space [--quick] [--json FILE] [--only TARGET ...]
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ppl
from benchmarks.path_space_targets import Problem, funnel, grid_of_gaussians, ionosphere, many_well
from benchmarks.timing import arguments, print_environment, print_table, report
from ppl import objectives, transport

SEEDS, STEPS, ITERATIONS, BATCH, DRAWS = 5, 32, 1500, 128, 2000
WIDTH = 64


@dataclasses.dataclass(frozen=True)
class Settings:
    """A problem with how it is sampled; `published` by loss, as error of the ELBO (and of the weighted estimate)."""

    problem: Callable[[], Problem]
    sampler: str = "cmcd"
    step_size: float = 0.05
    clip: float = 100.0
    published: dict[str, str] = dataclasses.field(default_factory=dict)


TARGETS = {
    "gmm9": Settings(lambda: grid_of_gaussians(3, 5.0), published={"KL": "1.09 (PIS)", "log-variance": ".046 (PIS)"}),
    "gmm25": Settings(lambda: grid_of_gaussians(5, 8.0), published={"KL": "1.76 (.746)", "TB": ".171 (.004)"}),
    "funnel": Settings(funnel, "dds", published={"KL": ".424 (.206)", "TB": ".653 (.285)"}),
    "manywell": Settings(many_well, step_size=0.02, published={"KL": "3.85 (2.69)", "TB": "4.57 (.19)"}),
    "ionosphere": Settings(ionosphere, step_size=0.002, published={"KL": ".028 (DDS)"}),
}
LOSSES = ("KL", "log-variance", "TB")


def initial(key: Any, dim: int) -> dict[str, Any]:
    """A network of (x, t), whose last layer is zero, and a gate on the target's score."""
    one, two = jax.random.split(key)
    inputs = dim + 8
    return {
        "in": jax.random.normal(one, (WIDTH, inputs)) / jnp.sqrt(inputs),
        "middle": jax.random.normal(two, (WIDTH, WIDTH)) / jnp.sqrt(WIDTH),
        "biases": jnp.zeros((2, WIDTH)),
        "out": jnp.zeros((dim, WIDTH)),
        "gate": jnp.zeros((2, 8)),
        "start": jnp.zeros((2, dim)),  # mean, in units of the scale, and log scale
        "log_steps": jnp.log(jnp.linspace(2.0, 0.2, STEPS)),
        "schedule": jnp.zeros(STEPS),
    }


def field(net: dict[str, Any], score: Callable[[Any], Any], scale: float) -> Callable[[Any, Any], Any]:
    """`nn(x, t) / scale + gate(t) score(x)` (Zhang and Chen 2022, section 4)."""

    def value(x: Any, t: Any) -> Any:
        time = jnp.sin(t * jnp.arange(1, 9) * jnp.pi / 2)
        h = jax.nn.gelu(net["in"] @ jnp.concatenate([x / scale, time]) + net["biases"][0])
        h = jax.nn.gelu(net["middle"] @ h + net["biases"][1])
        gate = net["gate"][0] @ time
        return net["out"] @ h / scale + gate * score(x)

    return value


def pair(settings: Settings, problem: Problem, net: dict[str, Any]) -> transport.Pair:
    def score(x: Any) -> Any:
        return jnp.clip(jax.grad(problem.log_density)(x), -settings.clip, settings.clip)

    control = field(net, score, problem.scale)
    if settings.sampler == "dds":
        return transport.dds(problem.log_density, control, problem.dim, STEPS, problem.scale)
    start = transport.gaussian(problem.scale * net["start"][0], problem.scale * jnp.exp(net["start"][1]))
    rates = settings.step_size * jnp.exp(net["log_steps"])
    schedule = jnp.append(0.0, jnp.cumsum(jax.nn.softmax(net["schedule"])))
    return transport.cmcd(problem.log_density, control, start, STEPS, rates, schedule, score)


def loss(name: str, forward: ppl.Bound, backward: ppl.Bound, log_z: Any) -> Any:
    if name == "log-variance":
        return objectives.log_variance(backward, forward, BATCH)

    def one(_: Any) -> Any:
        if name == "KL":
            return -objectives.elbo(backward, forward)
        return objectives.trajectory_balance(backward, forward, log_z)

    return jnp.mean(jax.vmap(one)(jnp.arange(BATCH)))


def train(settings: Settings, problem: Problem, name: str, iterations: int, seeds: int) -> tuple[Any, Any]:
    keys = jax.random.split(jax.random.key(1), seeds)
    params = {"net": jax.vmap(lambda key: initial(key, problem.dim))(keys), "log_z": jnp.zeros(seeds)}

    def first_estimate(net: Any, key: Any) -> Any:
        forward, backward = pair(settings, problem, net)
        return transport.importance(backward, forward, key, BATCH).elbo

    @ppl.expectation
    def objective(params: Any) -> Any:
        def of_one_seed(net: Any, log_z: Any) -> Any:
            return loss(name, *pair(settings, problem, net), log_z)

        return jnp.sum(jax.vmap(of_one_seed)(params["net"], params["log_z"]))

    slow = optax.chain(optax.clip_by_block_rms(1.0), optax.adam(optax.cosine_decay_schedule(5e-3, iterations)))
    optimizer = optax.partition({"net": slow, "log_z": optax.adam(0.1)}, {"net": "net", "log_z": "log_z"})
    if name == "TB":  # the untrained ELBO: a baseline of the right size to begin with, from draws alone
        params["log_z"] = jax.jit(jax.vmap(first_estimate))(params["net"], keys)
    key = jax.random.key(2)
    fit = ppl.minimize(objective, params, key, optimizer=optimizer, steps=iterations, steps_per_call=iterations, progress=False)
    return fit.params, fit.history


def judge(settings: Settings, problem: Problem, params: Any) -> dict[str, Any]:
    @jax.jit
    @jax.vmap
    def weigh(net: Any, key: Any) -> Any:
        forward, backward = pair(settings, problem, net)
        weights = transport.importance(backward, forward, key, DRAWS)
        return weights.elbo, weights.log_evidence, weights.ess, weights.trace["end"]

    elbo, evidence, ess, ends = weigh(params["net"], jax.random.split(jax.random.key(3), len(params["log_z"])))
    modes = [problem.found(np.asarray(end)) for end in ends]
    return {
        "elbo": float(np.median(problem.log_z - elbo)),
        "weighted": float(np.median(np.abs(problem.log_z - evidence))),
        "ess": float(np.median(ess)),
        "modes": None if problem.modes is None else f"{int(np.median(modes))} of {len(problem.modes)}",
    }


def run(name: str, iterations: int, seeds: int) -> list[dict[str, Any]]:
    settings = TARGETS[name]
    problem = settings.problem()
    rows = []
    for kind in LOSSES:
        began = time.perf_counter()
        params, _ = train(settings, problem, kind, iterations, seeds)
        found = judge(settings, problem, params)
        seconds = time.perf_counter() - began
        rows.append(
            {"target": problem.name, "loss": kind, **found, "seconds": seconds, "published": settings.published.get(kind)}
        )
    return rows


def main() -> None:
    options = arguments(__doc__, tuple(TARGETS))
    iterations, seeds = (20, 2) if options.quick else (ITERATIONS, SEEDS)
    print_environment()
    results = {name: run(name, iterations, seeds) for name in options.only}
    rows = [[*row.values()] for part in results.values() for row in part]
    columns = ("target", "loss", "log Z - ELBO", "error, weighted", "ESS", "modes", "seconds", "published: ELBO (weighted)")
    print_table(
        f"Errors of log Z in nats, {STEPS} steps, {iterations} iterations of {BATCH}, medians of {seeds}", columns, rows
    )
    report(results, options)


if __name__ == "__main__":
    main()
