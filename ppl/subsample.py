"""Random subsamples of a population, as part of a program's trace."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ppl import errors
from ppl.address import parse
from ppl.site import SUBSAMPLE, Operands, Site, bind, user_frame


def subsample(name: str, size: int, length: int) -> Any:
    """Indices of a random subsample without replacement: `length` of `range(size)`, an integer array.

    They are part of the trace, so a model that scores a family's trace uses the family's subsample; without one in the trace
    it draws its own. They have no density.

    Example:
        >>> import jax, ppl
        >>> @ppl.program
        ... def batch():
        ...     return ppl.subsample("rows", 100, 5)
        >>> batch().sample(jax.random.key(0)).shape
        (5,)
    """
    where = user_frame()
    if not 0 < length <= size:
        raise errors.ValueShapeError(f"cannot draw {length} of {size} without replacement.\n  {where}")
    leaves, tree = jax.tree.flatten(Operands(distribution=Choice(size, length)))
    site = Site(parse(name), SUBSAMPLE, tree, (length,), jnp.result_type(int), None, where, "Choice", 1)
    return bind(site, leaves)


class Choice(dist.Distribution):
    """Uniform over ordered subsamples without replacement, as indices."""

    support = dist.constraints.nonnegative_integer
    pytree_aux_fields = ("size", "length")

    def __init__(self, size: int, length: int):
        self.size, self.length = size, length
        super().__init__((), (length,))

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        def one(key: Any) -> Any:
            return jax.random.choice(key, self.size, (self.length,), replace=False)

        return one(key) if not sample_shape else jax.vmap(one)(jax.random.split(key, sample_shape))

    def log_prob(self, value: Any) -> Any:
        return jnp.zeros(jnp.shape(value)[:-1])
