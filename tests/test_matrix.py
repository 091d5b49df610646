"""Every estimator, with every distribution and parameter it serves, in every construct; and a refusal everywhere else.

One objective is the sum of all constructs, each with a parameter of its own, so that one gradient checks them all, and that no
construct's scores or branches reach another's. Exact values are sums over the support, or over a fine grid.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl import errors
from ppl.estimators import (
    ARM,
    AcceptReject,
    DisARM,
    Enumerate,
    ImportanceSampling,
    LeaveOneOut,
    LocalExpectation,
    MeasureValued,
    OneElement,
    Reparameterize,
    Samples,
    ScoreFunction,
)

KEY = jax.random.key(23)
N = 5_000
FEWER = 1_500  # where draws are slow
BOUND = 4.9  # |z|: 1e-6 of a false alarm each, over about 1,300 of them
THETA = 0.3


def grid(low, high, n=1200):
    edges = jnp.linspace(low, high, n + 1)
    return 0.5 * (edges[1:] + edges[:-1]), (high - low) / n


def counts(n):
    return jnp.arange(n), 1.0


def pairs(n=600):
    """Points of the two-dimensional simplex."""
    x, step = grid(0.0, 1.0, n)
    return jnp.stack([x, 1.0 - x], axis=-1), step


def plane(n=60):
    x, step = grid(-6.0, 6.0, n)
    return jnp.stack(jnp.meshgrid(x, x), axis=-1).reshape(-1, 2), step**2


one_hot = (jnp.eye(3), 1.0)
CASES = {
    "Normal loc": (lambda t: dist.Normal(t, 0.8), grid(-6.0, 7.0)),
    "Normal scale": (lambda t: dist.Normal(0.4, jnp.exp(t - 0.5)), grid(-9.0, 9.0)),
    "LogNormal": (lambda t: dist.LogNormal(t, 0.4), grid(1e-4, 12.0, 4000)),
    "Laplace": (lambda t: dist.Laplace(t, jnp.exp(t - 0.7)), grid(-15.0, 15.0, 4000)),
    "Exponential rate": (lambda t: dist.Exponential(jnp.exp(t)), grid(0.0, 25.0, 4000)),
    "Gamma shape": (lambda t: dist.Gamma(1.5 + t, 1.5), grid(0.0, 25.0, 4000)),
    "Gamma rate": (lambda t: dist.Gamma(2.5, jnp.exp(t)), grid(0.0, 25.0, 4000)),
    "Beta": (lambda t: dist.Beta(1.5 + t, 2.5 - t), grid(0.0, 1.0, 2000)),
    "Dirichlet": (lambda t: dist.Dirichlet(jnp.array([1.5, 2.0]) + t * jnp.array([1.0, 0.5])), pairs()),
    "MultivariateNormal": (
        lambda t: dist.MultivariateNormal(jnp.array([0.2, -0.1]), scale_tril=jnp.array([[0.6, 0.0], [0.2, 0.7]]) * jnp.exp(t)),
        plane(),
    ),
    "Bernoulli probs": (lambda t: dist.Bernoulli(probs=jax.nn.sigmoid(t)), counts(2)),
    "Bernoulli logits": (lambda t: dist.Bernoulli(logits=t), counts(2)),
    "Categorical probs": (lambda t: dist.Categorical(probs=jax.nn.softmax(jnp.array([t, 0.0, -t]))), counts(3)),
    "Categorical logits": (lambda t: dist.Categorical(logits=jnp.array([t, 0.5, -t])), counts(3)),
    "OneHotCategorical": (lambda t: dist.OneHotCategorical(logits=jnp.array([t, 0.5, -t])), one_hot),
    "Binomial": (lambda t: dist.Binomial(2, logits=t), counts(3)),
    "Geometric": (lambda t: dist.Geometric(logits=t), counts(60)),
    "Poisson rate": (lambda t: dist.Poisson(jnp.exp(t)), counts(25)),
    "VonMises": (lambda t: dist.VonMises(0.3, jnp.exp(t)), grid(-np.pi, np.pi)),
    "Uniform high": (lambda t: dist.Uniform(-1.0, jnp.exp(t)), None),
}
DISCRETE = ("Bernoulli probs", "Bernoulli logits", "Categorical probs", "Categorical logits", "Binomial")
FINITE = (*DISCRETE, "OneHotCategorical")
SYMMETRIC = ("Normal loc", "Normal scale", "LogNormal", "Laplace", "MultivariateNormal")
GAMMAS = ("Gamma shape", "Gamma rate", "Beta", "Dirichlet")
PATHWISE = (*SYMMETRIC, "Exponential rate", *GAMMAS)
SCORED = tuple(name for name in CASES if name != "Uniform high")
WEAK = (
    "Normal loc", "Normal scale", "LogNormal", "Laplace", "Exponential rate", *GAMMAS, *DISCRETE, "Geometric", "Poisson rate"
)  # fmt: skip


def proposal(distribution):
    """A wider distribution of the same family."""
    if isinstance(distribution, dist.Normal):
        return dist.Normal(0.4, 1.5)
    return dist.Poisson(2.0)


SERVED = {
    "reparameterize": (Reparameterize(), PATHWISE),
    "antithetic": (Reparameterize(antithetic=True), SYMMETRIC),
    "score": (ScoreFunction(), SCORED),
    "score, leave-one-out": (ScoreFunction(LeaveOneOut()), ("Normal loc", "Poisson rate")),
    "enumerate": (Enumerate(), FINITE),
    "local expectation": (LocalExpectation(), FINITE),
    "measure-valued": (MeasureValued(), WEAK),
    "one element": (OneElement(LocalExpectation()), ("Bernoulli logits", "Categorical logits")),
    "one element, measure-valued": (OneElement(MeasureValued()), ("Normal loc", "Poisson rate")),
    "accept-reject": (AcceptReject(), GAMMAS),
    "ARM": (ARM(), ("Bernoulli probs", "Bernoulli logits")),
    "DisARM": (DisARM(), ("Bernoulli probs", "Bernoulli logits")),
    "samples": (Samples(3), ("Normal loc", "Bernoulli logits", "Poisson rate")),
    "importance": (ImportanceSampling(proposal), ("Normal loc", "Poisson rate")),
}
REFUSED = {
    "reparameterize": ("Bernoulli logits", "Poisson rate", "VonMises"),
    "antithetic": ("Gamma shape", "Exponential rate", "Bernoulli logits"),
    "score": ("Uniform high",),
    "enumerate": ("Poisson rate", "Normal loc", "Geometric"),
    "local expectation": ("Poisson rate", "Normal loc"),
    "measure-valued": ("VonMises", "MultivariateNormal"),
    "one element": ("Normal loc",),
    "accept-reject": ("Normal loc", "Bernoulli logits"),
    "ARM": ("Categorical logits", "Normal loc"),
    "DisARM": ("Categorical logits", "Normal loc"),
    "samples": ("Uniform high",),
}


def feature(x, make):
    x = 1.0 * x[..., 0] if make(THETA).event_dim else 1.0 * x
    return jnp.cos(x) + 0.25 * x


COINS = jnp.array([0.3, 0.7])


def constructs(draw, entropy):
    """Each construct: a function of its parameter, and its exact expectation in terms of `mean(g, t) = E g(feature)`."""

    @ppl.program
    def nested(t):
        return draw("y", t)

    def separate(t):
        return jax.vmap(lambda c: c * draw("separate", t))(jnp.array([1.0, -0.5, 2.0])).sum()

    def mixed(t):
        return jax.vmap(lambda _: draw("mixed", t))(jnp.arange(2)).prod()

    def scan(t):
        def step(carry, _):
            y = draw("step", t)
            return carry * y, carry + y**2

        last, sums = jax.lax.scan(step, 1.0, None, length=2)
        return last + sums.sum()  # y1 y2 + 1 + y1^2 + y1 + y2^2

    def choice(t):
        which = ppl.sample("which", dist.Categorical(probs=COINS), estimator=Enumerate())
        return jax.lax.switch(which, [lambda: 2.0 * draw("one", t), lambda: draw("two", t + 0.1) ** 2])

    def conditional(t):
        coin = ppl.sample("coin", dist.Bernoulli(probs=0.3), estimator=Enumerate())
        return jax.lax.cond(coin == 1, lambda: draw("true", t), lambda: t * draw("false", t))

    def scanned_lanes(t):
        def lane(c):
            return jax.lax.scan(lambda total, _: (total + c * draw("lane", t) * t, None), 0.0, None, length=2)[0]

        return jax.vmap(lane)(jnp.array([1.0, 2.0])).sum()

    return {
        "plain": (lambda t: t * draw("plain", t) ** 2, lambda mean, t: t * mean(lambda f: f**2, t)),
        "jit": (jax.jit(lambda t: jnp.exp(0.3 * draw("jit", t))), lambda mean, t: mean(lambda f: jnp.exp(0.3 * f), t)),
        "checkpoint": (jax.checkpoint(lambda t: t * draw("kept", t)), lambda mean, t: t * mean(lambda f: f, t)),
        "vmap, separate costs": (separate, lambda mean, t: 2.5 * mean(lambda f: f, t)),
        "vmap, mixed cost": (mixed, lambda mean, t: mean(lambda f: f, t) ** 2),
        "scan": (
            scan,
            lambda mean, t: mean(lambda f: f, t) ** 2 + 1 + 2 * mean(lambda f: f**2, t) + mean(lambda f: f, t),
        ),
        "fori_loop": (
            lambda t: jax.lax.fori_loop(0, 2, lambda _, x: x * draw("turn", t), 1.0),
            lambda mean, t: mean(lambda f: f, t) ** 2,
        ),
        "switch": (choice, lambda mean, t: 0.6 * mean(lambda f: f, t) + 0.7 * mean(lambda f: f**2, t + 0.1)),
        "cond": (conditional, lambda mean, t: (0.3 + 0.7 * t) * mean(lambda f: f, t)),
        "vmap of scan": (scanned_lanes, lambda mean, t: 6.0 * t * mean(lambda f: f, t)),
        "nested program": (
            lambda t: ppl.sample("inner", nested(t)) * ppl.sample("other", nested(2 * t)),
            lambda mean, t: mean(lambda f: f, t) * mean(lambda f: f, 2 * t),
        ),
        "scale": (entropy, None),
    }


@pytest.mark.parametrize(("estimator", "case"), [(e, c) for e, (_, cases) in SERVED.items() for c in cases])
def test_served(estimator, case):
    chosen = SERVED[estimator][0]
    make, (points, step) = CASES[case]

    def draw(address, t):
        return feature(ppl.sample(address, make(t), estimator=chosen), make)

    @ppl.program
    def site(t):
        ppl.sample("x", make(t), estimator=chosen)

    def scaled(t):
        return ppl.simulate(site(t).scale(2.5))[1]

    def density(t):
        return step * jnp.exp(make(t).log_prob(points))

    def mean(g, t):
        return jnp.sum(density(t) * g(feature(points, make)))

    def exact(name, reference, t):
        if name == "scale":
            return 2.5 * jnp.sum(density(t) * make(t).log_prob(points))
        return reference(mean, t)

    parts = constructs(draw, scaled)
    names = list(parts)
    thetas = jnp.full(len(names), THETA)
    objective = ppl.expectation(lambda t: sum(parts[name][0](t[i]) for i, name in enumerate(names)))
    samples = 2 if isinstance(getattr(chosen, "baseline", None), LeaveOneOut) else None
    run = jax.jit(jax.vmap(lambda key: objective.value_and_grad(key, thetas, samples=samples)))
    n = FEWER if case in (*GAMMAS, "MultivariateNormal") else N
    values, grads = (np.asarray(x, float) for x in run(jax.random.split(KEY, n)))
    value = sum(exact(name, parts[name][1], THETA) for name in names)
    slopes = np.array([jax.grad(lambda t, n=name: exact(n, parts[n][1], t))(THETA) for name in names])
    rounding = 3e-5  # of sums over a grid in single precision
    assert abs(values.mean() - value) < BOUND * values.std() / np.sqrt(n) + rounding * (1 + abs(value))
    wrong = {
        name: (grads[:, i].mean(), slopes[i])
        for i, name in enumerate(names)
        if abs(grads[:, i].mean() - slopes[i]) > BOUND * grads[:, i].std() / np.sqrt(n) + rounding * (1 + abs(slopes[i]))
    }
    assert not wrong


@pytest.mark.parametrize(("estimator", "case"), [(e, c) for e, cases in REFUSED.items() for c in cases])
def test_refused(estimator, case):
    make = CASES[case][0]
    objective = ppl.expectation(lambda t: feature(ppl.sample("x", make(t), estimator=SERVED[estimator][0]), make))
    with pytest.raises(errors.EstimatorError, match=r"(?s)'x'.*test_matrix.py"):
        objective.grad(KEY, THETA)
