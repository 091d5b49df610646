"""Draws are a pure function of key, address and index along vmap and scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist

KEY = jax.random.key(7)

DISTRIBUTIONS = {
    "normal": lambda: dist.Normal(1.0, 2.0),
    "vector": lambda: dist.Normal(jnp.arange(3.0), 1.0).to_event(1),
    "gamma": lambda: dist.Gamma(2.0, 1.0),
    "bernoulli": lambda: dist.Bernoulli(probs=0.5),
    "mixture": lambda: dist.MixtureSameFamily(dist.Categorical(probs=jnp.ones(2) / 2), dist.Normal(jnp.zeros(2), 1.0)),
    "expanded": lambda: dist.Normal(0.0, 1.0).expand([4]),
    "mvn": lambda: dist.MultivariateNormal(jnp.zeros(2), covariance_matrix=jnp.eye(2)),
}


def program_of(*names):
    @ppl.program
    def drawn():
        for name in names:
            ppl.sample(name, DISTRIBUTIONS[name]())

    return drawn()


def draws(bound, key=KEY):
    return bound.simulate(key)[0]


def equal(a, b):
    return np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_other_sites_do_not_matter(name):
    others = [other for other in DISTRIBUTIONS if other != name]
    alone = draws(program_of(name))[name]
    for names in ([name, *others], [*others, name], [*others[3:], name, *others[:3]]):
        assert equal(draws(program_of(*names))[name], alone)


def test_sites_in_control_flow_do_not_depend_on_each_other():
    def make(extra):
        @ppl.program
        def chain():
            def step(x, _):
                if extra:
                    ppl.sample("extra", dist.Gamma(2.0, 1.0))
                return ppl.sample("x", dist.Normal(x, 1.0)), None

            jax.lax.scan(step, 0.0, None, length=5)
            jax.vmap(lambda m: ppl.sample("v", dist.Normal(m, 1.0)))(jnp.arange(3.0))

        return draws(chain())

    assert equal(make(False)["x"], make(True)["x"])
    assert equal(make(False)["v"], make(True)["v"])


def test_a_longer_scan_or_batch_keeps_the_first_draws():
    def make(length):
        @ppl.program
        def chain():
            jax.lax.scan(lambda x, _: (ppl.sample("x", dist.Normal(x, 1.0)), None), 0.0, None, length=length)
            jax.vmap(lambda _: ppl.sample("v", dist.Normal(0.0, 1.0)))(jnp.arange(length))
            jax.vmap(lambda _: ppl.sample("w", dist.Gamma(2.0, 1.0).expand([2])))(jnp.arange(length))

        return draws(chain())

    short, long = make(4), make(9)
    for name in ("x", "v", "w"):
        np.testing.assert_allclose(long[name][:4], short[name], rtol=1e-6)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_jit_agrees(name):
    bound = program_of(name, "normal") if name != "normal" else program_of(name)
    np.testing.assert_allclose(draws(bound)[name], jax.jit(bound.simulate)(KEY)[0][name], rtol=1e-6)


def test_raw_and_typed_keys_agree():
    bound = program_of("normal", "gamma")
    raw, typed = draws(bound, jax.random.PRNGKey(3)), draws(bound, jax.random.key(3))
    assert equal(raw["gamma"], typed["gamma"])


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_all_key_types_give_distinct_independent_sites(impl):
    @ppl.program
    def two():
        ppl.sample("a", dist.Normal(0.0, 1.0).expand([5_000]))
        ppl.sample("b", dist.Normal(0.0, 1.0).expand([5_000]))

    trace = draws(two(), jax.random.key(0, impl=impl))
    z = np.sqrt(5_000) * np.corrcoef(trace["a"], trace["b"])[0, 1]
    assert abs(z) < 4
    assert abs(np.sqrt(5_000) * np.mean(trace["a"])) < 4


def correlation_z(pairs):
    a, b = np.asarray(pairs)
    return np.sqrt(a.size) * np.corrcoef(a.ravel(), b.ravel())[0, 1]


KEYS = jax.random.split(jax.random.key(11), 20_000)


@pytest.mark.parametrize("name", ["normal", "gamma"])
def test_two_simulations_in_one_objective_are_independent(name):
    def both():
        return ppl.simulate(program_of(name))[0][name], ppl.simulate(program_of(name))[0][name]

    assert abs(correlation_z(jax.vmap(ppl.seed(both))(KEYS))) < 4


def test_simulations_through_one_jitted_function_are_independent():
    @jax.jit
    def one():
        return ppl.simulate(program_of("normal"))[0]["normal"]

    assert abs(correlation_z(jax.vmap(ppl.seed(lambda: (one(), one())))(KEYS))) < 4


def test_simulations_before_and_inside_a_scan_and_a_cond_are_independent():
    def all_four():
        def one():
            return ppl.simulate(program_of("normal"))[0]["normal"]

        first = one()
        _, inside = jax.lax.scan(lambda c, _: (c, one()), 0.0, None, length=2)
        branch = jax.lax.cond(first > 0, lambda: one(), lambda: one())
        return jnp.array([first, inside[0], inside[1], branch, one()])

    values = np.asarray(jax.vmap(ppl.seed(all_four))(KEYS))
    z = np.sqrt(len(KEYS)) * (np.corrcoef(values.T) - np.eye(5))
    assert np.abs(z).max() < 4.5


@pytest.mark.parametrize("name", ["normal", "gamma", "bernoulli"])
def test_every_lane_draws_for_itself_even_with_unbatched_operands(name):
    @ppl.program
    def lanes():
        return jax.vmap(lambda _: 1.0 * ppl.sample("x", DISTRIBUTIONS[name]()))(jnp.arange(2))

    values = np.asarray(jax.vmap(lanes().sample)(KEYS))
    assert abs(correlation_z(values.T)) < 4
    exact = {"normal": 1.0, "gamma": 2.0, "bernoulli": 0.5}[name]
    error = values.mean(0) - exact
    assert np.all(np.abs(error) < 4 * values.std(0) / np.sqrt(len(KEYS)))


def test_lanes_of_scans_conds_and_nested_vmaps_are_independent():
    def cell():
        return ppl.sample("x", dist.Normal(0.0, 1.0))

    @ppl.program
    def lanes():
        scanned = jax.vmap(lambda _: jax.lax.scan(lambda c, _: (c, cell()), 0.0, None, length=2)[1])(jnp.arange(2))
        return scanned.ravel()

    @ppl.program
    def conds():
        return jax.vmap(lambda i: jax.lax.cond(i > 0.5, cell, lambda: ppl.sample("y", dist.Normal(0.0, 1.0))))(
            jnp.array([1.0, 1.0, 0.0, 0.0])
        )

    @ppl.program
    def nested():
        return jax.vmap(lambda _: jax.vmap(lambda _: cell())(jnp.arange(2)))(jnp.arange(2)).ravel()

    for bound in (lanes(), conds(), nested()):
        values = np.asarray(jax.vmap(bound.sample)(KEYS))
        z = np.sqrt(len(KEYS)) * (np.corrcoef(values.T) - np.eye(4))
        assert np.abs(z).max() < 4.5


def test_while_loop_steps_and_lanes_are_independent():
    @ppl.program
    def loop():
        def body(state):
            i, xs = state
            return i + 1, xs.at[i].set(ppl.sample("x", dist.Normal(0.0, 1.0)))

        return jax.vmap(lambda n: jax.lax.while_loop(lambda s: s[0] < n, body, (0, jnp.zeros(2)))[1])(jnp.array([2, 2])).ravel()

    values = np.asarray(jax.vmap(loop().sample)(KEYS))
    z = np.sqrt(len(KEYS)) * (np.corrcoef(values.T) - np.eye(4))
    assert np.abs(z).max() < 4.5


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_plate_draws_from_the_distribution_that_one_lane_has(name):
    """Mean and second moment of each element under vmap equal those of NumPyro's own sampler (z < 4.5)."""
    shape = DISTRIBUTIONS[name]().shape()

    @ppl.program
    def lanes():
        return jax.vmap(lambda _: 1.0 * ppl.sample("x", DISTRIBUTIONS[name]()))(jnp.arange(20_000))

    ours = np.asarray(lanes().sample(KEY), float)
    theirs = np.asarray(DISTRIBUTIONS[name]().sample(jax.random.key(5), (20_000,)), float)
    assert ours.shape == (20_000, *shape)
    for power in (1, 2):
        a, b = ours**power, theirs**power
        error = np.sqrt((a.var(0) + b.var(0)) / 20_000)
        assert np.all(np.abs(a.mean(0) - b.mean(0)) < 4.5 * error + 1e-12)


def test_batched_parameters_reach_their_own_lane():
    @ppl.program
    def lanes(loc, scale):
        def row(m):
            return jax.vmap(lambda s: ppl.sample("x", dist.Normal(m, s)))(scale)

        return jax.vmap(row)(loc)

    loc, scale = jnp.array([0.0, 100.0, -50.0]), jnp.array([0.1, 1.0])
    values = np.asarray(jax.vmap(lanes(loc, scale).sample)(KEYS[:5_000]))
    assert values.shape == (5_000, 3, 2)
    np.testing.assert_allclose(values.mean(0), np.broadcast_to(loc[:, None], (3, 2)), atol=4 / np.sqrt(5_000))
    np.testing.assert_allclose(values.std(0), np.broadcast_to(scale, (3, 2)), rtol=4 / np.sqrt(10_000))


def test_padding_changes_no_draw_where_longer_draws_do_not_begin_with_shorter_ones():
    """Without partitionable threefry the noise of a site depends on how much is drawn, so nothing may be padded."""

    @ppl.program
    def one():
        ppl.sample("x", dist.Normal(0.0, 1.0))

    @ppl.program
    def two():
        ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(jnp.zeros(7), 1.0))

    for partitionable in (True, False):
        with jax.threefry_partitionable(partitionable):
            assert equal(draws(one())["x"], draws(two())["x"])
