"""Densities of families: they integrate to one, score what they draw, and are those of the text that is printed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ppl
import ppl.distributions as dist
from benchmarks import posteriors
from ppl import errors
from ppl.families import (
    autoregressive_flow,
    block,
    by_address,
    coupling_flow,
    full_rank,
    joint,
    low_rank,
    mean_field,
    structured,
)

KEY = jax.random.key(0, impl="rbg")  # compiles faster than the default
real, positive = dist.constraints.real, dist.constraints.positive


def perturbed(family):
    """Parameters of the family's shapes, away from any special place."""
    leaves, tree = jax.tree.flatten(family.fits)
    draws = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [jnp.asarray(0.3 * draws.normal(size=leaf.shape), leaf.dtype) for leaf in leaves])


@ppl.program
def inner(loc):
    def element(x):
        v = ppl.sample("v", dist.Normal(x, 1.0))
        return v + ppl.sample("sorted", dist.ImproperUniform(dist.constraints.ordered_vector, (), (2,))).sum()

    return ppl.plate("elements", element)(loc * jnp.ones(2))


@ppl.program
def zoo():
    """Supports of all kinds, at nested addresses, in a plate, a `vmap` and a scan."""
    tau = ppl.sample("tau", dist.HalfCauchy(1.0))
    total = ppl.sample("sub", inner(tau)).sum()
    ppl.sample("weights", dist.Dirichlet(jnp.ones(3)))
    ppl.sample("rate", dist.Beta(2.0, 2.0).expand([2]))
    ppl.sample("scales", dist.LKJCholesky(2, 1.0))
    ppl.sample("covariance", dist.ImproperUniform(dist.constraints.positive_definite, (), (2, 2)))

    def step(x, _):
        x = ppl.sample("x", dist.TruncatedNormal(x, 1.0, low=-1.0, high=4.0))
        jax.vmap(lambda s: ppl.sample("w", dist.Gamma(s, 1.0)))(jnp.ones(2))
        return x, None

    end, _ = jax.lax.scan(step, tau, None, length=3)
    ppl.sample("y", dist.Normal(end + total, 1.0), obs=0.3)


@ppl.program
def moving():
    """Bounds that are other variables, or are computed."""
    low = ppl.sample("low", dist.Normal(0.0, 1.0))
    high = ppl.sample("high", dist.Uniform(low, low + jnp.array([1.0, 2.0])))
    jax.vmap(lambda h: ppl.sample("between", dist.Uniform(low, h)))(high)


FAMILIES = {
    "mean_field": mean_field,
    "full_rank": full_rank,
    "block": lambda model: block(model, [("tau", "sub/v")]),
    "structured": structured,
    "by_address": lambda model: by_address(
        model, {("tau", "x"): full_rank, "sub": lambda m, addresses: coupling_flow(m, addresses, layers=1, width=4)}, mean_field
    ),
}


@pytest.mark.parametrize(
    ("model", "names"), [(zoo, ["mean_field", "block", "structured", "by_address"]), (moving, ["mean_field", "full_rank"])]
)
def test_scores_what_it_draws_and_prints_what_it_is(model, names):
    made = {name: FAMILIES[name](model()) for name in names}
    pasted = {}
    for name, family in made.items():
        namespace = family.namespace()
        exec(str(family), namespace)
        pasted[name] = namespace["family"]
        ppl.check_family(model(), family(perturbed(family)))

    @jax.jit
    def evaluate(params, key):
        results = {}
        for name, family in made.items():
            trace, log_q = family(params[name]).simulate(key)
            again = family(params[name]).log_density(trace)
            results[name] = log_q, again, pasted[name](params[name]).log_density(trace)
        return results

    for log_q, scored, printed in evaluate({n: perturbed(f) for n, f in made.items()}, KEY).values():
        np.testing.assert_allclose(scored, log_q, rtol=1e-3)
        np.testing.assert_allclose(printed, scored, rtol=1e-6)


def test_densities_on_constrained_supports_integrate_to_one():
    @ppl.program
    def box():
        ppl.sample("a", dist.HalfNormal(1.0))
        ppl.sample("b", dist.Uniform(-1.0, 2.0))

    simplex = ppl.program(lambda: ppl.sample("w", dist.Dirichlet(jnp.ones(3))))
    edges = ppl.program(lambda: ppl.sample("b", dist.Uniform(ppl.sample("a", dist.HalfNormal(1.0)), 4.0)))

    def total(family, values, cell):
        bound = family(perturbed(family))
        return float(jnp.sum(jnp.exp(jax.jit(jax.vmap(bound.log_density))(values))) * cell)

    a = np.exp(np.linspace(-6.0, 6.0, 400))[:, None] * np.ones(300)
    b = np.linspace(-1.0, 2.0, 301)[None, :-1] + 0.005 + np.zeros((400, 1))
    cell = (12.0 / 399) * a.ravel()  # of the logarithm of a
    for make in (full_rank, low_rank, structured):
        family = make(box())
        bound = family(perturbed(family))
        density = jnp.exp(jax.vmap(bound.log_density)({"a": jnp.asarray(a.ravel()), "b": jnp.asarray(b.ravel())}))
        np.testing.assert_allclose(np.sum(density * cell) * 0.01, 1.0, atol=2e-3)
    grid = (np.arange(400) + 0.5) / 400
    first, second = (x.ravel() for x in np.meshgrid(grid, grid))
    inside = first + second < 1.0
    w = np.stack([first, second, 1.0 - first - second], axis=1)[inside]
    np.testing.assert_allclose(total(full_rank(simplex()), {"w": jnp.asarray(w)}, 400.0**-2), 1.0, atol=5e-3)
    share = (np.arange(300) + 0.5) / 300  # b is a share of what lies between a and 4
    a, share = (x.ravel() for x in np.meshgrid(np.linspace(1e-3, 3.99, 400), share))
    family = by_address(edges(), {("a", "b"): full_rank})
    bound = family({"a+b": {"loc": jnp.array([-1.0, 0.2]), "log_scale": jnp.array([-1.0, 0.0]), "lower": jnp.array([0.5])}})
    density = jnp.exp(jax.vmap(bound.log_density)({"a": jnp.asarray(a), "b": jnp.asarray(a + (4.0 - a) * share)}))
    width = (3.99 - 1e-3) / 399
    np.testing.assert_allclose(np.sum(density * (4.0 - a)) * width / 300, 1.0, atol=5e-3)


@pytest.mark.parametrize("make", [coupling_flow, autoregressive_flow])
def test_flows_integrate_to_one(make):
    plane = ppl.program(lambda: ppl.sample("x", dist.Normal(0.0, 1.0).expand([2])))
    family = make(plane(), layers=2, width=8)
    params = perturbed(family)
    grid = jnp.linspace(-10.0, 10.0, 401)
    points = jnp.stack(jnp.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    density = jnp.exp(jax.jit(jax.vmap(lambda x: family(params).log_density({"x": x})))(points))
    np.testing.assert_allclose(jnp.sum(density) * 0.05**2, 1.0, atol=2e-3)
    straight = full_rank(plane())(perturbed(full_rank(plane())) | {k: params[k] for k in ("loc", "log_scale")})
    gaussian = jnp.exp(jax.vmap(lambda x: straight.log_density({"x": x}))(points))
    assert jnp.max(jnp.abs(density - gaussian)) > 0.01


def test_variables_in_branches_count_where_they_are():
    @ppl.program
    def model():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        jax.lax.cond(
            x > 0.0,
            lambda: ppl.sample("a", dist.HalfNormal(1.0)),
            lambda: ppl.sample("b", dist.Normal(0.0, 1.0)),
        )

    params = {"loc": jnp.array([0.1, 0.2, 0.3]), "log_scale": jnp.array([0.0, -0.5, 0.5])}
    family = mean_field(model())
    assert [latent.name for latent in family.latents] == ["x", "b", "a"]  # a cond's last branch is the true one
    scored = jax.jit(family(params).log_density)
    positive = stats.lognorm(np.exp(0.5), scale=np.exp(0.3)).logpdf(1.5)
    negative = stats.norm(0.2, np.exp(-0.5)).logpdf(0.4)
    for x, own in ((0.7, positive), (-0.7, negative)):
        trace = {"x": x, "a": 1.5, "b": 0.4}
        np.testing.assert_allclose(scored(trace), stats.norm(0.1, 1.0).logpdf(x) + own, rtol=1e-5)
    with pytest.raises(errors.FamilyError, match="'b' stands in a branch of a cond, and counts only where"):
        full_rank(model())
    with pytest.raises(errors.FamilyError, match="depends on 'x', which another family draws"):
        by_address(model(), {"x": mean_field}, mean_field)


def test_joint_statements():
    normal = dist.MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.5], [0.5, 1.0]]))

    @ppl.program
    def program():
        return joint(normal, {"p/a": real, "b": positive})

    trace = {"p": {"a": 0.3}, "b": 2.0}
    exact = stats.multivariate_normal(np.zeros(2), [[1.0, 0.5], [0.5, 1.0]]).logpdf([0.3, np.log(2.0)]) - np.log(2.0)
    np.testing.assert_allclose(program().log_density(trace), exact, rtol=1e-5)
    np.testing.assert_allclose(program().condition(trace).log_density({}), exact, rtol=1e-5)
    np.testing.assert_allclose(program().scale(3.0).log_density(trace), 3.0 * exact, rtol=1e-5)
    np.testing.assert_allclose(program().condition(b=2.0).log_density({"p": {"a": 0.3}}), exact, rtol=1e-5)
    with pytest.raises(errors.FamilyError, match="a part of p/a, b, which have one joint density"):
        program().condition(b=2.0).simulate(KEY)
    with pytest.raises(errors.FamilyError, match="has 2 coordinates and the parts take 3: a 1, w 2"):
        ppl.program(lambda: joint(normal, {"a": real, "w": (dist.constraints.simplex, (3,))}))().sample(KEY)
    with pytest.raises(errors.FamilyError, match=r"vectors \[D\], got Normal of shape \[2\]"):
        ppl.program(lambda: joint(dist.Normal(jnp.zeros(2)), {"a": (real, (2,))}))().sample(KEY)
    # Discrete parts: a vector of integers is cut in pieces.
    coins = dist.Bernoulli(probs=jnp.array([0.2, 0.6])).to_event(1)
    bits = ppl.program(lambda: joint(coins, {"a": dist.constraints.boolean, "b": dist.constraints.boolean}))
    np.testing.assert_allclose(bits().log_density({"a": 1, "b": 0}), np.log(0.2 * 0.4), rtol=1e-5)


REFERENCES = sorted(posteriors.RECIPES) if posteriors.folder().is_dir() else []
QUICK = (
    "eight_schools-eight_schools_centered",
    "hmm_example-hmm_example",
    "kidiq-kidscore_interaction",
    "wells_data-wells_dae_model",
)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in REFERENCES])
def test_reference_posteriors(name):
    """The ELBO at the start is finite, and traces of the model are scored: of one family under the others."""
    model = posteriors.load(name).model
    start = mean_field(model).init(KEY)
    made = {kind: FAMILIES[kind](model) for kind in ("mean_field", "full_rank", "structured")}
    locs = jnp.concatenate([jnp.ravel(start[latent.name]["loc"]) for latent in made["mean_field"].latents])

    def params(kind):
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), made[kind].fits)
        if kind == "full_rank":
            return zeros | {"loc": locs, "log_scale": zeros["log_scale"] + np.log(0.1)}
        return {name: own | start[name] for name, own in zeros.items()}

    @jax.jit
    def evaluate(key):
        trace, log_q = made["full_rank"](params("full_rank")).simulate(key)
        scores = [family(params(kind)).log_density(trace) for kind, family in made.items()]
        return model.log_density(trace) - log_q, log_q, jnp.stack(scores)

    for kind, family in made.items():
        ppl.check_family(model, family(params(kind)))
    elbo, log_q, scores = evaluate(KEY)
    assert np.isfinite(elbo)
    np.testing.assert_allclose(scores, log_q, rtol=1e-4, atol=1e-3)  # all three are the same Gaussian at the start
