"""Objectives: short programs, each readable as the definition in its paper.

Each is a function of bound programs, called *inside* an objective, and returns one real number in nats:

    @ppl.expectation
    def objective(phi):
        return ppl.objectives.iwae(model(), family(phi), particles=10)

`model` is conditioned on its data and `family` draws its latent variables. Nothing here is more than `simulate`, `log_density`,
`jax.vmap` and `stop_gradient`: an objective that is missing is written in the same way. Where value and gradient are stated
apart, `surrogates.py` has the few lines that this takes.
"""

from ppl.objectives.chi_square import chi_square, cubo
from ppl.objectives.dreg import dreg
from ppl.objectives.elbo import beta_elbo, elbo, elbo_analytic, elbo_terms
from ppl.objectives.f_divergence import f_divergence
from ppl.objectives.forward_kl import eubo, forward_kl
from ppl.objectives.hierarchical import diwhvi, hvi, iwhvi
from ppl.objectives.infovae import infovae, mmd
from ppl.objectives.iwae import iwae
from ppl.objectives.log_variance import log_variance
from ppl.objectives.matching import discrete_matching, matching
from ppl.objectives.particles import log_mean_exp, log_weights
from ppl.objectives.path_gradient import path_gradient
from ppl.objectives.power import power_elbo
from ppl.objectives.renyi import renyi
from ppl.objectives.sandwich import Sandwich, sandwich
from ppl.objectives.sticking_the_landing import sticking_the_landing
from ppl.objectives.tail_adaptive import tail_adaptive
from ppl.objectives.trajectory_balance import detailed_balance, sub_trajectory_balance, trajectory_balance
from ppl.objectives.vimco import vimco
from ppl.objectives.vis import vis_family, vis_family_doubly_reparameterized, vis_family_pathwise, vis_model
from ppl.objectives.wake_sleep import sleep_phi, wake_phi, wake_theta

__all__ = [
    "Sandwich",
    "beta_elbo",
    "chi_square",
    "cubo",
    "detailed_balance",
    "discrete_matching",
    "diwhvi",
    "dreg",
    "elbo",
    "elbo_analytic",
    "elbo_terms",
    "eubo",
    "f_divergence",
    "forward_kl",
    "hvi",
    "infovae",
    "iwae",
    "iwhvi",
    "log_mean_exp",
    "log_variance",
    "log_weights",
    "matching",
    "mmd",
    "path_gradient",
    "power_elbo",
    "renyi",
    "sandwich",
    "sleep_phi",
    "sticking_the_landing",
    "sub_trajectory_balance",
    "tail_adaptive",
    "trajectory_balance",
    "vimco",
    "vis_family",
    "vis_family_doubly_reparameterized",
    "vis_family_pathwise",
    "vis_model",
    "wake_phi",
    "wake_theta",
]
