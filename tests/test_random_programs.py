"""Programs made at random: simulate then score round-trips, and transformations commute with jit and vmap."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ppl
import ppl.distributions as dist

LEAVES = {
    "normal": lambda x: dist.Normal(jnp.tanh(x), 1.0),
    "gamma": lambda x: dist.Gamma(2.0 + jnp.tanh(x), 1.5),
    "bernoulli": lambda x: dist.Bernoulli(logits=jnp.tanh(x)),
    "vector": lambda x: dist.Normal(jnp.tanh(x) + jnp.arange(2.0), 0.7).to_event(1),
    "mixture": lambda x: dist.MixtureSameFamily(
        dist.Categorical(probs=jnp.array([0.3, 0.7])), dist.Normal(jnp.tanh(x) + jnp.array([-1.0, 1.0]), 0.5)
    ),
}


def blocks(children):
    """Constructs around a list of statements."""
    body = st.lists(children, min_size=1, max_size=2)
    return st.one_of(
        st.tuples(st.just("scan"), body, st.booleans()),
        st.tuples(st.just("fori"), body),
        st.tuples(st.just("vmap"), body, st.booleans()),
        st.tuples(st.just("plate"), body),
        st.tuples(st.just("cond"), body, body, st.booleans()),
        st.tuples(st.just("switch"), body, body, body),
        st.tuples(st.sampled_from(["jit", "checkpoint", "program"]), body),
    )


leaf = st.one_of(
    st.tuples(st.just("sample"), st.sampled_from(sorted(LEAVES))),
    st.tuples(st.just("observe"), st.sampled_from(["normal", "bernoulli"])),
    st.tuples(st.sampled_from(["factor", "deterministic"])),
)
statements = st.lists(st.recursive(leaf, blocks, max_leaves=5), min_size=1, max_size=3)


class Names:
    """Addresses by place in the tree, so that every trace of a body gives the same ones."""

    def __init__(self, path=()):
        self.path, self.count = path, 0

    def next(self):
        self.count += 1
        return f"{'_'.join(map(str, self.path))}s{self.count}"

    def inner(self):
        self.count += 1
        return Names((*self.path, self.count))


def execute(block, x, names):
    """Run statements; a scalar goes in and a scalar comes out."""
    for statement in block:
        x = one(statement, x, names)
    return x


def one(statement, x, names):
    kind, *rest = statement
    if kind == "sample":
        return jnp.sum(1.0 * ppl.sample(names.next(), LEAVES[rest[0]](x)))
    if kind == "observe":
        return x + ppl.sample(names.next(), LEAVES[rest[0]](x), obs=1 if rest[0] == "bernoulli" else 0.3)
    if kind == "factor":
        ppl.factor(names.next(), -0.1 * jnp.tanh(x))
        return x
    if kind == "deterministic":
        return ppl.deterministic(names.next(), 0.5 * x)
    inner = names.inner()

    def run(block, branch=0):
        path = Names((*inner.path, f"b{branch}"))
        return lambda x: 1.0 * execute(block, x, Names(path.path))

    if kind == "scan":
        return jax.lax.scan(lambda c, u: (run(rest[0])(c + u), None), x, jnp.arange(2.0), reverse=rest[1])[0]
    if kind == "fori":
        return jax.lax.fori_loop(0, 2, lambda i, c: run(rest[0])(c + i), x)
    if kind == "vmap":
        if rest[1]:
            return jax.vmap(run(rest[0]))(x + jnp.arange(2.0)).sum()
        return jax.vmap(lambda _: run(rest[0])(x))(jnp.arange(2)).sum()
    if kind == "plate":
        return ppl.plate(names.next(), run(rest[0]), size=6)(x + jnp.arange(2.0)).mean()
    if kind == "cond":
        predicate = jnp.sin(7.0 * x) > 0 if rest[2] else True
        return jax.lax.cond(predicate, run(rest[0], 0), run(rest[1], 1), x)
    if kind == "switch":
        index = jnp.asarray(jnp.abs(5.0 * x), int) % 3
        return jax.lax.switch(index, [run(block, i) for i, block in enumerate(rest)], x)
    if kind == "jit":
        return jax.jit(run(rest[0]))(x)
    if kind == "checkpoint":
        return jax.checkpoint(run(rest[0]))(x)
    name = names.next()
    return ppl.sample(name, ppl.program(run(rest[0]))(x))


def close(a, b):
    jax.tree.map(lambda p, q: np.testing.assert_allclose(p, q, rtol=2e-4, atol=2e-4), a, b)


def run(examples):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def program_of(block):
    return ppl.program(lambda u=0.3: execute(block, jnp.float32(u), Names()))


@run(12)
@given(statements)
def test_simulate_then_score_round_trips_under_jit_and_vmap(block):
    bound = program_of(block)()
    keys = jax.random.split(jax.random.key(1), 2)

    @jax.jit
    def both(keys):
        traces, log_ps = jax.vmap(bound.simulate)(keys)
        return traces, log_ps, jax.vmap(lambda _, trace: bound.log_density(trace))(keys, traces)

    with jax.checking_leaks():
        traces, log_ps, scored = both(keys)
    close(scored, log_ps)
    one = jax.tree.map(lambda a: a[0], traces)
    close(jax.jit(bound.simulate)(keys[0]), (one, log_ps[0]))
    shapes = ppl.trace_shapes(bound).as_trace()
    assert jax.tree.map(lambda a: (a.shape, a.dtype), shapes) == jax.tree.map(lambda a: (a.shape, a.dtype), one)


@run(6)
@given(statements)
def test_jit_and_no_jit_agree(block):
    bound = program_of(block)()
    key = jax.random.key(5)
    trace, log_p = bound.simulate(key)
    close(jax.jit(bound.simulate)(key), (trace, log_p))
    close(bound.log_density(trace), log_p)


@run(12)
@given(statements)
def test_nesting_conditioning_scaling_and_wrapping_keep_the_density(block):
    """They move a latent's value about, and change neither the density nor its gradient."""
    bound = program_of(block)()
    outer = ppl.program(lambda: ppl.sample("sub", bound))()
    wrapped = ppl.program(jax.checkpoint(jax.jit(lambda u: execute(block, u, Names()))))
    kinds = {name: row.kind for name, row in ppl.trace_shapes(bound).items()}

    @jax.jit
    def all_of_them(key):
        trace, log_p = bound.simulate(key)
        latent = {name: value for name, value in trace.items() if kinds.get(name) == "sample"}
        rest = {name: value for name, value in trace.items() if name not in latent}
        same = [outer.log_density({"sub": trace}), 0.5 * bound.scale(2.0).log_density(trace)]
        if latent:
            same += [bound.condition(latent).log_density(rest), bound.substitute(latent).log_density(rest)]
        plain = jax.grad(lambda u: program_of(block)(u).log_density(trace))(0.3)
        return jnp.stack(same), log_p, jax.grad(lambda u: wrapped(u).log_density(trace))(0.3), plain

    same, log_p, gradient, plain = all_of_them(jax.random.key(2))
    close(same, jnp.full_like(same, log_p))
    close(gradient, plain)
