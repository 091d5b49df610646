"""What is said of mistakes, by exact text, and that several are said at once."""

import numpy as np
import pytest

import ppl
from ppl.lang import load


def message(text, **data):
    with pytest.raises(ppl.errors.LanguageError) as caught:
        load(text, data or None)
    return str(caught.value)


MISTAKES = {
    "modle m:\n    x ~ Normal(0, 1)\n": """\
<text>:1:1: expected a declaration, found 'modle'
  1 | modle m:
    | ^^^^^
  Did you mean 'model'?""",
    "model m:\n    x ~ Norml(0, 1)\n": """\
<text>:2:9: the name 'Norml' is not defined
  2 |     x ~ Norml(0, 1)
    |         ^^^^^
  Did you mean 'Normal'?""",
    "model m:\n    tau ~ HalfNormal(1)\n    x ~ Normal(0, taw)\n": """\
<text>:3:19: the name 'taw' is not defined
  3 |     x ~ Normal(0, taw)
    |                   ^^^
  Did you mean 'tau'?""",
    "model m:\n    x ~ Normal(0, scle = 1)\n": """\
<text>:2:19: Normal has no parameter 'scle'
  2 |     x ~ Normal(0, scle = 1)
    |                   ^^^^^^^^
  Did you mean 'scale'?""",
    "model m:\n    x ~ Normal(0, 1\n": """\
<text>:2:15: '(' is never closed
  2 |     x ~ Normal(0, 1
    |               ^""",
    "model m:\n    x ~ Normal(0 1)\n": """\
<text>:2:18: expected an operator, ',', ')' or '|', found '1'
  2 |     x ~ Normal(0 1)
    |                  ^
  A product is written with '*'.""",
    "model m:\n    r = eye(3) @ ones(2)\n": """\
<text>:2:9: the shapes [3, 3] and [2] do not go together under '@'
  2 |     r = eye(3) @ ones(2)
    |         ^^^^^^^^^^^^^^^^""",
    "data x: real[N]; w: real[M]\nmodel m:\n    s = x + w\n": """\
<text>:3:9: the shapes [N] and [M] do not go together under '+'
  3 |     s = x + w
    |         ^^^^^""",
    "data y: real[8]\nmodel m:\n    y ~ Normal(0, 1)\n": """\
<text>:3:5: the data have the shape [8], and the distribution []
  3 |     y ~ Normal(0, 1)
    |     ^^^^^^^^^^^^^^^^
  For independent elements write y[1..8] ~ ..., or a loop.""",
    "family q(m: real[10]):\n    for j in 1..8:\n        x[j] ~ Normal(m[j + 3], 1)\n": """\
<text>:3:25: the index reaches 11, and the axis has 10 elements
  3 |         x[j] ~ Normal(m[j + 3], 1)
    |                         ^^^^^""",
    "model m:\n    k ~ Categorical([0.3, 0.7])\n    v = [1.0, 2.0][k]\n": """\
<text>:3:20: this counts from zero, and indices count from one
  3 |     v = [1.0, 2.0][k]
    |                    ^
  Write '+ 1' behind it.""",
    "model m:\n    for t in 2..5:\n        x[t] ~ Normal(x[t - 1], 1)\n": """\
<text>:2:5: the recurrence looks at x[1], which is not defined before it
  2 |     for t in 2..5:
    |     ^^^^^^^^^^^^^^
  Begin with 'x[1] ~ ...' or start the loop later.""",
    "family q(m: positve):\n    x ~ Normal(m, 1)\n": """\
<text>:1:13: there is no type 'positve'
  1 | family q(m: positve):
    |             ^^^^^^^
  Did you mean 'positive'?""",
    "model m:\n    x ~ Normal(0, 1) using reparametrize\n": """\
<text>:2:28: there is no estimator 'reparametrize'
  2 |     x ~ Normal(0, 1) using reparametrize
    |                            ^^^^^^^^^^^^^
  Did you mean 'reparameterize'?""",
    "family q:\n    x ~ Normal(0, 1)\nobjective o: log E[z ~ q] exp(z.x)\n": """\
<text>:3:18: the logarithm of an expectation is not estimated without bias
  3 | objective o: log E[z ~ q] exp(z.x)
    |                  ^^^^^^^^^^^^^^^^^
  Expectations are summed, and multiplied by numbers.""",
    "data y: real\nmodel p:\n    x ~ Normal(0, 1)\n    y ~ Normal(x, 1)\nfamily q:\n    x ~ Normal(0, 1)\n"
    "objective o: E[z ~ q] log p(z)\n": """\
<text>:7:27: the density of p leaves out the data y
  7 | objective o: E[z ~ q] log p(z)
    |                           ^^^^
  Write p(z, y).""",
    "from os import system\n": """\
<text>:1:1: Python imports are not allowed here: os
  1 | from os import system
    | ^^^^^^^^^^^^^^^^^^^^^
  If you trust the module, whose code runs: ppl.load(..., python_imports=True), or --python-imports.""",
}


@pytest.mark.parametrize("text", MISTAKES, ids=lambda text: text.splitlines()[-1].strip())
def test_messages(text):
    assert message(text) == MISTAKES[text]


def test_several_errors_at_once():
    text = "model m:\n    x ~ Norml(0, 1)\n    y ~ Normal(x, tau)\n"
    text += "family q(s: positve):\n    x ~ Normal(0, 1, 2)\nfit elbo with adm(1)\n"
    with pytest.raises(ppl.errors.LanguageError) as caught:
        load(text)
    assert [(d.line, d.column) for d in caught.value.diagnostics] == [(2, 9), (3, 19), (4, 13), (5, 9), (6, 5), (6, 15)]


def test_several_errors_of_syntax_at_once():
    text = "model m:\n    x ~ \n    y ~ Normal(0, 1)\n    z = 1 +* 2\n\nmodle n:\n    x ~ 3\n\nfamily q:\n    x ~ ~ 3\n"
    with pytest.raises(ppl.errors.LanguageError) as caught:
        ppl.parse(text)
    assert [d.line for d in caught.value.diagnostics] == [2, 4, 6, 10]


def test_a_model_and_a_family_that_differ():
    text = (
        "model p:\n    x ~ Normal(0, 1)\n    w ~ Normal(x, 1)\nfamily q:\n    x ~ Normal(zeros(2), 1)\n    v ~ Normal(0, 1)\n"
    )
    found = message(text + "objective o: E[z ~ q] log p(z) - log q(z)\n")
    assert "p has w, which was not drawn; v was drawn, which p does not have" in found
    found = message(text.replace("v ~", "w ~") + "objective o: E[z ~ q] log p(z) - log q(z)\n")
    assert "x has the shape [] in p, and was drawn with [2]" in found


def test_data_against_their_declarations():
    text = "data y: real[N]; X: real[N, 2]; k: int[N]\nmodel m:\n    a ~ Normal(0, 1)\n    y[1..N] ~ Normal(a, 1)\n"
    with pytest.raises(ppl.errors.LanguageError, match=r"'X' is declared with the shape \[3, 2\] and given with \[4, 2\]"):
        load(text, {"y": np.zeros(3), "X": np.zeros((4, 2)), "k": np.zeros(3, int)})
    with pytest.raises(ppl.errors.LanguageError, match="declared as int and holds numbers with fractions"):
        load(text, {"k": np.array([0.5])})
    with pytest.raises(ppl.errors.DataError, match="declares no data 'z'"):
        load(text, {"z": 1.0})
    with pytest.raises(ppl.errors.DataError, match="data that were not given: X, k"):
        load(text, {"y": np.zeros(3)}).m().log_density({"a": 0.0})


def test_errors_of_programs_name_the_line_of_the_text():
    module = load("model m:\n    a ~ Normal(0, 1)\n    b ~ Normal(a, 1)\n")
    with pytest.raises(ppl.errors.MissingAddressError, match='File "<text>", line 3, in m'):
        module.m().log_density({"a": 0.0})


def test_formulas():
    model = ppl.program(lambda: None)
    with pytest.raises(ppl.errors.LanguageError, match=r"<formula>:1:12: the name 'r' is not defined"):
        ppl.objective("E[z ~ q] - r", q=model())
    with pytest.raises(ppl.errors.LanguageError, match="logarithm of an expectation"):
        ppl.objective("log E[z ~ q] 1", q=model())
