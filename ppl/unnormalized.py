"""Targets that are just a function: leaf programs with an unnormalized density."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ppl import errors
from ppl.address import parse
from ppl.program import Bound, value_site
from ppl.site import FACTOR, SAMPLE, Operands, Site, bind, user_frame
from ppl.transforms.log_density import log_density


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Unnormalized(Bound):
    """See `unnormalized`."""

    log_rho: Any = None

    def log_density(self, trace: Any) -> Any:
        if not self.args:
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), trace)
            return log_density(dataclasses.replace(self, args=(like,)), trace)
        return log_density(self, trace)


def unnormalized(log_rho: Callable[[Any], Any], like: Any = None) -> Bound:
    """A leaf program whose log density is a function of its value, up to a constant.

    It can be scored, conditioned and used inside other programs, and not drawn.

    Args:
        log_rho: from a trace (an array, or a nested dict of arrays) to a scalar in nats.
        like: arrays or `jax.ShapeDtypeStruct`s that say what the value looks like; needed inside other programs.
            `log_density` takes it from the trace.

    Example:
        >>> import ppl
        >>> float(ppl.unnormalized(lambda z: -0.5 * z**2).log_density(2.0))
        -2.0
    """

    def leaf(like: Any = None) -> Any:
        if like is None:
            raise errors.ValueShapeError(
                "the shape of an unnormalized program is unknown here: give ppl.unnormalized(log_rho, like=...) a "
                f"value or jax.ShapeDtypeStruct.\n  {user_frame()}"
            )
        where = user_frame()
        value = jax.tree_util.tree_map_with_path(lambda path, leaf: _free(path, leaf, where), like)
        value_site("log_rho", FACTOR, log_rho(value))
        return value

    return Unnormalized(leaf, () if like is None else (like,), log_rho=log_rho)


def _free(path: Any, leaf: Any, where: Any) -> Any:
    """A latent of any real value, with density one."""
    address = tuple(part for entry in path for part in parse(entry.key))
    shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    flat = dist.ImproperUniform(dist.constraints.real, (), shape)
    leaves, tree = jax.tree.flatten(Operands(distribution=flat))
    site = Site(address, SAMPLE, tree, shape, dtype, flat.support, where, "ImproperUniform", len(shape))
    return bind(site, leaves)
