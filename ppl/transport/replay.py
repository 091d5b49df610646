"""Replay buffers: traces to learn from again."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl import errors


class Replay(NamedTuple):
    """A buffer of traces with their log weights, a plain pytree of fixed size. Make one with `replay`.

    Draws from it have probabilities proportional to `exp(log_priority)`; a place that was never filled has priority zero.

    Attributes:
        traces: stacked in front.
        log_priority: shape `(size,)`; -inf where nothing has been put.
        next: the place that the next trace takes, an integer.
    """

    traces: Any
    log_priority: Any
    next: Any

    def add(self, traces: Any, log_priority: Any) -> Replay:
        """With traces (stacked in front), in the places of the oldest.

        Args:
            log_priority: shape `(n,)`: zeros for uniform draws, log weights for draws from the target (Sendera et al. 2024).
        """
        count, size = jnp.shape(log_priority)[0], self.log_priority.shape[0]
        if count > size:
            raise errors.ValueShapeError(f"a buffer of {size} cannot take {count} traces at once")
        places = (self.next + jnp.arange(count)) % size
        put = jax.tree.map(lambda old, new: old.at[places].set(new), (self.traces, self.log_priority), (traces, log_priority))
        return Replay(put[0], put[1], (self.next + count) % size)

    def draw(self, key: Any, count: int) -> Any:
        """Traces, stacked in front, with replacement. The buffer must not be empty."""
        chosen = jax.random.categorical(key, self.log_priority, shape=(count,))
        return jax.tree.map(lambda x: x[chosen], self.traces)


def replay(traces: Any, log_priority: Any, size: int) -> Replay:
    """A buffer that holds up to `size` traces, with some in it.

    Traces of old draws are what an off-policy loss learns from: `behaviour=forward.substitute(trace)` replays one.

    Args:
        traces: stacked in front, as `importance(...).trace` has them.
        log_priority: as in `Replay.add`.

    Example:
        >>> import jax, jax.numpy as jnp, ppl
        >>> buffer = ppl.transport.replay({"z": jnp.arange(3.0)}, jnp.array([0.0, 0.0, -jnp.inf]), size=5)
        >>> buffer = buffer.add({"z": jnp.array([7.0])}, jnp.zeros(1))
        >>> sorted(set(buffer.draw(jax.random.key(0), 100)["z"].tolist()))
        [0.0, 1.0, 7.0]
    """
    empty = jax.tree.map(lambda x: jnp.zeros((size, *jnp.shape(x)[1:]), jnp.result_type(x)), traces)
    log_priority = jnp.asarray(log_priority, float)
    return Replay(empty, jnp.full(size, -jnp.inf), jnp.zeros((), int)).add(traces, log_priority)


__all__ = ["Replay", "replay"]
