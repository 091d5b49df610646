"""Whether the weights of a model and a family are importance weights at all."""

from __future__ import annotations

import jax.numpy as jnp

from ppl import errors
from ppl.diagnostics.findings import NOTE, WARNING, Finding
from ppl.diagnostics.latents import points
from ppl.program import Bound
from ppl.site import SUBSAMPLE
from ppl.transforms.expectation import Expectation
from ppl.transforms.modify import prepare
from ppl.transforms.simulate import simulate


def why_not(model: Bound, family: Bound) -> Finding | None:
    """Why `p(x, z) / q(z)` says nothing about the posterior, or None if it does."""
    for program, name in ((model, "model"), (family, "family")):
        for item in prepare(program).table:
            if item.subsampled or item.site.kind == SUBSAMPLE:
                plate = next((axis for axis in item.axes if axis not in ("vmap", "scan")), item.site.name)
                return Finding(
                    "minibatch",
                    NOTE,
                    item.site.name,
                    f"the {name} sees a minibatch: its plate {plate!r} stands for more data than it holds. The ELBO is an "
                    "unbiased estimate for all data; weights of a minibatch are not weights of the posterior, so that there "
                    "are no k-hat, evidence and upper bound.",
                    f"For these, pass programs bound to all data (model=..., family=...).\n{item.site.where}",
                )
    fixed = points(family)
    if fixed:
        return Finding(
            "support",
            WARNING,
            ", ".join(fixed),
            "the family is a point there, with no uncertainty: draws of it are no posterior draws, and have no weights.",
            "Fit a family with a density, for example a Laplace approximation around this point.",
        )
    try:
        Expectation(lambda: jnp.exp(_log_weight(model, family)))._stage((), {})
    except errors.DensityKindError as error:
        return Finding(
            "density", NOTE, "", "there are no importance weights, and so no k-hat, evidence and upper bound.", str(error)
        )
    return None


def _log_weight(model: Bound, family: Bound) -> jnp.ndarray:
    trace, log_q = simulate(family)
    return model.log_density(trace) - log_q


def require_weights(model: Bound, family: Bound) -> None:
    """Raises `FitError` where there is a reason why not."""
    reason = why_not(model, family)
    if reason is not None:
        raise errors.FitError(f"{reason.address + ': ' if reason.address else ''}{reason.message}\n{reason.advice}")


__all__ = ["require_weights", "why_not"]
