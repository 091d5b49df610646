"""What a check of a fit finds, in words."""

from __future__ import annotations

import textwrap
from typing import NamedTuple

WARNING, NOTE = "warning", "note"


class Finding(NamedTuple):
    """Something about a fit that its user should know.

    Attributes:
        about: `"weights"`, `"support"`, `"collapse"`, `"convergence"`, `"minibatch"` or `"density"`.
        severity: `"warning"` where results should not be used as they are, `"note"` where they may.
        address: of the latent concerned; empty where it is the whole fit.
        message: what was found.
        advice: what to do.
    """

    about: str
    severity: str
    address: str
    message: str
    advice: str

    def __str__(self) -> str:
        at = f" {self.address}:" if self.address else ""
        return "\n".join(_fill(line, indent) for line, indent in _lines(f"{self.severity}:{at} {self.message}", self.advice))


def _lines(message: str, advice: str) -> list[tuple[str, str]]:
    return [*((line, "") for line in message.splitlines()), *((line, "  ") for line in advice.splitlines())]


def _fill(line: str, indent: str) -> str:
    return textwrap.fill(line, 100, initial_indent=indent, subsequent_indent="  ", break_long_words=False)


__all__ = ["NOTE", "WARNING", "Finding"]
