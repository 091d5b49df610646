"""The command line, from outside: what it prints, writes, refuses and returns."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

import ppl
from ppl.cli import app
from ppl.errors import DataError
from ppl.lang.files import read_data

ROOT = pathlib.Path(__file__).resolve().parent.parent


def ppl_(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120", "TERM": "dumb"})


def arrays(path):
    with np.load(path) as archive:
        return dict(archive)


@pytest.fixture
def line(tmp_path):
    """What `ppl new` writes: a line through ten points."""
    file = tmp_path / "line.vi"
    result = ppl_("new", file)
    assert result.exit_code == 0, result.output
    return file


def test_from_nothing_to_a_report(line, tmp_path):
    """The starter's slope and intercept are near those of least squares, which a wide prior hardly moves."""
    data = line.with_suffix(".json")
    out, page = tmp_path / "out", tmp_path / "report.html"
    result = ppl_("fit", line, "--data", data, "--quiet", "--out", out, "--report", page)
    assert result.exit_code == 0, result.output
    numbers = json.loads(data.read_text())
    slope, intercept = np.polyfit(numbers["x"], numbers["y"], 1)
    draws = arrays(out / "draws.npz")
    assert draws["slope"].shape == (4000,)
    assert abs(draws["slope"].mean() - slope) < 0.05
    assert abs(draws["intercept"].mean() - intercept) < 0.05
    rows = {words[0]: words for words in map(str.split, result.output.splitlines()) if words}
    assert abs(float(rows["slope"][1]) - draws["slope"].mean()) < 0.006
    assert "ELBO" in rows
    assert ppl.load(out / "fit.npz").history.shape == (2000,)
    text = page.read_text()
    assert "objective elbo:" in text  # the file
    assert "<svg" in text


def test_existing_files_are_left_alone(line):
    before = line.read_text()
    result = ppl_("new", line)
    assert result.exit_code == 1
    assert "exists already" in result.output
    assert line.read_text() == before


def test_check_shows_estimators_and_finds_bias(line, tmp_path):
    result = ppl_("check", line, "--data", line.with_suffix(".json"))
    assert result.exit_code == 0, result.output
    assert "every condition for unbiased gradients holds" in result.output
    assert "Reparameterize()" in result.output
    jump = tmp_path / "jump.vi"
    jump.write_text("family q(m: real):\n    x ~ Normal(m, 1)\n\nobjective chance:\n    E[z ~ q] where(z.x > 0, 1, 0)\n")
    result = ppl_("check", jump)
    assert result.exit_code == 3, result.output
    assert "continuity" in result.output


def test_errors_are_messages(line, tmp_path):
    """One line of what is wrong, where, and no traceback."""
    wrong = tmp_path / "wrong.vi"
    wrong.write_text(line.read_text().replace("HalfNormal", "HalfNormla").replace("slope * x[i]", "slop * x[i]"))
    data = line.with_suffix(".json")
    result = ppl_("fit", wrong, "--data", data)
    assert result.exit_code == 1
    assert f"{wrong}:12:" in result.output
    assert f"{wrong}:14:" in result.output
    assert "Did you mean 'HalfNormal'?" in result.output
    assert "^" in result.output
    assert "Traceback" not in result.output
    result = ppl_("fit", line)
    assert result.exit_code == 1
    assert "give them with --data" in result.output
    short = tmp_path / "short.json"
    short.write_text('{"x": [1, 2, 3], "y": [1, 2]}')
    result = ppl_("fit", line, "--data", short)
    assert result.exit_code == 1
    assert "[3]" in result.output
    assert "[2]" in result.output
    assert ppl_("fit", tmp_path / "none.vi").exit_code == 2
    assert ppl_("fit", line, "--data", data, "--fit", 2).exit_code == 2
    assert ppl_("wrong").exit_code == 2


def test_draws_of_the_prior(line, tmp_path):
    out = tmp_path / "prior.npz"
    result = ppl_("sample", line, "--data", line.with_suffix(".json"), "-n", 4000, "--out", out)
    assert result.exit_code == 0, result.output
    draws = arrays(out)
    assert abs(draws["slope"].std() / 10 - 1) < 0.05
    assert draws["y"].shape == (4000, 10)
    expected = np.sqrt(100 + 100 * np.array(json.loads(line.with_suffix(".json").read_text())["x"]) ** 2 + 25)
    np.testing.assert_allclose(draws["y"].std(0), expected, rtol=0.08)


def test_format_and_render(line, tmp_path):
    assert ppl_("format", "--check", line).exit_code == 0
    messy = tmp_path / "messy.vi"
    messy.write_text(line.read_text().replace("slope ~ Normal(0, 10)", "slope   ~ Normal( 0,10 )"))
    result = ppl_("format", "--diff", messy)
    assert result.exit_code == 3
    assert "+    slope ~ Normal(0, 10)" in result.output
    assert ppl_("format", "--check", messy).exit_code == 3
    assert ppl_("format", messy).exit_code == 0
    assert messy.read_text() == line.read_text()
    picture = tmp_path / "line.dot"
    assert ppl_("render", line, picture, "--data", line.with_suffix(".json")).exit_code == 0
    assert "slope -> y" in picture.read_text()


@pytest.mark.parametrize("arguments", [(), ("fit",), ("check",), ("sample",), ("render",), ("format",), ("new",)])
def test_help(arguments):
    result = ppl_(*arguments, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_data_files(tmp_path):
    csv, npz, json_ = (tmp_path / f"data.{suffix}" for suffix in ("csv", "npz", "json"))
    csv.write_text("a,b\n1,0.5\n2,1e-3\n\n")
    np.savez(npz, a=np.arange(3))
    json_.write_text('{"a": [[1, 2], [3, 4]], "name": "ignored"}')
    np.testing.assert_array_equal(read_data(csv)["b"], [0.5, 0.001])
    assert read_data(csv)["a"].dtype.kind == "i"
    np.testing.assert_array_equal(read_data(npz)["a"], [0, 1, 2])
    assert read_data(json_)["a"].shape == (2, 2)
    assert "name" not in read_data(json_)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.csv", "a,b\n1\n", "line 2: 1 cells under 2 names"),
        ("d.csv", "a,b\n1,x\n", "line 2: 'x' under 'b' is no number"),
        ("d.csv", "a,a\n1,2\n", "occurs twice"),
        ("d.csv", "a\n", "at least one of numbers"),
        ("d.json", "[1, 2]", "got a list"),
        ("d.json", '{"a": [[1], [1, 2]]}', "different lengths"),
        ("d.json", '{"a": ["x"]}', "no number"),
        ("d.json", "{", "cannot read"),
        ("d.npz", "junk", "cannot read"),
        ("d.txt", "1", ".json, .csv, .npz"),
        ("d.json", "[" * 100_000, "cannot read"),
    ],
)
def test_bad_data_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_data(tmp_path / name)


def test_pickled_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "d.npz", a=np.array([print], dtype=object))
    with pytest.raises(DataError, match="cannot read"):
        read_data(tmp_path / "d.npz")


def test_weights_of_a_file_are_those_of_its_programs(line):
    """The module that the command fits is the one that Python gets."""
    module = ppl.lang.load(line, read_data(line.with_suffix(".json")))
    trace = {"intercept": jnp.array(1.0), "slope": jnp.array(2.0), "noise": jnp.array(0.5)}
    x, y = (np.array(module.data[name]) for name in "xy")
    residuals = (y - 1.0 - 2.0 * x) / 0.5
    logs = -0.5 * np.sum(residuals**2) - 10 * np.log(0.5) - 5 * np.log(2 * np.pi)
    prior = -0.5 * (0.01 + 0.04) - 2 * np.log(10) - np.log(2 * np.pi)
    half = np.log(2) - np.log(5) - 0.5 * np.log(2 * np.pi) - 0.5 * 0.01
    np.testing.assert_allclose(module.line().log_density(trace), logs + prior + half, rtol=1e-5)


def test_the_shipped_schools_from_their_data_file(tmp_path):
    """The command of the README, cut short: posterior means near Stan's and those that README shows, indices from one."""
    models, content = ROOT / "tutorials" / "models", ROOT / "tutorials" / "data" / "eight_schools.json"
    result = ppl_("fit", models / "schools.vi", "--data", content, "--quiet", "--steps", 1000)
    assert result.exit_code == 0, result.output
    rows = {words[0]: words for words in map(str.split, result.output.splitlines()) if words}
    readme = (ROOT / "README.md").read_text()
    shown = readme[readme.index("schools.vi: shrunk") :]
    quoted = {words[0]: words for words in map(str.split, shown[: shown.index("```")].splitlines()) if words}
    assert rows["ELBO"][0] == quoted["ELBO"][0]
    reference = json.loads(content.read_text())["reference"]
    for name, mean, spread in zip(reference["names"], reference["mean"], reference["sd"], strict=True):
        assert abs(float(rows[name][1]) - mean) < 0.2 * spread
        assert abs(float(rows[name][1]) - float(quoted[name][1])) < 0.2 * spread
