"""The types of calls: functions, distributions, densities, and binders such as `E[z ~ q]`."""

from __future__ import annotations

from typing import Any

from ppl.lang import infer, infer_programs, tree, types
from ppl.lang.builtins import DISTRIBUTIONS, FUNCTIONS, SPECIAL, STATIC, TYPES, parameters, required
from ppl.lang.diagnostics import did_you_mean
from ppl.lang.distributions import shape_of
from ppl.lang.scope import Scope
from ppl.lang.tree import Node
from ppl.lang.types import ANY, Array

MOST_CALLS = 200_000
DEEPEST = 40


def known(name: str) -> bool:
    return name in DISTRIBUTIONS or name in FUNCTIONS or name in SPECIAL


def infer_positive(node: Node, scope: Scope) -> Any:
    """The type of an operand, which may be a density."""
    return infer.infer_array(node, scope)


def infer_call(node: tree.Call, scope: Scope) -> Any:
    function = node.function
    name = function.id if isinstance(function, tree.Name) else None
    if name is not None and scope.lookup(name) is None:
        if name in DISTRIBUTIONS or name in ("Mixture", "Flat"):
            return _density(node, scope) if node.given else infer_distribution(node, node.arguments, scope)
        if name in FUNCTIONS:
            return _builtin(node, name, scope)
        if name == "length":
            return _length(node, scope)
        if name == "detach":
            return infer.infer(node.arguments[0].value, scope) if _count(node, 1, scope) else ANY
        if name in ("marginal", "normalize"):
            return infer_programs.infer_estimand(node, scope)
        if name == "batch":
            return scope.error(node, "a batch stands in 'for i in batch(1..N, 64)'")
        for argument in (*node.arguments, *node.given):
            infer.infer(argument.value, scope)
        return scope.unknown(function, name)
    kind = infer.infer(function, scope)
    if isinstance(kind, types.Program):
        return infer_programs.infer_density(node, kind, scope)
    kinds = [(a, infer.infer(a.value, scope)) for a in (*node.arguments, *node.given)]
    if isinstance(kind, types.Function):
        return _user(node, kind, [k for _, k in kinds], scope)
    if kind is not ANY:
        return scope.error(function, "this is no function")
    return ANY


def _count(node: tree.Call, count: int, scope: Scope) -> bool:
    if len(node.arguments) != count or node.given or any(a.name for a in node.arguments):
        assert isinstance(node.function, tree.Name)
        scope.error(node, f"{node.function.id} takes {count} argument{'s' * (count != 1)}")
        return False
    return True


def _length(node: tree.Call, scope: Scope) -> Any:
    if not _count(node, 1, scope):
        return ANY
    kind = infer.infer_array(node.arguments[0].value, scope)
    if isinstance(kind, Array) and not kind.shape:
        return scope.error(node, "a number has no length")
    return Array((), "int", kind.shape[0]) if isinstance(kind, Array) else ANY


def _builtin(node: tree.Call, name: str, scope: Scope) -> Any:
    if node.given or any(a.name for a in node.arguments):
        return scope.error(node, f"{name} takes its arguments by position")
    arguments: list[Any] = []
    for place, argument in enumerate(node.arguments):
        if name in STATIC and not (name == "reshape" and place == 0):
            arguments.append(infer.size(argument.value, scope))
        else:
            kind = infer.infer_array(argument.value, scope)
            arguments.append(Array(kind.shape, kind.dtype) if isinstance(kind, Array) else None)
    if any(kind is None for kind in arguments):
        return ANY
    try:
        return types.applied(FUNCTIONS[name], tuple(arguments))
    except types.WrongTypesError as error:
        shapes = ", ".join(scope.shape(a.shape) if isinstance(a, Array) else scope.report.sizes.show(a) for a in arguments)
        return scope.error(node, f"{name} cannot take arguments of the shapes {shapes or '(none)'}", f"({error})")


def _user(node: tree.Call, kind: types.Function, arguments: list[Any], scope: Scope) -> Any:
    from ppl.lang.check_statements import check_function

    definition = kind.definition
    if len(arguments) != len(definition.parameters) or node.given or any(a.name for a in node.arguments):
        names = ", ".join(definition.parameters)
        return scope.error(
            node, f"{definition.name}({names}) takes {len(definition.parameters)} arguments, and is given {len(arguments)}"
        )
    report = scope.report
    plain = tuple(types.plain(a) for a in arguments)
    key = (id(definition), plain)
    try:
        cached = report.calls.get(key)
    except TypeError:
        cached, key = None, None  # type: ignore[assignment]
    if cached is None:
        if report.depth >= DEEPEST:
            return scope.error(node, f"functions call one another more than {DEEPEST} deep")
        report.depth += 1
        before, found = report.cost, len(set(report.diagnostics))
        result = check_function(kind, plain)
        report.depth -= 1
        cached = (result, report.cost - before)
        if len(set(report.diagnostics)) > found and scope.kind != "function":
            scope.error(node, f"... in this call of {definition.name}")
        if key is not None:
            report.calls[key] = cached
    else:
        report.cost += cached[1]
    if report.cost > MOST_CALLS * 50:
        report.cost = 0
        return scope.error(node, "calls within calls make this program too large")
    return cached[0]


def infer_distribution(node: tree.Call, arguments: tuple[tree.Argument, ...], scope: Scope) -> Any:
    """The type of a distribution."""
    assert isinstance(node.function, tree.Name)
    name = node.function.id
    if name == "Flat":
        return _flat(node, arguments, scope)
    kinds = [(a, infer.infer(a.value, scope)) for a in arguments]
    kinds = [(a, types.plain(k)) for a, k in kinds]
    names = parameters(name) if name != "Mixture" else tuple(f"part{i}" for i in range(len(kinds)))
    found: dict[str, Any] = {}
    for place, (argument, kind) in enumerate(kinds):
        if argument.name is not None and argument.name not in names:
            hint = did_you_mean(argument.name, names) or f"It has {', '.join(names)}."
            return scope.error(argument, f"{name} has no parameter {argument.name!r}", hint)
        if argument.name is None and place >= len(names):
            return scope.error(node, f"{name} has {len(names)} parameters ({', '.join(names)}), and is given {len(kinds)}")
        key = argument.name or names[place]
        if key in found:
            return scope.error(argument, f"{name} is given {key!r} twice")
        found[key] = kind
    least = required(name) if name != "Mixture" else 2
    if len(found) < least:
        return scope.error(node, f"{name} needs {', '.join(names[:least])}, and is given {', '.join(found) or 'nothing'}")
    if not all(isinstance(kind, Array | types.Distribution) for kind in found.values()):
        wrong = [a for a, k in kinds if not isinstance(k, Array | types.Distribution) and k is not ANY]
        if wrong:
            scope.error(wrong[0], "expected an array, a number or a distribution")
        return ANY
    reduced = tuple((k, _parameter(v)) for k, v in found.items())
    try:
        return types.distribution(name, reduced)
    except types.WrongTypesError as error:
        shapes = ", ".join(f"{k} {scope.shape(v.shape)}" for k, v in found.items())
        return scope.error(node, f"{name} cannot take parameters of these shapes: {shapes}", f"({error})")


def _parameter(kind: Any) -> Any:
    if isinstance(kind, Array):
        return Array(kind.shape, kind.dtype, kind.value if not kind.shape else None)
    return kind


def _flat(node: tree.Call, arguments: tuple[tree.Argument, ...], scope: Scope) -> Any:
    value = arguments[0].value if len(arguments) == 1 else None
    name, dimensions = (value.value, value.places) if isinstance(value, tree.Index) else (value, ())
    if not isinstance(name, tree.Name) or name.id not in TYPES or TYPES[name.id].constraint is None:
        hint = did_you_mean(name.id, TYPES) if isinstance(name, tree.Name) else ""
        return scope.error(node, "Flat takes a type, such as real or ordered[3]", hint)
    lengths = [size for size in (infer.size(d, scope) for d in dimensions) if size is not None]
    if len(lengths) != len(dimensions):
        return ANY
    event_dim = TYPES[name.id].event_dim
    shape = shape_of(name.id, tuple(lengths))
    if len(shape) < event_dim:
        return scope.error(value or node, f"{name.id} needs a size: {name.id}[n]")
    batch = shape[: len(shape) - event_dim]
    return types.Distribution(
        "Flat", (("type", name.id), ("batch", batch), ("event", shape[len(batch) :])), batch, shape[len(batch) :]
    )


def _density(node: tree.Call, scope: Scope) -> Any:
    """`Normal(x | mu, sigma)`."""
    if len(node.arguments) != 1:
        return scope.error(node, "a density is at one value", "Write Normal(x | mu, sigma).")
    value = infer.infer_array(node.arguments[0].value, scope)
    kind = infer_distribution(node, node.given, scope)
    if not isinstance(value, Array) or not isinstance(kind, types.Distribution):
        return ANY
    events = len(kind.event)
    if len(value.shape) < events or (events and value.shape[len(value.shape) - events :] != kind.event):
        return scope.error(
            node, f"the value has the shape {scope.shape(value.shape)}, and one draw of {kind.name} {scope.shape(kind.event)}"
        )
    shape = infer.broadcast(value.shape[: len(value.shape) - events], kind.batch)
    if shape is None:
        return scope.error(
            node,
            f"the value has the shape {scope.shape(value.shape)}, and the distribution {scope.shape(kind.shape)}",
        )
    return Array(shape)


def infer_binder(node: tree.Binder, scope: Scope) -> Any:
    if node.kind == "E":
        return infer_programs.infer_expectation(node, scope)
    if node.kind in ("D", "grad"):
        return _derivative(node, scope)
    inner, count = scope, 1
    for clause in node.clauses:
        if not isinstance(clause, tree.Each):
            return scope.error(clause, f"expected an index and its range: {node.kind}[k in 1..K]")
        inner, length = infer.each(clause.name, clause.domain, inner, clause)
        count = count * length if length is not None else count
    kind = infer.infer_array(node.body, inner)
    if not isinstance(kind, Array):
        return ANY
    dtype = kind.dtype if node.kind in ("sum", "prod", "max", "min") and kind.dtype != "bool" else "float"
    return Array((), dtype) if node.kind == "logmeanexp" else Array(kind.shape, dtype)


def _derivative(node: tree.Binder, scope: Scope) -> Any:
    if len(node.clauses) != 1 or not isinstance(node.clauses[0], tree.Name):
        return scope.error(node, f"{node.kind}[x] is the derivative in one name")
    variable = infer.infer_array(node.clauses[0], scope)
    kind = infer.infer_array(node.body, scope)
    if not isinstance(variable, Array) or not isinstance(kind, Array):
        return ANY
    if node.kind == "grad":
        if kind.shape:
            return scope.error(node, f"grad is of one number, and the shape is {scope.shape(kind.shape)}")
        return Array(variable.shape)
    if variable.shape:
        return scope.error(
            node,
            f"D[x] is the derivative in a number, and {node.clauses[0].id} has the shape {scope.shape(variable.shape)}",
        )
    return Array(kind.shape)
