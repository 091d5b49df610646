"""Weights of which only the first derivatives are right."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ppl import errors


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def first_order(value: Any, what: str) -> Any:
    """The value itself, which can be differentiated once: a second derivative raises `EstimatorError` about `what`.

    Values that do not depend on what is differentiated are left alone.
    """
    return value


@first_order.defjvp
def _once(what: str, primals: Any, tangents: Any) -> Any:
    return primals[0], tangents[0] * _guard(primals[0], what).astype(jnp.result_type(tangents[0]))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _guard(value: Any, what: str) -> Any:
    """One. It stands in the tangent, so that it is differentiated where the tangent is."""
    return jnp.ones((), jnp.result_type(value))


@_guard.defjvp
def _twice(what: str, primals: Any, tangents: Any) -> Any:
    raise errors.EstimatorError(
        f"{what}has unbiased first derivatives, and no second ones. "
        "Use ScoreFunction(), Enumerate() or, where the value is continuous, Reparameterize() for Hessians."
    )


__all__ = ["first_order"]
