"""Values that users give for addresses: their shape, dtype and support are checked before anything runs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import errors
from ppl.site import Site, describe_support, show

UNKNOWN_MASK = object()
"""A mask whose elements are not known before running."""


def check_value(value: Any, site: Site, shape: tuple[int, ...], *, observed: bool, mask: Any = None) -> Any:
    """`value` as an array of the site's dtype; refused if it is not one value for each draw of the site."""
    name = f"{'observation' if observed else 'value'} of {show(site.address)!r}"
    try:
        if value is None:
            raise TypeError
        found = np.shape(value)
        dtype = jnp.result_type(value)
    except (TypeError, ValueError) as error:
        raise errors.ValueDtypeError(f"the {name} is no array: {value!r}.\n  {site.where}") from error
    if tuple(found) != tuple(shape):
        kind = errors.ObservationShapeError if observed else errors.ValueShapeError
        raise kind(
            f"the {name} has shape {list(found)} and {site.distribution_name or 'its site'} has shape {list(shape)}.\n"
            f"  {site.where}\nNothing is broadcast silently: reshape the value, or give the distribution that shape "
            "with .expand(shape) or a plate."
        )
    _check_dtype(value, dtype, site, name)
    if site.support is not None:
        check_support(value, site, name, mask)
    return jnp.asarray(value, dtype=site.dtype)


def _check_dtype(value: Any, dtype: Any, site: Site, name: str) -> None:
    discrete = jnp.issubdtype(site.dtype, jnp.integer) or jnp.issubdtype(site.dtype, jnp.bool_)
    numeric = jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)
    wrong = not numeric or (jnp.issubdtype(dtype, jnp.complexfloating) and not jnp.issubdtype(site.dtype, jnp.complexfloating))
    if discrete and jnp.issubdtype(dtype, jnp.inexact):
        wrong = isinstance(value, jax.core.Tracer) or bool(np.any(np.asarray(value) != np.round(np.asarray(value))))
    if wrong:
        raise errors.ValueDtypeError(
            f"the {name} has dtype {dtype} and {site.distribution_name} draws {np.dtype(site.dtype).name}.\n"
            f"  {site.where}\nConvert it, for example with .astype({np.dtype(site.dtype).name!r})."
        )


def check_support(value: Any, site: Site, name: str, mask: Any = None) -> None:
    """Refuse a concrete value outside of a support that does not depend on traced parameters."""
    if mask is UNKNOWN_MASK or isinstance(value, jax.core.Tracer) or isinstance(mask, jax.core.Tracer):
        return
    with jax.ensure_compile_time_eval():
        try:
            inside = np.asarray(site.support(np.asarray(value)))  # NumPy: nothing is compiled
        except (TypeError, ValueError, NotImplementedError):
            return  # this constraint cannot be evaluated on stacked values
    if mask is not None:
        with jax.ensure_compile_time_eval():
            inside = inside | ~np.broadcast_to(np.asarray(mask, bool), inside.shape)
    if not inside.all():
        worst = np.asarray(value)[np.unravel_index(int(np.argmin(inside)), inside.shape)] if inside.ndim else value
        raise errors.SupportError(
            f"the {name} has {int((~inside).sum())} of {inside.size} entries outside of the support of "
            f"{site.distribution_name}, {describe_support(site.support)}; the first is {worst}.\n  {site.where}"
        )
