"""Time to trace and to compile against the length of a program, and the time to import `ppl`.

The model is x_i ~ N(tanh x_{i-1}, 1) for i = 1..n and one observation of x_n; the family is x_i ~ N(phi_i + tanh x_{i-1}, 1).
Every site is a statement of its own. What is staged is the value and the gradient of the ELBO.

    python -m benchmarks.tracing [--quick] [--json FILE]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
from numpyro.infer import Trace_ELBO

import ppl
import ppl.distributions as dist
from benchmarks.timing import (
    Times,
    arguments,
    print_environment,
    print_table,
    report,
    staging_times,
    summarize,
    trace_time,
    turns,
)

OBSERVED = 1.0


@ppl.program
def model(n):
    x = 0.0
    for i in range(n):
        x = ppl.sample(f"x{i}", dist.Normal(jnp.tanh(x), 1.0))
    ppl.sample("y", dist.Normal(x, 1.0), obs=OBSERVED)


@ppl.program
def family(phi):
    x = 0.0
    for i in range(len(phi)):
        x = ppl.sample(f"x{i}", dist.Normal(phi[i] + jnp.tanh(x), 1.0))


@ppl.expectation
def elbo(phi):
    trace, log_q = ppl.simulate(family(phi))
    return model(len(phi)).log_density(trace) - log_q


def log_normal(x: Any, mean: Any) -> Any:
    return -0.5 * (x - mean) ** 2 - 0.5 * jnp.log(2 * jnp.pi)


def hand_elbo(phi: Any, key: Any) -> Any:
    noise = jax.random.normal(key, phi.shape)
    x = log_p = log_q = 0.0
    for i in range(len(phi)):
        mean = jnp.tanh(x)
        x = phi[i] + mean + noise[i]
        log_p += log_normal(x, mean)
        log_q += log_normal(x, phi[i] + mean)
    return log_p + log_normal(OBSERVED, x) - log_q


def numpyro_model(phi: Any) -> None:
    x = 0.0
    for i in range(len(phi)):
        x = numpyro.sample(f"x{i}", numpyro_dist.Normal(jnp.tanh(x), 1.0))
    numpyro.sample("y", numpyro_dist.Normal(x, 1.0), obs=OBSERVED)


def numpyro_guide(phi: Any) -> None:
    x = 0.0
    for i in range(len(phi)):
        x = numpyro.sample(f"x{i}", numpyro_dist.Normal(phi[i] + jnp.tanh(x), 1.0))


def numpyro_elbo(phi: Any, key: Any) -> Any:
    return -Trace_ELBO().loss(key, {}, numpyro_model, numpyro_guide, phi)


GRADIENTS = {
    "hand-written": lambda key, phi: jax.value_and_grad(hand_elbo)(phi, key),
    "ppl": elbo.value_and_grad,
    "NumPyro": lambda key, phi: jax.value_and_grad(numpyro_elbo)(phi, key),
}


def exponent(lengths: Sequence[int], seconds: Sequence[float]) -> float:
    """The power of the length in the time beyond that of the shortest program, by least squares on logs."""
    if len(lengths) < 3:
        return float("nan")
    beyond = np.log(np.array(seconds[1:]) - seconds[0])
    return float(np.polyfit(np.log(np.array(lengths[1:]) - lengths[0]), beyond, 1)[0])


def import_seconds(runs: int) -> dict[str, float]:
    """Median time in fresh processes of importing `ppl` after JAX and NumPyro, and of importing these."""
    program = (
        "import time; a = time.perf_counter(); import jax, numpyro; b = time.perf_counter(); import ppl; "
        "print(b - a, time.perf_counter() - b)"
    )
    lines = [subprocess.check_output([sys.executable, "-c", program], text=True) for _ in range(runs + 1)]  # one to warm up
    times = [tuple(map(float, line.split())) for line in lines[1:]]
    return {"jax and numpyro": statistics.median(t[0] for t in times), "ppl": statistics.median(t[1] for t in times)}


def compile_time(function: Callable[..., Any], args: Sequence[Any]) -> float:
    return staging_times(function, args)[1]


def measure(stage: Callable[..., float], lengths: Sequence[int], rounds: int) -> dict[int, dict[str, Times]]:
    """A race for each length; in the longest compilations XLA alone takes minutes."""
    found = {}
    for n in lengths:
        args = (jax.random.key(0), jnp.zeros(n))
        samples: dict[str, list[float]] = {name: [] for name in GRADIENTS}
        for turn in range(rounds):
            for name in turns(GRADIENTS, turn):
                samples[name].append(stage(GRADIENTS[name], args))
        found[n] = summarize({name: {"time": times} for name, times in samples.items()})
    return found


def table(title: str, found: Mapping[int, Mapping[str, Times]]) -> None:
    rows: list[list[Any]] = []
    for name in GRADIENTS:
        times = [by_name[name] for by_name in found.values()]
        power = exponent(list(found), [t.seconds["time"] for t in times])
        rows.append([name, *(f"{t.seconds['time'] * 1e3:.0f} ms ({t.ratios['time']:.2f})" for t in times), power])
    print_table(f"{title}; in brackets, ratios", ("", *(f"n = {n}" for n in found), "exponent"), rows)


def main() -> None:
    options = arguments(__doc__)
    print_environment()
    trace = measure(trace_time, (10, 30) if options.quick else (10, 30, 100, 300), 1 if options.quick else 5)
    compile_ = measure(compile_time, (10,) if options.quick else (10, 30, 100), 1)
    table("Tracing the value and gradient of an ELBO of n sites; goals: ratio 1.5, exponent 1", trace)
    table("Compiling it", compile_)
    imports = import_seconds(1 if options.quick else 7)
    print_table("Import, goal for ppl 0.3 s", ("", "seconds"), list(imports.items()))
    report({"trace": trace, "compile": compile_, "import": imports}, options)


if __name__ == "__main__":
    main()
