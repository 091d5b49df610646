"""Precedence: from the flat sequence that the grammar reads to a tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lark import Token

from ppl.lang.tree import Binary, Binder, Call, Node, Span, Unary

LEVELS = {
    "..": 1,
    "or": 2,
    "and": 3,
    "==": 5,
    "!=": 5,
    "<": 5,
    "<=": 5,
    ">": 5,
    ">=": 5,
    "+": 6,
    "-": 6,
    "*": 7,
    "/": 7,
    "@": 7,
    "^": 9,
}
NOT, COMPARISON, MINUS, POWER, BODY = 4, 5, 8, 9, 2
"""Levels of `not`, comparisons, the sign, and what a binder's body may hold: everything up to `or`."""

MOST_NESTED = 100


class Head(NamedTuple):
    """`E[z ~ q]`, before its body."""

    kind: str
    clauses: tuple[Node, ...]
    span: Span


class TreeError(Exception):
    """What a tree cannot hold, at a part of the text."""

    def __init__(self, span: Span, message: str, hint: str = ""):
        super().__init__(message)
        self.span, self.message, self.hint = span, message, hint


def too_deep(span: Span) -> TreeError:
    return TreeError(span, f"nested more than {MOST_NESTED} levels deep", "Give parts of it names of their own.")


def build(items: Sequence[Any]) -> Node:
    """The tree of operands (nodes), operators and prefixes (tokens), and binders' heads."""
    if len(items) == 1:
        return items[0]  # type: ignore[no-any-return]
    node, end = _binary(items, 0, 1, 0)
    assert end == len(items)
    return node


def _binary(items: Sequence[Any], place: int, least: int, depth: int) -> tuple[Node, int]:
    left, place = _operand(items, place, depth)
    while place < len(items):
        operator = items[place]
        level = LEVELS[operator]
        if level < least:
            break
        right, place = _binary(items, place + 1, level if operator == "^" else level + 1, depth + 1)
        left = Binary(str(operator), left, right, span=(left.span[0], right.span[1]))
        following = items[place] if place < len(items) else None
        if following is not None and level == LEVELS[following] and level in (1, COMPARISON):
            raise TreeError(
                (following.start_pos, following.end_pos),
                f"{str(following)!r} after {str(operator)!r}: comparisons and ranges do not chain",
                "Write 'a < b and b < c'." if level == COMPARISON else "",
            )
    return left, place


def _operand(items: Sequence[Any], place: int, depth: int) -> tuple[Node, int]:
    item = items[place]
    if depth > MOST_NESTED:
        raise too_deep(item.span if isinstance(item, Node | Head) else (item.start_pos, item.end_pos))
    if isinstance(item, Node):
        return item, place + 1
    if isinstance(item, Head):
        body, place = _binary(items, place + 1, BODY, depth + 1)
        return Binder(item.kind, item.clauses, body, span=(item.span[0], body.span[1])), place
    start = item.start_pos
    if item == "log":
        operand, place = _operand(items, place + 1, depth + 1)
        node: Node = Unary("log", operand, span=(start, operand.span[1]))
        _refuse_power_of_log(items, place, item, operand)
        return node, place
    operand, place = _binary(items, place + 1, NOT if item == "not" else MINUS, depth + 1)
    return Unary(str(item), operand, span=(start, operand.span[1])), place


def _refuse_power_of_log(items: Sequence[Any], place: int, log: Token, operand: Node) -> None:
    """`log x^2` reads as the logarithm of a square, and is none."""
    start, end = log.start_pos or 0, log.end_pos or 0
    written_apart = operand.span[0] > end and not isinstance(operand, Call)
    if place < len(items) and items[place] == "^" and written_apart:
        raise TreeError((start, items[place].end_pos), "it is not clear what the power is of", "Write log(x^2) or (log x)^2.")
