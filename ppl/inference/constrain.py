"""Parameters with constraints, optimized in an unconstrained space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to
from numpyro.distributions.constraints import Constraint

from ppl import errors
from ppl.site import describe_support


class Constraints:
    """A constraint, or None, for each trainable array: NumPyro's bijections lead from all real numbers to what users see."""

    def __init__(self, constraints: Any, arrays: Any):
        self.by_leaf = (
            tuple(jax.tree.leaves(_spread(constraints, arrays, ""), is_leaf=_is_leaf)) if constraints is not None else ()
        )
        self._key = tuple(
            (jax.tree.structure(c), tuple(np.asarray(x).tobytes() for x in jax.tree.leaves(c))) for c in self.by_leaf
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constraints) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return f"[{', '.join('-' if c is None else describe_support(c) for c in self.by_leaf)}]"

    def constrain(self, unconstrained: Any) -> Any:
        """What users see."""
        return self._map(lambda constraint, x: biject_to(constraint)(x).astype(x.dtype), unconstrained)

    def unconstrain(self, arrays: Any) -> Any:
        """Where it is optimized; refused where a value lies outside of its constraint, or on its boundary."""
        names = iter([jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(arrays)])

        def inverse(constraint: Any, x: Any, name: str) -> Any:
            if jnp.ndim(x) < constraint.event_dim:
                raise errors.ConstraintError(
                    f"params{name} has {jnp.ndim(x)} dimensions; {describe_support(constraint)} needs {constraint.event_dim}"
                )
            start = biject_to(constraint).inv(x).astype(x.dtype)
            if not np.all(constraint(x)) or not np.all(np.isfinite(np.asarray(start, float))):
                raise errors.ConstraintError(
                    f"params{name} starts at {np.asarray(x)}, which is not inside of {describe_support(constraint)}."
                )
            return start

        if not self.by_leaf:
            return arrays
        return self._map(lambda c, x, name: inverse(c, x, name), arrays, names)

    def _map(self, function: Any, arrays: Any, names: Any = None) -> Any:
        if not self.by_leaf:
            return arrays
        leaves, structure = jax.tree.flatten(arrays)
        named = [()] * len(leaves) if names is None else [(name,) for name in names]
        new = [x if c is None else function(c, x, *name) for c, x, name in zip(self.by_leaf, leaves, named, strict=True)]
        return jax.tree.unflatten(structure, new)


def _is_leaf(node: Any) -> bool:
    return node is None or isinstance(node, Constraint)


def _spread(constraints: Any, arrays: Any, name: str) -> list[Any]:
    """One constraint or None for each array, in the order of the leaves."""
    if _is_leaf(constraints):
        return [constraints] * len(jax.tree.leaves(arrays))
    if isinstance(constraints, Mapping):
        if not isinstance(arrays, dict):
            raise errors.ConstraintError(f"constraints are given by name for params{name}, which is no dict")
        unknown = [k for k in constraints if k not in arrays]
        if unknown:
            raise errors.ConstraintError(f"there is a constraint for params{name}[{unknown[0]!r}], and no such parameter")
        inner = {k: _Spread(_spread(constraints.get(k), arrays[k], f"{name}[{k!r}]")) for k in arrays}
        return [c for spread in jax.tree.leaves(inner) for c in spread.constraints]
    try:
        spread = jax.tree.map(lambda c, a: _Spread(_spread(c, a, name)), constraints, arrays, is_leaf=_is_leaf)
    except ValueError as error:
        raise errors.ConstraintError(
            f"the constraints of params{name} do not have the structure of the parameters: {error}"
        ) from None
    return [c for leaf in jax.tree.leaves(spread) for c in leaf.constraints]


class _Spread:
    """Opaque to pytrees."""

    def __init__(self, constraints: list[Any]):
        self.constraints = constraints
