"""The types of expressions. What is wrong is reported once, and its type is unknown from there on."""

from __future__ import annotations

import operator
from typing import Any

from ppl.lang import infer_calls, infer_index, tree, types
from ppl.lang.scope import Scope
from ppl.lang.tree import Node
from ppl.lang.types import ANY, Array, plain

_STATIC = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def infer(node: Node, scope: Scope) -> Any:
    """The type of an expression."""
    scope.report.cost += 1
    return _INFER[type(node)](node, scope)


def infer_array(node: Node, scope: Scope, what: str = "this") -> Any:
    """The same, where only an array or number will do."""
    kind = plain(infer(node, scope))
    if kind is ANY or isinstance(kind, Array):
        return kind
    nouns = {
        types.Distribution: "a distribution",
        types.Trace: "a trace",
        types.Program: "a program",
        types.Function: "a function",
        types.Pieces: "a part of an array",
    }
    hint = "A distribution is drawn from with '~'." if isinstance(kind, types.Distribution) else ""
    return scope.error(node, f"expected an array or a number, and {what} is {nouns.get(type(kind), 'something else')}", hint)


def size(node: Node, scope: Scope) -> int | None:
    """An integer known before anything runs; None where it is wrong, which is reported."""
    kind = infer_array(node, scope)
    if isinstance(kind, Array) and isinstance(kind.value, int):
        return kind.value
    if kind is not ANY:
        scope.error(
            node, "expected an integer that is known before anything runs", "A number, a size of data, or a sum of these."
        )
    return None


def interval(node: Node, scope: Scope) -> tuple[int, int] | None:
    """The first and last number of a range `a..b`, or of `batch(a..b, n)`."""
    if isinstance(node, tree.Call) and isinstance(node.function, tree.Name) and node.function.id == "batch":
        if len(node.arguments) != 2:
            scope.error(node, "expected 'batch(1..N, size)'")
            return None
        found, count = interval(node.arguments[0].value, scope), size(node.arguments[1].value, scope)
        if found is not None and count is not None and count > found[1] - found[0] + 1:
            scope.error(node, f"a batch of {count} does not fit {found[1] - found[0] + 1} elements")
        return found
    if not isinstance(node, tree.Binary) or node.operator != "..":
        scope.error(node, "expected a range", "Write 1..N, or batch(1..N, 64) for random minibatches.")
        return None
    low, high = size(node.left, scope), size(node.right, scope)
    if low is None or high is None:
        return None
    if high < low:
        shown = scope.report.sizes.show
        scope.error(node, f"the range from {shown(low)} to {shown(high)} is empty")
        return None
    return low, high


def _name(node: tree.Name, scope: Scope) -> Any:
    found = scope.lookup(node.id)
    if found is None:
        if infer_calls.known(node.id):
            return scope.error(node, f"{node.id!r} is a function or distribution, and needs its arguments in parentheses")
        return scope.unknown(node, node.id)
    return found


def _number(node: tree.Number, scope: Scope) -> Any:
    value = node.value
    return Array((), "int" if isinstance(value, int) else "float", value)


def _unary(node: tree.Unary, scope: Scope) -> Any:
    if node.operator == "log":
        kind = infer_calls.infer_positive(node.operand, scope)
        return Array(kind.shape) if isinstance(kind, Array) else kind
    kind = infer_array(node.operand, scope)
    if not isinstance(kind, Array):
        return kind
    if node.operator == "not":
        return Array(kind.shape, "bool")
    return Array(kind.shape, kind.dtype, None if kind.value is None else -kind.value)


def _binary(node: tree.Binary, scope: Scope) -> Any:
    if node.operator == "..":
        return scope.error(node, "a range has no value here", "Ranges stand in 'for', in 'sum[k in 1..K]' and in indices.")
    left, right = infer_calls.infer_positive(node.left, scope), infer_calls.infer_positive(node.right, scope)
    if not isinstance(left, Array) or not isinstance(right, Array):
        return ANY
    if node.operator == "@":
        return _product(node, left, right, scope)
    shape = broadcast(left.shape, right.shape)
    if shape is None:
        return scope.error(
            node,
            f"the shapes {scope.shape(left.shape)} and {scope.shape(right.shape)} do not go together under {node.operator!r}",
        )
    if node.operator in ("==", "!=", "<", "<=", ">", ">=", "and", "or"):
        return Array(shape, "bool")
    if node.operator in _STATIC:
        return _arithmetic(node.operator, left, right, shape)
    integral = node.operator == "^" and left.dtype == "int" and right.dtype == "int"
    return Array(shape, "int" if integral else "float")


def _arithmetic(sign: str, left: Array, right: Array, shape: tuple[int, ...]) -> Array:
    dtype = "float" if "float" in (left.dtype, right.dtype) else "int"
    value = None
    if left.value is not None and right.value is not None:
        value = _STATIC[sign](left.value, right.value)
        value = None if abs(value) >= 2**31 else value
    low = high = None
    if sign in "+-" and isinstance(right.value, int) and left.low is not None and left.high is not None:
        low, high = (_STATIC[sign](bound, right.value) for bound in (left.low, left.high))
    elif sign == "+" and isinstance(left.value, int) and right.low is not None and right.high is not None:
        low, high = left.value + right.low, left.value + right.high
    return Array(shape, dtype, value, low, high)


def broadcast(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of two arrays together, or None."""
    length = max(len(one), len(other))
    pairs = zip((1,) * (length - len(one)) + one, (1,) * (length - len(other)) + other, strict=True)
    shape = []
    for a, b in pairs:
        if a != b and 1 not in (a, b):
            return None
        shape.append(max(a, b) if 1 in (a, b) else a)
    return tuple(shape)


def _product(node: tree.Binary, left: Array, right: Array, scope: Scope) -> Any:
    shapes = f"{scope.shape(left.shape)} and {scope.shape(right.shape)}"
    if not left.shape or not right.shape:
        return scope.error(
            node, f"'@' multiplies matrices and vectors, and the shapes are {shapes}", "Numbers are multiplied with '*'."
        )
    try:
        return types.applied(_matmul, (Array(left.shape, left.dtype), Array(right.shape, right.dtype)))
    except types.WrongTypesError:
        return scope.error(node, f"the shapes {shapes} do not go together under '@'")


def _matmul(a: Any, b: Any) -> Any:
    return a @ b


def _absolute(node: tree.Absolute, scope: Scope) -> Any:
    kind = infer_array(node.value, scope)
    if isinstance(kind, Array) and len(kind.shape) > 1:
        return scope.error(node, f"|x| is of a number or a vector, and the shape is {scope.shape(kind.shape)}")
    return Array((), kind.dtype if not kind.shape else "float") if isinstance(kind, Array) else ANY


def _transpose(node: tree.Transpose, scope: Scope) -> Any:
    kind = infer_array(node.value, scope)
    return Array(kind.shape[::-1], kind.dtype) if isinstance(kind, Array) else ANY


def _list(node: tree.List, scope: Scope) -> Any:
    kinds = [infer_array(item, scope) for item in node.items]
    if not kinds:
        return scope.error(node, "an empty list has no shape", "Write zeros(0).")
    if not all(isinstance(kind, Array) for kind in kinds):
        return ANY
    shapes = {kind.shape for kind in kinds}
    if len(shapes) > 1:
        return scope.error(node, f"the items of a list have the shapes {' and '.join(map(scope.shape, sorted(shapes)))}")
    dtype = "float" if any(kind.dtype == "float" for kind in kinds) else kinds[0].dtype
    return Array((len(kinds), *kinds[0].shape), dtype)


def _field(node: tree.Field, scope: Scope) -> Any:
    kind = infer(node.value, scope)
    if isinstance(kind, types.Trace):
        names = {address.split("/")[0] for address in kind.sites}
        if node.name in kind.sites:
            found = kind.sites[node.name]
            return Array((kind.count, *found.shape), found.dtype) if kind.count and isinstance(found, Array) else found
        if node.name in names:
            return ANY
        from ppl.lang.diagnostics import did_you_mean

        if kind.sites:
            return scope.error(
                node,
                f"{kind.program} draws no {node.name!r}",
                did_you_mean(node.name, names) or f"It draws {', '.join(kind.sites)}.",
            )
        return ANY
    if kind is not ANY:
        return scope.error(node, "only the draws of programs have parts with names")
    return ANY


def _comprehension(node: tree.Comprehension, scope: Scope) -> Any:
    inner, count = each(node.name, node.domain, scope, node)
    kind = infer_array(node.body, inner)
    return Array((count, *kind.shape), kind.dtype) if isinstance(kind, Array) and count is not None else ANY


def each(name: str, node: Node, scope: Scope, at: Node) -> tuple[Scope, int | None]:
    """The scope of what an index runs over, and how many values that are."""
    found = interval(node, scope)
    if scope.lookup(name) is not None and (scope.kind == "objective" or name in scope.loops):
        scope.error(at, f"{name!r} already stands for something else here")
    inner = scope.child(loops=(*scope.loops, name))
    inner.names[name] = Array((), "int") if found is None else Array((), "int", None, *found)
    return inner, None if found is None else found[1] - found[0] + 1


def _refuse(node: Node, scope: Scope) -> Any:
    return scope.error(node, "this has no value here")


_INFER: dict[type, Any] = {
    tree.Name: _name,
    tree.Number: _number,
    tree.Unary: _unary,
    tree.Binary: _binary,
    tree.Absolute: _absolute,
    tree.Transpose: _transpose,
    tree.List: _list,
    tree.Field: _field,
    tree.Index: lambda node, scope: infer_index.infer_index(node, scope),
    tree.Call: lambda node, scope: infer_calls.infer_call(node, scope),
    tree.Binder: lambda node, scope: infer_calls.infer_binder(node, scope),
    tree.Comprehension: _comprehension,
    tree.Tuple: _refuse,
    tree.All: _refuse,
}
