"""Kinds of density."""

UNBIASED_DENSITY = "unbiased density"
UNBIASED_LOG_DENSITY = "unbiased log density"
