"""Fits in files: arrays and JSON in a zip archive, NumPy's `.npz`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ppl import errors
from ppl.inference.structure import decode, encode

FORMAT = "ppl fit"
VERSION = 1
HEADER = "header"
NOT_SAVED = ("model", "family", "state")  # to go on from a state, there are checkpoints


def save(fit: Any, path: str | os.PathLike[str]) -> None:
    """See `Fit.save`."""
    path = Path(path)
    if path.suffix == ".vi":
        raise errors.SavedFileError(
            f"{path} is the name of a program's text. Name a fit otherwise, for example {path.stem}.npz."
        )
    arrays: list[np.ndarray] = []
    names = [field.name for field in dataclasses.fields(fit) if field.name not in NOT_SAVED]
    header = {
        "format": FORMAT,
        "version": VERSION,
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
        "fields": {name: encode(getattr(fit, name), arrays) for name in names},
        "arrays": len(arrays),
    }
    entries = {f"array{i}": array for i, array in enumerate(arrays)}
    # A reader sees the old file or the new one, whatever happens in between.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".unfinished")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **{HEADER: np.array(json.dumps(header))}, **entries)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read(path: str | os.PathLike[str], like: Any, fit_class: Any) -> dict[str, Any]:
    """The fields of a saved fit. `like` is a fit, or parameters."""
    header, arrays = _read(Path(path))
    known = {field.name: field for field in dataclasses.fields(fit_class)}
    found = {}
    for name, data in header["fields"].items():
        if name not in known:
            continue
        template = getattr(like, name) if isinstance(like, fit_class) else (like if name == "params" else None)
        if template is None and name != "params" and not _plain(data):
            continue  # the state of an optimizer whose structure nobody knows
        try:
            found[name] = decode(data, arrays, template, name)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise errors.SavedFileError(f"{path} is damaged: {name} cannot be read ({error}).") from error
    return found


def _plain(data: Any) -> bool:
    if "class" in data or "not stored" in data:
        return False
    inner = [value for pair in data.get("dict", []) for value in pair] + data.get("list", []) + data.get("tuple", [])
    return all(map(_plain, inner))


def _read(path: Path) -> tuple[Any, list[np.ndarray]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            if not hasattr(archive, "files") or HEADER not in archive.files:
                raise errors.SavedFileError(f"{path} is no saved fit: it was not written by fit.save.")
            header = json.loads(str(archive[HEADER]))
            if not isinstance(header, dict) or header.get("format") != FORMAT:
                raise errors.SavedFileError(f"{path} is no saved fit: it was not written by fit.save.")
            if header.get("version") != VERSION:
                raise errors.SavedFileError(
                    f"{path} has version {header.get('version')} of the format, and this ppl reads version {VERSION}: use the "
                    "ppl that wrote it, or a newer one."
                )
            return header, [archive[f"array{i}"] for i in range(header["arrays"])]
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError, ValueError, NotImplementedError) as error:
        with path.open("rb") as file:
            began = file.read(2) == b"PK"
        what = "is damaged or was cut short" if began else "is no saved fit: it was not written by fit.save"
        raise errors.SavedFileError(f"{path} {what} ({error}).") from error


__all__ = ["read", "save"]
