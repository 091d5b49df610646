"""Weights of which only the first derivatives are right."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ppl import errors


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def first_order(value: Any, what: str, where: str) -> Any:
    """The value itself, which can be differentiated once; a second derivative raises `EstimatorError`.

    `what` gave it, and stands at `where`. Values that do not depend on what is differentiated are left alone.
    """
    return value


@first_order.defjvp
def _once(what: str, where: str, primals: Any, tangents: Any) -> Any:
    return primals[0], tangents[0] * _guard(primals[0], what, where).astype(jnp.result_type(tangents[0]))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _guard(value: Any, what: str, where: str) -> Any:
    """One. It stands in the tangent, so that it is differentiated where the tangent is."""
    return jnp.ones((), jnp.result_type(value))


@_guard.defjvp
def _twice(what: str, where: str, primals: Any, tangents: Any) -> Any:
    raise errors.EstimatorError(
        f"{what} gives unbiased first derivatives alone, and a second one was asked for.\n  {where}\n"
        "Use ScoreFunction(), Enumerate() or, where the value is continuous, Reparameterize() for Hessians."
    )


__all__ = ["first_order"]
