"""Variational families generated from any program. Each is an ordinary program, which `print(family)` shows."""

from ppl.families.by_address import by_address, run
from ppl.families.family import Family
from ppl.families.gaussian import block, full_rank, low_rank, mean_field, scale_tril
from ppl.families.structured import linear, structured
from ppl.families.joint import joint

__all__ = [
    "Family",
    "block",
    "by_address",
    "full_rank",
    "joint",
    "linear",
    "low_rank",
    "mean_field",
    "run",
    "scale_tril",
    "structured",
]
