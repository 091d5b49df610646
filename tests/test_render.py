"""Pictures of programs. `python tests/test_render.py docs/images` draws those in the documentation."""

from __future__ import annotations

import builtins
import pathlib
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import pytest

import ppl
import ppl.distributions as dist
from ppl.render import render


@ppl.program
def eight_schools(sigma, y):
    mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
    tau = ppl.sample("tau", dist.HalfCauchy(5.0))

    def school(sigma, y):
        theta = ppl.sample("theta", dist.Normal(mu, tau))
        ppl.sample("y", dist.Normal(theta, sigma), obs=y)

    ppl.plate("schools", school)(sigma, y)


@ppl.program
def hidden_markov(xs):
    transition = ppl.sample("transition", dist.Dirichlet(jnp.ones((3, 3))).to_event(1))
    mean = ppl.plate("states", lambda _: ppl.sample("mean", dist.Normal(0.0, 5.0)))(jnp.arange(3))

    def step(z, x):
        z = ppl.sample("z", dist.Categorical(transition[z]))
        ppl.sample("x", dist.Normal(mean[z], 1.0), obs=x)
        return z, None

    jax.lax.scan(step, 0, xs)


@ppl.program
def autoencoder(images, decoder):
    rows = ppl.subsample("rows", len(images), 32)

    def datum(image):
        z = ppl.sample("z", dist.Normal(jnp.zeros(4), 1.0).to_event(1))
        logits = ppl.deterministic("logits", jnp.tanh(z @ decoder))
        ppl.sample("image", dist.Bernoulli(logits=logits).to_event(1), obs=image)

    ppl.plate("data", datum, size=len(images))(images[rows])


EXAMPLES = {
    "eight_schools": eight_schools(jnp.ones(8), jnp.zeros(8)),
    "hidden_markov": hidden_markov(jnp.zeros(20)),
    "autoencoder": autoencoder(jnp.zeros((60_000, 6), int), jnp.ones((4, 6))),
}


def parse(source):
    """Nodes with their attributes and clusters, and edges with their attributes, of a source that `graphviz` wrote."""
    nodes, edges, stack = {}, {}, []
    word = r'("(?:[^"\\]|\\.)*"|[^\s"\[\]]+)'
    for line in map(str.strip, source.splitlines()):
        attributes = {}
        if match := re.match(r"(.*?) \[(.*)\]$", line):
            line = match[1]
            pairs = re.findall(r'(\w+)=(<<.*?>>|"(?:[^"\\]|\\.)*"|[^\s"]+)', match[2])
            attributes = {name: unquote(value) for name, value in pairs}
        if line.startswith("subgraph"):
            stack.append(None)
        elif line == "graph" and stack:
            stack[-1] = attributes["label"]
            assert attributes["style"] == "rounded"
        elif line == "}":
            if stack:
                stack.pop()
        elif match := re.match(rf"{word} -> {word}$", line):
            assert not stack
            edges[unquote(match[1]), unquote(match[2]), attributes.get("label", "").strip()] = attributes
        elif (match := re.match(rf"{word}$", line)) and match[1] not in ("graph", "node", "edge"):
            assert unquote(match[1]) not in nodes
            nodes[unquote(match[1])] = (attributes, tuple(stack))
    assert not stack
    return nodes, edges


def unquote(text):
    return text[1:-1].replace('\\"', '"') if text.startswith('"') else text


def draw(bound):
    return parse(render(bound).source)


def words(label):
    """The lines of an HTML-like label."""
    return [re.sub("<.*?>", "", line) for line in label[1:-1].split("<BR/>")]


def test_eight_schools():
    nodes, edges = draw(EXAMPLES["eight_schools"])
    assert {name: boxes for name, (_, boxes) in nodes.items()} == {
        "mu": (),
        "tau": (),
        "theta": ("schools 8",),
        "y": ("schools 8",),
    }
    assert set(edges) == {("mu", "theta", ""), ("tau", "theta", ""), ("theta", "y", "")}
    assert words(nodes["tau"][0]["label"]) == ["tau", "HalfCauchy"]
    assert nodes["y"][0]["style"] == "filled"
    assert "style" not in nodes["theta"][0]


def test_hidden_markov():
    nodes, edges = draw(EXAMPLES["hidden_markov"])
    boxes = {"transition": (), "mean": ("states 3",), "z": ("scan 20",), "x": ("scan 20",)}
    assert {name: inside for name, (_, inside) in nodes.items()} == boxes
    assert set(edges) == {("transition", "z", ""), ("z", "z", "t-1"), ("mean", "x", ""), ("z", "x", "")}
    assert edges["z", "z", "t-1"]["style"] == "dashed"
    assert "style" not in edges["z", "x", ""]


def test_autoencoder():
    nodes, edges = draw(EXAMPLES["autoencoder"])
    data = ("data 32 of 60000",)
    boxes = {"rows": (), "z": data, "logits": data, "image": data}
    assert {name: inside for name, (_, inside) in nodes.items()} == boxes
    assert set(edges) == {("rows", "image", ""), ("z", "logits", ""), ("logits", "image", "")}
    assert nodes["logits"][0]["style"] == "dashed"
    assert nodes["rows"][0]["color"] == edges["rows", "image", ""]["color"]
    assert words(nodes["rows"][0]["label"]) == ["rows"]


def test_each_kind_looks_different():
    @ppl.program
    def model():
        a = ppl.sample("a", dist.Normal(0.0, 1.0))
        b = ppl.sample("b", dist.Normal(a, 1.0))
        c = ppl.sample("c", dist.Normal(b, 1.0))
        ppl.factor("w", ppl.deterministic("d", c))
        ppl.subsample("rows", 10, 2)

    nodes, edges = draw(model().intervene(b=1.0).condition(c=2.0))
    assert set(edges) == {("b", "c", ""), ("c", "d", ""), ("d", "factor w", "")}
    looks = [(n["shape"], n.get("style"), n.get("color"), n.get("fillcolor")) for n, _ in nodes.values()]
    assert len(set(looks)) == 6
    assert nodes["b"][0]["shape"] == "box"
    assert words(nodes["b"][0]["label"]) == ["b", "do"]
    factor = nodes["factor w"][0]
    assert (factor["shape"], factor["fillcolor"], words(factor["xlabel"])) == ("square", "black", ["w"])


def test_boxes_nest_as_the_program_does():
    @ppl.program
    def model():
        def group(n):
            m = ppl.sample("m", dist.Normal(0.0, 1.0))

            def step(x, s):
                x = ppl.sample("x", dist.Normal(x, 1.0))
                jax.vmap(lambda y: ppl.sample("y", dist.Normal(x, 1.0), obs=y))(jnp.zeros(2))
                return x, None

            jax.lax.scan(step, m, None, 4)
            return ppl.plate("items", lambda _: ppl.sample("u", dist.Normal(m, 1.0)), size=9)(jnp.arange(3))

        ppl.plate("groups", group, size=50)(jnp.arange(5))
        jax.lax.while_loop(lambda x: x < 0, lambda _: ppl.sample("loop", dist.Normal(0.0, 1.0)), -1.0)
        jax.vmap(jax.vmap(lambda _: ppl.sample("grid", dist.Normal(0.0, 1.0))))(jnp.zeros((2, 3)))

    nodes, _ = draw(model())
    assert {name: boxes for name, (_, boxes) in nodes.items()} == {
        "m": ("groups 5 of 50",),
        "x": ("groups 5 of 50", "scan 4"),
        "y": ("groups 5 of 50", "scan 4", "vmap 2"),
        "u": ("groups 5 of 50", "items 3 of 9"),
        "loop": ("while",),
        "grid": ("vmap 2", "vmap 3"),
    }


def test_sites_that_share_a_plate_share_its_box():
    @ppl.program
    def model():
        zs = ppl.plate("data", lambda _: ppl.sample("z", dist.Normal(0.0, 1.0)))(jnp.arange(4))
        ppl.sample("mean", dist.Normal(zs.mean(), 1.0))
        ppl.plate("data", lambda z: ppl.sample("x", dist.Normal(z, 1.0)))(zs)

    source = render(model()).source
    assert source.count("subgraph") == 1
    assert {name: boxes for name, (_, boxes) in parse(source)[0].items()} == {
        "z": ("data 4",),
        "mean": (),
        "x": ("data 4",),
    }


def test_nested_programs_and_reversed_scans():
    @ppl.program
    def inner():
        def step(x, _):
            return ppl.sample("x", dist.Normal(x, 1.0)), None

        jax.lax.scan(step, 0.0, None, 3, reverse=True)

    @ppl.program
    def outer():
        ppl.sample("sub", inner())

    nodes, edges = draw(outer())
    assert words(nodes["sub/x"][0]["label"]) == ["sub/x", "Normal"]
    assert set(edges) == {("sub/x", "sub/x", "t+1")}


def test_odd_addresses():
    names = ["a:b", "<c>", 'd"e', "f\\", "g%3A", "μ", "node", "h & i", "label=x", "k -> l", "\\N"]

    @ppl.program
    def model():
        x = 0.0
        for name in names:
            x = ppl.sample(name, dist.Normal(x, 1.0))
        ppl.factor("a:b", x)

    picture = render(model())
    assert picture.source.count("->") == len(names)  # the edges, and no address
    if shutil.which("dot"):
        svg = picture.pipe(format="svg", encoding="utf-8")
        assert svg.count('class="node"') == len(names) + 1
        assert svg.count('class="edge"') == len(names)
        for shown in ("a:b", "&lt;c&gt;", "μ", "h &amp; i", "label=x", "f\\", "\\N"):
            assert f">{shown}</text>" in svg


def test_a_program_that_is_one_unnamed_value():
    nodes, edges = draw(ppl.unnormalized(lambda z: -(z**2), like=0.0))
    assert [words(n.get("xlabel") or n["label"])[0] for n, _ in nodes.values()] == ["&lt;value&gt;", "log_rho"]
    assert len(edges) == 1


def test_a_program_without_sites():
    assert draw(ppl.program(lambda: 1.0)()) == ({}, {})


def test_the_tooltip_is_the_source_line():
    nodes, _ = draw(EXAMPLES["eight_schools"])
    line = next(i for i, text in enumerate(pathlib.Path(__file__).read_text().splitlines(), 1) if 'ppl.sample("tau"' in text)
    assert f'test_render.py", line {line}, in eight_schools' in nodes["tau"][0]["tooltip"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_same_program_gives_the_same_source(name):
    assert render(EXAMPLES[name]).source == render(EXAMPLES[name]).source


def test_an_unbound_program_is_refused():
    with pytest.raises(TypeError, match=r"program\(eight_schools\): call it with its arguments"):
        render(eight_schools)


def test_without_the_package(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "graphviz":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'ppl\[graph\]'"):
        render(EXAMPLES["eight_schools"])


@pytest.mark.skipif(shutil.which("dot") is None, reason="the program dot (Graphviz) is not installed")
@pytest.mark.parametrize("name", EXAMPLES)
def test_pictures(name, tmp_path):
    picture = render(EXAMPLES[name])
    svg = picture._repr_image_svg_xml()
    nodes, edges = parse(picture.source)
    assert svg.count('class="node"') == len(nodes)
    assert svg.count('class="edge"') == len(edges)
    assert svg.count('class="cluster"') == picture.source.count("subgraph")
    assert all(f">{words(n['label'])[0]}</text>" in svg for n, _ in nodes.values())
    png = pathlib.Path(save(picture, tmp_path / name))
    assert png.read_bytes().startswith(b"\x89PNG")


def save(picture, path):
    return picture.render(str(path), format="png", cleanup=True)


if __name__ == "__main__":
    for name, bound in EXAMPLES.items():
        print(save(render(bound), pathlib.Path(sys.argv[1]) / f"render_{name}"))
