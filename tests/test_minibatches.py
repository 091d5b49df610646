"""Minibatches: in memory, shuffled inside of the compiled loop, and streamed in constant memory."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ppl
import ppl.distributions as dist
from ppl import errors

KEY = jax.random.key(0)
DATA = np.random.default_rng(0).normal(3.0, 1.0, 103).astype(np.float32)
STILL = {"optimizer": optax.sgd(0.0), "progress": False}


def test_every_epoch_is_a_new_permutation():
    """The objective reads the rows that it is given: each at most once in an epoch, in another order in the next."""

    @ppl.expectation
    def reads(x, batch, base):
        return jnp.sum(base ** batch["row"]) + 0.0 * x + 0.0 * jnp.sum(batch["y"])

    data = {"row": jnp.arange(22.0), "y": jnp.zeros((22, 3))}
    with jax.enable_x64(True):
        data = jax.tree.map(lambda a: a.astype(jnp.float64), data)
        fit = ppl.minimize(reads, 0.0, KEY, ppl.Minibatches(data, 5), 2.0, steps=4 * 300, **STILL)
        again = ppl.minimize(reads, 0.0, KEY, ppl.Minibatches(data, 5), 2.0, steps=4 * 300, steps_per_call=7, **STILL)
    np.testing.assert_array_equal(fit.history, again.history)
    masks = fit.history.astype(np.int64).reshape(300, 4)
    rows = (masks[..., None] >> np.arange(22)) & 1
    assert np.all(rows.sum(-1) == 5)
    counts = rows.sum(1)
    assert counts.max() == 1
    assert len({tuple(epoch) for epoch in masks}) == 300
    # Two rows are left out in an epoch, each row with probability 1/11: z-scores over rows.
    z = (counts.mean(0) - 10 / 11) / np.sqrt(10 / 121 / 300)
    assert np.all(np.abs(z) < 4.0)


def test_a_plate_with_its_size_is_unbiased_pyro_531_numpyro_1739():
    """The mean of the objective over all batches of an epoch is that of the whole data, and so is the optimum."""

    @ppl.program
    def model(mean, rows):
        ppl.plate("rows", lambda y: ppl.sample("y", dist.Normal(mean, 1.0), obs=y), size=100)(rows)

    objective = ppl.expectation(lambda mean, rows: model(mean, rows).log_density({}))
    batches = ppl.Minibatches(DATA[:100], 10)
    fit = ppl.maximize(objective, 0.0, KEY, batches, steps=10, **STILL)
    np.testing.assert_allclose(fit.history.mean(), objective.estimate(KEY, 0.0, DATA[:100]), rtol=1e-5)
    found = ppl.maximize(objective, 0.0, KEY, batches, optimizer=optax.sgd(2e-3), steps=3000, average=True, progress=False)
    np.testing.assert_allclose(found.params, DATA[:100].mean(), atol=0.01)


@ppl.expectation
def error(mean, batch):
    return jnp.mean((batch - mean) ** 2)


def passes(epoch):
    order = np.random.default_rng(epoch).permutation(100)
    return (DATA[rows] for rows in order.reshape(10, 10))


class Loader:
    """An iterable that can be begun again, with a length and no index."""

    def __len__(self):
        return 10

    def __iter__(self):
        return iter(DATA[:100].reshape(10, 10).astype(float))


@pytest.mark.parametrize("source", [passes, Loader(), DATA[:100].reshape(10, 10)], ids=["function", "iterable", "sequence"])
def test_a_stream_is_read_in_order_and_resumed_where_it_was(source):
    options = {"optimizer": optax.sgd(0.1), "progress": False}
    whole = ppl.minimize(error, 0.0, KEY, ppl.Stream(source), steps=37, **options)
    part = ppl.minimize(error, 0.0, KEY, ppl.Stream(source), steps=23, **options)
    rest = ppl.minimize(error, 0.0, KEY, ppl.Stream(source), steps=37, state=part.state, **options)
    np.testing.assert_array_equal(rest.history, whole.history)
    assert rest.params == whole.params
    mean, expected = np.float32(0.0), []
    for step in range(37):
        batch = list(source(step // 10) if callable(source) else source)[step % 10]
        expected.append(np.mean((batch - mean) ** 2))
        mean += 0.2 * np.mean(batch - mean)
    np.testing.assert_allclose(whole.history, expected, rtol=1e-4)


def test_streams_that_end_or_change_are_refused():
    def run(batches, steps=30, **options):
        return ppl.minimize(error, 0.0, KEY, ppl.Stream(batches), steps=steps, **STILL, **options)

    with pytest.raises(errors.DataError, match="ended after 10 batches"):
        run(passes(0))
    part = run(passes(0), steps=10)
    with pytest.raises(errors.DataError, match="cannot be begun again"):
        run(passes(0), state=part.state)
    with pytest.raises(errors.DataError, match=r"batch 2 of pass 0 is float32\[3\], and the first one was float32\[10\]"):
        run([DATA[:10], DATA[10:20], DATA[:3]])
    with pytest.raises(errors.DataError, match="batch 1 of pass 0 is int32"):
        run([DATA[:10], np.arange(10)])
    with pytest.raises(errors.DataError, match="0 batches"):
        run([])
    with pytest.raises(errors.DataError, match="got a dict"):
        run({"y": DATA})
    with pytest.raises(errors.DataError, match="no array"):
        run([["a", object()]])
    two = ppl.Minibatches(DATA, 3), ppl.Minibatches(DATA, 3)
    with pytest.raises(errors.DataError, match="only one argument"):
        ppl.minimize(error, 0.0, KEY, *two, steps=3, **STILL)
    for arrays, size in ((DATA, 104), (DATA, 0), ({"x": DATA, "y": DATA[1:]}, 3), (np.float32(1.0), 1)):
        with pytest.raises(errors.DataError):
            ppl.Minibatches(arrays, size)


STREAMED = """
import pathlib, re
import jax, jax.numpy as jnp, numpy as np, optax, ppl

error = ppl.expectation(lambda mean, batch: jnp.mean((batch - mean) ** 2))
optimizer = optax.sgd(0.1)

def train(batches):
    stream = ppl.Stream(lambda epoch: (np.full((4096, 256), i, np.float32) for i in range(batches)))
    fit = ppl.minimize(error, 0.0, jax.random.key(0), stream, optimizer=optimizer, steps=batches, progress=False)
    # getrusage would give the peak of the process that started this one, where that was higher.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text()).group(1)) / 1024

print(train(64), train(256))
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="peaks of memory are read as Linux tells them")
def test_minibatches_larger_than_memory_numpyro_869():
    """The peak of a whole process, in MB, after streaming 256 MB and then 1 GB."""
    done = subprocess.run([sys.executable, "-c", STREAMED], capture_output=True, text=True, check=True)
    first, second = map(float, done.stdout.split())
    assert second - first < 150.0
    assert second < 1000.0
