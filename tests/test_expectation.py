"""Values and gradients of expectations against exact ones: z-scores at stated sample sizes, fixed keys."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ppl
import ppl.distributions as dist
from ppl import errors
from ppl.estimators import Enumerate, Reparameterize, ScoreFunction
from ppl.transforms.plan import first_choice
from ppl.transforms.stage import stage

KEY = jax.random.key(3)
N = 40_000
BOUND = 4.5  # |z| of every comparison; 1e-5 of a false alarm each, over about 100 of them


def z_scores(draws, exact):
    draws = np.asarray(draws, float)
    error = draws.mean(0) - np.asarray(exact, float)
    rounding = 1e-6 * (1.0 + np.abs(exact))  # a mean of float32 numbers is no better
    return error / np.maximum(draws.std(0) / np.sqrt(len(draws)), rounding)


def assert_unbiased(objective, theta, exact, n=N, rest=()):
    """Value and gradient of N independent estimates against exact(theta) and its derivative."""
    run = jax.jit(jax.vmap(lambda key: objective.value_and_grad(key, theta, *rest)))
    values, grads = run(jax.random.split(KEY, n))
    assert np.abs(z_scores(values, exact(theta))).max() < BOUND
    assert np.abs(z_scores(grads, jax.grad(exact)(theta))).max() < BOUND


def square(x):
    return (x - 0.3) ** 2


def normal_square(mean, scale=1.0):
    return (mean - 0.3) ** 2 + scale**2


ESTIMATORS = {"reparameterize": Reparameterize(), "score": ScoreFunction(), "chosen": None}

CONSTRUCTS = {
    "plain": (lambda m, e: square(ppl.sample("x", dist.Normal(m, 1.0), estimator=e)), normal_square),
    "jit": (lambda m, e: jax.jit(lambda m: square(ppl.sample("x", dist.Normal(m, 1.0), estimator=e)))(m), normal_square),
    "checkpoint": (
        lambda m, e: jax.checkpoint(lambda m: square(ppl.sample("x", dist.Normal(m, 1.0), estimator=e)))(m),
        normal_square,
    ),
    "vmap": (
        lambda m, e: jax.vmap(lambda s: square(ppl.sample("x", dist.Normal(m, s), estimator=e)))(jnp.array([0.5, 1.0])).sum(),
        lambda m: normal_square(m, 0.5) + normal_square(m, 1.0),
    ),
    "vmap unbatched": (
        lambda m, e: jax.vmap(lambda _: ppl.sample("x", dist.Normal(m, 1.0), estimator=e))(jnp.arange(2)).prod(),
        lambda m: m**2,
    ),
    "scan": (
        lambda m, e: square(
            jax.lax.scan(lambda x, _: (ppl.sample("x", dist.Normal(m * x, 0.5), estimator=e), None), 1.0, None, length=2)[0]
        ),
        lambda m: (m**2 - 0.3) ** 2 + 0.25 * (1 + m**2),
    ),
    "fori_loop": (
        lambda m, e: square(jax.lax.fori_loop(0, 2, lambda _, x: x + ppl.sample("x", dist.Normal(m, 1.0), estimator=e), 0.0)),
        lambda m: (2 * m - 0.3) ** 2 + 2.0,
    ),
    "cond": (
        lambda m, e: jax.lax.cond(
            ppl.sample("b", dist.Bernoulli(probs=0.4), estimator=ScoreFunction()) == 1,
            lambda: square(ppl.sample("x", dist.Normal(m, 1.0), estimator=e)),
            lambda: ppl.sample("y", dist.Normal(2.0 * m, 1.0), estimator=e),
        ),
        lambda m: 0.4 * normal_square(m) + 0.6 * 2.0 * m,
    ),
    "switch": (
        lambda m, e: jax.lax.switch(
            ppl.sample("i", dist.Categorical(probs=jnp.array([0.2, 0.3, 0.5]))),
            [
                lambda: square(ppl.sample("x", dist.Normal(m, 1.0), estimator=e)),
                lambda: ppl.sample("y", dist.Normal(2.0 * m, 1.0), estimator=e),
                lambda: m,
            ],
        ),
        lambda m: 0.2 * normal_square(m) + 0.6 * m + 0.5 * m,
    ),
    "vmap of cond": (
        lambda m, e: jax.vmap(
            lambda u: jax.lax.cond(
                u > 0,
                lambda: square(ppl.sample("x", dist.Normal(m, 1.0), estimator=e)),
                lambda: ppl.sample("y", dist.Normal(2.0 * m, 1.0), estimator=e),
            )
        )(jnp.array([1.0, -1.0, 1.0])).sum(),
        lambda m: 2 * normal_square(m) + 2 * m,
    ),
    "nested program": (
        lambda m, e: square(
            ppl.simulate(
                ppl.program(
                    lambda: ppl.sample("sub", ppl.program(lambda: ppl.sample("x", dist.Normal(m, 1.0)))(), estimator=e)
                )()
            )[0]["sub"]["x"]
        ),
        normal_square,
    ),
    "nested expectation": (
        lambda m, e: (
            2.0 * ppl.expectation(lambda m: square(ppl.sample("x", dist.Normal(m, 1.0), estimator=e)))(m)
            + ppl.expectation(lambda m: ppl.sample("x", dist.Normal(m, 1.0), estimator=e))(m)
        ),
        lambda m: 2.0 * normal_square(m) + m,
    ),
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("construct", CONSTRUCTS)
def test_every_estimator_in_every_construct(construct, estimator):
    body, exact = CONSTRUCTS[construct]
    objective = ppl.expectation(lambda m: body(m, ESTIMATORS[estimator]))
    assert_unbiased(objective, 0.7, exact)


@pytest.mark.parametrize("construct", ["plain", "vmap", "scan", "vmap of cond", "cond"])
def test_averaging_samples_is_unbiased_and_scores_stay_with_their_own_sample(construct):
    body, exact = CONSTRUCTS[construct]
    objective = ppl.expectation(lambda m: body(m, ScoreFunction()))
    keys = jax.random.split(KEY, 4_000)
    grads = jax.jit(jax.vmap(lambda k: objective.grad(k, 0.7, samples=8)))(keys)
    assert abs(z_scores(grads, jax.grad(exact)(0.7))) < BOUND
    alone = jax.jit(jax.vmap(lambda k: objective.grad(k, 0.7)))(keys)
    # Were one score applied to all samples, the variance would not fall with their number.
    assert np.var(grads) < 1.6 * np.var(alone) / 8


DISCRETE = {
    "bernoulli": (lambda p: dist.Bernoulli(probs=jax.nn.sigmoid(p)), [0, 1]),
    "bernoulli logits": (lambda p: dist.Bernoulli(logits=p), [0, 1]),
    "categorical": (lambda p: dist.Categorical(logits=jnp.array([0.0, p, -p])), [0, 1, 2]),
    "binomial": (lambda p: dist.Binomial(3, logits=p), [0, 1, 2, 3]),
    "poisson": (lambda p: dist.Poisson(jnp.exp(p)), list(range(40))),
    "geometric": (lambda p: dist.Geometric(logits=p), list(range(80))),
}


@pytest.mark.parametrize("name", DISCRETE)
def test_score_function_of_discrete_distributions_against_enumeration(name):
    make, values = DISCRETE[name]

    def cost(x):
        return jnp.cos(1.0 * x) + 0.1 * x

    def exact(p):
        support = jnp.array(values)
        return jnp.sum(jnp.exp(jax.vmap(make(p).log_prob)(support)) * cost(support))

    assert_unbiased(ppl.expectation(lambda p: cost(ppl.sample("x", make(p), estimator=ScoreFunction()))), 0.4, exact)


def test_default_choice():
    def estimator(distribution):
        (plan,) = first_choice(stage(lambda: ppl.sample("x", distribution)).jaxpr.jaxpr).values()
        return type(plan.estimator)

    assert estimator(dist.Normal(0.0, 1.0)) is Reparameterize
    assert estimator(dist.Gamma(jnp.ones(3), 1.0).to_event(1)) is Reparameterize
    assert estimator(dist.LogNormal(0.0, 1.0).expand([2])) is Reparameterize
    assert estimator(dist.TransformedDistribution(dist.Normal(0.0, 1.0), dist.transforms.SigmoidTransform())) is Reparameterize
    assert estimator(dist.Delta(1.0)) is Reparameterize
    assert estimator(dist.Poisson(1.0)) is ScoreFunction
    assert estimator(dist.Categorical(probs=jnp.ones(2) / 2)) is Enumerate
    assert estimator(dist.Categorical(probs=jnp.ones(100) / 100)) is ScoreFunction
    assert estimator(dist.Binomial(3, probs=0.2)) is Enumerate
    assert estimator(dist.Binomial(jnp.array([2, 3]), probs=0.2)) is ScoreFunction
    # has_rsample holds for none of these, or wrongly
    mixture = dist.MixtureSameFamily(dist.Categorical(probs=jnp.ones(2) / 2), dist.Normal(jnp.zeros(2), 1.0))
    assert estimator(mixture) is ScoreFunction
    assert estimator(dist.VonMises(0.0, 1.0)) is ScoreFunction


def test_mixture_weights_get_their_gradient():
    """NumPyro's Trace_ELBO gives -0.004 where the exact gradient is nonzero."""

    def mixture(p):
        return dist.MixtureSameFamily(
            dist.Categorical(logits=jnp.array([p, -p])), dist.Normal(jnp.array([-1.0, 2.0]), jnp.array([0.5, 1.0]))
        )

    def exact(p):
        w = jax.nn.softmax(jnp.array([p, -p]))
        return w[0] * (1.0 + 0.25) + w[1] * (4.0 + 1.0)

    assert_unbiased(ppl.expectation(lambda p: ppl.sample("x", mixture(p)) ** 2), 0.2, exact)


def test_von_mises_concentration_against_quadrature():
    grid = jnp.linspace(-jnp.pi, jnp.pi, 4001)[:-1]

    def exact(k):
        return jnp.mean(jnp.exp(dist.VonMises(0.3, k).log_prob(grid)) * jnp.cos(grid)) * 2 * jnp.pi

    assert_unbiased(ppl.expectation(lambda k: jnp.cos(ppl.sample("x", dist.VonMises(0.3, k)))), 1.5, exact)


def test_a_moving_support_under_a_score_function_is_refused():
    def make(estimator):
        return ppl.expectation(lambda a: ppl.sample("x", dist.Uniform(a, 2.0), estimator=estimator) ** 2)

    with pytest.raises(errors.EstimatorError, match=r"(?s)ScoreFunction.*'x' ~ Uniform.*support moves.*test_expectation.py"):
        make(ScoreFunction()).grad(KEY, 0.5)
    assert_unbiased(make(None), 0.5, lambda a: (8.0 - a**3) / (3 * (2.0 - a)))
    fixed = ppl.expectation(lambda a: a * ppl.sample("x", dist.Uniform(0.0, 2.0), estimator=ScoreFunction()) ** 2)
    assert_unbiased(fixed, 0.5, lambda a: a * 4.0 / 3)


def test_reparameterization_of_a_discrete_site_is_refused():
    objective = ppl.expectation(lambda p: 1.0 * ppl.sample("x", dist.Bernoulli(probs=p), estimator=Reparameterize()))
    with pytest.raises(errors.EstimatorError, match=r"(?s)Reparameterize.*'x' ~ Bernoulli.*test_expectation.py"):
        objective.grad(KEY, 0.5)


def test_with_estimators_by_address_prefix_and_for_all():
    @ppl.program
    def inner():
        ppl.sample("a", dist.Normal(0.0, 1.0))
        ppl.sample("b", dist.Normal(0.0, 1.0))

    @ppl.program
    def outer():
        ppl.sample("sub", inner())
        ppl.sample("c", dist.Normal(0.0, 1.0))

    def chosen(bound):
        from ppl.transforms.interpret import run_staged
        from ppl.transforms.modify import prepare
        from ppl.transforms.simulate import Simulate
        from ppl.transforms.stage import sites, stage

        def run():
            prepared = prepare(bound)
            return run_staged(prepared.staged, prepared.rule(Simulate()), prepared.inputs())[1].values

        return {item.site.name: item.site.estimator for item in sites(stage(lambda: list(run().values())).jaxpr.jaxpr)}

    score, path = ScoreFunction(), Reparameterize()
    assert chosen(outer()) == {"sub/a": None, "sub/b": None, "c": None}
    assert chosen(outer().with_estimators(score)) == {"sub/a": score, "sub/b": score, "c": score}
    assert chosen(outer().with_estimators(sub=score)) == {"sub/a": score, "sub/b": score, "c": None}
    mixed = outer().with_estimators({"sub/a": path}).with_estimators(c=score)
    assert chosen(mixed) == {"sub/a": path, "sub/b": None, "c": score}


def test_detach_stops_the_gradient_of_sampling_only():
    @ppl.program
    def family(m):
        ppl.sample("x", dist.Normal(m, 1.0))

    @ppl.expectation
    def objective(m):
        trace, log_q = ppl.simulate(family(m).detach())
        return trace["x"] ** 2 + log_q

    # d/dm of x^2 is gone; d/dm log q(x; m) at fixed x has mean zero and variance one.
    grads = jax.vmap(lambda k: objective.grad(k, 0.7))(jax.random.split(KEY, N))
    assert abs(z_scores(grads, 0.0)) < BOUND
    assert abs(np.var(grads) - 1.0) < 0.05


def test_scale_multiplies_costs_and_never_scores():
    """d/dp of E_q[s * log q(b)] for a scaled program, with a score-function site; exact by enumeration."""

    @ppl.program
    def family(p):
        ppl.sample("b", dist.Bernoulli(probs=p))

    @ppl.expectation
    def objective(p):
        return ppl.simulate(family(p).scale(5.0))[1]

    def exact(p):
        return 5.0 * (p * jnp.log(p) + (1 - p) * jnp.log(1 - p))

    assert_unbiased(objective, 0.3, exact)


def test_plate_subsampling_with_discrete_latents():
    """NumPyro's TraceGraph_ELBO is wrong here at every batch size, because it scales score and cost."""
    data = jnp.array([0.5, -1.0, 2.0, 0.3])
    logits = jnp.array([0.2, -0.4, 0.8, 0.1])

    def model(batch):
        def datum(y):
            z = ppl.sample("z", dist.Bernoulli(probs=0.4))
            ppl.sample("y", dist.Normal(1.0 * z, 1.0), obs=y)

        ppl.plate("data", datum, size=4)(batch)

    def family(l):
        ppl.plate("data", lambda l: ppl.sample("z", dist.Bernoulli(logits=l)), size=4)(l)

    @ppl.expectation
    def elbo(theta, rows):
        trace, log_q = ppl.simulate(ppl.program(family)((logits + theta)[rows]))
        return ppl.program(model)(data[rows]).log_density(trace) - log_q

    def exact(theta):
        total = 0.0
        for y, l in zip(data, logits + theta, strict=True):
            q = jax.nn.sigmoid(l)
            for z, w in ((0.0, 1 - q), (1.0, q)):
                prior = jnp.log(jnp.where(z == 1, 0.4, 0.6))
                total += w * (prior + dist.Normal(z, 1.0).log_prob(y) - jnp.log(w))
        return total

    for batch in (4, 2, 1):
        subset = jax.jit(jax.vmap(lambda k, b=batch: jax.random.choice(k, 4, (b,), replace=False)))(jax.random.split(KEY, N))
        keys = jax.random.split(jax.random.key(9), N)
        values, grads = jax.jit(jax.vmap(lambda k, rows: elbo.value_and_grad(k, 0.0, rows)))(keys, subset)
        assert abs(z_scores(values, exact(0.0))) < BOUND
        assert abs(z_scores(grads, jax.grad(exact)(0.0))) < BOUND


def test_second_derivatives_of_score_function_and_pathwise_objectives():
    def exact(p):
        q = jax.nn.sigmoid(p[0])
        return q * (p[1] ** 2 + 1.0) + (1 - q) * jnp.sin(p[1]) * jnp.exp(-0.0)

    @ppl.expectation
    def objective(p):
        b = ppl.sample("b", dist.Bernoulli(logits=p[0]))
        x = ppl.sample("x", dist.Normal(p[1], 1.0))
        return jnp.where(b == 1, x**2, jnp.sin(p[1]))

    p = jnp.array([0.3, 0.6])
    hessians = jax.jit(jax.vmap(lambda k: jax.hessian(objective.estimate, argnums=1)(k, p)))(jax.random.split(KEY, N))
    assert np.abs(z_scores(hessians, jax.hessian(exact)(p))).max() < BOUND


def test_the_surrogate_is_an_ordinary_function():
    objective = ppl.expectation(lambda m: ppl.sample("x", dist.Normal(m, 1.0)) ** 2)
    keys, means = jax.random.split(KEY, 5), jnp.arange(5.0)
    loop = [jax.grad(objective.estimate, argnums=1)(k, m) for k, m in zip(keys, means, strict=True)]
    together = jax.jit(jax.vmap(jax.grad(objective.estimate, argnums=1)))(keys, means)
    np.testing.assert_allclose(together, loop, rtol=1e-5)
    scanned = jax.lax.scan(lambda c, x: (c, objective.grad(x[0], x[1])), 0.0, (keys, means))[1]
    np.testing.assert_allclose(scanned, loop, rtol=1e-5)


def test_argnums_and_networks_as_arguments():
    net = eqx.nn.MLP(1, 1, 4, 1, key=KEY)

    @ppl.expectation
    def objective(net, shift):
        x = ppl.sample("x", dist.Normal(shift, 1.0))
        return net(x[None])[0] ** 2

    value, (by_net, by_shift) = objective.value_and_grad(KEY, net, 0.5, argnums=(0, 1), samples=10)
    assert by_net.activation is None
    assert by_net.layers[0].weight.shape == net.layers[0].weight.shape
    numeric = (objective.estimate(KEY, net, 0.501, samples=10) - objective.estimate(KEY, net, 0.499, samples=10)) / 0.002
    np.testing.assert_allclose(by_shift, numeric, rtol=0.02, atol=1e-4)
    moved = eqx.tree_at(lambda n: n.layers[-1].bias, net, net.layers[-1].bias + 1e-2)
    slope = (objective.estimate(KEY, moved, 0.5, samples=10) - value) / 1e-2
    np.testing.assert_allclose(by_net.layers[-1].bias[0], slope, atol=0.02)


def test_maximize_reaches_the_exact_posterior_and_is_a_function_of_its_key():
    """x ~ N(0, 1), y ~ N(x, 1) with y = 2: the posterior is N(1, 1/2), log evidence log N(2; 0, sqrt 2)."""

    @ppl.program
    def model():
        ppl.sample("y", dist.Normal(ppl.sample("x", dist.Normal(0.0, 1.0)), 1.0), obs=2.0)

    @ppl.expectation
    def elbo(phi):
        trace, log_q = ppl.simulate(ppl.program(lambda: ppl.sample("x", dist.Normal(phi["m"], jnp.exp(phi["s"]))))())
        return model().log_density(trace) - log_q

    start = {"m": 0.0, "s": 0.0}
    schedule = optax.adam(optax.cosine_decay_schedule(0.05, 1500))
    options = {"optimizer": schedule, "steps": 1500, "samples": 16, "progress": False}
    fit = ppl.maximize(elbo, start, KEY, **options)
    np.testing.assert_allclose(fit.params["m"], 1.0, atol=0.02)
    np.testing.assert_allclose(jnp.exp(fit.params["s"]), np.sqrt(0.5), atol=0.02)
    exact = float(dist.Normal(0.0, np.sqrt(2.0)).log_prob(2.0))
    assert abs(elbo.estimate(KEY, fit.params, samples=10_000) - exact) < 5e-3
    assert fit.history.shape == (1500,)
    assert fit.history[:50].mean() < fit.history[-50:].mean()
    again = ppl.maximize(elbo, start, KEY, **options, steps_per_call=70)
    np.testing.assert_allclose(again.params["m"], fit.params["m"], rtol=1e-5)
    np.testing.assert_allclose(again.history, fit.history, rtol=1e-4, atol=1e-4)
    down = ppl.minimize(ppl.expectation(lambda phi: -elbo(phi)), start, KEY, **options)
    np.testing.assert_allclose(down.params["m"], 1.0, atol=0.02)


def test_a_second_fit_with_the_same_shapes_compiles_nothing():
    traces = []

    @ppl.expectation
    def objective(x, y):
        traces.append(None)
        return -((x - ppl.sample("e", dist.Normal(0.0, 0.1)) - y.mean()) ** 2)

    optimizer = optax.sgd(0.1)
    options = {"optimizer": optimizer, "steps": 30, "steps_per_call": 10, "progress": False}
    first = ppl.maximize(objective, 0.0, KEY, jnp.ones(3), **options)
    count = len(traces)
    second = ppl.maximize(objective, 5.0, jax.random.key(1), jnp.full(3, 2.0), **options)
    assert len(traces) == count
    assert abs(first.params - 1.0) < 0.3
    assert abs(second.params - 2.0) < 0.3


def test_jitted_objectives_do_not_recompile():
    objective = ppl.expectation(lambda m: ppl.sample("x", dist.Normal(m, 1.0)) ** 2)
    run = jax.jit(objective.value_and_grad)
    run(KEY, 1.0)
    run(jax.random.key(8), 2.0)
    assert run._cache_size() == 1


def test_double_precision():
    with jax.enable_x64(True):
        objective = ppl.expectation(
            lambda m: ppl.sample("x", dist.Normal(m, 1.0)) + 1.0 * ppl.sample("b", dist.Bernoulli(logits=m))
        )
        value, grad = objective.value_and_grad(KEY, jnp.array(0.5), samples=3)
        assert value.dtype == grad.dtype == jnp.float64
        bound = ppl.program(lambda: ppl.sample("x", dist.Normal(0.0, 1.0)))()
        np.testing.assert_allclose(bound.log_density({"x": 1.0}), -0.5 - 0.5 * np.log(2 * np.pi), rtol=1e-14)


@pytest.mark.parametrize("wrap", ["plain", "to_event", "expand", "mixture"])
def test_scores_at_logits_of_exactly_zero(wrap):
    """Where training often starts, NumPyro's Bernoulli has a score of 0 or 1 in place of -1/2 or 1/2."""
    import numpyro.distributions as numpyro_dist

    def make(p):
        coins = numpyro_dist.Bernoulli(logits=p * jnp.ones(2))
        if wrap == "to_event":
            return coins.to_event(1)
        if wrap == "expand":
            return numpyro_dist.Bernoulli(logits=p).expand([2])
        if wrap == "mixture":
            return numpyro_dist.MixtureSameFamily(numpyro_dist.Categorical(probs=jnp.array([0.5, 0.5])), coins)
        return coins

    def exact(p):
        return (1.0 if wrap == "mixture" else 2.0) * jax.nn.sigmoid(p)

    assert_unbiased(ppl.expectation(lambda p: 1.0 * ppl.sample("x", make(p)).sum()), 0.0, exact)


@pytest.mark.parametrize("trials", [1, 3])
def test_binary_densities_at_extreme_logits(trials):
    make = dist.Bernoulli if trials == 1 else lambda logits: dist.Binomial(trials, logits=logits)
    for logit, sure in ((100.0, trials), (-100.0, 0)):
        np.testing.assert_allclose(make(logits=logit).log_prob(sure), 0.0, atol=1e-6)  # rounding of log factorials
        slope = jax.grad(lambda l, sure=sure: make(logits=l).log_prob(sure))(logit)
        assert abs(slope) < 1e-30
    np.testing.assert_allclose(make(logits=0.0).log_prob(0), -trials * np.log(2.0), rtol=1e-6)
    hessian = jax.hessian(lambda l: make(logits=l).log_prob(0))(0.0)
    np.testing.assert_allclose(hessian, -0.25 * trials, rtol=1e-6)
