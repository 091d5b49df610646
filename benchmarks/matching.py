"""Flow matching from eight Gaussians to two moons, with independent and with optimal pairs.

Settings of Cheng & Schwing (2025): a network of three hidden layers of 128, Adam at 3e-4, 20,000 steps of 256 pairs, optimal
pairs in batches of 1,024 (each serves four steps). Judged on 10,000 new points: W2^2 between what the flow makes of the source
and the target, by an adaptive solver and by one Euler step, and the normalized path energy of Tong et al. (2024),
`|int E|v|^2 dt - W2^2(source, target)| / W2^2(source, target)`. W2^2 is that of two samples, which for two samples of the
target is not zero either: it is printed.

    python -m benchmarks.matching [--quick] [--json FILE] [--only METHOD ...]

No rival runs here; published figures stand beside ours. Compiling and training are timed apart, with the coupling in the loop.
"""

from __future__ import annotations

import functools
import statistics
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import ppl
import ppl.distributions as dist
from benchmarks.timing import arguments, print_environment, print_table, report
from ppl import objectives, transport

WIDTH, DEPTH, STEP_SIZE, STEPS, BATCH, OT_BATCH, POINTS, SEEDS = 128, 3, 3e-4, 20_000, 256, 1024, 10_000, 5
PUBLISHED = {"independent": (0.120, 6.232), "optimal": (0.050, 0.072)}


@ppl.program
def eight_gaussians():
    """Centers on a circle of radius 5, variance 0.1."""
    angle = 0.25 * jnp.pi * ppl.sample("center", dist.DiscreteUniform(0, 7))
    return 5.0 * jnp.stack([jnp.cos(angle), jnp.sin(angle)]) + ppl.sample("noise", dist.Normal(jnp.zeros(2), 0.1**0.5))


@ppl.program
def moons():
    """Two half circles with noise of 0.2, as torchcfm scales them: times 3, minus 1."""
    lower = ppl.sample("lower", dist.Bernoulli(probs=0.5))
    angle = ppl.sample("angle", dist.Uniform(0.0, jnp.pi))
    x = jnp.where(lower, 1.0 - jnp.cos(angle), jnp.cos(angle))
    y = jnp.where(lower, 0.5 - jnp.sin(angle), jnp.sin(angle))
    return 3.0 * (jnp.stack([x, y]) + ppl.sample("noise", dist.Normal(jnp.zeros(2), 0.2))) - 1.0


def batch(point: ppl.Bound, size: int) -> ppl.Bound:
    return ppl.Bound(lambda: jax.vmap(lambda _: ppl.sample("point", point))(jnp.arange(size))).detach()


def network(key: Any) -> Any:
    return eqx.nn.MLP(3, 2, WIDTH, DEPTH, jax.nn.selu, key=key)


def field(net: Any) -> Any:
    return lambda x, t: net(jnp.append(x, t))


def objective(static: Any) -> ppl.Expectation:
    @ppl.expectation
    def loss(arrays: Any, x0: Any, x1: Any) -> Any:
        net = eqx.combine(arrays, static)

        def one(x0: Any, x1: Any) -> Any:
            return objectives.matching(field(net), transport.linear(), (x0, x1), target=transport.velocity)

        return jnp.mean(ppl.plate("pairs", one)(x0, x1))

    return loss


def couplings(size: int) -> dict[str, ppl.Bound]:
    pairs = transport.independent(eight_gaussians(), moons(), size=size).detach()
    return {"independent": pairs, "optimal": transport.optimal(pairs)}


def train(coupling: ppl.Bound, size: int, steps: int, key: Any) -> Any:
    """A trained network's arrays. One draw of the coupling serves `size / BATCH` steps; everything is one compiled loop."""
    optimizer = optax.adam(STEP_SIZE)
    arrays, static = eqx.partition(network(jax.random.fold_in(key, 0)), eqx.is_inexact_array)
    served, loss = size // BATCH, objective(static)

    def round_of_steps(carry: Any, key: Any) -> Any:
        draw_key, *keys = jax.random.split(key, served + 1)
        pairs = coupling.sample(draw_key)

        def step(carry: Any, given: Any) -> Any:
            arrays, state = carry
            key, (x0, x1) = given
            grads = loss.grad(key, arrays, x0, x1)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(arrays, updates), state), None

        # Pairs come in the order of their sources, which are independent.
        parts = jax.tree.map(lambda x: jnp.reshape(x, (served, BATCH, 2)), pairs)
        return jax.lax.scan(step, carry, (jnp.stack(keys), parts))[0], None

    keys = jax.random.split(jax.random.fold_in(key, 1), steps // served)
    (arrays, _), _ = jax.lax.scan(round_of_steps, (arrays, optimizer.init(arrays)), keys)
    return arrays


@jax.jit
def w2_squared(x: Any, y: Any) -> Any:
    permutation = transport.assignment(transport.cost_matrix(x, y))
    return jnp.mean(jnp.sum((x - y[permutation]) ** 2, axis=1))


@eqx.filter_jit
def transported(net: Any, x0: Any, adaptive: bool) -> Any:
    """Where the flow takes points, and the mean of the squared speed along the way."""
    method: dict[str, Any] = {} if adaptive else {"steps": 1, "solver": _euler()}
    where = {"x": x0, "energy": jnp.zeros(len(x0))}

    def velocity(state: Any, t: Any) -> Any:
        v = jax.vmap(lambda x: field(net)(x, t))(state["x"])
        return {"x": v, "energy": jnp.sum(v**2, axis=1)}

    base = ppl.Bound(lambda: {name: ppl.sample(name, dist.Delta(value, event_dim=value.ndim)) for name, value in where.items()})
    end = transport.ode_flow(base, velocity, **method).sample(jax.random.key(0))
    return end["x"], jnp.mean(end["energy"])


def _euler() -> Any:
    import diffrax

    return diffrax.Euler()


def judge(net: Any, points: int, key: Any) -> dict[str, float]:
    x0 = batch(eight_gaussians(), points).sample(jax.random.fold_in(key, 2))
    x1, again = (batch(moons(), points).sample(jax.random.fold_in(key, i)) for i in (3, 4))
    adaptive, energy = transported(net, x0, True)
    euler, _ = transported(net, x0, False)
    least = float(w2_squared(x0, x1))
    return {
        "adaptive": float(w2_squared(adaptive, x1)),
        "one Euler step": float(w2_squared(euler, x1)),
        "path energy": abs(float(energy) - least) / least,
        "floor": float(w2_squared(again, x1)),
    }


def main() -> None:
    options = arguments(__doc__, tuple(PUBLISHED))
    print_environment()
    seeds, steps, points = (1, 400, 500) if options.quick else (SEEDS, STEPS, POINTS)
    results: dict[str, Any] = {}
    rows = []
    for name in options.only:
        size = OT_BATCH if name == "optimal" else BATCH
        start = time.perf_counter()
        run = jax.jit(functools.partial(train, couplings(size)[name], size, steps)).lower(jax.random.key(0)).compile()
        compiled = time.perf_counter()
        _, static = eqx.partition(network(jax.random.key(0)), eqx.is_inexact_array)
        nets = [jax.block_until_ready(run(jax.random.key(seed))) for seed in range(seeds)]
        seconds = (time.perf_counter() - compiled) / seeds
        scores = [judge(eqx.combine(net, static), points, jax.random.key(100 + seed)) for seed, net in enumerate(nets)]
        results[name] = {"scores": scores, "seconds": seconds, "compile": compiled - start}
        median = {key: statistics.median(score[key] for score in scores) for key in scores[0]}
        published = "{} / {}".format(*PUBLISHED[name])
        columns = ("adaptive", "one Euler step", "path energy", "floor")
        rows.append((name, *[median[column] for column in columns], published, compiled - start, seconds))
    print_table(
        f"Eight Gaussians to moons, {steps} steps; medians of {seeds} seeds",
        ("pairs", "W2^2 adaptive", "W2^2 one step", "path energy", "W2^2 of two samples", "published", "compile s", "train s"),
        rows,
    )
    report(results, options)


if __name__ == "__main__":
    main()
