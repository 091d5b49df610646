"""Loops: plates are `ppl.plate`, recurrences `jax.lax.scan`. Rows of arrays travel with the iteration, so that nothing is
gathered and the structure of the program stays visible to the estimators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ppl.lang import tree
from ppl.lang.environment import Environment, Place, Row, base_key, lane_places
from ppl.lang.evaluate import domain, evaluate
from ppl.lang.statements import assigned, keep, run_block
from ppl.lang.tree import Node
from ppl.lang.values import Domain, Drawn, Pieces, whole
from ppl.program import plate
from ppl.subsample import subsample


def loop(statement: tree.For, env: Environment) -> None:
    """Execute a loop."""
    span = domain(statement.domain, env)
    targets = assigned(statement.body)
    written = frozenset(name for name in targets if _indexed(targets[name])) - env.observed
    lags = recurrences(statement.body, statement.name, written, env)
    rows = collect(statement.body, statement.name, span, env, written)

    def body(row: dict[Row, Any], index: Any) -> tuple[dict[Row, Any], Environment]:
        inner = env.child(loops=(*env.loops, statement.name))
        inner.rows.update(row)
        inner.values[statement.name] = index
        run_block(statement.body, inner)
        found = {
            (name, prefix): whole(inner.rows[name, prefix])
            for name in written
            for prefix in [_prefix(env, statement.name, name, inner)]
            if prefix is not None
        }
        return found, inner

    with env.at(statement):
        if lags:
            stacked = _scan(statement, span, env, rows, lags, body)
        else:
            stacked = _plate(statement.name, span, rows, lambda row, index: body(row, index)[0])
    for (name, prefix), value in stacked.items():
        outer = frozenset(place for place in prefix if place[1] != statement.name)
        before = env.rows.get((name, outer)) if outer else env.values.get(name)
        pieces = before if isinstance(before, Pieces) else Pieces()
        if span.batch is None:
            keep(name, outer, pieces.add(span.start, span.stop, value), env)
        else:
            keep(name, outer, value, env)


def _indexed(nodes: list[Node]) -> bool:
    return any(isinstance(node, tree.Index) for node in nodes)


def _prefix(env: Environment, variable: str, name: str, inner: Environment) -> frozenset[Place] | None:
    """Under which loop variables the body has left a name."""
    for key, prefix in inner.rows:
        if key == name and all(offset == 0 for _, _, offset in prefix):
            variables = {v for _, v, _ in prefix}
            if variable in variables and variables <= {*env.loops, variable} and (key, prefix) not in env.rows:
                return prefix
    return None


def recurrences(body: tuple[Node, ...], variable: str, written: frozenset[str], env: Environment) -> dict[Row, int]:
    """How many steps back the body looks at what it writes, by name and outer loop variables."""
    found: dict[Row, int] = {}
    for node in (n for statement in body for n in tree.walk(statement)):
        if not isinstance(node, tree.Index) or base_key(node.value) not in written:
            continue
        lanes = lane_places(node, (*env.loops, variable))
        for position, name, offset in lanes:
            if name == variable and offset < 0:
                outer = frozenset(place for place in lanes if place[1] != variable and place[0] < position)
                key = (base_key(node.value), outer)
                found[key] = max(found.get(key, 0), -offset)
    return found


def collect(
    body: tuple[Node, ...], variable: str, span: Domain, env: Environment, written: frozenset[str]
) -> dict[Row, tuple[Any, int]]:
    """Arrays of which the body takes the row of the iteration, cut to the range of the loop, and their axes."""
    found: dict[Row, tuple[Any, int]] = {}
    for node in (n for statement in body for n in tree.walk(statement)):
        if not isinstance(node, tree.Index):
            continue
        key = base_key(node.value)
        lanes = lane_places(node, (*env.loops, variable))
        own = [place for place in lanes if place[1] == variable]
        if key is None or not own:
            continue
        outer = frozenset(place for place in lanes if place[1] != variable and place[1] in env.loops)
        while outer and (key, outer) not in env.rows:
            outer = outer - {max(outer)}
        if (key, outer | {own[0]}) in found:
            continue
        value = env.rows.get((key, outer)) if outer else _free(node.value, env, written)
        if value is None or (outer and _root(key) in written and all(offset == 0 for _, _, offset in outer)):
            continue
        axis = own[0][0] - sum(place[0] < own[0][0] for place in outer)
        cut = _cut(value, axis, span, own[0][2])
        if cut is not None:
            found[key, outer | {own[0]}] = (cut, axis)
    return found


def _root(key: Any) -> str:
    while isinstance(key, tuple):
        key = key[0]
    assert isinstance(key, str)
    return key


def _free(node: Node, env: Environment, written: frozenset[str]) -> Any:
    """The value of what is indexed, if the loop does not change it."""
    root = _root(base_key(node))
    if root in written or root not in env.values:
        return None
    value = evaluate(node, env)
    arrays = (jax.Array, Pieces, Drawn)
    return value if isinstance(value, arrays) or hasattr(value, "shape") else None


def _cut(value: Any, axis: int, span: Domain, offset: int) -> Any:
    start, stop = span.start + offset, span.stop + offset
    if isinstance(value, Pieces):
        if axis != 0:
            value = value.whole()
        else:
            return value.between(start, stop) if span.batch is None else value.whole()
    leaves = jax.tree.leaves(value)
    if any(jnp.ndim(leaf) <= axis or start < 1 or stop - 1 > jnp.shape(leaf)[axis] for leaf in leaves):
        return None  # the index says what is wrong when it is evaluated
    if span.batch is not None:
        return value if offset == 0 else jax.tree.map(lambda x: jnp.roll(x, -offset, axis), value)

    def cut(array: Any) -> Any:
        if start == 1 and stop - 1 == jnp.shape(array)[axis]:
            return array
        return jax.lax.slice_in_dim(jnp.asarray(array), start - 1, stop - 1, axis=axis)

    return jax.tree.map(cut, value)


def rows_of(rows: dict[Row, tuple[Any, int]]) -> tuple[list[Row], list[Any], list[int]]:
    keys = list(rows)
    return keys, [rows[key][0] for key in keys], [rows[key][1] for key in keys]


def _plate(name: str, span: Domain, rows: dict[Row, tuple[Any, int]], body: Callable[..., Any]) -> dict[Row, Any]:
    keys, arrays, axes = rows_of(rows)
    size = None
    if span.batch is None:
        index = jnp.arange(span.start, span.stop)
    else:
        size = span.length
        chosen = subsample(name, span.length, span.batch) + (span.start - 1)
        index = chosen + 1
        arrays = [
            jax.tree.map(lambda x, a=axis: jnp.take(x, chosen, axis=a), value) for value, axis in zip(arrays, axes, strict=True)
        ]

    def one(rows: list[Any], index: Any) -> list[Any]:
        found = body(dict(zip(keys, rows, strict=True)), index)
        written[:] = list(found)
        return list(found.values())

    written: list[Row] = []
    values = plate(name, one, size=size, in_axes=(axes, 0))(arrays, index)
    return dict(zip(written, values, strict=True))


def _scan(
    statement: tree.For,
    span: Domain,
    env: Environment,
    rows: dict[Row, tuple[Any, int]],
    lags: dict[Row, int],
    body: Callable[..., Any],
) -> dict[Row, Any]:
    keys, arrays, axes = rows_of(rows)
    arrays = [jax.tree.map(lambda x, a=axis: jnp.moveaxis(x, a, 0), value) for value, axis in zip(arrays, axes, strict=True)]
    positions = {key: len(key[1]) for key in lags}
    initial = [_before(key, lag, span, env, statement) for key, lag in lags.items()]
    written: list[Row] = []

    def step(carry: Any, xs: Any) -> Any:
        row, index = xs
        have = dict(zip(keys, row, strict=True))
        for (key, lag), past in zip(lags.items(), carry, strict=True):
            for back in range(1, lag + 1):
                have[key[0], key[1] | {(positions[key], statement.name, -back)}] = past[lag - back]
        found, _ = body(have, index)
        written[:] = list(found)
        after = []
        for key, past in zip(lags, carry, strict=True):
            new = found[key[0], frozenset((*key[1], (positions[key], statement.name, 0)))]
            after.append((*past[1:], jax.tree.map(jnp.asarray, new)))
        return after, list(found.values())

    _, values = jax.lax.scan(step, initial, (arrays, jnp.arange(span.start, span.stop)))
    return dict(zip(written, values, strict=True))


def _before(key: Row, lag: int, span: Domain, env: Environment, statement: tree.For) -> tuple[Any, ...]:
    """The values before the first step of a recurrence, oldest first."""
    name, outer = key
    value = env.rows.get((name, outer)) if outer else env.values.get(name)
    first = span.start - lag
    if isinstance(value, Pieces) and first >= 1 and any(start <= first for start, _, _ in value.parts):
        return tuple(value.at(place) for place in range(first, span.start))
    raise env.error(
        statement,
        f"the recurrence looks at {name}[{first}], which is not defined before it",
        f"Begin with '{name}[{first}] ~ ...', or start the loop later.",
    )
