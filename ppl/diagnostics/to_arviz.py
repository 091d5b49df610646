"""A fit as ArviZ's `InferenceData`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ppl import errors
from ppl.address import flatten, nest
from ppl.diagnostics.draws import mapped, remember, repeat
from ppl.diagnostics.predictive import posterior_predictive, prior_predictive
from ppl.diagnostics.weights import arviz
from ppl.program import Bound
from ppl.site import DETERMINISTIC, FACTOR, OBSERVED, SAMPLE, Address
from ppl.transforms.compare import latents
from ppl.transforms.log_density import log_density
from ppl.transforms.modify import prepare
from ppl.transforms.pointwise import observations, pointwise
from ppl.transforms.seed import seed
from ppl.transforms.stage import Located


def to_arviz(model: Bound, family: Bound, key: Any, n: int = 1000) -> Any:
    """Draws of a fit and of its predictions, in the groups that ArviZ knows. One chain.

    - `posterior`: latent and deterministic sites;
    - `log_likelihood`: of each datum, in nats, by observed site; scales do not count, and masked data have zero;
    - `sample_stats`: `lp`, the log density of the draw and the data;
    - `posterior_predictive`, `prior_predictive`: the observed sites;
    - `observed_data`;
    - `prior`: latent and deterministic sites. Left out with `prior_predictive` where the prior is improper.

    Addresses `a/b` are named `a.b`. Axes of plates have the plates' names. `az.loo` and its like take the draws for posterior
    draws, which they are as far as the family is good: `check` first.

    Args:
        model: a bound program, conditioned on its data.
        family: a bound program that draws the model's latents.
        key: a PRNG key.
        n: number of draws.

    Example:
        >>> import jax, jax.numpy as jnp, ppl, ppl.distributions as dist
        >>> from ppl.diagnostics.to_arviz import to_arviz
        >>> @ppl.program
        ... def model(y):
        ...     mean = ppl.sample("mean", dist.Normal(0.0, 1.0))
        ...     ppl.plate("people", lambda y: ppl.sample("y", dist.Normal(mean, 1.0), obs=y))(y)
        >>> family = ppl.program(lambda: ppl.sample("mean", dist.Normal(1.0, 0.5)))
        >>> data = to_arviz(model(jnp.ones(3)), family(), jax.random.key(0), 100)
        >>> dict(data.log_likelihood["y"].sizes)
        {'chain': 1, 'draw': 100, 'people': 3}
    """
    az = arviz()
    draw_key, prior_key, density_key = jax.random.split(key, 3)
    sites = {item.site.address: item for item in prepare(model).table if item.site.kind != FACTOR and not item.in_while}
    kinds = {address: item.site.kind for address, item in sites.items()}
    unknown, predicted = (SAMPLE, DETERMINISTIC), (OBSERVED,)

    def group(draws: Mapping[Address, Any], wanted: tuple[str, ...]) -> dict[str, np.ndarray] | None:
        found = {_name(a): np.asarray(value)[None] for a, value in draws.items() if kinds.get(a) in wanted}
        return found or None

    draws = flatten(posterior_predictive(model, family, draw_key, n))
    trace = {address: draws[address] for address in latents(model)}
    log_p, likelihood, observed = repeat(_densities(model), density_key, n, trace)
    try:
        prior = flatten(prior_predictive(model, prior_key, n))
    except errors.NoSamplerError:
        prior = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return az.from_dict(
            posterior=group(draws, unknown),
            posterior_predictive=group(draws, predicted),
            log_likelihood=group(likelihood, predicted),
            sample_stats={"lp": np.asarray(log_p)[None]},
            prior=group(prior, unknown),
            prior_predictive=group(prior, predicted),
            observed_data={_name(a): np.asarray(value[0]) for a, value in observed.items()} or None,
            dims=_dims(sites),
            attrs={"inference_library": "ppl"},
        )


@remember
def _densities(model: Bound) -> Callable[..., Any]:
    def one(trace: Mapping[Address, Any]) -> Any:
        nested = nest(trace)
        return log_density(model, nested), pointwise(model, nested), observations(model, nested)

    return mapped(seed(one))


def _name(address: Address) -> str:
    """NetCDF allows no slash in a name."""
    return ".".join(address) or "value"


def _dims(sites: Mapping[Address, Located]) -> dict[str, list[str | None]]:
    """Names of the axes along plates; ArviZ names the others, and those whose plate is not the same everywhere."""
    sizes: dict[str, set[int]] = {}
    for item in sites.values():
        for axis, size in zip(item.axes, item.shape, strict=False):
            sizes.setdefault(axis, set()).add(size)
    taken = {"chain", "draw", *map(_name, sites)}
    dims: dict[str, list[str | None]] = {}
    for address, item in sites.items():
        plain = [a not in ("vmap", "scan") and len(sizes[a]) == 1 and item.axes.count(a) == 1 for a in item.axes]
        named = [f"{a}_plate" if a in taken else a for a in item.axes]
        if any(plain):
            dims[_name(address)] = [name if there else None for name, there in zip(named, plain, strict=True)]
    return dims


__all__ = ["to_arviz"]
