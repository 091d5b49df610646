"""The statements of programs, functions and objectives, checked one by one."""

from __future__ import annotations

import types as python_types
from typing import Any

from ppl.lang import infer, infer_programs, tree, types
from ppl.lang.builtins import KNOWN
from ppl.lang.environment import affine
from ppl.lang.infer_index import covered
from ppl.lang.loops import recurrences
from ppl.lang.scope import Scope
from ppl.lang.statements import address, assigned
from ppl.lang.tree import Node
from ppl.lang.types import ANY, Array, Pieces


def check_block(body: tuple[Node, ...], scope: Scope) -> Any:
    """The type of what a block gives: that of `return`, or of an expression that stands last."""
    result: Any = None
    for place, statement in enumerate(body):
        found = _CHECK[type(statement)](statement, scope)
        if isinstance(statement, tree.Return | tree.Evaluate):
            if place != len(body) - 1:
                scope.error(
                    statement, "what comes after this is never reached" if isinstance(statement, tree.Return) else _NOTHING
                )
            result = found
    return result


_NOTHING = "this expression does nothing here"


def check_function(function: types.Function, arguments: tuple[Any, ...]) -> Any:
    """The type of a function's value for arguments of these types."""
    scope = function.scope.child(kind="function", loops=())
    scope.names.update(zip(function.definition.parameters, arguments, strict=True))
    result = check_block(function.definition.body, scope)
    if result is None:
        return scope.error(
            function.definition, f"the function {function.definition.name} has no value", "End it with 'return ...'."
        )
    return result


def define(node: Node, name: str, scope: Scope, again: bool = False) -> bool:
    """Whether a name may be given a meaning here."""
    if name in KNOWN:
        scope.error(node, f"{name!r} is a name of the language", "Choose another.")
        return False
    if not again and scope.lookup(name) is not None and name not in scope.data:
        hint = f"Names are defined once. What changes along a loop has an index: {name}[t] = ... {name}[t-1] ..."
        scope.error(node, f"{name!r} is defined already", hint)
        return False
    return True


def parts_of(node: Node, scope: Scope, drawn: bool) -> tuple[str, list[str], int | None, list[int]] | None:
    """A target's name, its loop variables, its last index if that is a number, and how many copies; None where it is wrong."""
    if isinstance(node, tree.Name):
        if scope.loops and drawn:
            index = ", ".join(scope.loops)
            scope.error(node, f"{node.id!r} is drawn in a loop and needs its index", f"Write {node.id}[{index}] ~ ...")
            return None
        return node.id, [], None, []
    if not isinstance(node, tree.Index) or not isinstance(node.value, tree.Name):
        scope.error(node, "expected a name, such as x or x[j]")
        return None
    lanes: list[str] = []
    last: int | None = None
    counts: list[int] = []
    for place in node.places:
        match = affine(place, scope.loops)
        if match is not None and not counts and last is None and match[1] == 0:
            lanes.append(match[0])
        elif isinstance(place, tree.Binary) and place.operator == "..":
            found = infer.interval(place, scope)
            if found is None:
                return None
            if found[0] != 1:
                scope.error(place, "independent copies are counted from 1", "Write a loop: for j in 2..N: ...")
                return None
            counts.append(found[1])
        elif match is None and not isinstance(place, tree.All) and last is None and not counts:
            number = infer.size(place, scope)
            if number is None:
                return None
            last = number
        else:
            wanted = [*scope.loops, *(_shown(p, scope) for p in node.places if affine(p, scope.loops) is None)]
            scope.error(
                node,
                "the index of what is defined has the loops' variables first, then a number or ranges",
                f"Write {node.value.id}[{', '.join(wanted)}], and in this order wherever it is used.",
            )
            scope.names.setdefault(node.value.id, ANY)
            return None
    if tuple(lanes) != scope.loops:
        order = ", ".join((*scope.loops, "..."))[: -5 if scope.loops else None]
        scope.error(node, f"the index has to begin with the variables of the loops around: {node.value.id}[{order}]")
        return None
    return node.value.id, lanes, last, counts


def _shown(place: Node, scope: Scope) -> str:
    start, end = place.span
    return scope.source.text[start:end]


def _draw(node: tree.Draw, scope: Scope) -> None:
    if scope.kind == "objective":
        infer_programs.check_draw(node, scope)
        return
    kind = infer_programs.source_type(node.source, scope)
    if node.estimator is not None:
        infer_programs.check_estimator(node.estimator, scope)
    if scope.kind == "function":
        scope.error(node, "a function draws nothing", "What draws is a model or a family.")
        return
    parts = parts_of(node.target, scope, drawn=True)
    if parts is None:
        return
    name, lanes, last, counts = parts
    if name in scope.data and scope.kind == "family":
        scope.error(
            node.target, f"{name!r} is data, and a family draws what is not known", "A model may have data at its sites."
        )
        return
    if not define(node.target, name, scope, again=bool(lanes) or last is not None):
        return
    at = address(name, last)
    if at in scope.sites:
        scope.error(node.target, f"{at!r} is drawn already")
        return
    lengths = [scope.lengths[lane] for lane in lanes]
    if isinstance(kind, types.Program):
        for inner, site in (kind.sites or {}).items():
            shape = (*lengths, *counts, *site.shape) if isinstance(site, Array) else ()
            scope.sites[f"{at}/{inner}"] = Array(shape, site.dtype) if isinstance(site, Array) else ANY
        element: Any = kind.result if not counts else ANY
        scope.sites.setdefault(at, None)
    elif isinstance(kind, types.Distribution):
        element = Array((*counts, *kind.shape), kind.dtype, zero_based=kind.zero_based)
        scope.sites[at] = Array((*lengths, *element.shape), element.dtype)
    else:
        element = ANY
        scope.sites[at] = ANY
        if kind is not ANY:
            scope.error(node.source, "expected a distribution or a program behind '~'", "A definition has '='.")
    if name in scope.data:
        scope.observed.add(name)
        _observation(node, kind, element, scope)
    else:
        store(name, lanes, last, element, scope)


def _observation(node: tree.Draw, kind: Any, element: Any, scope: Scope) -> None:
    """An observation has exactly the shape of its distribution."""
    declared = infer.infer_array(node.target, scope, "the target")
    if not isinstance(kind, types.Distribution):
        if kind is not ANY:
            scope.error(node.target, "data are observed at distributions")
        return
    if isinstance(declared, Array) and isinstance(element, Array) and declared.shape != element.shape:
        hint = ""
        if not element.shape and isinstance(node.target, tree.Name):
            ranges = ", ".join(f"1..{scope.report.sizes.show(size)}" for size in declared.shape)
            hint = f"For independent elements write {node.target.id}[{ranges}] ~ ..., or a loop."
        scope.error(
            node,
            f"the data have the shape {scope.shape(declared.shape)}, and the distribution {scope.shape(element.shape)}",
            hint,
        )


def store(name: str, lanes: list[str], last: int | None, element: Any, scope: Scope) -> None:
    ranges = [(scope.names[lane].low, scope.names[lane].high + 1) for lane in lanes]
    if any(bound is None for pair in ranges for bound in pair):
        scope.names[name] = ANY
        return
    if last is not None:
        ranges.append((last, last + 1))
    scope.names[name] = _put(scope.names.get(name), ranges, element)


def _put(before: Any, ranges: list[tuple[int, int]], element: Any) -> Any:
    if not ranges:
        return element
    first, *rest = ranges
    parts = before.parts if isinstance(before, Pieces) else ()
    inner = before.element if isinstance(before, Pieces) and first in parts else None
    return Pieces(_put(inner, rest, element), tuple(sorted({*parts, first})))


def _define(node: tree.Define, scope: Scope) -> None:
    kind = infer.infer(node.value, scope)
    if scope.kind == "objective" and any(isinstance(n, tree.Binder) and n.kind == "E" for n in tree.walk(node.value)):
        scope.error(node, "an expectation has no name", "Draw with 'z ~ q' on a line of its own, and go on.")
    parts = parts_of(node.target, scope, drawn=False) if isinstance(node.target, tree.Index) else None
    if isinstance(node.target, tree.Name):
        parts = (node.target.id, [], None, [])
    elif not isinstance(node.target, tree.Index):
        scope.error(node.target, "expected a name on the left of '='")
    if parts is None:
        return
    name, lanes, last, counts = parts
    if name in scope.data:
        scope.error(node.target, f"{name!r} is data")
        return
    if counts:
        scope.error(node.target, "a definition has no range", "Define it whole: x = ..., or x[j] = ... in a loop.")
        return
    if not define(node.target, name, scope, again=bool(lanes) or last is not None):
        return
    if node.recorded and scope.kind in ("objective", "function"):
        scope.error(node, f"':=' records in a trace, and a {scope.kind} has none", "Write '='.")
    if lanes or last is not None:
        store(name, lanes, last, types.plain(kind), scope)
    else:
        scope.names[name] = kind


def _factor(node: tree.Factor, scope: Scope) -> None:
    if scope.kind not in ("model", "family"):
        scope.error(node, "a factor stands in a model")
    infer.infer_array(node.value, scope)


def _return(node: tree.Return, scope: Scope) -> Any:
    if scope.loops and scope.kind != "function":
        return scope.error(node, "'return' stands at the end of a program, and not in a loop")
    return infer.infer(node.value, scope)


def _evaluate(node: tree.Evaluate, scope: Scope) -> Any:
    kind = infer.infer(node.value, scope)
    if scope.kind in ("model", "family"):
        return scope.error(node, _NOTHING, "A term of the log density is written 'factor name = ...'.")
    return kind


def _for(node: tree.For, scope: Scope) -> None:
    if scope.kind == "objective":
        scope.error(node, "an objective has no loops", "Write sum[k in 1..K] ..., or [... for k in 1..K].")
        return
    found = infer.interval(node.domain, scope)
    if node.name in KNOWN or scope.lookup(node.name) is not None:
        scope.error(node, f"{node.name!r} already stands for something else here")
        return
    inner = scope.child(loops=(*scope.loops, node.name), lengths=dict(scope.lengths))
    if found is None:
        inner.names[node.name] = Array((), "int", None, 1, 1)
        inner.lengths[node.name] = 1
    else:
        inner.names[node.name] = Array((), "int", None, *found)
        inner.lengths[node.name] = found[1] - found[0] + 1
        if isinstance(node.domain, tree.Call):
            inner.lengths[node.name] = infer.size(node.domain.arguments[1].value, scope) or 1
        _begin(node, found, scope, inner)
    check_block(node.body, inner)
    for name, targets in assigned(node.body).items():
        if any(isinstance(target, tree.Index) for target in targets) and name in inner.names:
            scope.names[name] = inner.names[name]


def _begin(node: tree.For, found: tuple[int, int], scope: Scope, inner: Scope) -> None:
    """What a recurrence looks back at has to be defined before it; from there on, all of it is."""
    written = frozenset(assigned(node.body)) - scope.data
    lags = recurrences(node.body, node.name, written, python_types.SimpleNamespace(loops=scope.loops))  # type: ignore[arg-type]
    for (name, outer), lag in lags.items():
        if isinstance(node.domain, tree.Call):
            scope.error(node, "a recurrence has no minibatches")
        kind = scope.names.get(name)
        if kind is ANY:  # what was wrong with it has been said
            continue
        levels = len(outer)
        for _ in range(levels):
            kind = kind.element if isinstance(kind, Pieces) else None
        first = found[0] - lag
        if not isinstance(kind, Pieces) or first < 1 or not covered(first, found[0] - 1, kind.parts):
            shown = f"{name}[{', '.join((*(v for _, v, _ in sorted(outer)), scope.report.sizes.show(first)))}]"
            scope.error(
                node,
                f"the recurrence looks at {shown}, which is not defined before it",
                f"Begin with '{shown} ~ ...' or start the loop later.",
            )
            inner.names[name] = ANY
            continue
        full: Any = Pieces(kind.element, tuple(sorted({*kind.parts, (found[0], found[1] + 1)})))
        for place in range(levels - 1, -1, -1):
            above = scope.names[name]
            for _ in range(place):
                above = above.element
            full = Pieces(full, above.parts)
        inner.names[name] = full


def _if(node: tree.If, scope: Scope) -> None:
    kind = infer.infer_array(node.condition, scope)
    if isinstance(kind, Array) and kind.shape:
        scope.error(node.condition, f"a condition is one truth value, and the shape is {scope.shape(kind.shape)}")
    if scope.kind not in ("model", "family"):
        scope.error(node, f"'if' stands in a program, and not in a {scope.kind}", "Write where(condition, a, b).")
        return
    branches = []
    for body in (node.then, node.otherwise):
        inner = scope.child(sites=dict(scope.sites))
        check_block(body, inner)
        branches.append(inner)
    for inner in branches:
        scope.sites.update(inner.sites)
    shared = [name for name in assigned(node.then) if name in assigned(node.otherwise) and name not in scope.data]
    for name in shared:
        one, other = (types.plain(inner.names.get(name, ANY)) for inner in branches)
        if isinstance(one, Array) and isinstance(other, Array) and one.shape != other.shape:
            scope.error(
                node,
                f"{name!r} has the shape {scope.shape(one.shape)} in one branch and {scope.shape(other.shape)} in the other",
            )
        scope.names[name] = branches[0].names.get(name, ANY)


_CHECK: dict[type, Any] = {
    tree.Draw: _draw,
    tree.Define: _define,
    tree.Factor: _factor,
    tree.Return: _return,
    tree.Evaluate: _evaluate,
    tree.For: _for,
    tree.If: _if,
}
