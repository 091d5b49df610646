"""What the analysis says of every operation, against what a change of one element changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from ppl.transforms.influence import At, Key, Scope, flow

V, W, M, N, T = (3,), (4,), (3, 4), (4, 3), (2, 3, 4)
INDEX = "index"  # integers from 0 to 2

FUNCTIONS = {
    "add scalar": (lambda x, c: x + c, M, ()),
    "broadcast": (lambda x, y: x + y[:, None] * jnp.ones(4), M, V),
    "broadcast rows": (lambda x: jnp.broadcast_to(x, (2, 3, 4)), M),
    "broadcast of size one": (lambda x: jnp.broadcast_to(x, (3, 4)), (3, 1)),
    "where": (lambda c, x, y: jnp.where(c > 0, x, y), V, V, V),
    "where scalar": (lambda c, x, y: lax.select_n(c > 0, x, y), (), M, M),
    "clip by scalars": (lambda x, a: jnp.clip(x, a, a + 1.0), M, ()),
    "clip": (lambda x, a: jnp.clip(x, a, a + 1.0), M, M),
    "clamp": (lambda a, x, b: lax.clamp(a, x, b + 1.0), (), M, ()),
    "softplus": (jax.nn.softplus, M),
    "relu": (jax.nn.relu, M),
    "custom_jvp": (lambda x: jax.nn.silu(x).sum(1), M),
    "softmax": (lambda x: jax.nn.softmax(x, axis=0), M),
    "logsumexp": (lambda x: jax.nn.logsumexp(x, axis=1), M),
    "logaddexp": (jnp.logaddexp, M, M),
    "gamma functions": (lambda x: lax.lgamma(x + 3.0) + lax.digamma(x + 3.0) + lax.igamma(2.0, x + 3.0), V),
    "integers": (lambda i: (2.0 * i).astype(int) // 2, (INDEX, M)),
    "bits": (lambda i: i << 1 ^ 3, (INDEX, M)),
    "reshape merge": (lambda x: x.reshape(6, 4), T),
    "reshape split": (lambda x: x.reshape(3, 2, 2), M),
    "reshape other": (lambda x: x.reshape(4, 3), M),
    "reshape ones": (lambda x: x.reshape(3, 1, 4, 1), M),
    "reshape equal": (lambda x: x.reshape(4, 2, 2), (2, 2, 4)),
    "reshape inner": (lambda x: x.reshape(2, 4, 3), T),
    "ravel": (jnp.ravel, M),
    "transpose": (lambda x: x.transpose(2, 0, 1), T),
    "swapaxes square": (lambda x: x.T + x, (3, 3)),
    "squeeze": (lambda x: x[:, 0] + x.squeeze(1), (3, 1, 4)),
    "sum": (lambda x: x.sum(1), T),
    "sum of two": (lambda x: x.sum((0, 2)), T),
    "max": (lambda x: x.max(0), M),
    "prod": (lambda x: x.prod(-1), T),
    "all": (lambda x: (x > 0).all(1), M),
    "argmax": (lambda x: x.argmax(0), M),
    "argmin": (lambda x: x.argmin(1), M),
    "cumsum": (lambda x: x.cumsum(1), M),
    "cumprod": (lambda x: x.cumprod(0), M),
    "cummax": (lambda x: lax.cummax(x, 1, reverse=True), M),
    "cumlogsumexp": (lambda x: lax.cumlogsumexp(x, 0), M),
    "associative scan": (lambda x: lax.associative_scan(jnp.add, x), M),
    "sort": (lambda x: jnp.sort(x, axis=1), M),
    "argsort": (lambda x: jnp.argsort(x, axis=0), M),
    "sort two": (lambda x, y: lax.sort([x, y], dimension=0, num_keys=1)[1], M, M),
    "top_k": (lambda x: lax.top_k(x, 2)[0], M),
    "flip": (lambda x: x[:, ::-1], M),
    "roll": (lambda x: jnp.roll(x, 1, axis=0), M),
    "concatenate": (lambda x, y: jnp.concatenate([x, y], 1), M, (3, 2)),
    "stack": (lambda x, y: jnp.stack([x, y], 1), M, M),
    "slice": (lambda x: x[1:, :], M),
    "strides": (lambda x: x[:, ::2], M),
    "split": (lambda x: jnp.split(x, 2, axis=1)[1], M),
    "pad": (lambda x, c: lax.pad(x, c, ((0, 0, 0), (1, 0, 0))), M, ()),
    "pad and crop": (lambda x: jnp.pad(x[1:], ((0, 1), (0, 0))), M),
    "pad inside": (lambda x: lax.pad(x, 0.0, ((1, -1, 0), (0, 0, 1))), M),
    "dynamic slice": (lambda x, i: lax.dynamic_slice(x, (i, 0), (2, 4)), M, (INDEX, ())),
    "dynamic index": (lambda x, i: lax.dynamic_index_in_dim(x, i, 1, False), M, (INDEX, ())),
    "dynamic update": (lambda x, y, i: lax.dynamic_update_slice(x, y, (i, 0)), M, (1, 4), (INDEX, ())),
    "at set": (lambda x, y, i: x.at[i].set(y), M, W, (INDEX, ())),
    "at add": (lambda x, y, i: x.at[:, i].add(y), M, (3, 2), (INDEX, (2,))),
    "at multiply": (lambda x, y, i: x.at[i].multiply(y), M, (2, 4), (INDEX, (2,))),
    "at set, each": (lambda x, y, i: jax.vmap(lambda x, y, i: x.at[i].set(y))(x, y, i), M, V, (INDEX, V)),
    "scatter many": (lambda x, i: jnp.zeros((3, 4)).at[i, jnp.arange(4)].add(x), W, (INDEX, W)),
    "segment sum": (lambda x, i: jax.ops.segment_sum(x, i, 3), M, (INDEX, V)),
    "dot": (lambda x, y: x @ y, M, W),
    "matmul": (lambda x, y: x @ y, M, N),
    "batched matmul": (lambda x, y: x @ y, (2, 3, 4), (2, 4, 3)),
    "einsum": (lambda x, y: jnp.einsum("abc,cb->ba", x, y), T, N),
    "outer": (jnp.outer, V, W),
    "square outer": (lambda x: x[:, None] * x[None, :], V),
    "tensordot batch": (lambda x, y: lax.dot_general(x, y, (((2,), (0,)), ((1,), (1,)))), T, N),
    "convolution": (lambda x, y: lax.conv(x, y, (1,), "SAME"), (2, 3, 4), (5, 3, 2)),
    "grouped convolution": (
        lambda x, y: lax.conv_general_dilated(x, y, (1,), "SAME", batch_group_count=2),
        (2, 3, 4),
        (4, 3, 2),
    ),
    "channels last": (
        lambda x, y: lax.conv_general_dilated(x, y, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")),
        (2, 4, 3),
        (2, 3, 5),
    ),
    "pooling": (lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2), (1, 2), "VALID"), M),
    "take rows": (lambda x, i: x[i], M, (INDEX, (2,))),
    "take columns": (lambda x, i: x[:, i], M, (INDEX, (2, 2))),
    "take table": (lambda i: jnp.arange(3.0)[i], (INDEX, M)),
    "take pairs": (lambda x, i, j: x[i, j], M, (INDEX, (2,)), (INDEX, (2,))),
    "take along": (lambda x, i: jnp.take_along_axis(x, i, 1), M, (INDEX, (3, 2))),
    "take along, wide": (lambda x, i: jnp.take_along_axis(x, i, 0), M, (INDEX, (2, 4))),
    "take each": (lambda x, i: jax.vmap(lambda x, i: x[i])(x, i), M, (INDEX, V)),
    "take each row": (lambda x, i: jax.vmap(lambda x, i: x[i], (1, 0))(x, i), (3, 2, 4), (INDEX, (2,))),
    "take each of each": (lambda x, i: jax.vmap(jax.vmap(lambda x, i: x[i]))(x, i), T, (INDEX, (2, 3))),
    "take shared": (lambda x, i: jax.vmap(lambda i: x[i])(i), M, (INDEX, V)),
    "take from the middle": (lambda x, i: x[:, i, :], T, (INDEX, (5,))),
    "one hot": (lambda i: jax.nn.one_hot(i, 3), (INDEX, W)),
    "log prob by index": (lambda x, i: jnp.take_along_axis(jax.nn.log_softmax(x), i[:, None], 1)[:, 0], M, (INDEX, V)),
    "at add, windows of each": (
        lambda x, y, i: jax.vmap(lambda x, y, i: x.at[i].add(y))(x, y, i),
        T,
        (2, 2, 4),
        (INDEX, (2, 2)),
    ),
    "at set, each column": (lambda x, y, i: jax.vmap(lambda x, y, i: x.at[i].set(y), (1, 0, 0), 1)(x, y, i), M, W, (INDEX, W)),
    "at max, each": (lambda x, y, i: jax.vmap(lambda x, y, i: x.at[i].max(y))(x, y, i), M, V, (INDEX, V)),
    "top_k columns": (lambda x: lax.top_k(x.T, 2)[1], M),
    "log of two": (lambda x: jnp.log2(jnp.abs(x)), M),
    "incomplete beta": (lambda x: jax.scipy.special.betainc(1.0 + x**2, 2.0, 0.3), V),
    "triangular solve, each": (lambda x, y: lax.linalg.triangular_solve(jnp.tril(x) + 3 * jnp.eye(3), y), (2, 3, 3), (2, 1, 3)),
    "cholesky": (lambda x: jnp.linalg.cholesky(x @ x.mT + 3 * jnp.eye(3)), (2, 3, 3)),
    "triangular solve": (lambda x, y: lax.linalg.triangular_solve(jnp.tril(x) + 3 * jnp.eye(3), y), (3, 3), (2, 3)),
    "solve": (lambda x, y: jnp.linalg.solve(x + 3 * jnp.eye(3), y), (3, 3), V),
    "fft": (lambda x: jnp.abs(jnp.fft.fft(x, axis=1)), M),
    "jit": (jax.jit(lambda x: jnp.tanh(x).sum(1)), M),
    "checkpoint": (jax.checkpoint(lambda x: jnp.tanh(x).sum(1)), M),
    "scan": (lambda x: lax.scan(lambda c, x: (c + x, c * x), jnp.zeros(4), x)[1], M),
    "scan, the end": (lambda x: lax.scan(lambda c, x: (c * x, x), jnp.ones(4), x)[0], M),
    "scan, reverse": (lambda x: lax.scan(lambda c, x: (c + x, c * x), jnp.zeros(4), x, reverse=True)[1], M),
    "scan, transposed carry": (lambda x, c: lax.scan(lambda c, x: (c.T + x, c), c, x)[1], V, (2, 2)),
    "scan of maps": (lambda x: lax.map(jnp.sort, x), M),
    "while": (lambda x: lax.while_loop(lambda c: c.sum() < 9.0, lambda c: c * c + 1.0, x), V),
    "fori": (lambda x: lax.fori_loop(0, 3, lambda i, c: c.at[i].add(c[0]), x), V),
    "cond": (lambda p, x: lax.cond(p > 0, jnp.sin, lambda x: x[::-1], x), (), V),
    "switch": (lambda i, x, y: lax.switch(i, [lambda x, y: x, lambda x, y: y.T, lambda x, y: x + 1], x, y), (INDEX, ()), M, N),
    "batched cond": (lambda p, x: jax.vmap(lambda p, x: lax.cond(p > 0, jnp.sin, jnp.sort, x))(p, x), V, M),
}


def operand(spec, rng):
    if len(spec) == 2 and spec[0] == INDEX:
        return rng.integers(0, 3, spec[1])
    return rng.normal(size=spec).astype(np.float32)


def changed(value, at, rng):
    other = value.copy()
    other[at] = (value[at] + rng.integers(1, 3)) % 3 if value.dtype.kind == "i" else value[at] + rng.normal() * 3
    return other


def influences(function, operands):
    """Where each operand's elements stand in each result."""
    jaxpr = jax.make_jaxpr(function)(*operands)
    ins = [{Key((str(i),), True): tuple(At(d) for d in range(np.ndim(x)))} for i, x in enumerate(operands)]
    scope = Scope(lambda *_: "transparent", {})
    outs = flow(jaxpr.jaxpr, ins, scope, {})
    return [[out.get(Key((str(i),), True)) for i in range(len(operands))] for out in outs]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_element_depends_on_more_than_is_claimed(name):
    function, *specs = FUNCTIONS[name]
    rng = np.random.default_rng(0)
    claims = influences(function, [operand(spec, rng) for spec in specs])
    run = jax.jit(jax.vmap(lambda *xs: jax.tree.leaves(function(*xs))))
    cases = []  # (base, other, operand, position)
    for _ in range(3):
        base = [operand(spec, rng) for spec in specs]
        for i, x in enumerate(base):
            for at in np.ndindex(x.shape):
                other = [changed(y, at, rng) if j == i else y for j, y in enumerate(base)]
                cases.append((base, other, i, at))
    before, after = (run(*map(np.stack, zip(*(case[k] for case in cases), strict=True))) for k in (0, 1))
    for claim, old, new in zip(claims, before, after, strict=True):
        touched = np.asarray(old) != np.asarray(new)
        assert touched.any()
        for (_, _, i, at), where in zip(cases, touched, strict=True):
            place = claim[i]
            for reached in np.argwhere(where):
                assert place is not None, f"operand {i} is said not to matter"
                for dim, there in enumerate(place):
                    if there is None:
                        continue
                    lag = (at[dim] - reached[there.index]) * (1 if there.reverse else -1)
                    assert min(lag, 2) in there.lags, f"operand {i}{list(at)} reaches {list(reached)}, against {place}"


def test_an_operation_that_is_not_known_mixes_everything():
    assert influences(*[FUNCTIONS["fft"][0], [np.ones((3, 4), np.float32)]])[0] == [(None, None)]


KEPT = {
    "broadcast": [(At(0), At(1)), (At(0),)],
    "reshape merge": [(None, None, At(1))],
    "reshape split": [(At(0), None)],
    "reshape inner": [(At(0), None, None)],
    "softmax": [(None, At(1))],
    "cumsum": [(At(0), None)],
    "sort": [(At(0), None)],
    "batched matmul": [(At(0), At(1), None), (At(0), None, At(2))],
    "einsum": [(At(1), At(0), None), (None, At(0))],
    "take each": [(At(0), None), (At(0),)],
    "take table": [(At(0), At(1))],
    "take from the middle": [(At(0), None, At(2)), (At(1),)],
    "log prob by index": [(At(0), None), (At(0),)],
    "at set, each": [(At(0), At(1)), (At(0),), (At(0),)],
    "cholesky": [(At(0), None, None)],
    "top_k": [(At(0), None)],
    "logsumexp": [(At(0), None)],
    "scan": [(At(0, lags=frozenset({0, 1, 2})), At(1))],
}


@pytest.mark.parametrize("name", KEPT)
def test_alignment_survives(name):
    function, *specs = FUNCTIONS[name]
    operands = [operand(spec, np.random.default_rng(0)) for spec in specs]
    assert influences(function, operands)[0] == KEPT[name]
