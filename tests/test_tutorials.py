"""The tutorials run, reach the numbers they are meant to show, and what their README quotes of them is what they print."""

import importlib.util
import pathlib
import re
import sys

import matplotlib.image
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# log p(y) of eight schools by quadrature over tau, with mu and theta integrated out in closed form (`test_log_evidence`).
LOG_EVIDENCE = -31.3113


def load(name):
    spec = importlib.util.spec_from_file_location(f"tutorial_{name}", ROOT / "tutorials" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_an_estimator_from_nothing(tmp_path):
    """That it is unbiased is asserted by the tutorial itself."""
    module, path = load("estimator"), tmp_path / "picture.png"
    variance = module.main(["--quick", "--out", str(path)])["variance"]
    assert variance["REBAR"] < 0.5 * variance["score function"]
    assert variance["REBAR"] < 0.7 * variance["leave-one-out"]
    assert is_a_picture(path)


def is_a_picture(path):
    pixels = matplotlib.image.imread(path)
    return min(pixels.shape[:2]) > 300 and pixels[..., :3].std() > 0.05


def numbers(text):
    return [float(number) for number in re.findall(r"[-+]?\d+\.\d+", text)]


def test_log_evidence():
    module = load("eight_schools")
    y, sigma = np.asarray(module.Y, float), np.asarray(module.SIGMA, float)
    # Substituting tau = 5 tan(pi u / 2) makes HalfCauchy(5) the uniform on (0, 1).
    points = (np.arange(200_000) + 0.5) / 200_000
    tau = 5 * np.tan(np.pi * points / 2)
    variance = sigma**2 + tau[:, None] ** 2
    # y ~ N(0, diag(variance) + 25 11'), by the matrix determinant and inversion lemmas
    weight = 1 + 25 * (1 / variance).sum(1)
    quadratic = (y**2 / variance).sum(1) - 25 * (y / variance).sum(1) ** 2 / weight
    log_likelihood = -0.5 * (quadratic + np.log(variance).sum(1) + np.log(weight) + 8 * np.log(2 * np.pi))
    assert np.log(np.exp(log_likelihood).mean()) == pytest.approx(LOG_EVIDENCE, abs=1e-4)


def test_eight_schools(tmp_path, capsys):
    module, path = load("eight_schools"), tmp_path / "picture.png"
    result = module.main(["--out", str(path)])
    gaussian, shrinkage = result["elbo"]["Gaussian"], result["elbo"]["shrinkage"]
    # NumPyro's best automatic guide (noncentered, full-rank) reaches -31.53.
    assert gaussian[0] == pytest.approx(-31.53, abs=0.03)
    assert LOG_EVIDENCE - 0.01 < shrinkage[0] < LOG_EVIDENCE + 4 * shrinkage[1]
    assert result["evidence"][0] == pytest.approx(LOG_EVIDENCE, abs=0.003)

    reference = module.DATA["reference"]
    sd = np.array(reference["sd"])
    assert np.abs(result["error"]).max() < 0.06  # in reference sds; Monte Carlo alone gives .01 to .02
    np.testing.assert_allclose(result["summary"]["sd"] / sd, 1.0, atol=0.08)
    for quantile in ("q05", "q50", "q95"):
        assert np.abs((result["summary"][quantile] - np.array(reference[quantile])) / sd).max() < 0.2
    assert is_a_picture(path)

    assert_quoted("tutorials/README.md", rows(capsys.readouterr().out))


def rows(text):
    """The numbers of each line by what the line begins with."""
    return {line.split("  ")[0]: numbers(line) for line in text.splitlines() if numbers(line)}


def assert_quoted(document, printed):
    """What a document quotes of eight schools agrees with the run, up to what another machine's rounding changes."""
    blocks = re.findall(r"```text\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)
    (block,) = [block for block in blocks if "ELBO of the" in block]
    quoted = rows(block)
    assert len(quoted) == 14
    for name, values in quoted.items():
        bound = 0.02 if "ELBO" in name or "bound" in name else 0.25
        if "largest error" not in name:
            np.testing.assert_allclose(values, printed[name], atol=bound, err_msg=f"{document}: {name}")


def test_vae(tmp_path):
    module, path = load("vae"), tmp_path / "picture.png"
    (train, train_labels), (test, test_labels) = ((np.asarray(a) for a in pair) for pair in module.load_digits())
    assert train.shape == (4500, 784)
    assert test.shape == (500, 784)
    assert set(train_labels) == set(test_labels) == set(range(10))
    # A model without a code: independent pixels, at their frequencies in training. It reaches -203 nats an image.
    frequency = (train.sum(0) + 1) / (len(train) + 2)
    codeless = (test * np.log(frequency) + (1 - test) * np.log1p(-frequency)).sum(1).mean()

    result = module.main(["--quick", "--out", str(path)])
    before, after = result["before"], result["after"]
    assert before["held out"] == pytest.approx(-784 * np.log(2), abs=10)  # every pixel with probability near one half
    assert after["held out"] > codeless + 40
    assert after["held out"] + 2 < after["held out, K=50"]
    assert abs(after["train"] - after["held out"]) < 10  # so few epochs do not overfit
    assert is_a_picture(path)


def test_two_dimensional_flow(tmp_path):
    module, path = load("two_dimensional_flow"), tmp_path / "picture.png"
    result = module.main(["--quick", "--out", str(path)])
    independent, optimal, rectified = (result[name] for name in ("independent pairs", "optimal pairs", "rectified"))
    assert optimal[0] < 1.0
    assert max(optimal[1], rectified[1]) < 0.5 * independent[1]  # straight paths: one Euler step does
    assert result["total"] == pytest.approx(1.0, abs=0.05)
    assert is_a_picture(path)
