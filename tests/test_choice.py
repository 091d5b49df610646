"""The choice of estimators: by address, prefix and function of the site; the table of what is in force; what is refused."""

import jax
import jax.numpy as jnp
import pytest

import ppl
import ppl.distributions as dist
from ppl import errors
from ppl.estimators import Enumerate, Reparameterize, ScoreFunction

KEY = jax.random.key(0)


@ppl.program
def part(p):
    ppl.sample("x", dist.Normal(p, 1.0))
    ppl.sample("b", dist.Bernoulli(logits=p))


@ppl.program
def family(p):
    ppl.sample("x", dist.Normal(p, 1.0).expand([2, 3]).to_event(1))
    ppl.sample("sub", part(p))
    ppl.plate("rows", lambda u: ppl.sample("k", dist.Poisson(jnp.exp(p) * u)))(jnp.ones(4))

    def step(c, _):
        return c, ppl.sample("walk", dist.Gamma(jnp.exp(p), 1.0))

    jax.lax.scan(step, 0.0, None, length=5)


def chosen(bound):
    """The names of the estimators by address."""

    @ppl.expectation
    def objective(p):
        return ppl.simulate(bound(p))[1]

    return {row.address: type(row.estimator).__name__ for row in objective.estimators(0.3)}


AUTOMATIC = {
    "x": "Reparameterize",
    "sub/x": "Reparameterize",
    "sub/b": "Enumerate",
    "k": "ScoreFunction",
    "walk": "Reparameterize",
}


def scores(**changes):
    return {**AUTOMATIC, **{address.replace("__", "/"): "ScoreFunction" for address in changes}}


def test_by_address_prefix_and_function():
    score = ScoreFunction()
    assert chosen(family) == AUTOMATIC
    assert chosen(lambda p: family(p).with_estimators(score)) == dict.fromkeys(AUTOMATIC, "ScoreFunction")
    assert chosen(lambda p: family(p).with_estimators(x=score, walk=score)) == scores(x=1, walk=1)
    assert chosen(lambda p: family(p).with_estimators(sub=score)) == scores(sub__x=1, sub__b=1)
    assert chosen(lambda p: family(p).with_estimators({"sub/b": score})) == scores(sub__b=1)

    def discrete(site):
        return score if site.discrete else None

    assert chosen(lambda p: family(p).with_estimators(discrete)) == scores(sub__b=1)
    assert chosen(lambda p: family(p).with_estimators({"sub": discrete, "walk": score})) == scores(sub__b=1, walk=1)
    by_name = lambda site: score if site.distribution == "Gamma" else None  # noqa: E731
    assert chosen(lambda p: family(p).with_estimators(by_name)) == scores(walk=1)
    # The last word counts, and among prefixes the longest, in whatever order they are given.
    twice = chosen(lambda p: family(p).with_estimators(score).with_estimators({"sub/x": Reparameterize(), "sub/b": None}))
    assert twice == {**dict.fromkeys(AUTOMATIC, "ScoreFunction"), "sub/x": "Reparameterize", "sub/b": "Enumerate"}
    for choice in ({"sub": score, "sub/b": Enumerate()}, {"sub/b": Enumerate(), "sub": score}):
        assert chosen(lambda p, choice=choice: family(p).with_estimators(choice)) == scores(sub__x=1)


def test_nothing_in_a_table_names_what_cannot_serve():
    with pytest.raises(errors.EstimatorError, match="Reparameterize cannot serve 'sub/b' ~ Bernoulli"):
        chosen(lambda p: family(p).with_estimators(sub=Reparameterize()))


def test_what_a_function_is_told():
    told = []

    def choose(site):
        told.append(site)

    chosen(lambda p: family(p).with_estimators(choose))
    by_address = {site.address: site for site in told}
    x, b, k, walk = (by_address[a] for a in ("x", "sub/b", "k", "walk"))
    assert isinstance(x, ppl.SiteDescription)
    assert (x.distribution, x.shape, x.event_dim, x.discrete, x.plates) == ("Normal", (2, 3), 1, False, ())
    assert x.support.base_constraint is dist.constraints.real
    assert (b.distribution, b.shape, b.discrete) == ("Bernoulli", (), True)
    assert (k.distribution, k.shape, k.plates) == ("Poisson", (4,), ("rows",))
    assert (walk.distribution, walk.shape, walk.support) == ("Gamma", (), dist.constraints.positive)


def test_a_function_at_a_nested_program():
    @ppl.program
    def outer(p):
        ppl.sample("sub", part(p), estimator=lambda site: ScoreFunction() if site.address == "x" else None)

    assert chosen(outer) == {"sub/x": "ScoreFunction", "sub/b": "Enumerate"}


def test_the_choice_is_used():
    """The gradient of a chosen score function differs from draw to draw; the pathwise one is 1."""

    @ppl.expectation
    def objective(p, choice):
        return ppl.simulate(part(p).with_estimators(choice))[0]["x"]

    pathwise = objective.grad(KEY, 0.3, lambda site: Reparameterize() if not site.discrete else None)
    assert float(pathwise) == 1.0
    keys = jax.random.split(KEY, 2_000)
    grads = jax.jit(jax.vmap(lambda key: objective.grad(key, 0.3, lambda site: ScoreFunction())))(keys)
    assert grads.std() > 0.5
    assert abs(grads.mean() - 1.0) < 4.5 * grads.std() / 2_000**0.5


def test_unknown_addresses_are_refused_with_functions_too():
    choices = [{"sub/z": ScoreFunction()}, {"nothing": lambda site: None}]
    for choice in choices:
        with pytest.raises(errors.UnknownAddressError, match="which the program lacks"):
            ppl.simulate(family(0.3).with_estimators(choice))


BAD = [
    (ScoreFunction, r"Make one of it: ScoreFunction\(...\)"),
    ("score", "none of the members"),
    (3.0, "none of the members"),
    (dist.Normal(), "is no estimator"),
]


@pytest.mark.parametrize(("value", "message"), BAD, ids=["class", "text", "number", "distribution"])
def test_what_is_no_estimator(value, message):
    pattern = rf"(?s)is no estimator.*test_choice.py.*{message}.*There are: .*Enumerate.*Reparameterize.*ScoreFunction"

    @ppl.program
    def inline():
        ppl.sample("x", dist.Normal(0.0, 1.0), estimator=value)

    uses = [
        lambda: inline().simulate(KEY),
        lambda: family(0.3).with_estimators(sub=value).simulate(KEY),
        lambda: family(0.3).with_estimators({"sub/b": value}).simulate(KEY),
        lambda: family(0.3).with_estimators(lambda site: value).simulate(KEY),
    ]
    for use in uses:
        with pytest.raises(errors.EstimatorError, match=pattern if message != "is no estimator" else "is no estimator"):
            use()


def test_an_estimator_of_ones_own_is_one():
    class Own:
        unbiased = True
        coupling = "single"
        axis = None

        def refuses(self, distribution, site):
            return None

        def branches(self, distribution):
            return 1

        def particle(self, key, distribution):
            raise NotImplementedError

    assert chosen(lambda p: part(p).with_estimators(x=Own())) == {"x": "Own", "b": "Enumerate"}


def test_the_table():
    @ppl.expectation
    def objective(p):
        trace, _ = ppl.simulate(family(p).detach("walk"))
        again, _ = ppl.simulate(part(p))
        return trace["k"].sum() + again["x"] + trace["walk"].sum() + trace["sub"]["b"] * trace["x"].sum()

    table = objective.estimators(0.3)
    rows = {row.address: row for row in table}
    assert list(rows) == ["x", "sub/x", "sub/b", "k", "walk", "x (2)", "b"]
    assert rows["x"].shape == (2, 3)
    assert (rows["k"].shape, rows["k"].branches, rows["k"].unbiased) == ((4,), 1, True)
    assert (rows["sub/b"].branches, rows["sub/b"].why) == (2, "few values")
    assert (rows["walk"].shape, rows["walk"].estimator) == ((5,), None)
    assert "detached" in rows["walk"].why
    first = part.function.__code__.co_firstlineno
    assert rows["sub/x"].where.line == first + 2
    text = repr(table)
    assert text.splitlines()[0].split() == "address distribution shape estimator unbiased branches why line".split()
    assert f"test_choice.py:{first + 3}" in text
    assert len(text.splitlines()) == len(table) + 1
    assert "no random choices" in repr(ppl.expectation(lambda p: p).estimators(0.3))


def test_branches_are_what_enumeration_costs():
    @ppl.expectation
    def apart(p):
        return jnp.sum(ppl.sample("b", dist.Bernoulli(logits=p).expand([10])) * jnp.arange(10.0))

    @ppl.expectation
    def together(p):
        return jnp.exp(jnp.sum(ppl.sample("b", dist.Bernoulli(logits=p).expand([5])) * p))

    @ppl.expectation
    def many(p):
        return jnp.exp(jnp.sum(ppl.sample("b", dist.Bernoulli(logits=p).expand([10])) * p))

    assert [row.branches for row in apart.estimators(0.3)] == [2]
    assert [row.branches for row in together.estimators(0.3)] == [32]
    (row,) = many.estimators(0.3)
    assert (type(row.estimator).__name__, row.branches) == ("ScoreFunction", 1)
    assert "too many" in row.why


def test_moving_supports_are_judged_as_for_gradients():
    """With a traced bound a score function is refused, also where the argument is a concrete array here."""

    @ppl.expectation
    def objective(high):
        return ppl.sample("x", dist.Uniform(0.0, high), estimator=ScoreFunction())

    for high in (2.0, jnp.array(2.0)):
        with pytest.raises(errors.EstimatorError, match="support moves"):
            objective.estimators(high)
        assert not objective.check(high).ok


def test_counting_elements_of_the_objective_does_not_run_it():
    calls = []

    @ppl.expectation
    def objective(p):
        x = ppl.sample("x", dist.Normal(p, 1.0))
        jax.debug.callback(lambda x: calls.append(float(x)), x)
        return x

    assert len(objective.estimators(0.3)) == 1
    assert objective.check(0.3).ok
    jax.effects_barrier()
    assert calls == []
