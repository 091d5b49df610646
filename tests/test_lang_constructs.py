"""Every construct in text and in Python: equal log densities, values and gradients for the same key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.lang import load

KEY = jax.random.key(7)
Y = jnp.linspace(0.2, 1.4, 5)
DATA = "data y: real[N]\n"


def same_program(ours, theirs):
    """Equal draws, log densities and gradients in the trace."""
    trace, log_p = theirs.simulate(KEY)
    our_trace, our_log_p = ours.simulate(KEY)
    np.testing.assert_allclose(our_log_p, log_p, rtol=1e-6)
    assert jax.tree.structure(our_trace) == jax.tree.structure(trace)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), our_trace, trace)
    moving = {k: v for k, v in trace.items() if not isinstance(v, dict) and jnp.issubdtype(v.dtype, jnp.floating)}
    rest = {k: v for k, v in trace.items() if k not in moving}
    gradients = [jax.grad(lambda t, p=p: p.log_density({**t, **rest}))(moving) for p in (ours, theirs)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *gradients)


def walk():
    x = first = ppl.sample("x[1]", dist.Normal(0.0, 1.0))

    def step(x, _):
        x = ppl.sample("x", dist.Normal(x, 0.5))
        return x, x

    _, rest = jax.lax.scan(step, x, None, length=4)
    x = jnp.concatenate([first[None], rest])
    ppl.plate("t", lambda x, y: ppl.sample("y", dist.Normal(x, 0.3), obs=y))(x, Y)


def branch():
    c = ppl.sample("c", dist.Bernoulli(probs=0.3))

    def yes():
        return ppl.sample("x", dist.Normal(0.0, 1.0)) + 1

    def no():
        return ppl.sample("w", dist.Normal(5.0, 1.0))

    m = jax.lax.cond(c == 1, yes, no)
    ppl.sample("v", dist.Normal(m, 1.0))


def regression():
    b = ppl.sample("b", dist.Normal(0.0, 2.0).expand([2]))
    ppl.deterministic("total", b[0] + b[1])
    ppl.factor("ridge", -0.1 * jnp.sum(b**2))
    X = jnp.stack([jnp.ones(5), jnp.arange(1.0, 6.0)]).T
    mean = X @ b
    ppl.sample("y", dist.Normal(mean, jnp.exp(0.1 * b[0])), obs=Y)


def mixture():
    mu = ppl.sample("mu", dist.Normal(jnp.array([-1.0, 1.0]), 1.0))
    weights = dist.CategoricalProbs(jnp.array([0.3, 0.7]))

    def datum(y):
        ppl.sample("y", dist.MixtureSameFamily(weights, dist.Normal(mu, 0.5)), obs=y)

    ppl.plate("i", datum)(Y)
    k = ppl.sample("k", dist.Categorical(probs=jnp.array([0.2, 0.8])))
    ppl.sample("s", dist.Normal(mu[k], 1.0))


def nested():
    @ppl.program
    def inner(m):
        return ppl.sample("u", dist.Normal(m, 1.0)) + 10

    a = ppl.sample("a", dist.Normal(0.0, 1.0))
    c = ppl.sample("c", inner(a))
    e = ppl.plate("e", lambda _: ppl.sample("e", inner(c)))(jnp.arange(2))
    ppl.deterministic("f", c + jnp.sum(e))


def grid():
    def row(_):
        x = ppl.sample("x[1]", dist.Normal(0.0, 1.0))

        def step(x, _):
            x = ppl.sample("x", dist.StudentT(4.0, 0.9 * x, 1.0))
            return x, None

        jax.lax.scan(step, x, None, length=3)

    ppl.plate("i", row)(jnp.arange(3))


PROGRAMS = {
    "walk": (
        """
    x[1] ~ Normal(0, 1)
    for t in 2..N: x[t] ~ Normal(x[t - 1], 0.5)
    for t in 1..N: y[t] ~ Normal(x[t], 0.3)
""",
        walk,
    ),
    "branch": (
        """
    c ~ Bernoulli(0.3)
    if c == 1:
        x ~ Normal(0, 1)
        m = x + 1
    else:
        w ~ Normal(5, 1)
        m = w
    v ~ Normal(m, 1)
""",
        branch,
    ),
    "regression": (
        """
    b[1..2] ~ Normal(0, 2)
    total := b[1] + b[2]
    factor ridge = -0.1 * |b|^2
    X = stack(ones(N), [float(i) for i in 1..N])'
    y ~ Normal(X @ b, scale(b))
""",
        regression,
    ),
    "mixture": (
        """
    mu ~ Normal([-1, 1], 1)
    for i in 1..N: y[i] ~ Mixture([0.3, 0.7], Normal(mu, 0.5))
    k ~ Categorical([0.2, 0.8])
    s ~ Normal(mu[k + 1], 1)
""",
        mixture,
    ),
    "nested": ("\n    a ~ Normal(0, 1)\n    c ~ inner(a)\n    e[1..2] ~ inner(c)\n    f := c + sum(e)\n", nested),
    "grid": (
        """
    for i in 1..3:
        x[i, 1] ~ Normal(0, 1)
        for t in 2..4: x[i, t] ~ StudentT(4, 0.9 * x[i, t - 1], 1)
""",
        grid,
    ),
}
SHARED = """
function scale(b) = exp(0.1 * b[1])
model inner(| m: real):
    u ~ Normal(m, 1)
    return u + 10
"""


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_programs(name):
    text, theirs = PROGRAMS[name]
    module = load(f"{DATA}{SHARED}model p:{text}", {"y": Y})
    same_program(module.p(), ppl.program(theirs)())


# Objectives over one model and family, in text and in Python

OBJECTIVES = """
data y: real[N]; X: real[M, 2]
param theta: real = 0.5
model p:
    z ~ Normal(theta, 1)
    for i in 1..N: y[i] ~ Normal(z, 0.5)
family q(m: real, s: positive):
    z ~ Normal(m, s)
family scored(m: real):
    z ~ Normal(m, 1) using score_function(0.5)
objective elbo: E[t ~ q] log p(t, y) - log q(t)
objective iwae(K = 4):
    E[t[1..K] ~ q] logmeanexp[k in 1..K] log p(t[k], y) - log q(t[k])
objective ratio(K = 4): E[t[1..K] ~ q] log mean[k in 1..K] p(t[k], y) / q(t[k])
objective chi: E[t ~ q] (p(t, y) / q(t))^2
objective stl: E[t ~ q] log p(t, y) - log detach(q)(t)
objective wake_theta(K = 4):
    E[t[1..K] ~ detach(q)] logmeanexp[k in 1..K] log p(t[k], y) - log detach(q)(t[k])
objective wake_phi(K = 4):
    t[1..K] ~ detach(q)
    w = softmax([log detach(p)(t[k], y) - log detach(q)(t[k]) for k in 1..K])
    sum[k in 1..K] w[k] * log q(t[k])
objective sleep: E[(t, y) ~ detach(p)] log q(t) + 0 * sum(y)
objective scores: E[t ~ scored] log p(t, y) - log scored(t)
objective normal: E[t ~ sir] log p(t, y) - log sir(t)
family sir = normalize(p, proposal = q, particles = 3)
param weights: real[2, 3]; b: real[2]
function v(x, t) = weights @ concat(x, t) + b
objective flow:
    E[t ~ Uniform(0, 1), x0 ~ Normal(zeros(2), 1), x1 ~ X]
        -|v((1 - t) * x0 + t * x1, t) - D[t] ((1 - t) * x0 + t * x1)|^2
"""
ROWS = jax.random.normal(jax.random.key(1), (6, 2))


@ppl.program
def model(params):
    z = ppl.sample("z", dist.Normal(params["theta"], 1.0))
    ppl.plate("i", lambda y: ppl.sample("y", dist.Normal(z, 0.5), obs=y))(Y)


@ppl.program
def dreams(params):
    z = ppl.sample("z", dist.Normal(params["theta"], 1.0))
    ppl.plate("i", lambda _: ppl.sample("y", dist.Normal(z, 0.5)))(Y)


@ppl.program
def family(params):
    ppl.sample("z", dist.Normal(params["q"]["m"], jnp.exp(params["q"]["s"])))


@ppl.program
def scored(params):
    ppl.sample("z", dist.Normal(params["scored"]["m"], 1.0), estimator=ppl.estimators.ScoreFunction(0.5))


def flow(params):
    t = ppl.sample("t", dist.Uniform(0.0, 1.0))
    x0 = ppl.sample("x0", dist.Normal(jnp.zeros(2), 1.0))
    x1 = ROWS[ppl.subsample("x1", 6, 1)[0]]
    velocity = params["weights"] @ jnp.append((1 - t) * x0 + t * x1, t) + params["b"]
    return -jnp.sum((velocity - (x1 - x0)) ** 2)


def sleep(params):
    trace, _ = ppl.simulate(dreams(params).detach())
    return family(params).log_density({"z": jax.lax.stop_gradient(trace["z"])})


o = ppl.objectives
THEIRS = {
    "elbo": lambda p: o.elbo(model(p), family(p)),
    "iwae": lambda p: o.iwae(model(p), family(p), 4),
    "ratio": lambda p: o.iwae(model(p), family(p), 4),
    "chi": lambda p: o.chi_square(model(p), family(p)),
    "stl": lambda p: o.sticking_the_landing(model(p), family(p)),
    "wake_theta": lambda p: o.wake_theta(model(p), family(p), 4),
    "wake_phi": lambda p: o.wake_phi(model(p), family(p), 4),
    "sleep": sleep,
    "scores": lambda p: o.elbo(model(p), scored(p)),
    "normal": lambda p: o.elbo(model(p), ppl.normalize(model(p), proposal=family(p), particles=3)),
    "flow": flow,
}


@pytest.fixture(scope="module")
def module():
    return load(OBJECTIVES, {"y": Y, "X": ROWS})


@pytest.mark.parametrize("name", sorted(THEIRS))
def test_objectives(module, name):
    params = module.init(KEY)
    params["q"] = {"m": jnp.array(0.6), "s": jnp.array(-0.4)}
    params["weights"] = jnp.arange(6.0).reshape(2, 3) / 5
    ours, theirs = (
        jax.jit(lambda p, e=e: e.value_and_grad(KEY, p, samples=2))(params)
        for e in (module.objective(name), ppl.expectation(THEIRS[name]))
    )
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(theirs[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), ours, theirs)


def test_minibatches():
    text = """
data y: real[N]
model p:
    mu ~ Normal(0, 1)
    for i in batch(1..N, 2):
        z[i] ~ Normal(mu, 1)
        y[i] ~ Normal(z[i], 0.5)
family q(m: real, a: real = 0.7):
    mu ~ Normal(m, 1)
    for i in batch(1..N, 2): z[i] ~ Normal(a * y[i] + mu, 0.5)
objective elbo: E[t ~ q] log p(t, y) - log q(t)
"""
    module = load(text, {"y": Y})

    @ppl.program
    def model():
        mu = ppl.sample("mu", dist.Normal(0.0, 1.0))
        rows = ppl.subsample("i", 5, 2)

        def datum(y):
            ppl.sample("y", dist.Normal(ppl.sample("z", dist.Normal(mu, 1.0)), 0.5), obs=y)

        ppl.plate("i", datum, size=5)(Y[rows])

    @ppl.program
    def family(p):
        mu = ppl.sample("mu", dist.Normal(p["m"], 1.0))
        rows = ppl.subsample("i", 5, 2)
        ppl.plate("i", lambda y: ppl.sample("z", dist.Normal(p["a"] * y + mu, 0.5)), size=5)(Y[rows])

    @ppl.expectation
    def elbo(params):
        return ppl.objectives.elbo(model(), family(params["q"]))

    params = module.init()
    results = [e.value_and_grad(KEY, params, samples=3) for e in (module.elbo, elbo)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), *results)


def test_parameters_have_their_constraints():
    text = (
        "family q(p: simplex[3], L: cholesky[2], u: unit = 0.2, s: positive[2] = [1, 2], w: real[4] ~ Normal(0, 0.1)):\n"
        "    x ~ Normal(sum(w), u)\n"
    )
    module = load(text)
    params = module.init(KEY)
    values = module.constrain(params)["q"]
    assert {k: v.shape for k, v in params["q"].items()} == {"p": (2,), "L": (3,), "u": (), "s": (2,), "w": (4,)}
    np.testing.assert_allclose(values["p"], [1 / 3] * 3, rtol=1e-6)
    np.testing.assert_allclose(values["u"], 0.2, rtol=1e-6)
    np.testing.assert_allclose(values["s"], [1, 2], rtol=1e-6)
    assert values["L"][0, 1] == 0
    assert 0 < np.max(np.abs(values["w"])) < 1


def test_parameters_that_a_fit_does_not_name_stay(module):
    text = OBJECTIVES + "fit wake_theta over theta with sgd(0.1), steps 3, seed 5\nminimize chi(K = 4) with sgd(0.1)\n"
    fits = load(text.replace("minimize chi(K = 4)", "minimize chi"), {"y": Y, "X": ROWS}).fits
    params = module.init()
    fitted = fits[0].run(params, progress=False).params
    assert fitted["theta"] != params["theta"]
    jax.tree.map(np.testing.assert_array_equal, fitted["q"], params["q"])
    assert fits[1].minimizes
    assert fits[1].steps == 1000


def test_files_import_others_and_python_where_allowed(tmp_path):
    (tmp_path / "vi_nets_of_a_test.py").write_text("def double(x):\n    return 2 * x\n")
    (tmp_path / "base.vi").write_text("function half(x) = x / 2\n")
    main = tmp_path / "main.vi"
    main.write_text(
        'import "base.vi"\nfrom vi_nets_of_a_test import double\n'
        "model m:\n    x ~ Normal(0, 1)\n    y ~ Normal(double(half(x)), 1)\n"
    )
    with pytest.raises(ppl.errors.LanguageError, match="Python imports are not allowed"):
        load(main)
    module = load(main, python_imports=True)
    expected = dist.Normal(0.0, 1.0).log_prob(0.3) + dist.Normal(0.3, 1.0).log_prob(1.0)
    np.testing.assert_allclose(module.m().log_density({"x": 0.3, "y": 1.0}), expected, rtol=1e-6)


def test_a_formula_over_python_programs():
    params = {"theta": jnp.array(0.5), "q": {"m": jnp.array(0.6), "s": jnp.array(-0.4)}}
    formula = ppl.objective("E[z[1..4] ~ q] logmeanexp[k in 1..4] log p(z[k]) - log q(z[k])", p=model, q=family)
    results = [e.value_and_grad(KEY, params, samples=2) for e in (formula, ppl.expectation(THEIRS["iwae"]))]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *results)
