"""What a check of a fit finds, in words."""

from __future__ import annotations

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
        return f"{self.severity}:{at} {self.message}\n  {self.advice}"


__all__ = ["NOTE", "WARNING", "Finding"]
