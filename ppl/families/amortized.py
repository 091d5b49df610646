"""Families whose parameters a network computes from the data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr

from ppl import errors
from ppl.families.by_address import restricted
from ppl.families.family import Family, check_params
from ppl.families.gaussian import mean_field
from ppl.families.latents import Latent, latents_of
from ppl.families.start import Centre
from ppl.families.text import quoted
from ppl.lanes import inner_jaxprs, lanes_p
from ppl.program import Bound
from ppl.site import PlateAxis, site_p
from ppl.transforms.modify import prepare


def amortized(
    model: Bound,
    encoder: Callable[[Any, Any], Any],
    data: Any,
    *,
    weights: Any = None,
    plate: str | None = None,
    local: Callable[..., Family] = mean_field,
    rest: Callable[..., Family] = mean_field,
) -> Family:
    """A family in which an encoder computes the parameters of each plate element's variables from that element's data.

    The family draws the variables in the model's plate in a plate of the same name, with the same `size=`, so that minibatches
    count as they do in the model. Bound to another minibatch, it is made anew from the model of that batch, in the objective:
    the parameters stay the same.

    Parameters: `{"encoder": weights, "rest": those of the family of all other variables}`, without `rest` if there are none.

    Args:
        model: a bound program, conditioned on the data (or on a minibatch of it).
        encoder: from its weights and the data of one element to the parameters of the `local` family for that element: in its
            structure, or as one vector in the order of `jax.flatten_util.ravel_pytree`. With one address "z" and mean_field,
            `{"z": {"loc": ..., "log_scale": ...}}` or a vector, all of `loc` first.
        data: any pytree of arrays whose first axis is the plate's.
        weights: initial weights for `init`, or a function of a key that makes them.
        plate: the name of the plate; the one that variables stand in if None.
        local: the constructor of the family for one element: `mean_field`, `full_rank`, `coupling_flow` and so on.
        rest: the constructor for the variables outside of the plate.

    Raises:
        FamilyError: no latent variable stands in such a plate; the data have another length; or the encoder's result does not
            fit the family.

    Example:
        >>> import jax, jax.numpy as jnp, ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def model(batch):
        ...     def datum(y):
        ...         z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ...         ppl.sample("y", dist.Normal(z, 1.0), obs=y)
        ...     ppl.plate("data", datum, size=100)(batch)
        >>> def encoder(weights, y):
        ...     return {"z": {"loc": weights["slope"] * y, "log_scale": weights["log_scale"]}}
        >>> def family(batch):
        ...     return ppl.families.amortized(model(batch), encoder, batch, weights={"slope": 0.0, "log_scale": 0.0})
        >>> @ppl.expectation
        ... def elbo(params, batch):
        ...     return ppl.objectives.elbo(model(batch), family(batch)(params))
        >>> batch = jnp.arange(5.0)
        >>> params = family(batch).init(jax.random.key(0))
        >>> value = elbo.estimate(jax.random.key(1), params, batch)
    """
    latents = latents_of(model, subsampled=True)
    name = _plate_of(latents, plate, model)
    inside = [latent for latent in latents if latent.axes and latent.axes[0][0] == name]
    others = [latent for latent in latents if latent not in inside]
    for latent in inside:
        if latent.support is None or latent.branch:
            what = "stands in a branch of a cond" if latent.branch else "has a support that moves with other variables"
            raise errors.FamilyError(f"{latent.name!r} {what}, which amortized does not follow.\n  {latent.where}")
    length = inside[0].axes[0][1]
    found = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if found != {(length,)}:
        shown = ", ".join(str(lead[0]) if lead else "none" for lead in sorted(found)) or "no arrays"
        raise errors.FamilyError(f"the plate {name!r} has {length} elements, and the data along their first axis: {shown}.")
    element = local(model, addresses=[_element(latent) for latent in inside])
    parts = {"element": element}
    if others:
        parts["rest"] = rest(model, addresses=[latent.name for latent in others])
    total = _totals(prepare(model).staged.jaxpr.jaxpr).get(name)
    statements = [
        "def element(datum):",
        '    local = ppl.families.as_params(encoder(params["encoder"], datum), local_shapes)',
        "    ppl.families.run({name}_element(local))",
        "",
        f"ppl.plate({quoted(name)}, element{'' if total is None else f', size={total}'})(data)",
    ]
    if others:
        statements.insert(0, 'ppl.families.run({name}_rest(params["rest"]))')

    def start(key: Any, centre: Centre) -> Any:
        if weights is None:
            raise errors.FamilyError("init needs the encoder's initial weights: amortized(..., weights=...).")
        key, encoder_key = jax.random.split(key)
        params = {"encoder": weights(encoder_key) if callable(weights) else weights}
        if others:
            params["rest"] = parts["rest"].start(key, restricted(parts["rest"], centre))
        return params

    names = {"encoder": encoder, "local_shapes": element.fits, "data": data}
    return Family(model, others, statements, names, start, "amortized", None, parts)


def as_params(output: Any, like: Any) -> Any:
    """What an encoder gave as parameters of the shapes of `like`: as they are, or cut from one vector.

    Example:
        >>> import jax, jax.numpy as jnp, ppl
        >>> like = {"z": {"loc": jax.ShapeDtypeStruct((), float), "log_scale": jax.ShapeDtypeStruct((), float)}}
        >>> ppl.families.as_params(jnp.array([3.0, -1.0]), like)["z"]["log_scale"].item()
        -1.0
    """
    leaves, tree = jax.tree.flatten(like)
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    if hasattr(output, "shape") and tuple(output.shape) == (sum(sizes),):
        cuts = np.cumsum(sizes)[:-1]
        return jax.tree.unflatten(
            tree, [jnp.reshape(x, leaf.shape) for x, leaf in zip(jnp.split(output, cuts), leaves, strict=True)]
        )
    try:
        check_params(output, like, "of one plate element")
    except errors.FamilyError as error:
        raise errors.FamilyError(f"the encoder's result does not fit: {error}\nOr give one vector, [{sum(sizes)}].") from None
    return output


def _element(latent: Latent) -> Latent:
    """A latent variable of one element of the outermost plate around it."""
    return dataclasses.replace(latent, shape=latent.shape[1:], free=latent.free[1:], axes=latent.axes[1:])


def _plate_of(latents: list[Latent], plate: str | None, model: Bound) -> str:
    around = dict.fromkeys(x.axes[0][0] for x in latents if x.axes and x.axes[0][0] not in ("scan", "vmap"))
    if plate is None and len(around) == 1:
        return next(iter(around))
    if plate not in around:
        asked = "one plate" if plate is None else f"a plate {plate!r}"
        raise errors.FamilyError(
            f"amortized needs latent variables in {asked}, around everything else; those of the model stand in: "
            f"{', '.join(map(repr, around)) or 'none'}. Use ppl.plate(name, function)(data) in the model"
            + (", and name one with plate=." if len(around) > 1 else ".")
        )
    return plate


def _totals(jaxpr: Jaxpr) -> dict[str, int | None]:
    """The populations of the plates of a program, by name."""
    totals: dict[str, int | None] = {}

    def note(axis: Any) -> None:
        if isinstance(axis, PlateAxis):
            totals[axis.name] = axis.total

    for eqn in jaxpr.eqns:
        if eqn.primitive is site_p:
            for item in eqn.params["site"].plates:
                note(item.axis)
        if eqn.primitive is lanes_p:
            note(eqn.params["axis"])
        for inner in inner_jaxprs(eqn.params):
            totals |= _totals(inner)
    return totals
