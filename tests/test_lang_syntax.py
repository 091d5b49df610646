"""The grammar: what is printed parses to the same tree, and what is read ends in a tree or a `LanguageError`."""

import pathlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ppl
from ppl.lang import format_source, tree
from ppl.lang.printer import show

MODELS = sorted((pathlib.Path(__file__).parents[1] / "tutorials" / "models").glob("*.vi"))
QUICK = settings(max_examples=200, deadline=None, derandomize=True, database=None)
OPERATORS = "+ - * / @ ^ == <= > and or ..".split()


class Trees:
    """Random trees of all kinds, from a seed."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def many(self, make, least=0, most=3):
        return tuple(make() for _ in range(self.random.randint(least, most)))

    def maybe(self, make):
        return make() if self.random.random() < 0.5 else None

    def name(self):
        return self.random.choice(["x", "y1", "theta", "means", "θ", "notes", "logit", "E1", "steps", "order", "_"])

    def expression(self, depth=4):
        def inner():
            return self.expression(depth - 1)

        if depth == 0 or self.random.random() < 0.15:
            number = tree.Number(self.random.choice(["0", "12", "0.5", "3e9", "1.5e-3"]))
            return self.random.choice([tree.Name(self.name()), number])

        def argument():
            return tree.Argument(self.maybe(self.name), inner())

        choices = [
            lambda: tree.Call(inner(), self.many(argument)),
            lambda: tree.Call(inner(), self.many(argument, 1), self.many(argument, 1)),
            lambda: tree.Index(inner(), self.many(lambda: self.maybe(inner) or tree.All(), 1)),
            lambda: tree.Field(inner(), self.name()),
            lambda: tree.Transpose(inner()),
            lambda: tree.Absolute(inner()),
            lambda: tree.List(self.many(inner)),
            lambda: tree.Tuple(self.many(inner, 2)),
            lambda: tree.Comprehension(inner(), self.name(), inner()),
            lambda: tree.Binder("E", self.many(lambda: self.draw(depth - 1), 1, 2), inner()),
            lambda: tree.Binder("sum", self.many(lambda: tree.Each(self.name(), inner()), 1, 2), inner()),
            lambda: tree.Binder(self.random.choice(["D", "grad"]), (inner(),), inner()),
            *[lambda: tree.Unary(self.random.choice(["-", "not", "log"]), inner())] * 3,
            *[lambda: tree.Binary(self.random.choice(OPERATORS), inner(), inner())] * 6,
        ]
        return self.random.choice(choices)()

    def draw(self, depth=3):
        return tree.Draw(self.expression(depth), self.expression(depth), self.maybe(lambda: self.expression(1)))

    def block(self, depth=2):
        return self.many(lambda: self.statement(depth), 1)

    def statement(self, depth):
        simple = [
            self.draw,
            lambda: tree.Define(self.expression(), self.expression(), self.random.random() < 0.5),
            lambda: tree.Factor(self.name(), self.expression()),
            lambda: tree.Return(self.expression()),
            lambda: tree.Evaluate(self.expression()),
        ]
        compound = [
            lambda: tree.For(self.name(), self.expression(), self.block(depth - 1)),
            lambda: tree.If(self.expression(), self.block(depth - 1), self.maybe(lambda: self.block(depth - 1)) or ()),
        ]
        return self.random.choice(simple + compound * (depth > 0))()

    def type(self):
        return tree.Type(self.name(), self.many(lambda: self.expression(1)))

    def parameter(self):
        initial = self.maybe(lambda: self.expression(2))
        return tree.Parameter(self.name(), self.maybe(self.type), initial, initial is not None and self.random.random() < 0.5)

    def setting(self):
        return tree.Setting(self.name(), self.expression(1))

    def option(self):
        return tree.Setting(self.random.choice(["steps", "samples", "seed"]), self.expression(1))

    def term(self):
        return tree.Term(self.name(), self.many(self.setting), self.many(lambda: f"{self.name()}.{self.name()}"))

    def item(self):
        kind = self.random.choice(["model", "family"])
        choices = [
            lambda: tree.ImportFile("other.vi"),
            lambda: tree.ImportPython("nets.small", self.many(self.name, 1)),
            lambda: tree.Data(self.many(lambda: tree.Declaration(self.name(), self.type()), 1)),
            lambda: tree.Params(self.many(self.parameter, 1)),
            lambda: tree.Program(kind, self.name(), self.many(self.parameter), self.many(self.parameter), self.block()),
            lambda: tree.Alias(kind, self.name(), self.expression()),
            lambda: tree.Function(self.name(), self.many(self.name), self.block()),
            lambda: tree.Objective(self.name(), self.many(self.setting), self.block()),
            lambda: tree.Fit("fit", self.many(self.term, 1), self.maybe(self.expression), self.many(self.option)),
        ]
        return self.random.choice(choices)()


@QUICK
@given(st.integers(0, 2**32))
def test_what_is_printed_parses_to_the_same_tree(seed):
    trees = Trees(seed)
    file = tree.File(trees.many(trees.item, 1, 2))
    text = show(file)
    again = ppl.parse(text)
    assert again == file, text
    assert show(again) == text
    assert format_source(text) == text


def changed(text, seed):
    """The text with a few characters or lines taken out, doubled, moved or replaced."""
    rng = random.Random(seed)
    for _ in range(rng.randint(1, 4)):
        at, to = rng.randrange(len(text)), rng.randrange(len(text))
        piece = text[at : at + rng.choice([1, 1, 2, 5, 40])]
        junk = rng.choice(
            ["", piece, "(", "]", "~", "|", "\n", "    ", "for ", "E[", "..", "'", "log", "\x00", "é", "9" * 30, ":"]
        )
        text = rng.choice([text[:at] + text[at + len(piece) :], text[:to] + piece + text[to:], text[:at] + junk + text[at:]])
    return text


@settings(QUICK, max_examples=150)
@given(st.integers(0, 2**32))
def test_changed_files_are_read_or_refused(seed):
    found = refused(ppl.lang.load, changed(MODELS[seed % len(MODELS)].read_text(), seed))
    if found is not None:
        assert found.diagnostics
        assert all(d.line >= 1 and d.column >= 1 for d in found.diagnostics)


def refused(function, argument):
    """The declared error, or None. Any other goes on."""
    try:
        function(argument)
    except ppl.errors.LanguageError as error:
        return error
    return None


@settings(QUICK, max_examples=100)
@given(st.binary(max_size=60))
def test_bytes_are_read_or_refused(tmp_path_factory, junk):
    path = tmp_path_factory.getbasetemp() / "junk.vi"
    path.write_bytes(junk)
    found = refused(ppl.parse, path)
    assert found is None or str(found).startswith(str(path))


@pytest.mark.parametrize(
    "text",
    [
        "model m:\n    x = " + "(" * 5000,
        "model m:\n    x = " + "(" * 5000 + "1" + ")" * 5000,
        "model m:\n    x = " + "-" * 5000 + "1",
        "model m:\n    x = " + "1 + " * 5000 + "1",
        "model m:\n    x = " + "2 ^ " * 5000 + "2",
        "model m:\n    x = " + "sum[i in 1..2] " * 5000 + "1",
        "model m:\n    x = " + "f(" * 5000 + "1" + ")" * 5000,
        "model m:\n    x = y" + "[1]" * 5000,
        "model m:\n" + "".join("    " * i + f"for i{i} in 1..2:\n" for i in range(1, 300)),
    ],
)
def test_deep_nesting_is_refused(text):
    with pytest.raises(ppl.errors.LanguageError, match=r"nested more than 100 levels deep|expected"):
        ppl.parse(text)


def test_huge_texts_are_refused():
    with pytest.raises(ppl.errors.LanguageError, match="at most 5000000 are read"):
        ppl.parse("# " + "x" * 5_000_001 + "\n")


def test_calls_within_calls_are_refused():
    doubling = "".join(f"function f{i}(x) = f{i - 1}(x) + f{i - 1}(x)\n" for i in range(1, 40))
    with pytest.raises(ppl.errors.LanguageError, match=r"too large|more than 40 deep"):
        ppl.lang.load(f"function f0(x) = x\n{doubling}model m:\n    y = f39(1)\n    z ~ Normal(y, 1)\n")


def test_towers_of_powers_end():
    ppl.lang.load("model m:\n    x = 9^9^9^9^9^9\n    y ~ Normal(x, 1)\n")


def test_the_formatter_keeps_comments():
    text = """# first
data y:real[ 3 ]   # data

# before the model

model m:     # header
  # inside
  mu~Normal(0,1)  # a draw


  for j in 1..3 : y[j]~Normal( mu,
      # in the middle
      2 )
  # at the end of the block
# last
"""
    once = format_source(text)
    assert format_source(once) == once
    assert ppl.parse(once) == ppl.parse(text)
    assert [c.text for c in ppl.parse(once).comments] == [c.text for c in ppl.parse(text).comments]
    assert once.splitlines()[:6] == ["# first", "data y: real[3]  # data", "", "# before the model", "", "model m:  # header"]


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
def test_shipped_files_are_formatted(path):
    assert format_source(path) == path.read_text()
