"""The same calls on one device and on eight; prints the largest differences. Run by test_devices.py with eight CPU devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import ppl
import ppl.distributions as dist

assert len(jax.devices()) == 8
mesh = Mesh(np.array(jax.devices()), ("shard",))
sharded, replicated = NamedSharding(mesh, PartitionSpec("shard")), NamedSharding(mesh, PartitionSpec())
key = jax.random.key(0)
x = jax.random.normal(jax.random.key(1), (64, 3))
y = x @ jnp.array([1.0, -2.0, 0.5]) + 0.1 * jax.random.normal(jax.random.key(2), (64,))


@ppl.program
def model(x, y):
    w = ppl.sample("w", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    ppl.plate("data", lambda x, y: ppl.sample("y", dist.Normal(x @ w, 0.1), obs=y), size=640)(x, y)


@ppl.program
def family(phi):
    ppl.sample("w", dist.Normal(phi["mean"], jnp.exp(phi["log_scale"])).to_event(1))


@ppl.expectation
def elbo(phi, x, y):
    return ppl.objectives.elbo(model(x, y), family(phi))


@ppl.expectation
def coins(phi):
    """Score functions with leave-one-out baselines talk across the repetitions."""
    b = ppl.sample("b", dist.Bernoulli(logits=phi["mean"]).to_event(1), estimator=ppl.estimators.ScoreFunction())
    return 1.0 * jnp.sum(b) ** 2


phi = {"mean": jnp.zeros(3), "log_scale": jnp.full(3, -2.0)}


def iwae(samples):
    return ppl.expectation(lambda phi, x, y: ppl.objectives.iwae(model(x, y), family(phi), samples))


def difference(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)) / (1 + np.abs(np.asarray(a))))) for a, b in pairs)


def shards(compiled_output):
    return len(compiled_output.sharding.device_set)


def report(name, one, many):
    print(name, difference(one, many))


step = jax.jit(elbo.value_and_grad, static_argnames="samples")
one = step(key, phi, x, y, samples=64)
report("samples", one, step(key, phi, x, y, samples=ppl.Samples(64, sharding=sharded)))
many = step(key, jax.device_put(phi, replicated), jax.device_put(x, sharded), jax.device_put(y, sharded), samples=64)
assert shards(many[0]) == 8
report("minibatch", one, many)
chunked = step(key, phi, x, y, samples=ppl.Samples(64, chunk=16))
report("chunks", chunked, step(key, phi, x, y, samples=ppl.Samples(64, chunk=16, sharding=sharded)))
gradient = jax.jit(coins.grad, static_argnames="samples")
report("leave-one-out", gradient(key, phi, samples=64), gradient(key, phi, samples=ppl.Samples(64, sharding=sharded)))
bounds = [jax.jit(iwae(s).value_and_grad)(key, phi, x, y) for s in (64, ppl.Samples(64, sharding=sharded))]
report("particles", *bounds)
text = jax.jit(iwae(ppl.Samples(64, sharding=sharded)).value_and_grad).lower(key, phi, x, y).compile().as_text()
assert "all-reduce" in text, "the particles were not spread"
assert "f32[8,64]" in text or "f32[64,8]" in text, "each device holds all particles"

options = {"optimizer": optax.adam(0.01), "steps": 40, "progress": False}
alone = ppl.maximize(elbo, phi, key, x, y, samples=8, **options).params
data = jax.device_put((x, y), sharded)
report("maximize, data", alone, ppl.maximize(elbo, jax.device_put(phi, replicated), key, *data, samples=8, **options).params)
spread = ppl.Samples(8, sharding=sharded)
report("maximize, samples", alone, ppl.maximize(elbo, phi, key, x, y, samples=spread, **options).params)
