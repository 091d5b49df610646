"""Moments of an objective's value and derivatives over many independent draws, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl import errors
from ppl.transforms.partition import combine, partition

BATCH = 1024
"""Draws that are computed together."""


class Arguments:
    """The arguments of an objective: the parameters as one vector, other arrays, and everything else.

    Attributes:
        vector: the floating-point leaves of `args[argnums]`, one after the other.
        names: what each element of it is called.
        leaves: the name and the size of each leaf.
        arrays: the other array leaves of all arguments, to be passed to compiled functions.
    """

    def __init__(self, args: tuple[Any, ...], argnums: int | Sequence[int]):
        numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
        if any(not -len(args) <= n < len(args) for n in numbers):
            raise errors.ObjectiveError(f"argnums={argnums} does not fit {len(args)} arguments")
        numbers = tuple(n % len(args) for n in numbers)
        split = [partition(arg) if n in numbers else (None, arg) for n, arg in enumerate(args)]
        self._numbers = numbers
        trainable = {n: split[n][0] for n in numbers}
        paths, self._tree = jax.tree_util.tree_flatten_with_path(trainable)
        if not paths:
            raise errors.ObjectiveError(f"args[{argnums}] holds no floating-point array to differentiate in")
        self._shapes = [(jnp.shape(leaf), jnp.result_type(leaf)) for _, leaf in paths]
        self.leaves = [("args" + jax.tree_util.keystr(path), math.prod(jnp.shape(leaf))) for path, leaf in paths]
        self.names = [
            name + ("[" + ", ".join(map(str, index)) + "]" if index else "")
            for (name, _), (shape, _) in zip(self.leaves, self._shapes, strict=True)
            for index in np.ndindex(*shape)
        ]
        self.vector = jnp.concatenate([jnp.ravel(jnp.asarray(leaf)) for _, leaf in paths])
        rest, self._rest_tree = jax.tree.flatten([fixed for _, fixed in split])
        self.arrays = [leaf if isinstance(leaf, jax.Array | np.ndarray) else None for leaf in rest]
        self._static = [None if isinstance(leaf, jax.Array | np.ndarray) else leaf for leaf in rest]

    def join(self, vector: Any, arrays: Sequence[Any]) -> list[Any]:
        """The arguments with other numbers in them."""
        parts, start = [], 0
        for shape, dtype in self._shapes:
            size = math.prod(shape)
            parts.append(jnp.reshape(vector[start : start + size], shape).astype(dtype))
            start += size
        trainable = jax.tree.unflatten(self._tree, parts)
        rest = [s if a is None else a for a, s in zip(arrays, self._static, strict=True)]
        args = jax.tree.unflatten(self._rest_tree, rest)
        for n in self._numbers:
            args[n] = combine(trainable[n], args[n])
        return args

    def flatten(self, grads: Any, argnums: int | Sequence[int]) -> np.ndarray:
        """A gradient in the structure of `args[argnums]` as a vector like `vector`."""
        by_number = (grads,) if isinstance(argnums, int) else tuple(grads)
        leaves = jax.tree.leaves(dict(zip(self._numbers, by_number, strict=True)))
        shapes = [shape for shape, _ in self._shapes]
        if [jnp.shape(leaf) for leaf in leaves] != shapes:
            raise errors.ValueShapeError(
                f"the exact gradient has leaves of shapes {[jnp.shape(leaf) for leaf in leaves]}, the parameters {shapes}"
            )
        return np.concatenate([np.ravel(np.asarray(leaf, float)) for leaf in leaves])

    def derivatives(self, function: Callable[..., Any], vector: Any, arrays: Any, order: int) -> Any:
        """The value of `function(*args)`, its gradient and, at order 2, the upper triangle of its Hessian, as one vector."""

        def of_vector(vector: Any) -> Any:
            return function(*self.join(vector, arrays))

        value, grad = jax.value_and_grad(of_vector)(vector)
        parts = [jnp.reshape(value, 1), grad]
        if order == 2:
            hessian = jax.hessian(of_vector)(vector)
            parts.append(hessian[jnp.triu_indices(len(vector))])
        return jnp.concatenate(parts)

    def labels(self, order: int) -> list[str]:
        """What the elements of `derivatives` are called."""
        first = ["value", *(f"d/d {name}" for name in self.names)]
        rows, columns = np.triu_indices(len(self.names)) if order == 2 else ((), ())
        return first + [f"d2/d {self.names[i]} d {self.names[j]}" for i, j in zip(rows, columns, strict=True)]


class Moments(NamedTuple):
    """Of independent draws of a vector. `second` and `third` are sums of powers of the deviations from the mean."""

    draws: int
    mean: np.ndarray
    second: np.ndarray
    third: np.ndarray

    @property
    def variance(self) -> np.ndarray:
        return self.second / (self.draws - 1)

    @property
    def standard_error(self) -> np.ndarray:
        return np.sqrt(self.variance / self.draws)

    @property
    def skewness(self) -> np.ndarray:
        spread = (self.second / self.draws) ** 1.5
        return np.divide(self.third / self.draws, spread, out=np.zeros_like(spread), where=spread > 0)

    def merge(self, other: Moments) -> Moments:
        """Of both sets of draws (Chan et al. 1979; Pébay 2008)."""
        n, m = self.draws, other.draws
        total, gap = n + m, other.mean - self.mean
        return Moments(
            total,
            self.mean + gap * m / total,
            self.second + other.second + gap**2 * n * m / total,
            self.third
            + other.third
            + gap**3 * n * m * (n - m) / total**2
            + 3.0 * gap * (n * other.second - m * self.second) / total,
        )


def moments(function: Callable[..., Any], key: Any, draws: int, *inputs: Any, batch: int = BATCH) -> Moments:
    """Moments of `function(key, *inputs)`, a vector, over independent keys. Sums are of double precision."""
    batch = min(batch, draws)

    @jax.jit
    def run(keys: Any, present: Any, inputs: Any) -> Any:
        values = jax.vmap(lambda key: function(key, *inputs))(keys)
        weights = present[:, None].astype(values.dtype)
        mean = jnp.sum(weights * values, axis=0) / jnp.sum(weights)
        deviations = weights * (values - mean)
        return mean, jnp.sum(deviations**2, axis=0), jnp.sum(deviations**3, axis=0)

    found: Moments | None = None
    for index, start in enumerate(range(0, draws, batch)):
        count = min(batch, draws - start)
        keys = jax.random.split(jax.random.fold_in(key, index), batch)
        parts = run(keys, np.arange(batch) < count, inputs)
        part = Moments(count, *(np.asarray(array, float) for array in parts))
        found = part if found is None else found.merge(part)
    assert found is not None
    return found
