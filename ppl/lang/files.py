"""Data from files: JSON, CSV and NumPy archives, as arrays by name."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from ppl.errors import DataError

SUFFIXES = (".json", ".csv", ".npz")


def read_data(path: str | os.PathLike[str], names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays by name from a file: an object of numbers and lists, a table with a header, or what `numpy.savez` wrote.

    The object of a JSON file may stand under `data`, beside other entries that say where it is from.

    Args:
        path: of the file.
        names: what to read, as far as it is there; everything if None. Other names may hold what is no number.

    Raises:
        DataError: the file cannot be read, or holds something else.

    Example:
        >>> import pathlib, tempfile
        >>> from ppl.lang.files import read_data
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder) / "data.csv"
        ...     _ = path.write_text("dose,deaths\\n1.5,0\\n2.5,3\\n")
        ...     read_data(path)
        {'dose': array([1.5, 2.5]), 'deaths': array([0, 3])}
    """
    path = Path(path)
    readers = {".json": _json, ".csv": _csv, ".npz": _npz}
    if path.suffix not in readers:
        raise DataError(f"{path}: data are read from {', '.join(SUFFIXES)} files")
    try:
        return readers[path.suffix](path, names)
    except DataError:
        raise
    except (OSError, ValueError, UnicodeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"cannot read the data {path}: {reason}") from error


def _json(path: Path, names: Collection[str] | None) -> dict[str, np.ndarray]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise DataError(f'{path}: data are an object like {{"y": [1, 2]}}, got a {type(content).__name__}')
    if isinstance(content.get("data"), dict):
        content = content["data"]
    if names is None:
        content = {name: value for name, value in content.items() if not isinstance(value, str)}
    return {name: _array(path, name, value) for name, value in content.items() if names is None or name in names}


def _array(path: Path, name: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:
        raise DataError(f"{path}: {name!r} is a list of lists of different lengths") from None
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: {name!r} holds something that is no number")
    return array


def _csv(path: Path, names: Collection[str] | None) -> dict[str, np.ndarray]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if row]
    if len(rows) < 2:
        raise DataError(f"{path}: a table has a line of names and at least one of numbers")
    head = [name.strip() for name in rows[0]]
    if len(set(head)) < len(head):
        raise DataError(f"{path}: a column's name occurs twice: {', '.join(head)}")
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(head):
            raise DataError(f"{path}, line {number}: {len(row)} cells under {len(head)} names")
    columns = zip(*rows[1:], strict=True)
    named = zip(head, columns, strict=True)
    return {name: _column(path, name, cells) for name, cells in named if names is None or name in names}


def _column(path: Path, name: str, cells: tuple[str, ...]) -> np.ndarray:
    """Whole numbers where all are, otherwise floating-point ones."""
    try:
        return np.array([int(cell) for cell in cells])
    except ValueError:
        pass
    for number, cell in enumerate(cells, 2):
        try:
            float(cell)
        except ValueError:
            raise DataError(f"{path}, line {number}: {cell!r} under {name!r} is no number") from None
    return np.array([float(cell) for cell in cells])


def _npz(path: Path, names: Collection[str] | None) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files if names is None or name in names}
