"""What objectives need whose value and whose gradient are stated apart: plain JAX, for use in objectives of one's own.

An estimator of a gradient that is no derivative of an estimator of the value is written as a *surrogate*: the value, all of it
`constant`, plus terms of value zero that have the gradient, `weight * gradient_of(x)`. A surrogate has first derivatives only:
the weights depend on the parameters too, and a second derivative that misses this is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr

from ppl import errors
from ppl.notes import Note, note_p
from ppl.program import Bound, inline
from ppl.site import FACTOR, OBSERVED, SAMPLE, restore, user_frame
from ppl.transforms.expand import holds_estimated
from ppl.transforms.influence import PATHWISE
from ppl.transforms.kinds import UNBIASED_DENSITY, uses_of
from ppl.transforms.modify import Program, prepare
from ppl.transforms.simulate import simulate
from ppl.transforms.stage import Located, stage


@jax.custom_jvp
def _constant(x: Any) -> Any:
    return x


@jax.custom_jvp
def _differentiated_once(x: Any) -> Any:
    return x


@_constant.defjvp
def _constant_jvp(primals: Any, tangents: Any) -> Any:
    return _differentiated_once(*primals), jnp.zeros_like(tangents[0])


@_differentiated_once.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
    raise errors.DifferentiationError(
        "second derivatives of this objective would be wrong: its gradient is stated by a surrogate, with weights that are "
        "held constant (sticking the landing, DReG, VIMCO, VIS and wake-sleep are such). Differentiate ppl.objectives.elbo or "
        "iwae instead, which have right derivatives of every order."
    )


def constant(tree: Any) -> Any:
    """`jax.lax.stop_gradient` that refuses second derivatives instead of leaving something out of them.

    Example:
        >>> import jax
        >>> from ppl.objectives.surrogates import constant
        >>> float(jax.grad(lambda x: x * constant(x))(3.0))
        3.0
        >>> jax.hessian(lambda x: x * constant(x))(3.0)
        Traceback (most recent call last):
            ...
        ppl.errors.DifferentiationError: second derivatives of this objective would be wrong...
    """
    return jax.tree.map(lambda x: _constant(x) if jnp.issubdtype(jnp.result_type(x), jnp.inexact) else x, tree)


def gradient_of(x: Any) -> Any:
    """Value zero, and the gradient of `x`."""
    return x - constant(x)


def frozen(function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, with gradients through `args` alone: what the function closes over is held constant.

    Raises:
        DensityKindError: it evaluates a density that is estimated from draws, as those of `ppl.marginal` with a proposal.

    Example:
        >>> import jax
        >>> from ppl.objectives.surrogates import frozen
        >>> float(jax.grad(lambda phi: frozen(lambda z: phi * z, phi**2))(3.0))  # phi held, z = phi^2 not: 3 * 6
        18.0
    """
    closed, shape = jax.make_jaxpr(function, return_shape=True)(*args)
    refuse_estimates(closed.jaxpr, "A gradient that is taken apart from its value, as here, would be that of another estimate")
    outs = jax.core.eval_jaxpr(closed.jaxpr, constant(closed.consts), *jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shape), outs)


def held(program: Bound) -> Bound:
    """The bound program with its parameters constant: no gradient flows into it, by draws or by densities.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> from ppl.objectives.surrogates import held
        >>> normal = ppl.program(lambda mean: ppl.sample("z", dist.Normal(mean, 1.0)))
        >>> float(jax.grad(lambda mean: held(normal(mean)).log_density({"z": 2.0}))(0.5))
        0.0
    """
    staged = stage(lambda: inline(program, ()))
    return Bound(lambda: jax.core.eval_jaxpr(staged.jaxpr.jaxpr, jax.lax.stop_gradient(staged.jaxpr.consts)))


def refuse_estimates(jaxpr: Jaxpr, reason: str) -> None:
    """Refuse log densities that are only logs of unbiased estimates of densities."""
    for use in uses_of(jaxpr, UNBIASED_DENSITY)[:1]:
        raise errors.DensityKindError(
            f"an exact log density is needed in place of {use.note.reason}.\n{reason}. Integrate exactly (ppl.marginal "
            "without a proposal), or use ppl.objectives.elbo or iwae, for which estimates give bounds."
        )


def pathwise(trace: Any, reason: str) -> Any:
    """The same trace; an objective in which a draw in it has weights, and no path, is refused."""
    mark = Note(PATHWISE, reason, user_frame())
    return jax.tree.map(lambda x: note_p.bind(x, note=mark), trace)  # also on integers, which have no path at all


def check_scores(family: Program, objective: str, *, weighted: bool = True, pathwise: bool = False) -> None:
    """Refuse a family for which `E_q[d log q]`, the mean of its score, is not zero.

    Args:
        family: a bound program.
        objective: who needs it, for the message.
        weighted: whether the score is multiplied by something, so that every part of it has to be there exactly once:
            scaled and masked sites are refused too.
        pathwise: whether draws must be differentiable: detached sites are refused too.

    Raises:
        EstimatorError: naming the site.
        DensityKindError: the log density is estimated from draws, so that its gradient is not the score.
    """
    prepared = prepare(family)
    for located in prepared.table:
        problem = _problem(located, weighted)
        if problem is not None:
            raise errors.EstimatorError(
                f"{objective} needs a family whose log density is that of its draws and whose score has mean zero, and "
                f"{problem} {located.site.name!r}.\n  {located.site.where}\n"
                "Use ppl.objectives.elbo or iwae, which do not need it."
            )
    refused = ("substitute", *(("scale", "mask") if weighted else ()), *(("detach",) if pathwise else ()))
    wrong = [modification.verb for modification in prepared.modifications if modification.verb in refused]
    if wrong:
        raise errors.EstimatorError(
            f"{objective} needs a family whose log density is that of its draws, and {wrong[0]} changes one alone. "
            "Use ppl.objectives.elbo or iwae, which do not need it."
        )
    if holds_estimated(prepared.staged.jaxpr.jaxpr):
        reason = f"The gradient of its logarithm is not the score that {objective} needs"
        refuse_estimates(stage(lambda: simulate(family)[1]).jaxpr.jaxpr, reason)


def _problem(located: Located, weighted: bool) -> str | None:
    site = located.site
    operands = restore(site, [0.0] * site.tree.num_leaves)
    if site.kind in (OBSERVED, FACTOR):
        return f"its density has the {'observation' if site.kind == OBSERVED else 'factor'}"
    if site.kind == SAMPLE and operands.value is not None:
        return "a value is substituted at"
    if site.moving_support:
        return "the support moves with the parameters at"
    if weighted and (operands.scale is not None or located.subsampled):
        return "a scale multiplies the density at"
    if weighted and operands.mask is not None:
        return "a mask covers"
    return None


__all__ = ["check_scores", "constant", "frozen", "gradient_of", "held", "pathwise"]
