"""Continuous normalizing flows: an ordinary differential equation carries a base to the program's value."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.extend.core import Jaxpr
from jax.flatten_util import ravel_pytree
from numpyro.distributions import constraints

from ppl import errors
from ppl.program import sample
from ppl.site import Where, user_frame
from ppl.transport.manifolds import Manifold
from ppl.transport.pushforward import Flow, as_program, base_like, push_forward


@dataclasses.dataclass(frozen=True)
class Hutchinson:
    """Estimate the divergence by `e' J e`, with directions e uniform on the sphere of radius sqrt(d) (Hutchinson 1990).

    One direction costs one product of the Jacobian, where the exact divergence costs d. It is drawn once for each solve
    (Grathwohl et al. 2019). The log density is then unbiased and its exp is not: `ppl` refuses what needs the latter.

    Args:
        probes: number of directions, of which the mean is taken.
    """

    probes: int = 1


def ode_flow(
    base: Any,
    velocity: Callable[[Any, Any], Any],
    *,
    start: float = 0.0,
    end: float = 1.0,
    divergence: str | Hutchinson = "exact",
    steps: int | None = None,
    solver: Any = None,
    stepsize_controller: Any = None,
    adjoint: Any = None,
    max_steps: int = 4096,
    manifold: Manifold | None = None,
) -> Flow:
    """A program that draws from a base at time `start` and moves the value by `dx/dt = velocity(x, t)` until `end`.

    It is a program like any other: model or family, as a whole (its value is then the trace) or at an address,
    `ppl.sample("x", ode_flow(...))`. Its density is that of the moved value, `log p(z) - integral of div v` (Chen et al. 2018,
    equation 8): scored by solving backwards, and simulated with its density in a single solve. Gradients through it are those
    of the solver's adjoint.

    Args:
        base: a NumPyro distribution, or a bound program that only draws; then the flow has its addresses.
        velocity: from a value (an array, or the base's nested dict) and a scalar time to a value. Parameters are what it closes
            over, an Equinox module for example.
        start, end: times. `end < start` runs backwards.
        divergence: `"exact"`, at a cost of d Jacobian-vector products, or `ppl.transport.Hutchinson()`.
        steps: so many steps of equal length. If None, the length is adaptive.
        solver: diffrax's, `Tsit5()` unless told.
        stepsize_controller: diffrax's, `PIDController(rtol=1e-5, atol=1e-5)` unless told. Not with `steps`.
        adjoint: diffrax's, `RecursiveCheckpointAdjoint()` unless told; `DirectAdjoint()` allows forward mode too.
        max_steps: at most so many steps; a solve that needs more raises at run time.
        manifold: `ppl.transport.Sphere()` or `Torus()`: values stay on it, velocities are made tangent, and densities are with
            respect to its volume. The base has to be a distribution on it.

    Raises:
        ValueShapeError: the velocity has another shape than the value.
        MarginalError: the base is observed or weighted, or a part of the value is conditioned.
        DensityKindError: an objective uses the density of a flow with Hutchinson's divergence where that is biased.

    Example:
        >>> import jax, jax.numpy as jnp, ppl, ppl.distributions as dist
        >>> flow = ppl.transport.ode_flow(dist.Normal(0.0, 1.0), lambda x, t: 0.7 * x)  # N(0, e^0.7)
        >>> x, log_q = flow.simulate(jax.random.key(0))
        >>> bool(jnp.allclose(log_q, dist.Normal(0.0, jnp.exp(0.7)).log_prob(x), atol=1e-3))
        True
        >>> bool(jnp.allclose(flow.log_density(x), log_q, atol=1e-3))
        True
    """
    where = user_frame()
    if divergence != "exact" and not isinstance(divergence, Hutchinson):
        raise TypeError(f'divergence is "exact" or ppl.transport.Hutchinson(), got {divergence!r}.\n  {where}')
    if isinstance(divergence, Hutchinson) and divergence.probes < 1:
        raise errors.ValueShapeError(f"Hutchinson needs at least one direction, got probes={divergence.probes}.\n  {where}")
    if steps is not None and (steps < 1 or stepsize_controller is not None):
        raise TypeError(f"steps={steps} are at least one and of equal length: no stepsize_controller with them.\n  {where}")
    program = as_program(base, "ode_flow", where)
    like = base_like(program)
    staged = jax.make_jaxpr(lambda x, t: _field(velocity, x, t, where))(like, jnp.zeros(()))
    method = Method(
        diffrax.Tsit5() if solver is None else solver,
        steps,
        stepsize_controller or diffrax.PIDController(rtol=1e-5, atol=1e-5),
        diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
        max_steps if steps is None else steps + 1,
    )
    transport = OdeTransport(staged.jaxpr, divergence, method, float(start), float(end), manifold)
    return push_forward(program, transport, staged.consts, where)


def _field(velocity: Callable[[Any, Any], Any], x: Any, t: Any, where: Where) -> Any:
    result = velocity(x, t)
    found, expected = (jax.tree.map(jnp.shape, tree) for tree in (result, x))
    if found != expected:
        raise errors.ValueShapeError(f"the velocity has the shape {found}, and the value {expected}.\n  {where}")
    return jax.tree.map(lambda v, x: jnp.asarray(v, x.dtype), result, x)


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """How an equation is solved."""

    solver: Any
    steps: int | None
    controller: Any
    adjoint: Any
    max_steps: int

    def solve(self, field: Callable[[Any, Any, Any], Any], start: float, end: float, state: Any, args: Any) -> Any:
        """The state at `end`."""
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            self.solver,
            start,
            end,
            None if self.steps is None else (end - start) / self.steps,
            state,
            args,
            stepsize_controller=diffrax.ConstantStepSize() if self.steps is not None else self.controller,
            adjoint=self.adjoint,
            max_steps=self.max_steps,
        )
        return jax.tree.map(lambda x: x[0], solution.ys)


@dataclasses.dataclass(frozen=True, eq=False)
class OdeTransport:
    """The map from the value at one time to the value at another. Parameters are the constants of the velocity's jaxpr."""

    velocity: Jaxpr
    divergence: str | Hutchinson
    method: Method
    start: float
    end: float
    manifold: Manifold | None = None
    name: str = "ode_flow"

    @property
    def support(self) -> Any:
        return constraints.real if self.manifold is None else self.manifold.support

    @property
    def estimate(self) -> str | None:
        return None if self.divergence == "exact" else "Hutchinson's divergence"

    def forward(self, parameters: Any, z: Any) -> Any:
        flat, unravel = ravel_pytree(z)

        def field(t: Any, x: Any, args: Any) -> Any:
            return self._velocity(args, unravel)(x, t)

        return self._project(unravel(self.method.solve(field, self.start, self.end, flat, parameters)))

    def forward_and_log_det(self, parameters: Any, z: Any) -> tuple[Any, Any]:
        return self._with_log_det(parameters, z, self.start, self.end)

    def inverse_and_log_det(self, parameters: Any, x: Any) -> tuple[Any, Any]:
        z, log_det = self._with_log_det(parameters, x, self.end, self.start)
        return z, -log_det

    def _with_log_det(self, parameters: Any, value: Any, start: float, end: float) -> tuple[Any, Any]:
        flat, unravel = ravel_pytree(value)

        def field(t: Any, state: Any, args: Any) -> Any:
            parameters, probes = args
            velocity, trace = self._divergence(self._velocity(parameters, unravel), state[0], t, probes)
            return velocity, trace

        state = (flat, jnp.zeros((), flat.dtype))
        moved, log_det = self.method.solve(field, start, end, state, (parameters, self._probes(flat)))
        return self._project(unravel(moved)), log_det

    def forward_with_score(self, parameters: Any, z: Any, score: Any) -> tuple[Any, Any, Any]:
        """The score moves by `ds/dt = -J' s - grad div` along the path."""
        flat, unravel = ravel_pytree(z)

        def field(t: Any, state: Any, args: Any) -> Any:
            parameters, probes = args
            function = self._velocity(parameters, unravel)
            x, _, score = state

            def pulled(x: Any) -> Any:
                velocity, trace = self._divergence(function, x, t, probes)
                return jnp.vdot(velocity, score) + trace, (velocity, trace)

            change, (velocity, trace) = jax.grad(pulled, has_aux=True)(x)
            return velocity, trace, -change

        state = (flat, jnp.zeros((), flat.dtype), ravel_pytree(score)[0])
        args = (parameters, self._probes(flat))
        x, log_det, score = self.method.solve(field, self.start, self.end, state, args)
        return self._project(unravel(x)), log_det, unravel(score)

    def _velocity(self, parameters: Any, unravel: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
        def velocity(x: Any, t: Any) -> Any:
            # The field is that of the nearest point of the manifold, so that its divergence is the manifold's.
            value = self._project(unravel(x))
            leaves, tree = jax.tree.flatten(value)
            outs = jax.core.eval_jaxpr(self.velocity, parameters, *leaves, jnp.asarray(t, jnp.result_type(float)))
            moving = jax.tree.unflatten(tree, outs)
            if self.manifold is not None:
                moving = jax.tree.map(self.manifold.tangent, value, moving)
            return ravel_pytree(moving)[0]

        return velocity

    def _project(self, value: Any) -> Any:
        return value if self.manifold is None else jax.tree.map(self.manifold.project, value)

    def _probes(self, flat: Any) -> Any:
        """The directions; none for the exact divergence."""
        if self.divergence == "exact":
            return None
        assert isinstance(self.divergence, Hutchinson)
        shape = (self.divergence.probes, flat.size)
        normal = sample("<probe>", dist.Normal(jnp.zeros(shape, flat.dtype), 1.0).to_event(2))
        return normal * jnp.sqrt(flat.size / jnp.sum(normal**2, axis=1, keepdims=True))

    def _divergence(self, function: Callable[[Any, Any], Any], x: Any, t: Any, probes: Any) -> tuple[Any, Any]:
        velocity, product = jax.linearize(lambda x: function(x, t), x)
        directions = jnp.eye(x.size, dtype=x.dtype) if probes is None else probes
        total = jnp.sum(jax.vmap(product)(directions) * directions)
        return velocity, total if probes is None else total / probes.shape[0]


__all__ = ["Hutchinson", "ode_flow"]
