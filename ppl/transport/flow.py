"""Discrete flows, from flowjax, as programs."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as numpyro_dist
from jax.flatten_util import ravel_pytree
from numpyro.distributions import constraints

from ppl import errors
from ppl.site import user_frame
from ppl.transport.pushforward import Flow, as_program, push_forward


def flow(distribution: Any, condition: Any = None) -> Flow:
    """A flowjax distribution as a program, drawn and scored in one pass of its bijection.

    It is used as `ode_flow` is: as a whole or at an address, as model or family. Its arrays are parameters like any others, so
    an objective takes the flowjax distribution as its argument.

    Args:
        distribution: of flowjax, in most cases `Transformed` (coupling flows, autoregressive flows, ...).
        condition: what it is conditional on, if it is.

    Raises:
        ImportError: flowjax is missing.
        ValueShapeError: the condition has another shape than the distribution's.

    Example:
        >>> import jax, jax.numpy as jnp, ppl
        >>> from flowjax.distributions import Normal
        >>> program = ppl.transport.flow(Normal(jnp.zeros(2), 3.0))
        >>> x, log_q = program.simulate(jax.random.key(0))
        >>> bool(jnp.allclose(log_q, Normal(jnp.zeros(2), 3.0).log_prob(x)))
        True
    """
    where = user_frame()
    try:
        import paramax
        from flowjax.distributions import AbstractDistribution, AbstractTransformed
    except ImportError as error:  # pragma: no cover
        raise ImportError("ppl.transport.flow needs flowjax: pip install 'ppl[flows]'") from error
    if not isinstance(distribution, AbstractDistribution):
        raise TypeError(f"ppl.transport.flow takes a flowjax distribution, got {distribution!r}.\n  {where}")
    if distribution.cond_shape != (None if condition is None else jnp.shape(condition)):
        raise errors.ValueShapeError(
            f"the distribution has conditions of shape {distribution.cond_shape}, and the condition given has "
            f"{None if condition is None else jnp.shape(condition)}.\n  {where}"
        )
    distribution = paramax.unwrap(distribution)
    base, bijection = distribution, None
    if isinstance(distribution, AbstractTransformed):
        distribution = distribution.merge_transforms()
        base, bijection = distribution.base_dist, distribution.bijection
    program = as_program(FlowjaxDistribution(base, None if base.cond_shape is None else condition), "flow", where)
    uses = None if bijection is None or bijection.cond_shape is None else condition
    arrays, static = eqx.partition((bijection, uses), eqx.is_array)
    return push_forward(program, Bijection(static), arrays, where)


class FlowjaxDistribution(numpyro_dist.Distribution):
    """The base of a flowjax distribution, as a site."""

    support = constraints.real
    pytree_data_fields = ("arrays",)
    pytree_aux_fields = ("static",)

    def __init__(self, base: Any, condition: Any):
        self.arrays, self.static = eqx.partition((base, condition), eqx.is_array)
        super().__init__((), base.shape)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """A mixture draws its component, through which there is no path."""
        from flowjax.distributions import VmapMixture

        parts = jax.tree.leaves(self._whole[0], is_leaf=lambda part: isinstance(part, VmapMixture))
        return not any(isinstance(part, VmapMixture) for part in parts)

    @property
    def _whole(self) -> Any:
        return eqx.combine(self.arrays, self.static)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        base, condition = self._whole
        return base.sample(key, sample_shape, condition)

    def log_prob(self, value: Any) -> Any:
        base, condition = self._whole
        return base.log_prob(value, condition)


@dataclasses.dataclass(frozen=True, eq=False)
class Bijection:
    """A flowjax bijection as a transport. Parameters are its arrays, and the condition's."""

    static: Any
    name: str = "flow"
    support: Any = dataclasses.field(default_factory=lambda: constraints.real)
    estimate: str | None = None

    def _whole(self, parameters: Any) -> Any:
        return eqx.combine(parameters, self.static)

    def forward(self, parameters: Any, z: Any) -> Any:
        bijection, condition = self._whole(parameters)
        return z if bijection is None else bijection.transform(z, condition)

    def forward_and_log_det(self, parameters: Any, z: Any) -> tuple[Any, Any]:
        bijection, condition = self._whole(parameters)
        return (z, jnp.zeros(())) if bijection is None else bijection.transform_and_log_det(z, condition)

    def inverse_and_log_det(self, parameters: Any, x: Any) -> tuple[Any, Any]:
        bijection, condition = self._whole(parameters)
        if bijection is None:
            return x, jnp.zeros(())
        z, log_det = bijection.inverse_and_log_det(x, condition)
        return z, -log_det

    def forward_with_score(self, parameters: Any, z: Any, score: Any) -> tuple[Any, Any, Any]:
        """`J' s_x = s_z - grad log det`, by solving with the Jacobian: the bijection is not inverted."""
        flat, unravel = ravel_pytree(z)

        def moved(flat: Any) -> Any:
            x, log_det = self.forward_and_log_det(parameters, unravel(flat))
            return ravel_pytree(x)[0], log_det

        (x, log_det), pull = jax.vjp(moved, flat)
        jacobian = jax.vmap(lambda row: pull((row, jnp.zeros_like(log_det)))[0])(jnp.eye(x.size, dtype=x.dtype))
        (slope,) = pull((jnp.zeros_like(x), jnp.ones_like(log_det)))
        score_x = jnp.linalg.solve(jacobian.T, ravel_pytree(score)[0] - slope)
        return unravel(x), log_det, unravel(score_x)


__all__ = ["flow"]
