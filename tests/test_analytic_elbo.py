"""The ELBO with closed-form divergences: the same expectation, less noise, and no formula where it would be wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_models import BOUND, KEY, Coins, Normals, assert_unbiased, draws_of, exact_mean, z_scores

import ppl
import ppl.distributions as dist
import ppl.objectives as obj
from ppl.transforms.divergence import closed_form_divergences


def closed(model, family):
    """The addresses with a closed form."""
    found = {}

    def run():
        trace, _ = ppl.simulate(family)
        found.update(closed_form_divergences(family, model, trace))
        return 0.0

    jax.eval_shape(ppl.seed(run), KEY)
    return {"/".join(address) for address in found}


def test_the_conjugate_normal():
    exact = exact_mean(Normals, lambda l: l[:, 0])
    assert closed(Normals.model(Normals.params), Normals.family(Normals.params)) == {"z"}
    assert_unbiased(lambda p: obj.elbo_analytic(Normals.model(p), Normals.family(p)), Normals.params, exact)
    assert closed(Coins.model(Coins.params), Coins.family(Coins.params)) == set()  # NumPyro has none for Bernoulli
    assert_unbiased(
        lambda p: obj.elbo_analytic(Coins.model(p), Coins.family(p)), Coins.params, exact_mean(Coins, lambda l: l[:, 0]), 10
    )


PAIRS = {
    "normal": (lambda p: dist.Normal(p, 1.3), dist.Normal(0.3, 0.8)),
    "beta": (lambda p: dist.Beta(1.0 + p, 2.0), dist.Beta(2.0, 3.0)),
    "gamma": (lambda p: dist.Gamma(1.0 + p, 2.0), dist.Gamma(2.0, 3.0)),
    "dirichlet": (lambda p: dist.Dirichlet(1.0 + p * jnp.arange(3.0)), dist.Dirichlet(jnp.ones(3))),
    "events of normals": (
        lambda p: dist.Normal(p * jnp.arange(3.0), 1.3).to_event(1),
        dist.Normal(jnp.zeros(3), 0.8).to_event(1),
    ),
    "batch against one": (lambda p: dist.Normal(p * jnp.ones(3), 1.3), dist.Normal(jnp.zeros(3), 0.8)),
    "categorical": (lambda p: dist.Categorical(probs=jnp.array([0.2, 0.8])), dist.Categorical(probs=jnp.array([0.5, 0.5]))),
}


@pytest.mark.parametrize("name", PAIRS)
def test_single_sites_plain_and_in_loops(name):
    """In a plate, in a scan, and in a scan in a plate, against the divergence itself; no noise is left."""
    make, prior = PAIRS[name]
    rates = jnp.array([0.5, 1.0])

    def program(of):
        def body():
            ppl.sample("a", of(rates[0]))
            jax.vmap(lambda p: ppl.sample("b", of(p)))(rates)
            jax.lax.scan(lambda _, p: (None, ppl.sample("c", of(p))), None, rates)
            jax.vmap(lambda q: jax.lax.scan(lambda _, p: (None, ppl.sample("d", of(p + q))), None, rates))(rates)

        return ppl.program(body)()

    model, family = program(lambda p: prior), program(make)
    assert closed(model, family) == {"a", "b", "c", "d"}

    def divergence(p):
        return jnp.sum(dist.kl_divergence(make(p), prior))

    each = [rates[0], *rates, *rates, *(p + q for p in rates for q in rates)]
    value = jax.jit(ppl.seed(lambda: obj.elbo_analytic(model, family)))(KEY)
    np.testing.assert_allclose(value, -sum(map(divergence, each)), rtol=2e-4)


def test_conditional_divergences_given_sampled_parents():
    @ppl.program
    def model():
        a = ppl.sample("a", dist.Normal(0.0, 1.0))
        b = ppl.deterministic("b", 2.0 * a)
        c = ppl.sample("c", dist.Normal(b, 1.0))
        ppl.sample("y", dist.Normal(c, 1.0), obs=1.0)

    @ppl.program
    def forward(p):
        a = ppl.sample("a", dist.Normal(p[0], 1.0))
        ppl.sample("c", dist.Normal(p[1] + a, jnp.exp(p[2])))

    @ppl.program
    def backward(p):
        c = ppl.sample("c", dist.Normal(p[0], 1.0))
        ppl.sample("a", dist.Normal(p[1] + c, jnp.exp(p[2])))

    params = jnp.array([0.3, -0.2, 0.4])
    assert closed(model(), forward(params)) == {"a", "c"}
    assert closed(model(), backward(params)) == {"a"}  # c's parent in the model is drawn after c, given c
    for family in (forward, backward):
        plain, closed_form = (
            draws_of(lambda p, f=f, q=family: f(model(), q(p)), params, 40_000) for f in (obj.elbo, obj.elbo_analytic)
        )
        for one, other in zip(plain, closed_form, strict=True):
            spread = np.sqrt((np.var(one, 0) + np.var(other, 0)) / len(one))
            assert np.all(np.abs(np.mean(one, 0) - np.mean(other, 0)) < BOUND * spread)
        assert np.var(closed_form[0]) < np.var(plain[0])


def test_what_counts_otherwise_is_sampled():
    @ppl.program
    def model():
        ppl.sample("a", dist.Normal(0.0, 1.0))
        ppl.plate("rows", lambda _: ppl.sample("b", dist.Normal(0.0, 1.0)), size=6)(jnp.arange(2))
        jax.lax.cond(
            jnp.array(True), lambda: ppl.sample("c", dist.Normal(0.0, 1.0)), lambda: ppl.sample("d", dist.Normal(0.0, 1.0))
        )

    assert closed(model(), model()) == {"a"}
    assert closed(model().scale(a=2.0), model()) == set()
    assert closed(model(), model().mask(a=False)) == set()

    @ppl.program
    def walk(mean):
        jax.lax.scan(lambda x, _: (ppl.sample("x", dist.Normal(mean * x, 1.0)), None), 1.0, None, length=3)

    assert closed(walk(0.5), walk(0.5)) == set()  # might be read from either end

    @ppl.program
    def apart(mean):
        jax.lax.scan(lambda x, _: (x, ppl.sample("x", dist.Normal(mean, 1.0))), 1.0, None, length=3)

    assert closed(walk(0.5), apart(0.5)) == {"x"}
    exact = -2 * 0.5 * 0.25 * (0.5**2 + 1.0)  # no divergence at the first step, then E[(0.5 - 0.5 x)^2] / 2
    values, _ = draws_of(lambda m: obj.elbo_analytic(walk(0.5), apart(m)), 0.5, 20_000)
    assert abs(z_scores(values, exact)) < BOUND
