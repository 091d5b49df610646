"""Along which dimensions an equation's results stay aligned with its operands.

For each operand, `dimension_maps` tells for each of its dimensions the dimension of the result along which it runs: element
`[.., n, ..]` of the result then depends on nothing of the operand but what has the same index n there. None means that the
elements along this dimension are mixed. Primitives that are not named here mix everything, which is always right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Map = tuple[int | None, ...]
"""For each dimension of an operand, the dimension of the result, or None."""

_ELEMENTWISE = frozenset(
    """
    abs accurate acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil clamp clz complex conj
    convert_element_type copy cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a
    igammac imag integer_pow is_finite le lgamma log log1p log2 logistic lt max min mul name ne neg nextafter not note
    one_minus_square or polygamma population_count pow random_gamma_grad real reduce_precision regularized_incomplete_beta
    rem round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient
    sub tan tanh xor zeta
    """.split()
)
_REDUCTIONS = frozenset("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin".split())
_CUMULATIVE = frozenset("cumsum cumprod cummax cummin cumlogsumexp".split())


def dimension_maps(eqn: Any) -> list[Map]:
    """A map for each operand of an equation; it holds for each of the results."""
    shapes = [tuple(atom.aval.shape) for atom in eqn.invars]
    out = tuple(eqn.outvars[0].aval.shape) if eqn.outvars else ()
    name = eqn.primitive.name
    if name in _ELEMENTWISE:
        return [_same(shape) for shape in shapes]
    rule = _RULES.get(name)
    maps = [(None,) * len(shape) for shape in shapes] if rule is None else list(rule(eqn.params, shapes, out))
    # A dimension of size one that is spread over many elements is not aligned with them.
    return [
        tuple(None if to is None or shape[at] != out[to] else to for at, to in enumerate(dims))
        for shape, dims in zip(shapes, maps, strict=True)
    ]


def _same(shape: Sequence[int]) -> Map:
    return tuple(range(len(shape)))


def _except(ndim: int, *lost: int) -> Map:
    return tuple(None if dim in lost else dim for dim in range(ndim))


def _drop(ndim: int, dropped: Sequence[int]) -> Map:
    kept = [dim for dim in range(ndim) if dim not in dropped]
    return tuple(kept.index(dim) if dim in kept else None for dim in range(ndim))


def _reshape_map(before: Sequence[int], after: Sequence[int]) -> Map:
    """A dimension survives where it has the same size and the same number of elements in front of it."""
    fronts: dict[tuple[int, int], int] = {}
    front = 1
    for dim, size in enumerate(after):
        if size != 1:
            fronts[front, size] = dim
        front *= size
    result: list[int | None] = []
    front = 1
    for size in before:
        result.append(fronts.get((front, size)))
        front *= size
    return tuple(result)


def _broadcast(params: Any, shapes: Any, out: Any) -> list[Map]:
    return [tuple(params["broadcast_dimensions"]), *[(None,) * len(shape) for shape in shapes[1:]]]


def _reshape(params: Any, shapes: Any, out: Any) -> list[Map]:
    return [_reshape_map(shapes[0], out), *[(None,) * len(shape) for shape in shapes[1:]]]


def _transpose(params: Any, shapes: Any, out: Any) -> list[Map]:
    order = list(params["permutation"])
    return [tuple(order.index(dim) for dim in range(len(order)))]


def _squeeze(params: Any, shapes: Any, out: Any) -> list[Map]:
    return [_drop(len(shapes[0]), params["dimensions"])]


def _reduce(params: Any, shapes: Any, out: Any) -> list[Map]:
    return [_drop(len(shape), params["axes"]) for shape in shapes]


def _cumulative(params: Any, shapes: Any, out: Any) -> list[Map]:
    return [_except(len(shapes[0]), params["axis"])]


def _sort(params: Any, shapes: Any, out: Any) -> list[Map]:
    return [_except(len(shape), params["dimension"]) for shape in shapes]


def _reverse(params: Any, shapes: Any, out: Any) -> list[Map]:
    return [_except(len(shapes[0]), *params["dimensions"])]


def _concatenate(params: Any, shapes: Any, out: Any) -> list[Map]:
    return [_except(len(shape), params["dimension"]) for shape in shapes]


def _whole(params: Any, shapes: Any, out: Any) -> list[Map]:
    """`slice`, `split` and `dynamic_slice`: dimensions that are taken whole. A scalar index says nothing of where."""
    taken = tuple(dim if shapes[0][dim] == out[dim] else None for dim in range(len(out)))
    strides = params.get("strides")
    if strides is not None:
        taken = tuple(None if stride != 1 else dim for dim, stride in zip(taken, strides, strict=True))
    return [taken, *[() for _ in shapes[1:]]]


def _pad(params: Any, shapes: Any, out: Any) -> list[Map]:
    return [tuple(dim if config == (0, 0, 0) else None for dim, config in enumerate(params["padding_config"])), ()]


def _update_slice(params: Any, shapes: Any, out: Any) -> list[Map]:
    update = tuple(dim if shapes[1][dim] == out[dim] else None for dim in range(len(out)))
    return [_same(out), update, *[() for _ in shapes[2:]]]


def _scatter(params: Any, shapes: Any, out: Any) -> list[Map]:
    numbers = params["dimension_numbers"]
    _, indices, updates = shapes
    from_indices: list[int | None] = [None] * len(indices)
    for dim, index_dim in zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True):
        from_indices[index_dim] = dim
    # Dimensions of the updates that lie in no window run along those of the indices.
    window = numbers.update_window_dims
    outside = iter(from_indices)
    from_updates = tuple(None if dim in window else next(outside) for dim in range(len(updates)))
    return [_same(out), tuple(from_indices), from_updates]


def _matrices(params: Any, shapes: Any, out: Any) -> list[Map]:
    """Linear algebra of the last two dimensions."""
    return [(*range(len(shape) - 2), None, None) for shape in shapes]


def _top_k(params: Any, shapes: Any, out: Any) -> list[Map]:
    ndim = len(shapes[0])
    return [_except(ndim, params["dimension"] if "dimension" in params else params.get("axis", ndim - 1))]


def _dot_general(params: Any, shapes: Any, out: Any) -> list[Map]:
    (left_sum, right_sum), (left_batch, right_batch) = params["dimension_numbers"]
    n_batch = len(left_batch)
    n_left = len(shapes[0]) - n_batch - len(left_sum)

    def side(ndim: int, batch: Sequence[int], summed: Sequence[int], start: int) -> Map:
        free = [dim for dim in range(ndim) if dim not in batch and dim not in summed]
        places = {dim: i for i, dim in enumerate(batch)} | {dim: start + i for i, dim in enumerate(free)}
        return tuple(places.get(dim) for dim in range(ndim))

    return [
        side(len(shapes[0]), left_batch, left_sum, n_batch),
        side(len(shapes[1]), right_batch, right_sum, n_batch + n_left),
    ]


def _convolution(params: Any, shapes: Any, out: Any) -> list[Map]:
    numbers = params["dimension_numbers"]
    left = [None] * len(shapes[0])
    if params["batch_group_count"] == 1:
        left[numbers.lhs_spec[0]] = numbers.out_spec[0]
    return [tuple(left), (None,) * len(shapes[1])]


def _gather(params: Any, shapes: Any, out: Any) -> list[Map]:
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    operand, indices = shapes
    batch_places = [dim for dim in range(len(out)) if dim not in numbers.offset_dims]
    from_indices: list[int | None] = [*batch_places, None]
    offset = [
        dim
        for dim in range(len(operand))
        if dim not in numbers.collapsed_slice_dims and dim not in numbers.operand_batching_dims
    ]
    from_operand: list[int | None] = [None] * len(operand)
    for dim, place in zip(offset, numbers.offset_dims, strict=True):
        if sizes[dim] == operand[dim]:
            from_operand[dim] = place
    for dim, index_dim in zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True):
        from_operand[dim] = batch_places[index_dim]
    return [tuple(from_operand), tuple(from_indices[: len(indices)])]


_RULES: dict[str, Callable[[Any, Any, Any], Sequence[Map]]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(_CUMULATIVE, _cumulative),
    "sort": _sort,
    "rev": _reverse,
    "concatenate": _concatenate,
    "slice": _whole,
    "split": _whole,
    "dynamic_slice": _whole,
    "pad": _pad,
    "dynamic_update_slice": _update_slice,
    **dict.fromkeys(["scatter", "scatter-add", "scatter-mul", "scatter-min", "scatter-max"], _scatter),
    "cholesky": _matrices,
    "triangular_solve": _matrices,
    "top_k": _top_k,
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "gather": _gather,
}
