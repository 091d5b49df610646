"""Messages about a text: where, what was expected, and the line with a caret under it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NamedTuple

from ppl.errors import LanguageError


class Source(NamedTuple):
    """A text and what to call it."""

    name: str
    text: str

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column of a character, from one."""
        before = self.text.count("\n", 0, offset)
        return before + 1, offset - (self.text.rfind("\n", 0, offset) + 1) + 1


class Diagnostic(NamedTuple):
    """One message. `line` and `column` count from one; `width` characters are underlined."""

    file: str
    line: int
    column: int
    width: int
    message: str
    source_line: str
    hint: str = ""

    def __str__(self) -> str:
        shown = self.source_line.replace("\t", " ")
        start, cut = self.column - 1, ""
        if len(shown) > 160:  # a window around the caret
            left = max(0, start - 60)
            shown, start, cut = shown[left : left + 140], start - left, "..."
        caret = " " * (len(cut) + start) + "^" * max(1, min(self.width, max(1, len(shown) - start)))
        number = str(self.line)
        text = f"{self.file}:{self.line}:{self.column}: {self.message}"
        text += f"\n  {number} | {cut}{shown}\n  {' ' * len(number)} | {caret}"
        return text + (f"\n  {self.hint}" if self.hint else "")


def at(source: Source, span: tuple[int, int], message: str, hint: str = "") -> Diagnostic:
    """A message about a part of a text."""
    line, column = source.position(span[0])
    start, end = source.text.rfind("\n", 0, span[0]) + 1, source.text.find("\n", span[0])
    shown = source.text[start : end if end >= 0 else None].rstrip("\r")
    return Diagnostic(source.name, line, column, max(1, span[1] - span[0]), message, shown, hint)


MOST = 20
"""Diagnostics in one error."""


def fail(diagnostics: Iterable[Diagnostic]) -> LanguageError:
    """The error that holds the diagnostics, in the order of the text."""
    ordered = sorted(dict.fromkeys(diagnostics), key=lambda d: (d.file, d.line, d.column))
    return LanguageError(tuple(ordered[:MOST]), len(ordered) - MOST)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name, or nothing."""
    names = list(dict.fromkeys(known))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if not close:
        lower = {other.lower(): other for other in names}
        close = [lower[found] for found in difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.75)]
    return f"Did you mean {close[0]!r}?" if close else ""
