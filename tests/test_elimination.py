"""Exact sums and quadrature: against sums over all traces, closed forms and dense numerical integrals."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from numpyro.distributions import transforms

import ppl
import ppl.distributions as dist
from ppl import errors

KEY = jax.random.key(11)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


# Exact sums against the sum over all traces.

TRANSITION = jnp.array([[0.8, 0.2], [0.3, 0.7]])


def _emit(z, address="y"):
    ppl.sample(address, dist.Normal(2.0 * z, 0.7))


def _next(z):
    return ppl.sample("z", dist.Categorical(probs=TRANSITION[z]))


@ppl.program
def chain(reverse=False):
    def step(carry, _):
        z, n = carry
        z = _next(z)
        _emit(z)
        return (z, n + 1), z

    start = ppl.sample("start", dist.Bernoulli(probs=0.4))
    (z, n), _ = jax.lax.scan(step, (start, 0), None, length=4, reverse=reverse)
    ppl.sample("end", dist.Normal(1.0 * z * n + start, 1.0))


@ppl.program
def written_out():
    z = ppl.sample("start", dist.Bernoulli(probs=0.4))
    for t in range(4):
        z = ppl.sample(f"z{t}", dist.Categorical(probs=TRANSITION[z]))
        _emit(z, f"y{t}")


@ppl.program
def remembering():
    def step(total, _):
        z = ppl.sample("z", dist.Bernoulli(probs=0.3))
        _emit(total + z)
        return total + z, z

    _, zs = jax.lax.scan(step, 0, None, length=4)
    ppl.sample("end", dist.Normal(1.0 * zs[0] * zs[3], 1.0))


@ppl.program
def mapped():
    def point(w):
        z = ppl.sample("z", dist.Binomial(2, probs=w))
        _emit(z)

    jax.vmap(point)(jnp.array([0.2, 0.5, 0.7]))


@ppl.program
def mapped_chains():
    def lane(p):
        def step(z, _):
            z = _next(z)
            _emit(z)
            return z, None

        jax.lax.scan(step, ppl.sample("start", dist.Bernoulli(probs=p)), None, length=2)

    jax.vmap(lane)(jnp.array([0.2, 0.6]))


@ppl.program
def branching():
    z = ppl.sample("start", dist.Bernoulli(probs=0.4))

    def more():
        _emit(ppl.sample("z", dist.Categorical(probs=jnp.array([0.2, 0.5, 0.3]))))

    jax.lax.cond(z == 1, more, lambda: _emit(0.5))


EXACT = {
    "scan": (chain(), ["y", "end"]),
    "scan backwards": (chain(reverse=True), ["y", "end"]),
    "written out": (written_out(), ["y0", "y1", "y2", "y3"]),
    "no chain": (remembering(), ["y", "end"]),
    "vmap": (mapped(), ["y"]),
    "scan in vmap": (mapped_chains(), ["y"]),
    "cond": (branching(), ["y"]),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", EXACT)
def test_exact_sums_equal_the_sum_over_all_traces(name):
    program, keep = EXACT[name]
    shapes = ppl.trace_shapes(program)
    kept = {a: jnp.linspace(-0.4, 2.2, int(np.prod(shapes[a].shape))).reshape(shapes[a].shape) for a in keep}
    hidden = [a for a in shapes if a not in keep]
    sizes = [int(np.prod(shapes[a].shape)) for a in hidden]
    values = 2 if name not in ("vmap", "cond") else 3
    combinations = np.array(list(itertools.product(range(values), repeat=sum(sizes))))
    if "start" in hidden:
        combinations = combinations[combinations[:, sum(sizes[: hidden.index("start")])] < 2]

    def joint(kept):
        def one(row):
            parts = jnp.split(row, np.cumsum(sizes)[:-1])
            aux = {a: part.reshape(shapes[a].shape) for a, part in zip(hidden, parts, strict=True)}
            return program.log_density(kept | aux)

        logs = jax.vmap(one)(jnp.asarray(combinations))
        if name == "cond":  # where z is not drawn, its three values stand for one
            logs = jnp.where(
                (combinations[:, hidden.index("start")] == 0) & (combinations[:, hidden.index("z")] > 0), -jnp.inf, logs
            )
        return jax.nn.logsumexp(logs)

    marginal = ppl.marginal(program, keep=keep)

    @jax.jit
    def compare(kept):
        drawn, log_p = marginal.simulate(KEY)
        found, expected = (jax.value_and_grad(f)(kept) for f in (marginal.log_density, joint))
        return (found, log_p), (expected, joint(drawn))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), *compare(kept))


@pytest.mark.usefixtures("x64")
def test_a_long_chain_takes_steps_and_no_combinations():
    probs = jnp.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])

    @ppl.program
    def hidden_markov():
        def step(z, _):
            z = ppl.sample("z", dist.Categorical(probs=probs[z]))
            _emit(z)
            return z, None

        jax.lax.scan(step, 0, None, length=500)

    y = jnp.sin(jnp.arange(500.0)) + 1.0
    alpha, total = np.array([1.0, 0.0, 0.0]), 0.0
    for value in y:
        alpha = (alpha @ probs) * scipy.stats.norm.pdf(value, 2.0 * np.arange(3), 0.7)
        total, alpha = total + np.log(alpha.sum()), alpha / alpha.sum()
    found = jax.jit(ppl.marginal(hidden_markov(), keep="y").log_density)({"y": y})
    assert float(found) == pytest.approx(total, abs=1e-6)


# Quadrature.


def _given(prior, likelihood):
    @ppl.program
    def model():
        u = ppl.sample("u", prior)
        ppl.sample("x", likelihood(u))

    return model()


def _normals(u):
    return dist.Normal(u.sum(), 1.0)


QUADRATURES = {
    "normal": (dist.Normal(1.0, 2.0), lambda u: dist.Normal(u, 0.8), 1.5, 100, dist.Normal(1.0, np.sqrt(4.64)).log_prob),
    "three normals": (dist.Normal(jnp.zeros(3), 0.5), _normals, 1.5, 16, dist.Normal(0.0, np.sqrt(1.75)).log_prob),
    "uniform": (
        dist.Uniform(-1.0, 2.0),
        lambda u: dist.Normal(u, 0.5),
        1.5,
        40,
        lambda x: np.log((scipy.stats.norm.cdf(2 * (x + 1.0)) - scipy.stats.norm.cdf(2 * (x - 2.0))) / 3.0),
    ),
    "gamma": (dist.Gamma(2.5, 1.5), dist.Poisson, 4, 80, dist.GammaPoisson(2.5, 1.5).log_prob),
    "exponential": (dist.Exponential(0.7), dist.Exponential, 1.5, 80, lambda x: np.log(0.7 / (0.7 + x) ** 2)),
    "beta": (dist.Beta(0.7, 1.8), lambda u: dist.Binomial(5, u), 2, 80, dist.BetaBinomial(0.7, 1.8, 5).log_prob),
    "lognormal": (
        dist.LogNormal(0.2, 0.4),
        lambda u: dist.Normal(u, 1.0),
        1.5,
        60,
        lambda x: np.log(
            scipy.integrate.quad(
                lambda u: scipy.stats.lognorm.pdf(u, 0.4, scale=np.exp(0.2)) * scipy.stats.norm.pdf(x - u), 0, 30
            )[0]
        ),
    ),
    "logistic": (
        dist.Logistic(0.2, 0.5),
        lambda u: dist.Normal(u, 1.0),
        1.5,
        80,
        lambda x: np.log(
            scipy.integrate.quad(lambda u: scipy.stats.logistic.pdf(u, 0.2, 0.5) * scipy.stats.norm.pdf(x - u), -30, 30)[0]
        ),
    ),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", QUADRATURES)
def test_quadrature_agrees_with_closed_forms(name):
    prior, likelihood, x, nodes, exact = QUADRATURES[name]
    program = ppl.marginal(_given(prior, likelihood), keep="x", nodes=nodes)
    assert float(jax.jit(program.log_density)({"x": x})) == pytest.approx(float(exact(x)), abs=1e-6)


@pytest.mark.usefixtures("x64")
def test_quadrature_beside_a_sum():
    @ppl.program
    def model():
        z = ppl.sample("z", dist.Bernoulli(probs=0.3))
        u = ppl.sample("u", dist.Normal(2.0 * z, 0.5 + z))
        ppl.sample("x", dist.Normal(u, 1.0))

    exact = 0.7 * scipy.stats.norm.pdf(1.0, 0.0, np.sqrt(1.25)) + 0.3 * scipy.stats.norm.pdf(1.0, 2.0, np.sqrt(3.25))
    assert float(ppl.marginal(model(), "x", nodes=60).log_density({"x": 1.0})) == pytest.approx(np.log(exact), abs=1e-6)


@ppl.program
def narrow():  # x | u is 20 times narrower than u
    u = ppl.sample("u", dist.Normal(0.0, 1.0))
    ppl.sample("x", dist.Normal(u, 0.05))


def test_too_few_nodes_are_an_error_and_nan_in_compiled_code():
    """Thirty nodes leave x = 0 between two of them: they would give -15.2 for -0.92."""
    with pytest.raises(errors.MarginalError, match=r"(?s)too few quadrature nodes.*test_elimination.py.*more nodes=") as caught:
        ppl.marginal(narrow(), "x", nodes=30).log_density({"x": 0.0})
    assert "with half" in str(caught.value)
    few, enough = (ppl.marginal(program, "x", nodes=30) for program in (narrow(), continuous()))
    for x in (0.0, 3.0):
        assert np.isnan(jax.jit(few.log_density)({"x": x}))
    exact = scipy.stats.norm.logpdf([0.0, 3.0], 0.0, np.sqrt(2.0))
    found = jax.jit(jax.vmap(lambda x: jnp.stack(jax.value_and_grad(lambda x: enough.log_density({"x": x}))(x))))(
        jnp.array([0.0, 3.0])
    )
    np.testing.assert_allclose(found.T, [exact, [0.0, -1.5]], atol=1e-4)
    with pytest.raises(errors.MarginalError, match="up to 350 nodes"):
        ppl.marginal(narrow(), "x", nodes=400).log_density({"x": 0.0})


# MixFlow (Xu & Campbell 2023): a uniform mixture over the iterates of a map.


@ppl.program
def mixflow(mean, iterates=4):
    sigmoid = transforms.SigmoidTransform()
    step = transforms.ComposeTransform([sigmoid, transforms.PowerTransform(jnp.asarray(1.75)), sigmoid.inv])

    def after(k):
        base = dist.Normal(mean, 1.0)
        return lambda: ppl.sample("x", dist.TransformedDistribution(base, [step] * k) if k else base)

    n = ppl.sample("n", dist.Categorical(probs=jnp.full(iterates, 1.0 / iterates)))
    jax.lax.switch(n, [after(k) for k in range(iterates)])


@pytest.mark.usefixtures("x64")
def test_a_mixture_over_the_iterates_of_a_map_has_its_exact_density():
    def before(y, k):
        for _ in range(k):
            p = jax.nn.sigmoid(y) ** (1.0 / 1.75)
            y = jnp.log(p) - jnp.log1p(-p)
        return y

    def exact(mean, y):
        terms = [jax.scipy.stats.norm.pdf(before(y, k), mean) * jnp.abs(jax.grad(before)(y, k)) for k in range(4)]
        return jnp.log(sum(terms) / 4)

    def density(mean, y):
        return ppl.marginal(mixflow(mean), keep="x").log_density({"x": y})

    trace, log_q = jax.jit(lambda key: ppl.marginal(mixflow(0.3), keep="x").simulate(key))(KEY)
    np.testing.assert_allclose(log_q, exact(0.3, trace["x"]), atol=1e-9)
    for y in (-2.0, 0.1, 1.3):
        found, expected = (jax.jit(jax.value_and_grad(f))(0.3, y) for f in (density, exact))
        np.testing.assert_allclose(found, expected, atol=1e-9)


# What cannot be integrated.


@ppl.program
def continuous(shape=()):
    u = ppl.sample("u", dist.Normal(jnp.zeros(shape), 1.0))
    ppl.sample("x", dist.Normal(u.sum(), 1.0))


@ppl.program
def heavy():
    u = ppl.sample("u", dist.StudentT(3.0))
    ppl.sample("x", dist.Normal(u, 1.0))


@ppl.program
def many():
    z = jax.vmap(lambda _: ppl.sample("z", dist.Bernoulli(probs=0.3)))(jnp.arange(13))
    ppl.sample("x", dist.Normal(1.0 * z.sum(), 1.0))


@ppl.program
def looking_back(length):
    def step(_, __):
        z = ppl.sample("z", dist.Bernoulli(probs=0.3))
        return None, z

    _, zs = jax.lax.scan(step, None, None, length=length)
    ppl.sample("x", dist.Normal(1.0 * zs.sum(), 1.0))


@ppl.program
def nested():
    z = ppl.sample("sub", ppl.marginal(_given(dist.Bernoulli(probs=0.3), lambda u: dist.Bernoulli(probs=0.2 + 0.5 * u)), "x"))
    ppl.sample("x", dist.Normal(1.0 * z["x"], 1.0))


@pytest.mark.parametrize(
    ("program", "nodes", "says"),
    [
        (continuous(), None, "'u' ~ Normal has no finite number of values"),
        (continuous((4,)), 5, "up to 3 independent numbers"),
        (continuous((3,)), 20, "8e.03 combinations"),
        (heavy(), 20, "heavy tails"),
        (many(), None, "'z' has 13 elements of 2 values each"),
        (looking_back(13), None, "'z' .2 values, 13 times. act together"),
        (nested(), None, "'sub/x' stands where it cannot be summed out"),
    ],
)
def test_what_cannot_be_summed_is_refused(program, nodes, says):
    with pytest.raises(errors.MarginalError, match=says) as caught:
        ppl.marginal(program, keep="x", nodes=nodes).log_density({"x": 0.5})
    assert "test_elimination.py" in str(caught.value)
    assert "proposal=" in str(caught.value)
