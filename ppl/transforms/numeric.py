"""A jaxpr in NumPy and double precision: nothing is compiled. For probing small pieces of an objective at many points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import scipy.special as special
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.extend.core import primitives as jp

from ppl.lanes import inner_jaxprs, site_of
from ppl.transforms.interpret import scan_sizes

CALLS = (jp.jit_p, jp.closed_call_p, jp.remat_p, jp.custom_jvp_call_p, jp.custom_vjp_call_p)
MAX_STEPS = 1000
"""Of a while loop."""


class Unknown(Exception):  # noqa: N818 (no error of the user's)
    """A value that cannot be computed here."""


class Random(Unknown):
    """A value that is drawn."""


def closed(params: dict[str, Any]) -> tuple[Jaxpr, Sequence[Any]]:
    """The jaxpr that a call holds, and its constants."""
    for param in params.values():
        if isinstance(param, ClosedJaxpr):
            return param.jaxpr, param.consts
    return next(inner_jaxprs(params)), ()


def array(value: Any) -> Any:
    """A value in double precision."""
    if isinstance(value, jax.core.Tracer):
        raise Unknown
    if isinstance(getattr(value, "dtype", None), np.dtype) or np.isscalar(value):
        found = np.asarray(value)
        if np.issubdtype(found.dtype, np.integer) or found.dtype == bool:
            return found
        if found.dtype.kind in "fV":
            return found.astype(np.float64)
    raise Unknown


def evaluate(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """The results of one equation."""
    name, params = eqn.primitive.name, eqn.params
    if name in ELEMENTWISE:
        return [ELEMENTWISE[name](params, *operands)]
    rule = _RULES.get(name)
    if rule is not None:
        found = rule(eqn, *operands)
        return found if isinstance(found, list) else [found]
    if eqn.primitive in CALLS:
        return run(*closed(params), operands)
    if eqn.primitive is jp.cond_p:
        index = int(np.clip(operands[0], 0, len(params["branches"]) - 1))
        return run(params["branches"][index].jaxpr, params["branches"][index].consts, operands[1:])
    if eqn.primitive is jp.scan_p:
        return _scan(eqn, operands)
    if eqn.primitive is jp.while_p:
        return _while(eqn, operands)
    return _by_jax(eqn, operands)


def run(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """The results of a jaxpr."""
    env: dict[Any, Any] = dict(zip(jaxpr.invars, args, strict=True))
    env.update(zip(jaxpr.constvars, map(array, consts), strict=True))

    def read(atom: Any) -> Any:
        return array(atom.val) if isinstance(atom, Literal) else env[atom]

    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, evaluate(eqn, [read(atom) for atom in eqn.invars]), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _scan(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    body, length = eqn.params["jaxpr"], eqn.params["length"]
    n_consts, n_carry = scan_sizes(eqn)
    carry, xs = list(operands[n_consts : n_consts + n_carry]), operands[n_consts + n_carry :]
    order = range(length)[::-1] if eqn.params["reverse"] else range(length)
    rows: list[Any] = [None] * length
    for t in order:
        outs = run(body.jaxpr, body.consts, [*operands[:n_consts], *carry, *(x[t] for x in xs)])
        carry, rows[t] = outs[:n_carry], outs[n_carry:]
    if not length:
        raise Unknown
    return [*carry, *(np.stack(column) for column in zip(*rows, strict=True))]


def _while(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    cond, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    carry = list(operands[n_cond + n_body :])
    for _ in range(MAX_STEPS):
        if not run(cond.jaxpr, cond.consts, [*operands[:n_cond], *carry])[0]:
            return carry
        carry = run(body.jaxpr, body.consts, [*operands[n_cond : n_cond + n_body], *carry])
    raise Unknown


def _by_jax(eqn: Any, operands: Sequence[Any]) -> list[Any]:
    """What has no rule here, in JAX's own precision."""
    if site_of(eqn) is not None:
        raise Random
    if any(inner_jaxprs(eqn.params)) or any(not isinstance(atom.aval.dtype, np.dtype) for atom in [*eqn.invars, *eqn.outvars]):
        raise Unknown
    cast = [jax.numpy.asarray(x, atom.aval.dtype) for x, atom in zip(operands, eqn.invars, strict=True)]
    found = eqn.primitive.bind(*cast, **eqn.params)
    return [array(x) for x in (found if eqn.primitive.multiple_results else [found])]


def _round(params: Any, x: Any) -> Any:
    return np.round(x) if int(params["rounding_method"]) == 1 else np.trunc(x + np.copysign(0.5, x))


def _convert(params: Any, x: Any) -> Any:
    dtype = params["new_dtype"]
    if not isinstance(dtype, np.dtype):
        raise Unknown
    return np.asarray(x).astype(np.float64 if dtype.kind in "fV" else dtype)


def _select(params: Any, which: Any, *cases: Any) -> Any:
    which = np.asarray(which, int)
    if np.ndim(which) == 0 and len(cases) and np.ndim(cases[0]):
        return cases[int(which)]
    return np.select(
        [which == i for i in range(len(cases))],
        [np.broadcast_to(c, np.broadcast_shapes(np.shape(which), np.shape(c))) for c in cases],
    )


def _div(params: Any, x: Any, y: Any) -> Any:
    both = np.asarray(x).dtype.kind in "iu" and np.asarray(y).dtype.kind in "iu"
    return np.trunc(np.true_divide(x, y)).astype(np.asarray(x).dtype) if both else np.true_divide(x, y)


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda params, *arrays: function(*arrays)


ELEMENTWISE: dict[str, Callable[..., Any]] = {
    **{
        name: _plain(function)
        for name, function in {
            "abs": np.abs, "acos": np.arccos, "acosh": np.arccosh, "add": np.add, "add_any": np.add, "and": np.bitwise_and,
            "asin": np.arcsin, "asinh": np.arcsinh, "atan": np.arctan, "atan2": np.arctan2, "atanh": np.arctanh,
            "bessel_i0e": special.i0e, "bessel_i1e": special.i1e, "cbrt": np.cbrt, "ceil": np.ceil, "copy": np.positive,
            "copy_p": np.array, "cos": np.cos, "cosh": np.cosh, "digamma": special.digamma, "eq": np.equal,
            "erf": special.erf, "erf_inv": special.erfinv, "erfc": special.erfc, "exp": np.exp, "exp2": np.exp2,
            "expm1": np.expm1, "floor": np.floor, "ge": np.greater_equal, "gt": np.greater, "igamma": special.gammainc,
            "igammac": special.gammaincc, "is_finite": np.isfinite, "le": np.less_equal, "lgamma": special.gammaln,
            "log": np.log, "log1p": np.log1p, "log2": np.log2, "logistic": special.expit, "lt": np.less, "max": np.maximum,
            "min": np.minimum, "mul": np.multiply, "ne": np.not_equal, "neg": np.negative, "not": np.invert,
            "or": np.bitwise_or, "polygamma": lambda n, x: special.polygamma(np.asarray(n, int), x), "pow": np.power,
            "regularized_incomplete_beta": special.betainc, "rem": np.fmod, "rsqrt": lambda x: 1.0 / np.sqrt(x),
            "sign": np.sign, "sin": np.sin, "sinh": np.sinh, "sqrt": np.sqrt, "square": np.square,
            "stop_gradient": lambda x: x, "note": lambda x: x, "name": lambda x: x, "one_minus_square": lambda x: 1.0 - x**2,
            "sub": np.subtract, "tan": np.tan, "tanh": np.tanh, "xor": np.bitwise_xor,
            "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high), "zeta": special.zeta, "lt_to": np.less,
            "le_to": np.less_equal, "eq_to": np.equal, "accurate": lambda x, coarse: x,
        }.items()
    },
    "convert_element_type": _convert,
    "reduce_precision": lambda params, x: x,
    "div": _div,
    "integer_pow": lambda params, x: x ** float(params["y"]) if np.asarray(x).dtype.kind == "f" else x ** params["y"],
    "round": _round,
    "select_n": _select,
}  # fmt: skip


def _broadcast(eqn: Any, x: Any, *_: Any) -> Any:
    shape = [1] * len(eqn.params["shape"])
    for dim, size in zip(eqn.params["broadcast_dimensions"], np.shape(x), strict=True):
        shape[dim] = size
    return np.broadcast_to(np.reshape(x, shape), eqn.params["shape"])


def _reduce(function: Any) -> Callable[..., Any]:
    return lambda eqn, x: function(x, axis=tuple(eqn.params["axes"]))


def _arg(function: Any) -> Callable[..., Any]:
    return lambda eqn, x: function(x, axis=eqn.params["axes"][0])


def _cumulative(function: Any) -> Callable[..., Any]:
    def cumulate(eqn: Any, x: Any) -> Any:
        axis = eqn.params["axis"]
        return np.flip(function(np.flip(x, axis), axis=axis), axis) if eqn.params["reverse"] else function(x, axis=axis)

    return cumulate


def _dot(eqn: Any, x: Any, y: Any) -> Any:
    (sum_x, sum_y), (batch_x, batch_y) = eqn.params["dimension_numbers"]
    names_x, names_y = list(range(np.ndim(x))), [100 + i for i in range(np.ndim(y))]
    for i, j in [*zip(sum_x, sum_y, strict=True), *zip(batch_x, batch_y, strict=True)]:
        names_y[j] = names_x[i]
    free_x = [names_x[i] for i in range(np.ndim(x)) if i not in (*sum_x, *batch_x)]
    free_y = [names_y[j] for j in range(np.ndim(y)) if j not in (*sum_y, *batch_y)]
    used = {name: number for number, name in enumerate(dict.fromkeys([*names_x, *names_y]))}
    wanted = [names_x[i] for i in batch_x] + free_x + free_y
    return np.einsum(x, [used[n] for n in names_x], y, [used[n] for n in names_y], [used[n] for n in wanted], optimize=True)


def _slice(eqn: Any, x: Any) -> Any:
    p = eqn.params
    strides = p["strides"] or [1] * np.ndim(x)
    return x[tuple(slice(a, b, s) for a, b, s in zip(p["start_indices"], p["limit_indices"], strides, strict=True))]


def _dynamic_slice(eqn: Any, x: Any, *starts: Any) -> Any:
    places = []
    for start, size, whole in zip(starts, eqn.params["slice_sizes"], np.shape(x), strict=True):
        first = int(np.clip(start, 0, whole - size))
        places.append(slice(first, first + size))
    return x[tuple(places)]


def _iota(eqn: Any) -> Any:
    shape, dim = eqn.params["shape"], eqn.params["dimension"]
    row = np.arange(shape[dim]).reshape([-1 if i == dim else 1 for i in range(len(shape))])
    return np.broadcast_to(row, shape).astype(np.float64 if eqn.params["dtype"].kind == "f" else eqn.params["dtype"])


def _gather(eqn: Any, x: Any, indices: Any) -> Any:
    """JAX gathers the positions, so that the values keep their precision."""
    positions = jax.numpy.arange(x.size).reshape(x.shape)
    params = {**eqn.params, "fill_value": -1}
    found = np.asarray(eqn.primitive.bind(positions, jax.numpy.asarray(indices, eqn.invars[1].aval.dtype), **params))
    values = x.ravel()[np.clip(found, 0, None)]
    return np.where(found < 0, np.nan, values) if x.dtype.kind == "f" else values


def _update_slice(eqn: Any, x: Any, update: Any, *starts: Any) -> Any:
    result = np.array(x)
    places = [int(np.clip(s, 0, n - k)) for s, n, k in zip(starts, x.shape, np.shape(update), strict=True)]
    result[tuple(slice(p, p + k) for p, k in zip(places, np.shape(update), strict=True))] = update
    return result


def _triangular_solve(eqn: Any, a: Any, b: Any) -> Any:
    p = eqn.params
    a = np.tril(a) if p["lower"] else np.triu(a)
    if p["unit_diagonal"]:
        a = a - a * np.eye(a.shape[-1]) + np.eye(a.shape[-1])
    a = np.swapaxes(a, -1, -2) if p["transpose_a"] else a
    if p["left_side"]:
        return np.linalg.solve(a, b)
    return np.swapaxes(np.linalg.solve(np.swapaxes(a, -1, -2), np.swapaxes(b, -1, -2)), -1, -2)


def _sort(eqn: Any, *arrays: Any) -> Any:
    dim = eqn.params["dimension"]
    order = np.lexsort(arrays[: eqn.params["num_keys"]][::-1], axis=dim)
    return [np.take_along_axis(x, order, axis=dim) for x in arrays]


def _split(eqn: Any, x: Any) -> Any:
    return np.split(x, np.cumsum(eqn.params["sizes"])[:-1], axis=eqn.params["axis"])


_RULES: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": lambda eqn, x, *_: np.reshape(x, eqn.params["new_sizes"]),
    "squeeze": lambda eqn, x: np.squeeze(x, tuple(eqn.params["dimensions"])),
    "expand_dims": lambda eqn, x: np.expand_dims(x, tuple(eqn.params["dimensions"])),
    "transpose": lambda eqn, x: np.transpose(x, eqn.params["permutation"]),
    "rev": lambda eqn, x: np.flip(x, tuple(eqn.params["dimensions"])),
    "concatenate": lambda eqn, *xs: np.concatenate(xs, axis=eqn.params["dimension"]),
    "reduce_sum": _reduce(np.sum),
    "reduce_prod": _reduce(np.prod),
    "reduce_max": _reduce(np.max),
    "reduce_min": _reduce(np.min),
    "reduce_and": _reduce(np.all),
    "reduce_or": _reduce(np.any),
    "argmax": _arg(np.argmax),
    "argmin": _arg(np.argmin),
    "cumsum": _cumulative(np.cumsum),
    "cumprod": _cumulative(np.cumprod),
    "cummax": _cumulative(np.maximum.accumulate),
    "cummin": _cumulative(np.minimum.accumulate),
    "cumlogsumexp": _cumulative(np.logaddexp.accumulate),
    "dot_general": _dot,
    "slice": _slice,
    "split": _split,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _update_slice,
    "gather": _gather,
    "cholesky": lambda eqn, x: np.linalg.cholesky(x),
    "triangular_solve": _triangular_solve,
    "iota": _iota,
    "sort": _sort,
}
EXACT = frozenset([*ELEMENTWISE, *_RULES])
"""Names of the primitives that are evaluated in double precision."""

__all__ = ["CALLS", "ELEMENTWISE", "EXACT", "Random", "Unknown", "array", "closed", "evaluate", "run"]
