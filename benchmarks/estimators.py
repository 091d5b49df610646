"""Variance times time of gradient estimators, beside NumPyro's objectives for discrete latents.

Three workloads: assignments of a Gaussian mixture (`mixture.py`), a hidden Markov chain (`hidden_markov.py`) and a variational
autoencoder with binary latents on real digits (`discrete_vae.py`). Before anything is timed, all rivals are checked to estimate
the same value and gradient. NumPyro's `TraceEnum_ELBO` needs funsor (`pip install funsor`), and the rows of Storchastic need
storchastic; without them these are left out.

    python -m benchmarks.estimators [--quick] [--json FILE] [--only mixture chain autoencoder]
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import discrete_vae, hidden_markov, mixture, storchastic_mixture
from benchmarks.timing import arguments, print_environment, print_table, race, report

COLUMNS = ("", "ELBO", "variance", "variance of discrete", "ms", "variance x ms", "relative")


def moments(function: Callable[..., Any], args: Sequence[Any], draws: int, discrete: Callable[[Any], Any]) -> dict[str, Any]:
    """Means of the value and of the gradient along 64 random directions, with standard errors, and total variances."""
    size = sum(leaf.size for leaf in jax.tree.leaves(args[0]))
    directions = jax.random.normal(jax.random.key(4), (64, size)) / np.sqrt(size)

    def numbers(key: Any) -> Any:
        value, grad = function(key, *args)
        flat = jax.flatten_util.ravel_pytree(grad)[0]
        return jnp.append(directions @ flat, value), flat, jax.flatten_util.ravel_pytree(discrete(grad))[0]

    @jax.jit
    def sums(keys: Any) -> Any:
        def add(total: Any, key: Any) -> Any:
            new = jax.tree.map(lambda x: (x, x**2), numbers(key))
            return jax.tree.map(jnp.add, total, new), None

        start = jax.tree.map(lambda x: (jnp.zeros(x.shape), jnp.zeros(x.shape)), jax.eval_shape(numbers, keys[0]))
        return jax.lax.scan(add, start, keys)[0]

    # In batches, added in double precision: variances are small differences of large numbers.
    batches = [sums(keys) for keys in jax.random.split(jax.random.key(3), (draws // 200, 200))]
    count = 200 * len(batches)
    totals = jax.tree.map(lambda *parts: np.sum([np.asarray(p, np.float64) for p in parts], axis=0) / count, *batches)
    (mean, square), (grad, grad2), (part, part2) = totals
    return {
        "value": float(mean[-1]),
        "mean": mean,
        "error": np.sqrt(np.maximum(square - mean**2, 0.0) / count),
        "variance": float(np.sum(np.maximum(grad2 - grad**2, 0.0))),
        "discrete": float(np.sum(np.maximum(part2 - part**2, 0.0))),
    }


def agree(found: Mapping[str, Mapping[str, Any]], what: str) -> None:
    """Every rival's mean value and gradient are those of the rival with the least variance."""
    best = min(found.values(), key=lambda m: m["variance"])
    for name, m in found.items():
        z = (m["mean"] - best["mean"]) / (np.hypot(m["error"], best["error"]) + 1e-5 * (1 + np.abs(best["mean"])))
        assert np.all(np.abs(z) < 5.5), f"{what}: {name} differs, |z| up to {np.abs(z).max():.1f}"


def compare(title: str, rivals: Mapping[str, Any], args: Sequence[Any], draws: int, runs: int, discrete: Any) -> Any:
    rivals = {n: f for n, f in rivals.items() if "TraceEnum" not in n or importlib.util.find_spec("funsor") is not None}
    found = {name: moments(function, args, draws, discrete) for name, function in rivals.items()}
    agree(found, title)
    times = race(rivals, (jax.random.key(1), *args), stagings=1, runs=runs)
    first = next(iter(rivals))
    product = {name: found[name]["variance"] * times[name].seconds["run"] * 1e3 for name in rivals}
    rows = [
        [
            name,
            found[name]["value"],
            found[name]["variance"],
            found[name]["discrete"],
            times[name].seconds["run"] * 1e3,
            product[name],
            product[name] / product[first] if product[first] > 1e-6 else None,
        ]
        for name in rivals
    ]
    print_table(f"{title}; relative: variance x ms over the first row's", COLUMNS, rows)
    return {name: dict(zip(COLUMNS[1:], row[1:], strict=True)) for name, row in zip(rivals, rows, strict=True)}


def mixture_table(quick: bool) -> Any:
    y = mixture.data(jax.random.key(0))
    results = compare(
        "Mixture, 200 points and 8 components",
        mixture.GRADIENTS,
        (mixture.start(y), y),
        400 if quick else 10_000,
        3 if quick else 31,
        lambda grad: grad["logits"],
    )
    if importlib.util.find_spec("storch") is None:
        print("Storchastic is not installed.\n")
        return results
    found = storchastic_mixture.measure(mixture.start(y), y, 20 if quick else 300)
    first = next(iter(results.values()))["variance x ms"]
    rows = [
        [
            f"Storchastic, {n}",
            m["value"],
            m["variance"],
            m["discrete"],
            m["ms"],
            m["variance"] * m["ms"],
            m["variance"] * m["ms"] / first,
        ]
        for n, m in found.items()
    ]
    print_table("The same in Storchastic (PyTorch, eager)", COLUMNS, rows)
    return results | {row[0]: dict(zip(COLUMNS[1:], row[1:], strict=True)) for row in rows}


def chain_table(quick: bool) -> Any:
    args = (hidden_markov.start(jax.random.key(1)), hidden_markov.data(jax.random.key(0)))
    return compare(
        "Hidden Markov chain, 50 steps and 8 states",
        hidden_markov.GRADIENTS,
        args,
        400 if quick else 10_000,
        3 if quick else 31,
        lambda grad: grad["logits"],
    )


def autoencoder_table(quick: bool) -> Any:
    args = (discrete_vae.init(jax.random.key(0)), discrete_vae.digits(8 if quick else 32))
    return compare(
        "Autoencoder with 32 binary latents, MNIST",
        discrete_vae.GRADIENTS,
        args,
        200 if quick else 2_000,
        3 if quick else 21,
        lambda grad: grad["encoder"],
    )


TABLES = {"mixture": mixture_table, "chain": chain_table, "autoencoder": autoencoder_table}


def main() -> None:
    options = arguments(__doc__, choices=tuple(TABLES))
    print_environment()
    report({name: TABLES[name](options.quick) for name in options.only}, options)


if __name__ == "__main__":
    main()
