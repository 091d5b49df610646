"""One of several processes that fit a regression together: `python two.py ADDRESS PROCESSES INDEX FOLDER`; prints the steps at
which compiled calls ended, and the parameters.

Every process holds its part of the data; with one process, all of it. The run is taken up once from its checkpoint.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import ppl
import ppl.distributions as dist

address, processes, index = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if processes > 1:
    jax.distributed.initialize(address, processes, index)
assert jax.process_count() == processes
mesh = Mesh(np.array(jax.devices()), ("shard",))
sharded, replicated = NamedSharding(mesh, PartitionSpec("shard")), NamedSharding(mesh, PartitionSpec())

rng = np.random.default_rng(0)
x = rng.normal(size=(32, 2)).astype(np.float32)
y = (x @ np.array([1.0, -2.0]) + 0.1 * rng.normal(size=32)).astype(np.float32)
mine = slice(index * 32 // processes, (index + 1) * 32 // processes)
data = [jax.make_array_from_process_local_data(sharded, array[mine]) for array in (x, y)]


@ppl.program
def model(x, y):
    w = ppl.sample("w", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    ppl.plate("data", lambda x, y: ppl.sample("y", dist.Normal(x @ w, 0.1), obs=y))(x, y)


@ppl.program
def family(phi):
    ppl.sample("w", dist.Normal(phi["mean"], jnp.exp(phi["log_scale"])).to_event(1))


@ppl.expectation
def elbo(phi, x, y):
    return ppl.objectives.elbo(model(x, y), family(phi))


phi = {"mean": np.zeros(2, np.float32), "log_scale": np.full(2, -2.0, np.float32)}
phi = jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(replicated, leaf), phi)
samples = ppl.Samples(8, sharding=sharded)
options = {"optimizer": optax.adam(0.05), "samples": samples, "progress": False, "checkpoint": sys.argv[4]}
calls: list[int] = []
for steps in (50, 200):
    fit = ppl.maximize(
        elbo, phi, jax.random.key(0), *data, steps=steps, callback=lambda fit: calls.append(len(fit.history)), **options
    )
print(*calls)
print(*(f"{float(value):.6f}" for leaf in jax.tree.leaves(fit.params) for value in np.asarray(leaf)), f"{fit.history[-1]:.4f}")
