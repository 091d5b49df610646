"""Learned transport: flows, paths, couplings and the processes that draw with them. Each is a program, or part of one.

A flow (`ode_flow`, `flow`) is a program with a density. A path says where a point is between its ends, a coupling draws the
ends, and a regression target says what a field is trained on; `ppl.objectives.matching` puts them together. Fields are any
callables of a point and a time.
"""

from ppl.transport.assignment import assignment
from ppl.transport.couplings import cost_matrix, entropic, independent, optimal, pairs_of, rows, squared_distance
from ppl.transport.discrete import jump_process, jump_rates, switched
from ppl.transport.flow import flow
from ppl.transport.manifolds import Manifold, Sphere, Torus, geodesic
from ppl.transport.ode_flow import Hutchinson, ode_flow
from ppl.transport.paths import (
    Path,
    Point,
    Schedule,
    bridge,
    data,
    linear,
    noise,
    noise_scale,
    score,
    through,
    trigonometric,
    variance_exploding,
    variance_preserving,
    velocity,
)
from ppl.transport.pushforward import Flow, Transport, simulate_with_score
from ppl.transport.sde import sde, with_diffusion

__all__ = [
    "Flow",
    "Hutchinson",
    "Manifold",
    "Path",
    "Point",
    "Schedule",
    "Sphere",
    "Torus",
    "Transport",
    "assignment",
    "bridge",
    "cost_matrix",
    "data",
    "entropic",
    "flow",
    "geodesic",
    "independent",
    "jump_process",
    "jump_rates",
    "linear",
    "noise",
    "noise_scale",
    "ode_flow",
    "optimal",
    "pairs_of",
    "rows",
    "score",
    "sde",
    "simulate_with_score",
    "squared_distance",
    "switched",
    "through",
    "trigonometric",
    "variance_exploding",
    "variance_preserving",
    "velocity",
    "with_diffusion",
]
