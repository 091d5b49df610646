"""Different families for different addresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import errors
from ppl.families.family import Family, shapes
from ppl.families.latents import latents_of
from ppl.families.start import Centre
from ppl.families.text import quoted, word
from ppl.program import Bound, Program, inline
from ppl.site import user_frame

Choice = Any
"""A constructor of a family such as `mean_field`, or a user's program of parameters with initial values of these."""


def run(bound: Bound) -> Any:
    """Run a bound program as a part of this one, its sites at their own addresses: a statement. Returns its result.

    `ppl.sample("sub", bound)` puts them under a prefix instead.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> part = ppl.program(lambda: ppl.sample("x", dist.Normal(0.0, 1.0)))
        >>> whole = ppl.program(lambda: ppl.families.run(part()))
        >>> sorted(whole().simulate(jax.random.key(0))[0])
        ['x']
    """
    if not isinstance(bound, Bound):
        raise TypeError(f"ppl.families.run takes a bound program, got {bound!r}.\n  {user_frame()}")
    return inline(bound, ())


def by_address(
    model: Bound,
    choices: Mapping[str | Sequence[str], Choice],
    default: Callable[..., Family] | None = None,
    *,
    names: Sequence[str] | None = None,
) -> Family:
    """Different families for different latent variables of a model, independent of one another.

    Parameters: those of each family, by the addresses it was chosen for, joined by "+" (`"default"` for the rest).

    Args:
        model: a bound program, conditioned on its data.
        choices: by address, prefix, or a tuple of these (drawn together): a constructor (`mean_field`, `full_rank`, or
            `functools.partial(low_rank, rank=3)`); or a program of your own and its initial parameters, `(program, params)`,
            which draws just these addresses, and may do so in any way, also from discrete distributions.
        default: the constructor for all other addresses.
        names: what the parameters of each choice are called instead.

    Raises:
        UnknownAddressError: an address is no latent variable of the model.
        FamilyError: an address is chosen twice, or not at all and there is no default.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> from ppl.families import by_address, full_rank, mean_field
        >>> @ppl.program
        ... def model():
        ...     tau = ppl.sample("tau", dist.HalfNormal(1.0))
        ...     ppl.sample("theta", dist.Normal(0.0, tau).expand([3]))
        >>> family = by_address(model(), {"tau": mean_field, "theta": full_rank})
        >>> params = family.init(jax.random.key(0))
        >>> jax.tree.map(jax.numpy.shape, params["theta"])
        {'loc': (3,), 'log_scale': (3,), 'lower': (3,)}
        >>> sorted(family(params).simulate(jax.random.key(1))[0])
        ['tau', 'theta']
    """
    latents = latents_of(model, discrete=True, subsampled=True)
    groups = [(key,) if isinstance(key, str) else tuple(key) for key in choices]
    labels = list(names) if names is not None else ["+".join(group) for group in groups]
    owner: dict[Any, str] = {}
    parts: dict[str, Family] = {}
    for label, group, choice in zip(labels, groups, choices.values(), strict=True):
        mine = latents_of(model, group, discrete=True, subsampled=True)
        for latent in mine:
            if latent.address in owner:
                raise errors.FamilyError(f"{latent.name!r} has two families, {owner[latent.address]!r} and {label!r}.")
            owner[latent.address] = label
        parts[label] = _part(model, label, group, choice)
    rest = [latent for latent in latents if latent.address not in owner]
    if rest and default is None:
        missing = ", ".join(repr(latent.name) for latent in rest)
        raise errors.FamilyError(f"{missing} {'has' if len(rest) == 1 else 'have'} no family: name one, or give default=.")
    if rest:
        parts["default"] = default(model, addresses=[latent.name for latent in rest])  # type: ignore[misc]
    drawn = [latent for latent in latents if not any(isinstance(p, _Own) and _owns(p, latent) for p in parts.values())]
    return merged(model, drawn, parts, "by_address")


def merged(model: Bound, latents: Sequence[Any], parts: Mapping[str, Family], kind: str) -> Family:
    """A family that runs others, each with its own parameters."""

    def start(key: Any, centre: Centre) -> Any:
        keys = jax.random.split(key, len(parts))
        return {label: part.start(keys[i], restricted(part, centre)) for i, (label, part) in enumerate(parts.items())}

    statements = [f"ppl.families.run({{name}}_{word(label)}(params[{quoted(label)}]))" for label in parts]
    known = all(part.fits is not None for part in parts.values())
    fits = {label: part.fits for label, part in parts.items()} if known else None
    return Family(model, latents, statements, {}, start, kind, fits, parts)


def restricted(part: Family, centre: Centre) -> Centre:
    """The place to start from, of the latent variables of one part, the others held where they are."""
    mine = {latent.name for latent in part.latents}
    values = {name: u for name, u in centre.values.items() if name in mine}
    if not values:
        return Centre({}, jnp.zeros(0), None)
    sizes = {name: jnp.size(u) for name, u in centre.values.items()}
    flags = np.concatenate([np.full(size, name in mine) for name, size in sizes.items()])
    places = np.flatnonzero(flags)

    def log_density(z: Any) -> Any:
        return centre.log_density(centre.vector.at[places].set(z))

    return Centre(values, centre.vector[places], centre.log_density and log_density)


class _Own(Family):
    """A user's program in the place of a generated family."""

    def source(self, name: str = "family") -> str:
        return f"\n\n{name} = {next(iter(self.names))}  # a program of your own\n"


def _owns(part: Family, latent: Any) -> bool:
    return any(mine.address == latent.address for mine in part.latents)


def _part(model: Bound, label: str, group: tuple[str, ...], choice: Choice) -> Family:
    if isinstance(choice, tuple) and len(choice) == 2 and isinstance(choice[0], Program):
        program, params = choice
        latents = latents_of(model, group, discrete=True, subsampled=True)
        name = f"own_{word(label)}"
        return _Own(model, latents, [], {name: program}, lambda key, centre: params, name, shapes(params))
    if isinstance(choice, Program | Bound | Family) or not callable(choice):
        raise errors.FamilyError(
            f"the choice for {label!r} is {choice!r}; it is a constructor such as ppl.families.mean_field, or a pair of a "
            "program of your own and its initial parameters."
        )
    return choice(model, addresses=list(group))
