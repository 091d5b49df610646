"""A model's posterior as an unnormalized density of an unconstrained vector: what samplers take for a target."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist

from ppl import errors
from ppl.address import nest, parse
from ppl.program import Bound
from ppl.transforms.shapes import trace_shapes


class Target(NamedTuple):
    """An unnormalized density on vectors.

    Attributes:
        log_density: from a vector of length `dim` to nats; the Jacobian of `constrain` is in it.
        dim: the number of unconstrained real numbers.
        constrain: from such a vector to the model's trace.
    """

    log_density: Callable[[Any], Any]
    dim: int
    constrain: Callable[[Any], Any]


def unconstrained(model: Bound) -> Target:
    """The latent variables of a model as one unconstrained vector, each mapped to its support by NumPyro's bijection.

    The integral of `exp(log_density)` is the model's evidence.

    Raises:
        SupportError: a latent variable is discrete, or its support depends on traced values.

    Example:
        >>> import jax, jax.numpy as jnp, ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def model():
        ...     scale = ppl.sample("scale", dist.HalfNormal(1.0))
        ...     ppl.sample("y", dist.Normal(0.0, scale), obs=0.5)
        >>> target = ppl.transport.unconstrained(model())
        >>> grid = jnp.linspace(-15.0, 5.0, 20_001)[:, None]
        >>> evidence = jnp.sum(jnp.exp(jax.vmap(target.log_density)(grid))) * 1e-3
        >>> print(f"{evidence:.3f}, {target.constrain(jnp.zeros(1))}")
        0.294, {'scale': Array(1., dtype=float32)}
    """
    rows = {parse(name): row for name, row in trace_shapes(model).items() if row.kind == "sample"}
    pieces, start = [], 0
    for address, row in rows.items():
        if row.support is None or row.support.is_discrete:
            kind = "depends on traced values" if row.support is None else "is discrete"
            raise errors.SupportError(
                f"the support of {'/'.join(address)!r} {kind}, and has no bijection to the reals.\n  {row.where}"
            )
        transform = dist.transforms.biject_to(row.support)
        shape = tuple(transform.inverse_shape(row.shape))
        pieces.append((address, transform, shape, start, start + math.prod(shape)))
        start = pieces[-1][-1]
    if not pieces:
        raise errors.MissingAddressError("the model has no latent variable: there is nothing to sample")

    def both(vector: Any) -> tuple[Any, Any]:
        if jnp.shape(vector) != (start,):
            raise errors.ValueShapeError(f"the target takes a vector of length {start}, got shape {jnp.shape(vector)}")
        values, log_jacobian = {}, jnp.zeros(())
        for address, transform, shape, begin, end in pieces:
            free = jnp.reshape(vector[begin:end], shape)
            values[address] = transform(free)
            log_jacobian += jnp.sum(transform.log_abs_det_jacobian(free, values[address]))
        return nest(values), log_jacobian

    def log_density(vector: Any) -> Any:
        trace, log_jacobian = both(vector)
        return model.log_density(trace) + log_jacobian

    return Target(log_density, start, lambda vector: both(vector)[0])


__all__ = ["Target", "unconstrained"]
