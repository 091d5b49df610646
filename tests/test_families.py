"""Families against exact posteriors, and the programs that they print."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import ppl
import ppl.distributions as dist
from ppl import errors, families
from ppl.families import by_address, full_rank, laplace, low_rank, mean_field, structured

KEY = jax.random.key(0, impl="rbg")  # compiles faster than the default
ROWS = np.array([[1.0, 0.2, -1.0], [1.0, -0.7, 0.3], [1.0, 1.5, 0.8], [1.0, 0.1, -0.4]], np.float32)
TARGETS = np.array([0.3, -1.0, 2.0, 0.7], np.float32)
FACTOR = np.array([[0.5], [-0.5], [1.0], [0.8], [-0.3]], np.float32)


@ppl.program
def regression():
    beta = ppl.sample("beta", dist.Normal(0.0, 2.0).expand([3]))
    ppl.sample("y", dist.Normal(ROWS @ beta, 0.5), obs=TARGETS)


@ppl.program
def tree():
    """A root, leaves in a plate, and a chain of vectors from the root: linear and Gaussian."""
    root = ppl.sample("root", dist.Normal(0.0, 2.0))

    def leaf(y):
        z = ppl.sample("z", dist.Normal(root, 1.0))
        ppl.sample("leaf", dist.Normal(z, 0.5), obs=y)

    def step(x, y):
        x = ppl.sample("x", dist.MultivariateNormal(0.9 * x, jnp.array([[1.0, 0.6], [0.6, 1.0]])))
        ppl.sample("y", dist.Normal(x[0] - x[1], 0.7), obs=y)
        return x, None

    ppl.plate("leaves", leaf)(jnp.array([1.0, 2.0, -1.0]))
    jax.lax.scan(step, root * jnp.ones(2), jnp.array([0.5, 1.0, -1.0, 2.0]))


@ppl.program
def factors():
    ppl.sample("x", dist.MultivariateNormal(jnp.arange(5.0), FACTOR @ FACTOR.T + jnp.diag(jnp.linspace(0.5, 1.0, 5))))


def tree_evidence():
    """By NumPy, of the joint Gaussian of leaves and chain."""
    steps = 4
    noise = np.linalg.cholesky([[1.0, 0.6], [0.6, 1.0]])
    size = 1 + 3 + 2 * steps
    rows = [2.0 * np.eye(size)[0]]
    leaves = [rows[0] + np.eye(size)[1 + i] for i in range(3)]
    x = np.stack([rows[0], rows[0]])
    seen = [np.concatenate([leaf, 0.5 * np.eye(7)[i]]) for i, leaf in enumerate(leaves)]
    for t in range(steps):
        x = 0.9 * x + noise @ np.eye(size)[4 + 2 * t : 6 + 2 * t]
        seen.append(np.concatenate([x[0] - x[1], 0.7 * np.eye(7)[3 + t]]))
    seen = np.array(seen)
    return stats.multivariate_normal(np.zeros(7), seen @ seen.T).logpdf([1.0, 2.0, -1.0, 0.5, 1.0, -1.0, 2.0])


EVIDENCE = {
    "regression": stats.multivariate_normal(np.zeros(4), 4.0 * ROWS @ ROWS.T + 0.25 * np.eye(4)).logpdf(TARGETS),
    "tree": tree_evidence(),
    "factors": 0.0,
}


@pytest.mark.parametrize(
    ("model", "make"), [(regression, full_rank), (tree, structured), (factors, lambda m: low_rank(m, rank=1))]
)
def test_reaches_the_exact_posterior(model, make):
    """At the exact posterior the log ratio of joint and family is the log evidence, for every draw."""
    bound = model()
    family = make(bound)

    @ppl.expectation
    def objective(params):
        return ppl.objectives.sticking_the_landing(bound, family(params))

    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 1500))
    params = family.init(KEY)
    fit = ppl.maximize(objective, params, KEY, optimizer=optimizer, steps=1500, samples=4, progress=False)

    def log_ratio(key):
        trace, log_q = family(fit.params).simulate(key)
        return bound.log_density(trace) - log_q

    ratios = jax.jit(jax.vmap(log_ratio))(jax.random.split(KEY, 200))
    assert np.std(ratios) < 0.01
    np.testing.assert_allclose(np.mean(ratios), EVIDENCE[model.__name__], atol=0.005)


def test_laplace_is_exact_on_gaussians():
    params = laplace(regression()).init(KEY)
    precision = ROWS.T @ ROWS / 0.25 + np.eye(3) / 4.0
    tril = np.asarray(families.scale_tril(params["log_scale"], params["lower"]))
    np.testing.assert_allclose(tril @ tril.T, np.linalg.inv(precision), atol=1e-5)
    np.testing.assert_allclose(params["loc"], np.linalg.solve(precision, ROWS.T @ TARGETS / 0.25), atol=1e-5)


def test_laplace_refuses_what_has_no_mode():
    @ppl.program
    def model():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("flat", dist.ImproperUniform(dist.constraints.real, (), ()))
        ppl.sample("y", dist.Normal(x, 1.0), obs=1.0)

    with pytest.raises(errors.FamilyError, match="no maximum along 'flat'"):
        laplace(model()).init(KEY)


def test_laplace_by_address_holds_the_others():
    family = by_address(tree(), {"root": laplace}, mean_field)
    params = family.init(KEY)
    z = params["default"]["z"]["loc"]
    x = params["default"]["x"]["loc"][0]
    # The conditional posterior of the root given the leaves' means and the first state.
    inverse = np.linalg.inv([[1.0, 0.6], [0.6, 1.0]])
    precision = 1 / 4 + 3 + 0.81 * inverse.sum()
    mean = (z.sum() + 0.9 * np.sum(inverse @ x)) / precision
    np.testing.assert_allclose(params["root"]["loc"][0], mean, rtol=1e-4)
    np.testing.assert_allclose(params["root"]["log_scale"][0], -0.5 * np.log(precision), rtol=1e-4)


def test_delta_finds_the_mode_of_the_space_that_was_asked_for():
    model = ppl.program(lambda: ppl.sample("rate", dist.Gamma(3.0, 2.0)))()
    for space, mode in (("constrained", 1.0), ("unconstrained", 1.5)):
        family = families.delta(model, space=space)
        elbo = ppl.expectation(lambda params, family=family: ppl.objectives.elbo(model, family(params)))
        value, gradient = elbo.value_and_grad(KEY, {"rate": jnp.log(mode)})
        jacobian = np.log(mode) if space == "unconstrained" else 0.0
        np.testing.assert_allclose(value, stats.gamma(3.0, scale=0.5).logpdf(mode) + jacobian, rtol=1e-5)
        np.testing.assert_allclose(gradient["rate"], 0.0, atol=1e-5)


def test_structured_keeps_parameters_linear_in_the_plate():
    def size(n):
        @ppl.program
        def model():
            mu = ppl.sample("mu", dist.Normal(0.0, 1.0))

            def element(y):
                a = ppl.sample("a", dist.Normal(mu, 1.0))
                b = ppl.sample("b", dist.Normal(a, 1.0))
                ppl.sample("y", dist.Normal(a + b, 1.0), obs=y)

            ppl.plate("data", element)(jnp.zeros(n))

        return structured(model()).size

    assert size(200) - size(100) == size(300) - size(200) == 100 * (2 * 2 + 2)  # loc, log_scale; a on mu, b on a


def test_discrete_variables_are_left_to_the_user():
    @ppl.program
    def mixture():
        z = ppl.sample("z", dist.Bernoulli(probs=0.3))
        x = ppl.sample("x", dist.Normal(2.0 * z, 1.0))
        ppl.sample("y", dist.Normal(x, 1.0), obs=1.0)

    @ppl.program
    def coin(params):
        ppl.sample("z", dist.Bernoulli(logits=params["logit"]))

    with pytest.raises(errors.FamilyError, match=r"'z' \(Bernoulli\) is discrete[\s\S]*marginal[\s\S]*by_address"):
        mean_field(mixture())
    family = by_address(mixture(), {"z": (coin, {"logit": jnp.zeros(())}), "x": mean_field})
    params = family.init(KEY)
    ppl.check_family(mixture(), family(params))
    objective = ppl.expectation(lambda params: ppl.objectives.elbo(mixture(), family(params)))
    assert {type(row.estimator).__name__ for row in objective.estimators(params)} == {"Enumerate", "Reparameterize"}
    loc, scale = float(params["x"]["x"]["loc"]), 0.1
    joint = [
        np.log(p) + stats.norm(m, 1.0).logpdf(loc) - scale**2 / 2 + stats.norm(1.0, 1.0).logpdf(loc) - scale**2 / 2
        for p, m in ((0.7, 0.0), (0.3, 2.0))
    ]
    exact = np.mean(joint) + np.log(2.0) + stats.norm(0.0, scale).entropy()
    estimates = jax.vmap(lambda key: objective.estimate(key, params))(jax.random.split(KEY, 1000))
    z_score = (np.mean(estimates) - exact) / (np.std(estimates) / 1000**0.5)
    assert abs(z_score) < 4


def test_minibatches_of_an_amortized_family_average_to_all_data():
    @ppl.program
    def model(batch):
        scale = ppl.sample("scale", dist.HalfNormal(1.0))

        def datum(y):
            z = ppl.sample("z", dist.Normal(0.0, scale).expand([2]))
            ppl.sample("y", dist.Normal(z[0] * z[1], 1.0), obs=y)

        ppl.plate("data", datum, size=4)(batch)

    def encoder(weights, y):
        return jnp.tanh(weights * (1.0 + y))

    def family(batch):
        local, weights = full_rank, jnp.linspace(-1.0, 1.0, 5)
        return families.amortized(model(batch), encoder, batch, weights=weights, local=local)

    data = jnp.arange(4.0)
    params = family(data).init(KEY)
    trace, log_q = family(data)(params).simulate(KEY)
    parts = []
    for i in range(4):
        batch = data[i : i + 1]
        bound = family(batch)(params)
        ppl.check_family(model(batch), bound)
        parts.append(bound.log_density({"scale": trace["scale"], "z": trace["z"][i : i + 1]}))
    np.testing.assert_allclose(np.mean(parts), log_q, rtol=1e-5)
    objective = ppl.expectation(lambda params, batch: ppl.objectives.elbo(model(batch), family(batch)(params)))
    assert not list(objective.check(params, data[:2]))  # the joint draws of a plate count with its scale
    with pytest.raises(errors.FamilyError, match=r"size=[\s\S]*amortized"):
        mean_field(model(data[:2]))
    with pytest.raises(errors.FamilyError, match=r"has 2 elements, and the data along their first axis: 4"):
        families.amortized(model(data[:2]), encoder, data)
    wrong = families.amortized(model(data), lambda w, y: jnp.zeros(3), data, weights=())
    with pytest.raises(errors.FamilyError, match=r"one vector, \[4\]"):
        ppl.check_family(model(data), wrong({"encoder": (), "rest": params["rest"]}))


def test_detach_stops_the_path_through_a_joint_draw():
    family = full_rank(regression())
    params = family.init(KEY)

    def value(params, bound):
        return jnp.sum(ppl.simulate(bound)[0]["beta"])

    through = ppl.expectation(lambda params: value(params, family(params))).grad(KEY, params)
    stopped = ppl.expectation(lambda params: value(params, family(params).detach())).grad(KEY, params)
    np.testing.assert_allclose(through["loc"], 1.0)
    assert all(np.all(leaf == 0.0) for leaf in jax.tree.leaves(stopped))


def test_scores_of_a_joint_draw_agree_with_its_path():
    family = full_rank(regression())
    params = family.init(KEY)

    def objective(estimator):
        return ppl.expectation(lambda params: jnp.sum(ppl.simulate(family(params).with_estimators(estimator))[0]["beta"] ** 2))

    def gradients(estimator):
        keys = jax.random.split(KEY, 4000)
        return jax.jit(jax.vmap(lambda key: objective(estimator).grad(key, params)["loc"]))(keys)

    path, score = gradients(ppl.estimators.Reparameterize()), gradients(ppl.estimators.ScoreFunction())
    error = np.sqrt((np.var(path, axis=0) + np.var(score, axis=0)) / 4000)
    assert np.all(np.abs(path.mean(axis=0) - score.mean(axis=0)) / error < 4.5)


def test_initial_values_are_finite_or_the_site_is_named():
    @ppl.program
    def narrow():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.factor("edge", jnp.where(x > 0.5, 0.0, -jnp.inf))  # the median of the prior has no density

    start = mean_field(narrow()).init(KEY)["x"]["loc"]
    assert start > 0.5
    np.testing.assert_allclose(mean_field(narrow()).init(KEY, at={"x": 0.7})["x"]["loc"], 0.7, rtol=1e-6)

    @ppl.program
    def broken():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("fine", dist.Normal(x, 1.0), obs=0.0)
        ppl.sample("y", dist.Normal(x, jnp.sqrt(-1.0 - x**2)), obs=0.0)

    with pytest.raises(errors.FamilyError, match=r"log density of the site 'y' is not finite\s+File"):
        mean_field(broken()).init(KEY)


def test_mistakes_are_refused():
    model = tree()
    with pytest.raises(TypeError, match="call it with its arguments"):
        mean_field(tree)
    with pytest.raises(errors.UnknownAddressError, match=r"'rot' is no latent[\s\S]*Did you mean 'root'"):
        full_rank(model, ["rot"])
    with pytest.raises(errors.FamilyError, match="'z', 'x' have no family"):
        by_address(model, {"root": mean_field})
    with pytest.raises(errors.FamilyError, match="'root' has two families"):
        by_address(model, {"root": mean_field, ("root", "z"): full_rank}, mean_field)
    with pytest.raises(errors.FamilyError, match="is a constructor"):
        by_address(model, {"root": mean_field(model)}, mean_field)
    with pytest.raises(errors.FamilyError, match="at least 1 and at most 12"):
        low_rank(model, rank=0)
    family = mean_field(regression())
    with pytest.raises(errors.FamilyError, match=r"\['beta'\]\['loc'\] has shape \[2\], not \[3\]"):
        family({"beta": {"loc": jnp.zeros(2), "log_scale": jnp.zeros(3)}})
    with pytest.raises(errors.FamilyError, match=r"\['beta'\]\['log_scale'\] is missing"):
        family({"beta": {"loc": jnp.zeros(3)}})
    circle = ppl.program(lambda: ppl.sample("w", dist.ImproperUniform(dist.constraints.sphere, (), (3,))))
    with pytest.raises(errors.FamilyError, match="no bijection goes from the reals to the support of 'w'"):
        mean_field(circle())
    with pytest.raises(errors.FamilyError, match="got 'log'"):
        families.delta(regression(), space="log")
