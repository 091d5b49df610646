"""A pytree as plain data, JSON and arrays, and back: without code in the file, and none run to read it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import errors

Arrays = list[np.ndarray]

_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def encode(tree: Any, arrays: Arrays) -> Any:
    """JSON for a tree; its arrays are put at the end of `arrays`.

    Dicts, lists, tuples, numbers, strings and None are plain and come back by themselves. Anything else that JAX takes for a
    node is its class's name and its leaves: it takes a template to come back. A leaf that is no data (a function in a network)
    is not stored.
    """
    if tree is None or isinstance(tree, bool | int | str):
        return {"value": tree}
    if isinstance(tree, float):
        return {"value": tree if math.isfinite(tree) else str(tree), "float": True}
    if type(tree) is dict:
        return {"dict": [[encode(key, arrays), encode(value, arrays)] for key, value in tree.items()]}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [encode(item, arrays) for item in tree]}
    if isinstance(tree, jax.Array | np.ndarray | np.generic):
        return _encode_array(tree, arrays)
    leaves = jax.tree.leaves(tree)
    if len(leaves) == 1 and leaves[0] is tree:
        return {"not stored": type(tree).__qualname__}
    return {"class": type(tree).__qualname__, "leaves": [encode(leaf, arrays) for leaf in leaves]}


def _encode_array(array: Any, arrays: Arrays) -> Any:
    found: dict[str, Any] = {"array": len(arrays), "jax": isinstance(array, jax.Array)}
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        found["key"] = str(jax.random.key_impl(array))
        array = jax.random.key_data(array)
    array = np.asarray(array)
    if array.dtype.hasobject:
        raise errors.SavedFileError(f"an array of Python objects, {array.dtype}, is no plain data: it cannot be saved.")
    if array.dtype.kind not in "biufcSU":  # bfloat16 and other types that NumPy does not know
        found["dtype"] = array.dtype.name
        array = array.view(_BITS[array.dtype.itemsize])
    arrays.append(array)
    return found


def decode(data: Any, arrays: Arrays, like: Any, path: str) -> Any:
    """The tree, with the structure of `like` where it is not plain. Raises `SavedFileError` where the two disagree."""
    if "value" in data:
        return float(data["value"]) if data.get("float") else data["value"]
    if "array" in data:
        return _decode_array(data, arrays, like, path)
    if "dict" in data:
        return _decode_dict(data["dict"], arrays, like, path)
    for kind in (list, tuple):
        if kind.__name__ in data:
            items = data[kind.__name__]
            if like is not None and (type(like) is not kind or len(like) != len(items)):
                raise _different(path, f"a {kind.__name__} of {len(items)}", like)
            templates = [None] * len(items) if like is None else like
            return kind(decode(x, arrays, t, f"{path}[{i}]") for i, (x, t) in enumerate(zip(items, templates, strict=True)))
    if like is None:
        what = data.get("class") or data["not stored"]
        raise errors.SavedFileError(
            f"{path} is a {what!r}, whose structure a file cannot hold. Give a template of it, ppl.load(path, like=...): "
            "parameters or a fit with the same structure, such as a network that has just been made."
        )
    if "not stored" in data:
        return like
    leaves, structure = jax.tree.flatten(like)
    saved = data["leaves"]
    if type(like).__qualname__ != data["class"] or len(leaves) != len(saved):
        raise _different(path, f"a {data['class']!r} with {len(saved)} leaves", like)
    return jax.tree.unflatten(
        structure, [decode(x, arrays, t, f"{path}.leaves[{i}]") for i, (x, t) in enumerate(zip(saved, leaves, strict=True))]
    )


def _decode_dict(items: list[Any], arrays: Arrays, like: Any, path: str) -> dict[Any, Any]:
    keys = [decode(key, arrays, None, path) for key, _ in items]
    if like is not None and (type(like) is not dict or set(like) != set(keys)):
        raise _different(path, f"a dict with the keys {keys}", like)
    return {
        key: decode(value, arrays, None if like is None else like[key], f"{path}[{key!r}]")
        for key, (_, value) in zip(keys, items, strict=True)
    }


def _decode_array(data: Any, arrays: Arrays, like: Any, path: str) -> Any:
    array: Any = arrays[data["array"]]
    if "dtype" in data:
        array = array.view(jnp.dtype(data["dtype"]))
    if "key" in data:
        return jax.random.wrap_key_data(jnp.asarray(array), impl=data["key"])
    if like is not None and hasattr(like, "shape") and tuple(like.shape) != array.shape:
        raise _different(path, f"an array of shape {list(array.shape)}", like)
    if not data["jax"]:
        return array[()] if array.ndim == 0 else array
    if jnp.asarray(array[:0] if array.ndim else array).dtype != array.dtype:
        raise errors.SavedFileError(
            f"{path} is {array.dtype.name}, which JAX would round. Allow it first: jax.config.update('jax_enable_x64', True)."
        )
    return jnp.asarray(array)


def _different(path: str, saved: str, like: Any) -> errors.SavedFileError:
    outline = jax.tree.map(lambda leaf: f"{jnp.shape(leaf)}" if hasattr(leaf, "shape") else repr(leaf), like)
    return errors.SavedFileError(f"the file and the template differ at {path}: the file has {saved}, the template {outline}.")


__all__ = ["decode", "encode"]
