"""The linear assignment problem, exactly and compiled."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ppl import errors

_STEPS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.0)
_BIDS = 6
"""Bids of the first phase, for each row: more leave less to the second phase. Measured at 256 and 1024 points in the plane."""


def assignment(cost: Any) -> Any:
    """The permutation `p` that minimizes `sum_i cost[i, p[i]]` (Jonker and Volgenant 1987), for `jit`, `scan` and accelerators.

    Rows bid for columns as in an auction; each row that is still without one then gets it along a shortest augmenting path. The
    first phase saves time, the second makes it exact, up to rounding of the sum. `cost` is not differentiated.

    Args:
        cost: finite numbers, `(n, n)`.

    Returns:
        A permutation, integers `(n,)`.

    Raises:
        ValueShapeError: `cost` is not square.

    Example:
        >>> import jax.numpy as jnp
        >>> from ppl.transport import assignment
        >>> print(assignment(jnp.array([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]])))
        [1 0 2]
    """
    if jnp.ndim(cost) != 2 or cost.shape[0] != cost.shape[1]:
        raise errors.ValueShapeError(
            f"an assignment needs a square matrix of costs, got the shape {jnp.shape(cost)}. Draw as many points on both sides."
        )
    cost = jax.lax.stop_gradient(cost)
    # Constants added to rows and columns change no choice, and removing them saves bids (a translation of the points, say).
    cost = cost - jnp.mean(cost, axis=1, keepdims=True)
    cost = cost - jnp.mean(cost, axis=0)
    prices, row_of, free = _auction(cost)
    count = jnp.sum(free)
    order = jnp.argsort(~free)  # free rows first

    def augment(state: Any) -> Any:
        k, prices, row_of = state
        return (k + 1, *_shortest_path(cost, order[k], prices, row_of))

    _, _, row_of = jax.lax.while_loop(lambda state: state[0] < count, augment, (0, prices, row_of))
    return jnp.argsort(row_of)


def _first(values: Any, least: Any) -> Any:
    """Where the least value stands: two plain reductions, which run faster than an `argmin` on a CPU."""
    size = values.shape[0]
    return jnp.minimum(jnp.min(jnp.where(values == least, jnp.arange(size), size)), size - 1)


def _auction(cost: Any) -> tuple[Any, Any, Any]:
    """Prices of columns, the row that each column went to (-1: none), and which rows are without a column.

    A row takes the column of least cost minus price, and lowers the price until its second choice is as good, and by a step
    more. The row that is displaced goes on. Rounds with smaller and smaller steps (Bertsekas 1988) find prices, and the last,
    with a step of zero, pairs that attain their row's least reduced cost, which is what the second phase starts from.
    """
    size = cost.shape[0]
    columns = jnp.arange(size)

    def going(state: Any) -> Any:
        return (state[0] < size) & (state[2] < _BIDS * size)

    def auction(prices: Any, step: Any) -> Any:
        def bid(state: Any) -> Any:
            begun, row, bids, prices, row_of, free = state
            reduced = cost[row] - prices
            best = jnp.min(reduced)
            column = _first(reduced, best)
            second = jnp.min(jnp.where(columns == column, jnp.inf, reduced))
            displaced = row_of[column]
            # At a tie nothing is gained by displacing: the row waits for the second phase.
            takes = (displaced < 0) | (second + step > best)
            raised = jnp.where(takes & jnp.isfinite(second), second - best + step, 0.0)
            prices = prices.at[column].add(-raised)
            row_of = row_of.at[column].set(jnp.where(takes, row, displaced))
            free = free.at[row].set(~takes)
            on = takes & (displaced >= 0)
            free = free.at[jnp.where(on, displaced, size)].set(True, mode="drop")
            begun = jnp.where(on, begun, begun + 1)
            return begun, jnp.where(on, displaced, begun), bids + 1, prices, row_of, free

        start = (0, 0, 0, prices, jnp.full(size, -1), jnp.ones(size, bool))
        _, _, _, prices, row_of, free = jax.lax.while_loop(going, bid, start)
        return prices, (row_of, free)

    steps = jnp.std(cost) * jnp.array(_STEPS, cost.dtype)
    prices, (row_of, free) = jax.lax.scan(auction, jnp.min(cost, axis=0), steps)
    return prices, row_of[-1], free[-1]


def _shortest_path(cost: Any, row: Any, prices: Any, row_of: Any) -> tuple[Any, Any]:
    """Dijkstra from a free row to a free column over reduced costs; the pairs along the path are exchanged."""
    size = cost.shape[0]

    def scan(state: Any) -> Any:
        distance, previous, done, _, column, least = state
        via = row_of[column]
        done = done.at[column].set(True)
        through = least + (cost[via] - prices) - (cost[via, column] - prices[column])
        shorter = ~done & (through < distance)
        distance = jnp.where(shorter, through, distance)
        return step(distance, jnp.where(shorter, via, previous), done)

    def step(distance: Any, previous: Any, done: Any) -> Any:
        open_ = jnp.where(done, jnp.inf, distance)
        least = jnp.min(open_)
        column = _first(open_, least)
        return distance, previous, done, row_of[column] < 0, column, least

    # Both loops end by themselves for finite costs; the bounds are for others.
    start = step(cost[row] - prices, jnp.full(size, row), jnp.zeros(size, bool))
    (distance, previous, done, _, column, least), _ = jax.lax.while_loop(
        lambda state: ~state[0][3] & (state[1] < size), lambda state: (scan(state[0]), state[1] + 1), (start, 0)
    )
    prices = prices + jnp.where(done, distance - least, 0.0)
    taken = jnp.where(row_of < 0, size, row_of)
    column_of = jnp.zeros(size, int).at[taken].set(jnp.arange(size), mode="drop")

    def exchange(state: Any) -> Any:
        column, row_of, _, count = state
        taker = previous[column]
        return column_of[taker], row_of.at[column].set(taker), taker, count + 1

    first = (column, row_of, jnp.full_like(row, -1), 0)
    _, row_of, _, _ = jax.lax.while_loop(lambda state: (state[2] != row) & (state[3] < size), exchange, first)
    return prices, row_of


__all__ = ["assignment"]
