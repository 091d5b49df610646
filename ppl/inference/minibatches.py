"""Minibatches: of arrays in memory, shuffled inside of the compiled loop, or streamed from an iterable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import errors

_BYTES = 2**26
"""Batches of about this size are stacked for one compiled call."""


class Minibatches:
    """Minibatches of arrays in memory, for `maximize` and `minimize`: the objective is given one in place of this argument.

    In each epoch all rows come in a new random order, `len(rows) // size` batches of them; rows that are left over have
    the same chance as all others to come in the next epoch. The order is drawn inside of the compiled loop from the run's
    key. A batch stands for the population where the model says so: `ppl.plate("data", f, size=60_000)(batch)`.

    Args:
        arrays: a pytree of arrays with a common leading axis.
        size: rows of a batch.

    Raises:
        DataError: the arrays' leading axes differ, or are shorter than a batch.

    Example:
        >>> import jax, jax.numpy as jnp, optax, ppl
        >>> data = jnp.arange(10.0)
        >>> objective = ppl.expectation(lambda mean, batch: jnp.mean((batch - mean) ** 2))
        >>> fit = ppl.minimize(objective, 0.0, jax.random.key(0), ppl.Minibatches(data, 5),
        ...                    optimizer=optax.sgd(0.1), steps=200, average=True, progress=False)
        >>> bool(abs(fit.params - 4.5) < 0.1)
        True
    """

    def __init__(self, arrays: Any, size: int):
        shapes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(arrays)}
        if len(shapes) != 1 or shapes == {()}:
            raise errors.DataError(
                f"minibatches are rows of arrays with one leading axis; the leading axes are {sorted(shapes)}"
            )
        self.rows = shapes.pop()[0]
        if not 1 <= size <= self.rows:
            raise errors.DataError(f"a batch of {size} rows does not fit {self.rows} rows")
        self.arrays, self.size = arrays, size

    def __repr__(self) -> str:
        return f"Minibatches of {self.size} of {self.rows} rows"

    def start(self) -> Any:
        """The position of the first batch."""
        return {"epoch": np.int32(0), "index": np.int32(0), "order": np.arange(self.rows, dtype=np.int32)}


@dataclasses.dataclass(frozen=True)
class Shuffle:
    """The static part of `Minibatches`: which rows come next."""

    rows: int
    size: int

    def next(self, position: Any, arrays: Any, key: Any) -> tuple[Any, Any]:
        """A batch, and the position of the next."""
        epoch, index = position["epoch"], position["index"]
        order = jax.lax.cond(
            index == 0,
            lambda order: jax.random.permutation(jax.random.fold_in(key, epoch), self.rows).astype(order.dtype),
            lambda order: order,
            position["order"],
        )
        rows = jax.lax.dynamic_slice(order, (index * self.size,), (self.size,))
        batch = jax.tree.map(lambda array: array[rows], arrays)
        last = index + 1 == self.rows // self.size
        after = {"epoch": epoch + last, "index": jnp.where(last, 0, index + 1).astype(index.dtype), "order": order}
        return batch, after


class Stream:
    """Minibatches from an iterable, which need not fit into memory: the objective is given one in place of this argument.

    A batch is a pytree of arrays (or what NumPy makes arrays of), all of the same shapes. About 64 MB of them are held at
    a time. When the iterable ends, it is begun again. A run that is resumed begins at the batch where it was: a sequence is
    indexed there, and other iterables are begun at their current pass and skipped up to there, so each pass must give the
    same batches whenever it is made.

    Args:
        batches: a sequence of batches (`len` and `[i]`, such as a memory map of shape `(batches, rows, ...)`); or any other
            object that can be iterated again and again; or a function from the number of the pass to an iterable, which may
            shuffle each pass in its own way. A generator can be gone through once, and not be resumed.

    Raises:
        DataError: it ends for good, or is empty, or a batch has another shape than the first.

    Example:
        >>> import jax, numpy as np, optax, ppl
        >>> def batches(epoch):
        ...     rng = np.random.default_rng(epoch)
        ...     for _ in range(100):
        ...         yield rng.normal(3.0, 1.0, 20)
        >>> objective = ppl.expectation(lambda mean, batch: ((batch - mean) ** 2).mean())
        >>> fit = ppl.minimize(objective, 0.0, jax.random.key(0), ppl.Stream(batches),
        ...                    optimizer=optax.sgd(0.1), steps=200, average=True, progress=False)
        >>> bool(abs(fit.params - 3.0) < 0.1)
        True
    """

    def __init__(self, batches: Iterable[Any] | Sequence[Any] | Callable[[int], Iterable[Any]]):
        if isinstance(batches, dict | str) or not (callable(batches) or hasattr(batches, "__iter__") or _indexed(batches)):
            raise errors.DataError(
                "a stream is an iterable of batches, or a function from the number of a pass to one; "
                f"got a {type(batches).__name__}"
            )
        self.batches = batches
        self.once = not callable(batches) and not _indexed(batches) and iter(batches) is batches

    def __repr__(self) -> str:
        return "Stream"

    def start(self) -> Any:
        """The position of the first batch."""
        return {"epoch": np.int32(0), "index": np.int32(0)}

    def read(self, position: Any) -> Iterator[tuple[Any, Any]]:
        """Batches from a position on, each with the position of the next; ends only where the data do."""
        epoch, index = int(position["epoch"]), int(position["index"])
        if self.once and (epoch or index):
            raise errors.DataError(
                f"the stream is a generator, and the run goes on from its batch {index}: generators cannot be begun again. "
                "Give a function that makes it."
            )
        while True:
            found = self.batches(epoch) if callable(self.batches) else self.batches
            seen = 0
            if _indexed(found):
                for seen in range(index + 1, len(found) + 1):  # type: ignore[arg-type]
                    yield found[seen - 1], _position(epoch, seen)  # type: ignore[index]
                seen = len(found)  # type: ignore[arg-type]
            else:
                for seen, batch in enumerate(found, 1):
                    if seen > index:
                        yield batch, _position(epoch, seen)
            if self.once:
                return
            if not seen or seen < index:
                raise errors.DataError(
                    f"pass {epoch} of the stream has {seen} batches" + (f", and the run was at batch {index}" if index else "")
                )
            epoch, index = epoch + 1, 0


def _position(epoch: int, index: int) -> Any:
    return {"epoch": np.int32(epoch), "index": np.int32(index)}


def _indexed(batches: Any) -> bool:
    return hasattr(batches, "__len__") and hasattr(batches, "__getitem__")


class Reader:
    """Batches of a stream, stacked for compiled calls."""

    def __init__(self, stream: Stream, position: Any):
        self.stream = stream
        self.seek(position)
        self.first = self._next()
        self.ahead.append((self.first, self.position_after))

    def seek(self, position: Any) -> None:
        """Go on from another position."""
        self.position = position
        self.batches = self.stream.read(position)
        self.ahead: list[tuple[Any, Any]] = []
        self.failed: Exception | None = None

    @property
    def most(self) -> int:
        """How many batches are stacked at most."""
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(self.first))
        return max(1, _BYTES // max(1, size))

    def _next(self) -> Any:
        try:
            batch, self.position_after = next(self.batches)
        except StopIteration:
            raise errors.DataError(
                f"the stream is a generator that has ended after {int(self.position['index'])} batches, and the run needs "
                "more. Give a function that makes it, or another iterable that can be begun again."
            ) from None
        return jax.tree.map(_array, batch)

    def take(self, count: int, size: int) -> tuple[Any, list[Any]]:
        """The next `count` batches, in arrays of `size` of them, and the position after each; fewer where an error is next."""
        buffers = jax.tree.map(lambda leaf: np.zeros((size, *leaf.shape), leaf.dtype), self.first)
        positions: list[Any] = []
        while len(positions) < count and self.failed is None:
            try:
                batch, after = self.ahead.pop() if self.ahead else (self._next(), self.position_after)
                self._check(batch, after)
            except Exception as error:
                self.failed = error
                break
            jax.tree.map(lambda buffer, leaf: buffer.__setitem__(len(positions), leaf), buffers, batch)
            self.position = after
            positions.append(after)
        if self.failed is not None and not positions:
            raise self.failed
        return buffers, positions

    def _check(self, batch: Any, after: Any) -> None:
        one, first = ((jax.tree.structure(b), [(x.shape, x.dtype) for x in jax.tree.leaves(b)]) for b in (batch, self.first))
        if one != first:
            raise errors.DataError(
                f"batch {int(after['index']) - 1} of pass {int(after['epoch'])} is {_show(batch)}, and the first one was "
                f"{_show(self.first)}. Leave out a last, shorter batch."
            )


def _array(leaf: Any) -> np.ndarray:
    array = np.asarray(leaf)
    if array.dtype == object:
        raise errors.DataError(f"a batch holds a {type(leaf).__name__}, which is no array")
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def _show(batch: Any) -> str:
    return ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(batch)) or "empty"


__all__ = ["Minibatches", "Reader", "Shuffle", "Stream"]
