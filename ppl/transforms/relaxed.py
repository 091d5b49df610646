"""Equations traced with integers, evaluated where a relaxed draw has put floating-point numbers in their place.

Sums and products extend to real numbers as they are. What does not (comparisons, indices, bits) is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.extend.core import primitives as jp

from ppl import errors

_ALIKE = frozenset("add sub mul max min neg integer_pow square add_any concatenate pad dot_general clamp".split())
"""Primitives whose operands all have one dtype."""
_SHAPES = frozenset(
    "broadcast_in_dim reshape squeeze transpose expand_dims slice rev copy copy_p reduce_sum reduce_max reduce_min reduce_prod "
    "cumsum cumprod dynamic_slice gather".split()
)
"""Primitives whose first operand gives the dtype; others are indices."""


def changed(values: Sequence[Any], atoms: Sequence[Any]) -> bool:
    """Whether some value is a floating-point number in place of an integer."""
    return any(_is_changed(value, atom) for value, atom in zip(values, atoms, strict=True))


def _is_changed(value: Any, atom: Any) -> bool:
    expected = atom.aval.dtype
    return not jnp.issubdtype(expected, jnp.inexact) and jnp.issubdtype(jax.typeof(value).dtype, jnp.inexact)


def refusal(what: str, names: Collection[str]) -> errors.EstimatorError:
    sites = ", ".join(map(repr, sorted(set(names)))) or "a site drawn before"
    return errors.EstimatorError(
        f"the relaxed value of {sites} reaches {what}, which has no meaning between integers.\n"
        "Use it in sums and products of numbers only, draw a OneHotCategorical in place of an index, or choose an estimator "
        "that keeps the value discrete."
    )


def evaluate(jaxpr: Jaxpr, consts: Sequence[Any], operands: Sequence[Any], names: Collection[str]) -> list[Any]:
    """The results of a jaxpr without sites; `names` are the relaxed sites, for errors."""
    env: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *operands], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else env[atom]

    for eqn in _needed(jaxpr):
        values = [read(atom) for atom in eqn.invars]
        which = [i for i, (value, atom) in enumerate(zip(values, eqn.invars, strict=True)) if _is_changed(value, atom)]
        outs = _extended(eqn, values, which, names) if which else _alone(jaxpr, eqn, env)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _needed(jaxpr: Jaxpr) -> list[Any]:
    """The equations that the results depend on: a check of a parameter, say, is left behind in a jaxpr and means nothing."""
    needed = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            kept.append(eqn)
            needed.update(atom for atom in eqn.invars if not isinstance(atom, Literal))
    return kept[::-1]


def _alone(jaxpr: Jaxpr, eqn: Any, env: dict[Any, Any]) -> list[Any]:
    ins = list(dict.fromkeys(atom for atom in eqn.invars if not isinstance(atom, Literal)))
    alone = jaxpr.replace(constvars=[], invars=ins, outvars=list(eqn.outvars), eqns=[eqn], debug_info=jaxpr.debug_info)
    return jax.core.eval_jaxpr(alone, (), *(env[var] for var in ins))


def _extended(eqn: Any, values: list[Any], which: list[int], names: Collection[str]) -> Iterable[Any]:
    name, params = eqn.primitive.name, dict(eqn.params)
    dtype = jax.typeof(values[which[0]]).dtype
    if eqn.primitive in (jp.jit_p, jp.closed_call_p):
        (closed,) = [param for param in params.values() if isinstance(param, ClosedJaxpr)]
        return evaluate(closed.jaxpr, closed.consts, values, names)
    if eqn.primitive is jp.convert_element_type_p and params["new_dtype"] != jnp.bool_:
        # Another kind of integer is no reason to round.
        return [jnp.asarray(values[0], params["new_dtype"]) if jnp.issubdtype(params["new_dtype"], jnp.inexact) else values[0]]
    if name == "select_n" and 0 not in which:
        return [eqn.primitive.bind(values[0], *(jnp.asarray(value, dtype) for value in values[1:]), **params)]
    if name in _ALIKE:
        if params.get("preferred_element_type") is not None:
            params["preferred_element_type"] = dtype
        return [eqn.primitive.bind(*(jnp.asarray(value, dtype) for value in values), **params)]
    if name in _SHAPES and which == [0]:
        return [eqn.primitive.bind(*values, **params)]
    raise refusal(repr(name), names)
