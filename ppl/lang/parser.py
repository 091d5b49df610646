"""From text to tree."""

from __future__ import annotations

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import lark
from lark import Token

from ppl.errors import LanguageError
from ppl.lang import tree
from ppl.lang.diagnostics import Diagnostic, Source, at, fail
from ppl.lang.expected import explain
from ppl.lang.layout import Blocks, blanked
from ppl.lang.operators import MOST_NESTED, Head, TreeError, build, too_deep
from ppl.lang.tree import Node

_KEPT = frozenset(
    ("NAME", "NUMBER", "STRING", "MODULE", "KIND", "VERB", "OPTION", "PREFIX", "BINDER", "OPERATOR", "AND", "MINUS", "EQUAL")
) | {"TILDE"}


def parse(text: str | os.PathLike[str]) -> tree.File:
    """The syntax tree of a text, or of a file if a path is given (a `pathlib.Path`, or one line that ends in `.vi`).

    Raises:
        LanguageError: the text is wrong. It holds all that was found, with lines and columns.
        OSError: the file cannot be read.

    Example:
        >>> import ppl
        >>> file = ppl.parse("model coin:\\n    p ~ Beta(2, 2)\\n")
        >>> file.items[0].name
        'coin'
    """
    return parse_source(read(text))


def read(text: str | os.PathLike[str]) -> Source:
    """A text, or a file's, and its name."""
    if isinstance(text, str) and not (text.endswith(".vi") and "\n" not in text):
        return Source("<text>", text.removeprefix("\ufeff"))
    path = Path(text)
    try:
        return Source(str(path), path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        found = Diagnostic(str(path), 1, 1, 1, f"the file is no UTF-8 text (byte {error.start})", "", "Is it a binary file?")
        raise fail([found]) from None


def parse_source(source: Source) -> tree.File:
    blank, comments = blanked(source)
    try:
        items = _items(blank)
    except TreeError as error:
        raise fail(_all(source, blank, error)) from None
    return tree.File(items, span=(0, len(source.text)), comments=comments, name=source.name, text=source.text)


def parse_expression(text: str, name: str = "<formula>") -> Node:
    """The tree of one expression."""
    blank, _ = blanked(Source(name, text))
    try:
        node: Node = _run(blank.replace("\n", " ").rstrip() + " ", "expr")
        _check_depth(node)
    except TreeError as error:
        raise fail([at(Source(name, text), error.span, error.message, error.hint)]) from None
    return node


def _items(blank: str) -> tuple[Node, ...]:
    items = tuple(_run(blank, "start"))
    for item in items:
        _check_depth(item)
    return items


def _run(blank: str, start: str) -> Any:
    try:
        return _lark().parse(blank, start=start)
    except lark.exceptions.VisitError as error:
        raise error.orig_exc from None
    except lark.exceptions.UnexpectedInput as error:
        raise explain(error, blank) from None


@functools.cache
def _lark() -> lark.Lark:
    grammar = Path(__file__).with_name("grammar.lark").read_text(encoding="utf-8")
    return lark.Lark(
        grammar,
        parser="lalr",
        lexer="contextual",
        start=["start", "expr"],
        postlex=Blocks(),  # type: ignore[arg-type]
        transformer=_Build(),
        maybe_placeholders=False,
    )


def _all(source: Source, blank: str, first: TreeError) -> list[Diagnostic]:
    """The errors of a text: an erroneous line is taken out, and the rest parsed again."""
    found, lines, error = [], blank.split("\n"), first
    last = -1
    while True:
        found.append(at(source, error.span, error.message, error.hint))
        line = blank.count("\n", 0, error.span[0])
        if len(found) >= 20 or line <= last or line >= len(lines) or len(lines) > 20_000:
            return found
        last = line
        old = lines[line]
        indent = len(old) - len(old.lstrip())
        if indent == 0:  # the whole item
            lines[line] = " " * len(old)
            while line + 1 < len(lines) and (not lines[line + 1].strip() or lines[line + 1].startswith(" ")):
                line += 1
                lines[line] = " " * len(lines[line])
        elif old.rstrip().endswith(":") or error.message.startswith("unexpected indentation"):
            return found
        else:
            lines[line] = " " * indent + "_".ljust(len(old) - indent)
        try:
            _items("\n".join(lines))
            return found
        except TreeError as next_error:
            error = next_error


def _check_depth(item: Node) -> None:
    stack = [(item, 0)]
    while stack:
        node, depth = stack.pop()
        if depth > MOST_NESTED:
            raise too_deep(node.span)
        stack.extend((child, depth + 1) for child in tree.children(node))


def _start(part: Any) -> Any:
    return part.start_pos if isinstance(part, Token) else part.span[0]


def _end(part: Any) -> Any:
    return part.end_pos if isinstance(part, Token) else part.span[1]


class _Group(tuple[Any, ...]):
    """Several parts of a rule that is no node."""

    span: tree.Span
    kind: str


def _group(kind: str) -> Any:
    def make(self: Any, parts: list[Any]) -> _Group:
        kept, span = _kept(parts)
        group = _Group(kept)
        group.kind, group.span = kind, span
        return group

    return make


def _kept(parts: list[Any]) -> tuple[list[Any], tree.Span]:
    solid = [p for p in parts if not (isinstance(p, Token) and p.type.startswith("_"))]
    span = (_start(solid[0]), _end(solid[-1]))
    return [p for p in solid if not isinstance(p, Token) or p.type in _KEPT], span


def _split(parts: list[Any], *kinds: str) -> list[tuple[Any, ...]]:
    """The contents of the groups of these kinds, empty where there is none."""
    groups = {p.kind: tuple(p) for p in parts if isinstance(p, _Group)}
    return [groups.get(kind, ()) for kind in kinds]


class _Build(lark.Transformer):  # type: ignore[type-arg]
    """Nodes, made while the parser runs. Tokens without a meaning of their own are dropped by `_kept`."""

    def start(self, parts: list[Any]) -> list[Node]:
        return [p for p in parts if isinstance(p, Node)]

    def expr(self, parts: list[Any]) -> Node:
        return build(parts)

    def name(self, parts: list[Any]) -> Node:
        (token,) = parts
        return tree.Name(str(token), span=(token.start_pos, token.end_pos))

    def number(self, parts: list[Any]) -> Node:
        (token,) = parts
        span = (token.start_pos, token.end_pos)
        if token.isdigit() and (len(token) > 10 or int(token) >= 2**31):
            raise TreeError(span, "this integer is too large", "Write it with an exponent, 3e9, if it is a real number.")
        return tree.Number(str(token), span=span)

    def evaluate(self, parts: list[Any]) -> Node:
        return tree.Evaluate(parts[0], span=parts[0].span)

    names = _group("names")
    parameters = _group("parameters")
    given_parameters = _group("given")
    settings = _group("settings")
    arguments = _group("arguments")
    block = _group("block")
    place = _group("place")

    def argument(self, parts: list[Any]) -> Node:
        kept, span = _kept(parts)
        return tree.Argument(str(kept[0]) if len(kept) == 3 else None, kept[-1], span=span)


def _rule(make: Any) -> Any:
    def method(self: Any, parts: list[Any]) -> Any:
        kept, span = _kept(parts)
        return make(kept, span)

    return method


def _call(kept: list[Any], span: tree.Span) -> Node:
    groups = [tuple(group) for group in kept[1:]]
    return tree.Call(kept[0], *groups, span=span) if groups else tree.Call(kept[0], (), span=span)


def _draw(kept: list[Any], span: tree.Span) -> Node:
    return tree.Draw(kept[0], kept[2], kept[3] if len(kept) > 3 else None, span=span)


def _parameter(kept: list[Any], span: tree.Span) -> Node:
    kind = next((p for p in kept if isinstance(p, tree.Type)), None)
    sign = next((p for p in kept[1:] if isinstance(p, Token)), None)
    return tree.Parameter(
        str(kept[0]), kind, kept[-1] if sign is not None else None, sign is not None and sign.type == "TILDE", span=span
    )


def _program(kept: list[Any], span: tree.Span) -> Node:
    parameters, given, body = _split(kept, "parameters", "given", "block")
    if given:
        (given,) = given  # the parameters behind the bar
    return tree.Program(str(kept[0]), str(kept[1]), parameters, tuple(given), body, span=span)


def _function(kept: list[Any], span: tree.Span) -> Node:
    names, body = _split(kept, "names", "block")
    if isinstance(kept[-1], Node):
        body = (tree.Return(kept[-1], span=kept[-1].span),)
    return tree.Function(str(kept[0]), tuple(map(str, names)), body, span=span)


def _objective(kept: list[Any], span: tree.Span) -> Node:
    settings, body = _split(kept, "settings", "block")
    return tree.Objective(str(kept[0]), settings, body, span=span)


def _term(kept: list[Any], span: tree.Span) -> Node:
    over = tuple(".".join(map(str, p)) for p in kept if isinstance(p, _Group) and p.kind == "place")
    return tree.Term(str(kept[0]), _split(kept, "settings")[0], over, span=span)


def _fit(kept: list[Any], span: tree.Span) -> Node:
    terms = tuple(p for p in kept if isinstance(p, tree.Term))
    options = tuple(p for p in kept if isinstance(p, tree.Setting))
    rest = [p for p in kept[1:] if isinstance(p, Node) and p not in terms and p not in options]
    return tree.Fit(str(kept[0]), terms, rest[0] if rest else None, options, span=span)


def _branch(kept: list[Any], span: tree.Span) -> Node:
    condition, then, *rest = kept
    if not rest:
        otherwise: tuple[Any, ...] = ()
    elif isinstance(rest[0], tree.If):
        otherwise = (rest[0],)
    else:
        otherwise = tuple(rest[0])
    return tree.If(condition, tuple(then), otherwise, span=span)


def _else(kept: list[Any], span: tree.Span) -> Any:
    return kept[0]


def _import_file(kept: list[Any], span: tree.Span) -> Node:
    return tree.ImportFile(str(kept[0])[1:-1], span=span)


def _dotted(kept: list[Any], span: tree.Span) -> Node:
    return tree.ImportPython(str(kept[0]), tuple(map(str, kept[1:])), span=span)


RULES = {
    "import_file": _import_file,
    "import_python": _dotted,
    "data": lambda k, s: tree.Data(tuple(k), span=s),
    "declaration": lambda k, s: tree.Declaration(str(k[0]), k[1], span=s),
    "type": lambda k, s: tree.Type(str(k[0]), tuple(k[1:]), span=s),
    "params": lambda k, s: tree.Params(tuple(k), span=s),
    "parameter": _parameter,
    "program": _program,
    "alias": lambda k, s: tree.Alias(str(k[0]), str(k[1]), k[3], span=s),
    "function": _function,
    "objective": _objective,
    "setting": lambda k, s: tree.Setting(str(k[0]), k[2], span=s),
    "fit": _fit,
    "term": _term,
    "option": lambda k, s: tree.Setting(str(k[0]), k[1], span=s),
    "draw": _draw,
    "define": lambda k, s: tree.Define(k[0], k[2], span=s),
    "record": lambda k, s: tree.Define(k[0], k[1], True, span=s),
    "factor": lambda k, s: tree.Factor(str(k[0]), k[2], span=s),
    "result": lambda k, s: tree.Return(k[0], span=s),
    "loop": lambda k, s: tree.For(str(k[0]), k[1], tuple(k[2]), span=s),
    "branch": _branch,
    "elif": _branch,
    "else": _else,
    "binder": lambda k, s: Head(str(k[0]), tuple(k[1:]), s),
    "each": lambda k, s: tree.Each(str(k[0]), k[1], span=s),
    "call": _call,
    "index": lambda k, s: tree.Index(k[0], tuple(k[1:]), span=s),
    "all": lambda k, s: tree.All(span=s),
    "field": lambda k, s: tree.Field(k[0], str(k[1]), span=s),
    "transpose": lambda k, s: tree.Transpose(k[0], span=s),
    "group": lambda k, s: dataclasses.replace(k[0], span=s),
    "tuple": lambda k, s: tree.Tuple(tuple(k), span=s),
    "absolute": lambda k, s: tree.Absolute(k[0], span=s),
    "list": lambda k, s: tree.List(tuple(k), span=s),
    "comprehension": lambda k, s: tree.Comprehension(k[0], str(k[1]), k[2], span=s),
}
for _name, _make in RULES.items():
    setattr(_Build, _name, _rule(_make))

__all__ = ["LanguageError", "parse", "parse_expression", "parse_source", "read"]
