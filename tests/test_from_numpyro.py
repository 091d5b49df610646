"""NumPyro models as programs: densities equal NumPyro's, minibatches stay unbiased, and the rest is refused."""

from __future__ import annotations

import functools
import warnings

import equinox as eqx
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import cond, scan
from numpyro.contrib.module import eqx_module, flax_module, random_flax_module
from numpyro.distributions import constraints
from numpyro.distributions.transforms import biject_to
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import log_density as numpyro_log_density

import ppl
from ppl.address import flatten
from ppl.bridges.from_numpyro import from_numpyro
from ppl.estimators import ScoreFunction

KEY = jax.random.key(7)
Y = jnp.array([0.3, -1.2, 2.5, 0.7, 1.1, -0.4])
COUNTS = jnp.array([3, 0, 1, 4, 2, 2])
TABLE = jnp.arange(12.0).reshape(4, 3) / 7.0
HOLES = jnp.array([True, False, True, True, False, True])


# Unchanged NumPyro models


def plain():
    mean = numpyro.sample("mean", dist.Normal(1.0, 2.0))
    rate = numpyro.sample("rate", dist.Gamma(2.0, 3.0))
    numpyro.sample("y", dist.Normal(mean, rate), obs=0.7)
    numpyro.sample("count", dist.Poisson(rate), obs=3)
    return mean + rate


def nested_plates():
    with numpyro.plate("columns", 3, dim=-1):
        column = numpyro.sample("column", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", 4, dim=-2):
            row = numpyro.sample("row", dist.Normal(column, 0.5))
            numpyro.sample("y", dist.StudentT(4.0, row, 1.0), obs=TABLE)


def plate_dim():
    with numpyro.plate("rows", 4, dim=-2):
        numpyro.sample("row", dist.Exponential(2.0))
    with numpyro.plate("outer", 2, dim=-3), numpyro.plate("inner", 3):
        numpyro.sample("both", dist.MultivariateNormal(jnp.ones(2), jnp.eye(2)))


def subsampled(data):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("N", 6, subsample_size=2) as rows:
        local = numpyro.sample("local", dist.Normal(mean, 1.0))
        numpyro.sample("y", dist.Normal(local, 0.5), obs=data[rows])


def subsample_statement(data, more):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("rows", 4, subsample_size=3, dim=-2):
        with numpyro.plate("columns", 3, subsample_size=2, dim=-1):
            numpyro.sample("y", dist.Normal(mean, 0.5), obs=numpyro.subsample(data, event_dim=0))
        batch = numpyro.subsample(more, event_dim=1)
        numpyro.sample("z", dist.Normal(batch, 1.0).to_event(1))


def plate_twice(data):
    with numpyro.plate("N", 6, subsample_size=2):
        local = numpyro.sample("local", dist.Normal(0.0, 1.0))
    with numpyro.plate("N", 6, subsample_size=2) as rows:
        numpyro.sample("y", dist.Normal(local, 0.5), obs=data[rows])


def factors():
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.factor("penalty", -2.0 * x**2)
    with numpyro.plate("N", 6):
        numpyro.factor("in_plate", 0.1 * x)
        with handlers.mask(mask=HOLES), handlers.scale(scale=3.0):
            numpyro.factor("masked", Y * x)


def mask_handler():
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    with numpyro.plate("N", 6), handlers.mask(mask=HOLES):
        numpyro.sample("y", dist.Normal(x, 1.0), obs=jnp.where(HOLES, Y, jnp.nan))
        numpyro.sample("local", dist.Normal(x, 2.0))
    with handlers.mask(mask=False):
        numpyro.sample("ignored", dist.Normal(x, 1.0), obs=1e6)


def masked_distributions():
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(x, 1.0).expand([6]).mask(HOLES).mask(Y > 0), obs=Y)
    numpyro.sample("event", dist.Normal(x, jnp.ones(6)).mask(HOLES).to_event(1), obs=Y)
    with numpyro.plate("N", 4):
        numpyro.sample("rows", dist.Normal(x, jnp.ones(3)).mask(jnp.array([True, False, True])).to_event(1))
        with handlers.mask(mask=jnp.array([True, True, False, True])), handlers.scale(scale=jnp.arange(1.0, 5.0)):
            numpyro.sample("both", dist.Normal(x, jnp.ones(3)).mask(jnp.array([True, False, True])).to_event(1), obs=TABLE)


def observation_mask():
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    with numpyro.plate("N", 6):
        y = numpyro.sample("y", dist.Normal(x, 1.0), obs=Y, obs_mask=HOLES)
        numpyro.sample("z", dist.Normal(y, 1.0), obs=Y)


def deterministics():
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    twice = numpyro.deterministic("twice", 2 * x)
    numpyro.sample("y", dist.Normal(twice, 1.0), obs=0.3)


def parameters():
    scale = numpyro.param("scale", 0.5, constraint=constraints.positive)
    weights = numpyro.param("weights", jnp.array([0.2, 0.3, 0.5]), constraint=constraints.simplex)
    chol = numpyro.param("chol", lambda _: jnp.eye(2), constraint=constraints.lower_cholesky)
    loc = numpyro.param("loc", lambda key: jax.random.normal(key, (2,)))
    x = numpyro.sample("x", dist.MultivariateNormal(loc, scale_tril=chol))
    mixture = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(jnp.arange(3.0), scale))
    numpyro.sample("y", mixture, obs=x[0] + 0.5)


def parameter_in_plate(data):
    with numpyro.plate("N", 6, subsample_size=2, dim=-1) as rows:
        loc = numpyro.param("loc", jnp.zeros((6, 2)), event_dim=1)
        scale = numpyro.param("scale", jnp.ones(6), constraint=constraints.positive, event_dim=0)
        z = numpyro.sample("z", dist.Normal(loc, scale[:, None]).to_event(1))
        numpyro.sample("y", dist.Normal(z[:, 0], 1.0), obs=data[rows])


def scaled():
    with handlers.scale(scale=0.3):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        with handlers.scale(scale=jnp.arange(1.0, 7.0)), numpyro.plate("N", 6):
            numpyro.sample("y", dist.Normal(x, 1.0), obs=Y)


@handlers.reparam(config={"x": LocScaleReparam(0.0), "z": LocScaleReparam()})
def reparameterized():
    x = numpyro.sample("x", dist.Normal(3.0, 2.0))
    with numpyro.plate("N", 3):
        z = numpyro.sample("z", dist.Normal(x, 0.5))
    numpyro.sample("y", dist.Normal(z.sum(), 1.0), obs=1.0)


def events():
    x = numpyro.sample("x", dist.Normal(jnp.zeros((2, 3)), 1.0).to_event(2))
    with numpyro.plate("N", 2):
        numpyro.sample("rows", dist.Normal(x, 1.0).to_event(1), obs=jnp.ones((2, 3)))


def multivariate():
    precision = jnp.eye(3) + 0.2
    x = numpyro.sample("x", dist.MultivariateNormal(jnp.arange(3.0), precision_matrix=precision))
    numpyro.sample("y", dist.Dirichlet(jnp.exp(x)), obs=jnp.array([0.2, 0.5, 0.3]))


def chain(data, length):
    drift = numpyro.sample("drift", dist.Normal(0.0, 1.0))

    def step(previous, y):
        with numpyro.plate("pair", 2):
            x = numpyro.sample("x", dist.Normal(previous + drift, 1.0))
        numpyro.deterministic("sum", x.sum())
        numpyro.sample("y", dist.Normal(x.sum(), 0.5), obs=y)
        return x, x.sum()

    with handlers.scale(scale=2.0), handlers.mask(mask=True):
        last, sums = scan(step, jnp.zeros(2), data, length=length)
    numpyro.sample("end", dist.Normal(last.sum(), 1.0), obs=sums[0])


def conditioned_chain():
    def step(previous, _):
        x = numpyro.sample("x", dist.Normal(previous, 1.0))
        y = numpyro.sample("y", dist.Normal(x, 0.5))
        return y, None

    with handlers.condition(data={"y": Y}):
        scan(step, 0.0, None, length=6, history=0)


def hidden_markov():
    transition = jnp.array([[0.7, 0.3], [0.4, 0.6]])

    def step(state, y):
        state = numpyro.sample("state", dist.Categorical(transition[state]), infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Normal(jnp.array([-1.0, 1.0])[state], 1.0), obs=y)
        return state, None

    scan(step, 0, Y)


def branches():
    def high(shift):
        return numpyro.sample("x", dist.Normal(20.0 + shift, 1.0))

    def low(shift):
        return numpyro.sample("x", dist.Normal(shift, 2.0))

    which = numpyro.sample("which", dist.Normal(0.0, 1.0))
    x = cond(which > 0.0, high, low, which)
    numpyro.sample("y", dist.Normal(x, 3.0), obs=8.0)


def discrete():
    with numpyro.plate("N", 6):
        k = numpyro.sample("k", dist.Categorical(jnp.array([0.2, 0.3, 0.5])), infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Normal(jnp.arange(3.0)[k], 1.0), obs=Y)
    numpyro.sample("n", dist.Poisson(3.0))
    numpyro.sample("b", dist.Bernoulli(0.3))


def iid_observations():
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("scalar", dist.Normal(x, 1.0), obs=Y)
    numpyro.sample("vector", dist.Normal(x, jnp.ones(3)), obs=TABLE)
    numpyro.sample("event", dist.MultivariateNormal(jnp.full(3, x), jnp.eye(3)), obs=TABLE.reshape(2, 2, 3))
    numpyro.sample("masked", dist.Normal(x, jnp.ones(3)).mask(jnp.array([True, False, True])), obs=TABLE)


def sample_shape():
    x = numpyro.sample("x", dist.Normal(jnp.zeros(2), 1.0), sample_shape=(3,))
    numpyro.sample("y", dist.Normal(x.sum(), 1.0), obs=1.0)


def scoped():
    with handlers.scope(prefix="first"):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("second/x", dist.Normal(x, 1.0))


def module_with_prior(x):
    net = random_flax_module("net", flax.linen.Dense(1), dist.Normal(0.0, 1.0), input_shape=(3,))
    numpyro.sample("y", dist.Normal(net(x)[:, 0], 1.0), obs=jnp.ones(4))


def module(x):
    net = flax_module("net", flax.linen.Dense(2), input_shape=(3,))
    z = numpyro.sample("z", dist.Normal(net(x), 1.0))
    numpyro.sample("y", dist.Normal(z.sum(), 1.0), obs=1.0)


LINEAR = eqx.nn.Linear(3, 2, key=jax.random.key(0))


def equinox_module(x):
    net = eqx_module("net", LINEAR)
    numpyro.sample("z", dist.Normal(jax.vmap(net)(x), 1.0))


counterfactual = handlers.do(plain, data={"rate": 2.0})

MODELS = {
    plain: (),
    counterfactual: (),
    nested_plates: (),
    plate_dim: (),
    subsampled: (Y,),
    subsample_statement: (TABLE, jnp.ones((4, 1, 2)) * jnp.arange(4.0)[:, None, None]),
    plate_twice: (Y,),
    factors: (),
    mask_handler: (),
    masked_distributions: (),
    observation_mask: (),
    deterministics: (),
    parameters: (),
    parameter_in_plate: (Y,),
    scaled: (),
    reparameterized: (),
    events: (),
    multivariate: (),
    chain: (Y, 6),
    conditioned_chain: (),
    hidden_markov: (),
    branches: (),
    discrete: (),
    iid_observations: (),
    sample_shape: (),
    scoped: (),
    module: (TABLE,),
    module_with_prior: (TABLE,),
    equinox_module: (TABLE,),
}


# What the tests use


def moved_params(program, args):
    """Initial unconstrained parameters, moved so that a wrong transform or order shows."""
    params = program.init_params(KEY, *args)
    return jax.tree.map(lambda x: x + 0.3 * np.cos(1.0 + np.arange(x.size, dtype=x.dtype)).reshape(x.shape), params)


def constrained(model, args, params):
    """The same parameters as NumPyro wants them: transformed by the constraint that its own trace reports."""
    with handlers.seed(rng_seed=0), handlers.trace() as sites:
        model(*args)
    stated = {name: sites[name]["kwargs"].get("constraint", constraints.real) for name in params}
    return {
        name: value if stated[name] is constraints.real else biject_to(stated[name])(value) for name, value in params.items()
    }


def by_name(trace):
    return {"/".join(address): value for address, value in flatten(trace).items()}


def is_random(site):
    """Whether NumPyro drew a site of its own trace: a latent, or the indices of a subsampling plate."""
    if site["type"] == "plate":
        return site["args"][1] not in (None, site["args"][0])
    return site["type"] == "sample" and not site["is_observed"]


def assert_close(ours, theirs, what):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5, err_msg=what)


# Densities


@pytest.mark.parametrize("model", MODELS, ids=lambda model: repr(from_numpyro(model)))
def test_log_density_is_numpyros(model):
    args = MODELS[model]
    program = from_numpyro(model)
    names = []

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # runs once: compile fast
    def scores(key, params):
        trace, log_p = program(*args, params=params).simulate(key)
        values = by_name(trace)
        theirs, sites = numpyro_log_density(model, args, {}, {**constrained(model, args, params), **values})
        names.append((set(values), {name for name, site in sites.items() if is_random(site)}))
        return log_p, ppl.log_density(program(*args, params=params), trace), theirs

    simulated, scored, theirs = scores(jax.random.key(5), moved_params(program, args))
    ours, drawn = names[0]
    assert ours >= drawn, "NumPyro draws what we do not"
    assert drawn or model is conditioned_chain
    assert np.isfinite(theirs)
    assert_close(scored, theirs, f"log density of {program}")
    assert_close(simulated, theirs, f"log density of {program}, simulated")


def test_improper_uniform():
    def model():
        x = numpyro.sample("x", dist.ImproperUniform(constraints.real, (), ()))
        with numpyro.plate("N", 3):
            s = numpyro.sample("s", dist.ImproperUniform(constraints.positive, (), ()))
            numpyro.sample("e", dist.ImproperUniform(constraints.real, (), (2,)))
        numpyro.sample("y", dist.Normal(x, s.sum()), obs=1.0)

    values = {"x": jnp.array(0.4), "s": jnp.array([1.0, 2.0, 0.5]), "e": jnp.ones((3, 2))}
    expected, _ = numpyro_log_density(model, (), {}, values)
    assert_close(ppl.log_density(from_numpyro(model)(), values), expected, "improper")
    assert from_numpyro(model).init_params(KEY) == {}
    with pytest.raises(ppl.errors.NoSamplerError, match=r"'[xse]'"):
        from_numpyro(model)().simulate(KEY)


def test_reversed_scan_stands_in_the_order_of_its_inputs():
    def model():
        def step(carry, y):
            x = numpyro.sample("x", dist.Normal(carry, 1.0))
            numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
            return x, None

        scan(step, 0.5, Y, reverse=True)

    x = jnp.linspace(-1.0, 2.0, 6)
    by_hand = dist.Normal(jnp.append(x[1:], 0.5), 1.0).log_prob(x).sum() + dist.Normal(x, 0.5).log_prob(Y).sum()
    assert_close(ppl.log_density(from_numpyro(model)(), {"x": x}), by_hand, "reversed")


@pytest.mark.parametrize("reverse", [False, True])
def test_conditioning_around_a_scan_means_what_numpyro_means(reverse):
    def model():
        def step(carry, _):
            y = numpyro.sample("y", dist.Normal(carry, 1.0))
            return y * 0.5, y

        scan(step, 0.5, None, length=6, reverse=reverse)

    conditioned = handlers.condition(model, data={"y": Y})
    expected, _ = numpyro_log_density(conditioned, (), {}, {})
    assert_close(ppl.log_density(from_numpyro(conditioned)(), {}), expected, "conditioned scan")
    assert_close(
        ppl.log_density(from_numpyro(handlers.substitute(model, data={"y": Y}))(), {"y": jnp.ones(6)}),
        6 * dist.Normal(0.5, 1.0).log_prob(1.0),
        "a trace goes over substitute",
    )


def test_reparam_around_a_scan_acts_in_each_step():
    def model():
        def step(carry, _):
            x = numpyro.sample("x", dist.Normal(carry, 2.0))
            return x, None

        scan(step, 0.5, None, length=3)

    program = from_numpyro(handlers.reparam(model, config={"x": LocScaleReparam(0.0)}))
    noise = jnp.array([0.3, -1.0, 2.0])
    assert_close(ppl.log_density(program(), {"x_decentered": noise}), dist.Normal(0.0, 1.0).log_prob(noise).sum(), "noise")
    trace, _ = program().simulate(KEY)
    assert_close(trace["x"], 0.5 + 2.0 * jnp.cumsum(trace["x_decentered"]), "the deterministic x")


def test_plain_jax_control_flow_holds_statements():
    def model():
        def step(x, y):
            x = numpyro.sample("x", dist.Normal(x, 1.0))
            with handlers.scale(scale=2.0):
                numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
            return x, None

        last, _ = jax.lax.scan(step, 0.0, Y)
        many = jax.vmap(lambda y: numpyro.sample("z", dist.Normal(y, 1.0)))(Y)
        jax.lax.cond(
            last > 0, lambda: numpyro.sample("up", dist.Normal(1.0, 1.0)), lambda: numpyro.sample("down", dist.Normal(2.0, 1.0))
        )
        numpyro.factor("f", many.sum())

    x, z = jnp.linspace(0.5, 2.0, 6), jnp.ones(6)
    by_hand = (
        dist.Normal(jnp.append(0.0, x[:-1]), 1.0).log_prob(x).sum()
        + 2.0 * dist.Normal(x, 0.5).log_prob(Y).sum()
        + dist.Normal(Y, 1.0).log_prob(z).sum()
        + dist.Normal(1.0, 1.0).log_prob(0.3)
        + 6.0
    )
    trace = {"x": x, "z": z, "up": 0.3, "down": 99.0}
    assert_close(ppl.log_density(from_numpyro(model)(), trace), by_hand, "JAX control flow")


def test_masked_discrete_latent_keeps_its_own_score():
    """A mask takes a cost away and not the draw: the score must be that of the draw, however deep the mask sits."""

    def guide(logits):
        with numpyro.plate("N", 2):
            numpyro.sample("b", dist.Bernoulli(logits=logits).mask(False))

    @ppl.expectation
    def objective(logits):
        trace, log_q = ppl.simulate(from_numpyro(guide)(logits).with_estimators(ScoreFunction()))
        return jnp.sum(trace["b"] * jnp.array([1.0, 3.0])) + 0.0 * log_q

    count = 20_000
    keys = jax.random.split(KEY, count)
    grads = jax.jit(jax.vmap(lambda key: objective.grad(key, jnp.float32(0.4))))(keys)
    p = jax.nn.sigmoid(0.4)
    z = (grads.mean() - 4.0 * p * (1 - p)) / (grads.std() / np.sqrt(count))
    assert abs(z) < 4, f"z = {z}"


def test_handlers_outside_do_not_leak_in():
    def model():
        numpyro.sample("x", dist.Normal(0.0, 1.0))

    expected = dist.Normal(0.0, 1.0).log_prob(0.3)
    with handlers.trace() as sites, handlers.scale(scale=5.0), numpyro.plate("N", 3):
        log_p = ppl.log_density(from_numpyro(model)(), {"x": 0.3})
    assert_close(log_p, expected, "under outer handlers")
    assert "x" not in sites


def test_bound_programs_have_all_methods():
    program = from_numpyro(plain)
    assert repr(program()) == "plain(...)"
    assert repr(program) == "from_numpyro(plain)"
    bound = program().condition(rate=2.0).scale(mean=3.0)
    expected = (
        3.0 * dist.Normal(1.0, 2.0).log_prob(0.5)
        + dist.Gamma(2.0, 3.0).log_prob(2.0)
        + dist.Normal(0.5, 2.0).log_prob(0.7)
        + dist.Poisson(2.0).log_prob(3)
    )
    assert_close(bound.log_density({"mean": 0.5}), expected, "condition and scale")
    assert program().sample(KEY).shape == ()
    shapes = ppl.trace_shapes(from_numpyro(chain)(Y, 6))
    assert shapes["x"].shape == (6, 2)
    assert __file__ in shapes["x"].where


def test_a_programs_inside_and_methods():
    class Holder:
        @from_numpyro
        def model(self, loc):
            return numpyro.sample("x", dist.Normal(loc, 1.0))

    @ppl.program
    def outer():
        x = ppl.sample("sub", Holder().model(2.0))
        ppl.sample("y", dist.Normal(x, 1.0), obs=0.0)

    expected = dist.Normal(2.0, 1.0).log_prob(1.0) + dist.Normal(1.0, 1.0).log_prob(0.0)
    assert_close(ppl.log_density(outer(), {"sub": {"x": 1.0}}), expected, "a method, nested")


def test_indices_are_fixed_by_a_handler_inside():
    fixed = handlers.substitute(subsampled, data={"N": jnp.array([1, 4])})
    values = {"mean": jnp.array(0.2), "local": jnp.array([0.1, -0.3])}
    expected, _ = numpyro_log_density(fixed, (Y,), {}, values)
    assert_close(ppl.log_density(from_numpyro(fixed)(Y), values), expected, "substituted indices")


# Fits


def conjugate_model(data, size=None):
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
    with numpyro.plate("N", len(data), subsample_size=size):
        numpyro.sample("y", dist.Normal(mean, 1.5), obs=numpyro.subsample(data, event_dim=0))


def conjugate_guide(data, size=None):
    loc = numpyro.param("loc", 0.0)
    scale = numpyro.param("scale", 1.0, constraint=constraints.positive)
    numpyro.sample("mean", dist.Normal(loc, scale))


def subsampling_guide(data, size=None):
    conjugate_guide(data, size)
    with numpyro.plate("N", len(data), subsample_size=size):
        pass


DATA = jnp.linspace(-1.0, 4.0, 20) + jnp.sin(jnp.arange(20.0))


def make_elbo(model, guide, size=None):
    target, family = from_numpyro(model), from_numpyro(guide)

    @ppl.expectation
    def elbo(params, data):
        trace, log_q = ppl.simulate(family(data, size, params=params))
        return ppl.log_density(target(data, size, params=params), trace) - log_q

    return elbo, family


def test_fit_finds_the_conjugate_posterior():
    elbo, family = make_elbo(conjugate_model, conjugate_guide)
    params = family.init_params(KEY, DATA)
    fit = ppl.maximize(
        elbo,
        params,
        KEY,
        DATA,
        optimizer=optax.adam(optax.linear_schedule(0.05, 0.0, 800)),
        steps=800,
        samples=8,
        progress=False,
    )
    precision = 1 / 2.0**2 + 20 / 1.5**2
    mean, sd = float(DATA.sum() / 1.5**2 / precision), precision**-0.5
    assert abs(fit.params["loc"] - mean) < 0.02, "loc"
    assert abs(jnp.exp(fit.params["scale"]) - sd) < 0.01, "scale"
    # At the exact posterior, the ELBO is the evidence, of which every single draw is the value.
    exact = {"loc": jnp.float32(mean), "scale": jnp.log(jnp.float32(sd))}
    covariance = 1.5**2 * jnp.eye(20) + 2.0**2
    evidence = dist.MultivariateNormal(jnp.zeros(20), covariance).log_prob(DATA)
    np.testing.assert_allclose(elbo.estimate(jax.random.key(1), exact, DATA), evidence, rtol=1e-4)


@pytest.mark.parametrize("guide", [conjugate_guide, subsampling_guide], ids=["model subsamples", "both subsample"])
def test_subsampled_elbo_is_unbiased(guide):
    elbo, _ = make_elbo(conjugate_model, guide, size=5)
    params = {"loc": jnp.float32(0.7), "scale": jnp.float32(-1.0)}

    def exact(params):
        loc, sd = params["loc"], jnp.exp(params["scale"])
        prior = dist.Normal(0.0, 2.0).log_prob(loc) - 0.5 * sd**2 / 4.0
        data = dist.Normal(loc, 1.5).log_prob(DATA).sum() - 20 * 0.5 * sd**2 / 1.5**2
        return prior + data + dist.Normal(loc, sd).entropy()

    count = 20_000
    keys = jax.random.split(jax.random.key(11), count)
    values, grads = jax.jit(jax.vmap(lambda key: elbo.value_and_grad(key, params, DATA)))(keys)
    value, grad = jax.value_and_grad(exact)(params)
    for name, found, expected in [("value", values, value), *((n, grads[n], grad[n]) for n in grad)]:
        assert found.std() > 0.1, f"{name} does not vary: nothing was subsampled"
        z = (found.mean() - expected) / (found.std() / np.sqrt(count))
        assert abs(z) < 4, f"{name}: z = {z}"


def test_model_scores_the_guides_minibatch():
    def guide(data):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        with numpyro.plate("N", 6, subsample_size=2) as rows:
            numpyro.sample("local", dist.Normal(mean + data[rows], 1e-6))

    def model(data):
        numpyro.sample("mean", dist.Normal(0.0, 1.0))
        with numpyro.plate("N", 6, subsample_size=2) as rows:
            local = numpyro.sample("local", dist.Normal(0.0, 1.0))
            numpyro.deterministic("difference", local - data[rows])

    @ppl.program
    def checked():
        trace, _ = ppl.simulate(from_numpyro(guide)(Y))
        return trace["local"] - trace["mean"] - Y[trace["N"]], ppl.log_density(from_numpyro(model)(Y), trace)

    difference, log_p = checked().sample(KEY)
    np.testing.assert_allclose(difference, 0.0, atol=1e-4)
    assert np.isfinite(log_p)


def test_autoguide_is_a_family():
    auto = AutoNormal(conjugate_model)
    elbo, family = make_elbo(conjugate_model, auto)
    with pytest.raises(ppl.errors.NumPyroError, match="init_params"):
        elbo.estimate(KEY, {}, DATA)
    params = family.init_params(KEY, DATA)
    assert sorted(params) == ["mean_auto_loc", "mean_auto_scale"]
    assert np.isfinite(elbo.estimate(KEY, params, DATA))
    trace, log_q = family(DATA, params=params).simulate(KEY)
    scale = biject_to(AutoNormal.scale_constraint)(params["mean_auto_scale"])
    assert_close(log_q, dist.Normal(params["mean_auto_loc"], scale).log_prob(trace["mean"]), "AutoNormal")


def test_autoguide_with_an_auxiliary_latent():
    family = from_numpyro(AutoMultivariateNormal(conjugate_model))
    params = family.init_params(KEY, DATA)
    trace, log_q = family(DATA, params=params).simulate(KEY)
    scale_tril = biject_to(AutoMultivariateNormal.scale_tril_constraint)(params["auto_scale_tril"])
    expected = dist.MultivariateNormal(params["auto_loc"], scale_tril=scale_tril).log_prob(trace["mean"][None])
    assert_close(log_q, expected, "AutoMultivariateNormal")
    assert_close(trace.pop("_auto_latent"), trace["mean"][None], "the auxiliary latent")
    assert np.isfinite(ppl.log_density(from_numpyro(conjugate_model)(DATA), trace))


def test_draws_come_from_the_programs_key():
    program = from_numpyro(handlers.seed(plain, rng_seed=0))
    one, other = (program().simulate(jax.random.key(i))[0]["mean"] for i in range(2))
    assert one != other


# Parameters


def test_init_params_are_unconstrained():
    params = from_numpyro(parameters).init_params(KEY)
    assert_close(params["scale"], jnp.log(0.5), "scale")
    assert_close(biject_to(constraints.simplex)(params["weights"]), jnp.array([0.2, 0.3, 0.5]), "weights")
    assert_close(biject_to(constraints.lower_cholesky)(params["chol"]), jnp.eye(2), "chol")
    assert float(jnp.abs(params["loc"]).min()) > 0.0
    other = from_numpyro(parameters).init_params(jax.random.key(1))
    assert not np.allclose(params["loc"], other["loc"]), "loc does not depend on the key"
    assert from_numpyro(parameter_in_plate).init_params(KEY, Y)["loc"].shape == (6, 2)
    integer = from_numpyro(lambda: numpyro.param("n", 10)).init_params(KEY)
    assert integer["n"].dtype == jnp.result_type(float)


def test_param_in_a_loop():
    def guide():
        def step(x, _):
            scale = numpyro.param("scale", 2.0, constraint=constraints.positive)
            return numpyro.sample("x", dist.Normal(x, scale)), None

        scan(step, 0.0, None, length=3)

    program = from_numpyro(guide)
    params = program.init_params(KEY)
    assert_close(params["scale"], jnp.log(2.0), "scale")
    expected = dist.Normal(jnp.array([0.0, 1.0, 2.0]), 2.0).log_prob(jnp.array([1.0, 2.0, 3.0])).sum()
    assert_close(ppl.log_density(program(params=params), {"x": jnp.array([1.0, 2.0, 3.0])}), expected, "scan")

    def computed():
        def step(x, _):
            numpyro.param("scale", x + 1.0)
            return x, None

        scan(step, 0.0, None, length=3)

    with pytest.raises(ppl.errors.NumPyroError, match=r"'scale' is computed in the body"):
        from_numpyro(computed).init_params(KEY)


def test_missing_and_wrong_parameters():
    program = from_numpyro(parameters)
    with pytest.raises(ppl.errors.MissingParameterError, match=r"param\('scale'\)[\s\S]*test_from_numpyro[\s\S]*init_params"):
        program().simulate(KEY)
    params = program.init_params(KEY)
    with pytest.raises(ppl.errors.ValueShapeError, match=r"parameter 'scale' has shape \(2,\)"):
        program(params={**params, "scale": jnp.zeros(2)}).simulate(KEY)
    with pytest.raises(ppl.errors.MissingParameterError, match="'a'"):
        from_numpyro(lambda: numpyro.param("a")).init_params(KEY)
    with pytest.raises(ppl.errors.SupportError, match="'a'"):
        from_numpyro(lambda: numpyro.param("a", -1.0, constraint=constraints.positive)).init_params(KEY)

    def twice():
        numpyro.param("a", 1.0)
        numpyro.param("a", 1.0, constraint=constraints.positive)

    with pytest.raises(ppl.errors.NumPyroError, match=r"'a'[\s\S]*test_from_numpyro[\s\S]*before"):
        from_numpyro(twice).init_params(KEY)
    with pytest.raises(ppl.errors.NumPyroError, match=r"'a'[\s\S]*before"):
        from_numpyro(twice)(params={"a": 1.0}).simulate(KEY)

    def tree():
        numpyro.param("a", {"b": 1.0}, constraint=constraints.positive)

    with pytest.raises(ppl.errors.NumPyroError, match=r"'a'[\s\S]*tree of arrays"):
        from_numpyro(tree).init_params(KEY)


# Refusals


def batch_norm(x):
    net = flax_module("net", flax.linen.BatchNorm(use_running_average=False), input_shape=(1, 3), mutable=["batch_stats"])
    net(x)


def outer_mask_over_time():
    with handlers.mask(mask=HOLES):
        scan(lambda c, _: (numpyro.sample("x", dist.Normal(c, 1.0)), None), 0.0, None, length=6)


def scale_over_time():
    with handlers.scale(scale=jnp.arange(1.0, 7.0)):
        scan(lambda c, _: (numpyro.sample("x", dist.Normal(c, 1.0)), None), 0.0, None, length=6)


def scale_beyond_the_statement():
    with handlers.scale(scale=jnp.ones(3)):
        numpyro.sample("x", dist.Normal(0.0, 1.0))


def scaled_factor_beyond_the_statement():
    with handlers.scale(scale=jnp.ones(3)):
        numpyro.factor("x", 1.0)


def part_of_the_data():
    with handlers.condition(data={"x": Y[:3]}):
        scan(lambda c, _: (numpyro.sample("x", dist.Normal(c, 1.0)), None), 0.0, None, length=6)


def nested_conditioned_scans():
    def outer(c, _):
        return scan(lambda c, _: (numpyro.sample("x", dist.Normal(c, 1.0)), None), c, None, length=6)

    with handlers.condition(data={"x": Y}):
        scan(outer, 0.0, None, length=2)


def replayed():
    with handlers.replay(trace={}):
        scan(lambda c, _: (numpyro.sample("x", dist.Normal(c, 1.0)), None), 0.0, None, length=6)


def lifted():
    def step(c, _):
        numpyro.param("x", 1.0)
        return c, None

    with handlers.lift(prior=dist.Normal(0.0, 1.0)):
        scan(step, 0.0, None, length=6)


def another_size():
    with numpyro.plate("x", 6, subsample_size=2):
        pass
    with numpyro.plate("x", 6, subsample_size=3):
        pass


def hidden():
    with handlers.block():
        numpyro.sample("x", dist.Normal(0.0, 1.0))


def unknown():
    numpyro.primitives.apply_stack(
        {"type": "teleport", "name": "x", "fn": lambda: None, "args": (), "kwargs": {}, "value": None}
    )


REFUSED = {
    "prng_key": (lambda: numpyro.prng_key(), "'prng_key'"),
    "block": (hidden, "'prng_key'"),
    "mutable": (lambda: numpyro.primitives.mutable("x", {}), "'x' of type 'mutable'"),
    "unknown type": (unknown, "'x' of type 'teleport'"),
    "mask around scan": (outer_mask_over_time, r"'x' of type 'sample'[\s\S]*batch shape"),
    "scale around scan": (scale_over_time, r"'x' of type 'sample'[\s\S]*scale"),
    "scale": (scale_beyond_the_statement, r"'x' of type 'sample'[\s\S]*several times"),
    "scaled factor": (scaled_factor_beyond_the_statement, r"'x' of type 'sample'[\s\S]*several times"),
    "part of the data": (part_of_the_data, r"'x'[\s\S]*length 6[\s\S]*\[3\]"),
    "nested scans": (nested_conditioned_scans, r"'x'[\s\S]*handlers.condition around a scan"),
    "replay": (replayed, "'control_flow'[\\s\\S]*replay"),
    "lift": (lifted, "'x'[\\s\\S]*lift"),
    "two sizes": (another_size, r"'x' of type 'plate'[\s\S]*3 of 6"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_statement_and_the_line(case):
    model, message = REFUSED[case]
    with pytest.raises(ppl.errors.NumPyroError, match=message) as error:
        from_numpyro(model)().simulate(KEY)
    assert __file__ in str(error.value)


def test_batch_norm_is_refused():
    with pytest.raises(ppl.errors.NumPyroError, match=r"'net\$state' of type 'mutable'"):
        from_numpyro(batch_norm).init_params(KEY, TABLE)


@pytest.mark.parametrize(
    ("shape", "obs_shape"), [((100,), (100, 1)), ((3,), ()), ((3,), (1,)), ((2, 1), (2, 3)), ((1,), (3,)), ((3,), (3, 2))]
)
def test_broadcast_observations_are_refused(shape, obs_shape):
    def model():
        numpyro.sample("labels", dist.Bernoulli(logits=jnp.zeros(shape)), obs=jnp.zeros(obs_shape, int))

    with pytest.raises(ppl.errors.ObservationShapeError, match=r"'labels'[\s\S]*test_from_numpyro"):
        ppl.log_density(from_numpyro(model)(), {})


def test_observation_too_small_for_its_plate():
    def model():
        with numpyro.plate("N", 6):
            numpyro.sample("y", dist.Normal(0.0, 1.0), obs=Y[:1])

    with pytest.raises(ppl.errors.ObservationShapeError, match="'y'"):
        ppl.log_density(from_numpyro(model)(), {})


def test_substituted_value_of_another_shape():
    model = handlers.substitute(plain, data={"mean": jnp.ones(3)})
    with pytest.raises(ppl.errors.ValueShapeError, match="'mean'"):
        from_numpyro(model)().simulate(KEY)


def test_duplicate_names():
    def model():
        numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(ppl.errors.DuplicateAddressError, match="'x'"):
        from_numpyro(model)().simulate(KEY)


def test_the_stack_is_clean_after_an_error():
    with pytest.raises(ppl.errors.NumPyroError):
        from_numpyro(numpyro.prng_key)().simulate(KEY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert numpyro.prng_key() is None
