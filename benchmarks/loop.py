"""What `ppl.maximize` adds to a hand-written `lax.scan` with the same step, and the memory of a stream of minibatches.

Both take the same gradients of the same objective with the same optimizer, and return the parameters and a history in NumPy;
their parameters are compared before anything is timed. The calls are timed whole, with everything that `maximize` does in
Python between compiled calls, in wall-clock and in CPU seconds: the latter are disturbed less by other work on the machine.
The memory is the peak of a whole process.

    python -m benchmarks.loop [--quick] [--json FILE] [--only run memory]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ppl
from benchmarks import cone, schools, vae
from benchmarks.timing import arguments, print_environment, print_table, report, turns

Runner = Callable[[], tuple[Any, np.ndarray]]


def scan(objective: Any, params: Any, args: Any, optimizer: Any, steps: int, samples: int | None) -> Runner:
    """The loop that one would write."""

    @jax.jit
    def train(params: Any, key: Any, args: Any) -> Any:
        def step(carry: Any, i: Any) -> Any:
            params, state = carry
            step_key = jax.random.fold_in(key, i)
            value, grads = objective.value_and_grad(step_key, params, *args, samples=samples)
            updates, state = optimizer.update(jax.tree.map(jnp.negative, grads), state, params)
            return (optax.apply_updates(params, updates), state), value

        (params, _), history = jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))
        return params, history

    def run() -> tuple[Any, np.ndarray]:
        found, history = train(params, jax.random.key(0), args)
        return jax.block_until_ready(found), np.asarray(history)

    return run


def maximize(objective: Any, params: Any, args: Any, optimizer: Any, steps: int, samples: int | None, **options: Any) -> Runner:
    def run() -> tuple[Any, np.ndarray]:
        key = jax.random.key(0)
        fit = ppl.maximize(
            objective, params, key, *args, optimizer=optimizer, steps=steps, samples=samples, progress=False, **options
        )
        return jax.block_until_ready(fit.params), fit.history

    return run


def workloads(quick: bool) -> dict[str, tuple[Any, ...]]:
    """Objective, parameters, arguments, optimizer, steps and samples."""
    many = 10 if quick else 1
    eight = schools.ELBOS["mean-field"]["ppl (one site)"], schools.start("mean-field")
    images = vae.images(jax.random.key(1), 64)
    return {
        "eight schools, Adam": (*eight, (), optax.adam(0.01), 200_000 // many, None),
        "cone, 64 samples, SGD": (cone.elbo, cone.start("ELBO"), (), optax.sgd(1e-3), 20_000 // many, 64),
        "VAE, batch 64, Adam": (vae.batched_elbo, vae.init(jax.random.key(0)), (images,), optax.adam(1e-3), 300 // many, None),
    }


def run_table(quick: bool) -> dict[str, Any]:
    results, rows = {}, []
    for name, workload in workloads(quick).items():
        variants: dict[str, dict[str, Any]] = {"maximize": {}, "with average": {"average": True}}
        variants["skipping non-finite"] = {"on_nonfinite": "skip"}
        rivals = {"lax.scan": scan(*workload)} | {v: maximize(*workload, **options) for v, options in variants.items()}
        first: dict[str, float] = {}
        ends = {}
        for rival, run in rivals.items():
            begun = time.perf_counter()
            ends[rival] = run()[0]
            first[rival] = time.perf_counter() - begun
        for one, other in zip(jax.tree.leaves(ends["lax.scan"]), jax.tree.leaves(ends["maximize"]), strict=True):
            np.testing.assert_allclose(one, other, rtol=0.05, atol=0.05)
        wall: dict[str, list[float]] = {rival: [] for rival in rivals}
        cpu: dict[str, list[float]] = {rival: [] for rival in rivals}
        for turn in range(3 if quick else 15):
            for rival in turns(rivals, turn):
                begun, used = time.perf_counter(), time.process_time()
                rivals[rival]()
                wall[rival].append(time.perf_counter() - begun)
                cpu[rival].append(time.process_time() - used)
        for rival in rivals:
            found = {"seconds": statistics.median(wall[rival]), "first": first[rival]}
            for kind, times in (("ratio", wall), ("CPU ratio", cpu)):
                found[kind] = statistics.median(a / b for a, b in zip(times[rival], times["lax.scan"], strict=True))
            results[f"{name}: {rival}"] = found
            step, compiling = found["seconds"] / workload[4] * 1e6, first[rival] - found["seconds"]
            rows.append([name, rival, step, found["ratio"], found["CPU ratio"], found["seconds"], compiling])
    columns = ("workload", "", "a step, us", "ratio", "CPU ratio", "a run, s", "compiling, s")
    print_table("maximize beside a hand-written scan; goal: ratio 1.02", columns, rows)
    return results


STREAMED = """
import resource, sys
import jax, jax.numpy as jnp, numpy as np, optax, ppl

rows, batches = 4096, int(sys.argv[1])

def stream(epoch):
    rng = np.random.default_rng(epoch)
    for _ in range(batches):
        yield rng.normal(1.0, 1.0, (rows, 256)).astype(np.float32)

error = ppl.expectation(lambda mean, batch: jnp.mean((batch - mean) ** 2))
fit = ppl.minimize(error, jnp.zeros(256), jax.random.key(0), ppl.Stream(stream),
                   optimizer=optax.sgd(1.0), steps=batches, progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def memory_table(quick: bool) -> dict[str, float]:
    """Peak memory of a process by the size of the data that it streams."""
    results, rows = {}, []
    for batches in (32, 64) if quick else (64, 256, 1024):
        out = subprocess.run([sys.executable, "-c", STREAMED, str(batches)], capture_output=True, text=True, check=True)
        peak = float(out.stdout)
        results[f"{batches * 4} MB"] = peak
        rows.append([f"{batches * 4} MB", peak])
    print_table("Peak memory of a process that trains on a stream", ("data", "peak, MB"), rows)
    return results


PARTS = {"run": run_table, "memory": memory_table}


def main() -> None:
    options = arguments(__doc__, tuple(PARTS))
    print_environment()
    report({part: PARTS[part](options.quick) for part in options.only}, options)


if __name__ == "__main__":
    main()
