"""Types and shapes of a whole file, inferred and checked before anything runs. All that is wrong is reported at once."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from ppl.lang import infer, tree, types
from ppl.lang.builtins import KNOWN, OPTIMIZERS, SCHEDULES, TYPES
from ppl.lang.check_statements import check_block
from ppl.lang.diagnostics import Source, did_you_mean, fail
from ppl.lang.distributions import shape_of
from ppl.lang.scope import Report, Scope
from ppl.lang.tree import Node
from ppl.lang.types import ANY, Array
from ppl.program import Bound
from ppl.program import Program as PythonProgram


def check(units: Sequence[Any], sizes: Mapping[str, int], imported: Mapping[str, Any]) -> None:
    """Check the items of a file and of those that it imports.

    Raises:
        LanguageError: with everything that is wrong.
    """
    report = Report(types.Sizes(sizes))
    names: dict[str, Any] = dict.fromkeys(imported, ANY)
    data: set[str] = set()
    tops: dict[str, Any] = {}
    order = {tree.Data: 0, tree.Objective: 2, tree.Fit: 3}
    for unit in sorted(units, key=lambda unit: order.get(type(unit.item), 1)):
        scope = Scope(report, unit.source, names, data=frozenset(data))
        _CHECK[type(unit.item)](unit.item, scope, tops)
        if isinstance(unit.item, tree.Data):
            data.update(d.name for d in unit.item.declarations)
    if report.diagnostics:
        raise fail(report.diagnostics)


def check_formula(node: Node, source: Source, values: Mapping[str, Any]) -> None:
    """Check a formula over values from Python, of which only arrays have known types."""
    scope = Scope(Report(types.Sizes({})), source, {name: _known(name, v) for name, v in values.items()}, kind="objective")
    _check_linear(node, scope)
    infer.infer_array(node, scope)
    if scope.report.diagnostics:
        raise fail(scope.report.diagnostics)


def _known(name: str, value: Any) -> Any:
    if isinstance(value, Bound | PythonProgram):
        return types.Program(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return Array((), "int", value)
    return types.from_struct(value) if hasattr(value, "dtype") else ANY


def _new(item: Any, name: str, scope: Scope, tops: dict[str, Any]) -> None:
    """Refuse a name that is taken."""
    if name in KNOWN:
        scope.error(item, f"{name!r} is a name of the language", "Choose another.")
    elif name in tops or name in scope.names:
        scope.error(item, f"{name!r} is defined already")
    tops[name] = item


def type_of(node: tree.Type, scope: Scope, *, new_sizes: bool = False) -> Any:
    """The type that a declaration states."""
    if node.name not in TYPES:
        return scope.error(
            node, f"there is no type {node.name!r}", did_you_mean(node.name, TYPES) or f"There are {', '.join(TYPES)}."
        )
    kind, dimensions = TYPES[node.name], []
    for dimension in node.dimensions:
        if new_sizes and isinstance(dimension, tree.Name) and scope.lookup(dimension.id) is None and dimension.id not in KNOWN:
            scope.names[dimension.id] = Array((), "int", scope.report.sizes.of(dimension.id))
        length = infer.size(dimension, scope)
        if length is None:
            return ANY
        if length < 1:
            return scope.error(dimension, f"a size is at least 1, and this is {length}")
        dimensions.append(length)
    if len(dimensions) < (kind.event_dim if not kind.square else 1):
        return scope.error(node, f"{node.name} needs a size: {node.name}[n]")
    return Array(shape_of(node.name, tuple(dimensions)), kind.dtype)


def _data(item: tree.Data, scope: Scope, tops: dict[str, Any]) -> None:
    for declaration in item.declarations:
        kind = declaration.type
        known = scope.names.get(declaration.name)
        sized = kind.name == "int" and not kind.dimensions
        if not (sized and isinstance(known, Array) and declaration.name not in tops):  # a size that a type has named already
            _new(declaration, declaration.name, scope, tops)
        found = type_of(kind, scope, new_sizes=True)
        if sized:
            found = Array((), "int", scope.report.sizes.of(declaration.name))
        scope.names[declaration.name] = found


def _params(item: tree.Params, scope: Scope, tops: dict[str, Any]) -> None:
    for parameter in item.parameters:
        _new(parameter, parameter.name, scope, tops)
        scope.names[parameter.name] = _parameter(parameter, scope, learned=True)


def _parameter(parameter: tree.Parameter, scope: Scope, *, learned: bool) -> Any:
    found = ANY if parameter.type is None else type_of(parameter.type, scope)
    if learned and parameter.type is None and parameter.initial is None:
        return scope.error(parameter, f"the parameter {parameter.name!r} needs a type", f"Write {parameter.name}: real")
    if learned and parameter.type is not None and parameter.type.name in ("int", "bool"):
        return scope.error(parameter, f"a learned parameter is a real number, and {parameter.name!r} is {parameter.type.name}")
    if not learned and parameter.initial is not None:
        return scope.error(parameter, f"{parameter.name!r} is given, and has no initial value")
    if parameter.initial is not None:
        kind = types.plain(infer.infer(parameter.initial, scope))
        wanted = types.Distribution if parameter.drawn else Array
        if kind is not ANY and not isinstance(kind, wanted):
            scope.error(
                parameter.initial, "expected a distribution behind '~'" if parameter.drawn else "expected a number or array"
            )
        elif isinstance(kind, wanted) and isinstance(found, Array) and infer.broadcast(kind.shape, found.shape) != found.shape:
            scope.error(
                parameter.initial,
                f"the initial value has the shape {scope.shape(kind.shape)}, and the parameter {scope.shape(found.shape)}",
            )
        if parameter.type is None:
            return kind
    return found


def _function(item: tree.Function, scope: Scope, tops: dict[str, Any]) -> None:
    _new(item, item.name, scope, tops)
    for name in item.parameters:
        if name in KNOWN or item.parameters.count(name) > 1:
            scope.error(
                item,
                f"{name!r} cannot be a parameter: it {'stands twice' if name not in KNOWN else 'is a name of the language'}",
            )
    inner = scope.child(kind="function")
    inner.names.update(dict.fromkeys(item.parameters, ANY))
    if check_block(item.body, inner) is None:
        scope.error(item, f"the function {item.name} has no value", "End it with 'return ...'.")
    scope.names[item.name] = types.Function(item, scope.source, scope.child())


def _program(item: tree.Program, scope: Scope, tops: dict[str, Any]) -> None:
    _new(item, item.name, scope, tops)
    inner = scope.child(kind=item.kind, sites={}, observed=set())
    own: set[str] = set()
    for parameter in (*item.parameters, *item.given):
        if parameter.name in own or parameter.name in KNOWN:
            scope.error(
                parameter,
                f"{parameter.name!r} is {'a parameter' if parameter.name in own else 'a name of the language'} already",
            )
        own.add(parameter.name)
        inner.names[parameter.name] = _parameter(parameter, scope, learned=parameter in item.parameters)
    inner.data = scope.data - own
    result = check_block(item.body, inner)
    used = {node.id for statement in item.body for node in tree.walk(statement) if isinstance(node, tree.Name)}
    sites = {name: kind for name, kind in inner.sites.items() if kind is not None}
    result = types.Trace(sites, item.name) if result is None else result
    names = tuple(p.name for p in item.given)
    observed = frozenset(inner.observed)
    scope.names[item.name] = types.Program(
        item.name, names, len(item.parameters), sites, observed, frozenset(used & scope.data) - observed, result
    )


def _alias(item: tree.Alias, scope: Scope, tops: dict[str, Any]) -> None:
    _new(item, item.name, scope, tops)
    kind = infer.infer(item.value, scope.child(kind="objective"))
    if kind is not ANY and not isinstance(kind, types.Program):
        scope.error(
            item.value, f"a {item.kind} is a program", "Such as marginal(q, x), normalize(p, proposal = q, particles = 10)."
        )
    if isinstance(kind, types.Program):
        kind = types.Program(item.name, kind.names, kind.total, kind.sites, kind.observed, kind.covariates, kind.result)
    scope.names[item.name] = kind


def _objective(item: tree.Objective, scope: Scope, tops: dict[str, Any]) -> None:
    _new(item, item.name, scope, tops)
    inner = scope.child(kind="objective")
    for setting in item.settings:
        value = infer.size(setting.value, scope)
        if setting.name in KNOWN or inner.lookup(setting.name) is not None:
            scope.error(setting, f"{setting.name!r} already stands for something else here")
        inner.names[setting.name] = ANY if value is None else Array((), "int", value)
    before = len(scope.report.diagnostics)
    for statement in item.body:
        _check_linear(statement, inner)
    kind = types.plain(check_block(item.body, inner))
    if len(scope.report.diagnostics) > before:
        return
    if kind is None:
        scope.error(item, f"the objective {item.name} has no value", "End it with an expression.")
    elif isinstance(kind, Array) and kind.shape:
        scope.error(
            item.body[-1], f"an objective is one number, and the shape is {scope.shape(kind.shape)}", "Sum or average it."
        )
    elif kind is not ANY and not isinstance(kind, Array):
        scope.error(item.body[-1], "an objective is one number")


def _check_linear(node: Node, scope: Scope) -> None:
    """Expectations stand where they count linearly: elsewhere, one draw in place of the expectation would be biased."""
    for part in tree.walk(node):
        inner: tuple[Node, ...] = ()
        what = ""
        if isinstance(part, tree.Unary) and part.operator == "log":
            inner, what = (part.operand,), "the logarithm"
        elif isinstance(part, tree.Call):
            inner, what = tuple(a.value for a in (*part.arguments, *part.given)), "a function"
        elif isinstance(part, tree.Binary) and part.operator == "^":
            inner, what = (part.left, part.right), "a power"
        elif isinstance(part, tree.Binary) and part.operator == "/":
            inner, what = (part.right,), "the inverse"
        elif isinstance(part, tree.Binary) and part.operator in ("<", "<=", ">", ">=", "==", "!=", "and", "or"):
            inner, what = (part.left, part.right), "a comparison"
        elif isinstance(part, tree.Absolute):
            inner, what = (part.value,), "the absolute value"
        elif isinstance(part, tree.Binder) and part.kind not in ("E", "sum", "mean"):
            inner, what = (part.body,), f"{part.kind!r}"
        for child in inner:
            for found in tree.walk(child):
                if isinstance(found, tree.Binder) and found.kind == "E":
                    scope.error(
                        found,
                        f"{what} of an expectation is not estimated without bias",
                        "Expectations are summed, and multiplied by numbers.",
                    )
                    return


def _fit(item: tree.Fit, scope: Scope, tops: dict[str, Any]) -> None:
    objectives = {name: top for name, top in tops.items() if isinstance(top, tree.Objective)}
    learned: set[str] = set()
    for name, top in tops.items():
        if isinstance(top, tree.Parameter):
            learned.add(name)
        elif isinstance(top, tree.Program) and top.parameters:
            learned |= {name, *(f"{name}.{p.name}" for p in top.parameters)}
    seen: set[str] = set()
    trained: dict[str, str] = {}
    for term in item.terms:
        if term.objective not in objectives:
            scope.error(term, f"there is no objective {term.objective!r}", did_you_mean(term.objective, objectives))
            continue
        if term.objective in seen:
            scope.error(term, f"the objective {term.objective!r} stands twice")
        seen.add(term.objective)
        names = [s.name for s in objectives[term.objective].settings]
        for setting in term.settings:
            if setting.name not in names:
                scope.error(setting, f"{term.objective} has no setting {setting.name!r}", did_you_mean(setting.name, names))
            infer.size(setting.value, scope)
        for path in term.over:
            if path not in learned:
                scope.error(term, f"there are no parameters {path!r}", did_you_mean(path, learned))
            for other, by in trained.items():
                if f"{path}.".startswith(f"{other}.") or f"{other}.".startswith(f"{path}."):
                    hint = "Objectives in alternation train different parameters. To train the same, add them up in one."
                    scope.error(term, f"{path!r} is trained by {by!r} already", hint)
                    break
            trained[path] = term.objective
        if not term.over and len(item.terms) > 1:
            scope.error(
                term,
                "objectives in alternation say which parameters they train",
                f"Write {term.objective} over ..., with some of: {', '.join(sorted(learned)) or 'none'}.",
            )
    if item.optimizer is not None:
        _optimizer(item.optimizer, scope, OPTIMIZERS, "optimizer")
    for option in item.options:
        value = infer.size(option.value, scope)
        if value is not None and value < (0 if option.name == "seed" else 1):
            scope.error(option, f"{option.name} is at least 1")
    if len({option.name for option in item.options}) < len(item.options):
        scope.error(item, "an option stands twice")


def _optimizer(node: Node, scope: Scope, table: Mapping[str, Any], what: str) -> None:
    if not isinstance(node, tree.Call) or not isinstance(node.function, tree.Name):
        scope.error(node, f"expected an {what} with its settings, such as adam(0.01)")
        return
    name = node.function.id
    if name not in table:
        hint = did_you_mean(name, table) or f"There are {', '.join(table)}."
        scope.error(node.function, f"there is no {what} {name!r}", hint)
        return
    signature = inspect.signature(table[name])
    try:
        signature.bind(
            *[0 for a in node.arguments if a.name is None], **{a.name: 0 for a in node.arguments if a.name is not None}
        )
    except TypeError as error:
        scope.error(node, f"{name}: {error}", f"It has {', '.join(signature.parameters)}.")
    for argument in node.arguments:
        if isinstance(argument.value, tree.Call):
            _optimizer(argument.value, scope, SCHEDULES, "schedule")
        else:
            infer.infer_array(argument.value, scope)


_CHECK: dict[type, Any] = {
    tree.Data: _data,
    tree.Params: _params,
    tree.Function: _function,
    tree.Program: _program,
    tree.Alias: _alias,
    tree.Objective: _objective,
    tree.Fit: _fit,
}
