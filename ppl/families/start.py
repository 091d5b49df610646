"""Where a family starts: a place where the model's log density and its gradient are finite."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import errors
from ppl.address import flatten, nest, suggest
from ppl.families.free import Coordinates, Fixed, coordinates_of, split
from ppl.families.latents import Latent, is_discrete, latents_of
from ppl.program import Bound
from ppl.site import DETERMINISTIC, FACTOR, SAMPLE, SUBSAMPLE, Address, Site, show
from ppl.transforms.modify import prepare
from ppl.transforms.seed import seed
from ppl.transforms.stage import density_addresses

_DRAWS = 31
_TRIES = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Centre:
    """A place to start from: unconstrained values by address, and `log_density` of the vector of them, in nats.

    The log density is the model's in unconstrained space (with the Jacobians), other latent variables fixed.
    """

    values: dict[str, Any]
    vector: Any
    log_density: Any


def free_log_density(model: Bound, coordinates: Coordinates, consts: Any, others: Mapping[Address, Any], key: Any) -> Any:
    """The log density of a model as a function of a vector of unconstrained values."""

    def log_density(z: Any) -> Any:
        values, log_jacobian = coordinates.constrain(consts, z)
        return seed(model.log_density)(key, nest({**others, **values})) - log_jacobian

    return log_density


def centre_of(model: Bound, latents: Sequence[Latent], key: Any, at: Mapping[str, Any] | None) -> Centre:
    """A place with finite log density and gradient; see `Family.init`."""
    table = density_addresses(prepare(model).table)
    everything = [located.site for located in table.values() if located.site.kind == SAMPLE]
    coordinates, consts = coordinates_of(model, latents)
    given = _given(at, everything)
    own = {latent.address for latent in latents}

    def search(key: Any) -> Any:
        """The best of some places, whether anything is finite there, and the values of the other latent variables."""
        prior_key, place_key, density_key = jax.random.split(key, 3)
        draws = _prior_draws(model, everything, prior_key)
        others = {a: value[0] for a, value in draws.items() if a not in own}
        others |= {a: value for a, value in given.items() if a not in own}
        log_density = free_log_density(model, coordinates, consts, others, density_key)
        places = _places(coordinates, consts, draws, place_key)
        if given.keys() & own:
            mine = {a: value for a, value in given.items() if a in own}

            def with_given(z: Any) -> Any:
                return coordinates.free(consts, {**coordinates.constrain(consts, z)[0], **mine})[0]

            places = jax.lax.map(with_given, places)
        values, gradients = jax.lax.map(jax.value_and_grad(log_density), places)
        finite = jnp.isfinite(values) & jnp.all(jnp.isfinite(gradients), axis=1)
        best = jnp.argmax(jnp.where(finite, values, -jnp.inf))
        return places[best], finite[best], others, values[best], gradients[best], density_key

    search = jax.jit(search)
    for attempt in range(_TRIES):
        z, finite, others, value, gradient, density_key = search(key if attempt == 0 else jax.random.fold_in(key, attempt))
        if finite:
            pieces = {show(address): u for address, u in split(latents, z).items()}
            return Centre(pieces, z, free_log_density(model, coordinates, consts, others, density_key))
    raise _nowhere(model, coordinates, consts, others, density_key, z, value, gradient)


def _places(coordinates: Coordinates, consts: Any, draws: Mapping[Address, Any], key: Any) -> Any:
    """Vectors to start from: the median of the prior, two draws from it, and uniform ones."""
    size = sum(latent.size for latent in coordinates.latents)
    own = {latent.address: draws[latent.address] for latent in coordinates.latents}
    free = jax.vmap(lambda values: coordinates.free(consts, values)[0])(own)
    median = _median(jnp.where(jnp.isnan(free), jnp.inf, free))
    uniform = jax.random.uniform(key, (3, size), free.dtype, minval=-1.0) * jnp.array([[2.0], [2.0], [0.2]])
    return jnp.concatenate([median[None], free[:2], uniform.astype(free.dtype)])


def _median(x: Any) -> Any:
    """Over the first axis, by counting: a sort takes longer to compile than all the rest."""
    order = jnp.arange(_DRAWS)
    tied = (x[:, None] == x) & (order[:, None] > order)[..., None]
    rank = jnp.sum((x[:, None] > x) | tied, axis=1)
    return jnp.sum(jnp.where(rank == _DRAWS // 2, x, 0.0), axis=0)


def _prior_draws(model: Bound, everything: Sequence[Site], key: Any) -> dict[Address, Any]:
    """Draws of all latent variables from the prior, stacked. Improper ones are uniform without constraints."""
    improper = [site.name for site in everything if site.distribution_name == "ImproperUniform" and not is_discrete(site)]
    flat = latents_of(model, improper, subsampled=True) if improper else []
    coordinates = Fixed([latent for latent in flat if latent.support is not None])

    def draw(key: Any) -> Any:
        bound = model
        if coordinates.latents:
            z = jax.random.uniform(key, (sum(latent.size for latent in coordinates.latents),), minval=-2.0, maxval=2.0)
            bound = model.substitute(nest(coordinates.constrain([], z)[0]))
        return flatten(bound.simulate(key)[0])

    drawn = jax.vmap(draw)(jax.random.split(key, _DRAWS))
    return {site.address: drawn[site.address] for site in everything}


def _given(at: Mapping[str, Any] | None, everything: Sequence[Any]) -> dict[Address, Any]:
    given = flatten(at) if at else {}
    known = {site.address: site for site in everything}
    for address, value in given.items():
        if address not in known:
            raise errors.UnknownAddressError(
                f"at= names {show(address)!r}, which is no latent variable of the model.{suggest(address, known)}"
            )
        if not np.all(np.isfinite(np.asarray(value))):
            raise errors.SupportError(f"at= gives {show(address)!r} a value that is not finite.\n  {known[address].where}")
    return {address: jnp.asarray(value, known[address].dtype) for address, value in given.items()}


def _nowhere(
    model: Bound, coordinates: Coordinates, consts: Any, others: Any, key: Any, z: Any, value: Any, gradient: Any
) -> errors.FamilyError:
    """The error that says where the log density is not finite."""
    table = [item.site for item in prepare(model).table]
    counted = dict.fromkeys(show(site.address) for site in table if site.kind not in (SUBSAMPLE, DETERMINISTIC))
    wrong = []
    for name in counted:
        alone = model.mask({other: other == name for other in counted})
        share, slope = jax.value_and_grad(free_log_density(alone, coordinates, consts, others, key))(z)
        if not (np.isfinite(share) and np.all(np.isfinite(slope))):
            what = "log density" if not np.isfinite(share) else "gradient"
            site = next(site for site in table if show(site.address) == name)
            label = "the factor" if site.kind == FACTOR else "the site"
            wrong.append(f"the {what} of {label} {name!r} is not finite\n  {site.where}")
    coordinates_of_z = split(coordinates.latents, gradient)
    bad = [latent.name for latent in coordinates.latents if not np.all(np.isfinite(coordinates_of_z[latent.address]))]
    detail = "\n".join(wrong) or f"the gradient in {', '.join(bad)} is not finite"
    return errors.FamilyError(
        f"no place to start from: of {6 * _TRIES} that were tried, at none are the model's log density and its gradient "
        f"finite. At the last, where the log density is {float(value):.6g}:\n{detail}\n"
        "Give a good place, family.init(key, at={address: value}), or mend the model."
    )


__all__ = ["Centre", "centre_of", "free_log_density"]
