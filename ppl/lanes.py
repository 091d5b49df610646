"""`vmap` over control flow with sites inside, kept whole.

JAX's own rules batch the bodies of `scan`, `cond` and `switch`: a `cond` with a batched predicate becomes a `select` that
runs every branch, and the order of a scan and the vmap around it is lost. Both change what the sites inside mean. So a
`vmap` of control flow that holds sites is kept as one equation, `lanes`, with the unbatched body inside. Control flow without
sites is batched by JAX as ever.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Primitive
from jax.extend.core import primitives as jp
from jax.interpreters import ad, batching, mlir

from ppl import errors
from ppl.estimated import estimated_p
from ppl.site import PlateAxis, Site, refuse_lowering, site_p

lanes_p = Primitive("lanes")
lanes_p.multiple_results = True

_first_site: weakref.WeakKeyDictionary[Jaxpr, Any] = weakref.WeakKeyDictionary()


def inner_jaxprs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The jaxprs in an equation's parameters, in order."""
    for param in params.values():
        for item in param if isinstance(param, tuple | list) else (param,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def site_in(jaxpr: Jaxpr) -> Site | None:
    """The first site in a jaxpr or in any jaxpr inside it."""
    if jaxpr not in _first_site:
        _first_site[jaxpr] = next(filter(None, map(site_of, jaxpr.eqns)), None)
    return _first_site[jaxpr]


def site_of(eqn: Any) -> Site | None:
    """The first site that an equation is, or holds."""
    if eqn.primitive is site_p:
        return eqn.params["site"]
    if eqn.primitive is estimated_p:
        return eqn.params["estimated"].site
    return next(filter(None, map(site_in, inner_jaxprs(eqn.params))), None)


@lanes_p.def_abstract_eval
def _abstract(*args: Any, jaxpr: ClosedJaxpr, batched: Any, size: int, axis: Any) -> list[Any]:
    return [jax.core.ShapedArray((size, *aval.shape), aval.dtype) for aval in jaxpr.out_avals]


def _keep(primitive: Primitive, axis_data: Any, args: Sequence[Any], dims: Sequence[Any], **params: Any) -> Any:
    """Bind `lanes` around one lane of a primitive."""
    moved = [x if d is None else batching.bdim_at_front(x, d, axis_data.size) for x, d in zip(args, dims, strict=True)]
    batched = tuple(d is not None for d in dims)
    one_lane = [_aval(x, there) for x, there in zip(moved, batched, strict=True)]
    jaxpr = jax.make_jaxpr(functools.partial(primitive.bind, **params))(*one_lane)
    axis = axis_data.name if isinstance(axis_data.name, PlateAxis) else None
    outs = lanes_p.bind(*moved, jaxpr=jaxpr, batched=batched, size=axis_data.size, axis=axis)
    return outs, [0] * len(outs)


def _aval(x: Any, batched: bool) -> jax.ShapeDtypeStruct:
    aval = jax.typeof(x)
    return jax.ShapeDtypeStruct(aval.shape[1:] if batched else aval.shape, aval.dtype, weak_type=aval.weak_type)


loops_first = jax.make_user_context(False)
"""Whether a `vmap` of a scan with sites becomes a scan of vmaps, as in JAX, and is not kept as `lanes`.

The order of a trace's axes is lost then, but not what the function returns. So objectives may be staged in this way, in which
every step of a loop has its elements side by side, and programs may not.
"""


def loop_in_lanes(jaxpr: Jaxpr) -> bool:
    """Whether a scan with sites stands directly in lanes."""
    for eqn in jaxpr.eqns:
        if site_of(eqn) is not None:
            inner = list(inner_jaxprs(eqn.params))
            if eqn.primitive is lanes_p and any(e.primitive is jp.scan_p for e in inner[0].eqns):
                return True
            if any(map(loop_in_lanes, inner)):
                return True
    return False


def _keep_where_sites_are(primitive: Primitive) -> None:
    batch = batching.fancy_primitive_batchers[primitive]

    def rule(axis_data: Any, args: Sequence[Any], dims: Sequence[Any], **params: Any) -> Any:
        flat = primitive is jp.scan_p and loops_first.value
        if not flat and any(site_in(jaxpr) for jaxpr in inner_jaxprs(params)):
            return _keep(primitive, axis_data, args, dims, **params)
        return batch(axis_data, args, dims, **params)

    batching.fancy_primitive_batchers[primitive] = rule


_keep_where_sites_are(jp.scan_p)
_keep_where_sites_are(jp.cond_p)
_keep_where_sites_are(jp.while_p)
batching.fancy_primitive_batchers[lanes_p] = functools.partial(_keep, lanes_p)
batching.fancy_primitive_batchers[estimated_p] = functools.partial(_keep, estimated_p)


def _refuse(*args: Any, jaxpr: ClosedJaxpr, **params: Any) -> Any:
    site = site_in(jaxpr.jaxpr)
    assert site is not None
    refuse_lowering(site)


def _differentiate(primals: Any, tangents: Any, *, jaxpr: ClosedJaxpr, **params: Any) -> Any:
    site = site_in(jaxpr.jaxpr)
    assert site is not None
    raise errors.DifferentiationError(
        f"jax.grad (or jvp) reached mapped control flow that holds the random choice {site.name!r}.\n  {site.where}\n"
        "Decorate the function with @ppl.expectation and call its .grad or .value_and_grad."
    )


lanes_p.def_impl(_refuse)
mlir.register_lowering(lanes_p, lambda _, *args, **params: _refuse(*args, **params))
ad.primitive_jvps[lanes_p] = _differentiate
