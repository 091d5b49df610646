"""Programmable variational inference in JAX: write the model, the variational family and the objective as programs."""

import importlib
from typing import Any

from ppl import distributions, errors, estimators, families, lang, objectives, testing
from ppl.bridges.from_numpyro import from_numpyro
from ppl.bridges.mcmc import Draws, nuts
from ppl.bridges.to_numpyro import to_numpyro
from ppl.choice import SiteDescription
from ppl.inference.fit import Fit
from ppl.inference.gradient_variance import GradientVariance, gradient_variance
from ppl.inference.minibatches import Minibatches, Stream
from ppl.inference.optimize import maximize, minimize
from ppl.lang import objective, parse
from ppl.load import load
from ppl.program import Bound, Program, deterministic, factor, plate, program, sample
from ppl.render import render
from ppl.reports.report import report
from ppl.samples import Samples
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


def __getattr__(name: str) -> Any:
    """`ppl.transport` is imported when it is first asked for: diffrax takes its time."""
    if name == "transport":
        return importlib.import_module("ppl.transport")
    raise AttributeError(f"module 'ppl' has no attribute {name!r}")


__all__ = [
    "Bound",
    "Draws",
    "Expectation",
    "Fit",
    "GradientVariance",
    "Minibatches",
    "Program",
    "Samples",
    "SiteDescription",
    "Stream",
    "check_family",
    "deterministic",
    "distributions",
    "errors",
    "estimators",
    "expectation",
    "factor",
    "families",
    "from_numpyro",
    "gradient_variance",
    "lang",
    "load",
    "log_density",
    "marginal",
    "maximize",
    "minibatch_sum",
    "minimize",
    "normalize",
    "nuts",
    "objective",
    "objectives",
    "parse",
    "plate",
    "program",
    "render",
    "report",
    "sample",
    "seed",
    "simulate",
    "subsample",
    "testing",
    "to_numpyro",
    "trace_shapes",
    "transport",
    "unnormalized",
]
