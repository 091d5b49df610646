"""Programs whose densities are integrals, in other programs: one equation that holds how to draw values and score them.

`marginal` and `normalize` bind it. `simulate` and `log_density` put the one half or the other in its place, and the random
choices that these take (auxiliary variables, particles) become random choices of whoever asked for the density. Until then
it stays whole, also under `vmap`, where it stands in `lanes`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir

from ppl import errors
from ppl.site import DETERMINISTIC, OBSERVED, SAMPLE, Address, Site, refuse_lowering, split_estimator

Values = Mapping[Address, Any]
Changes = Sequence[tuple[str, Values]]
"""What `condition`, `intervene`, `substitute`, `mask`, `detach` and `with_estimators` ask of some kept values."""


class Integral(Protocol):
    """How the values of an estimated program are drawn and scored. Addresses are those inside of it.

    `consts` are the arrays that the programs in it close over. `values` are those of all addresses whose density is asked for.
    """

    def draw(self, consts: Any, changes: Changes) -> Values:
        """The values, drawn; those that `changes` give may be left out."""
        ...

    def simulate(self, consts: Any, changes: Changes) -> tuple[Values, Any]:
        """The values, drawn, with their log density: `E[1/w | values] = 1 / density` unless `changes` give some of them."""
        ...

    def score(self, consts: Any, changes: Changes, values: Values) -> Any:
        """The log density of values: `E[w] = density`."""
        ...


class EstimatedOperands(NamedTuple):
    """What flows into the equation: `given[i]` are the values of change number i."""

    consts: Any
    given: tuple[dict[Address, Any], ...] = ()
    scale: Any = None
    mask: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Estimated:
    """Everything static about an estimated program.

    `tree` restores its `EstimatedOperands`; `located` are the sites that it has for the program around it, of the kinds that
    they have after the changes, with `prefix` before their addresses; `changes[i]` is a verb and what it says that is no array.
    """

    integral: Integral
    tree: Any
    located: tuple[Any, ...]
    prefix: Address = ()
    changes: tuple[tuple[str, dict[Address, Any]], ...] = ()

    @property
    def site(self) -> Site:
        """The first of its sites, to name it by."""
        return self.located[0].site

    def restore(self, leaves: Sequence[Any]) -> EstimatedOperands:
        return jax.tree.unflatten(self.tree, leaves)

    def inner(self, address: Address) -> Address:
        return address[len(self.prefix) :]

    def changed(self, operands: EstimatedOperands) -> list[tuple[str, dict[Address, Any]]]:
        return [(verb, {**static, **given}) for (verb, static), given in zip(self.changes, operands.given, strict=True)]

    def given(self, operands: EstimatedOperands) -> dict[Address, Any]:
        """The values that the changes give, by address inside."""
        verbs = ("condition", "intervene", "substitute")
        return {a: v for verb, values in self.changed(operands) if verb in verbs for a, v in values.items()}

    def scored(self) -> list[Address]:
        """The addresses inside whose density is asked for."""
        return [self.inner(item.site.address) for item in self.located if item.site.kind in (SAMPLE, OBSERVED)]

    def finish(self, operands: EstimatedOperands, log_density: Any) -> Any:
        """The cost: the log density, masked and scaled."""
        if operands.mask is not None:
            log_density = jnp.where(operands.mask, log_density, 0.0)
        return log_density if operands.scale is None else operands.scale * log_density

    def outs(self, values: Values) -> list[Any]:
        return [values[self.inner(item.site.address)] for item in self.located]


estimated_p = Primitive("estimated")
estimated_p.multiple_results = True


def bind(estimated: Estimated, operands: EstimatedOperands) -> list[Any]:
    """Put an estimated program into the one that is being traced; the values of its sites."""
    leaves, tree = jax.tree.flatten(operands)
    return estimated_p.bind(*leaves, estimated=dataclasses.replace(estimated, tree=tree))


def prefixed(estimated: Estimated, prefix: Address) -> Estimated:
    """The same under a prefix."""
    located = tuple(
        dataclasses.replace(item, site=item.site.replace(address=(*prefix, *item.site.address))) for item in estimated.located
    )
    return dataclasses.replace(estimated, located=located, prefix=(*prefix, *estimated.prefix))


def modify(
    estimated: Estimated, leaves: Sequence[Any], verb: str, values: Values, sliced: Values, covers: Callable[..., bool]
) -> tuple[Estimated, Sequence[Any]]:
    """One modification of a bound program, as a change to an estimated program in it. `sliced` are arrays by full address."""
    operands = estimated.restore(leaves)
    addresses = [item.site.address for item in estimated.located]
    if verb in ("condition", "intervene", "substitute"):
        given = {estimated.inner(address): sliced[address] for address in addresses if address in sliced}
        if not given:
            return estimated, leaves
        kind = {"condition": OBSERVED, "intervene": DETERMINISTIC, "substitute": SAMPLE}[verb]
        located = tuple(
            dataclasses.replace(item, site=item.site.replace(kind=kind)) if item.site.address in sliced else item
            for item in estimated.located
        )
        return _add(dataclasses.replace(estimated, located=located), operands, verb, {}, given)
    found = {a: max((p for p in values if covers(p, a)), key=len, default=None) for a in addresses}
    named = {address: prefix for address, prefix in found.items() if prefix is not None}
    if not named:
        return estimated, leaves
    if verb == "detach":
        if len(named) < len(addresses):
            raise errors.DensityKindError(
                f"detach names a part of {', '.join(repr(a) for a in map('/'.join, addresses))}, which are drawn together with "
                f"what is integrated out.\n  {estimated.site.where}\nDetach all of them."
            )
        return _add(estimated, operands, verb, {(): True}, {})
    if verb == "with_estimators":
        chosen = {estimated.inner(prefix): split_estimator(values[prefix]) for prefix in named.values()}
        arrays = {address: held for address, (_, held) in chosen.items() if held is not None}
        return _add(estimated, operands, verb, {a: fixed for a, (fixed, _) in chosen.items() if a not in arrays}, arrays)
    whole = len(named) == len(addresses) and len(set(named.values())) == 1 and not any(a in sliced for a in named)
    if whole:
        value = values[next(iter(named.values()))]
        old = getattr(operands, verb)
        new = value if old is None else (old * value if verb == "scale" else jnp.logical_and(old, value))
        operands = operands._replace(scale=new) if verb == "scale" else operands._replace(mask=new)
        leaves, tree = jax.tree.flatten(operands)
        return dataclasses.replace(estimated, tree=tree), leaves
    if verb == "scale":
        raise errors.DensityKindError(
            f"scale names a part of {', '.join(repr(a) for a in map('/'.join, addresses))}, which have one joint density, an "
            f"integral.\n  {estimated.site.where}\nScale all of them by one number, or a site inside before it is integrated."
        )
    given = {estimated.inner(a): sliced.get(a, values[prefix]) for a, prefix in named.items()}
    return _add(estimated, operands, verb, {}, given)


def _add(
    estimated: Estimated, operands: EstimatedOperands, verb: str, static: Values, given: Values
) -> tuple[Estimated, Sequence[Any]]:
    leaves, tree = jax.tree.flatten(operands._replace(given=(*operands.given, dict(given))))
    return dataclasses.replace(estimated, tree=tree, changes=(*estimated.changes, (verb, dict(static)))), leaves


@estimated_p.def_abstract_eval
def _abstract(*leaves: Any, estimated: Estimated) -> list[Any]:
    return [jax.core.ShapedArray(item.shape, item.site.dtype) for item in estimated.located]


@estimated_p.def_impl
def _execute(*leaves: Any, estimated: Estimated) -> Any:
    raise errors.OutsideProgramError(
        f"the program with the site {estimated.site.name!r} was executed outside of any program.\n  {estimated.site.where}\n"
        "Draw it with a key: bound.simulate(key), bound.sample(key) or ppl.seed(function)(key, ...)."
    )


def _differentiate(primals: Any, tangents: Any, *, estimated: Estimated) -> Any:
    raise errors.DifferentiationError(
        f"jax.grad (or jvp) reached the random choice {estimated.site.name!r}.\n  {estimated.site.where}\n"
        "Decorate the function with @ppl.expectation and call its .grad or .value_and_grad."
    )


def _lower(ctx: Any, *leaves: Any, estimated: Estimated) -> Any:
    refuse_lowering(estimated.site)


mlir.register_lowering(estimated_p, _lower)
ad.primitive_jvps[estimated_p] = _differentiate
