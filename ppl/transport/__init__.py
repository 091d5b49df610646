"""Learned transport: samplers of unnormalized densities as pairs of processes."""

from ppl.transport.importance import Weighted, importance
from ppl.transport.process import backward_process, forward_process, gaussian, noisier, states
from ppl.transport.replay import Replay, replay
from ppl.transport.samplers import Pair, annealed, cmcd, dds, dis, pis, stochastic_flow
from ppl.transport.sde import SDEPath, sde_path
from ppl.transport.target import unconstrained

__all__ = [
    "Pair",
    "Replay",
    "SDEPath",
    "Weighted",
    "annealed",
    "backward_process",
    "cmcd",
    "dds",
    "dis",
    "forward_process",
    "gaussian",
    "importance",
    "noisier",
    "pis",
    "replay",
    "sde_path",
    "states",
    "stochastic_flow",
    "unconstrained",
]
