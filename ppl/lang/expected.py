"""What a parser's error means to the one who wrote the text."""

from __future__ import annotations

import re

import lark

from ppl.lang.diagnostics import did_you_mean
from ppl.lang.operators import TreeError

ITEMS = ("import", "from", "data", "param", "model", "family", "function", "objective", "fit", "minimize")
KEYWORDS = frozenset(ITEMS) | set("and elif else factor for if in log not or over return using with".split())

_SHOWN = {
    "NAME": "a name",
    "NUMBER": "a number",
    "STRING": "a path in quotes",
    "MODULE": "a module",
    "_NL": "the end of the line",
    "_INDENT": "an indented block",
    "OPERATOR": "an operator",
    "VBAR": "'|'",
    "LPAR": "'('",
    "RPAR": "')'",
    "LSQB": "'['",
    "RSQB": "']'",
    "COLON": "':'",
    "COMMA": "','",
    "SEMICOLON": "';'",
    "EQUAL": "'='",
    "TILDE": "'~'",
    "OPTION": "'steps', 'samples' or 'seed'",
    "__COLONEQUAL": "':='",
    "QUOTE": "'''",
}
_EXPRESSION = {"NAME", "NUMBER", "LPAR", "MINUS", "PREFIX", "BINDER"}
_OPERATORS = {"OPERATOR", "MINUS", "AND"}
_AFTER_OPERAND = {"DOT", "QUOTE", "LSQB", "LPAR"}


def explain(error: lark.exceptions.UnexpectedInput, text: str) -> TreeError:
    """A parser's error as one of ours."""
    if isinstance(error, lark.exceptions.UnexpectedCharacters):
        start = error.pos_in_stream or 0
        token = re.compile(r"[^\W\d]\w*|\d+|.", re.DOTALL).match(text, start)
        found, kind, expected = (token.group() if token else "?"), "", set(error.allowed or ())
    elif isinstance(error, lark.exceptions.UnexpectedToken) and error.token.type != "$END":
        start = error.token.start_pos or 0
        found, kind, expected = str(error.token), error.token.type, set(error.accepts or error.expected)
    else:
        start, found, kind, expected = len(text.rstrip()), "", "$END", set(getattr(error, "expected", ()))
    span = (start, start + max(1, len(found.strip())))
    opened = _unclosed(text[:start])
    if opened is not None and (kind == "$END" or not text[start:].strip() or at_top(text, start)):
        return TreeError((opened, opened + 1), f"{text[opened]!r} is never closed")
    if kind == "_INDENT":
        return TreeError(span, "unexpected indentation", "Only the lines of a block are indented.")
    if kind in ("_NL", "_DEDENT", "$END"):
        span = (start, start + 1)
        what = "the end of the text" if kind == "$END" or not text[start:].strip() else "the end of the line"
        return TreeError(span, f"expected {_list(expected)}, found {what}")
    if at_top(text, start) and "VERB" in expected:
        hint = did_you_mean(found, ITEMS) or f"A file has {', '.join(map(repr, ITEMS[:-1]))} and {ITEMS[-1]!r}."
        return TreeError(span, f"expected a declaration, found {found!r}", hint)
    hint = ""
    if found in KEYWORDS:
        hint = f"{found!r} is a keyword of the language." if "NAME" in expected else ""
    elif "OPERATOR" in expected and re.match(r"[\w(]", found):
        hint = _after(text, start)
    elif found == ";" or found == "%":
        hint = "Comments begin with '#'." if found == "%" else ""
    if text.startswith("**", start - 1):
        hint = "A power is written x^2."
    return TreeError(span, f"expected {_list(expected)}, found {found!r}", hint)


def _unclosed(text: str) -> int | None:
    """The last bracket that is open at the end of a text."""
    stack: list[int] = []
    for match in re.finditer(r"[()\[\]]", text):
        if match.group() in "([":
            stack.append(match.start())
        elif stack:
            stack.pop()
    return stack[-1] if stack else None


def at_top(text: str, start: int) -> bool:
    return start == 0 or text[start - 1] == "\n"


def _after(text: str, start: int) -> str:
    before = re.search(r"([^\W\d]\w*|\d|\))\s*$", text[max(0, start - 80) : start])
    if before is None:
        return ""
    word = before.group(1)
    if word.isdigit() or word == ")":
        return "A product is written with '*'."
    return did_you_mean(word, sorted(KEYWORDS - {"in", "or"})) if len(word) > 2 else ""


def _list(expected: set[str]) -> str:
    names = []
    left = set(expected)
    if left >= _EXPRESSION:
        names.append("an expression")
        left -= _EXPRESSION | {"LSQB", "VBAR", "KIND"}
    if left & _OPERATORS:
        names.append("an operator")
        left -= _OPERATORS | _AFTER_OPERAND
    if "KIND" in left and "VERB" in left:
        names.append("a declaration")
        left = set()
    for name in sorted(left - {"_DEDENT", "$END"}):
        if name.startswith("__ANON"):
            name = "__COLONEQUAL"  # the one token without a name
        names.append(_SHOWN.get(name, f"{name.lower()!r}"))
    names = list(dict.fromkeys(names))
    if not names:
        return "the end of the text"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
