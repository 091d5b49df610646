"""Learned transport: flows, paths, couplings and the processes that draw with them. Each is a program, or part of one.

A flow (`ode_flow`, `flow`) is a program with a density. A path says where a point is between its ends, a coupling draws the
ends, and a regression target says what a field is trained on; `ppl.objectives.matching` puts them together. Fields are any
callables of a point and a time.

A sampler of an unnormalized density is a pair of processes over the same addresses, forward and backward (`pis`, `dds`, `dis`,
`annealed`, `cmcd`, `stochastic_flow`). The difference of their log densities is its log weight, exact at every number of steps.
"""

from ppl.transport.assignment import assignment
from ppl.transport.couplings import cost_matrix, entropic, independent, optimal, pairs_of, rows, squared_distance
from ppl.transport.discrete import jump_process, jump_rates, switched
from ppl.transport.flow import flow
from ppl.transport.importance import Weighted, importance
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
from ppl.transport.process import backward_process, forward_process, gaussian, noisier, states
from ppl.transport.pushforward import Flow, Transport, simulate_with_score
from ppl.transport.replay import Replay, replay
from ppl.transport.samplers import Pair, annealed, cmcd, dds, dis, pis, stochastic_flow
from ppl.transport.sde import sde, with_diffusion
from ppl.transport.sde_path import SDEPath, sde_path
from ppl.transport.target import unconstrained

__all__ = [
    "Flow",
    "Hutchinson",
    "Manifold",
    "Pair",
    "Path",
    "Point",
    "Replay",
    "SDEPath",
    "Schedule",
    "Sphere",
    "Torus",
    "Transport",
    "Weighted",
    "annealed",
    "assignment",
    "backward_process",
    "bridge",
    "cmcd",
    "cost_matrix",
    "data",
    "dds",
    "dis",
    "entropic",
    "flow",
    "forward_process",
    "gaussian",
    "geodesic",
    "importance",
    "independent",
    "jump_process",
    "jump_rates",
    "linear",
    "noise",
    "noise_scale",
    "noisier",
    "ode_flow",
    "optimal",
    "pairs_of",
    "pis",
    "replay",
    "rows",
    "score",
    "sde",
    "sde_path",
    "simulate_with_score",
    "squared_distance",
    "states",
    "stochastic_flow",
    "switched",
    "through",
    "trigonometric",
    "unconstrained",
    "variance_exploding",
    "variance_preserving",
    "velocity",
    "with_diffusion",
]
