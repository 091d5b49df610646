"""A small run with everything that a state holds, in processes that are killed.

Importing this makes no array: a process may fork as long as JAX has not begun its threads.
"""

import json
import os
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint  # noqa: F401

import ppl
import ppl.distributions as dist
from ppl.estimators import MovingAverage, ScoreFunction


def batches(epoch):
    rng = np.random.default_rng(epoch)
    for _ in range(7):
        yield rng.normal(3.0, 1.0, 5).astype(np.float32)


@ppl.expectation
def objective(params, batch):
    x = ppl.sample("x", dist.Normal(params["m"], jnp.exp(params["s"])))
    coin = ppl.sample("coin", dist.Bernoulli(logits=params["m"]), estimator=ScoreFunction(MovingAverage()))
    return -jnp.mean((batch - x - coin) ** 2)


def train(path=None, *, steps=60, objective=objective, data=batches, rate=0.05, **options):
    options = {"average": True, "checkpoint_every": 3, "progress": False} | options
    params, key = {"m": jnp.float32(0.0), "s": jnp.float32(0.0)}, jax.random.key(0)
    return ppl.maximize(
        objective, params, key, ppl.Stream(data), optimizer=optax.adam(rate), steps=steps, checkpoint=path, **options
    )


def kill(path, delays):
    """For each delay, begin the run anew in a child and kill it that long after some calls, more each time; print what is left.

    Calls are counted so that a fast machine does not end the run before it is killed.
    """
    for calls, delay in enumerate(delays, 2):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            os.close(read)
            try:
                train(path, callback=lambda fit, write=write: os.write(write, b".") and False)
            finally:
                os._exit(0)
        os.close(write)
        for _ in range(calls):
            os.read(read, 1)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(read)
        steps = [int(name) for name in os.listdir(path) if name.isdigit()]
        print(json.dumps({"killed": os.WIFSIGNALED(status), "step": max(steps, default=0)}), flush=True)


if __name__ == "__main__":
    kill(sys.argv[1], [float(delay) for delay in sys.argv[2:]])
