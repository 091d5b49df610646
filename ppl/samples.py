"""`Samples`: how many independent repetitions, how many of them at a time, and on which devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ppl import errors


@dataclasses.dataclass(frozen=True)
class Samples:
    """A number of independent repetitions that are evaluated in chunks, or spread over devices.

    It stands wherever a number of `samples` or `particles` does: `objective.value_and_grad(key, phi, samples=Samples(1000))`,
    `ppl.objectives.iwae(model, family, particles=Samples(100_000, chunk=1000))`.

    Attributes:
        number: of repetitions.
        chunk: how many are in memory at a time; it divides `number`. Chunks run one after the other and are computed again for
            the gradient, so that memory is that of one chunk, at about a third more time. All at once if None. Chunks draw
            from keys of their own: estimates differ from those of another chunk size, and are as good. Leave-one-out
            baselines compare the repetitions of one chunk.
        sharding: a `jax.sharding.Sharding` of one axis, along which those of a chunk are spread over devices.

    Raises:
        ObjectiveError: the number is below 1, or the chunk does not divide it.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.expectation
        ... def objective(mean):
        ...     return ppl.sample("x", dist.Normal(mean, 1.0)) ** 2
        >>> value = objective.estimate(jax.random.key(0), 1.0, samples=ppl.Samples(100_000, chunk=10_000))
        >>> print(f"{value:.1f}")
        2.0
    """

    number: int
    chunk: int | None = None
    sharding: Any = None

    def __post_init__(self) -> None:
        if self.number < 1:
            raise errors.ObjectiveError(f"samples must be at least 1, got {self.number}")
        if self.chunk is not None and (self.chunk < 1 or self.number % self.chunk):
            raise errors.ObjectiveError(
                f"a chunk of {self.chunk} does not divide {self.number} samples. Choose one that does, for example "
                f"{_divisor(self.number, self.chunk)}."
            )

    def place(self, tree: Any) -> Any:
        """Arrays with an axis of repetitions in front, on the devices where they belong."""
        if self.sharding is None:
            return tree
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, self.sharding), tree)

    def chunks(self, key: Any) -> list[tuple[Any, int]]:
        """The key of each chunk, and how many repetitions it has."""
        if self.chunk is None:
            return [(key, self.number)]
        return [(chunk_key, self.chunk) for chunk_key in jax.random.split(key, self.number // self.chunk)]

    def map(self, function: Callable[[], Any]) -> Any:
        """The results of so many calls of a function that draws samples, stacked."""
        count = self.chunk or self.number

        def together() -> Any:
            return self.place(jax.vmap(lambda _: function())(jnp.arange(count)))

        if self.chunk is None:
            return together()
        steps = self.number // self.chunk
        _, found = jax.lax.scan(lambda _, __: (None, jax.checkpoint(together)()), None, None, length=steps)
        return jax.tree.map(lambda x: jnp.reshape(x, (self.number, *jnp.shape(x)[2:])), found)


def as_samples(samples: int | Samples) -> Samples:
    """A number of samples as `Samples`."""
    return samples if isinstance(samples, Samples) else Samples(samples)


def _divisor(number: int, chunk: int) -> int:
    return next(d for d in range(max(min(chunk, number), 1), 0, -1) if number % d == 0)
