"""What enumeration costs, where it is exact at length, and where it is refused or left for the score function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

import ppl
import ppl.distributions as dist
from ppl import errors
from ppl.estimators import Enumerate, ScoreFunction
from ppl.transforms.plan import first_choice, make_plan
from ppl.transforms.stage import stage_objective

KEY = jax.random.key(4)


def equations(jaxpr):
    """How many equations there are, those inside others included."""
    count = 0
    for eqn in jaxpr.eqns:
        count += 1
        for param in jax.tree.leaves(eqn.params, is_leaf=lambda p: isinstance(p, Jaxpr | ClosedJaxpr)):
            if isinstance(param, Jaxpr | ClosedJaxpr):
                count += equations(param.jaxpr if isinstance(param, ClosedJaxpr) else param)
    return count


def sequential_coins(n, estimator):
    @ppl.expectation
    def objective(t):
        last = total = 0.0
        for i in range(n):
            last = 1.0 * ppl.sample(f"x{i}", dist.Bernoulli(logits=t - last), estimator=estimator)
            total = total + jnp.sin(last + i)
        return total

    return objective


def sequential_branches(n, estimator):
    @ppl.expectation
    def objective(t):
        total = 0.0
        for i in range(n):
            coin = ppl.sample(f"x{i}", dist.Bernoulli(logits=t), estimator=estimator)
            normal = lambda i=i: t * ppl.sample(f"y{i}", dist.Normal(t, 1.0))  # noqa: E731
            total = total + jax.lax.cond(coin == 1, normal, lambda: t * t)
        return total

    return objective


def independent_coins(n, estimator):
    @ppl.expectation
    def objective(t):
        return sum(jnp.sin(t + ppl.sample(f"x{i}", dist.Bernoulli(logits=t), estimator=estimator)) for i in range(n))

    return objective


@pytest.mark.parametrize("estimator", [Enumerate(), ScoreFunction()], ids=["enumerate", "score"])
@pytest.mark.parametrize("make", [sequential_coins, sequential_branches, independent_coins])
def test_the_equations_of_n_sites_are_linear_in_n(make, estimator):
    few, some, many = (equations(jax.make_jaxpr(make(n, estimator).grad)(KEY, 0.3).jaxpr) for n in (4, 8, 24))
    assert many - some == 4 * (some - few)


@pytest.mark.parametrize("where", ["carried", "stacked", "reverse", "plate"])
def test_fifty_steps_of_a_hidden_markov_chain(where):
    n_states, length = 3, 50
    ys = jnp.sin(jnp.arange(1.0 * length))
    theta = {"move": 0.3 * jnp.cos(jnp.arange(9.0)).reshape(3, 3), "drift": jnp.array([-0.4, 0.1, 0.5])}

    def emission(y):
        return -0.5 * (y - jnp.arange(1.0 * n_states)) ** 2

    def sequence(theta, ys):
        def step(carry, y):
            last, total = carry
            logits = theta["move"][last] + y * theta["drift"]
            z = ppl.sample("z", dist.Categorical(logits=logits), estimator=Enumerate())
            cost = theta["move"][z, last] - jax.nn.log_softmax(logits)[z]
            if where != "stacked":
                cost = cost + emission(y)[z]
            return (z, total + cost), z

        (_, total), zs = jax.lax.scan(step, (0, 0.0), ys, reverse=where == "reverse")
        late = jnp.sum(-0.5 * (ys - zs) ** 2) if where == "stacked" else 0.0
        return total + late

    both = jnp.stack([ys, -ys]) if where == "plate" else ys[None]
    objective = ppl.expectation(
        lambda theta: jax.vmap(lambda ys: sequence(theta, ys))(both).sum() if where == "plate" else sequence(theta, ys)
    )
    start = jnp.array([1.0, 0.0, 0.0])

    def exact(theta):
        one = both[:, ::-1] if where == "reverse" else both
        return sum(forward(theta, row, start, emission) for row in one)

    found = jax.jit(lambda theta: objective.value_and_grad(KEY, theta))(theta)
    wanted = jax.jit(jax.value_and_grad(exact))(theta)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * scale), found, wanted)


def forward(theta, ys, start, emission):
    """The expected cost of a hidden Markov chain, by the forward recursion."""

    def step(probabilities, y):
        log_q = jax.nn.log_softmax(theta["move"] + y * theta["drift"], -1)
        joint = probabilities[:, None] * jnp.exp(log_q)
        return joint.sum(0), jnp.sum(joint * (emission(y) + theta["move"].T - log_q))

    return jnp.sum(jax.lax.scan(step, start, ys)[1])


def crowd(estimator, n=20):
    return lambda t: jnp.tanh(jnp.sum(ppl.sample("x", dist.Bernoulli(logits=t * jnp.ones(n)), estimator=estimator)))


def two_crowds(estimator):
    def objective(t):
        x, y = (ppl.sample(name, dist.Bernoulli(logits=t * jnp.ones(8)), estimator=estimator) for name in "xy")
        return jnp.tanh(jnp.sum(x * y))

    return objective


def entangled(estimator):
    def objective(t):
        def step(z, _):
            z = ppl.sample("x", dist.Bernoulli(logits=t + z - z[::-1]), estimator=estimator)
            return z, 1.0 * z.prod()

        return jnp.sum(jax.lax.scan(step, jnp.zeros(2, int), None, length=20)[1])

    return objective


def disparate(estimator):
    def objective(t):
        def step(carry, _):
            x, y = carry
            x = ppl.sample("x", dist.Bernoulli(logits=t + x - y[0]), estimator=estimator)
            y = ppl.sample("y", dist.Bernoulli(logits=t * x + y), estimator=estimator)
            return (x, y), jnp.sum(jnp.sin(1.0 * x + y))

        return jnp.sum(jax.lax.scan(step, (0, jnp.zeros(2, int)), None, length=20)[1])

    return objective


def memory(estimator):
    def objective(t):
        def step(carry, _):
            z = ppl.sample("x", dist.Bernoulli(logits=t + carry[0] - carry[1]), estimator=estimator)
            return (carry[1], z), 1.0 * z

        return jnp.sum(jax.lax.scan(step, (0, 0), None, length=20)[1])

    return objective


@pytest.mark.parametrize(
    ("make", "names"),
    [(crowd, "'x' .20 elements."), (two_crowds, "'x' .*'y'"), (entangled, "'x'"), (disparate, "'x'.*'y'|'y'"), (memory, "'x'")],
)
def test_what_would_be_exponential_is_refused_by_name_or_scored(make, names):
    with pytest.raises(errors.EstimatorError, match=rf"(?s){names}.*test_enumeration.py.*ScoreFunction\(\)"):
        ppl.expectation(make(Enumerate())).grad(KEY, 0.3)
    staged = stage_objective(make(None), 0.3)
    chosen = make_plan(staged.jaxpr.jaxpr, staged.jaxpr.consts, first_choice(staged.jaxpr.jaxpr)).sites
    assert any(type(plan.estimator) is ScoreFunction for plan in chosen.values())


def test_many_independent_sites_are_enumerated_where_none_is_named():
    objective = independent_coins(40, None)
    exact = lambda t: 40 * (jax.nn.sigmoid(t) * jnp.sin(t + 1.0) + jax.nn.sigmoid(-t) * jnp.sin(t))  # noqa: E731
    value, grad = jax.jit(objective.value_and_grad)(KEY, 0.3)
    np.testing.assert_allclose([value, grad], [exact(0.3), jax.grad(exact)(0.3)], rtol=1e-5)


SHARED = {  # two sites that share an address: one estimator has to serve both
    "coin and die": (lambda t: dist.Bernoulli(logits=t), lambda t: dist.Categorical(logits=jnp.stack([t, 0.0 * t, -t]))),
    "coin and count": (lambda t: dist.Poisson(jnp.exp(t)), lambda t: dist.Bernoulli(logits=t)),
    "normal and angle": (lambda t: dist.VonMises(0.5, jnp.exp(t)), lambda t: dist.Normal(t, 1.0)),
    "two coins": (lambda t: dist.Bernoulli(logits=t), lambda t: dist.Bernoulli(logits=-2.0 * t)),
}


@pytest.mark.parametrize("name", SHARED)
def test_branches_that_share_an_address_with_different_distributions(name):
    one, other = SHARED[name]

    def objective(share, t):
        a = ppl.sample("a", dist.Bernoulli(probs=0.3))
        names = ("x", "x") if share else ("x", "y")
        x, y = (lambda n=n, d=d: jnp.cos(1.0 * ppl.sample(n, d(t))) for n, d in zip(names, (one, other), strict=True))
        b = jax.lax.cond(a == 1, x, y)
        return jnp.sin(b + 2.0 * ppl.sample("c", dist.Bernoulli(logits=t * b)))

    draws = []
    for share in (True, False):  # two addresses have plans of their own
        run = ppl.expectation(lambda t, share=share: objective(share, t))
        found = jax.jit(jax.vmap(lambda key, run=run: jnp.stack(run.value_and_grad(key, 0.4))))(jax.random.split(KEY, 20_000))
        draws.append(np.asarray(found, float))
    error = np.sqrt(sum(d.var(0) / len(d) for d in draws)) + 1e-6
    assert np.abs((draws[0].mean(0) - draws[1].mean(0)) / error).max() < 4.5
