"""The check: every alarm names the site, the condition and the line, and nothing that is right alarms.

The discontinuous objectives here are biased, which `test_the_alarms_are_about_bias` shows for some of them.
"""

import importlib.util
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import optax
import pytest
from jax.scipy import special, stats
from numpyro.distributions import biject_to

import ppl
import ppl.distributions as dist
from benchmarks import posteriors
from ppl import errors
from ppl.estimators import Enumerate, MeasureValued, Particle, Reparameterize, ScoreFunction
from ppl.notes import note
from tests.test_pathwise import HEAVY, MULTIVARIATE, SCALAR

ROOT = pathlib.Path(__file__).resolve().parent.parent
KEY = jax.random.key(0)


def normal(mean, name="x", shape=()):
    return ppl.sample(name, dist.Normal(mean, 1.0).expand(shape))


def positive(mean, name="x"):
    return ppl.sample(name, dist.Gamma(jnp.exp(mean), 1.0))


def findings(function, *args, condition=None, **kwargs):
    report = ppl.expectation(function).check(*args, **kwargs)
    return [f for f in report if condition is None or f.condition == condition]


def line_of(function):
    return function.__code__.co_firstlineno


def of(x, function):
    return function(x)


DISCONTINUOUS = {
    "where": lambda m: jnp.where(normal(m) > 0, 1.0, 0.0),
    "where with a slope": lambda m: of(normal(m), lambda x: jnp.where(x > 0, x + 0.5, 0.3 * x)),
    "where, far out": lambda m: jnp.where(normal(m) > 1000.0, 1.0, 0.0),
    "two sides": lambda m: of(normal(m), lambda x: jnp.where((x > 0) & (x < 1), 1.0, 0.0)),
    "under jit": lambda m: jax.jit(lambda x: jnp.where(x > 0, 1.0, 0.0))(normal(m)),
    "round": lambda m: jnp.round(normal(m)),
    "floor": lambda m: jnp.floor(normal(m)),
    "ceil": lambda m: jnp.ceil(normal(m)),
    "sign": lambda m: jnp.sign(normal(m)),
    "remainder": lambda m: normal(m) % 1.0,
    "heaviside": lambda m: jnp.heaviside(normal(m), 0.5),
    "argmax": lambda m: jnp.array([1.0, 2.0, 4.0])[jnp.argmax(normal(m, shape=(3,)))],
    "argsort": lambda m: jnp.argsort(normal(m, shape=(3,)))[0] * 1.0,
    "index of top_k": lambda m: jax.lax.top_k(normal(m, shape=(3,)), 1)[1][0] * 1.0,
    "equal to the maximum": lambda m: of(normal(m, shape=(3,)), lambda x: jnp.sum((x == x.max()) * jnp.arange(3.0))),
    "clipped, then equal": lambda m: jnp.where(jax.nn.relu(normal(m)) == 0.0, 1.0, 0.0),
    "count": lambda m: jnp.sum(normal(m, shape=(3,)) > 2 * m).astype(float),
    "integers": lambda m: normal(m).astype(int) * 1.0,
    "index": lambda m: jnp.arange(5.0)[jnp.clip(normal(m).astype(int), 0, 4)],
    "searchsorted": lambda m: jnp.searchsorted(jnp.arange(4.0), normal(m)).astype(float),
    "one of many integers": lambda m: of(jnp.floor(normal(m)), lambda k: jnp.where(jnp.sum(k * jnp.ones(2)) > 3.0, 1.0, 0.0)),
    "cond": lambda m: of(normal(m), lambda x: jax.lax.cond(x > 0, lambda: x + 1.0, lambda: x)),
    "cond over sites": lambda m: jax.lax.cond(normal(m) > 0, lambda: normal(m, "y"), lambda: 0.0),
    "switch": lambda m: jax.lax.switch(normal(m).astype(int), [lambda: 0.0, lambda: 1.0, lambda: 3.0]),
    "while": lambda m: jax.lax.while_loop(lambda x: x < 10.0, lambda x: 2 * x + 1, jnp.abs(normal(m))),
    "scan": lambda m: jax.lax.scan(lambda c, _: (c + jnp.where(normal(m) > c, 1.0, 0.0), None), 0.0, None, length=3)[0],
    "vmap": lambda m: jax.vmap(lambda u: jnp.where(normal(m) > u, 1.0, 0.0))(jnp.arange(3.0)).sum(),
    "lanes": lambda m: jax.vmap(lambda u: jax.lax.cond(u > 0, lambda: jnp.where(normal(m) > 0, 1.0, 2.0), lambda: 0.0))(
        jnp.arange(3.0)
    ).sum(),
    "parameter of a site": lambda m: normal(jnp.where(normal(m) > 0, 1.0, 0.0), "y"),
    "checkpoint": lambda m: jax.checkpoint(lambda x: jnp.where(x > 0, 1.0, 0.0))(normal(m)),
    "straight through": lambda m: of(normal(m), lambda x: x + jax.lax.stop_gradient(jnp.round(x) - x)),
    "a moving threshold": lambda m: jnp.where(normal(0.0) > m, 1.0, 0.0),
    "a score function and a moving threshold": lambda m: jnp.where(
        ppl.sample("x", dist.Normal(m, 1.0), estimator=ScoreFunction()) > m, 1.0, 0.0
    ),
    "relaxed, then rounded": lambda m: jnp.round(ppl.sample("x", dist.RelaxedBernoulli(0.5, logits=m))),
    "derivative of relu": lambda m: jax.grad(jax.nn.relu)(normal(m)),
}


@pytest.mark.parametrize("name", DISCONTINUOUS)
def test_discontinuous(name):
    function = DISCONTINUOUS[name]
    (finding, *more) = findings(function, 0.3)
    assert (finding.condition, finding.severity, finding.file) == ("continuity", "fails", __file__)
    assert finding.address.startswith("x")
    assert line_of(function) <= finding.line <= line_of(function) + 2
    assert all(f.condition == "continuity" for f in more)


CONTINUOUS = {
    "relu": lambda m: jax.nn.relu(normal(m)),
    "leaky_relu": lambda m: jax.nn.leaky_relu(normal(m)),
    "elu": lambda m: jax.nn.elu(normal(m)),
    "selu": lambda m: jax.nn.selu(normal(m)),
    "gelu": lambda m: jax.nn.gelu(normal(m)),
    "softplus": lambda m: jax.nn.softplus(normal(m)),
    "hard_tanh": lambda m: jax.nn.hard_tanh(normal(m)),
    "hard_swish": lambda m: jax.nn.hard_swish(normal(m)),
    "abs": lambda m: jnp.abs(normal(m)),
    "clip": lambda m: jnp.clip(normal(m), -1, 1),
    "where": lambda m: of(normal(m), lambda x: jnp.where(x > 0, x, 0.1 * x)),
    "where at another place": lambda m: of(normal(m), lambda x: jnp.where(2 * x + 1 > 0, 2 * x + 1, 0.0)),
    "where of a sum": lambda m: of(normal(m, shape=(3,)), lambda x: jnp.where(x.sum() > 0, x.sum(), 0.0)),
    "spline": lambda m: of(normal(m), lambda x: jnp.where(x < 1, x**2, 2 * x - 1)),
    "huber": lambda m: of(normal(m), lambda x: jnp.where(jnp.abs(x) < 1.5, 0.5 * x**2, 1.5 * jnp.abs(x) - 1.125)),
    "optax huber": lambda m: optax.huber_loss(normal(m), 0.0),
    "guard": lambda m: of(positive(m), lambda x: jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1.0)), -jnp.inf)),
    "guard with a number": lambda m: of(positive(m), lambda x: jnp.where(x > 0, jnp.log(x), 0.0)),
    "logsumexp": lambda m: jax.nn.logsumexp(normal(m, shape=(3,))),
    "softmax": lambda m: jax.nn.softmax(normal(m, shape=(3,)))[0],
    "max": lambda m: jnp.max(normal(m, shape=(3,))),
    "sort": lambda m: jnp.sort(normal(m, shape=(3,)))[0],
    "median": lambda m: jnp.median(normal(m, shape=(3,))),
    "top_k": lambda m: jax.lax.top_k(normal(m, shape=(3,)), 1)[0][0],
    "interp": lambda m: jnp.interp(normal(m), jnp.arange(4.0), jnp.array([0.0, 1.0, 0.0, 2.0])),
    "distance to the nearest integer": lambda m: of(normal(m), lambda x: jnp.abs(x - jnp.round(x))),
    "always rounded to zero": lambda m: of(normal(m), lambda x: jnp.floor(0.5 * jnp.abs(x - jnp.round(x)) + 0.1)),
    "periodic": lambda m: jnp.cos(2 * jnp.pi * (normal(m) % 1.0)),
    "cond": lambda m: of(normal(m), lambda x: jax.lax.cond(x > 0, lambda: x, lambda: 0.1 * x)),
    "vmap of cond": lambda m: jax.vmap(lambda x: jax.lax.cond(x > 0, lambda: x, lambda: 0.1 * x))(normal(m, shape=(3,))).sum(),
    "scan": lambda m: jax.lax.scan(lambda c, _: (jax.nn.leaky_relu(c + normal(m)), None), 0.0, None, length=3)[0],
    "cdf": lambda m: stats.norm.cdf(normal(m)),
    "log cdf": lambda m: special.log_ndtr(normal(m)),
    "xlogy": lambda m: special.xlogy(positive(m), positive(m, "y")),
    "nan_to_num": lambda m: jnp.nan_to_num(normal(m)),
    "logdet": lambda m: jnp.linalg.slogdet(jnp.eye(2) + normal(m) ** 2)[1],
    # Discontinuous, and the place of the jump does not move with the parameter.
    "a fixed draw": lambda m: jnp.where(normal(0.0) > 0, 1.0, 0.0) * m,
    "the parameter": lambda m: jnp.where(m > 0, 1.0, 0.0) * normal(m),
    "a deterministic value": lambda m: jnp.where(ppl.sample("x", dist.Delta(m)) > 0, 1.0, 0.0) * normal(m, "y"),
    "a score function": lambda m: jnp.where(ppl.sample("x", dist.Normal(m, 1.0), estimator=ScoreFunction()) > 0, 1.0, 0.0),
    "a count": lambda m: jnp.where(ppl.sample("x", dist.Poisson(jnp.exp(m))) > 2, m, 0.0),
    "an unused jump": lambda m: of(normal(m), lambda x: (jnp.round(x), x)[1]),
    "derivative of softplus": lambda m: jax.grad(jax.nn.softplus)(normal(m)),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous(name):
    assert findings(CONTINUOUS[name], 0.3) == []


def test_decisions_inside_of_loops():
    """They are followed to the result: a jump that is found there is certain, and one that is not cannot be told."""

    def unwound(x):
        return jax.lax.scan(lambda c, t: (jnp.where(c > t, c - t, c), None), x, jnp.arange(1.0, 3.0))[0]

    def root(x):
        return jax.lax.while_loop(lambda r: jnp.abs(r * r - x) > 1e-9 * x, lambda r: (r + x / r) / 2, x)

    (jumps,) = findings(lambda m: unwound(normal(m)), 0.3)
    (clipped,) = findings(lambda m: unwound(jnp.clip(normal(m), -1.0, 1.0)), 0.3)
    (newton,) = findings(lambda m: root(positive(m)), 0.3)
    assert [f.severity for f in (jumps, clipped, newton)] == ["fails", "cannot tell", "cannot tell"]
    assert "may be discontinuous" in clipped.message


@pytest.mark.parametrize("name", [*SCALAR, *HEAVY, *MULTIVARIATE])
def test_densities_of_pathwise_distributions_are_no_failures(name):
    make = {**SCALAR, **HEAVY}.get(name, (MULTIVARIATE.get(name), None))[0]
    moving = name in ("Uniform", "LogUniform", "Pareto") or "runcated" in name

    def divergence(t):
        trace, log_q = ppl.simulate(ppl.program(lambda: ppl.sample("x", make(t)))())
        other = log_q if moving else ppl.program(lambda: ppl.sample("x", make(0.4)))().log_density(trace)
        return log_q + 2.0 * other

    assert findings(divergence, 0.3) == []


def test_the_alarms_are_about_bias():
    """Exact gradients against those of alarmed objectives: 20,000 draws, |z| > 10."""
    cases = [
        ("where", jax.grad(lambda m: stats.norm.cdf(m))(0.3)),
        ("a moving threshold", jax.grad(lambda m: stats.norm.cdf(-m))(0.3)),
        ("a score function and a moving threshold", 0.0),
        ("derivative of relu", jax.grad(lambda m: stats.norm.cdf(m))(0.3)),
    ]
    for name, exact in cases:
        objective = ppl.expectation(DISCONTINUOUS[name])
        grads = jax.jit(jax.vmap(lambda key, objective=objective: objective.grad(key, 0.3)))(jax.random.split(KEY, 20_000))
        assert abs(grads.mean() - exact) > 10 * grads.std() / 20_000**0.5 + 0.01, name


def test_the_jump_is_found_where_it_is_and_with_all_sites():
    @ppl.program
    def family(m):
        x = ppl.sample("x", dist.Normal(m, 1.0))
        y = ppl.sample("y", dist.Normal(x, 1.0))
        label = jnp.where(x + y > 0, 1.0, 0.0)
        ppl.deterministic("label", label)

    def objective(m):
        trace, log_q = ppl.simulate(family(m))
        return trace["label"] + log_q

    (finding,) = findings(objective, 0.3)
    assert (finding.address, finding.line) == ("x, y", line_of(family.function) + 4)
    drawn = [f"line {line_of(family.function) + 2}", f"line {line_of(family.function) + 3}"]
    assert all(part in finding.message for part in drawn)
    (again,) = findings(lambda m: objective(m) + objective(2.0 * m), 0.3)
    assert again.address == "x, y, x (2), y (2)"


def test_a_function_that_jax_has_traced_before_has_the_line_of_its_use():
    def first(m):
        return jnp.where(normal(m) > 0, 1.0, 0.0)

    def second(m):
        return jnp.round(normal(m)) + jnp.where(normal(m, "y") > 0, 2.0, 0.0)

    assert [f.line for f in findings(first, 0.3)] == [line_of(first) + 1]
    assert {f.line for f in findings(second, 0.3)} == {line_of(second) + 1}


def load(name):
    spec = importlib.util.spec_from_file_location(f"tutorial_{name}", ROOT / "tutorials" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tutorials_have_no_alarms():
    schools, vae = load("eight_schools"), load("vae")
    for family, start in ((schools.gaussian, schools.GAUSSIAN_START), (schools.shrinkage, schools.SHRINKAGE_START)):
        assert schools.elbo.check(family, start, argnums=1).findings == ()
        assert schools.importance_weighted.check(family, start, 5, argnums=1).findings == ()
    rng = np.random.default_rng(0)
    images = jnp.array(rng.integers(0, 2, (200, 784)))
    networks = jax.tree.map(  # without compiling their own initialization
        lambda x: jnp.asarray(0.05 * rng.normal(size=x.shape), x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x,
        eqx.filter_eval_shape(vae.new_networks, KEY),
    )
    assert vae.elbo.check(networks, images).findings == ()
    assert vae.bound.check(networks, images[:3], 5).findings == ()

    class Hard(eqx.Module):
        inner: eqx.nn.MLP

        def __call__(self, z):
            return self.inner(jnp.round(z))

    (finding,) = vae.elbo.check({**networks, "decoder": Hard(networks["decoder"])}, images).findings
    assert (finding.address, finding.condition, finding.severity) == ("digit/z", "continuity", "fails")
    assert finding.line == line_of(Hard.__call__) + 1


@pytest.mark.skipif(not posteriors.folder().is_dir(), reason=f"the reference posteriors are not at {posteriors.folder()}")
@pytest.mark.parametrize("name", ["hmm_example-hmm_example", "low_dim_gauss_mix-low_dim_gauss_mix", "gp_pois_regr-gp_regr"])
def test_reference_posteriors_have_no_alarms(name):
    model = posteriors.load(name).model
    rows = {address: row for address, row in ppl.trace_shapes(model).items() if row.kind == "sample"}

    @ppl.program
    def family(phi):
        for address, row in rows.items():
            loc = phi[address]
            base = dist.Normal(loc, jnp.exp(loc)).to_event(jnp.ndim(loc))
            ppl.sample(address, dist.TransformedDistribution(base, biject_to(row.support)))

    def elbo(phi):
        trace, log_q = ppl.simulate(family(phi))
        return model.log_density(trace) - log_q

    def start(row):
        free = biject_to(row.support).inv(row.support.feasible_like(jnp.zeros(row.shape)))
        return jnp.zeros(jnp.shape(free))

    assert findings(elbo, {address: start(row) for address, row in rows.items()}) == []


def test_numpyro_models_have_no_alarms():
    counts = jnp.array([3, 0, 4, 2])

    def model(counts):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        gate = numpyro.sample("gate", dist.Beta(1.0, 1.0))
        with numpyro.plate("data", len(counts)):
            numpyro.sample("count", dist.ZeroInflatedPoisson(gate, rate), obs=counts)

    @ppl.program
    def family(phi):
        ppl.sample("rate", dist.TruncatedNormal(phi[0], jnp.exp(phi[1]), low=0.0))
        ppl.sample("gate", dist.Kumaraswamy(*jnp.exp(phi)))

    def elbo(phi):
        trace, log_q = ppl.simulate(family(phi))
        return ppl.from_numpyro(model)(counts).log_density(trace) - log_q

    assert findings(elbo, jnp.zeros(2)) == []


@ppl.expectation
def inner(m):
    return ppl.sample("z", dist.Normal(m, 1.0)) ** 2


LINEAR = {
    "sum and scaling": lambda m: 2.0 * inner(m) - inner(m) / 3.0 + m,
    "product of independent draws": lambda m: inner(m) * inner(2.0 * m),
    "product with what is around it": lambda m: normal(m) * inner(m) / jnp.exp(m),
    "mean of many": lambda m: jnp.mean(jax.vmap(inner)(m * jnp.arange(3.0))),
    "dot": lambda m: jnp.arange(3.0) @ jax.vmap(inner)(m * jnp.arange(3.0)),
    "sum in a scan": lambda m: jax.lax.scan(lambda c, t: (c + inner(m * t), None), 0.0, jnp.arange(3.0))[0],
    "product in a scan": lambda m: jax.lax.scan(lambda c, t: (c * inner(m * t), None), 1.0, jnp.arange(3.0))[0],
    "branches": lambda m: jax.lax.cond(ppl.sample("b", dist.Bernoulli(0.5)) == 1, lambda: inner(m), lambda: 2.0 * inner(m)),
    "an expectation of an expectation": lambda m: ppl.expectation(lambda m: 3.0 * inner(m))(m),
    "bounds of many samples": lambda m: jnp.log(
        jnp.mean(jax.vmap(lambda u: jnp.exp(ppl.sample("x", dist.Normal(m, 1.0))))(jnp.arange(3)))
    ),
}
NONLINEAR = {
    "log": (lambda m: jnp.log(inner(m)), "log"),
    "exp": (lambda m: jnp.exp(inner(m) - 1.0), "exp"),
    "square": (lambda m: inner(m) ** 2, "power"),
    "product with itself": (lambda m: of(inner(m), lambda x: x * (x + 1.0)), "product of a draw with itself"),
    "one over it": (lambda m: 1.0 / inner(m), "division"),
    "relu": (lambda m: jax.nn.relu(inner(m)), "max"),
    "choice": (lambda m: jnp.where(inner(m) > 1.0, m, 0.0), ">"),
    "log of a mean": (lambda m: jnp.log(jnp.mean(jax.vmap(inner)(m * jnp.arange(3.0)))), "log"),
    "parameter of a site": (lambda m: ppl.sample("x", dist.Normal(inner(m), 1.0)), "parameter of 'x'"),
    "in a scan": (lambda m: jax.lax.scan(lambda c, t: (c + jnp.exp(-inner(m)), None), 0.0, jnp.arange(3.0))[0], "exp"),
    "after a scan": (lambda m: jnp.log(jax.lax.scan(lambda c, t: (c + inner(m), None), 0.0, jnp.arange(3.0))[0]), "log"),
    "carried twice": (
        lambda m: jax.lax.scan(lambda c, t: (c * (c + inner(m)), None), 1.0, jnp.arange(3.0))[0],
        "product of a draw with itself",
    ),
    "under jit and vmap": (lambda m: jax.vmap(jax.jit(lambda t: jnp.log(inner(m * t))))(jnp.arange(3.0)).sum(), "log"),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_uses_of_expectations(name):
    assert findings(LINEAR[name], 0.3) == []


@pytest.mark.parametrize("name", NONLINEAR)
def test_nonlinear_uses_of_expectations(name):
    function, operation = NONLINEAR[name]
    finding = findings(function, 0.3, condition="linearity")[0]
    assert (finding.severity, finding.file) == ("fails", __file__)
    assert operation in finding.message
    assert "'inner'" in finding.message
    assert line_of(function) <= finding.line <= line_of(function) + 2


def test_a_product_over_many_draws_cannot_be_told():
    (finding,) = findings(lambda m: jnp.prod(jax.vmap(inner)(m * jnp.arange(3.0))), 0.3)
    assert (finding.condition, finding.severity) == ("linearity", "cannot tell")
    assert ppl.expectation(lambda m: jnp.prod(jax.vmap(inner)(m * jnp.arange(3.0)))).check(0.3).ok


def test_a_note_changes_nothing():
    def marked(x):
        return jnp.sum(note(x**3, "kind", "reason"))

    x = jnp.arange(3.0)
    np.testing.assert_array_equal(jax.jit(jax.grad(marked))(x), 3 * x**2)
    np.testing.assert_array_equal(jax.hessian(marked)(x), jnp.diag(6 * x))
    np.testing.assert_array_equal(jax.vmap(marked)(jnp.stack([x, x])), [9.0, 9.0])
    assert "note" not in jax.jit(marked).lower(x).as_text()
    assert note({"a": 1, "b": jnp.arange(2)}, "kind", "reason")["a"] == 1


class Pathwise(ScoreFunction):
    """An estimator of the user's own, with a weight and a differentiable value."""

    def particle(self, key, distribution):
        value = distribution.sample(key)
        return Particle(value, jnp.zeros_like(value))


def test_weighted_values_may_move_too():
    for estimator, alarms in ((Pathwise(), ["x"]), (ScoreFunction(), []), (MeasureValued(), [])):
        step = findings(lambda m, e=estimator: jnp.where(ppl.sample("x", dist.Normal(m, 1.0), estimator=e) > 0, 1.0, 0.0), 0.3)
        assert [f.address for f in step] == alarms


class Biased(Reparameterize):
    unbiased = False


def test_everything_that_is_refused_comes_at_once():
    @ppl.program
    def family(m):
        ppl.sample("moving", dist.Uniform(0.0, jnp.exp(m)), estimator=ScoreFunction())
        ppl.sample("count", dist.Poisson(jnp.exp(m)), estimator=Reparameterize())
        ppl.sample("size", dist.Geometric(logits=m), estimator=Enumerate())
        ppl.sample("declared", dist.Normal(m, 1.0), estimator=Biased())
        ppl.deterministic("jump", jnp.round(normal(m, "rounded")))

    def objective(m):
        trace, log_q = ppl.simulate(family(m))
        return sum(trace.values()) + log_q

    first = line_of(family.function) + 1
    found = {(f.address, f.condition, f.severity): f for f in findings(objective, 0.3)}
    lines = {key: f.line - first for key, f in found.items()}
    assert lines == {
        ("moving", "estimator", "fails"): 1,
        ("count", "estimator", "fails"): 2,
        ("size", "estimator", "fails"): 3,
        ("declared", "unbiased estimator", "fails"): 4,
        ("rounded", "continuity", "fails"): 5,
    }
    assert "Reparameterize()" in found["moving", "estimator", "fails"].message
    assert "ScoreFunction()" in found["count", "estimator", "fails"].message
    assert "Biased()" in found["declared", "unbiased estimator", "fails"].message
    with pytest.raises(errors.EstimatorError, match="'moving'"):
        ppl.expectation(objective).estimate(KEY, 0.3)
    mended = family(0.3).with_estimators(moving=None, count=None, size=None, declared=None, rounded=ScoreFunction())
    assert ppl.expectation(lambda m: sum(ppl.simulate(mended)[0].values())).check(0.3).ok


def test_combinations_that_are_refused_only_together():
    def coins(m):
        heads = ppl.sample("x", dist.Bernoulli(logits=m).expand([20]), estimator=Enumerate())
        return jnp.exp(jnp.sum(heads) * m)

    (finding,) = findings(coins, 0.3)
    assert (finding.condition, finding.severity) == ("estimator", "fails")
    assert "4096" in finding.message


@ppl.program
def supports():
    ppl.sample("left", dist.Gamma(1.0, 1.0))
    ppl.sample("covered", dist.Normal(0.0, 1.0))
    ppl.sample("same", dist.Beta(1.0, 1.0))


@ppl.program
def narrow(m):
    ppl.sample("left", dist.Normal(m, 1.0))
    ppl.sample("covered", dist.Gamma(jnp.exp(m), 1.0))
    ppl.sample("same", dist.Kumaraswamy(jnp.exp(m), 1.0))


def test_supports():
    def elbo(m):
        trace, log_q = ppl.simulate(narrow(m))
        return supports().log_density(trace) - log_q

    found = [(f.address, f.condition, f.severity, f.line - line_of(narrow.function)) for f in findings(elbo, 0.3)]
    assert found == [("left", "support", "fails", 2), ("covered", "support", "cannot tell", 3)]
    with pytest.raises(errors.ModelFamilyMismatchError):  # collecting has ended
        ppl.expectation(elbo).estimate(KEY, 0.3)

    def other_latents(m):
        return supports().log_density(ppl.simulate(ppl.program(lambda: normal(m))())[0])

    (finding,) = findings(other_latents, 0.3)
    assert (finding.condition, finding.severity) == ("support", "fails")
    assert "no latent of the model" in finding.message


def test_only_what_is_differentiated_moves():
    def objective(a, b):
        return jnp.where(normal(a["mean"]) > 0, 1.0, 0.0) * b["scale"]

    a, b = {"mean": 0.3, "name": "text"}, {"scale": 2.0, "function": jnp.tanh}
    assert [f.address for f in findings(objective, a, b)] == ["x"]
    assert findings(objective, a, b, argnums=1) == []
    assert [f.address for f in findings(objective, a, b, argnums=(0, 1))] == ["x"]
    assert findings(lambda: jnp.where(normal(0.0) > 0, 1.0, 0.0)) == []
    with pytest.raises(errors.ObjectiveError, match="argnums=2"):
        ppl.expectation(objective).check(a, b, argnums=2)


def test_reports_print():
    report = ppl.expectation(DISCONTINUOUS["where"]).check(0.3)
    text = str(report)
    assert "Reparameterize()" in text
    assert f'File "{__file__}", line {line_of(DISCONTINUOUS["where"])}' in text
    assert not report.ok
    good = ppl.expectation(CONTINUOUS["relu"]).check(0.3)
    assert good.ok
    assert str(good).endswith("every condition holds")


def test_products_and_exponentials_are_checked_operand_by_operand():
    jump = ppl.expectation(lambda p: jnp.where(ppl.sample("x", dist.Normal(p, 1.0)) > 0, 1.0, 0.0))
    smooth = ppl.expectation(lambda p: 1.0 * ppl.sample("b", dist.Bernoulli(logits=p)))
    product = smooth * jump
    assert [row.address for row in product.estimators(0.3)] == ["b", "x"]
    assert [(finding.address, finding.condition) for finding in product.check(0.3)] == [("x", "continuity")]
    assert (smooth * smooth).exp().check(0.3).ok


def test_plates_that_scale_a_latent_apart_are_found():
    def program(size):
        @ppl.program
        def one(y):
            ppl.plate("data", lambda y: ppl.sample("z", dist.Normal(0.1 * y, 1.0)), size=size)(y)

        return one(jnp.ones(2))

    def findings(model_size, family_size):
        @ppl.expectation
        def elbo(shift):
            trace, log_q = ppl.simulate(program(family_size))
            return program(model_size).log_density(trace) - log_q + 0.0 * shift

        return [(finding.address, finding.condition) for finding in elbo.check(0.5)]

    assert findings(4, 4) == []
    assert findings(4, None) == [("z", "scale")]
