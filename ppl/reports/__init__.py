"""A fit as one self-contained page: what was fitted, how it went, what came out, and whether to believe it."""

from ppl.reports.report import report

__all__ = ["report"]
