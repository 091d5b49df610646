"""Checkpoints of a run: written whole or not at all, checked when they are read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import errors

_KEPT = 2
_FORMAT = 1


class Checkpoints:
    """A directory of checkpoints, by step, the last two of which are kept. Writing, by orbax, is atomic.

    Args:
        path: of the directory.
        run: what a checkpoint must agree on with the run that goes on from it; values that JSON can hold, by name.
    """

    def __init__(self, path: Any, run: dict[str, Any]):
        try:
            import orbax.checkpoint as ocp
        except ImportError as error:
            raise ImportError("checkpoints need orbax: pip install 'ppl[checkpoints]'") from error
        self.path, self.run, self._ocp = Path(path).absolute(), json.loads(json.dumps(run)), ocp
        if self.path.exists() and not self.path.is_dir():
            raise errors.CheckpointError(f"{self.path} is a file, and checkpoints need a directory of their own")
        foreign = [p.name for p in self.path.iterdir() if not _ours(p)] if self.path.exists() else []
        if foreign:
            raise errors.CheckpointError(
                f"{self.path} holds {foreign[0]!r}, which is no checkpoint. Give checkpoints a directory of their own."
            )
        options = ocp.CheckpointManagerOptions(max_to_keep=_KEPT, enable_async_checkpointing=False, create=True)
        self._manager = ocp.CheckpointManager(self.path, options=options)

    def refuse(self, step: int) -> None:
        """A checkpoint whose numbers are not those of this run."""
        raise errors.CheckpointError(
            f"the checkpoint {self.path / str(step)} is of another run: the first steps of this one give other values of the "
            "objective. The objective, the data, the start or the optimizer has changed. Give this run a directory of its own."
        )

    def close(self) -> None:
        self._manager.close()

    def latest(self, like: Any) -> Any:
        """The last state, or None where there is none yet; `like` is any state of the run, whose history may be shorter.

        Raises:
            CheckpointError: it cannot be read, or is another run's.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        try:
            return self._read(step, like)
        except errors.CheckpointError as error:
            error.add_note(self._advice(step, like))
            raise

    def save(self, state: Any) -> None:
        step = int(state.step)
        if step == self._manager.latest_step():
            return
        arrays = _arrays(state)
        about = {"format": _FORMAT, "run": self.run, "digest": _digest(arrays)}
        stored = {name: array for name, array in arrays.items() if array.size}  # orbax refuses empty arrays
        args = self._ocp.args
        self._manager.save(step, args=args.Composite(state=args.StandardSave(stored), about=args.JsonSave(about)))

    def _read(self, step: int, like: Any) -> Any:
        where = self.path / str(step)
        args = self._ocp.args
        try:
            about = self._manager.restore(step, args=args.Composite(about=args.JsonRestore())).about
            run, digest, version = about["run"], about["digest"], about["format"]
        except Exception as error:
            raise errors.CheckpointError(f"the checkpoint {where} cannot be read: {_first_line(error)}") from error
        if version != _FORMAT:
            raise errors.CheckpointError(
                f"the checkpoint {where} has format {version}, and this version of ppl reads {_FORMAT}"
            )
        differing = [name for name in sorted({*run, *self.run}) if run.get(name) != self.run.get(name)]
        if differing:
            lines = [f"  {name}: {_short(run.get(name))} there, {_short(self.run.get(name))} here" for name in differing]
            raise errors.CheckpointError(
                f"the checkpoint {where} is of another run:\n" + "\n".join(lines) + "\nGive this run a directory of its own."
            )
        try:
            stored = self._manager.restore(step, args=args.Composite(state=args.StandardRestore())).state
        except Exception as error:
            raise errors.CheckpointError(f"the checkpoint {where} is damaged: {_first_line(error)}") from error
        leaves, structure = jax.tree.flatten_with_path(like)
        found = {f"{i}": stored.get(f"{i}") for i in range(len(leaves))}
        arrays = {
            name: np.zeros(np.shape(leaf), np.asarray(_data(leaf)).dtype) if array is None else np.asarray(array)
            for (name, array), (_, leaf) in zip(found.items(), leaves, strict=True)
        }
        if _digest(arrays) != digest:
            raise errors.CheckpointError(f"the checkpoint {where} is damaged: its arrays are not those that were written")
        restored = [_restore(array, leaf) for array, (_, leaf) in zip(arrays.values(), leaves, strict=True)]
        return jax.tree.unflatten(structure, restored)

    def _advice(self, step: int, like: Any) -> str:
        for earlier in sorted((s for s in self._manager.all_steps() if s != step), reverse=True):
            try:
                self._read(earlier, like)
            except errors.CheckpointError:
                continue
            return f"The one of step {earlier} is whole. To go on from there, remove {self.path / str(step)}."
        return "Nothing was written."


def _ours(path: Path) -> bool:
    return path.is_dir() and (path.name.isdigit() or ".orbax-checkpoint-tmp" in path.name)


def _data(leaf: Any) -> Any:
    """An array of numbers, also of a typed key."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _restore(array: np.ndarray, like: Any) -> Any:
    if isinstance(like, jax.Array) and jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
    return jnp.asarray(array) if isinstance(like, jax.Array) else array


def _arrays(state: Any) -> dict[str, np.ndarray]:
    return {f"{i}": np.asarray(_data(leaf)) for i, leaf in enumerate(jax.tree.leaves(state))}


def _digest(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def shapes(tree: Any) -> dict[str, str]:
    """Names of a pytree's leaves with dtype and shape, as a part of what a run is."""
    return {
        jax.tree_util.keystr(path): f"{jnp.result_type(leaf)}{list(np.shape(leaf))}"
        if hasattr(leaf, "dtype") or isinstance(leaf, int | float)
        else type(leaf).__name__
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
