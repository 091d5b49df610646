"""The latent variables of a program as a variational family sees them: addresses, supports, and sizes without constraints."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist

from ppl import errors
from ppl.address import covers, parse, suggest
from ppl.program import Bound
from ppl.site import SAMPLE, Address, Site, Where, describe_support, show
from ppl.supports import base
from ppl.transforms.modify import prepare
from ppl.transforms.stage import Located, density_addresses


@dataclasses.dataclass(frozen=True, eq=False)
class Latent:
    """A latent variable.

    `shape` is that of its values in a trace and `free` that of its unconstrained values. `support` is None where it moves with
    the values of other variables: only a run of the model knows it. `axes` are what its values are stacked along, outermost
    first, each with its length. `branch` says that it stands in a branch of a `cond`. `event_dim` is how many trailing axes of
    the unconstrained value are one draw.
    """

    address: Address
    shape: tuple[int, ...]
    free: tuple[int, ...]
    dtype: Any
    support: Any
    where: Where
    axes: tuple[tuple[str, int], ...] = ()
    branch: bool = False
    event_dim: int = 0

    @property
    def name(self) -> str:
        return show(self.address)

    @property
    def size(self) -> int:
        """The number of its unconstrained coordinates."""
        return math.prod(self.free)


def latents_of(
    model: Bound, addresses: Sequence[Any] | None = None, *, discrete: bool = False, subsampled: bool = False
) -> list[Latent]:
    """The latent variables of a bound program, in program order, or those at some addresses (or under these).

    Raises:
        TypeError: `model` is no bound program.
        UnknownAddressError: an address names no latent variable.
        FamilyError: a variable is discrete (unless `discrete`), has no bijection to the reals, stands in a `while_loop`, or in
            a plate with `size=` (unless `subsampled`).
    """
    if not isinstance(model, Bound):
        raise TypeError(f"a family is made from a bound program, got {model!r}: call it with its arguments.")
    table = density_addresses(prepare(model).table)
    found = {a: located for a, located in table.items() if located.site.kind == SAMPLE}
    if addresses is not None and all(isinstance(item, Latent) for item in addresses):
        return list(addresses)  # of one element of a plate
    if addresses is not None:
        names = [parse(name) for name in ([addresses] if isinstance(addresses, str) else addresses)]
        for name in names:
            if not any(covers(name, address) for address in found):
                raise errors.UnknownAddressError(f"{show(name)!r} is no latent variable of the model.{suggest(name, found)}")
        found = {a: located for a, located in found.items() if any(covers(name, a) for name in names)}
    if not found:
        raise errors.FamilyError("the model has no latent variables, so that there is nothing to approximate.")
    if not discrete:
        _refuse_discrete([located.site for located in found.values() if is_discrete(located.site)])
    return [_latent(located, subsampled) for located in found.values()]


def is_discrete(site: Site) -> bool:
    return not np.issubdtype(site.dtype, np.floating)


def _refuse_discrete(sites: list[Site]) -> None:
    if not sites:
        return
    names = ", ".join(f"{site.name!r} ({site.distribution_name})" for site in sites)
    raise errors.FamilyError(
        f"{names} {'is' if len(sites) == 1 else 'are'} discrete, and the family is made of Gaussians.\n  {sites[0].where}\n"
        "Sum discrete variables out of the model with ppl.marginal(model, keep=...), or give them a program of your own in "
        "ppl.families.by_address, which the library then enumerates or estimates by scores."
    )


def _latent(located: Located, subsampled: bool) -> Latent:
    site = located.site
    if located.in_while:
        raise errors.FamilyError(
            f"{site.name!r} stands in a while_loop, so that the number of its values is unknown.\n  {site.where}\n"
            "Use scan or fori_loop with a fixed length."
        )
    if located.subsampled and not subsampled:
        raise errors.FamilyError(
            f"{site.name!r} stands in a plate with size=, whose elements are others in every minibatch: parameters of its own "
            f"for each element of the batch would belong to no datum.\n  {site.where}\n"
            "Use ppl.families.amortized, in which an encoder gives the parameters of each element from its data."
        )
    support = None if site.support is None else base(site.support)
    stacked = tuple(zip(located.axes, located.shape, strict=False))
    lead = located.shape[: len(located.shape) - len(site.shape)]
    free = (*lead, *_free_shape(located, support))
    branch = bool(located.exclusive)
    if branch and free != located.shape:
        raise errors.FamilyError(
            f"{site.name!r} stands in a branch of a cond and has the support {describe_support(site.support)}, which has fewer "
            f"coordinates than entries.\n  {site.where}\nDraw it before the cond, and use its value in the branch."
        )
    shaped = support is not None and support.event_dim > 0 and not support.is_discrete
    event_dim = dist.biject_to(support).domain.event_dim if shaped else site.event_dim
    return Latent(site.address, located.shape, free, site.dtype, support, site.where, stacked, branch, event_dim)


def _free_shape(located: Located, support: Any) -> tuple[int, ...]:
    """The shape of the unconstrained values of a site in one lane."""
    site = located.site
    if support is not None:
        return _bijection(site, support).inverse_shape(site.shape) if not support.is_discrete else site.shape
    box: dict[str, tuple[int, ...]] = {}

    def look(leaves: Any) -> None:
        distribution = jax.tree.unflatten(site.tree, leaves).distribution
        box["shape"] = tuple(_bijection(site, base(distribution.support)).inverse_shape(site.shape))

    if not located.operands:
        raise errors.FamilyError(
            f"the support of {site.name!r}, which has an integrated density, is unknown.\n  {site.where}\n"
            "Give it a program of your own in ppl.families.by_address."
        )
    jax.eval_shape(look, [jax.ShapeDtypeStruct(np.shape(x), np.result_type(x)) for x in located.operands])
    return box["shape"]


def _bijection(site: Site, support: Any) -> Any:
    try:
        return dist.biject_to(support)
    except NotImplementedError:
        raise errors.FamilyError(
            f"no bijection goes from the reals to the support of {site.name!r}, {describe_support(support)} "
            f"({site.distribution_name}).\n  {site.where}\nGive it a program of your own in ppl.families.by_address."
        ) from None
