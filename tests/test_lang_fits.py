"""Fit statements: objectives in alternation, each over its own parameters, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ppl
from ppl.lang import load

# q has its optimum at the posterior of z given x, normal(0.75, 1 / sqrt(2)), where theta = 0; theta's is x.
TEXT = """
data x: real
param theta: real; unused: real = 3

model p:
    z ~ Normal(theta, 1)
    x ~ Normal(z, 1)

family q(m: real, s: positive | x: real):
    z ~ Normal(m + x, s)

objective ascent: E[z ~ q(x)] log p(z, x) - log q(z | x)
objective pull: E[z ~ detach(q)(x)] log p(z, x)
"""
X = 1.5


def fits(*lines):
    return load(TEXT + "\n".join(lines) + "\n", {"x": X}).fits


def test_alternation_is_that_of_maximize():
    """The same steps as `ppl.maximize` takes with a dict of objectives, in Python."""
    (spec,) = fits("fit pull over theta, ascent over q with sgd(0.05), steps 40, samples 4, seed 3")
    found = spec.run(progress=False)

    def merged(parts, rest):
        return {"theta": parts["pull"]["theta"], "q": parts["ascent"]["q"], **rest}

    theirs = {
        name: ppl.expectation(lambda parts, rest, name=name: spec.objectives[name].function(merged(parts, rest)))
        for name in ("pull", "ascent")
    }
    start = spec.module.init(jax.random.key(3))
    parts = {"pull": {"theta": start["theta"]}, "ascent": {"q": start["q"]}}
    rest = {"unused": start["unused"]}
    fit = ppl.maximize(theirs, parts, jax.random.key(3), rest, optimizer=optax.sgd(0.05), steps=40, samples=4, progress=False)
    jax.tree.map(np.testing.assert_array_equal, found.params, merged(fit.params, rest))
    np.testing.assert_array_equal(found.history["pull"], fit.history["pull"])
    assert found.params["theta"] > 0.1
    assert found.params["unused"] == 3
    traces = found.sample(jax.random.key(0), 2000)["z"]  # of q(x), as x is data
    mean, spread = spec.module.constrain(found.params)["q"]["m"] + X, spec.module.constrain(found.params)["q"]["s"]
    assert abs(traces.mean() - mean) < 5 * spread / 2000**0.5
    assert found.target.log_density({"z": jnp.array(0.3)}) < 0


def test_a_part_of_a_program_is_trained_alone():
    """Weight decay moves all that an optimizer sees: what is not named is not seen."""
    (spec,) = fits("fit ascent over q.m with adamw(0.1, weight_decay = 0.5), steps 30")
    params = spec.module.init()
    params["theta"], params["q"]["s"] = jnp.array(0.25), jnp.array(-0.5)
    seen = []
    found = spec.run(params, progress=False, callback=lambda fit: seen.append(set(fit.params)))
    assert seen == [{"theta", "unused", "q"}] * len(seen) != []
    assert found.params["theta"] == 0.25
    assert found.params["q"]["s"] == -0.5
    assert found.params["q"]["m"] != params["q"]["m"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("fit ascent, pull over theta", "objectives in alternation say which parameters they train"),
        ("fit ascent over q, pull over q.m", r"'q.m' is trained by 'ascent' already"),
        ("fit ascent over p", "there are no parameters 'p'"),
        ("fit ascent over q.n", r"there are no parameters 'q.n'"),
    ],
)
def test_refused(line, message):
    with pytest.raises(ppl.errors.LanguageError, match=message):
        load(TEXT + line + "\n")


def test_a_family_given_what_is_no_data_is_not_the_posterior():
    text = TEXT.replace("| x: real", "| other: real").replace("m + x", "m + other")
    spec = load(text.replace("log q(z | x)", "log q(z | x)") + "fit ascent\n", {"x": X}).fits[0]
    assert spec.programs == ("p", None)
    with pytest.raises(ppl.errors.DataError, match="q is given other, which the file <text> has no data for"):
        spec.module.at("q", spec.module.init())
