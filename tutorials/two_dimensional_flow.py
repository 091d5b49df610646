"""A flow between two clouds of points, trained by matching, then scored as a density.

Points of eight Gaussians are to be carried to two moons. A coupling says which points belong together, a path how they move
between, and a network is regressed on the velocity of the path. Three trainings differ in one line each: independent pairs,
optimal pairs, and pairs drawn from the first flow itself (rectified flow). The last part asks what a flow trained by regression
has never been asked: its density, as a program.

Run it with `python tutorials/two_dimensional_flow.py` (a few minutes on two cores; `--quick` for a look). It prints how far the
carried points are from the moons, with twenty steps and with one, and saves a picture.
"""

from __future__ import annotations

import argparse
import pathlib

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

import ppl
import ppl.distributions as dist
from ppl import objectives, transport

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BATCH = 128


# --- Source and target -------------------------------------------------------------------------------------------------
#
# The source has a density, as a program at one address; the target is just points.

CENTERS = 3.0 * jnp.stack([jnp.cos(jnp.arange(8) * jnp.pi / 4), jnp.sin(jnp.arange(8) * jnp.pi / 4)], -1)
SOURCE = dist.MixtureSameFamily(dist.Categorical(logits=jnp.zeros(8)), dist.MultivariateNormal(CENTERS, 0.06 * jnp.eye(2)))


def two_moons(count=4000):
    rng = np.random.default_rng(0)
    angle, lower = np.pi * rng.random(count), rng.random(count) < 0.5
    arc = np.stack([np.where(lower, 1 - np.cos(angle), np.cos(angle)), np.where(lower, 0.5 - np.sin(angle), np.sin(angle))], -1)
    return jnp.asarray(2.0 * arc - [1.0, 0.5] + 0.1 * rng.normal(size=(count, 2)))


# --- The network and the loss ------------------------------------------------------------------------------------------


def network(key):
    return eqx.nn.MLP(3, 2, 64, 3, jax.nn.silu, key=key)


def field(net):
    return lambda x, t: net(jnp.append(x, t))


def loss_for(coupling):
    @ppl.expectation
    def loss(net):
        x0, x1 = ppl.sample("pairs", coupling)  # a batch of them

        def one(x0, x1):
            return objectives.matching(field(net), transport.linear(), (x0, x1), target=transport.velocity)

        return jnp.mean(ppl.plate("pairs", one)(x0, x1))

    return loss


def train(coupling, steps, net):
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    return ppl.minimize(loss_for(coupling), net, jax.random.key(1), optimizer=optimizer, steps=steps, progress=False).params


# --- The flow ----------------------------------------------------------------------------------------------------------
#
# Trained or not, a field makes a program: drawn, scored, conditioned, used as a prior or as a family.


def flow(net, **options):
    return transport.ode_flow(SOURCE, field(net), **options)


@eqx.filter_jit
def carried(net, keys, one_step):
    return jax.vmap(flow(net, **({"steps": 1, "solver": diffrax.Euler()} if one_step else {"steps": 20})).sample)(keys)


@jax.jit
def w2(x, y):
    """W2^2 between two clouds of as many points, by the exact assignment."""
    return jnp.mean(jnp.sum((x - y[transport.assignment(transport.cost_matrix(x, y))]) ** 2, axis=1))


def trajectories(net, x0, steps=20):
    """Euler steps, for the picture."""

    def step(x, t):
        after = x + jax.vmap(lambda x: field(net)(x, t))(x) / steps
        return after, after

    return jnp.concatenate([x0[None], jax.lax.scan(step, x0, jnp.arange(steps) / steps)[1]])


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps only")
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("two_dimensional_flow.png"), help="where the picture goes"
    )
    options = parser.parse_args(arguments)
    steps, count = (300, 300) if options.quick else (4000, 1000)

    data = two_moons()
    pairs = transport.independent(SOURCE, transport.rows(data), size=BATCH).detach()
    start = network(jax.random.key(0))
    nets = {"independent pairs": train(pairs, steps, start)}
    nets["optimal pairs"] = train(transport.optimal(pairs), steps, start)
    nets["rectified"] = train(
        transport.pairs_of(flow(nets["independent pairs"], steps=20), BATCH), steps, nets["independent pairs"]
    )

    held_out = two_moons(4000 + count)[4000:]
    keys = jax.random.split(jax.random.key(2), count)
    result = {}
    print(f"W2^2 to {count} held-out points   20 steps   one Euler step")
    for name, net in nets.items():
        score = result[name] = [float(w2(carried(net, keys, one_step), held_out)) for one_step in (False, True)]
        print(f"{name:28s}{score[0]:13.3f}{score[1]:17.3f}")
    log_density = jax.jit(jax.vmap(flow(nets["optimal pairs"], steps=20).log_density))
    result["log density"] = float(jnp.mean(log_density(held_out)))
    print(f"mean log density of held-out points under the flow of optimal pairs: {result['log density']:.2f} nats")

    axis = np.linspace(-4.2, 4.2, 60 if options.quick else 160)
    grid = jnp.asarray(np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2))
    density = np.exp(np.asarray(log_density(grid))).reshape(len(axis), len(axis))
    result["total"] = float(density.sum() * (axis[1] - axis[0]) ** 2)
    print(f"integral of that density over the picture: {result['total']:.3f}")
    draw(options.out, nets, axis, density)
    print(f"picture: {options.out}")
    return result


def draw(path, nets, axis, density):
    figure, panels = plt.subplots(1, 4, figsize=(13, 3.6), sharex=True, sharey=True, layout="constrained")
    x0 = jax.vmap(SOURCE.sample)(jax.random.split(jax.random.key(3), 160))
    for panel, (name, net) in zip(panels, nets.items(), strict=False):
        lines = np.asarray(trajectories(net, x0))
        panel.plot(lines[..., 0], lines[..., 1], color="0.6", linewidth=0.5, zorder=1)
        panel.scatter(*lines[0].T, s=5, color="tab:blue", zorder=2, label="source")
        panel.scatter(*lines[-1].T, s=5, color="tab:orange", zorder=2, label="carried")
        panel.set_title(name)
    panels[0].legend(loc="lower right", fontsize=7)
    panels[3].pcolormesh(axis, axis, density, cmap="magma", shading="auto")
    panels[3].set_title("density, optimal pairs")
    for panel in panels:
        panel.set_aspect("equal")
        panel.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
