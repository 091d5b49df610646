"""Values and gradients that are not finite: the last good state, and where they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ppl
import ppl.distributions as dist
from ppl import errors
from ppl.estimators import Ignore, ScoreFunction

KEY = jax.random.key(0)
HERE = r"test_nonfinite\.py"


@ppl.program
def model():
    ppl.sample("y", dist.Normal(ppl.sample("x", dist.Normal(0.0, 1.0)), 1.0), obs=1.0)


@ppl.program
def family(params):
    ppl.sample("x", dist.Normal(params["loc"], params["scale"]))


START = {"loc": jnp.float32(0.0), "scale": jnp.float32(1.0)}


def elbo(model, estimator=None):
    def objective(params):
        bound = family(params)
        return ppl.objectives.elbo(model(), bound if estimator is None else bound.with_estimators(estimator))

    return ppl.expectation(objective)


@pytest.mark.parametrize(("estimator", "samples"), [(None, None), (None, ppl.Samples(4, chunk=2)), (ScoreFunction(), 4)])
def test_nans_with_a_location_pyro_571_numpyro_956(estimator, samples):
    """A drifting scale becomes negative: the error has the step, the site, its parameters and the run up to there."""
    objective = elbo(model, estimator)
    options = {"optimizer": optax.sgd(0.5), "samples": samples, "progress": False}
    with pytest.raises(errors.NonFiniteError, match=rf"(?s)nan at step .*'x', Normal\(loc=.*scale=-.*{HERE}") as caught:
        ppl.maximize(objective, START, KEY, steps=2000, **options)
    error = caught.value
    assert error.address == "x"
    assert f"at step {error.step}." in str(error)
    assert error.fit.state.step == len(error.fit.history) == error.step > 0
    assert np.all(np.isfinite(error.fit.history))
    assert float(error.fit.params["scale"]) < 0.0
    good = ppl.maximize(objective, START, KEY, steps=error.step, **options)
    jax.tree.map(np.testing.assert_array_equal, good.params, error.fit.params)


def test_a_gradient_that_is_not_finite_is_found_where_the_value_is():
    """The slope of a square root at zero: the leaves, and the site whose value it comes back to."""

    @ppl.program
    def rooted():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(jnp.sqrt(0.0 * x), 1.0), obs=0.0)

    with pytest.raises(errors.NonFiniteError, match=r"(?s)gradient in params\['loc'\] is nan.*derivative nan") as caught:
        ppl.maximize(elbo(rooted), START, KEY, optimizer=optax.sgd(0.1), steps=10, progress=False)
    assert (caught.value.step, caught.value.address) == (0, "x")
    assert caught.value.leaves == ("params['loc']", "params['scale']")


def test_a_site_in_a_loop_is_named():
    @ppl.program
    def chain():
        def step(x, _):
            x = ppl.sample("x", dist.Normal(x, 1.0))
            ppl.sample("y", dist.Gamma(jnp.exp(x), 1.0), obs=2.0)
            return x, None

        jax.lax.scan(step, 0.0, None, length=5)

    @ppl.program
    def walk(loc):
        jax.lax.scan(lambda c, loc: (c, ppl.sample("x", dist.Normal(loc, 200.0))), 0.0, loc)

    objective = ppl.expectation(lambda loc: ppl.objectives.elbo(chain(), walk(loc)))
    with pytest.raises(errors.NonFiniteError, match=rf"'y', Gamma\(.*{HERE}|'y', Gamma") as caught:
        ppl.maximize(objective, jnp.zeros(5), KEY, optimizer=optax.sgd(0.1), steps=3, progress=False)
    assert caught.value.address == "y"


def test_of_several_objectives_the_one_that_fails_is_named():
    """The second one fails after the first one's update, in the fourth step."""
    first = ppl.expectation(lambda p: -p["a"])
    second = ppl.expectation(lambda p: jnp.log(p["a"]) + 0.0 * p["b"])
    with pytest.raises(errors.NonFiniteError, match=r"params\['b'\] was nan at step 3") as caught:
        ppl.maximize({"a": first, "b": second}, {"a": 3.5, "b": 0.0}, KEY, optimizer=optax.sgd(1.0), steps=9, progress=False)
    np.testing.assert_allclose(caught.value.fit.params["a"], 0.5)


def test_an_update_out_of_range_is_told_apart():
    with pytest.raises(errors.NonFiniteError, match="out of the range of its dtype"):
        ppl.minimize(ppl.expectation(lambda x: 1e30 * x), 1.0, KEY, optimizer=optax.sgd(1e20), steps=5, progress=False)


def test_updates_can_be_skipped_and_are_counted():
    """Where a coin falls, the step is as if it had not been: the rest is an ordinary run over the other steps."""
    mean = ppl.expectation(
        lambda m: (m - 3.0) ** 2 * jnp.where(ppl.sample("c", dist.Bernoulli(0.1), estimator=Ignore()), jnp.nan, 1.0)
    )
    plain = ppl.expectation(lambda m: (m - 3.0) ** 2)
    options = {"optimizer": optax.adam(0.1), "progress": False}
    fit = ppl.minimize(mean, 0.0, KEY, steps=200, on_nonfinite="skip", **options)
    skipped = int(np.isnan(fit.history).sum())
    assert fit.state.skipped == skipped
    assert 5 <= skipped <= 40
    same = ppl.minimize(plain, 0.0, KEY, steps=200 - skipped, **options)
    np.testing.assert_allclose(fit.history[np.isfinite(fit.history)], same.history, rtol=1e-4, atol=1e-5)
    with pytest.raises(errors.NonFiniteError):
        ppl.minimize(mean, 0.0, KEY, steps=200, **options)
