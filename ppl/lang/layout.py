"""What a text is before it is parsed: characters, comments, and the blocks that indentation makes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from lark import Token

from ppl.lang.diagnostics import Source, at, fail
from ppl.lang.operators import MOST_NESTED, TreeError, too_deep
from ppl.lang.tree import Comment

LARGEST = 5_000_000
"""Characters in a file."""

_COMMENTS = re.compile(r'"[^"\n]*"|(?P<comment>#[^\n]*)')
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff\ud800-\udfff]")
_TAB = re.compile(r"\t")


def blanked(source: Source) -> tuple[str, tuple[Comment, ...]]:
    """The text with spaces in place of comments, so that offsets stay what they are, and the comments."""
    text = source.text
    if len(text) > LARGEST:
        raise fail([at(Source(source.name, ""), (0, 0), f"a text of {len(text)} characters; at most {LARGEST} are read")])
    bad = _CONTROL.search(text)
    if bad:
        short = Source(source.name, text[: bad.start() + 1])
        line, column = short.position(bad.start())
        clean = Source(source.name, "\n" * (line - 1) + "?" * column)
        message = f"the character {bad.group()!a}, which is no text"
        raise fail([at(clean, (line - 1 + column - 1, line - 1 + column), message, "Is this a binary file?")])
    comments: list[Comment] = []

    def blank(match: re.Match[str]) -> str:
        found = match["comment"]
        if found is None:
            return match.group()
        comments.append(Comment(found.rstrip(), span=match.span()))
        return " " * len(found)

    text = _COMMENTS.sub(blank, text)
    tab = _TAB.search(text)
    if tab:
        raise fail([at(source, tab.span(), "a tab", "Indent and space with blanks.")])
    return text.replace("\r", " ") + "\n", tuple(comments)


_GOES_ON = frozenset(("OPERATOR", "MINUS", "AND"))
"""A line that ends with one of these, or with the `]` of `E[z ~ q]`, goes on if the next is indented more."""


class Blocks:
    """From line breaks and the blanks after them to the beginnings and ends of blocks. For lark's `postlex`."""

    always_accept = ("_NL",)
    _open = frozenset(("LPAR", "LSQB"))
    _close = frozenset(("RPAR", "RSQB"))

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        indents = [0]
        open_brackets: list[bool] = []  # whether it is a binder's
        last: Token | None = None  # the last token that is no line break
        binder_ended = started = False
        for token in stream:
            if token.type == "_NL":
                width = len(token) - (token.rfind("\n") + 1)
                goes_on = width > indents[-1] and (binder_ended or (last is not None and last.type in _GOES_ON))
                if started and not open_brackets and not goes_on:
                    yield token
                    yield from self._indentation(token, indents)
                continue
            if not started and token.column != 1:
                raise TreeError((token.start_pos or 0, token.end_pos or 1), "unexpected indentation")
            started, binder_ended = True, False
            if token.type in self._open:
                open_brackets.append(last is not None and last.type == "BINDER")
                if len(open_brackets) > MOST_NESTED:
                    raise too_deep((token.start_pos or 0, token.end_pos or 1))
            elif token.type in self._close and open_brackets:
                binder_ended = open_brackets.pop()
            last = token
            yield token
        for _ in indents[1:]:
            yield _mark("_DEDENT", last)

    def _indentation(self, token: Token, indents: list[int]) -> Iterator[Token]:
        width = len(token) - (token.rfind("\n") + 1)
        end = token.end_pos or 0
        if width > indents[-1]:
            indents.append(width)
            if len(indents) > MOST_NESTED:
                raise too_deep((end, end + 1))
            yield _mark("_INDENT", token)
        while width < indents[-1]:
            indents.pop()
            yield _mark("_DEDENT", token)
        if width != indents[-1]:
            known = ", ".join(map(str, indents))
            raise TreeError(
                (end - width, end), f"this line is indented by {width}, like no block around it", f"Blocks begin at {known}."
            )


def _mark(kind: str, token: Any) -> Token:
    end = token.end_pos
    return Token(kind, "", start_pos=end, end_pos=end, line=token.end_line, column=token.end_column)
