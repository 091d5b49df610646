"""Fits in files: what comes back, and what is refused."""

import dataclasses
import io
import os
import pickle
import subprocess
import sys
import zipfile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ppl
import ppl.distributions as dist

KEY = jax.random.key(0)


def same(one, other):
    """Equal structures, types, dtypes and bits."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert type(a) is type(b)
        if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        if hasattr(a, "dtype"):
            assert a.dtype == b.dtype
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        else:
            assert a == b or a != a


PLAIN = {
    "mean": jnp.array([1.5, -0.0, jnp.nan]),
    "nested": [
        {"half": jnp.ones(2, jnp.bfloat16), "three": {3: (np.float32(2.0), np.arange(3, dtype=np.int8))}},
        None,
        True,
        "text",
    ],
    "double": np.array([1 / 3]),
    "numbers": (1, 2.5, float("inf"), float("nan")),
    "key": jax.random.key(7),
    "empty": jnp.zeros((0, 3)),
}


def test_plain_parameters_come_back_without_a_template(tmp_path):
    path = tmp_path / "fit.npz"
    history = np.linspace(-3.0, -1.0, 7)
    state = {"x": {"mean": jnp.array(0.5), "forgotten": jnp.array(0.1)}}
    ppl.Fit(PLAIN, history, None, state).save(path)
    again = ppl.load(path)
    same(again.params, PLAIN)
    same(again.estimator_state, state)
    same(again.history, history)
    assert again.model is None
    assert [p.name for p in tmp_path.iterdir()] == ["fit.npz"]


def test_optimization_goes_on(tmp_path):
    """A network's parameters and the optimizer's state, in another process's place: templates give the structure."""
    network = eqx.nn.MLP(2, 1, 4, 1, activation=jnp.tanh, key=KEY)
    optimizer = optax.adam(1e-2)

    @ppl.expectation
    def objective(params):
        return -jnp.sum((params["net"](jnp.ones(2)) - ppl.sample("noise", dist.Normal(1.0, 0.1))) ** 2)

    fit = ppl.maximize(objective, {"net": network}, KEY, optimizer=optimizer, steps=5, progress=False)
    path = tmp_path / "network.npz"
    fit.save(path)
    other = {"net": eqx.nn.MLP(2, 1, 4, 1, activation=jnp.tanh, key=jax.random.key(1))}
    same(eqx.filter(ppl.load(path, like=other).params, eqx.is_array), eqx.filter(fit.params, eqx.is_array))
    assert ppl.load(path, like=other).optimizer_state is None
    same(ppl.load(path, like=fit).optimizer_state, fit.optimizer_state)
    with pytest.raises(ppl.errors.SavedFileError, match=r"params\['net'\] is a 'MLP', whose structure a file cannot hold"):
        ppl.load(path)
    wider = {"net": eqx.nn.MLP(2, 1, 5, 1, activation=jnp.tanh, key=KEY)}
    with pytest.raises(
        ppl.errors.SavedFileError, match=r"differ at params\['net'\].leaves\[\d\]: the file has an array of shape \[4"
    ):
        ppl.load(path, like=wider)
    with pytest.raises(ppl.errors.SavedFileError, match=r"differ at params: the file has a dict with the keys \['net'\]"):
        ppl.load(path, like={"encoder": network})


def test_methods_need_the_programs_again(tmp_path):
    path = tmp_path / "fit.npz"
    family = ppl.program(lambda params: ppl.sample("x", dist.Normal(params["mean"], 1.0)))
    fit = ppl.Fit({"mean": jnp.array(2.0)}, np.zeros(3), None, family=family)
    fit.save(path)
    with pytest.raises(ppl.errors.FitError, match="not told its family"):
        ppl.load(path).sample(KEY, 3)
    for again in (ppl.load(path, family=family), ppl.load(path, like=fit)):
        assert bool((again.sample(KEY, 3)["x"] == fit.sample(KEY, 3)["x"]).all())


def test_files_that_are_not_ours(tmp_path):
    path = tmp_path / "fit.npz"
    fit = ppl.Fit({"mean": np.arange(5000.0)}, np.zeros(3), None)
    fit.save(path)
    whole = path.read_bytes()

    def refused(content, match):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(ppl.errors.SavedFileError, match=match):
            ppl.load(tmp_path / "other")

    foreign = io.BytesIO()
    np.savez(foreign, mean=np.zeros(3))
    refused(foreign.getvalue(), "was not written by fit.save")
    for content in (b"", b"a text\n", np.lib.format.magic(1, 0), b"\x80\x04N."):
        refused(content, "is no saved fit")
    for cut in (10, len(whole) // 2, len(whole) - 10):
        refused(whole[:cut], "damaged")
    place = whole.index(np.arange(5000.0).tobytes()) + 8000
    refused(whole[:place] + b"\x01" + whole[place + 1 :], "damaged")
    with pytest.raises(FileNotFoundError):
        ppl.load(tmp_path / "missing")


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_no_code_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pickle").write_bytes(pickle.dumps(Trap()))
    np.savez(tmp_path / "objects.npz", header=np.array([Trap()], dtype=object))
    for name in ("pickle", "objects.npz"):
        with pytest.raises(ppl.errors.SavedFileError):
            ppl.load(tmp_path / name)
    assert not (tmp_path / "trapped").exists()
    with pytest.raises(ppl.errors.SavedFileError, match="Python objects"):
        ppl.Fit({"x": np.array([Trap()], dtype=object)}, np.zeros(1), None).save("fit.npz")
    with pytest.raises(ppl.errors.SavedFileError, match="name of a program's text"):
        ppl.Fit({}, np.zeros(1), None).save("fit.vi")
    assert not (tmp_path / "fit.npz").exists()


def test_a_newer_format_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("ppl.inference.saving.VERSION", 2)
    ppl.Fit({}, np.zeros(1), None).save(tmp_path / "fit.npz")
    monkeypatch.undo()
    with pytest.raises(ppl.errors.SavedFileError, match="version 2 of the format, and this ppl reads version 1"):
        ppl.load(tmp_path / "fit.npz")


def test_double_precision_is_not_rounded_silently(tmp_path):
    with jax.enable_x64(True):
        ppl.Fit({"mean": jnp.array([1 / 3])}, np.zeros(1), None).save(tmp_path / "fit.npz")
        assert ppl.load(tmp_path / "fit.npz").params["mean"][0] == 1 / 3
    with pytest.raises(ppl.errors.SavedFileError, match="jax_enable_x64"):
        ppl.load(tmp_path / "fit.npz")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "fit.npz"
    ppl.Fit({"x": 1.0}, np.zeros(1), None).save(path)

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        ppl.Fit({"x": 2.0}, np.zeros(1), None).save(path)
    monkeypatch.undo()
    assert ppl.load(path).params == {"x": 1.0}
    assert [p.name for p in tmp_path.iterdir()] == ["fit.npz"]
    assert zipfile.is_zipfile(path)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask():
    return int(subprocess.check_output([sys.executable, "-c", "import os; print(os.umask(0))"]))


def test_fields_of_a_fit_are_all_saved(tmp_path):
    """Whatever a fit remembers comes back, except for its programs and the state that checkpoints keep."""
    left_out = ("model", "family", "state")
    values = {f.name: np.full(2, float(i)) for i, f in enumerate(dataclasses.fields(ppl.Fit)) if f.name not in left_out}
    ppl.Fit(**values).save(tmp_path / "fit.npz")
    again = ppl.load(tmp_path / "fit.npz")
    for name, value in values.items():
        same(getattr(again, name), value)
