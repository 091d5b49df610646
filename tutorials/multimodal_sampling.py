"""Sampling a density with many modes: a pair of processes, three losses, and what each of them finds.

We have an unnormalized density and want samples of it, and its normalizing constant Z. A *forward* process pushes Gaussian
noise toward the density in a few dozen steps; a *backward* process says how a sample might have come about. Both are programs
over the same addresses, so that the log weight of a trajectory is a difference of two log densities. Its exponential has the
mean Z, however badly the processes are trained; how much it varies is what training is about.

Run it with `python tutorials/multimodal_sampling.py`. It takes some minutes on two cores (`--quick`: under a minute), prints a
table and saves a picture.
"""

from __future__ import annotations

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

import ppl
from ppl import objectives
from ppl.transport import backward_process, forward_process, gaussian, importance, states

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STEPS, BATCH, SCALE = 32, 128, 6.0


# --- The density -----------------------------------------------------------------------------------------------------
#
# Eight Gaussians on a circle and one, heavier, in the middle. The sampler sees no more than this function and its gradient.
# Since we put the constant in ourselves, we know what to find: log Z = 2.

ANGLES = 2 * np.pi * np.arange(8) / 8
CENTRES = jnp.asarray(np.r_[np.c_[7 * np.cos(ANGLES), 7 * np.sin(ANGLES)], np.zeros((1, 2))])
SHARES = jnp.array([0.1] * 8 + [0.2])
LOG_Z = 2.0


def log_rho(x):
    squares = jnp.sum((x - CENTRES) ** 2, -1)
    return LOG_Z + jax.nn.logsumexp(jnp.log(SHARES) - 0.5 * squares / 0.4 - jnp.log(2 * jnp.pi * 0.4))


# --- The pair --------------------------------------------------------------------------------------------------------
#
# Controlled Monte Carlo diffusion (Vargas et al. 2024). Between a wide Gaussian and the density lie the densities pi_t, of
# which we know the gradients. Forward takes Langevin steps along them, helped by a learned control; backward takes the same
# steps with the control turned around. Each kernel is one line. `ppl.transport.cmcd` is this pair, beside five others.


def score(x, t):
    return -(1 - t) * x / SCALE**2 + t * jax.grad(log_rho)(x)


def pair(params):
    sizes = jnp.exp(params["log_sizes"])

    def forward(x, k):
        size, t = sizes[k], k / STEPS
        return gaussian(x + size * (score(x, t) + control(params, x, t)), jnp.sqrt(2 * size))

    def backward(x, k):
        size, t = sizes[k], (k + 1) / STEPS
        return gaussian(x + size * (score(x, t) - control(params, x, t)), jnp.sqrt(2 * size))

    start = gaussian(jnp.zeros(2), SCALE)
    return forward_process(start, forward, STEPS), backward_process(log_rho, backward, STEPS, like=jnp.zeros(2))


def control(params, x, t):
    """A small network: parameters are a dict of arrays, and could be an Equinox or Flax module as well."""
    times = jnp.sin(t * jnp.arange(1, 5) * jnp.pi / 2)
    h = jax.nn.gelu(params["first"] @ jnp.concatenate([x / SCALE, times]) + params["biases"][0])
    h = jax.nn.gelu(params["second"] @ h + params["biases"][1])
    return params["last"] @ h


def initial(key, width=64):
    one, two = jax.random.split(key)
    return {
        "first": jax.random.normal(one, (width, 6)) / 6**0.5,
        "second": jax.random.normal(two, (width, width)) / width**0.5,
        "biases": jnp.zeros((2, width)),
        "last": jnp.zeros((2, width)),  # no control to begin with
        "log_sizes": jnp.log(jnp.linspace(0.4, 0.04, STEPS)),  # long steps first, fine ones at the end
        "log_z": jnp.zeros(()),  # for trajectory balance alone
    }


# --- Three losses ----------------------------------------------------------------------------------------------------
#
# With log w = log backward - log forward, the processes agree where log w does not vary; then it is log Z. Three ways to ask
# for that, of which the first follows the trajectories with its gradient, and the other two take them as they are:


@ppl.expectation
def divergence(params):
    """KL(forward || backward), up to log Z: one line of `objectives.elbo`, repeated."""

    def one(_):
        forward, backward = pair(params)
        trace, log_forward = ppl.simulate(forward)
        return log_forward - backward.log_density(trace)

    return jnp.mean(jax.vmap(one)(jnp.arange(BATCH)))


@ppl.expectation
def log_variance(params):
    forward, backward = pair(params)
    return objectives.log_variance(backward, forward, particles=BATCH)


@ppl.expectation
def trajectory_balance(params):
    """(log Z - log w)^2 / 2 with a learned log Z."""

    def one(_):
        forward, backward = pair(params)
        return objectives.trajectory_balance(backward, forward, 10 * params["log_z"])  # times 10: it learns faster

    return jnp.mean(jax.vmap(one)(jnp.arange(BATCH)))


LOSSES = {"KL": divergence, "log-variance": log_variance, "trajectory balance": trajectory_balance}


# --- Train and look --------------------------------------------------------------------------------------------------


def train(objective, key, iterations):
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(optax.cosine_decay_schedule(5e-3, iterations)))
    return ppl.minimize(objective, initial(key), key, optimizer=optimizer, steps=iterations, progress=False)


@jax.jit
def weigh(params, key):
    forward, backward = pair(params)
    return importance(backward, forward, key, 5000)


def shares(ends):
    nearest = np.argmin(((np.asarray(ends)[:, None] - np.asarray(CENTRES)) ** 2).sum(-1), axis=1)
    return np.bincount(nearest, minlength=len(CENTRES)) / len(nearest)


def picture(path, weights, found):
    """Trajectories, samples and the share of each mode."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.7), layout="constrained", width_ratios=[1, 1, 1.1])
    line = np.linspace(-11, 11, 200)
    grid = jnp.stack(jnp.meshgrid(line, line), -1)
    density = np.asarray(jnp.exp(jax.vmap(jax.vmap(log_rho))(grid) - LOG_Z))

    paths = np.asarray(states(jax.tree.map(lambda x: x[:12], weights.trace)))
    for axis in (left, middle):
        axis.contourf(line, line, density, levels=12, cmap="Greys", alpha=0.9)
        axis.set_aspect("equal")
        axis.set_xlim(-11, 11)
        axis.set_ylim(-11, 11)
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(paths)))
    for line_, colour in zip(paths, colours, strict=True):
        left.plot(*line_.T, lw=1.0, color=colour)
        left.plot(*line_[0], "o", ms=5, mfc="white", mec=colour)
        left.plot(*line_[-1], "o", ms=5, color=colour)
    left.set_title("Twelve trajectories, from noise (open) to samples (filled)", fontsize=10)
    ends = np.asarray(weights.trace["end"])[:1500]
    middle.plot(*ends.T, ".", ms=2.5, color="#D55E00", alpha=0.6)
    middle.set_title("1,500 samples of the forward process, unweighted", fontsize=10)

    width = 0.8 / len(found)
    for i, ((name, values), colour) in enumerate(zip(found.items(), ("#0072B2", "#D55E00", "#009E73"), strict=False)):
        right.bar(np.arange(9) + (i - (len(found) - 1) / 2) * width, values, width, color=colour, label=name)
    for i, share in enumerate(np.asarray(SHARES)):
        right.plot([i - 0.45, i + 0.45], [share, share], color="black", lw=1.5, label="truth" if i == 0 else None)
    right.set_xticks(range(9), [*map(str, range(1, 9)), "middle"])
    right.set_xlabel("mode")
    right.set_title("Share of the samples in each mode, by loss", fontsize=10)
    right.legend(fontsize=9, frameon=False)
    right.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("multimodal_sampling.png"), help="where the picture goes"
    )
    parser.add_argument("--quick", action="store_true", help="the first two losses, trained for a tenth of the time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    train_key, weigh_key = jax.random.split(jax.random.key(options.seed))
    losses = dict(list(LOSSES.items())[:2]) if options.quick else LOSSES

    results, found = {}, {}
    print(f"{'':20}{'ELBO':>8}{'log Z':>18}{'effective draws':>18}{'largest error of a share':>27}")
    start = {"untrained": initial(train_key)}
    fits = start | {name: train(f, train_key, 100 if options.quick else 1000).params for name, f in losses.items()}
    for name, params in fits.items():
        weights = weigh(params, weigh_key)
        found[name] = shares(weights.trace["end"])
        error = np.abs(found[name] - np.asarray(SHARES)).max()
        results[name] = {"weights": weights, "error": error}
        estimate = f"{weights.log_evidence:.3f} +- {weights.standard_error:.3f}"
        print(f"{name:20}{weights.elbo:8.3f}{estimate:>18}{weights.ess:17.1%} {error:26.3f}")
    print(f"{'exact':20}{'':8}{LOG_Z:9.3f}")
    found.pop("untrained")
    picture(options.out, results["log-variance"]["weights"], found)
    print(f"picture: {options.out}   ({time.perf_counter() - began:.0f} s)")
    return results


if __name__ == "__main__":
    main()
