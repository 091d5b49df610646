"""Log densities of small models, one for each feature, against the same models in NumPyro.

NumPyro has no counterpart of control flow inside a model, so its side is unrolled in Python. There, element i of a stacked
address `x` has the name `x[i]`.
"""

import functools
import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.infer.util import log_density

import ppl
import ppl.distributions as dist

CASES = {}
KEYS = jax.random.split(jax.random.key(3), 4)
NAN = float("nan")


def case(build):
    """Register a function that returns a bound program, the NumPyro model and, where nothing can be drawn, traces."""
    CASES[build.__name__] = functools.cache(build)
    return build


def at(name, *index):
    return f"{name}[{','.join(map(str, index))}]"


def draw(name, *index_and_distribution, obs=None):
    """NumPyro's sample, for an element of an address."""
    *index, distribution = index_and_distribution
    return numpyro.sample(at(name, *index), distribution, obs=obs)


def flat(trace, prefix=""):
    for name, value in trace.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def elements(trace):
    """Every value, and every element along its leading axes, by the names that NumPyro models use here."""
    named = {}
    for name, value in flat(trace):
        named[name] = value = np.asarray(value)
        for depth in range(1, np.ndim(value) + 1):
            for index in itertools.product(*map(range, np.shape(value)[:depth])):
                named[at(name, *index)] = value[index]
    return named


# Distributions.


@case
def scalars_and_events():
    @ppl.program
    def ours(scale):
        a = ppl.sample("a", dist.Normal(0.5, scale))
        b = ppl.sample("b", dist.Gamma(2.0, jnp.exp(a)))
        v = ppl.sample("v", dist.Normal(jnp.arange(3.0), 1.0 + b))
        ppl.sample("w", dist.Normal(v, 1.0).to_event(1))
        ppl.sample("m", dist.Laplace(a, 1.0).expand([2, 3]).to_event(1))
        ppl.sample("s", dist.Beta(1.0 + b, 3.0).expand([4]))
        ppl.sample("y", dist.StudentT(5.0, v.sum(), 2.0), obs=0.7)

    def theirs():
        a = numpyro.sample("a", dist.Normal(0.5, 2.0))
        b = numpyro.sample("b", dist.Gamma(2.0, jnp.exp(a)))
        v = jnp.stack([draw("v", i, dist.Normal(i, 1.0 + b)) for i in range(3)])
        numpyro.sample("w", dist.Normal(v, 1.0).to_event(1))
        numpyro.sample("m", dist.Laplace(a, 1.0).expand([2, 3]).to_event(2))
        with numpyro.plate("four", 4):
            numpyro.sample("s", dist.Beta(1.0 + b, 3.0))
        numpyro.sample("y", dist.StudentT(5.0, v.sum(), 2.0), obs=0.7)

    return ours(2.0), theirs


@case
def multivariate_normal():
    cov = np.array([[2.0, 0.5, 0.1], [0.5, 1.0, -0.2], [0.1, -0.2, 0.7]])
    y = np.array([0.3, -1.0, 2.0])

    @ppl.program
    def ours():
        loc = ppl.sample("loc", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        ppl.sample("rows", dist.MultivariateNormal(jnp.zeros((4, 3)), precision_matrix=cov))
        ppl.sample("low_rank", dist.LowRankMultivariateNormal(loc, cov[:, :1], jnp.ones(3)))
        ppl.sample("y", dist.MultivariateNormal(loc, cov), obs=y)

    def theirs():
        loc = numpyro.sample("loc", dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3)))
        for i in range(4):
            draw("rows", i, dist.MultivariateNormal(jnp.zeros(3), np.linalg.inv(cov)))
        numpyro.sample("low_rank", dist.MultivariateNormal(loc, np.outer(cov[:, 0], cov[:, 0]) + np.eye(3)))
        numpyro.sample("y", dist.MultivariateNormal(loc, scale_tril=np.linalg.cholesky(cov)), obs=y)

    return ours(), theirs


@case
def dirichlet_and_categorical():
    y = np.array([0, 2, 2, 1, 0])

    @ppl.program
    def ours():
        theta = ppl.sample("theta", dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])))
        rows = ppl.sample("rows", dist.Dirichlet(2.0 * jnp.ones((3, 3))))
        k = ppl.sample("k", dist.Categorical(probs=theta))
        ppl.sample("counts", dist.Multinomial(7, probs=rows[k]))
        ppl.sample("y", dist.Categorical(logits=jnp.log(rows[k])).expand([5]), obs=y)

    def theirs():
        theta = numpyro.sample("theta", dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])))
        rows = jnp.stack([draw("rows", i, dist.Dirichlet(2.0 * jnp.ones(3))) for i in range(3)])
        k = numpyro.sample("k", dist.Categorical(logits=jnp.log(theta)))
        numpyro.sample("counts", dist.Multinomial(7, probs=rows[k]))
        with numpyro.plate("data", 5):
            numpyro.sample("y", dist.Categorical(probs=rows[k]), obs=y)

    return ours(), theirs


@case
def mixtures():
    y = np.array([[0.1, 0.2], [3.0, 2.5], [-1.0, 1.0]])

    @ppl.program
    def ours():
        w = ppl.sample("w", dist.Dirichlet(jnp.ones(2)))
        mu = ppl.sample("mu", dist.Normal(0.0, 3.0).expand([2]))
        ppl.sample("x", dist.MixtureSameFamily(dist.Categorical(probs=w), dist.Normal(mu, 0.5)))
        components = dist.MultivariateNormal(jnp.stack([mu, -mu]), jnp.eye(2))
        ppl.sample("y", dist.MixtureSameFamily(dist.Categorical(probs=w), components).expand([3]), obs=y)
        ppl.sample("z", dist.MixtureGeneral(dist.Categorical(probs=w), [dist.Normal(mu[0], 1.0), dist.Laplace(mu[1], 2.0)]))

    def log_mixture(w, *log_probs):
        return jax.nn.logsumexp(jnp.stack([jnp.log(w[i]) + lp for i, lp in enumerate(log_probs)]))

    def theirs():
        w = numpyro.sample("w", dist.Dirichlet(jnp.ones(2)))
        mu = [draw("mu", i, dist.Normal(0.0, 3.0)) for i in range(2)]
        flat_real = dist.ImproperUniform(dist.constraints.real, (), ())
        x, z = numpyro.sample("x", flat_real), numpyro.sample("z", flat_real)
        numpyro.factor("fx", log_mixture(w, *[dist.Normal(m, 0.5).log_prob(x) for m in mu]))
        numpyro.factor("fz", log_mixture(w, dist.Normal(mu[0], 1.0).log_prob(z), dist.Laplace(mu[1], 2.0).log_prob(z)))
        for i, row in enumerate(y):
            both = [dist.Normal(sign * jnp.stack(mu), 1.0).log_prob(row).sum() for sign in (1, -1)]
            numpyro.factor(f"fy{i}", log_mixture(w, *both))

    return ours(), theirs


@case
def transformed_and_truncated():
    @ppl.program
    def ours():
        a = ppl.sample("a", dist.LogNormal(0.0, 0.5))
        transforms = [dist.transforms.AffineTransform(1.0, a), dist.transforms.ExpTransform()]
        ppl.sample("b", dist.TransformedDistribution(dist.Normal(0.0, 1.0), transforms))
        ppl.sample("c", dist.TruncatedNormal(a, 1.0, low=0.3))
        ppl.sample("d", dist.TruncatedNormal(0.2, 1.5, low=-a, high=2.0))
        ppl.sample("e", dist.TruncatedCauchy(0.0, a, high=1.0).expand([3]))
        base = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
        ppl.sample("f", dist.TransformedDistribution(base, dist.transforms.StickBreakingTransform()))

    def theirs():
        a = numpyro.sample("a", dist.TransformedDistribution(dist.Normal(0.0, 0.5), dist.transforms.ExpTransform()))
        numpyro.sample("b", dist.LogNormal(1.0, a))
        flat_real = dist.ImproperUniform(dist.constraints.real, (), ())
        normal, cauchy = dist.Normal(0.0, 1.0), dist.Cauchy(0.0, a)
        c, d = numpyro.sample("c", flat_real), numpyro.sample("d", flat_real)
        numpyro.factor("fc", dist.Normal(a, 1.0).log_prob(c) - jnp.log(1 - normal.cdf(0.3 - a)))
        between = normal.cdf((2.0 - 0.2) / 1.5) - normal.cdf((-a - 0.2) / 1.5)
        numpyro.factor("fd", dist.Normal(0.2, 1.5).log_prob(d) - jnp.log(between))
        e = numpyro.sample("e", flat_real.expand([3]).to_event(1))
        numpyro.factor("fe", (cauchy.log_prob(e) - jnp.log(cauchy.cdf(1.0))).sum())
        base = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
        numpyro.sample("f", dist.TransformedDistribution(base, dist.transforms.StickBreakingTransform()))

    return ours(), theirs


@case
def lkj_cholesky():
    y = np.random.default_rng(0).normal(size=(5, 3))

    @ppl.program
    def ours():
        correlation = ppl.sample("correlation", dist.LKJCholesky(3, 2.0))
        scale = ppl.sample("scale", dist.HalfNormal(jnp.ones(3)))
        tril = scale[:, None] * correlation
        jax.vmap(lambda row: ppl.sample("y", dist.MultivariateNormal(jnp.zeros(3), scale_tril=tril), obs=row))(y)

    def theirs():
        correlation = numpyro.sample("correlation", dist.LKJCholesky(3, 2.0))
        scale = numpyro.sample("scale", dist.HalfNormal(1.0).expand([3]).to_event(1))
        tril = jnp.diag(scale) @ correlation
        with numpyro.plate("data", 5):
            numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(3), tril @ tril.T), obs=y)

    return ours(), theirs


@case
def discrete_latents():
    @ppl.program
    def ours():
        p = ppl.sample("p", dist.Beta(2.0, 2.0))
        flags = ppl.sample("flags", dist.Bernoulli(probs=p).expand([3]))
        rate = ppl.sample("rate", dist.Poisson(3.0 + flags.sum()))
        n = ppl.sample("n", dist.Binomial(10, logits=jnp.array([0.0, 1.0])))
        ppl.sample("g", dist.Geometric(p))
        ppl.sample("nb", dist.NegativeBinomial2(2.0, 1.5))
        ppl.sample("u", dist.DiscreteUniform(0, 4))
        ppl.sample("y", dist.Normal(rate + n, 1.0), obs=jnp.array([8.0, 9.0]))

    def theirs():
        p = numpyro.sample("p", dist.Beta(2.0, 2.0))
        flags = [draw("flags", i, dist.Bernoulli(p)) for i in range(3)]
        rate = numpyro.sample("rate", dist.Poisson(3.0 + sum(flags)))
        n = [draw("n", i, dist.BinomialProbs(jax.nn.sigmoid(float(i)), 10)) for i in range(2)]
        numpyro.sample("g", dist.Geometric(p))
        numpyro.sample("nb", dist.NegativeBinomial2(2.0, 1.5))
        numpyro.sample("u", dist.Categorical(jnp.ones(5) / 5))
        for i in range(2):
            draw("y", i, dist.Normal(rate + n[i], 1.0), obs=8.0 + i)

    return ours(), theirs


# Statements and modifications.


@case
def observed_and_conditioned():
    @ppl.program
    def inner(x):
        return ppl.sample("z", dist.Normal(x, 1.0)) + ppl.sample("w", dist.Normal(0.0, 2.0))

    @ppl.program
    def ours():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(x, 0.5), obs=1.5)
        total = ppl.sample("inner", inner(x))
        ppl.sample("k", dist.Poisson(jnp.exp(total)))
        ppl.sample("v", dist.Normal(total, 1.0).expand([2]).to_event(1))

    def theirs():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=1.5)
        total = numpyro.sample("inner/z", dist.Normal(x, 1.0), obs=0.25) + numpyro.sample("inner/w", dist.Normal(0.0, 2.0))
        numpyro.sample("k", dist.Poisson(jnp.exp(total)), obs=2)
        numpyro.sample("v", dist.Normal(total, 1.0).expand([2]).to_event(1), obs=jnp.array([0.1, 0.2]))

    return ours().condition({"inner/z": 0.25}, k=2).condition(v=np.array([0.1, 0.2])), theirs


@case
def factors_and_deterministic():
    @ppl.program
    def ours():
        x = ppl.sample("x", dist.Normal(0.0, jnp.array([1.0, 2.0])))
        square = ppl.deterministic("square", x**2)
        ppl.factor("scalar", -square.sum())
        ppl.factor("vector", -jnp.abs(x))
        jax.vmap(lambda s: ppl.factor("mapped", 0.1 * s))(square)

    def theirs():
        x = jnp.stack([draw("x", i, dist.Normal(0.0, i + 1.0)) for i in range(2)])
        numpyro.factor("all", -0.9 * (x**2).sum() - jnp.abs(x).sum())

    return ours(), theirs


MISSING = np.array([True, False, True, True])
DATA = np.array([0.5, NAN, -1.0, 2.0])


@case
def distribution_mask():
    @ppl.program
    def ours():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        v = ppl.sample("v", dist.Normal(x, 1.0).expand([4]).mask(MISSING))
        ppl.sample("off", dist.Normal(x, 1.0).mask(False))
        ppl.sample("on", dist.Normal(x, 1.0).mask(x > -100.0))
        ppl.sample("y", dist.Normal(v, 2.0).mask(MISSING), obs=DATA)
        rows = jnp.where(MISSING[:, None], 1.0, NAN) * jnp.ones((4, 2))
        ppl.sample("rows", dist.Normal(jnp.stack([x, x]), 1.0).expand([4, 2]).to_event(1).mask(MISSING), obs=rows)
        jax.vmap(lambda y, m: ppl.sample("mapped", dist.Gamma(jnp.exp(x), 1.0).mask(m), obs=y))(jnp.abs(DATA), MISSING)

    def theirs():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("off", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.sample("on", dist.Normal(x, 1.0))
        for i in (0, 2, 3):
            v = draw("v", i, dist.Normal(x, 1.0))
            draw("y", i, dist.Normal(v, 2.0), obs=DATA[i])
            draw("rows", i, dist.Normal(x, 1.0).expand([2]).to_event(1), obs=jnp.ones(2))
            draw("mapped", i, dist.Gamma(jnp.exp(x), 1.0), obs=abs(DATA[i]))

    return ours(), theirs


@case
def program_mask():
    @ppl.program
    def sub(x):
        ppl.sample("a", dist.Normal(x, 1.0))
        ppl.factor("f", x)

    @ppl.program
    def ours():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(x, 2.0).expand([4]))

        def step(state, _):
            return ppl.sample("state", dist.Normal(state, 1.0).mask(jnp.abs(state) < 100.0)), None

        jax.lax.scan(step, x, None, length=4)
        ppl.sample("kept", sub(x))
        ppl.sample("dropped", sub(2 * x))

    def theirs():
        x = state = numpyro.sample("x", dist.Normal(0.0, 1.0))
        for i in (0, 2, 3):
            draw("y", i, dist.Normal(x, 2.0))
        for i in range(4):
            old, state = state, draw("state", i, dist.ImproperUniform(dist.constraints.real, (), ()))
            if MISSING[i]:
                numpyro.factor(f"f{i}", dist.Normal(old, 1.0).log_prob(state))
        numpyro.sample("kept/a", dist.Normal(x, 1.0))
        numpyro.factor("kept/f", x)

    return ours().mask(y=MISSING, state=MISSING, kept=True).mask(dropped=False), theirs


@case
def scale():
    weights = np.array([0.5, 2.0, 3.0])

    @ppl.program
    def ours():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(x, 2.0).expand([3]), obs=np.zeros(3))
        jax.vmap(lambda s: ppl.sample("z", dist.Normal(x, s)))(jnp.arange(1.0, 4.0))
        ppl.factor("f", x**2)

    def theirs():
        with numpyro.handlers.scale(scale=0.1):
            x = numpyro.sample("x", dist.Normal(0.0, 1.0))
            numpyro.factor("f", x**2)
            for i in range(3):
                with numpyro.handlers.scale(scale=5.0):
                    draw("y", i, dist.Normal(x, 2.0), obs=0.0)
                with numpyro.handlers.scale(scale=3.0 * weights[i]):
                    draw("z", i, dist.Normal(x, i + 1.0))

    return ours().scale(y=5.0, z=weights).scale(z=3.0).scale(0.1), theirs


@case
def substituted():
    @ppl.program
    def ours():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        w = ppl.sample("w", dist.Gamma(2.0, jnp.exp(x)))
        jax.vmap(lambda i: ppl.sample("v", dist.Normal(i * x, w)))(jnp.arange(2.0))

    def theirs():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0), obs=0.3)
        w = numpyro.sample("w", dist.Gamma(2.0, jnp.exp(x)))
        for i in range(2):
            draw("v", i, dist.Normal(i * x, w), obs=[0.1, -0.4][i])

    return ours().substitute(x=0.3, v=np.array([0.1, -0.4])), theirs


@case
def intervened():
    @ppl.program
    def ours():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        w = ppl.sample("w", dist.Normal(x, 1.0))
        ppl.sample("y", dist.Normal(w, 1.0))

        def step(s, _):
            return ppl.sample("s", dist.Normal(s, 1.0)), None

        ppl.sample("end", dist.Normal(jax.lax.scan(step, w, None, length=2)[0], 1.0))

    def theirs():
        numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(2.0, 1.0), obs=3.0)
        numpyro.sample("end", dist.Normal(-1.0, 1.0))

    return ours().intervene(w=2.0, s=np.array([5.0, -1.0])).condition(y=3.0), theirs


@case
def unnormalized():
    def log_rho(trace):
        return -(trace["a"] ** 4) - 0.5 * ((trace["b"]["c"] - trace["a"]) ** 2).sum()

    like = {"a": jax.ShapeDtypeStruct((), jnp.float32), "b": {"c": jax.ShapeDtypeStruct((3,), jnp.float32)}}

    @ppl.program
    def ours():
        rho = ppl.sample("rho", ppl.unnormalized(log_rho, like))
        x = ppl.sample("x", dist.ImproperUniform(dist.constraints.positive, (), (2,)))
        ppl.sample("y", dist.Normal(rho["b"]["c"][:2], x), obs=np.ones(2))

    def theirs():
        flat_real = dist.ImproperUniform(dist.constraints.real, (), ())
        a = numpyro.sample("rho/a", flat_real)
        c = jnp.stack([draw("rho/b/c", i, flat_real) for i in range(3)])
        numpyro.factor("rho", -(a**4) - 0.5 * ((c - a) ** 2).sum())
        x = numpyro.sample("x", dist.ImproperUniform(dist.constraints.positive, (), (2,)))
        with numpyro.plate("data", 2):
            numpyro.sample("y", dist.Normal(c[:2], x), obs=jnp.ones(2))

    a, c, x = jax.random.normal(KEYS[0], (4,)), jax.random.normal(KEYS[1], (4, 3)), jnp.exp(jax.random.normal(KEYS[2], (4, 2)))
    return ours(), theirs, [{"rho": {"a": a[i], "b": {"c": c[i]}}, "x": x[i]} for i in range(4)]


@case
def nested_programs():
    @ppl.program
    def leaf(loc):
        return ppl.sample("x", dist.Normal(loc, 1.0))

    @ppl.program
    def middle(loc):
        first = ppl.sample("one", leaf(loc))
        return ppl.sample("two/three", leaf(first))

    @ppl.program
    def ours():
        top = ppl.sample("top", middle(0.0))
        jax.vmap(lambda t: ppl.sample("lanes", leaf(t)))(jnp.array([1.0, 2.0]) * top)
        end, _ = jax.lax.scan(lambda s, _: (ppl.sample("steps", middle(s)), None), top, None, length=2)
        ppl.sample("seen", leaf(end), obs={"x": 0.5})

    def theirs():
        one = numpyro.sample("top/one/x", dist.Normal(0.0, 1.0))
        top = s = numpyro.sample("top/two/three/x", dist.Normal(one, 1.0))
        for i in range(2):
            draw("lanes/x", i, dist.Normal((i + 1) * top, 1.0))
            s = draw("steps/one/x", i, dist.Normal(s, 1.0))
            s = draw("steps/two/three/x", i, dist.Normal(s, 1.0))
        numpyro.sample("seen", dist.Normal(s, 1.0), obs=0.5)

    return ours(), theirs


# Plates and vmap.


@case
def subsampled_plate():
    batch = np.random.default_rng(1).normal(size=(5, 2))

    @ppl.program
    def ours():
        mean = ppl.sample("mean", dist.Normal(0.0, 1.0))

        def datum(row, weight):
            z = ppl.sample("z", dist.Normal(mean, weight))
            ppl.factor("f", -jnp.abs(z))
            ppl.sample("y", dist.Normal(z, 1.0).expand([2]), obs=row)

        ppl.plate("data", datum, size=100, in_axes=(0, None))(batch, 2.0)

    def theirs():
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        with numpyro.handlers.seed(rng_seed=0), numpyro.plate("data", 100, subsample_size=5):
            z = numpyro.sample("z", dist.Normal(mean, 2.0))
            numpyro.factor("f", -jnp.abs(z))
            numpyro.sample("y", dist.Normal(z[:, None], 1.0).expand([5, 2]).to_event(1), obs=batch)

    return ours(), theirs


@case
def nested_plates():
    y = np.random.default_rng(2).normal(size=(3, 4))

    @ppl.program
    def ours():
        top = ppl.sample("top", dist.Normal(0.0, 1.0))

        def group(ys):
            mean = ppl.sample("mean", dist.Normal(top, 1.0))

            def item(y):
                z = ppl.sample("z", dist.Normal(mean, 1.0).expand([2]).to_event(1))
                ppl.sample("y", dist.Normal(z.sum(), 1.0), obs=y)

            ppl.plate("items", item, size=8)(ys)

        ppl.plate("groups", group, size=9)(y)

    def theirs():
        top = numpyro.sample("top", dist.Normal(0.0, 1.0))
        with numpyro.handlers.scale(scale=3.0):
            mean = numpyro.sample("mean", dist.Normal(top, 1.0).expand([3]).to_event(1))
        with (
            numpyro.handlers.seed(rng_seed=0),
            numpyro.plate("groups", 9, subsample_size=3, dim=-2),
            numpyro.plate("items", 8, subsample_size=4, dim=-1),
        ):
            z = numpyro.sample("z", dist.Normal(mean[:, None, None], 1.0).expand([3, 4, 2]).to_event(1))
            numpyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)

    return ours(), theirs


@case
def plate_in_scan_in_plate():
    y = np.random.default_rng(3).normal(size=(2, 3, 4))  # groups, steps, items

    @ppl.program
    def ours():
        def group(ys):
            def step(state, row):
                state = ppl.sample("state", dist.Normal(state, 1.0))
                ppl.plate("items", lambda v: ppl.sample("y", dist.Normal(state, 0.5), obs=v), size=8)(row)
                jax.vmap(lambda s: ppl.sample("z", dist.Normal(s * state, 1.0)))(jnp.array([1.0, -1.0]))
                ppl.factor("f", 0.1 * state)
                return state, None

            jax.lax.scan(step, 0.0, ys)

        ppl.plate("groups", group, size=10)(y)

    def theirs():
        for g in range(2):
            state = 0.0
            for t in range(3):
                with numpyro.handlers.scale(scale=5.0):
                    state = draw("state", g, t, dist.Normal(state, 1.0))
                    numpyro.factor(at("f", g, t), 0.1 * state)
                    for k, sign in enumerate((1.0, -1.0)):
                        draw("z", g, t, k, dist.Normal(sign * state, 1.0))
                    for i in range(4):
                        with numpyro.handlers.scale(scale=2.0):
                            draw("y", g, t, i, dist.Normal(state, 0.5), obs=y[g, t, i])

    return ours(), theirs


@case
def vmap_with_in_axes():
    y = np.random.default_rng(4).normal(size=(2, 3, 4))

    @ppl.program
    def ours(params):
        top = ppl.sample("top", dist.Normal(jnp.zeros(2), 1.0))

        def inner(column, p, shift):
            own = ppl.sample("own", dist.Gamma(2.0, p["rate"]))
            ppl.sample("free", dist.Normal(0.0, 1.0))
            ppl.sample("shared", dist.MultivariateNormal(top, jnp.eye(2)))
            ppl.sample("y", dist.Normal(own + shift, p["sd"]).to_event(1), obs=column)
            return own

        def outer(block):  # [2, 4], the middle axis of y is mapped
            return jax.vmap(inner, in_axes=(1, {"rate": 0, "sd": None}, None))(block, params, top)

        total = jax.vmap(outer, in_axes=1, out_axes=1)(y).sum()
        ppl.sample("end", dist.Normal(total, 1.0))

    params = {"rate": np.arange(1.0, 5.0), "sd": np.array([1.0, 2.0])}

    def theirs():
        top = jnp.stack([draw("top", i, dist.Normal(0.0, 1.0)) for i in range(2)])
        total = 0.0
        for i, j in itertools.product(range(3), range(4)):
            own = draw("own", i, j, dist.Gamma(2.0, params["rate"][j]))
            draw("free", i, j, dist.Normal(0.0, 1.0))
            draw("shared", i, j, dist.Normal(top, 1.0).to_event(1))
            for k in range(2):
                draw("y", i, j, k, dist.Normal(own + top[k], params["sd"][k]), obs=y[k, i, j])
            total = total + own
        numpyro.sample("end", dist.Normal(total, 1.0))

    return ours(params), theirs


@case
def vmap_of_cond():
    flags = np.array([True, False, True])

    @ppl.program
    def ours():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))

        def lane(flag, scale):
            value = jax.lax.cond(
                flag,
                lambda s: ppl.sample("yes", dist.Normal(x, s)),
                lambda s: ppl.sample("no", dist.Gamma(2.0, s)) + ppl.sample("more", dist.Normal(0.0, 1.0)),
                scale,
            )
            ppl.sample("y", dist.Normal(value, 1.0), obs=0.5)

        ppl.plate("lanes", lane, size=6)(flags, jnp.array([1.0, 2.0, 3.0]))

    def theirs():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        with numpyro.handlers.scale(scale=2.0):
            for i, s in enumerate((1.0, 2.0, 3.0)):
                if flags[i]:
                    value = draw("yes", i, dist.Normal(x, s))
                else:
                    value = draw("no", i, dist.Gamma(2.0, s)) + draw("more", i, dist.Normal(0.0, 1.0))
                draw("y", i, dist.Normal(value, 1.0), obs=0.5)

    return ours(), theirs


@case
def vmap_of_scan_and_switch():
    @ppl.program
    def ours():
        def lane(start, kind):
            def step(state, _):
                options = [
                    lambda s: ppl.sample("walk", dist.Normal(s, 1.0)),
                    lambda s: ppl.sample("jump", dist.Cauchy(s, 1.0)),
                    lambda s: s + 1.0,
                ]
                state = jax.lax.switch(kind, options, state)
                return state, None

            state, _ = jax.lax.scan(step, start, None, length=2)
            return ppl.sample("end", dist.Normal(state, 1.0))

        jax.vmap(lane)(jnp.array([0.0, 1.0, 2.0]), jnp.arange(3))

    def theirs():
        for i in range(3):
            state = float(i)
            for t in range(2):
                if i == 2:
                    state = state + 1.0
                else:
                    name, kind = [("walk", dist.Normal), ("jump", dist.Cauchy)][i]
                    state = draw(name, i, t, kind(state, 1.0))
            draw("end", i, dist.Normal(state, 1.0))

    return ours(), theirs


# Control flow.


@case
def chain():
    y = np.array([0.1, 0.4, -0.3, 1.0])

    @ppl.program
    def ours():
        sd = ppl.sample("sd", dist.HalfNormal(1.0))

        def step(state, y):
            state = ppl.sample("state", dist.Normal(0.9 * state, sd))
            k = ppl.sample("k", dist.Bernoulli(logits=state))
            ppl.sample("y", dist.Normal(state + k, 0.5), obs=y)
            return state, ppl.deterministic("twice", 2 * state)

        _, twice = jax.lax.scan(step, 0.0, y, unroll=2)
        ppl.sample("end", dist.Normal(twice.sum(), 1.0), obs=1.0)

    def theirs():
        sd = numpyro.sample("sd", dist.HalfNormal(1.0))
        state, total = 0.0, 0.0
        for t in range(4):
            state = draw("state", t, dist.Normal(0.9 * state, sd))
            k = draw("k", t, dist.Bernoulli(logits=state))
            draw("y", t, dist.Normal(state + k, 0.5), obs=y[t])
            total = total + 2 * state
        numpyro.sample("end", dist.Normal(total, 1.0), obs=1.0)

    return ours(), theirs


@case
def reversed_scan():
    @ppl.program
    def ours():
        def step(state, x):
            state = ppl.sample("state", dist.Normal(state + x, 1.0 + x))
            return state, state

        first, states = jax.lax.scan(step, 0.5, jnp.arange(4.0), reverse=True)
        ppl.sample("y", dist.Normal(first + 10 * states[-1], 1.0), obs=1.0)

    def theirs():
        state, last = 0.5, None
        for t in reversed(range(4)):
            state = draw("state", t, dist.Normal(state + t, 1.0 + t))
            last = state if t == 3 else last
        numpyro.sample("y", dist.Normal(state + 10 * last, 1.0), obs=1.0)

    return ours(), theirs


@case
def nested_scans_with_pytrees():
    inputs = {"a": np.arange(6.0).reshape(2, 3), "b": np.ones((2, 3, 2))}

    @ppl.program
    def ours():
        def inner(carry, row):
            z = ppl.sample("z", dist.Normal(carry["z"] + row["a"], 1.0))
            v = ppl.sample("v", dist.Normal(carry["v"] * row["b"], 1.0).to_event(1))
            return {"z": z, "v": v}, z

        def outer(carry, row):
            carry, zs = jax.lax.scan(inner, carry, row)
            shift = ppl.sample("shift", dist.Normal(zs.mean(), 1.0))
            return {**carry, "z": carry["z"] + shift}, None

        start = {"z": ppl.sample("z0", dist.Normal(0.0, 1.0)), "v": jnp.ones(2)}
        jax.lax.scan(outer, start, inputs)

    def theirs():
        z, v = numpyro.sample("z0", dist.Normal(0.0, 1.0)), jnp.ones(2)
        for i in range(2):
            zs = []
            for j in range(3):
                z = draw("z", i, j, dist.Normal(z + inputs["a"][i, j], 1.0))
                v = draw("v", i, j, dist.Normal(v, 1.0).to_event(1))
                zs.append(z)
            z = z + draw("shift", i, dist.Normal(sum(zs) / 3, 1.0))

    return ours(), theirs


@case
def fori_loop():
    @ppl.program
    def ours():
        def body(i, carry):
            x, total = carry
            x = ppl.sample("x", dist.Normal(x * i, 1.0))
            return x, total + x

        x, total = jax.lax.fori_loop(2, 5, body, (1.0, 0.0))
        ppl.sample("y", dist.Normal(x + total, 1.0))

    def theirs():
        x, total = 1.0, 0.0
        for step, i in enumerate(range(2, 5)):
            x = draw("x", step, dist.Normal(x * i, 1.0))
            total = total + x
        numpyro.sample("y", dist.Normal(x + total, 1.0))

    return ours(), theirs


@case
def cond_on_a_latent():
    @ppl.program
    def ours():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))

        def high():
            a = ppl.sample("a", dist.LogNormal(x, 1.0))
            return ppl.sample("both", dist.Normal(a, 1.0))

        def low():
            def step(s, _):
                return ppl.sample("s", dist.Normal(s, 1.0)), None

            ppl.factor("f", -3.0)
            return ppl.sample("both", dist.Normal(jax.lax.scan(step, x, None, length=3)[0], 2.0))

        ppl.sample("y", dist.Normal(jax.lax.cond(x > 0, high, low), 1.0), obs=0.0)

    def theirs():
        x = s = numpyro.sample("x", dist.Normal(0.0, 1.0))
        if x > 0:
            a = numpyro.sample("a", dist.LogNormal(x, 1.0))
            both = numpyro.sample("both", dist.Normal(a, 1.0))
        else:
            for t in range(3):
                s = draw("s", t, dist.Normal(s, 1.0))
            numpyro.factor("f", -3.0)
            both = numpyro.sample("both", dist.Normal(s, 2.0))
        numpyro.sample("y", dist.Normal(both, 1.0), obs=0.0)

    return ours(), theirs


@case
def switch_in_scan():
    @ppl.program
    def ours():
        def step(state, _):
            kind = ppl.sample("kind", dist.Categorical(probs=jnp.array([0.3, 0.3, 0.4])))
            options = [
                lambda s: ppl.sample("walk", dist.Normal(s, 1.0)),
                lambda s: ppl.sample("pair", dist.Normal(s, 2.0).expand([2]).to_event(1)).sum(),
                lambda s: 0.5 * s,
            ]
            return jax.lax.switch(kind, options, state), None

        ppl.sample("end", dist.Normal(jax.lax.scan(step, 1.0, None, length=4)[0], 1.0))

    def theirs():
        state = 1.0
        for t in range(4):
            kind = int(draw("kind", t, dist.Categorical(jnp.array([0.3, 0.3, 0.4]))))
            if kind == 0:
                state = draw("walk", t, dist.Normal(state, 1.0))
            elif kind == 1:
                state = draw("pair", t, dist.Normal(state, 2.0).expand([2]).to_event(1)).sum()
            else:
                state = 0.5 * state
        numpyro.sample("end", dist.Normal(state, 1.0))

    return ours(), theirs


@case
def checkpoint_and_jit():
    @ppl.program
    def ours():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))

        @jax.checkpoint
        def block(x, scale):
            y = ppl.sample("y", dist.Normal(jnp.sin(x), scale))

            @jax.jit
            def inner(y):
                z = ppl.sample("z", dist.Normal(y, 1.0))
                return jax.vmap(lambda s: ppl.sample("lanes", dist.Normal(z, s)))(jnp.array([1.0, 2.0])).sum()

            return inner(y) + y

        @functools.partial(jax.jit, static_argnums=1)
        def twice(value, n):
            body = jax.checkpoint(lambda s, _: (ppl.sample("steps", dist.Normal(s, 1.0)), None))
            return jax.lax.scan(body, value, None, length=n)[0]

        ppl.sample("w", dist.Normal(twice(block(x, 2.0), 2), 1.0), obs=0.2)

    def theirs():
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        y = numpyro.sample("y", dist.Normal(jnp.sin(x), 2.0))
        z = numpyro.sample("z", dist.Normal(y, 1.0))
        s = y + sum(draw("lanes", i, dist.Normal(z, i + 1.0)) for i in range(2))
        for t in range(2):
            s = draw("steps", t, dist.Normal(s, 1.0))
        numpyro.sample("w", dist.Normal(s, 1.0), obs=0.2)

    return ours(), theirs


@case
def loop_without_sites():
    @ppl.program
    def ours():
        n = ppl.sample("n", dist.Poisson(3.0))
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        _, root = jax.lax.while_loop(lambda c: c[0] > 0, lambda c: (c[0] - 1, 0.5 * c[1] + 1.0), (n, x))
        ppl.sample("y", dist.Normal(root, 1.0), obs=0.0)

    def theirs():
        n = numpyro.sample("n", dist.Poisson(3.0))
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        for _ in range(int(n)):
            x = 0.5 * x + 1.0
        numpyro.sample("y", dist.Normal(x, 1.0), obs=0.0)

    return ours(), theirs


@case
def modified_control_flow():
    """Modifications by address reach into scans, lanes and branches."""
    weights = np.array([[1.0, 2.0, 3.0], [0.5, 0.1, 4.0]])
    keep = np.array([[True, False, True], [True, True, False]])

    @ppl.program
    def lane(start, flag):
        def step(state, _):
            state = ppl.sample("state", dist.Normal(state, 1.0))
            shift = jax.lax.cond(
                flag, lambda: ppl.sample("shift", dist.Normal(state, 1.0)), lambda: ppl.sample("other", dist.Normal(0.0, 1.0))
            )
            ppl.sample("y", dist.Normal(shift, 1.0))
            return state, None

        jax.lax.scan(step, start, None, length=3)

    @ppl.program
    def ours():
        jax.vmap(lambda start, flag: ppl.sample("lane", lane(start, flag)))(jnp.array([0.0, 1.0]), jnp.array([True, False]))

    def theirs():
        for i in range(2):
            state = float(i)
            for t in range(3):
                with numpyro.handlers.scale(scale=2.0 * weights[i, t]):
                    state = draw("lane/state", i, t, dist.Normal(state, 1.0))
                with numpyro.handlers.scale(scale=2.0), numpyro.handlers.mask(mask=bool(keep[i, t])):
                    if i == 0:
                        shift = draw("lane/shift", i, t, dist.Normal(state, 1.0))
                with numpyro.handlers.scale(scale=2.0):
                    if i == 1:
                        shift = draw("lane/other", i, t, dist.Normal(0.0, 1.0), obs=weights[i, t])
                    draw("lane/y", i, t, dist.Normal(shift, 1.0), obs=float(keep[i, t]))

    bound = ours().condition({"lane/y": keep.astype(float), "lane": {"other": weights}})
    return bound.scale(**{"lane/state": weights}).mask(**{"lane/shift": keep}).scale(2.0), theirs


# What is asked of every case.

NAMES = sorted(CASES)
EAGER = {"cond_on_a_latent", "loop_without_sites", "switch_in_scan"}  # NumPyro's side has an `if` on a latent
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@functools.cache
def simulated(name):
    """Traces of a case and their log densities as `simulate` reports them, None where nothing can be drawn."""
    bound, _, *given = CASES[name]()
    if given:
        return given[0], None
    simulate = jax.jit(bound.simulate)
    drawn = [simulate(key) for key in KEYS]
    return [trace for trace, _ in drawn], np.array([log_p for _, log_p in drawn])


@functools.cache
def scored(name):
    density = jax.jit(CASES[name]()[0].log_density)
    return np.array([density(trace) for trace in simulated(name)[0]])


@functools.cache
def reference(name):
    def density(named):
        return log_density(CASES[name]()[1], (), {}, named)[0]

    density = density if name in EAGER else jax.jit(density)
    return np.array([density(elements(trace)) for trace in simulated(name)[0]])


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_numpyro(name):
    np.testing.assert_allclose(scored(name), reference(name), **CLOSE)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "unnormalized"])
def test_simulate_reports_the_log_density_of_its_trace(name):
    assert len(set(simulated(name)[1].tolist())) > 1  # the traces differ
    np.testing.assert_allclose(simulated(name)[1], scored(name), **CLOSE)


@pytest.mark.parametrize("name", NAMES)
def test_batch_and_loop_and_eager_agree(name):
    bound, traces = CASES[name]()[0], simulated(name)[0]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *traces)
    batched = jax.jit(jax.vmap(bound.log_density))(stacked)
    np.testing.assert_allclose(batched, scored(name), **CLOSE)
    np.testing.assert_allclose(bound.log_density(traces[0]), scored(name)[0], **CLOSE)


# What one case cannot show.


def masked_rows(how, v, y, mask):
    """Rows of a plate with a latent mean for each; those that the mask drops are NaN."""

    @ppl.program
    def model():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        normal = dist.Normal(x * v, 1.0 + x**2).to_event(1)
        if how == "distribution":
            ppl.sample("y", normal.mask(mask), obs=y)
        elif how == "plate":
            jax.vmap(lambda v, y, m: ppl.sample("y", dist.Normal(x * v, 1.0 + x**2).to_event(1).mask(m), obs=y))(v, y, mask)
        else:
            ppl.sample("y", normal)

    bound = model()
    if how == "mask of a trace":
        return bound.mask(y=mask)
    if how == "condition, mask":
        return bound.condition(y=y).mask(y=mask)
    if how == "mask, condition":
        return bound.mask(y=mask).condition(y=y)
    return bound


@pytest.mark.parametrize("how", ["distribution", "plate", "mask of a trace", "condition, mask", "mask, condition"])
def test_gradient_with_missing_rows_is_that_without_them(how):
    mask = np.array([True, False, True])
    y = np.array([[0.5, 1.0], [NAN, 3.0], [-1.0, 2.0]])
    v = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])

    def value_and_slope(v, y, mask):
        def density(x, y):
            return masked_rows(how, v, y, mask).log_density({"x": x, "y": y} if how == "mask of a trace" else {"x": x})

        if how == "mask of a trace":
            return jax.jit(jax.value_and_grad(density))(0.3, y)
        return jax.value_and_grad(density)(0.3, y)

    masked, dropped = value_and_slope(v, y, mask), value_and_slope(v[mask], y[mask], mask[mask])
    np.testing.assert_allclose(masked, dropped, rtol=1e-6)
    assert abs(dropped[1]) > 1.0


def test_values_of_a_branch_not_taken_do_not_count():
    bound = CASES["cond_on_a_latent"]()[0]
    trace = {"x": 0.5, "a": 1.5, "both": 0.2, "s": jnp.zeros(3)}

    def density(trace):
        return bound.log_density(trace)

    value, slope = jax.value_and_grad(density)(trace)
    np.testing.assert_array_equal(value, density({**trace, "s": jnp.array([9.0, -9.0, 9.0])}))
    np.testing.assert_array_equal(slope["s"], np.zeros(3))
    assert value != density({**trace, "a": 1.6})


def test_a_substituted_value_may_be_left_out_of_the_trace():
    bound = CASES["substituted"]()[0]
    with_it = {"x": 0.3, "w": 1.2, "v": jnp.array([0.1, -0.4])}
    np.testing.assert_array_equal(bound.log_density({"w": 1.2}), bound.log_density(with_it))
    assert bound.log_density({"w": 1.2}) != bound.log_density({"w": 1.3})


def test_arguments_may_be_batched():
    """vmap and scan over the arguments of a program, outside of its density."""

    @ppl.program
    def model(scale, steps):
        x = ppl.sample("x", dist.Normal(0.0, scale))

        def step(s, shift):
            return ppl.sample("s", dist.Normal(s + shift, scale)), None

        jax.lax.scan(step, x, steps)
        jax.vmap(lambda k: ppl.sample("z", dist.Normal(k * x, 1.0)))(steps)

    scales, steps = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 1.0])
    trace = {"x": jnp.array(0.3), "s": jnp.array([0.1, 0.2]), "z": jnp.array([1.0, -1.0])}

    def by_hand(scale):
        previous = jnp.array([trace["x"], trace["s"][0]])
        log_p = dist.Normal(0.0, scale).log_prob(trace["x"]) + dist.Normal(steps * trace["x"], 1.0).log_prob(trace["z"]).sum()
        return log_p + dist.Normal(previous + steps, scale).log_prob(trace["s"]).sum()

    expected = [by_hand(scale) for scale in scales]
    np.testing.assert_allclose(jax.vmap(lambda s: model(s, steps).log_density(trace))(scales), expected, **CLOSE)
    np.testing.assert_allclose(jax.lax.map(lambda s: model(s, steps).log_density(trace), scales), expected, **CLOSE)


@pytest.mark.parametrize("name", ["chain", "mixtures", "plate_in_scan_in_plate"])
def test_gradients_agree_with_numpyro(name):
    bound, theirs = CASES[name]()
    trace = simulated(name)[0][0]
    smooth = {a: value for a, value in trace.items() if jnp.issubdtype(value.dtype, jnp.floating)}
    rest = {a: value for a, value in trace.items() if a not in smooth}
    ours = jax.jit(jax.grad(lambda values: bound.log_density({**values, **rest})))(smooth)

    def reference(named):
        return log_density(theirs, (), {}, {**elements(rest), **named})[0]

    slopes = jax.jit(jax.grad(reference))(elements(smooth))
    for address, slope in elements(ours).items():
        if np.ndim(slope) == 0 and address in slopes and np.any(slopes[address]):
            np.testing.assert_allclose(slope, slopes[address], rtol=1e-4, atol=1e-5)
    assert sum(bool(np.any(slope)) for slope in slopes.values()) >= 3
