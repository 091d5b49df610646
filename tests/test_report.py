"""The page about a fit: complete, self-contained, and readable in a browser, on a phone and in the dark."""

import html.parser
import re
import shutil
import subprocess
from html import escape as quoted

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pytest

import ppl
import ppl.distributions as dist

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
Y = jnp.array([0.5, 1.5, 1.0])


@ppl.program
def regression(y):
    mean = ppl.sample("mean <&>", dist.Normal(0.0, 1.0))
    ppl.plate("data", lambda y: ppl.sample("y", dist.Normal(mean, 1.0), obs=y))(y)


@ppl.program
def family(params):
    ppl.sample("mean <&>", dist.Normal(params["loc"], params["scale"]))


def fitted(scale):
    """The posterior is normal with mean 3/4 and standard deviation 1/2."""
    params = {"loc": jnp.array(0.75), "scale": jnp.array(scale)}
    history = -4.0 + np.random.default_rng(0).normal(size=1000)
    return ppl.Fit(params, history, None, {}, regression(Y), family)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "fit.html"
    return ppl.report(fitted(0.5), path, jax.random.key(3), settings={"seed": 11}, reference={"mean <&>": np.zeros(99)})


class Reader(html.parser.HTMLParser):
    """Checks that elements nest, and collects text and references."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.references = [], [], []

    def handle_starttag(self, tag, attrs):
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(path):
    reader = Reader()
    reader.feed(path.read_text())
    assert reader.open == []
    return reader, " ".join(" ".join(reader.text).split())


def test_everything_is_on_the_page(page):
    reader, text = read(page)
    assert "Nothing speaks against this fit." in text
    row = re.search(r"mean <&> (\S+) (\S+) (\S+) (\S+) (\S+)", text[text.index("Posterior") :])
    exact = 0.75, 0.5, 0.75 - 1.645 * 0.5, 0.75, 0.75 + 1.645 * 0.5
    np.testing.assert_allclose([float(value) for value in row.groups()], exact, atol=0.06)
    log_evidence = jax.scipy.stats.multivariate_normal.logpdf(Y, jnp.zeros(3), jnp.eye(3) + 1.0)
    assert f"{float(log_evidence):.3f}" in text
    assert "dist.Normal(mean, 1.0), obs=y" in text  # the source
    assert "seed 11" in text
    assert f"jax {jax.__version__}" in text
    assert "1,000 steps" in text
    assert page.read_text().count("<svg") >= 3
    assert all(target.startswith("#") for target in reader.references)
    assert not re.search(r"url\((?!#)|@import", page.read_text())


def test_a_bad_fit_says_so_at_the_top(tmp_path):
    _, text = read(ppl.report(fitted(0.05), tmp_path / "bad.html", jax.random.key(0), title="narrow"))
    assert text.startswith("narrow")
    assert "read the findings before using these numbers" in text
    assert "narrower than the posterior" in text


def test_what_was_there_stays_until_the_page_is_whole(tmp_path):
    path = tmp_path / "fit.html"
    path.write_text("old")
    with pytest.raises(ppl.errors.FitError, match="must be a bound program"):
        ppl.report(ppl.Fit({}, np.zeros(0), None, model=lambda params: 3, family=family), path, jax.random.key(0))
    assert path.read_text() == "old"
    assert [other.name for other in tmp_path.iterdir()] == ["fit.html"]


def test_a_fit_without_a_posterior_has_its_parameters_and_each_objective(tmp_path):
    history = {"first": np.full(40, 2.0), "second": np.full(40, -7.5)}
    fit = ppl.Fit({"q": {"m": np.array([1.25, -3.5])}}, history, None)
    _, text = read(ppl.report(fit, tmp_path / "flow.html", jax.random.key(0), source="objective first", count_from=1))
    assert "40 steps" in text
    assert "first 2 sd 0, last 4 steps second -7.5 sd 0, last 4 steps" in text
    assert "q.m[1] 1.25 q.m[2] -3.50" in text
    assert "objective first" in text


def browse(*arguments):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_in_a_browser(page, tmp_path):
    """Light and dark are what they say, and nothing sticks out of a phone's screen."""
    pictures = {}
    for name, options in {"light": (), "dark": ("--force-dark-mode",)}.items():
        file = tmp_path / f"{name}.png"
        browse(f"--screenshot={file}", "--window-size=900,1600", *options, page.as_uri())
        pictures[name] = matplotlib.image.imread(file)[..., :3]
    assert np.median(pictures["light"]) > 0.95
    assert np.median(pictures["dark"]) < 0.15
    assert all(picture.std() > 0.05 for picture in pictures.values())
    probe = tmp_path / "probe.html"
    script = "<script>onload = () => document.title = innerWidth + ' ' + document.documentElement.scrollWidth</script>"
    frame = f"<iframe id=f style='width:390px;height:800px' srcdoc='{quoted(page.read_text() + script)}'></iframe>"
    tell = "<script>onload = () => document.title = document.getElementById('f').contentDocument.title</script>"
    probe.write_text(f"<!doctype html><title>none</title>{frame}{tell}")
    dom = browse("--dump-dom", "--virtual-time-budget=5000", "--window-size=1200,900", probe.as_uri())
    width, content = map(int, re.search(r"<title>(\d+) (\d+)</title>", dom).groups())
    assert width == content == 390
