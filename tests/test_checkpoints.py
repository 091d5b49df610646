"""Checkpoints: a killed run goes on to the same bits, and a damaged or foreign checkpoint is refused and kept."""

import json
import pathlib
import random
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
from ppl import errors
from tests.checkpoint_runs import batches, objective, train

ROOT = pathlib.Path(__file__).resolve().parent.parent


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = (jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b))
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def whole():
    return train()


def test_killed_runs_end_with_the_same_bits_pyro_252_numpyro_1194(tmp_path, whole):
    """Five processes, killed without warning at random times, most of them while they write, and a sixth that ends."""
    rng = random.Random(0)
    delays = [str(rng.uniform(0.0, 0.1)) for _ in range(5)]
    command = [sys.executable, "-m", "tests.checkpoint_runs", str(tmp_path), *delays]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(kills) == 5
    assert sum(kill["killed"] for kill in kills) >= 2
    assert kills[-1]["step"] > kills[0]["step"]
    fit = train(tmp_path)
    same(fit.state, whole.state)
    same(fit.params, whole.params)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["57", "60"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    train(path, steps=6)
    return path


def contents(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.fixture
def copy(saved, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(saved, path)
    return path


def test_the_same_call_goes_on_and_then_has_nothing_left_to_do(copy, whole):
    same(train(copy).state, whole.state)
    before = contents(copy)
    same(train(copy).state, whole.state)
    assert contents(copy) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of the event loop of orbax
def test_damage_is_found_and_the_checkpoint_before_is_named(copy, whole):
    files = [p for p in (copy / "6").rglob("*") if p.is_file() and p.stat().st_size > 1]
    found = unused = 0
    for file in files:
        data = file.read_bytes()
        middle = len(data) // 2
        for damage in (data[:middle], data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]):
            file.write_bytes(damage)
            before = contents(copy)
            try:
                fit = train(copy, steps=6)
            except errors.CheckpointError as error:
                found += str(copy / "6") in str(error) and "step 3 is whole" in error.__notes__[0]
            else:
                unused += 1
                assert fit.state.step == 6  # what was damaged is not needed
                np.testing.assert_array_equal(fit.history, whole.history[:6])
            assert contents(copy) == before
        file.write_bytes(data)
    assert found + unused == 2 * len(files)
    assert found >= 6
    shutil.rmtree(copy / "6")
    same(train(copy).state, whole.state)


def test_a_foreign_checkpoint_is_refused_and_kept(copy):
    other = ppl.expectation(lambda params, batch: objective.function(params, 1.01 * batch))
    before = contents(copy)
    for changed, message in (
        ({"objective": other}, "other values"),
        ({"rate": 0.06}, "other values"),
        ({"data": lambda epoch: batches(epoch + 1)}, "other values"),
        ({"data": [np.ones(6, np.float32)] * 7}, "  data: "),
        ({"samples": 2}, "  samples: null there, 2 here"),
        ({"average": False}, "  state: "),
        ({"on_nonfinite": "skip"}, "  on_nonfinite: "),
    ):
        with pytest.raises(errors.CheckpointError, match=f"(?s)of another run:.*{message}"):
            train(copy, **changed)
        assert contents(copy) == before


def test_a_directory_of_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(errors.CheckpointError, match=r"thesis\.tex"):
        train(tmp_path)
    with pytest.raises(errors.CheckpointError, match="is a file"):
        train(tmp_path / "thesis.tex")
    assert contents(tmp_path) == {"thesis.tex": b""}


def test_a_run_that_fails_leaves_its_last_good_state(tmp_path, whole):
    def breaks(epoch):
        yield from [*batches(0), *batches(1)][:11]
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        train(tmp_path, data=breaks, checkpoint_every=None)
    assert [p.name for p in tmp_path.iterdir()] == ["11"]
