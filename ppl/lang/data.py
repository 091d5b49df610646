"""Data against their declarations: sizes that are named in types are found in the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ppl import errors
from ppl.lang import tree
from ppl.lang.builtins import TYPES
from ppl.lang.diagnostics import Diagnostic, at, did_you_mean, fail
from ppl.lang.distributions import shape_of
from ppl.lang.environment import Environment
from ppl.lang.evaluate import size


def bind_data(units: Sequence[Any], given: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, Any]]:
    """Sizes by name, and the data as arrays."""
    declared = [(d, u.source) for u in units if isinstance(u.item, tree.Data) for d in u.item.declarations]
    names = [d.name for d, _ in declared]
    for name in given:
        if name not in names:
            raise errors.DataError(f"the file declares no data {name!r}. {did_you_mean(name, names)}".rstrip())
    sizes: dict[str, int] = {}
    data: dict[str, Any] = {}
    wrong: list[Diagnostic] = []
    for declaration, _ in declared:  # sizes that are data themselves
        kind = declaration.type
        if declaration.name in given and kind.name == "int" and not kind.dimensions:
            value = np.asarray(given[declaration.name])
            if value.shape == () and value == np.round(value):
                sizes[declaration.name] = data[declaration.name] = int(value)
    for declaration, source in declared:
        if declaration.name not in given or declaration.name in data:
            continue
        try:
            data[declaration.name] = _value(declaration, given[declaration.name], sizes, source)
        except _DataMistakeError as error:
            wrong.append(at(source, declaration.span, str(error)))
        except errors.LanguageError as error:
            wrong.extend(error.diagnostics)
    if wrong:
        raise fail(wrong)
    return sizes, data


class _DataMistakeError(Exception):
    pass


def _value(declaration: tree.Declaration, given: Any, sizes: dict[str, int], source: Any) -> Any:
    kind = declaration.type
    name, dtype = declaration.name, TYPES[kind.name].dtype
    value = given if hasattr(given, "dtype") and hasattr(given, "shape") else np.asarray(given)
    if value.dtype == object or (value.dtype.kind not in "biuf" and not jnp.issubdtype(value.dtype, jnp.floating)):
        raise _DataMistakeError(f"the data {name!r} are no numbers")
    dimensions = kind.dimensions
    written = [*dimensions, dimensions[-1]] if TYPES[kind.name].square and dimensions else list(dimensions)
    if value.ndim != len(written):
        raise _DataMistakeError(
            f"{name!r} is declared with {len(written)} dimension{'s' * (len(written) != 1)} and given with the shape "
            f"{list(value.shape)}"
        )
    for node, length in zip(written, value.shape, strict=True):
        if isinstance(node, tree.Name) and node.id not in sizes:
            sizes[node.id] = int(length)
    expected = shape_of(kind.name, tuple(size(node, Environment(source, dict(sizes))) for node in dimensions))
    if tuple(value.shape) != expected:
        raise _DataMistakeError(f"{name!r} is declared with the shape {list(expected)} and given with {list(value.shape)}")
    if dtype == "float":
        return value.astype(jnp.result_type(float))
    whole = np.asarray(value)
    if whole.dtype.kind == "f" and not np.array_equal(whole, np.round(whole)):
        raise _DataMistakeError(f"{name!r} is declared as {kind.name} and holds numbers with fractions")
    return value.astype(bool if dtype == "bool" else jnp.result_type(int))
