"""The leaves of a pytree that can be trained, and the rest."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def trainable(leaf: Any) -> bool:
    """Floating-point arrays and numbers."""
    if isinstance(leaf, float):
        return True
    return isinstance(leaf, jax.Array | np.ndarray | np.generic) and jnp.issubdtype(leaf.dtype, jnp.floating)


def partition(tree: Any) -> tuple[Any, Any]:
    """Two trees of the same structure, with None where the other has the leaf."""
    return (
        jax.tree.map(lambda leaf: leaf if trainable(leaf) else None, tree),
        jax.tree.map(lambda leaf: None if trainable(leaf) else leaf, tree),
    )


def combine(arrays: Any, rest: Any) -> Any:
    """The tree that `partition` took apart."""
    return jax.tree.map(lambda a, b: b if a is None else a, arrays, rest, is_leaf=lambda leaf: leaf is None)
