"""Names of numbers as `.vi` files count them, and data files that hold more than what is declared."""

import json
import pickle

import numpy as np
import pytest

import ppl
from ppl.lang.files import read_data
from ppl.reports.tables import elements


def test_recurrences_are_one_array():
    """`x[1]` and `x` are the first and the later times, behind the index of a loop around."""
    draws = {"v": np.zeros((5, 2)), "x": np.ones((5, 2)), "x[1]": np.zeros(5), "z": np.full((5, 2, 3), 2.0)}
    found = elements({**draws, "z[1]": np.zeros((5, 2))}, 1)
    assert list(found) == "v[1] v[2] x[1] x[2] x[3]".split() + [f"z[{i}, {t}]" for i in (1, 2) for t in (1, 2, 3, 4)]
    assert (found["x[1]"][0], found["x[2]"][0], found["z[2, 1]"][0], found["z[2, 2]"][0]) == (0, 1, 0, 2)
    assert list(elements({"v": np.zeros((5, 2))})) == ["v[0]", "v[1]"]


def test_only_what_is_declared_has_to_be_numbers(tmp_path):
    content = {"source": "a paper", "data": {"school": ["A", "B"], "y": [1, 2]}}
    (tmp_path / "d.json").write_text(json.dumps(content))
    (tmp_path / "d.csv").write_text("school,y\nA,1\nB,2\n")
    for name in ("d.json", "d.csv"):
        found = read_data(tmp_path / name, {"y", "sigma"})
        assert list(found) == ["y"]
        np.testing.assert_array_equal(found["y"], [1, 2])
        with pytest.raises(ppl.errors.DataError, match="no number"):
            read_data(tmp_path / name)


def test_errors_are_pickled():
    with pytest.raises(ppl.errors.LanguageError) as caught:
        ppl.parse("\ufeffmodel m:\n    x ~ \n")
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert again.diagnostics[0].column == 9
