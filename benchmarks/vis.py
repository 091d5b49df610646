"""The mixture toy of Li et al. (2024): what chi-square variational importance sampling gains over the ELBO.

z is drawn from four Gaussians with means -8, -2, 2, 8 and weights .15, .15, .35, .35, and x ~ Bernoulli(logits=z) is observed,
1,000 times. Means and one weight parameter of the prior are learnt, from (-9, -1, 1, 9) and .5, with a family that has one
Gaussian for each value of x, from means (-9, 9) and scale 1: 200 epochs of 10 batches, 5,000 particles, Adam at 2e-3. These
settings are those of the paper's code. Reported is, for 1,000 test points with their true z, the mean of log p(x, z)
(complete data) and of log q(z | x) (hidden).

One thing differs: data with the same x share their particles, since their objectives are the same. The expected gradient is the
paper's, the noise is that of 5,000 particles for each x instead of for each of some fifty data. "Four sets" averages four
such estimates, which is a quarter of the noise variance and still over ten times the paper's.

    python -m benchmarks.vis [--quick] [--json FILE] [--only METHOD ...]
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import ppl
import ppl.distributions as dist
from benchmarks.timing import arguments, print_environment, print_table, report
from ppl import objectives
from ppl.estimators import ScoreFunction

POINTS, BATCH, EPOCHS, PARTICLES, STEP_SIZE = 1000, 100, 200, 5000, 2e-3
TRUTH = {"pi": 0.7, "mu": jnp.array([-8.0, -2.0, 2.0, 8.0])}
START = {
    "model": {"pi": jnp.array(0.5), "mu": jnp.array([-9.0, -1.0, 1.0, 9.0])},
    "family": {"mu": jnp.array([-9.0, 9.0]), "sigma": jnp.array([1.0, 1.0])},
}
PUBLISHED = {"VI": (-6.3, -6.3), "CHIVI": (-4.4, -2.95), "VBIS": (-4.7, -3.3), "VIS": (-3.2, -2.75)}


@ppl.program
def mixture(theta):
    weights = 0.5 * jnp.array([1 - theta["pi"], 1 - theta["pi"], theta["pi"], theta["pi"]])
    z = ppl.sample("z", dist.MixtureSameFamily(dist.Categorical(probs=weights), dist.Normal(theta["mu"], 1.0)))
    ppl.sample("x", dist.Bernoulli(logits=z))


@ppl.program
def gaussian(phi, x):
    ppl.sample("z", dist.Normal(phi["mu"][x], jnp.abs(phi["sigma"][x])))


# What the model ascends and what the family ascends, each with the other's parameters constant.


def elbo(model: ppl.Bound, family: ppl.Bound) -> Any:
    """Of many particles, by scores, as in the paper's code."""
    return jnp.mean(objectives.log_weights(model, family.with_estimators(ScoreFunction()), PARTICLES))


def evidence(model: ppl.Bound, family: ppl.Bound) -> Any:
    return objectives.vis_model(model, family, PARTICLES)


def chi_square(estimate: Callable[..., Any]) -> Callable[[ppl.Bound, ppl.Bound], Any]:
    return lambda model, family: -estimate(model, family, PARTICLES)


def between(model: ppl.Bound, family: ppl.Bound) -> Any:
    return (elbo(model, family) - objectives.vis_family(model, family, PARTICLES)) / 2


METHODS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "VI": (elbo, elbo),
    "CHIVI": (elbo, between),
    "VBIS": (evidence, elbo),
    "VIS": (evidence, chi_square(objectives.vis_family)),
    "VIS, pathwise": (evidence, chi_square(objectives.vis_family_pathwise)),
    "VIS, doubly reparameterized": (evidence, chi_square(objectives.vis_family_doubly_reparameterized)),
}

RUNS = {method: (method, EPOCHS, 1) for method in METHODS}  # the last is the number of sets of particles
RUNS |= {f"{m}, twice as long": (m, 2 * EPOCHS, 1) for m in ("VI", "VIS")}
RUNS |= {f"{m}, four sets": (m, EPOCHS, 4) for m in ("VI", "VIS")}


def step_objective(method: str, sets: int) -> ppl.Expectation:
    for_model, for_family = METHODS[method]

    @ppl.expectation
    def objective(params: Any, share: Any) -> Any:
        """`share[x]` of the batch has the value x."""
        held = jax.lax.stop_gradient(params)
        total = 0.0
        for x in (0, 1):
            model, held_model = (mixture(p["model"]).condition(x=x) for p in (params, held))
            family, held_family = (gaussian(p["family"], x) for p in (params, held))
            programs = (model, held_model, family, held_family)
            total += share[x] * jnp.mean(jax.vmap(lambda _, programs=programs: both(*programs))(jnp.arange(sets)))
        return total

    def both(model: Any, held_model: Any, family: Any, held_family: Any) -> Any:
        return for_model(model, held_family) + for_family(held_model, family)

    return objective


def fit(method: str, ones: Any, epochs: int, sets: int, key: Any) -> Any:
    objective, optimizer = step_objective(method, sets), optax.adam(STEP_SIZE)
    shares = jnp.stack([1 - ones, ones], -1)  # by batch

    def step(carry: Any, i: Any) -> Any:
        params, state = carry
        grads = objective.grad(jax.random.fold_in(key, i), params, shares[i % len(shares)])
        updates, state = optimizer.update(jax.tree.map(jnp.negative, grads), state)
        params = optax.apply_updates(params, updates)
        params["model"]["pi"] = jnp.clip(params["model"]["pi"], 0.01, 0.99)
        return (params, state), None

    return jax.lax.scan(step, (START, optimizer.init(START)), jnp.arange(epochs * len(shares)))[0][0]


def held_out(params: Any, z: Any, x: Any) -> tuple[Any, Any]:
    """Complete-data and hidden log likelihood of a test point, in nats."""
    complete = jax.vmap(lambda z, x: mixture(params["model"]).log_density({"z": z, "x": x}))(z, x)
    hidden = jax.vmap(lambda z, x: gaussian(params["family"], x).log_density({"z": z}))(z, x)
    return jnp.mean(complete), jnp.mean(hidden)


def simulated(key: Any) -> tuple[Any, Any]:
    traces = jax.vmap(lambda key: mixture(TRUTH).simulate(key)[0])(jax.random.split(key, POINTS))
    return traces["z"], traces["x"]


def main() -> None:
    options = arguments(__doc__, tuple(RUNS))
    print_environment()
    seeds = 1 if options.quick else 5
    (_, x), test = (simulated(jax.random.key(1000 + i)) for i in range(2))
    ones = jnp.mean(jnp.reshape(x, (-1, BATCH)), axis=1, dtype=float)
    results: dict[str, Any] = {}
    rows = [("truth", float(held_out({**START, "model": TRUTH}, *test)[0]), None, None, None)]
    for name in options.only:
        method, epochs, sets = RUNS[name]
        run = jax.jit(functools.partial(fit, method, ones, 2 if options.quick else epochs, sets))
        scores = [tuple(map(float, held_out(run(jax.random.key(seed)), *test))) for seed in range(seeds)]
        complete, hidden = zip(*scores, strict=True)
        results[name] = {"complete": complete, "hidden": hidden}
        spread = max(max(values) - min(values) for values in (complete, hidden))
        published = "{} / {}".format(*PUBLISHED[name]) if name in PUBLISHED else None
        rows.append((name, statistics.median(complete), statistics.median(hidden), spread, published))
    print_table(
        f"Mean log likelihood of a test point; medians of {seeds} seeds",
        ("", "complete data", "hidden", "spread between seeds", "published: complete / hidden"),
        rows,
    )
    report(results, options)


if __name__ == "__main__":
    main()
