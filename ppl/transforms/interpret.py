"""The interpreter: the one place that knows control flow.

`run` evaluates a jaxpr. Stretches without sites go to JAX as they are; a site goes to a `Rule`; control flow with sites
inside is rebuilt around a run of its body. Three things flow beside the values: *given* values (sliced along scans and
lanes), *keys* (folded with the index along scans and lanes), and out of it a *record*: values by address (stacked) and a total
(summed).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal
from jax.extend.core import primitives as jp

from ppl import errors
from ppl.estimated import Estimated, estimated_p
from ppl.lanes import inner_jaxprs, lanes_p, site_of
from ppl.site import Address, PlateAxis, Site, feasible, site_p
from ppl.transforms.relaxed import changed, evaluate, refusal
from ppl.transforms.stage import Located, Staged, sites

SiteId = tuple[Address, int]
"""An address and which occurrence of it this is: an objective may simulate one program several times."""


class Inputs(NamedTuple):
    """What a run is given, by site. `values[role][address]` are stacked as in a trace."""

    values: dict[str, dict[Address, Any]] = {}  # noqa: RUF012 (never mutated)
    keys: dict[SiteId, Any] = {}  # noqa: RUF012


class Record(NamedTuple):
    """What a run leaves behind, beside its outputs."""

    values: dict[Address, Any]
    total: Any


class Rule(Protocol):
    """What a site means to one transformation."""

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        """The site's value, the value to record (or None) and its share of the total."""
        ...

    def estimated(self, estimated: Estimated, leaves: Sequence[Any], given: dict[Address, Any]) -> tuple[list[Any], Record]:
        """The same for a program whose density is an integral: its values, and what to record of them."""
        ...

    def records(self, located: Located) -> bool:
        """Whether `site` will return a value to record."""
        ...

    def zero(self) -> Any:
        """The total of nothing."""
        ...

    def in_lane(self, axis: PlateAxis | None) -> Rule:
        """The rule for one lane of a vmap."""
        ...

    def join(self, axis: PlateAxis | None, size: int, totals: Any) -> Any:
        """The total over lanes, given each lane's."""
        ...

    def check(self, eqn: Any, site: Site) -> None:
        """Refuse a construct that this transformation cannot serve."""
        ...


def run_staged(staged: Staged, rule: Rule, inputs: Inputs = Inputs()) -> tuple[Any, Record]:  # noqa: B008
    """Run a staged function; its result is restored to the function's own structure."""
    outs, record = run(staged.jaxpr.jaxpr, staged.jaxpr.consts, [], rule, inputs, {})
    return staged.rebuild(outs), record


def run(
    jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any], rule: Rule, inputs: Inputs, counts: dict[Address, int]
) -> tuple[list[Any], Record]:
    """Evaluate `jaxpr`; `counts` says how often each address has occurred before."""
    env: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
    values: dict[Address, Any] = {}
    total = rule.zero()

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else env[atom]

    counts = dict(counts)
    relaxed: list[str] = []
    mixed = changed(args, jaxpr.invars)
    for part in _parts(jaxpr):
        operands = [read(atom) for atom in part.invars]
        if isinstance(part, Jaxpr):
            plain = not mixed or not changed(operands, part.invars)
            outs = jax.core.eval_jaxpr(part, (), *operands) if plain else evaluate(part, (), operands, relaxed)
        elif part.primitive is site_p:
            site = part.params["site"]
            given = {role: by[site.address] for role, by in inputs.values.items() if site.address in by}
            key = inputs.keys.get((site.address, counts.get(site.address, 0)))
            value, recorded, share = rule.site(site, operands, given, key)
            outs = [value]
            if changed(outs, part.outvars):
                mixed = True
                relaxed.append(site.name)
            if recorded is not None:
                values[site.address] = recorded
            total = _add(total, share)
        elif part.primitive is estimated_p:
            estimated = part.params["estimated"]
            addresses = [located.site.address for located in estimated.located]
            by_role = {a: {role: by[a] for role, by in inputs.values.items() if a in by} for a in addresses}
            outs, record = rule.estimated(estimated, operands, by_role)
            values.update(record.values)
            total = _add(total, record.total)
        else:
            site = site_of(part)
            assert site is not None
            handle = _HANDLERS.get(part.primitive)
            if handle is None:
                raise errors.UnsupportedPrimitiveError(
                    f"the primitive {part.primitive.name!r} holds the site {site.name!r}.\n  {site.where}\n"
                    "Sites may stand in jit, vmap, scan, fori_loop, while_loop, cond, switch and checkpoint; "
                    "move the site out of this function and pass its value in."
                )
            rule.check(part, site)
            outs, record = handle(part, operands, rule, inputs, counts)
            mixed = mixed or changed(outs, part.outvars)
            values.update(record.values)
            total = _add(total, record.total)
        if not isinstance(part, Jaxpr):
            counts = advance(counts, part)
        env.update(zip(part.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars], Record(values, total)


def _add(total: Any, share: Any) -> Any:
    return total if share is None else jax.tree.map(jnp.add, total, share)


_partitions: weakref.WeakKeyDictionary[Jaxpr, list[Any]] = weakref.WeakKeyDictionary()


def _parts(jaxpr: Jaxpr) -> list[Any]:
    """The equations of a jaxpr: those with sites by themselves, the stretches between them as jaxprs."""
    if jaxpr not in _partitions:
        needed = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}
        parts: list[Any] = []
        stretch: list[Any] = []

        def close() -> None:
            if stretch:
                parts.append(_sub_jaxpr(jaxpr, stretch[::-1], needed))
                needed.update(parts[-1].invars)
                stretch.clear()

        for eqn in reversed(jaxpr.eqns):
            if site_of(eqn) is None:
                stretch.append(eqn)
            else:
                close()
                parts.append(eqn)
                needed.update(atom for atom in eqn.invars if not isinstance(atom, Literal))
        close()
        _partitions[jaxpr] = parts[::-1]
    return _partitions[jaxpr]


def _sub_jaxpr(jaxpr: Jaxpr, eqns: list[Any], needed: set[Any]) -> Jaxpr:
    made: dict[Any, None] = {}
    used: dict[Any, None] = {}
    for eqn in eqns:
        for atom in eqn.invars:
            if not isinstance(atom, Literal) and atom not in made:
                used[atom] = None
        made.update(dict.fromkeys(eqn.outvars))
    return jaxpr.replace(
        constvars=[], invars=list(used), outvars=[v for v in made if v in needed], eqns=eqns, debug_info=jaxpr.debug_info
    )


def advance(counts: dict[Address, int], eqn: Any) -> dict[Address, int]:
    """Occurrences after an equation. Branches of a cond exclude one another, so they count from the same start."""
    if eqn.primitive is site_p:
        address = eqn.params["site"].address
        return {**counts, address: counts.get(address, 0) + 1}
    if eqn.primitive is estimated_p:
        addresses = [located.site.address for located in eqn.params["estimated"].located]
        return counts | {address: counts.get(address, 0) + 1 for address in addresses}
    after = dict(counts)
    for inner in inner_jaxprs(eqn.params):
        start = counts if eqn.primitive is jp.cond_p else after
        reached = dict(start)
        for part in inner.eqns:
            if site_of(part) is not None:
                reached = advance(reached, part)
        after = {address: max(n, after.get(address, 0)) for address, n in reached.items()} | {
            address: n for address, n in after.items() if address not in reached
        }
    return after


def site_ids(jaxpr: Jaxpr) -> list[SiteId]:
    """The identity of every site, the way `run` counts and in the order of `sites`."""
    found: list[SiteId] = []
    identify(jaxpr, {}, found)
    return found


def identify(jaxpr: Jaxpr, counts: dict[Address, int], found: list[SiteId]) -> dict[Address, int]:
    for eqn in jaxpr.eqns:
        if eqn.primitive is site_p:
            address = eqn.params["site"].address
            found.append((address, counts.get(address, 0)))
        elif eqn.primitive is estimated_p:
            addresses = [located.site.address for located in eqn.params["estimated"].located]
            found += [(address, counts.get(address, 0)) for address in addresses]
        elif site_of(eqn) is not None:
            inside = counts
            for inner in inner_jaxprs(eqn.params):
                after = identify(inner, inside, found)
                inside = counts if eqn.primitive is jp.cond_p else after
        else:
            continue
        counts = advance(counts, eqn)
    return counts


# Control flow. Each handler rebuilds one primitive around a run of its body.


def narrow(inputs: Inputs, counts: dict[Address, int], *bodies: Jaxpr) -> Inputs:
    """Only what the sites of the bodies need."""
    ids: list[SiteId] = []
    for body in bodies:
        identify(body, counts, ids)
    addresses = {address for address, _ in ids}
    values = {role: {a: v for a, v in by.items() if a in addresses} for role, by in inputs.values.items()}
    return Inputs(values, {site_id: inputs.keys[site_id] for site_id in dict.fromkeys(ids) if site_id in inputs.keys})


def fold(keys: dict[SiteId, Any], index: Any) -> dict[SiteId, Any]:
    if not keys:
        return keys
    folded = jax.vmap(jax.random.fold_in, in_axes=(0, None))(jnp.stack(list(keys.values())), index)
    return {site_id: folded[i] for i, site_id in enumerate(keys)}


def _inline(eqn: Any, operands: Sequence[Any], rule: Rule, inputs: Inputs, counts: dict[Address, int]) -> Any:
    (closed,) = [param for param in eqn.params.values() if hasattr(param, "jaxpr") and hasattr(param, "consts")]
    return run(closed.jaxpr, closed.consts, operands, rule, inputs, counts)


def _checkpoint(eqn: Any, operands: Sequence[Any], rule: Rule, inputs: Inputs, counts: dict[Address, int]) -> Any:
    jaxpr = eqn.params["jaxpr"]
    inputs = narrow(inputs, counts, jaxpr)

    def body(operands: Any, inputs: Inputs) -> Any:
        return run(jaxpr, (), operands, rule, inputs, counts)

    options = {name: eqn.params[name] for name in ("policy", "prevent_cse")}
    return jax.checkpoint(body, **options)(list(operands), inputs)


def scan_sizes(eqn: Any) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many are carried.

    Told from the ranks, since the parameters that say so differ between versions of JAX.
    """
    body = eqn.params["jaxpr"]
    stacked_in = sum(len(a.aval.shape) > len(b.shape) for a, b in zip(eqn.invars, body.in_avals, strict=True))
    stacked_out = sum(len(a.aval.shape) > len(b.shape) for a, b in zip(eqn.outvars, body.out_avals, strict=True))
    carried = len(eqn.outvars) - stacked_out
    return len(eqn.invars) - stacked_in - carried, carried


def _scan(eqn: Any, operands: Sequence[Any], rule: Rule, inputs: Inputs, counts: dict[Address, int]) -> Any:
    closed, length = eqn.params["jaxpr"], eqn.params["length"]
    n_consts, n_carry = scan_sizes(eqn)
    consts, carry = operands[:n_consts], operands[n_consts : n_consts + n_carry]
    inputs = narrow(inputs, counts, closed.jaxpr)

    def body(carry: Any, x: Any) -> Any:
        xs, step = x
        outs, record = run(closed.jaxpr, closed.consts, [*consts, *carry, *xs], rule, step, counts)
        _keeps_dtypes(outs[:n_carry], carry, closed.jaxpr, "a value carried by a loop that starts as an integer")
        return outs[:n_carry], (outs[n_carry:], record)

    keys = jax.vmap(fold, in_axes=(None, 0))(inputs.keys, jnp.arange(length))
    xs = (list(operands[n_consts + n_carry :]), Inputs(inputs.values, keys))
    options = {name: eqn.params[name] for name in ("reverse", "unroll")}
    carry, (ys, record) = jax.lax.scan(body, list(carry), xs, length=length, **options)
    return [*carry, *ys], Record(record.values, jax.tree.map(lambda t: jnp.sum(t, axis=0), record.total))


def _while(eqn: Any, operands: Sequence[Any], rule: Rule, inputs: Inputs, counts: dict[Address, int]) -> Any:
    params = eqn.params
    cond, body = params["cond_jaxpr"], params["body_jaxpr"]
    in_cond = next((item.site for item in sites(cond.jaxpr)), None)
    if in_cond is not None:
        raise errors.UnsupportedPrimitiveError(
            f"the condition of a while_loop holds the site {in_cond.name!r}.\n  {in_cond.where}\n"
            "Draw in the body and carry the value to the condition."
        )
    n_cond, n_body = params["cond_nconsts"], params["body_nconsts"]
    cond_consts, body_consts = operands[:n_cond], operands[n_cond : n_cond + n_body]
    inputs = narrow(inputs, counts, body.jaxpr)

    def keep_going(state: Any) -> Any:
        return jax.core.eval_jaxpr(cond.jaxpr, cond.consts, *cond_consts, *state[1])[0]

    def step(state: Any) -> Any:
        index, carry, total = state
        keyed = Inputs(inputs.values, fold(inputs.keys, index))
        outs, record = run(body.jaxpr, body.consts, [*body_consts, *carry], rule, keyed, counts)
        _keeps_dtypes(outs, carry, body.jaxpr, "a value carried by a loop that starts as an integer")
        return index + 1, outs, _add(total, record.total)

    start = (jnp.zeros((), jnp.int32), list(operands[n_cond + n_body :]), rule.zero())
    _, outs, total = jax.lax.while_loop(keep_going, step, start)
    return outs, Record({}, total)


def _cond(eqn: Any, operands: Sequence[Any], rule: Rule, inputs: Inputs, counts: dict[Address, int]) -> Any:
    index, *args = operands
    branches = eqn.params["branches"]
    if changed([index], eqn.invars[:1]):
        raise refusal("the choice of a branch", [located.site.name for branch in branches for located in sites(branch.jaxpr)])
    recorded = {
        located.site.address: located for branch in branches for located in sites(branch.jaxpr) if rule.records(located)
    }
    inputs = narrow(inputs, counts, *(branch.jaxpr for branch in branches))

    def alternative(branch: Any) -> Callable[..., Any]:
        def body(args: Any, inputs: Inputs) -> Any:
            outs, record = run(branch.jaxpr, branch.consts, args, rule, inputs, counts)
            _keeps_dtypes(outs, branch.out_avals, branch.jaxpr, "the integer result of a branch")
            values = {a: record.values[a] if a in record.values else _absent(at) for a, at in recorded.items()}
            return outs, Record(values, record.total)

        return body

    return jax.lax.switch(index, [alternative(branch) for branch in branches], args, inputs)


def _keeps_dtypes(outs: Sequence[Any], like: Sequence[Any], body: Jaxpr, what: str) -> None:
    if any(_dtype(out) != _dtype(old) for out, old in zip(outs, like, strict=True)):
        raise refusal(what, [located.site.name for located in sites(body)])


def _dtype(value: Any) -> Any:
    return value.dtype if hasattr(value, "dtype") else jax.typeof(value).dtype


def _absent(located: Located) -> Any:
    """What a trace holds for a site of a branch that was not taken."""
    return feasible(located.site, located.shape)


def _lanes(eqn: Any, operands: Sequence[Any], rule: Rule, inputs: Inputs, counts: dict[Address, int]) -> Any:
    closed, size, axis = eqn.params["jaxpr"], eqn.params["size"], eqn.params["axis"]
    inputs = narrow(inputs, counts, closed.jaxpr)
    lane_rule = rule.in_lane(axis)

    def lane(index: Any, args: Any, values: Any, keys: Any) -> Any:
        return run(closed.jaxpr, closed.consts, args, lane_rule, Inputs(values, fold(keys, index)), counts)

    axes = [0 if batched else None for batched in eqn.params["batched"]]
    named = {} if axis is None else {"axis_name": axis}
    mapped = jax.vmap(lane, in_axes=(0, axes, 0, None), axis_size=size, **named)
    outs, record = mapped(jnp.arange(size), list(operands), inputs.values, inputs.keys)
    return outs, Record(record.values, rule.join(axis, size, record.total))


_HANDLERS: dict[Any, Callable[..., Any]] = {
    jp.jit_p: _inline,
    jp.closed_call_p: _inline,
    jp.remat_p: _checkpoint,
    jp.scan_p: _scan,
    jp.while_p: _while,
    jp.cond_p: _cond,
    lanes_p: _lanes,
}
