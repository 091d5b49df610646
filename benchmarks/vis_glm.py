"""A second problem of Li et al. (2024): spike trains of a network of which two neurons out of five are hidden.

A neuron's count in a bin is Poisson with the rate `sigmoid(bias + weights @ recent)`, where `recent` are the counts of the last
five bins of 50 ms, filtered with exp(-5 t). The family is such a network for the hidden neurons alone, driven by the past of
the visible ones. From 40 simulated trains of 100 bins model and family are learnt, from zero: 20 epochs of 4 batches, Adam at
1e-2. These settings are those of the paper's code, which takes 2,000 particles; here there are 50, for each of model and family
and for every method. Every seed has its own network and data.

Reported is the log likelihood of 20 other trains, in nats for a train, twice: by importance sampling from the method's
own family, as in the paper, and by a particle filter, which does not use the family and so judges the model alone.

    python -m benchmarks.vis_glm [--quick] [--json FILE] [--only METHOD ...]
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

NEURONS, VISIBLE, BINS, WIDTH, DECAY, WINDOW = 5, 3, 100, 0.05, 5.0, 5
TRAIN, TEST, BATCH, EPOCHS, STEP_SIZE, SEEDS = 40, 20, 10, 20, 1e-2, 3
PARTICLES, TEST_PARTICLES = 50, 1000
HIDDEN = NEURONS - VISIBLE

kernel = jnp.exp(-DECAY * WIDTH * jnp.arange(1, WINDOW + 1))
kernel /= WIDTH * jnp.sum(kernel)  # the last bin first


def rates(linear: Any, past: Any) -> Any:
    """Expected counts in the next bin, after the counts `past` of shape (WINDOW, neurons), the last bin first."""
    return jax.nn.sigmoid(linear["weights"] @ (kernel @ past) + linear["bias"])


def shifted(past: Any, now: Any) -> Any:
    return jnp.concatenate([now[None], past[:-1]]).astype(float)


@ppl.program
def network(theta):
    def step(past, _):
        rate = rates(theta, past)
        visible = ppl.sample("visible", dist.Poisson(rate[:VISIBLE]))
        hidden = ppl.sample("hidden", dist.Poisson(rate[VISIBLE:]))
        return shifted(past, jnp.concatenate([visible, hidden])), None

    jax.lax.scan(step, jnp.zeros((WINDOW, NEURONS)), None, length=BINS)


@ppl.program
def forward(phi, visible):
    def step(past, now):
        hidden = ppl.sample("hidden", dist.Poisson(rates(phi, past)))
        return shifted(past, jnp.concatenate([now, hidden])), None

    jax.lax.scan(step, jnp.zeros((WINDOW, NEURONS)), visible)


# What the model ascends and what the family ascends, each with the other's parameters constant.


def elbo(particles: int) -> Any:
    return lambda model, family: jnp.mean(objectives.log_weights(model, family.with_estimators(ScoreFunction()), particles))


def evidence(particles: int) -> Any:
    return lambda model, family: objectives.vis_model(model, family, particles)


def leave_one_out(particles: int) -> Any:
    return lambda model, family: -objectives.log_variance(model, family, particles) / 2


def vimco(particles: int) -> Any:
    return lambda model, family: objectives.vimco(model, family, particles)


def chi_square(particles: int) -> Any:
    return lambda model, family: -objectives.vis_family(model, family, particles)


METHODS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "VI": (elbo, elbo),
    "VI, leave-one-out": (elbo, leave_one_out),
    "IWAE (VIMCO)": (evidence, vimco),
    "VIS": (evidence, chi_square),
}


def zero(neurons: int) -> Any:
    return {"weights": jnp.zeros((neurons, NEURONS)), "bias": jnp.zeros(neurons)}


def step_objective(method: str, particles: int) -> ppl.Expectation:
    for_model, for_family = (part(particles) for part in METHODS[method])

    @ppl.expectation
    def objective(params: Any, trains: Any) -> Any:
        held = jax.lax.stop_gradient(params)

        def one(visible: Any) -> Any:
            model, held_model = (network(p["model"]).condition(visible=visible) for p in (params, held))
            family, held_family = (forward(p["family"], visible) for p in (params, held))
            return for_model(model, held_family) + for_family(held_model, family)

        return jnp.mean(jax.vmap(one)(trains))

    return objective


def fit(method: str, epochs: int, particles: int, trains: Any, key: Any) -> Any:
    objective, optimizer = step_objective(method, particles), optax.adam(STEP_SIZE)
    batches = jnp.reshape(trains, (-1, BATCH, *trains.shape[1:]))
    start = {"model": zero(NEURONS), "family": zero(HIDDEN)}

    def step(carry: Any, i: Any) -> Any:
        params, state = carry
        grads = objective.grad(jax.random.fold_in(key, i), params, batches[i % len(batches)])
        updates, state = optimizer.update(jax.tree.map(jnp.negative, grads), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (start, optimizer.init(start)), jnp.arange(epochs * len(batches)))[0][0]


@ppl.expectation
def by_importance(params: Any, visible: Any) -> Any:
    model = network(params["model"]).condition(visible=visible)
    return objectives.iwae(model, forward(params["family"], visible), TEST_PARTICLES)


def by_filter(key: Any, theta: Any, visible: Any) -> Any:
    """The log likelihood of a train by a bootstrap filter with systematic resampling."""

    def step(past: Any, now: Any) -> Any:
        visible, key = now
        rate = jax.vmap(lambda p: rates(theta, p))(past)
        log_w = jnp.sum(jax.scipy.stats.poisson.logpmf(visible, rate[:, :VISIBLE]), axis=1)
        for_draws, for_choice = jax.random.split(key)
        hidden = jax.random.poisson(for_draws, rate[:, VISIBLE:])
        seen = jnp.broadcast_to(visible, (TEST_PARTICLES, VISIBLE))
        past = jax.vmap(shifted)(past, jnp.concatenate([seen, hidden], axis=1))
        places = (jax.random.uniform(for_choice) + jnp.arange(TEST_PARTICLES)) / TEST_PARTICLES
        chosen = jnp.searchsorted(jnp.cumsum(jax.nn.softmax(log_w))[:-1], places)
        return past[chosen], objectives.log_mean_exp(log_w)

    past = jnp.zeros((TEST_PARTICLES, WINDOW, NEURONS))
    return jnp.sum(jax.lax.scan(step, past, (visible, jax.random.split(key, BINS)))[1])


@jax.jit
def held_out(params: Any, trains: Any, key: Any) -> tuple[Any, Any]:
    """Log likelihood of a train by importance sampling and by the filter: means over the trains, in nats."""
    keys = jax.random.split(key, len(trains))
    sampled = jax.lax.map(lambda x: by_importance.estimate(x[0], params, x[1]), (keys, trains))
    filtered = jax.lax.map(lambda x: by_filter(x[0], params["model"], x[1]), (keys, trains))
    return jnp.mean(sampled), jnp.mean(filtered)


@functools.partial(jax.jit, static_argnums=1)
def simulated(key: Any, trains: int) -> tuple[Any, Any]:
    """A network, and spike counts of its visible neurons: shape (trains, BINS, VISIBLE)."""
    for_weights, for_bias, for_trains = jax.random.split(key, 3)
    theta = {
        "weights": 0.1 * jax.random.normal(for_weights, (NEURONS, NEURONS)),
        "bias": NEURONS**-0.5 * jax.random.uniform(for_bias, (NEURONS,), minval=-1.0),
    }
    traces = jax.vmap(lambda key: network(theta).simulate(key)[0])(jax.random.split(for_trains, trains))
    return theta, traces["visible"]


def main() -> None:
    options = arguments(__doc__, tuple(METHODS))
    print_environment()
    seeds, epochs, particles, tests = (1, 1, 5, 2) if options.quick else (SEEDS, EPOCHS, PARTICLES, TEST)
    data, truth = [], []
    for seed in range(seeds):
        theta, trains = simulated(jax.random.key(1000 + seed), TRAIN + TEST)
        data.append((trains[:TRAIN], trains[TRAIN:][:tests]))
        hidden = jax.tree.map(lambda leaf: leaf[VISIBLE:], theta)  # the family that knows the network, but not the future
        truth.append(held_out({"model": theta, "family": hidden}, data[-1][1], jax.random.key(seed)))
    results: dict[str, Any] = {"truth": [tuple(map(float, pair)) for pair in truth]}
    rows = []
    for name in options.only[-2:] if options.quick else options.only:  # compiling one takes 5 s
        run = jax.jit(functools.partial(fit, name, epochs, particles))
        fits = [run(train, jax.random.key(seed)) for seed, (train, _) in enumerate(data)]
        results[name] = [
            tuple(map(float, held_out(params, test, jax.random.key(seed))))
            for seed, (params, (_, test)) in enumerate(zip(fits, data, strict=True))
        ]
        rows.append(_row(name, results[name], results["truth"]))
    print_table(
        f"Held-out log likelihood of a train less the true network's, in nats; medians of {seeds} seeds (lowest to highest)",
        ("", "by the family", "by the filter"),
        rows,
    )
    report(results, options)


def _row(name: str, scores: Any, truth: Any) -> tuple[str, ...]:
    """What a method has less than the true network has by the filter, by either estimate."""
    less = [[pair[i] - true[1] for pair, true in zip(scores, truth, strict=True)] for i in (0, 1)]
    return name, *(f"{statistics.median(d):.2f} ({min(d):.2f} to {max(d):.2f})" for d in less)


if __name__ == "__main__":
    main()
