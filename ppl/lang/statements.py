"""Statements of programs and functions, executed while the program is traced by JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ppl.lang import tree
from ppl.lang.densities import bind, program_of
from ppl.lang.distributions import copies, estimator
from ppl.lang.environment import Environment, affine
from ppl.lang.evaluate import array, domain, evaluate, size
from ppl.lang.tree import Node
from ppl.lang.values import Domain, Pieces, ProgramValue, whole
from ppl.program import deterministic, factor, plate, sample


def run_block(body: tuple[Node, ...], env: Environment) -> Any:
    """Execute statements in an environment, which they change. The value of `return`, or of an expression that stands alone."""
    value = None
    for statement in body:
        result = _STATEMENTS[type(statement)](statement, env)
        if isinstance(statement, tree.Return | tree.Evaluate):
            value = result
    return value


def value_of_block(body: tuple[Node, ...], env: Environment) -> Any:
    """The value of a function's body."""
    return whole(run_block(body, env.child()))


def _value(statement: Any, env: Environment) -> Any:
    return evaluate(statement.value, env)


def _factor(statement: tree.Factor, env: Environment) -> None:
    value = array(statement.value, env)
    with env.at(statement):
        factor(statement.name, value)


def _define(statement: tree.Define, env: Environment) -> None:
    value = evaluate(statement.value, env)
    if statement.recorded:
        name, last, _ = target(statement.target, env)
        with env.at(statement):
            value = deterministic(address(name, last), whole(value))
    store(statement.target, value, env)


def _draw(statement: tree.Draw, env: Environment) -> None:
    if env.objective:
        from ppl.lang.binders import draw  # binders hold statements

        draw(statement, env)
        return
    name, last, counts = target(statement.target, env)
    at = address(name, last)
    lengths = tuple(count.length for count in counts)
    observed = _observation(statement.target, env) if name in env.observed else None
    program, given, _ = program_of(statement.source, env)
    with env.at(statement):
        chosen = estimator(statement.estimator, env)
        if isinstance(program, ProgramValue):
            bound = bind(program, given, {}, env, statement.source)
            value = _copies_of_program(at, bound, lengths, chosen)
        elif isinstance(program, dist.Distribution):
            drawn = copies(program, lengths)
            if observed is not None:
                observed = jnp.asarray(observed)
            value = sample(at, drawn, observed, estimator=chosen if observed is None else None)
        else:
            raise env.error(statement.source, "only distributions and programs can be drawn from")
    if name not in env.observed:
        store(statement.target, value, env)


def _copies_of_program(at: str, bound: Any, lengths: tuple[int, ...], chosen: Any) -> Any:
    def one(*_: Any) -> Any:
        return sample(at, bound, estimator=chosen)

    for length in reversed(lengths):
        one = _mapped(at, one, length)
    return one()


def _mapped(name: str, function: Any, length: int) -> Any:
    return lambda *_: plate(name, function)(jnp.arange(length))


def _observation(node: Node, env: Environment) -> Any:
    """The data at a target."""
    return array(node, env)


def target(node: Node, env: Environment) -> tuple[str, int | None, tuple[Domain, ...]]:
    """What is defined: its name, its last index if that is a number, and the ranges of independent copies."""
    if isinstance(node, tree.Name):
        return node.id, None, ()
    if not isinstance(node, tree.Index) or not isinstance(node.value, tree.Name):
        raise env.error(node, "expected a name, with an index where it is a part of an array")
    last: int | None = None
    counts: list[Domain] = []
    lanes: list[str] = []
    for place in node.places:
        match = affine(place, env.loops)
        if match is not None:
            lanes.append(match[0])
        elif isinstance(place, tree.Binary) and place.operator == "..":
            counts.append(domain(place, env))
        else:
            last = size(place, env)
    return node.value.id, last, tuple(counts)


def address(name: str, last: int | None) -> str:
    return name if last is None else f"{name}[{last}]"


def store(node: Node, value: Any, env: Environment) -> None:
    """Keep the value of a target, where later statements look for it."""
    name, last, _ = target(node, env)
    prefix = frozenset((i, variable, 0) for i, variable in enumerate(_variables(node, env)))
    before = env.rows.get((name, prefix)) if prefix else env.values.get(name)
    if last is not None:
        known = before if isinstance(before, Pieces) else Pieces()
        value = float(value) if isinstance(value, int) else value  # a recurrence may go on with reals
        value = known.add(last, last + 1, jax.tree.map(lambda x: jnp.asarray(x)[None], value))
    keep(name, prefix, value, env)


def keep(name: str, prefix: frozenset[Any], value: Any, env: Environment) -> None:
    if prefix:
        env.rows[name, prefix] = value
    else:
        env.values[name] = value
        for key in [key for key in env.rows if key[0] == name]:
            del env.rows[key]


def _variables(node: Node, env: Environment) -> list[str]:
    """The loop variables that a target is indexed by."""
    if not isinstance(node, tree.Index):
        return []
    matches = [affine(place, env.loops) for place in node.places]
    return [match[0] for match in matches if match is not None]


def _if(statement: tree.If, env: Environment) -> None:
    condition = array(statement.condition, env)

    def branch(body: tuple[Node, ...]) -> Any:
        def run() -> Any:
            inner = env.child()
            run_block(body, inner)
            values = {n: whole(v) for n, v in inner.values.items() if n in shared and env.values.get(n) is not v}
            rows = {k: whole(v) for k, v in inner.rows.items() if k[0] in shared and env.rows.get(k) is not v}
            return jax.tree.map(jnp.asarray, (values, _Rows.of(rows)))

        return run

    shared = _assigned(statement.then) & _assigned(statement.otherwise)
    with env.at(statement):
        if jnp.ndim(condition) != 0:
            raise env.error(statement.condition, f"the condition has the shape {list(jnp.shape(condition))}, and no one value")
        values, rows = jax.lax.cond(jnp.asarray(condition, bool), branch(statement.then), branch(statement.otherwise))
    env.values.update(values)
    env.rows.update(rows.back())


@jax.tree_util.register_pytree_node_class
class _Rows:
    """Rows with their keys, as a pytree: the keys are no strings and have no order."""

    def __init__(self, keys: tuple[Any, ...], values: list[Any]):
        self.keys, self.values = keys, values

    @classmethod
    def of(cls, rows: dict[Any, Any]) -> _Rows:
        keys = tuple(sorted(rows, key=lambda key: (str(key[0]), sorted(key[1]))))
        return cls(keys, [rows[key] for key in keys])

    def back(self) -> dict[Any, Any]:
        return dict(zip(self.keys, self.values, strict=True))

    def tree_flatten(self) -> Any:
        return self.values, self.keys

    @classmethod
    def tree_unflatten(cls, keys: Any, values: Any) -> _Rows:
        return cls(keys, list(values))


def _assigned(body: tuple[Node, ...]) -> set[str]:
    """The names that statements define for those after them."""
    return set(assigned(body))


def assigned(body: tuple[Node, ...]) -> dict[str, list[Node]]:
    """The targets of statements, by name, also in loops and branches."""
    found: dict[str, list[Node]] = {}
    for statement in body:
        if isinstance(statement, tree.Draw | tree.Define):
            node = statement.target
            name = node.value if isinstance(node, tree.Index) else node
            if isinstance(name, tree.Name):
                found.setdefault(name.id, []).append(node)
        elif isinstance(statement, tree.For):
            for name_, targets in assigned(statement.body).items():
                found.setdefault(name_, []).extend(targets)
        elif isinstance(statement, tree.If):
            for name_, targets in (*assigned(statement.then).items(), *assigned(statement.otherwise).items()):
                found.setdefault(name_, []).extend(targets)
    return found


def _for(statement: tree.For, env: Environment) -> None:
    from ppl.lang.loops import loop  # a loop runs statements

    loop(statement, env)


_STATEMENTS: dict[type, Any] = {
    tree.Draw: _draw,
    tree.Define: _define,
    tree.Factor: _factor,
    tree.Return: _value,
    tree.Evaluate: _value,
    tree.For: _for,
    tree.If: _if,
}
