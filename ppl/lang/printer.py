"""From a tree back to text, in one form. Parsing what is printed gives the same tree."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from ppl.lang import tree
from ppl.lang.operators import LEVELS, MINUS, NOT
from ppl.lang.tree import Node

WIDTH = 100
_ATOM, _POSTFIX, _LOG = 12, 11, 10


def expression(node: Node) -> str:
    """An expression as text."""
    return _print(node)[0]


def _print(node: Node) -> tuple[str, int]:
    """The text, and how tightly its outermost operator binds."""
    match node:
        case tree.Name(id=name):
            return name, _ATOM
        case tree.Number(text=text):
            return text, _ATOM
        case tree.Call(function=function, arguments=arguments, given=given):
            inside = _list(map(_argument, arguments)) + (f" | {_list(map(_argument, given))}" if given else "")
            return f"{_at(function, _POSTFIX)}({inside})", _POSTFIX
        case tree.Index(value=value, places=places):
            return f"{_at(value, _POSTFIX)}[{_list(map(_place, places))}]", _POSTFIX
        case tree.Field(value=value, name=name):
            return f"{_at(value, _POSTFIX)}.{name}", _POSTFIX
        case tree.Transpose(value=value):
            return f"{_at(value, _POSTFIX)}'", _POSTFIX
        case tree.Absolute(value=value):
            return f"|{expression(value)}|", _ATOM
        case tree.Tuple(items=items):
            return f"({_list(map(expression, items))})", _ATOM
        case tree.List(items=items):
            return f"[{_list(map(expression, items))}]", _ATOM
        case tree.Comprehension(body=body, name=name, domain=domain):
            return f"[{expression(body)} for {name} in {expression(domain)}]", _ATOM
        case tree.Unary(operator="log", operand=operand):
            text, level = _print(operand)
            if isinstance(operand, tree.Unary) and operand.operator == "log":
                return f"log {text}", _LOG
            return (f"log {text}" if isinstance(operand, tree.Call) else f"log({text})"), _LOG
        case tree.Unary(operator=operator, operand=operand):
            level = NOT if operator == "not" else MINUS
            return f"{operator}{' ' if operator == 'not' else ''}{_at(operand, level, last=True)}", level
        case tree.Binary(operator=operator, left=left, right=right):
            return _binary(operator, left, right)
        case tree.Binder(kind=kind, clauses=clauses, body=body):
            return f"{kind}[{_list(map(_clause, clauses))}] {_at(body, 2, last=True)}", 0
    raise TypeError(f"no expression: {node!r}")


def _at(node: Node, least: int, last: bool = False) -> str:
    """The text, in parentheses where it binds less tightly than that. A binder may stand last without any."""
    text, level = _print(node)
    free = last and isinstance(node, tree.Binder)
    return text if level >= least or free else f"({text})"


def _binary(operator: str, left: Node, right: Node) -> tuple[str, int]:
    level = LEVELS[operator]
    chains = level not in (1, 5)
    left_least, right_least = (level + 1, level) if operator == "^" else (level if chains else level + 1, level + 1)
    one = _at(left, left_least)
    other = _at(right, right_least)
    if operator == "^" and isinstance(left, tree.Unary) and left.operator == "log":
        one = f"({_print(left)[0]})"
    elif _ends_open(left):
        one = one if one.startswith("(") and one.endswith(")") and _at(left, 99) == one else f"({_print(left)[0]})"
    if operator == "^" and isinstance(right, tree.Unary) and right.operator == "-":
        other = f"({_print(right)[0]})"
    space = "" if operator in ("^", "..") else " "
    return f"{one}{space}{operator}{space}{other}", level


def _ends_open(node: Node) -> bool:
    """Whether what follows would be read as a part of it: it ends in a binder, or in a prefix of low precedence."""
    while True:
        if isinstance(node, tree.Binder):
            return True
        if isinstance(node, tree.Binary):
            node = node.right
        elif isinstance(node, tree.Unary) and node.operator != "log":
            if node.operator == "not":
                return True
            node = node.operand
        else:
            return False


def _argument(node: tree.Argument) -> str:
    return expression(node.value) if node.name is None else f"{node.name} = {expression(node.value)}"


def _place(node: Node) -> str:
    return ":" if isinstance(node, tree.All) else expression(node)


def _clause(node: Node) -> str:
    match node:
        case tree.Each(name=name, domain=domain):
            return f"{name} in {expression(domain)}"
        case tree.Draw():
            return _draw(node)
    return expression(node)


def _draw(node: tree.Draw) -> str:
    using = f" using {expression(node.estimator)}" if node.estimator is not None else ""
    return f"{expression(node.target)} ~ {expression(node.source)}{using}"


def _list(items: Any) -> str:
    return ", ".join(items)


def _type(node: tree.Type) -> str:
    return node.name + (f"[{_list(map(expression, node.dimensions))}]" if node.dimensions else "")


def _parameter(node: tree.Parameter) -> str:
    text = node.name + (f": {_type(node.type)}" if node.type is not None else "")
    return text + (f" {'~' if node.drawn else '='} {expression(node.initial)}" if node.initial is not None else "")


def _setting(node: tree.Setting) -> str:
    return f"{node.name} = {expression(node.value)}"


def _term(node: tree.Term) -> str:
    settings = f"({_list(map(_setting, node.settings))})" if node.settings else ""
    return node.objective + settings + (f" over {' and '.join(node.over)}" if node.over else "")


Lines = Iterator[tuple[int, str, Node]]
"""Depth of indentation, text, and the node that the line begins."""


def lines(node: Node, depth: int = 0) -> Lines:
    """The lines of a statement or item."""
    match node:
        case tree.Draw():
            yield depth, _draw(node), node
        case tree.Define(target=target, value=value, recorded=recorded):
            yield depth, f"{expression(target)} {':=' if recorded else '='} {expression(value)}", node
        case tree.Factor(name=name, value=value):
            yield depth, f"factor {name} = {expression(value)}", node
        case tree.Return(value=value):
            yield depth, f"return {expression(value)}", node
        case tree.Evaluate(value=value):
            yield depth, expression(value), node
        case tree.For(name=name, domain=domain, body=body):
            yield depth, f"for {name} in {expression(domain)}:", node
            yield from _block(body, depth)
        case tree.If():
            yield from _if(node, depth, "if")
        case tree.ImportFile(path=path):
            yield depth, f'import "{path}"', node
        case tree.ImportPython(module=module, names=names):
            yield depth, f"from {module} import {_list(names)}", node
        case tree.Data(declarations=declarations):
            yield depth, "data " + "; ".join(f"{d.name}: {_type(d.type)}" for d in declarations), node
        case tree.Params(parameters=parameters):
            yield depth, "param " + "; ".join(map(_parameter, parameters)), node
        case tree.Program(kind=kind, name=name, parameters=parameters, given=given, body=body):
            inside = [_list(map(_parameter, parameters))] if parameters else []
            inside += [f"| {_list(map(_parameter, given))}"] if given else []
            yield depth, f"{kind} {name}" + (f"({' '.join(inside)}):" if inside else ":"), node
            yield from _block(body, depth)
        case tree.Alias(kind=kind, name=name, value=value):
            yield depth, f"{kind} {name} = {expression(value)}", node
        case tree.Function(name=name, parameters=names, body=body):
            head = f"function {name}({_list(names)})"
            if len(body) == 1 and isinstance(body[0], tree.Return):
                yield depth, f"{head} = {expression(body[0].value)}", node
            else:
                yield depth, f"{head}:", node
                yield from _block(body, depth)
        case tree.Objective(name=name, settings=settings, body=body):
            yield depth, f"objective {name}" + (f"({_list(map(_setting, settings))}):" if settings else ":"), node
            yield from _block(body, depth)
        case tree.Fit(verb=verb, terms=terms, optimizer=optimizer, options=options):
            text = f"{verb} {_list(map(_term, terms))}"
            text += f" with {expression(optimizer)}" if optimizer is not None else ""
            yield depth, text + "".join(f", {o.name} {expression(o.value)}" for o in options), node


def _block(body: tuple[Node, ...], depth: int) -> Lines:
    for statement in body:
        yield from lines(statement, depth + 1)


def _if(node: tree.If, depth: int, word: str) -> Lines:
    yield depth, f"{word} {expression(node.condition)}:", node
    yield from _block(node.then, depth)
    if len(node.otherwise) == 1 and isinstance(node.otherwise[0], tree.If):
        yield from _if(node.otherwise[0], depth, "elif")
    elif node.otherwise:
        yield depth, "else:", tree.Comment("", span=(node.otherwise[0].span[0], node.otherwise[0].span[0]))
        yield from _block(node.otherwise, depth)


def show(file: tree.File) -> str:
    """A file as text, with its comments."""
    from ppl.lang.formatter import layout

    return layout(file)


def format_source(text: str | os.PathLike[str]) -> str:
    """A text in the language's one form: indented by four, spaced, with its comments and at most one blank line in a row.

    Args:
        text: the text, or the path of a `.vi` file, which is not changed.

    Raises:
        LanguageError: the text does not parse.

    Example:
        >>> from ppl.lang import format_source
        >>> print(format_source("model m:   # a coin\\n  p~Beta( 2,2 )\\n"), end="")
        model m:  # a coin
            p ~ Beta(2, 2)
    """
    from ppl.lang.parser import parse

    return show(parse(text))
