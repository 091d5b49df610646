"""Exact sums and quadrature: the log density of some values of a program, its other variables eliminated one by one.

The program is run once, in order. An auxiliary variable takes all of its values (or quadrature nodes) along an axis of its
own, and whatever is computed from it carries that axis. The density is a product of factors over these axes, and an axis is
summed out as soon as nothing that is still to come reads it (variable elimination; Zhang & Poole 1994). Along a loop, written
out or a `scan`, this is the forward algorithm (Rabiner 1989): T steps of K values cost T K^2.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.extend.core import primitives as jp

from ppl import errors
from ppl.densities import batched_distribution, cost
from ppl.estimated import estimated_p
from ppl.lanes import lanes_p, site_of
from ppl.site import SAMPLE, Address, Site, has_value, restore, show, site_p
from ppl.transforms.interpret import Inputs, run, scan_sizes
from ppl.transforms.log_density import LogDensity
from ppl.transforms.quadrature import all_values, check_continuous, nodes_of
from ppl.transforms.stage import Located, sites

LIMIT = 4096
"""The most combinations of values that are evaluated at a time."""


@dataclasses.dataclass(frozen=True, eq=False)
class Axis:
    """The values of one auxiliary site."""

    size: int
    site: Site


@dataclasses.dataclass(frozen=True)
class Spread:
    """An array with some axes in front."""

    array: Any
    axes: tuple[Axis, ...] = ()


class Elimination:
    """The run over one jaxpr; `total` is the log of the sum in the end."""

    def __init__(self, auxiliary: frozenset[Address], nodes: int | None, values: Mapping[Address, Any]):
        self.auxiliary, self.nodes, self.values = auxiliary, nodes, dict(values)
        self.factors: list[Spread] = []

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Spread], live: frozenset[Axis]) -> list[Spread]:
        """Evaluate a jaxpr. The axes in `live` are read later, outside of it."""
        env: dict[Any, Spread] = {var: Spread(const) for var, const in zip(jaxpr.constvars, consts, strict=True)}
        env.update(zip(jaxpr.invars, args, strict=True))

        def read(atom: Any) -> Spread:
            return Spread(atom.val) if isinstance(atom, Literal) else env[atom]

        last = {atom: i for i, eqn in enumerate(jaxpr.eqns) for atom in eqn.invars if not isinstance(atom, Literal)}
        last.update({atom: len(jaxpr.eqns) for atom in jaxpr.outvars if not isinstance(atom, Literal)})

        def later(i: int) -> frozenset[Axis]:
            return live.union(*(env[var].axes for var, end in last.items() if end > i and var in env))

        for i, eqn in enumerate(jaxpr.eqns):
            used = [last.get(var, -1) > i for var in eqn.outvars]
            operands = [read(atom) for atom in eqn.invars]
            read_later = later(i) if site_of(eqn) is not None else live
            env.update(zip(eqn.outvars, self.equation(eqn, _alone(jaxpr, eqn), operands, used, read_later), strict=True))
            if any(factor.axes for factor in self.factors):
                self.sum_out(later(i))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn: Any, alone: Jaxpr, operands: list[Spread], used: list[bool], live: frozenset[Axis]) -> list[Spread]:
        """One equation. The axes in `live` are read after it."""
        hidden = self._hidden(alone)
        if eqn.primitive is site_p and not hidden:
            return [self._site(eqn.params["site"], operands)]
        if not hidden:
            return self._plain(eqn, alone, operands)
        if eqn.primitive is site_p:
            return [self._auxiliary(hidden[0], operands)]
        if eqn.primitive in (jp.jit_p, jp.closed_call_p, jp.remat_p):
            inner = eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
            closed = inner if isinstance(inner, ClosedJaxpr) else ClosedJaxpr(inner, ())
            return self.run(closed.jaxpr, closed.consts, operands, live)
        if eqn.primitive is jp.scan_p:
            return Chain(self, eqn, alone, used, operands).run(live)
        if eqn.primitive in (lanes_p, jp.cond_p):
            return self._apart(eqn, alone, operands, used, hidden)
        raise errors.MarginalError(
            f"{hidden[0].site.name!r} stands where it cannot be summed out.\n  {hidden[0].site.where}\n"
            "Auxiliary variables that are enumerated or integrated by quadrature are plain sites, at the top of the program or "
            "in jit, scan, vmap, cond or switch. Give a proposal= to integrate them by importance sampling."
        )

    def _hidden(self, alone: Jaxpr) -> list[Located]:
        """The auxiliary sites in an equation."""
        found = [item for item in sites(alone) if item.site.kind == SAMPLE and item.site.address in self.auxiliary]
        return [item for item in found if alone.eqns[0].primitive is estimated_p or not has_value(item.site)]

    def _plain(self, eqn: Any, alone: Jaxpr, operands: list[Spread]) -> list[Spread]:
        """An equation without auxiliary sites; what it holds of other sites is scored."""
        addresses = {item.site.address for item in sites(alone)}
        inputs = Inputs({"trace": {a: v for a, v in self.values.items() if a in addresses}})
        by_atom = {a: o for a, o in zip(eqn.invars, operands, strict=True) if not isinstance(a, Literal)}

        def evaluate(*arrays: Any) -> list[Any]:
            if not addresses:
                return jax.core.eval_jaxpr(alone, (), *arrays)
            outs, record = run(alone, (), arrays, LogDensity(), inputs, {})
            return [*outs, record.total]

        outs = apply(evaluate, list(by_atom.values()))
        if addresses:
            self.factors.append(outs.pop())
        return outs

    def _site(self, site: Site, operands: list[Spread]) -> Spread:
        given = {"trace": self.values[site.address]} if site.address in self.values else {}

        def evaluate(*leaves: Any) -> list[Any]:
            value, _, share = LogDensity().site(site, leaves, given, None)
            return [value, jnp.zeros(()) if share is None else share]

        value, factor = apply(evaluate, operands)
        self.factors.append(factor)
        given_is_free = "trace" in given and site.kind == SAMPLE
        return Spread(given["trace"]) if given_is_free else value

    def _auxiliary(self, located: Located, operands: list[Spread]) -> Spread:
        site = located.site
        values = all_values(located)
        if values is not None:
            axis = Axis(len(values), site)

            def costs(*leaves: Any) -> list[Any]:
                return [jax.vmap(lambda value: cost(site, leaves, value))(values)]

            (factor,) = apply(costs, operands, axis)
            self.factors.append(Spread(factor.array, (*factor.axes, axis)))
            return Spread(values, (axis,))
        check_continuous(located, self.nodes)
        axis = Axis((self.nodes or 0) ** math.prod(site.full_shape), site)

        def weigh(*leaves: Any) -> list[Any]:
            distribution = batched_distribution(site, leaves) if site.plates else restore(site, leaves).distribution
            if distribution is None:
                raise errors.MarginalError(
                    f"no quadrature rule for {site.name!r} ~ {site.distribution_name} under vmap.\n  {site.where}\n"
                    "Put ppl.marginal inside of the vmap or plate, or give a proposal= to integrate by importance sampling."
                )
            values, log_weights = nodes_of(distribution, site, self.nodes or 0)
            return [values, log_weights + jax.vmap(lambda value: cost(site, leaves, value))(values)]

        points, factor = apply(weigh, operands, axis)
        self.factors.append(Spread(factor.array, (*factor.axes, axis)))
        return Spread(points.array, (*points.axes, axis))

    def _apart(self, eqn: Any, holder: Jaxpr, operands: list[Spread], used: list[bool], hidden: list[Located]) -> list[Spread]:
        """Lanes and branches whose auxiliary variables nothing outside reads: each sums out its own."""
        if any(used):
            raise errors.MarginalError(
                f"{hidden[0].site.name!r} stands in a {eqn.primitive.name} whose results are read outside, so it cannot be "
                f"summed out there.\n  {hidden[0].site.where}\n"
                "Put ppl.marginal inside of the vmap or branch, or give a proposal=."
            )
        inside = {item.site.address for item in sites(holder)}
        values = {a: v for a, v in self.values.items() if a in inside}

        def alone(closed: Any, args: Sequence[Any], values: Any) -> Any:
            sub = Elimination(self.auxiliary, self.nodes, values)
            sub.run(closed.jaxpr, closed.consts, [Spread(arg) for arg in args], frozenset())
            return sub.total()

        def evaluate(*args: Any) -> list[Any]:
            if eqn.primitive is jp.cond_p:
                branches = [lambda args, closed=closed: alone(closed, args, values) for closed in eqn.params["branches"]]
                return [jax.lax.switch(args[0], branches, args[1:])]
            axes = [0 if there else None for there in eqn.params["batched"]]
            lane = jax.vmap(
                lambda args, values: alone(eqn.params["jaxpr"], args, values), (axes, 0), axis_size=eqn.params["size"]
            )
            return [jnp.sum(lane(list(args), values))]

        self.factors += apply(evaluate, operands)
        return [Spread(jnp.zeros(var.aval.shape, var.aval.dtype)) for var in eqn.outvars]

    def sum_out(self, live: frozenset[Axis]) -> None:
        """Sum over the axes that nothing reads any more."""
        while True:
            dead = next((a for factor in self.factors for a in factor.axes if a not in live), None)
            if dead is None:
                return
            reading = [factor for factor in self.factors if dead in factor.axes]
            self.factors = [factor for factor in self.factors if dead not in factor.axes]
            product = join(reading)
            position = product.axes.index(dead)
            rest = tuple(axis for axis in product.axes if axis is not dead)
            self.factors.append(Spread(jax.nn.logsumexp(product.array, axis=position), rest))

    def total(self) -> Any:
        self.sum_out(frozenset())
        return sum((factor.array for factor in self.factors), jnp.zeros((), jnp.result_type(float)))


class NotAChainError(Exception):
    """A step of a scan depends on more of its auxiliary variables than those of this step and the last."""


class Chain:
    """A scan with auxiliary sites: the forward recursion, where what a step leaves to the next is read off its own variables.

    Otherwise the loop is written out, and its variables are summed out when nothing reads them any more.
    """

    def __init__(self, around: Elimination, eqn: Any, alone: Jaxpr, used: list[bool], operands: list[Spread]):
        self.around, self.eqn, self.used, self.length = around, eqn, used, eqn.params["length"]
        n_consts, self.n_carry = scan_sizes(eqn)
        self.consts, self.start = operands[:n_consts], operands[n_consts : n_consts + self.n_carry]
        xs = operands[n_consts + self.n_carry :]
        self.axes = [x.axes for x in xs]
        inside = {item.site.address for item in sites(alone)}
        values = {a: v for a, v in around.values.items() if a in inside}
        self.slices = ([jnp.moveaxis(x.array, len(x.axes), 0) for x in xs], values)
        if eqn.params["reverse"]:
            self.slices = jax.tree.map(lambda x: jnp.flip(x, 0), self.slices)

    def run(self, live: frozenset[Axis]) -> list[Spread]:
        """The results. The axes in `live` are read later."""
        outer = live.union(*(o.axes for o in self.consts), *self.axes)  # read in every step, or after the last
        factors = list(self.around.factors)
        try:
            if self.length > 1:
                return self._recursion(outer)
        except NotAChainError:
            self.around.factors = factors
        return self._written_out(outer)

    def _step(self, carry: Sequence[Spread], factors: list[Spread], slices: Any, outer: frozenset[Axis]) -> Any:
        xs, values = slices
        sub = Elimination(self.around.auxiliary, self.around.nodes, values)
        sub.factors = factors
        closed = self.eqn.params["jaxpr"]
        args = [*self.consts, *carry, *(Spread(x, a) for x, a in zip(xs, self.axes, strict=True))]
        outs = sub.run(closed.jaxpr, closed.consts, args, outer)
        return outs[: self.n_carry], sub.factors, outs[self.n_carry :]

    def _written_out(self, outer: frozenset[Axis]) -> list[Spread]:
        carry, columns = self.start, [[] for _ in range(len(self.eqn.outvars) - self.n_carry)]  # type: ignore[var-annotated]
        for t in range(self.length):
            seen = outer.union(*(y.axes for column in columns for y in column))
            slices = jax.tree.map(lambda x, t=t: x[t], self.slices)
            carry, self.around.factors, ys = self._step(carry, self.around.factors, slices, seen)
            for column, y, used in zip(columns, ys, self.used[self.n_carry :], strict=True):
                column.append(y if used else Spread(y.array[(0,) * len(y.axes)]))
        if self.eqn.params["reverse"]:
            columns = [column[::-1] for column in columns]
        stacks = []
        for column, var in zip(columns, self.eqn.outvars[self.n_carry :], strict=True):
            stacked = (
                apply(lambda *ys: [jnp.stack(ys)], column) if column else [Spread(jnp.zeros(var.aval.shape, var.aval.dtype))]
            )
            stacks += stacked
        return [*carry, *stacks]

    def _recursion(self, outer: frozenset[Axis]) -> list[Spread]:
        around = self.around
        moving = {a for c in self.start for a in c.axes}
        alpha = [f for f in around.factors if moving & set(f.axes)]
        around.factors = [f for f in around.factors if not moving & set(f.axes)]
        carry, alpha, ys = self._step(self.start, alpha, jax.tree.map(lambda x: x[0], self.slices), outer)
        first = self._independent(ys)
        state = self._new(carry, outer)
        lead = [c.axes for c in carry]
        joint = join([*alpha, *map(_ones, state)])

        def body(loop: Any, slices: Any) -> Any:
            arrays, weights = loop
            before = [Spread(x, a) for x, a in zip(arrays, lead, strict=True)]
            after, factors, ys = self._step(before, [Spread(weights, joint.axes)], slices, outer)
            new = self._new(after, outer)
            names = dict(zip(new, state, strict=False))
            after = [_rename(c, names) for c in after]
            fits = all(set(c.axes) <= set(a) for c, a in zip(after, lead, strict=True))
            if len(new) != len(state) or set(new) & set(state) or not fits:
                raise NotAChainError
            product = _rename(join([*factors, *map(_ones, new)]), names)
            arrays = [_filled(c, a).astype(x.dtype) for c, a, x in zip(after, lead, loop[0], strict=True)]
            return (arrays, _filled(product, joint.axes).astype(weights.dtype)), self._independent(ys)

        start = ([c.array for c in carry], joint.array)
        rest = jax.tree.map(lambda x: x[1:], self.slices)
        (arrays, weights), stacks = jax.lax.scan(body, start, rest, length=self.length - 1)
        around.factors.append(Spread(weights, joint.axes))
        stacks = [jnp.concatenate([jnp.asarray(y)[None], more]) for y, more in zip(first, stacks, strict=True)]
        if self.eqn.params["reverse"]:
            stacks = [jnp.flip(y, 0) for y in stacks]
        return [*(Spread(x, a) for x, a in zip(arrays, lead, strict=True)), *map(Spread, stacks)]

    def _new(self, carry: Sequence[Spread], outer: frozenset[Axis]) -> list[Axis]:
        """The axes that this step leaves to the next."""
        return list(dict.fromkeys(a for c in carry for a in c.axes if a not in outer))

    def _independent(self, ys: Sequence[Spread]) -> list[Any]:
        """The stacked results of a step, which the auxiliary variables may not reach, unless nothing reads them."""
        if any(y.axes and used for y, used in zip(ys, self.used[self.n_carry :], strict=True)):
            raise NotAChainError
        return [y.array[(0,) * len(y.axes)] for y in ys]


def apply(function: Callable[..., list[Any]], operands: Sequence[Spread], *more: Axis) -> list[Spread]:
    """`function` of arrays, for every combination along the axes of the operands. It adds the axes in `more` itself."""
    axes = tuple(dict.fromkeys(a for o in operands for a in o.axes))
    _refuse_many({*axes, *more})
    for axis in reversed(axes):
        function = jax.vmap(function, in_axes=tuple(0 if axis in o.axes else None for o in operands), axis_size=axis.size)
    outs = function(*(_ordered(o, axes).array for o in operands))
    return [Spread(out, axes) for out in outs]


def join(factors: Sequence[Spread]) -> Spread:
    """The product of factors, their logs' sum."""
    if not factors:
        return Spread(jnp.zeros((), jnp.result_type(float)))
    return apply(lambda *logs: [sum(logs[1:], logs[0])], factors)[0]


def _ones(axis: Axis) -> Spread:
    return Spread(jnp.zeros((axis.size,)), (axis,))


def _ordered(spread: Spread, axes: Sequence[Axis]) -> Spread:
    """The same with its axes in the order in which they come in `axes`."""
    order = sorted(range(len(spread.axes)), key=lambda i: axes.index(spread.axes[i]))
    rest = range(len(order), jnp.ndim(spread.array))
    return Spread(jnp.transpose(spread.array, (*order, *rest)), tuple(spread.axes[i] for i in order))


def _filled(spread: Spread, axes: Sequence[Axis]) -> Any:
    """The array with all of these axes."""
    missing = [i for i, axis in enumerate(axes) if axis not in spread.axes]
    array = jnp.expand_dims(_ordered(spread, axes).array, missing)
    return jnp.broadcast_to(array, (*(axis.size for axis in axes), *array.shape[len(axes) :]))


def _rename(spread: Spread, names: Mapping[Axis, Axis]) -> Spread:
    return Spread(spread.array, tuple(names.get(axis, axis) for axis in spread.axes))


def _alone(jaxpr: Jaxpr, eqn: Any) -> Jaxpr:
    """One equation of a jaxpr; its arguments are those of its operands that are no literals."""
    variables = list(dict.fromkeys(atom for atom in eqn.invars if not isinstance(atom, Literal)))
    return jaxpr.replace(constvars=[], invars=variables, outvars=list(eqn.outvars), eqns=[eqn], debug_info=jaxpr.debug_info)


def _refuse_many(axes: set[Axis]) -> None:
    count = math.prod(axis.size for axis in axes)
    if count > LIMIT:
        times = collections.Counter((show(axis.site.address), axis.size) for axis in axes)
        names = ", ".join(f"{name!r} ({size} values" + (f", {n} times)" if n > 1 else ")") for (name, size), n in times.items())
        raise errors.MarginalError(
            f"the values of {names} act together, {count:.3g} combinations; the limit is {LIMIT}.\n"
            f"  {next(iter(axes)).site.where}\n"
            "Independent elements: put ppl.marginal inside of the vmap or plate. Otherwise fewer nodes=, or a proposal= to "
            "integrate by importance sampling."
        )
