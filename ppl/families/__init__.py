"""Variational families generated from any program. Each is an ordinary program, which `print(family)` shows."""

from ppl.families.amortized import amortized, as_params
from ppl.families.by_address import by_address, run
from ppl.families.family import Family
from ppl.families.flows import autoregressive_flow, coupling_flow, flow
from ppl.families.gaussian import block, full_rank, low_rank, mean_field, scale_tril
from ppl.families.joint import joint
from ppl.families.point import delta, laplace
from ppl.families.structured import linear, structured

__all__ = [
    "Family",
    "amortized",
    "as_params",
    "autoregressive_flow",
    "block",
    "by_address",
    "coupling_flow",
    "delta",
    "flow",
    "full_rank",
    "joint",
    "laplace",
    "linear",
    "low_rank",
    "mean_field",
    "run",
    "scale_tril",
    "structured",
]
