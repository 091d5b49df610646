"""For users' own tests: whether an objective's estimates are right."""

from ppl.testing.unbiased import Unbiased, assert_unbiased

__all__ = ["Unbiased", "assert_unbiased"]
