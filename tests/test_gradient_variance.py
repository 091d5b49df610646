"""What `gradient_variance` reports, against variances that are known in closed form."""

import importlib.util
import pathlib
import sys

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl import errors
from ppl.estimators import Enumerate, Reparameterize, ScoreFunction, StraightThrough

KEY = jax.random.key(7)
DRAWS = 20_000  # a variance is known to about two per cent


def normals(params):
    """Two sites of different spreads, and a square: gradients by path are linear in the noise."""
    x = ppl.sample("x", dist.Normal(params["m"], 1.0))
    y = ppl.sample("y", dist.Normal(params["m"], 0.5))
    return x**2 + 3.0 * y**2 + params["c"][0] * x


PARAMS = {"m": jnp.array(1.0), "c": jnp.array([0.5, 2.0]), "name": "ignored"}


def test_means_variances_and_contributions_of_a_pathwise_gradient():
    found = ppl.gradient_variance(ppl.expectation(normals), PARAMS, key=KEY, draws=DRAWS)["as it is"]
    # d/dm = 2 x + 6 y + c0, d/dc0 = x, d/dc1 = 0
    assert found.leaves == (("args[0]['c']", 2), ("args[0]['m']", 1))
    np.testing.assert_allclose(found.mean, [1.0, 0.0, 8.5], atol=5 * np.sqrt(13 / DRAWS))
    np.testing.assert_allclose(found.variance, [1.0, 0.0, 4.0 + 9.0], rtol=0.06)
    contributions = {s.address: s.variance for s in found.sites}
    assert contributions["x"] == pytest.approx(4.0 + 1.0, rel=0.06)
    assert contributions["y"] == pytest.approx(9.0, rel=0.06)
    assert found.total_variance == pytest.approx(sum(contributions.values()), rel=0.06)  # the two act separately
    leaves = {name: ratio for name, _, _, ratio in found.by_leaf()}
    assert leaves["args[0]['m']"] == pytest.approx(8.5 / np.sqrt(13), rel=0.05)
    assert found.signal_to_noise == pytest.approx(np.sqrt((1 + 8.5**2) / 14), rel=0.05)


def test_samples_divide_the_variance():
    choices = {"as it is": None, "scores": ScoreFunction()}
    one, four = (
        ppl.gradient_variance(
            ppl.expectation(normals), PARAMS, key=KEY, draws=DRAWS, samples=s, estimators=choices, sites=False
        )
        for s in (None, 4)
    )
    for name in choices:
        assert four[name].total_variance == pytest.approx(one[name].total_variance / 4, rel=0.1)
    assert one["as it is"].sites == ()


def test_estimators_are_exchanged_by_address_and_compared():
    @ppl.expectation
    def coin(p):
        b = ppl.sample("group/b", dist.Bernoulli(probs=p))
        return (2.0 + b) * ppl.sample("x", dist.Normal(p, 1.0))

    other = ppl.expectation(lambda p: 2.0 * p + p**2 + 0.0 * ppl.sample("x", dist.Normal(p, 1.0)))
    choices = {
        "as it is": None,
        "scores for b": {"group": ScoreFunction()},
        "scores": ScoreFunction(),
        "named": {"group/b": Enumerate(), "x": Reparameterize()},
        "by hand": other,
    }
    found = ppl.gradient_variance(coin, 0.3, key=KEY, draws=DRAWS, estimators=choices)
    for name in choices:
        estimate = found[name]
        assert abs(estimate.mean[0] - 2.6) < 5 * np.sqrt(estimate.total_variance / DRAWS) + 1e-5
    # With b enumerated: d/dp [(2 + p) x] = x + 2 + p, of variance 1, all of it of x.
    chosen = found["as it is"]
    assert [(s.address, s.estimator, s.branches) for s in chosen.sites] == [
        ("group/b", "Enumerate", 2),
        ("x", "Reparameterize", 1),
    ]
    assert chosen.total_variance == pytest.approx(1.0, rel=0.05)
    assert [s.variance for s in chosen.sites] == [0.0, pytest.approx(1.0, rel=0.05)]
    np.testing.assert_array_equal(found["named"].variance, chosen.variance)
    # With the score s = (b - p) / (p (1 - p)), which weights the term b x and not 2 x: g = 2 + b + b x s.
    b, weight = np.array([0.0, 1.0]), np.array([0.7, 0.3])
    s = (b - 0.3) / 0.21
    mean = 2 + b + b * s * 0.3
    expected = (weight * (mean**2 + (b * s) ** 2)).sum() - (weight * mean).sum() ** 2
    scored = found["scores for b"]
    assert scored.branches == 1
    assert scored.total_variance == pytest.approx(expected, rel=0.05)
    # x alone: the variance over x of each b, on average
    contributions = {s.address: s.variance for s in scored.sites}
    assert contributions["x"] == pytest.approx((weight * (b * s) ** 2).sum(), rel=0.05)
    # b alone: half the expected squared difference of two draws of b, for the same x
    # the two values of g differ by 1 + x / 0.3
    assert contributions["group/b"] == pytest.approx(0.21 * (1 + 2 * 0.3 / 0.3 + 1.09 / 0.3**2), rel=0.05)
    assert found["by hand"].total_variance < 1e-10  # rounding
    assert found["scores"].total_variance > scored.total_variance

    printed = str(found)
    for text in ("variance x ms", "group/b", "ScoreFunction", "by hand", "args[0]", "signal/noise"):
        assert text in printed


def test_subsamples_and_factors_of_products_are_sites():
    total = ppl.minibatch_sum(lambda y, m: (y - m) ** 2, jnp.array([0.0, 1.0, 5.0]), 1)
    found = ppl.gradient_variance(total, 1.0, key=KEY, draws=DRAWS)["as it is"]
    # The gradient is -6 (y - 1) for a random y.
    expected = np.var(-6.0 * np.array([-1.0, 0.0, 4.0]))
    assert found.total_variance == pytest.approx(expected, rel=0.05)
    assert [(s.address, s.estimator) for s in found.sites] == [("minibatch", "-")]
    assert found.sites[0].variance == pytest.approx(expected, rel=0.05)

    def mean(m):
        return ppl.sample("x", dist.Normal(m, 1.0))

    factor = ppl.expectation(mean)
    product = ppl.gradient_variance(factor * (2.0 * factor), 3.0, key=KEY, draws=DRAWS)["as it is"]
    # 2 (x + x'), of variance 8
    assert {s.address: pytest.approx(s.variance, rel=0.05) for s in product.sites} == {"mean": 4.0, "mean * 2": 4.0}


def test_estimators_that_hold_arrays_are_exchanged_too():
    @ppl.expectation
    def square(m):
        return ppl.sample("x", dist.Normal(m, 1.0), estimator=ScoreFunction(3.0)) ** 2

    choices = {
        "path": Reparameterize(),
        "score": ScoreFunction(),
        "another baseline": {"x": ScoreFunction(jnp.array(1.0))},
    }
    found = ppl.gradient_variance(square, 1.0, key=KEY, draws=DRAWS, estimators={"as it is": None, **choices})
    # With m = 1, e = x - m and a baseline b, the score estimates by ((1 + e)^2 - b) e, and the path by 2 x.
    moments = {2: 1.0, 3: 0.0, 4: 3.0, 5: 0.0, 6: 15.0}
    for name, baseline in {"as it is": 3.0, "score": 0.0, "another baseline": 1.0}.items():
        c = 1.0 - baseline  # (c e + 2 e^2 + e^3)^2
        second = c**2 * moments[2] + (4 + 2 * c) * moments[4] + moments[6]
        assert found[name].total_variance == pytest.approx(second - 4.0, rel=0.15)
        assert found[name].mean[0] == pytest.approx(2.0, abs=5 * np.sqrt(found[name].total_variance / DRAWS))
    assert found["path"].total_variance == pytest.approx(4.0, rel=0.05)


def test_a_relaxation_is_compared():
    @ppl.expectation
    def square(logit):
        return (ppl.sample("b", dist.Bernoulli(logits=logit)) - 0.45) ** 2

    through = ppl.expectation(
        lambda logit: (ppl.sample("b", dist.Bernoulli(logits=logit), estimator=StraightThrough()) - 0.45) ** 2
    )
    found = ppl.gradient_variance(
        square, 0.3, key=KEY, draws=200, estimators={"by name": StraightThrough(), "named there": through}
    )
    np.testing.assert_array_equal(found["by name"].mean, found["named there"].mean)
    assert (
        abs(found["by name"].mean[0] - 0.1 * jax.nn.sigmoid(0.3) * jax.nn.sigmoid(-0.3)) > 0.02
    )  # biased, and so not enumerated


def test_mistakes_are_refused():
    objective = ppl.expectation(normals)
    with pytest.raises(errors.UnknownAddressError, match="'z'"):
        ppl.gradient_variance(objective, PARAMS, key=KEY, estimators={"wrong": {"z": ScoreFunction()}})
    with pytest.raises(errors.EstimatorError, match="Enumerate cannot serve 'x'"):
        ppl.gradient_variance(objective, PARAMS, key=KEY, estimators={"wrong": {"x": Enumerate()}})
    with pytest.raises(errors.ObjectiveError, match="at least 2 draws"):
        ppl.gradient_variance(objective, PARAMS, key=KEY, draws=1)
    with pytest.raises(errors.ObjectiveError, match="no floating-point"):
        ppl.gradient_variance(ppl.expectation(lambda n: 1.0 * n), 3, key=KEY)


def test_plot_without_matplotlib_says_what_to_install(monkeypatch):
    found = ppl.gradient_variance(ppl.expectation(normals), PARAMS, key=KEY, draws=10, sites=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"ppl\[examples\]"):
        found.plot()


def test_the_tutorial(tmp_path, capsys):
    path = pathlib.Path(__file__).resolve().parent.parent / "tutorials" / "gradient_variance.py"
    spec = importlib.util.spec_from_file_location("tutorial_gradient_variance", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.main(["--draws", "1000", "--out", str(tmp_path / "picture.png")])
    variances = {name: e.total_variance for name, e in found.estimators.items()}
    chosen = variances.pop("chosen for you")
    assert chosen * 2 < min(variances.values())
    assert variances["scores everywhere"] > 100 * chosen
    pixels = matplotlib.image.imread(tmp_path / "picture.png")
    assert min(pixels.shape[:2]) > 300
    assert pixels[..., :3].std() > 0.05
    assert "scores for the labels" in capsys.readouterr().out
