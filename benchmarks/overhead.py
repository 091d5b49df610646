"""What a program costs over hand-written JAX: time to trace, to lower and compile, and to run, beside NumPyro's.

Three workloads: the gradient of a variational autoencoder's ELBO (`vae.py`), the noisy cone (`cone.py`) and eight schools
(`schools.py`), the latter two as whole optimizations in one `lax.scan`. Before anything is timed, the implementations are
checked to estimate the same numbers.

    python -m benchmarks.overhead [--quick] [--json FILE] [--only vae cone schools]
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import cone, schools, vae
from benchmarks.timing import Times, arguments, print_environment, print_table, race, report

BATCHES = (64, 128, 256, 512, 1024)
PUBLISHED_VAE_MS = {  # Becker et al. 2024, RTX 4090: theirs, hand-coded
    64: (0.11, 0.09),
    128: (0.22, 0.16),
    256: (0.31, 0.29),
    512: (0.56, 0.54),
    1024: (1.58, 1.07),
}


def agree(rivals: Mapping[str, Callable[..., Any]], args: Sequence[Any], draws: int, what: str) -> None:
    """Assert that functions of a key and more that give a value and a gradient have the same expectations.

    Each leaf of the gradient is summed.
    """

    def numbers(function: Callable[..., Any], key: Any) -> Any:
        value, grad = function(key, *args)
        return jnp.stack([value, *[jnp.sum(leaf) for leaf in jax.tree.leaves(grad)]])

    means, errors = {}, {}
    for name, function in rivals.items():
        keys = jax.random.split(jax.random.fold_in(jax.random.key(17), len(means)), draws)
        evaluate = functools.partial(jax.lax.map, functools.partial(numbers, function), batch_size=16)
        found = np.asarray(jax.jit(evaluate)(keys), np.float64)
        means[name], errors[name] = found.mean(0), found.std(0) / np.sqrt(draws)
    first = next(iter(rivals))
    for name in rivals:
        z = (means[name] - means[first]) / (np.hypot(errors[name], errors[first]) + 1e-6 * np.abs(means[first]) + 1e-12)
        # A false alarm in one of 10,000 runs, for about 50 comparisons a run.
        assert np.all(np.abs(z) < 4.8), f"{what}: {name} and {first} differ, z = {z}"


def rows_of(times: Mapping[str, Times], workload: str) -> list[list[Any]]:
    return [
        [workload, name, t.seconds["run"] * 1e3, *(t.ratios[s] for s in ("run", "trace", "compile")), t.seconds["trace"] * 1e3]
        for name, t in times.items()
    ]


COLUMNS = ("workload", "", "run, ms", "run ratio", "trace ratio", "compile ratio", "trace, ms")


def vae_table(quick: bool) -> dict[str, Any]:
    params = vae.init(jax.random.key(0))
    results: dict[str, Any] = {}
    rows = []
    for batch in BATCHES[:1] if quick else BATCHES:
        data = vae.images(jax.random.key(1), batch)
        if batch == BATCHES[0]:
            agree(vae.GRADIENTS, (params, data), 256, "VAE")
        stagings, runs = (1, 3) if quick else (7 if batch == BATCHES[0] else 3, 41)
        times = race(vae.GRADIENTS, (jax.random.key(2), params, data), stagings=stagings, runs=runs)
        results[f"vae {batch}"] = times
        rows += rows_of(times, f"VAE, batch {batch}")
        theirs, hand = PUBLISHED_VAE_MS[batch]
        rows.append([f"VAE, batch {batch}", "genjax.vi, published (GPU)", theirs, theirs / hand, None, None, None])
    print_table("VAE ELBO gradient; goals: run 1.05, trace 1.5, compile 1.1", COLUMNS, rows)
    return results


def cone_table(quick: bool) -> dict[str, Any]:
    steps = 300 if quick else 6000
    results: dict[str, Any] = {}
    rows = []
    for objective in cone.OBJECTIVES:
        phi = cone.start(objective)
        at = {"mu": jnp.array([1.5, 1.0]), "log_sigma": jnp.array([-1.0, -0.5])}

        gradients = {n: jax.value_and_grad(functools.partial(f, objective), argnums=1) for n, f in cone.ESTIMATES.items()}
        agree(gradients, (at,), 4096, f"cone {objective}")
        fits = {n: functools.partial(fit, objective, steps=steps) for n, fit in cone.FITS.items()}
        times = race(fits, (phi, jax.random.key(0)), stagings=1 if quick else 7, runs=3 if quick else 21)
        results[f"cone {objective}"] = times
        rows += rows_of(times, f"cone, {objective}({64 if objective == 'ELBO' else 5})")
    print_table(f"Noisy cone, {steps} steps of plain gradient ascent; goals: run 1.2, trace 1.5, compile 1.1", COLUMNS, rows)
    return results


def schools_table(quick: bool) -> dict[str, Any]:
    steps = 300 if quick else 10_000
    results: dict[str, Any] = {}
    rows = []
    for rank in schools.ELBOS:
        phi = schools.start(rank)
        agree(schools.gradients(rank), (phi,), 4096, f"eight schools, {rank}")
        fits = {name: schools.fit(name, rank, steps) for name in schools.gradients(rank)}
        times = race(fits, (phi, jax.random.key(0)), stagings=1 if quick else 7, runs=3 if quick else 21)
        results[f"schools {rank}"] = times
        rows += rows_of(times, f"eight schools, {rank}")
    print_table(f"Eight schools, {steps} steps of Adam; goals: run 1.2, trace 1.5, compile 1.1", COLUMNS, rows)
    return results


TABLES = {"vae": vae_table, "cone": cone_table, "schools": schools_table}


def main() -> None:
    options = arguments(__doc__, choices=tuple(TABLES))
    print_environment()
    results: dict[str, Any] = {}
    for name in options.only:
        results.update(TABLES[name](options.quick))
    report(results, options)


if __name__ == "__main__":
    main()
