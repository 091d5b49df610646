"""Programmable variational inference in JAX: write the model, the variational family and the objective as programs."""

from ppl import distributions, errors, estimators, objectives, testing, transport
from ppl.bridges.from_numpyro import from_numpyro
from ppl.choice import SiteDescription
from ppl.inference.fit import Fit
from ppl.inference.gradient_variance import GradientVariance, gradient_variance
from ppl.inference.optimize import maximize, minimize
from ppl.program import Bound, Program, deterministic, factor, plate, program, sample
from ppl.render import render
from ppl.subsample import subsample
from ppl.transforms.compare import check_family
from ppl.transforms.expectation import Expectation, expectation
from ppl.transforms.log_density import log_density
from ppl.transforms.marginal import marginal
from ppl.transforms.minibatch import minibatch_sum
from ppl.transforms.normalize import normalize
from ppl.transforms.seed import seed
from ppl.transforms.shapes import trace_shapes
from ppl.transforms.simulate import simulate
from ppl.unnormalized import unnormalized

__version__ = "0.1.0"

__all__ = [
    "Bound",
    "Expectation",
    "Fit",
    "GradientVariance",
    "Program",
    "SiteDescription",
    "check_family",
    "deterministic",
    "distributions",
    "errors",
    "estimators",
    "expectation",
    "factor",
    "from_numpyro",
    "gradient_variance",
    "log_density",
    "marginal",
    "maximize",
    "minibatch_sum",
    "minimize",
    "normalize",
    "objectives",
    "plate",
    "program",
    "render",
    "sample",
    "seed",
    "simulate",
    "subsample",
    "testing",
    "trace_shapes",
    "transport",
    "unnormalized",
]
