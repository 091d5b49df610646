"""Families around a mode: `delta`, a point, and `laplace`, a Gaussian with the curvature there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import errors
from ppl.families.family import Family, shapes
from ppl.families.free import needs_run
from ppl.families.gaussian import FULL_RANK, _zeros, from_scale_tril, joint_family
from ppl.families.latents import Latent, latents_of
from ppl.families.start import Centre
from ppl.families.text import constraint_text, joint_text, quoted
from ppl.program import Bound

_STEPS = 500
_DECREMENT = 1e-3


def delta(model: Bound, addresses: Sequence[str] | None = None, *, space: str = "constrained") -> Family:
    """A point mass at one value of each variable: maximizing its ELBO gives the posterior mode (MAP).

    A point mass has no density. Its log density is counted as 0 at its point and minus infinity elsewhere, so that its ELBO is
    `log p(x, z)` at the point: no lower bound of the evidence, and not comparable with the ELBO of another family. Where modes
    are depends on the coordinates, since densities change by a Jacobian between them:

    - `space="constrained"`: the mode of `p(z | x)` in the variables as the model has them, without a Jacobian (what Stan's
      optimizer and Pyro's `AutoDelta` find). The optimizer still moves without constraints.
    - `space="unconstrained"`: the log density is counted as minus the log Jacobian, so that the ELBO is the log density of the
      unconstrained values. This is the mode that `ppl.families.laplace` is centred at, and one that exists where a density
      grows without bound at the edge of its support.

    Parameters: the unconstrained value of each variable, by address. A trace other than the point itself cannot be scored.

    Raises:
        FamilyError: as for `ppl.families.mean_field`; or `space` is neither; or a support moves with other variables, for which
            only `space="unconstrained"` is there.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("rate", dist.Gamma(3.0, 1.0)))
        >>> family = ppl.families.delta(model())
        >>> @ppl.expectation
        ... def elbo(params):
        ...     return ppl.objectives.elbo(model(), family(params))
        >>> mode = {"rate": jax.numpy.log(2.0)}  # of the density of the rate; that of its logarithm has it at 3
        >>> print(f"{abs(elbo.grad(jax.random.key(0), mode)['rate']):.4f}")
        0.0000
    """
    if space not in ("constrained", "unconstrained"):
        raise errors.FamilyError(f'space is "constrained" or "unconstrained", got {space!r}.')
    latents = latents_of(model, addresses)
    asking = list(needs_run(latents))
    if not asking:
        statements = [line for latent in latents for line in _point(latent, space)]
        return Family(model, latents, statements, {}, _by_site, "delta", shapes(_by_site(None, _zeros(latents))))
    if asking[0].branch or space == "constrained":
        what = "stands in a branch of a cond" if asking[0].branch else "has a support that moves with other variables"
        hint = "Use mean_field." if asking[0].branch else 'Use space="unconstrained".'
        raise errors.FamilyError(f"{asking[0].name!r} {what}, which this delta does not follow.\n  {asking[0].where}\n{hint}")
    statements = joint_text('dist.Delta(params["point"], event_dim=1)', latents, model)
    return Family(model, latents, statements, {}, _vector, "delta", shapes(_vector(None, _zeros(latents))))


def _point(latent: Latent, space: str) -> list[str]:
    name = quoted(latent.name)
    lines = [f"bijection = dist.biject_to({constraint_text(latent)})", f"value = bijection(params[{name}])"]
    density = ""
    if space == "unconstrained":
        lines.append(f"log_jacobian = bijection.log_abs_det_jacobian(params[{name}], value)")
        density = "-jnp.sum(log_jacobian), "
    return [*lines, f"ppl.sample({name}, dist.Delta(value, {density}event_dim={len(latent.shape)}))"]


def _by_site(key: Any, centre: Centre) -> Any:
    return dict(centre.values)


def _vector(key: Any, centre: Centre) -> Any:
    return {"point": centre.vector}


def laplace(model: Bound, addresses: Sequence[str] | None = None) -> Family:
    """The Gaussian at the posterior mode without constraints, with the curvature there as its precision (Laplace 1774).

    The family is that of `ppl.families.full_rank`, and `init` fits it: it climbs from a good place to a mode of the
    unconstrained log density by damped Newton steps, and sets the covariance to the inverse of the negative Hessian. Exact for
    Gaussian posteriors; a good start for optimizing the ELBO otherwise. The Hessian is `[D, D]`.

    Raises:
        FamilyError: as for `ppl.families.full_rank`; by `init`, if no mode is found, or the Hessian there is singular or not
            negative definite, with the addresses along which that is so.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def model():
        ...     z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ...     ppl.sample("x", dist.Normal(z, 1.0), obs=1.0)
        >>> params = ppl.families.laplace(model()).init(jax.random.key(0))
        >>> print(f"{params['loc'][0]:.3f} {jax.numpy.exp(params['log_scale'][0]):.3f}")  # N(1/2, 1/2)
        0.500 0.707
    """
    latents = latents_of(model, addresses)

    def start(key: Any, centre: Centre) -> Any:
        if centre.log_density is None:  # only shapes are asked for
            size = centre.vector.shape[0]
            return {"loc": centre.vector, **from_scale_tril(jnp.eye(size))}
        mode, hessian, decrement = jax.jit(lambda z: _climb(centre.log_density, z))(centre.vector)
        tril = _factor(np.asarray(hessian, np.float64), float(decrement), latents)
        return {"loc": mode, **from_scale_tril(jnp.asarray(tril, mode.dtype))}

    return joint_family(model, latents, FULL_RANK, start, "laplace")


def _climb(log_density: Any, start: Any) -> tuple[Any, Any, Any]:
    """A mode, the Hessian there, and how much higher (in nats) a quadratic model thinks that one could get."""

    def ascent(z: Any, damping: Any) -> tuple[Any, Any]:
        gradient = jax.grad(log_density)(z)
        values, vectors = jnp.linalg.eigh(jax.hessian(log_density)(z))
        # The absolute value turns away from saddles (Dauphin et al. 2014).
        slopes = vectors.T @ gradient
        steps = slopes / jnp.maximum(jnp.abs(values) + damping, jnp.finfo(z.dtype).tiny)
        return vectors @ steps, jnp.sum(slopes * steps) / 2

    def body(state: Any) -> Any:
        z, height, damping, _, number = state
        step, gain = ascent(z, damping)
        higher = log_density(z + step)
        good = higher >= height - 4 * jnp.finfo(z.dtype).eps * jnp.abs(height)
        small = good & (gain < 1e-9)
        damping = jnp.where(good, jnp.where(damping < 1e-6, 0.0, damping / 10), jnp.maximum(10 * damping, 1e-4))
        return jnp.where(good, z + step, z), jnp.where(good, higher, height), damping, small, number + 1

    state = (start, log_density(start), jnp.zeros((), start.dtype), jnp.array(False), 0)
    z, *_ = jax.lax.while_loop(lambda state: ~state[3] & (state[4] < _STEPS), body, state)
    return z, jax.hessian(log_density)(z), ascent(z, 0.0)[1]


def _factor(hessian: np.ndarray, decrement: float, latents: Sequence[Latent]) -> np.ndarray:
    """The triangular factor of the inverse of the negative Hessian."""
    if not np.all(np.isfinite(hessian)) or not np.isfinite(decrement):
        raise errors.FamilyError(
            "no mode was found: the log density is not finite where the search went. Start elsewhere, with at=."
        )
    curvature, directions = np.linalg.eigh(-(hessian + hessian.T) / 2)
    flat = curvature <= 1e-7 * max(curvature[-1], 1e-30)
    if np.any(flat) or decrement > _DECREMENT:
        names = [latent.name for latent in latents for _ in range(latent.size)]
        worst = directions[:, 0] ** 2
        along = dict.fromkeys(names[i] for i in np.argsort(-worst) if worst[i] > 0.1 * worst.max())
        problem = (
            f"the log density has no maximum along {', '.join(map(repr, along))} (curvature {-curvature[0]:.3g})"
            if np.any(flat)
            else f"after {_STEPS} steps the log density still grows, by about {decrement:.3g} nats a step"
        )
        raise errors.FamilyError(
            f"no Laplace approximation: {problem}.\nThe posterior may have no mode without constraints (as hierarchical models "
            "have, whose scale goes to zero): write the model noncentered, start elsewhere with at=, or fit full_rank."
        )
    covariance = (directions / curvature) @ directions.T
    return np.linalg.cholesky((covariance + covariance.T) / 2)
