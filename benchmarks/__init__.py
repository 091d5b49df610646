"""Measurements: reference posteriors, and what `ppl` costs and reaches on them."""
