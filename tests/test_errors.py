"""Every error has its own type and says the address, the source line and the fix."""

import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl import errors

KEY = jax.random.key(0)


@pytest.fixture
def model():
    @ppl.program
    def model():
        mean = ppl.sample("mean", dist.Normal(0.0, 1.0))
        ppl.sample("group/scale", dist.Gamma(2.0, 1.0))
        ppl.sample("count", dist.Poisson(3.0))
        ppl.sample("y", dist.Normal(mean, 1.0).expand([3]))

    return model()


TRACE = {"mean": 0.0, "group": {"scale": 1.0}, "count": 2, "y": jnp.zeros(3)}


def raises(kind, *parts):
    """The error is of this very type, and its message has these parts and a line of this file."""
    return pytest.raises(kind, match="(?s)" + "".join(f"(?=.*{re.escape(part)})" for part in parts))


HERE = "test_errors.py"


def test_duplicate_address():
    @ppl.program
    def twice():
        ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("x", dist.Normal(0.0, 1.0))

    for use in (lambda: twice().simulate(KEY), lambda: twice().log_density({"x": 0.0}), lambda: ppl.trace_shapes(twice())):
        with raises(errors.DuplicateAddressError, "'x'", HERE, "first:", "second:"):
            use()


def test_duplicates_across_control_flow_and_in_nested_programs():
    @ppl.program
    def scanned():
        ppl.sample("x", dist.Normal(0.0, 1.0))
        jax.lax.scan(lambda c, _: (ppl.sample("x", dist.Normal(0.0, 1.0)), None), 0.0, None, length=2)

    @ppl.program
    def prefix():
        ppl.sample("sub", dist.Normal(0.0, 1.0))
        ppl.sample("sub/x", dist.Normal(0.0, 1.0))

    @ppl.program
    def branches(u):
        jax.lax.cond(
            u > 0,
            lambda: ppl.sample("x", dist.Normal(jnp.zeros(2), 1.0)).sum(),
            lambda: ppl.sample("x", dist.Normal(0.0, 1.0)),
        )

    for bound, address in ((scanned(), "'x'"), (prefix(), "'sub'"), (branches(1.0), "'x'")):
        with raises(errors.DuplicateAddressError, address, HERE):
            bound.simulate(KEY)


def test_missing_address(model):
    with raises(errors.MissingAddressError, "'group/scale'", HERE):
        model.log_density({"mean": 0.0, "count": 1, "y": jnp.zeros(3)})


def test_unknown_address(model):
    with raises(errors.UnknownAddressError, "'maen'", "Did you mean 'mean'?"):
        model.log_density({**TRACE, "maen": 0.0})
    for verb in ("condition", "intervene", "substitute", "scale", "mask", "with_estimators"):
        with raises(errors.UnknownAddressError, verb, "'group/scael'", "Did you mean 'group/scale'?"):
            getattr(model, verb)(
                {"group/scael": 1.0} if verb in ("condition", "intervene", "substitute") else None,
                **({} if verb in ("condition", "intervene", "substitute") else {"group/scael": 1.0}),
            ).simulate(KEY)
    with raises(errors.UnknownAddressError, "'nope'"):
        model.detach("nope").simulate(KEY)


def test_an_observed_address_is_not_latent(model):
    with raises(errors.UnknownAddressError, "'y'", "observed"):
        model.condition(y=jnp.zeros(3)).log_density(TRACE)
    with raises(errors.UnknownAddressError, "'y'", "observed"):
        model.condition(y=jnp.zeros(3)).condition(y=jnp.ones(3)).simulate(KEY)


@pytest.mark.parametrize("value", [0.0, jnp.zeros(4), jnp.zeros((3, 1)), jnp.zeros((1, 3))])
def test_shape_errors_that_explain_numpyro_1230_numpyro_1155(model, value):
    with raises(errors.ValueShapeError, "'y'", str(list(np.shape(value))), "[3]", HERE):
        model.log_density({**TRACE, "y": value})
    with raises(errors.ObservationShapeError, "'y'", str(list(np.shape(value))), "[3]", HERE):
        model.condition(y=value).simulate(KEY)
    with raises(errors.ValueShapeError, "'y'", HERE):
        model.substitute(y=value).simulate(KEY)


def test_observations_are_never_broadcast():
    for distribution, obs in (
        (dist.Bernoulli(logits=jnp.zeros(100)), jnp.zeros((100, 1), int)),
        (dist.Normal(0.0, 1.0), jnp.zeros(10)),
        (dist.Normal(jnp.zeros((5, 1)), 1.0), jnp.zeros(5)),
        (dist.Normal(jnp.zeros(3), 1.0).to_event(1), jnp.zeros((2, 3))),
    ):
        with raises(errors.ObservationShapeError, "'y'", str(list(obs.shape)), str(list(distribution.shape())), HERE):
            ppl.program(lambda d=distribution, o=obs: ppl.sample("y", d, obs=o))().log_density({})


def test_wrong_dtype(model):
    for value in (1.5, jnp.array(1.5)):
        with raises(errors.ValueDtypeError, "'count'", "float32" if isinstance(value, jax.Array) else "float", HERE):
            model.log_density({**TRACE, "count": value})
    with raises(errors.ValueDtypeError, "'count'", HERE):  # a traced float could be anything
        jax.jit(lambda c: model.log_density({**TRACE, "count": c}))(2.0)
    for value in ("one", None, jnp.array(1j)):
        with raises(errors.ValueDtypeError, "'mean'", HERE):
            model.log_density({**TRACE, "mean": value})


def test_values_outside_of_the_support(model):
    with raises(errors.SupportError, "'group/scale'", "Positive", "-1.0", HERE):
        model.log_density({**TRACE, "group": {"scale": -1.0}})
    with raises(errors.SupportError, "'count'", HERE):
        model.condition(count=-3).simulate(KEY)
    with raises(errors.SupportError, "'y'", "1 of 3", HERE):
        ppl.program(lambda: ppl.sample("y", dist.Exponential(jnp.ones(3)), obs=np.array([1.0, -2.0, 3.0])))().log_density({})
    with raises(errors.SupportError, "'y'", HERE):  # NaN is in no support
        ppl.program(lambda: ppl.sample("y", dist.Normal(0.0, 1.0), obs=jnp.nan))().log_density({})
    with raises(errors.SupportError, "'x'", HERE):
        ppl.program(lambda: ppl.sample("x", dist.Uniform(0.0, 2.0)))().log_density({"x": 3.0})
    with raises(errors.SupportError, "'p'", HERE):
        ppl.program(lambda: ppl.sample("p", dist.Dirichlet(jnp.ones(3))))().log_density({"p": jnp.array([0.5, 0.5, 0.5])})


def test_support_of_stacked_values_is_checked():
    @ppl.program
    def chain():
        jax.lax.scan(lambda c, _: (ppl.sample("x", dist.Gamma(2.0, 1.0)), None), 0.0, None, length=3)

    with raises(errors.SupportError, "'x'", "1 of 3", HERE):
        chain().log_density({"x": jnp.array([1.0, -1.0, 2.0])})
    with raises(errors.ValueShapeError, "'x'", "[3]", HERE):
        chain().condition(x=1.0).simulate(KEY)


def test_masked_entries_may_lie_outside_of_the_support():
    y = jnp.array([1.0, jnp.nan, 3.0])
    bound = ppl.program(lambda: ppl.sample("y", dist.Exponential(jnp.ones(3)).mask(jnp.array([True, False, True])), obs=y))()
    np.testing.assert_allclose(bound.log_density({}), -4.0)


def test_sample_outside_of_a_program():
    for statement in (
        lambda: ppl.sample("x", dist.Normal(0.0, 1.0)),
        lambda: ppl.sample("x", dist.Normal(0.0, 1.0), obs=1.0),
        lambda: ppl.factor("x", 1.0),
        lambda: ppl.deterministic("x", 1.0),
        lambda: ppl.simulate(ppl.program(lambda: ppl.sample("x", dist.Normal(0.0, 1.0)))()),
    ):
        with raises(errors.OutsideProgramError, "'x'", HERE, "ppl.seed"):
            statement()


def test_an_untransformed_site_is_not_compiled():
    def draw(m):
        return ppl.sample("x", dist.Normal(m, 1.0))

    def scanned(m):
        return jax.lax.scan(lambda c, _: (draw(c), None), m, None, length=2)[0]

    def lanes(m):
        return jax.vmap(lambda u: jax.lax.cond(u > 0, draw, lambda m: m, m))(jnp.arange(2.0))

    for function in (draw, scanned, lanes):
        with raises(errors.UntransformedSiteError, "'x'", HERE, "ppl.seed"):
            jax.jit(function)(0.0)


def test_plain_differentiation():
    def draw(m):
        return ppl.sample("x", dist.Normal(m, 1.0)) ** 2

    def lanes(m):
        return jax.vmap(lambda u: jax.lax.cond(u > 0, draw, lambda m: m, m))(jnp.arange(2.0)).sum()

    def simulated(m):
        return ppl.simulate(ppl.program(draw)(m))[1]

    for function in (draw, lanes, simulated):
        for derive in (jax.grad, jax.hessian, lambda f: lambda m: jax.jvp(f, (m,), (1.0,))):
            with raises(errors.DifferentiationError, "'x'", HERE, "ppl.expectation"):
                derive(function)(0.0)
    with raises(errors.DifferentiationError, "'x'", HERE):
        ppl.expectation(lambda m: jax.grad(draw)(m)).estimate(KEY, 0.0)


@pytest.fixture
def target():
    @ppl.program
    def target():
        scale = ppl.sample("scale", dist.HalfNormal(1.0))
        mean = ppl.sample("mean", dist.Normal(jnp.zeros(2), 1.0))
        ppl.sample("y", dist.Normal(mean, scale), obs=jnp.zeros(2))

    return target()


FAMILIES = {
    "missing": (lambda: ppl.sample("scale", dist.Gamma(1.0, 1.0)), "mean", "the family does not draw it"),
    "extra": (
        lambda: [
            ppl.sample("scale", dist.Gamma(1.0, 1.0)),
            ppl.sample("mean", dist.Normal(jnp.zeros(2), 1.0)),
            ppl.sample("other", dist.Normal(0.0, 1.0)),
        ],
        "other",
        "no latent of the model",
    ),
    "support": (
        lambda: [ppl.sample("scale", dist.Normal(1.0, 1.0)), ppl.sample("mean", dist.Normal(jnp.zeros(2), 1.0))],
        "scale",
        "the family leaves the model's support",
    ),
}


@pytest.mark.parametrize("case", FAMILIES)
def test_model_and_family_that_disagree_pyro_2288_numpyro_1119(target, case):
    family, address, problem = FAMILIES[case]

    def row(message):
        return next(line for line in message.splitlines() if line.startswith(address))

    @ppl.expectation
    def elbo():
        trace, log_q = ppl.simulate(ppl.program(family)())
        return target.log_density(trace) - log_q

    for use in (
        lambda: elbo.estimate(KEY),
        lambda: jax.jit(elbo.estimate).lower(KEY),
        lambda: jax.eval_shape(lambda k: elbo.estimate(k, samples=3), KEY),
        lambda: ppl.check_family(target, ppl.program(family)()),
    ):
        with pytest.raises(errors.ModelFamilyMismatchError) as caught:
            use()
        assert row(str(caught.value)).endswith(problem)


def test_shapes_that_disagree_are_in_the_table(target):
    family = ppl.program(
        lambda: [ppl.sample("scale", dist.Gamma(1.0, 1.0)), ppl.sample("mean", dist.Normal(jnp.zeros(3), 1.0))]
    )
    with raises(errors.ModelFamilyMismatchError, "the shapes differ", "float32[2]", "float32[3]"):
        ppl.check_family(target, family())

    @ppl.expectation
    def elbo():
        trace, log_q = ppl.simulate(family())
        return target.log_density(trace) - log_q

    with raises(errors.ModelFamilyMismatchError, "the shapes differ"):
        elbo.estimate(KEY)


def test_a_family_that_fits_is_accepted(target):
    ppl.check_family(
        target,
        ppl.program(
            lambda: [ppl.sample("scale", dist.LogNormal(0.0, 1.0)), ppl.sample("mean", dist.Normal(jnp.zeros(2), 1.0))]
        )(),
    )


def test_unnormalized_programs_cannot_be_drawn():
    target = ppl.unnormalized(lambda z: -0.5 * z**2, like=0.0)
    with raises(errors.NoSamplerError, "density and no sampler"):
        target.simulate(KEY)
    with raises(errors.NoSamplerError, "'flat'", HERE):
        ppl.program(lambda: ppl.sample("flat", dist.ImproperUniform(dist.constraints.real, (), ())))().simulate(KEY)


def test_objectives_that_are_none():
    with raises(errors.ObjectiveError, "one real number", "(2,)"):
        ppl.expectation(lambda: jnp.zeros(2)).estimate(KEY)
    with raises(errors.ObjectiveError, "observed 'y'", HERE):
        ppl.expectation(lambda: ppl.sample("y", dist.Normal(0.0, 1.0), obs=0.0)).estimate(KEY)
    with raises(errors.ObjectiveError, "samples"):
        ppl.expectation(lambda: jnp.zeros(())).estimate(KEY, samples=0)
    with raises(errors.ObjectiveError, "argnums"):
        ppl.expectation(lambda x: x).grad(KEY, 1.0, argnums=1)


def test_wrong_kinds_of_arguments():
    with raises(TypeError, "'x'", "Normal distribution or a bound program".replace("Normal", "NumPyro"), HERE):
        ppl.program(lambda: ppl.sample("x", 3.0))().simulate(KEY)
    with raises(TypeError, "not bound", HERE):
        ppl.program(lambda: ppl.sample("x", ppl.program(lambda: 0.0)))().simulate(KEY)
    for address in ("", "a//b", 3):
        with pytest.raises(TypeError, match="address"):
            ppl.program(lambda a=address: ppl.sample(a, dist.Normal(0.0, 1.0)))().simulate(KEY)
    with pytest.raises(TypeError):
        ppl.program(3)


def test_a_batch_is_part_of_its_population():
    with raises(errors.ValueShapeError, "'data'", "size=5", "10", HERE):
        ppl.program(lambda: ppl.plate("data", lambda y: y, size=5)(jnp.zeros(10)))().simulate(KEY)
    with raises(errors.ValueShapeError, "6 of 5", HERE):
        ppl.program(lambda: ppl.subsample("rows", 5, 6))().simulate(KEY)


def test_a_non_finite_objective_stops_the_fit():
    import optax

    objective = ppl.expectation(lambda x: jnp.log(x))
    with raises(errors.ObjectiveError, "-inf at step 1"):
        ppl.minimize(objective, 1.0, KEY, optimizer=optax.sgd(1.0), steps=10, progress=False)
    with raises(errors.ObjectiveError, "no floating-point array"):
        ppl.minimize(objective, 1, KEY, optimizer=optax.sgd(1.0), steps=10, progress=False)


def test_errors_in_a_module_method_name_the_users_line():
    class Net(eqx.Module):
        weight: jax.Array

        @ppl.program
        def model(self):
            ppl.sample("x", dist.Normal(self.weight, 1.0), obs=jnp.zeros(3))

    with raises(errors.ObservationShapeError, "Net.model", HERE):
        Net(jnp.zeros(2)).model().log_density({})
