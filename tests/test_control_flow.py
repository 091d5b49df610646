"""Sites inside every construct, in every transformation, against densities and values worked out by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl import errors

KEY = jax.random.key(0)


def normal(x, loc=0.0, scale=1.0):
    return float(np.sum(np.asarray(dist.Normal(loc, scale).log_prob(x))))


def check(bound, expected_log_density, key=KEY):
    """simulate and log_density agree with each other, under jit, and with a hand-written density of the trace."""
    trace, log_p = bound.simulate(key)
    np.testing.assert_allclose(log_p, expected_log_density(trace), rtol=1e-5)
    np.testing.assert_allclose(bound.log_density(trace), log_p, rtol=1e-5)
    jitted, log_jitted = jax.jit(bound.simulate)(key)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), trace, jitted)
    np.testing.assert_allclose(log_jitted, log_p, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(bound.log_density)(trace), log_p, rtol=1e-5)
    shapes = ppl.trace_shapes(bound).as_trace()
    assert jax.tree.map(lambda a: (a.shape, a.dtype), shapes) == jax.tree.map(lambda a: (a.shape, a.dtype), trace)
    return trace


def test_nested_jit():
    @ppl.program
    def model():
        inner = jax.jit(lambda m: ppl.sample("x", dist.Normal(m, 1.0)))
        outer = jax.jit(lambda m: inner(m) + ppl.sample("y", dist.Normal(m, 2.0)))
        return outer(1.0)

    check(model(), lambda t: normal(t["x"], 1.0) + normal(t["y"], 1.0, 2.0))


def test_one_jitted_function_at_two_addresses():
    @jax.jit
    def shared(m):
        return ppl.sample("x", dist.Normal(m, 1.0))

    @ppl.program
    def inner(m):
        return shared(m)

    @ppl.program
    def model():
        ppl.sample("b", inner(ppl.sample("a", inner(0.0))))

    check(model(), lambda t: normal(t["a"]["x"]) + normal(t["b"]["x"], t["a"]["x"]))


def test_vmap_in_axes_and_unbatched_operands():
    @ppl.program
    def model():
        def cell(m, s, fixed):
            x = ppl.sample("x", dist.Normal(m, s))
            return x + ppl.sample("free", dist.Normal(fixed, 1.0))

        jax.vmap(cell, in_axes=(0, 1, None), out_axes=0)(jnp.arange(3.0), jnp.ones((2, 3)) * 2.0, 5.0)

    with pytest.raises(errors.PPLError):  # Normal(m, s) is a vector in each lane, `x` has shape (3, 2): use sum
        ppl.log_density(model(), {"x": jnp.zeros((3, 3)), "free": jnp.zeros(3)})
    check(model(), lambda t: normal(t["x"], np.arange(3.0)[:, None], 2.0) + normal(t["free"], 5.0))


def test_nested_vmap_stacks_outermost_first():
    @ppl.program
    def model():
        def row(m):
            return jax.vmap(lambda k: ppl.sample("x", dist.Normal(m + k, 1.0)))(10.0 * jnp.arange(4.0))

        jax.vmap(row)(jnp.arange(2.0))

    means = np.arange(2.0)[:, None] + 10.0 * np.arange(4.0)
    trace = check(model(), lambda t: normal(t["x"], means))
    assert trace["x"].shape == (2, 4)
    assert np.all(np.abs(trace["x"] - means) < 5)


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_with_consts_pytree_carry_and_reverse(reverse):
    drift = jnp.array(0.5)

    @ppl.program
    def model():
        def step(carry, u):
            x = ppl.sample("x", dist.Normal(carry["x"] + drift * u, 1.0))
            return {"x": x, "n": carry["n"] + 1}, (x, carry["n"])

        return jax.lax.scan(step, {"x": 1.0, "n": 0}, jnp.arange(4.0), reverse=reverse)

    def expected(trace):
        x, total = 1.0, 0.0
        for t in range(3, -1, -1) if reverse else range(4):
            total += normal(trace["x"][t], x + 0.5 * t)
            x = trace["x"][t]
        return total

    check(model(), expected)
    final, (xs, counts) = model().sample(KEY)
    assert int(final["n"]) == 4
    assert counts.tolist() == ([3, 2, 1, 0] if reverse else [0, 1, 2, 3])
    np.testing.assert_allclose(final["x"], xs[0 if reverse else -1])


def test_nested_scans_and_vmap_outside_and_inside_of_a_scan():
    @ppl.program
    def model():
        def inner(x, _):
            return ppl.sample("x", dist.Normal(x, 1.0)), None

        def outer(x, _):
            x, _ = jax.lax.scan(inner, x, None, length=3)
            return 0.0 * x, jax.vmap(lambda m: ppl.sample("y", dist.Normal(m, 1.0)))(jnp.arange(4.0))

        jax.lax.scan(outer, 0.0, None, length=2)
        jax.vmap(lambda m: jax.lax.scan(lambda c, _: (c, ppl.sample("z", dist.Normal(m, 1.0))), 0.0, None, length=3))(
            100.0 * jnp.arange(2.0)
        )

    def expected(t):
        chain = np.concatenate([np.zeros((2, 1)), t["x"][:, :-1]], axis=1)
        return normal(t["x"], chain) + normal(t["y"], np.arange(4.0)) + normal(t["z"], 100.0 * np.arange(2.0)[:, None])

    trace = check(model(), expected)
    assert trace["x"].shape == (2, 3)
    assert trace["y"].shape == (2, 4)
    assert trace["z"].shape == (2, 3)  # the vmap is outside of the scan


def test_fori_loop():
    @ppl.program
    def model():
        return jax.lax.fori_loop(0, 4, lambda i, x: ppl.sample("x", dist.Normal(x + i, 1.0)), 0.0)

    check(model(), lambda t: normal(t["x"], np.concatenate([[0.0], t["x"][:-1]]) + np.arange(4)))


@pytest.mark.parametrize("start", [-1.0, 1.0])
def test_cond_counts_the_taken_branch_only(start):
    @ppl.program
    def model(u):
        a, b = jax.lax.cond(
            u > 0,
            lambda m: (ppl.sample("x", dist.Gamma(2.0, 1.0)), m),
            lambda m: (ppl.sample("y", dist.Normal(m, 3.0)), 2.0 * m),
            7.0,
        )
        ppl.sample("z", dist.Normal(a + b, 1.0), obs=0.5)

    def expected(t):
        if start > 0:
            return float(dist.Gamma(2.0, 1.0).log_prob(t["x"])) + normal(0.5, t["x"] + 7.0)
        return normal(t["y"], 7.0, 3.0) + normal(0.5, t["y"] + 14.0)

    trace = check(model(start), expected)
    assert set(trace) == {"x", "y"}


def test_one_address_in_both_branches():
    @ppl.program
    def model(u):
        return jax.lax.cond(
            u > 0, lambda: ppl.sample("x", dist.Normal(5.0, 1.0)), lambda: ppl.sample("x", dist.Normal(-5.0, 1.0))
        )

    assert check(model(1.0), lambda t: normal(t["x"], 5.0))["x"] > 0
    assert check(model(-1.0), lambda t: normal(t["x"], -5.0))["x"] < 0


@pytest.mark.parametrize("index", [0, 1, 2])
def test_switch_with_several_outputs(index):
    branches = [
        lambda m: (ppl.sample("a", dist.Normal(m, 1.0)), 0),
        lambda m: (ppl.sample("b", dist.Normal(m, 2.0)) + ppl.sample("c", dist.Normal(0.0, 1.0)), 1),
        lambda m: (m, 2),
    ]

    @ppl.program
    def model(i):
        x, n = jax.lax.switch(i, branches, 3.0)
        return x, n

    by_branch = [
        lambda t: normal(t["a"], 3.0),
        lambda t: normal(t["b"], 3.0, 2.0) + normal(t["c"]),
        lambda t: 0.0,
    ]
    check(model(index), by_branch[index])
    assert int(model(index).sample(KEY)[1]) == index


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint], ids=["plain", "jit", "checkpoint"])
def test_vmap_of_cond_with_a_batched_predicate(wrap):
    """JAX turns this into a select that runs both branches; only the taken one may count."""
    signs = jnp.array([1.0, -1.0, 1.0, -1.0, -1.0])

    @ppl.program
    def model():
        def lane(s, m):
            return jax.lax.cond(
                s > 0,
                lambda m: ppl.sample("x", dist.Normal(m, 1.0)),
                lambda m: ppl.sample("y", dist.Exponential(1.0)) + ppl.sample("w", dist.Normal(m, 2.0)),
                m,
            )

        return jax.vmap(wrap(lane))(signs, jnp.arange(5.0))

    def expected(t):
        up = np.asarray(signs) > 0
        m = np.arange(5.0)
        return normal(t["x"][up], m[up]) - np.sum(t["y"][~up]) + normal(t["w"][~up], m[~up], 2.0)

    trace = check(model(), expected)
    assert trace["x"].shape == trace["y"].shape == (5,)

    def by_mean(m):  # a gradient through lanes that were not taken must not be NaN
        return ppl.log_density(ppl.program(lambda: ppl.sample("lanes", model()) + m)(), {"lanes": trace})

    assert float(jax.grad(by_mean)(0.0)) == 0.0


def test_scan_of_vmap_of_switch():
    @ppl.program
    def model():
        def lane(i, x):
            return jax.lax.switch(
                i,
                [
                    lambda x: ppl.sample("a", dist.Normal(x, 1.0)),
                    lambda x: ppl.sample("b", dist.Normal(x, 2.0)),
                    lambda x: x,
                ],
                x,
            )

        def step(xs, _):
            return jax.vmap(lane)(jnp.arange(3), xs), None

        return jax.lax.scan(step, jnp.zeros(3), None, length=2)[0]

    def expected(t):
        a, b = t["a"][:, 0], t["b"][:, 1]
        return normal(a, np.array([0.0, a[0]])) + normal(b, np.array([0.0, b[0]]), 2.0)

    check(model(), expected)


def test_checkpoint_keeps_values_and_gradients():
    def body(m):
        return ppl.sample("x", dist.Normal(m, 1.0)) * jnp.sin(ppl.sample("y", dist.Normal(m, 1.0)))

    @ppl.expectation
    def plain(m):
        return body(m) ** 2

    @ppl.expectation
    def saved(m):
        return jax.checkpoint(body)(m) ** 2

    a, b = plain.value_and_grad(KEY, 0.3), saved.value_and_grad(KEY, 0.3)
    np.testing.assert_allclose(a, b, rtol=1e-5)
    assert "remat" in str(jax.make_jaxpr(lambda m: saved.estimate(KEY, m))(0.3)) or "checkpoint" in str(
        jax.make_jaxpr(lambda m: saved.estimate(KEY, m))(0.3)
    )
    check(ppl.program(jax.checkpoint(body))(0.3), lambda t: normal(t["x"], 0.3) + normal(t["y"], 0.3))


def test_while_loop_is_simulated_and_has_no_density():
    @ppl.program
    def geometric():
        def body(state):
            return state[0] + 1, ppl.sample("coin", dist.Bernoulli(probs=0.25))

        return jax.lax.while_loop(lambda s: s[1] == 0, body, (0, 0))[0]

    counts = np.asarray(jax.vmap(geometric().sample)(jax.random.split(KEY, 20_000)))
    assert abs(counts.mean() - 4.0) < 4 * np.sqrt(12.0 / 20_000)  # mean 1/p, variance (1 - p)/p^2
    for ask in (lambda: geometric().simulate(KEY), lambda: geometric().log_density({"coin": 1})):
        with pytest.raises(errors.WhileLoopDensityError, match=r"'coin'[\s\S]*test_control_flow.py") as caught:
            ask()
        assert "scan" in str(caught.value)


def test_a_site_in_the_condition_of_a_while_loop_is_refused():
    @ppl.program
    def model():
        return jax.lax.while_loop(lambda i: ppl.sample("stop", dist.Bernoulli(probs=0.5)) == 0, lambda i: i + 1, 0)

    with pytest.raises(errors.UnsupportedPrimitiveError, match="'stop'"):
        model().sample(KEY)


@jax.custom_jvp
def clipped(x):
    return jnp.clip(x, -1.0, 1.0)


clipped.defjvp(lambda primals, tangents: (clipped(*primals), tangents[0]))


@jax.custom_vjp
def doubled_gradient(x):
    return x


doubled_gradient.defvjp(lambda x: (x, None), lambda _, g: (2.0 * g,))


@pytest.mark.parametrize(("function", "slope"), [(clipped, 1.0), (doubled_gradient, 2.0)])
def test_custom_derivatives_stay_intact(function, slope):
    @ppl.program
    def model(m):
        x = ppl.sample("x", dist.Normal(m, 1.0))
        ppl.factor("f", jax.jit(function)(3.0 * m) + function(2.0 * m) + 0.0 * x)

    gradient = jax.grad(lambda m: model(m).log_density({"x": 0.0}))(1.0)
    np.testing.assert_allclose(gradient, -1.0 + 5.0 * slope, rtol=1e-6)


def test_sites_in_custom_derivatives_are_refused():
    @jax.custom_jvp
    def bad(x):
        return ppl.sample("hidden", dist.Normal(x, 1.0))

    bad.defjvp(lambda primals, tangents: (bad(*primals), tangents[0]))

    @jax.custom_vjp
    def worse(x):
        return ppl.sample("hidden", dist.Normal(x, 1.0))

    worse.defvjp(lambda x: (worse(x), None), lambda _, g: (g,))
    for function, name in ((bad, "custom_jvp_call"), (worse, "custom_vjp_call")):
        with pytest.raises(errors.UnsupportedPrimitiveError, match=name) as caught:
            ppl.program(function)(0.0).simulate(KEY)
        assert "'hidden'" in str(caught.value)
        assert "test_control_flow.py" in str(caught.value)


def test_unknown_primitives_with_sites_are_refused_by_name():
    mesh = jax.make_mesh((1,), ("i",))
    spec = jax.sharding.PartitionSpec()

    @ppl.program
    def model():
        return jax.shard_map(
            lambda m: ppl.sample("hidden", dist.Normal(m, 1.0)), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
        )(0.0)

    with pytest.raises(errors.UnsupportedPrimitiveError, match=r"'shard_map' holds the site 'hidden'"):
        model().simulate(KEY)


def test_gradients_through_cond_scan_and_vmap_are_right():
    """d/dm of E[x_3^2] for a random walk with a drift that depends on the branch; exact by hand."""

    @ppl.expectation
    def objective(m):
        def step(x, i):
            up = jax.lax.cond(
                i == 1, lambda: ppl.sample("a", dist.Normal(2.0 * m, 1.0)), lambda: ppl.sample("b", dist.Normal(m, 1.0))
            )
            return x + up, None

        return jax.lax.scan(step, 0.0, jnp.arange(3))[0] ** 2

    n = 20_000
    m = 0.7
    values, grads = jax.vmap(lambda k: objective.value_and_grad(k, m))(jax.random.split(KEY, n))
    for draws, exact in ((values, (4 * m) ** 2 + 3.0), (grads, 32 * m)):
        assert abs(draws.mean() - exact) < 4 * draws.std() / np.sqrt(n)


def test_a_trace_that_stacks_can_be_scored_under_vmap():
    @ppl.program
    def model():
        def step(x, _):
            x = ppl.sample("x", dist.Normal(x, 1.0))
            return x, jax.vmap(lambda m: ppl.sample("y", dist.Normal(m, 1.0)))(x + jnp.arange(2.0))

        jax.lax.scan(step, 0.0, None, length=3)

    keys = jax.random.split(KEY, 6)
    traces, log_ps = jax.jit(jax.vmap(model().simulate))(keys)
    scored = jax.jit(jax.vmap(model().log_density))(traces)
    one_by_one = [model().log_density(jax.tree.map(lambda a, i=i: a[i], traces)) for i in range(6)]
    np.testing.assert_allclose(scored, one_by_one, rtol=1e-5)
    np.testing.assert_allclose(scored, log_ps, rtol=1e-5)
