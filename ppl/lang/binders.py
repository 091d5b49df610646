"""`E[z ~ q]`, sums and the like over an index, arrays by comprehension, and derivatives."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ppl.lang import tree
from ppl.lang.densities import bind, holds_density, log_of, program_of
from ppl.lang.distributions import copies, estimator
from ppl.lang.environment import Environment
from ppl.lang.evaluate import array, domain, evaluate
from ppl.lang.loops import collect, rows_of
from ppl.lang.statements import target
from ppl.lang.tree import Node
from ppl.lang.values import Domain, Drawn, ProgramValue, whole
from ppl.program import plate, sample
from ppl.subsample import subsample
from ppl.transforms.simulate import simulate


def binder(node: tree.Binder, env: Environment) -> Any:
    """The value of `kind[clauses] body`."""
    if node.kind == "E":
        inner = env.child()
        for clause in node.clauses:
            draw(clause, inner)
        return evaluate(node.body, inner)
    if node.kind in ("D", "grad"):
        return _derivative(node, env)
    if holds_density(node.body, env) and node.kind in ("sum", "mean", "prod"):
        return jnp.exp(log_binder(node, env))
    values, scale = _stacked(node.clauses, node.body, env, log=False)
    with env.at(node):
        return _REDUCE[node.kind](values, scale)


def log_binder(node: tree.Binder, env: Environment) -> Any:
    """The logarithm of a sum, mean or product of densities."""
    values, scale = _stacked(node.clauses, node.body, env, log=True)
    if node.kind == "prod":
        return jnp.sum(values) * scale
    total = jax.nn.logsumexp(values)
    return total - jnp.log(values.size) if node.kind == "mean" else total + jnp.log(scale)


def _logmeanexp(values: Any, scale: Any) -> Any:
    return jax.nn.logsumexp(values) - jnp.log(values.size)


_REDUCE: dict[str, Any] = {
    "sum": lambda values, scale: _scaled(jnp.sum(values, axis=0), scale),
    "mean": lambda values, _: jnp.mean(values, axis=0),
    "prod": lambda values, _: jnp.prod(values, axis=0),
    "max": lambda values, _: jnp.max(values, axis=0),
    "min": lambda values, _: jnp.min(values, axis=0),
    "logsumexp": lambda values, _: jax.nn.logsumexp(values, axis=0),
    "logmeanexp": _logmeanexp,
}


def _scaled(value: Any, scale: float) -> Any:
    return value if scale == 1.0 else scale * value


def stacked(clauses: tuple[Node, ...], body: Node, env: Environment) -> Any:
    """The values of an expression for all values of an index, stacked."""
    return _stacked(clauses, body, env, log=False)[0]


def _stacked(clauses: tuple[Node, ...], body: Node, env: Environment, *, log: bool) -> tuple[Any, float]:
    clause, *rest = clauses
    assert isinstance(clause, tree.Each)
    span = domain(clause.domain, env)
    inside = (tree.Evaluate(tree.Binder("sum", tuple(rest), body) if rest else body),)
    rows = collect(inside, clause.name, span, env, frozenset())
    keys, arrays, axes = rows_of(rows)

    def one(rows: list[Any], index: Any) -> Any:
        inner = env.child(loops=(*env.loops, clause.name))
        inner.rows.update(zip(keys, rows, strict=True))
        inner.values[clause.name] = index
        if rest:
            values, scale = _stacked(tuple(rest), body, inner, log=log)
            return values, jnp.asarray(scale)
        return (log_of(body, inner) if log else array(body, inner)), jnp.asarray(1.0)

    with env.at(body):
        if span.batch is None:
            index = jnp.arange(span.start, span.stop)
            values, scales = jax.vmap(one, in_axes=(axes, 0))(arrays, index)
            scale = 1.0
        else:
            chosen = subsample(clause.name, span.length, span.batch) + (span.start - 1)
            arrays = [jax.tree.map(lambda x, a=a: jnp.take(x, chosen, axis=a), v) for v, a in zip(arrays, axes, strict=True)]
            values, scales = plate(clause.name, one, in_axes=(axes, 0))(arrays, chosen + 1)
            scale = span.length / span.batch
    if rest:
        scale = scale * scales.reshape(-1)[0] if _batched(rest) else scale
        values = values.reshape(-1, *values.shape[2:])
    return values, scale


def _batched(clauses: list[Node]) -> bool:
    return any(isinstance(c, tree.Each) and isinstance(c.domain, tree.Call) for c in clauses)


def draw(node: Node, env: Environment) -> None:
    """`z ~ q` in an expectation: a draw of a program with its log density, of a distribution, or of a row of data."""
    assert isinstance(node, tree.Draw)
    if isinstance(node.target, tree.Tuple):
        names = [item.id for item in node.target.items if isinstance(item, tree.Name)]
        node_target, observed = node.target.items[0], frozenset(names[1:])
    else:
        node_target, observed = node.target, frozenset()
    name, _, counts = target(node_target, env)
    program, given, source = program_of(node.source, env)
    with env.at(node):
        if isinstance(program, ProgramValue):
            value = _simulate(program, given, source, observed, counts, env, node)
        elif isinstance(program, dist.Distribution):
            value = sample(name, copies(program, tuple(c.length for c in counts)), estimator=estimator(node.estimator, env))
        else:
            value = _rows_of_data(name, jnp.asarray(whole(program)), counts)
    if observed:
        trace = dict(value.trace)
        data = {other: trace.pop(other) for other in observed}
        env.values.update(data)
        value = Drawn(trace, value.log_density, value.source, observed)
    env.values[name] = value


def _simulate(
    program: ProgramValue,
    given: Any,
    source: Any,
    observed: frozenset[str],
    counts: tuple[Domain, ...],
    env: Environment,
    node: tree.Draw,
) -> Drawn:
    data = {name: env.values[name] for name in sorted(program.observes) if not observed and name in env.values}
    bound = bind(program, given, data, env, node.source)
    chosen = estimator(node.estimator, env)
    if chosen is not None:
        bound = bound.with_estimators(chosen)
    if program.constant:
        bound = bound.detach()

    def one(_: Any = None) -> Any:
        return simulate(bound)

    for count in reversed(counts):
        one = _mapped(one, count.length)
    trace, log_density = one()
    return Drawn(trace, log_density, source, frozenset(data))


def _mapped(function: Any, length: int) -> Any:
    return lambda _=None: jax.vmap(function)(jnp.arange(length))


def _rows_of_data(name: str, data: Any, counts: tuple[Domain, ...]) -> Any:
    """Random rows: one, or several different ones."""
    if counts:
        return data[subsample(name, data.shape[0], counts[0].length)]
    return data[subsample(name, data.shape[0], 1)[0]]


def _derivative(node: tree.Binder, env: Environment) -> Any:
    (name,) = node.clauses
    assert isinstance(name, tree.Name)
    value = jnp.asarray(whole(evaluate(name, env)), float)

    def of(x: Any) -> Any:
        inner = env.with_values(**{name.id: x})
        for key in [key for key in inner.rows if key[0] == name.id]:
            del inner.rows[key]
        return array(node.body, inner)

    with env.at(node):
        if node.kind == "grad":
            return jax.grad(of)(value)
        return jax.jvp(of, (value,), (jnp.ones_like(value),))[1]
