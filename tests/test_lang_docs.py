"""The examples of the reference page are checked, run and formatted, and its lists are those of the language."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from ppl.lang import builtins, format_source, load
from ppl.lang.expected import KEYWORDS

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "language.md").read_text()
EXAMPLES = re.findall(r"```vi\n(.*?)```", PAGE, re.DOTALL)
DATA = {"y": jnp.arange(4.0), "sigma": jnp.ones(4), "X": jnp.ones((5, 2)), "x": jnp.array(0.5)}


@pytest.mark.parametrize("text", EXAMPLES, ids=["schools", "flow", "wake"])
def test_examples(text):
    module = load(text)
    module = module.with_data({name: DATA[name] for name in module.declared})
    params = module.init(jax.random.key(1))
    for name in module.objectives:
        gradient = module.objective(name).grad(jax.random.key(0), params)
        assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient)), name
    assert load(format_source(text)).units[0].item == module.units[0].item


def test_lists_are_complete():
    words = set(re.findall(r"[a-z_0-9]+", PAGE))
    longer = {f"{name}_{axis}" for name in ("mean", "logsumexp") for axis in ("rows", "columns")}
    known = {*builtins.FUNCTIONS, *builtins.OPTIMIZERS, *builtins.SCHEDULES, *builtins.TYPES, *KEYWORDS}
    assert known - words - longer == set()


def test_the_editors_grammar_knows_the_words_of_the_language():
    patterns = json.loads((ROOT / "editors" / "vi.tmLanguage.json").read_text())["patterns"]
    for pattern in patterns:
        re.compile(pattern["match"])
    words = set(re.findall(r"[A-Za-z_]+", " ".join(pattern["match"] for pattern in patterns)))
    assert {*KEYWORDS, *builtins.TYPES, *builtins.CONSTANTS} - words == set()
