"""Posterior and prior predictive draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ppl import errors
from ppl.address import flatten, nest, parse, suggest
from ppl.diagnostics.draws import mapped, remember, repeat, sample
from ppl.program import Bound
from ppl.site import FACTOR, OBSERVED, SAMPLE, Address, show
from ppl.transforms.compare import latents
from ppl.transforms.modify import prepare
from ppl.transforms.predict import predict
from ppl.transforms.seed import seed
from ppl.transforms.stage import Located
from ppl.transforms.values import check_value


def posterior_predictive(
    model: Bound,
    family: Bound,
    key: Any,
    n: int,
    *,
    intervene: Mapping[str, Any] | None = None,
    redraw: Sequence[str] = (),
) -> Any:
    """Draws of all of a model's sites: latents from the family, and everything else from the model given these.

    Observed sites are drawn anew, and sites of the model that the family does not know too: those that were observed when the
    family was fitted. Factors do not count.

    Args:
        model: the model that was fitted, or another with the same latents: other covariates, another design.
        family: what draws the latents.
        key: a PRNG key.
        n: number of draws.
        intervene: values that the sites at some addresses take, observed ones too, whatever their distributions (Pearl's do).
        redraw: latents that the model draws and not the family, such as the effects of groups that were not in the data.

    Returns:
        The nested dict by address: latent, observed and deterministic values, with leading axis `n`.

    Raises:
        UnknownAddressError: the family draws a latent that the model lacks, or an address is unknown.
        ValueShapeError: a latent has another shape in this model.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> from ppl.diagnostics.predictive import posterior_predictive
        >>> @ppl.program
        ... def model(x):
        ...     slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
        ...     ppl.sample("y", dist.Normal(slope * x, 0.1))
        >>> family = ppl.program(lambda: ppl.sample("slope", dist.Normal(2.0, 0.1)))
        >>> draws = posterior_predictive(model(10.0), family(), jax.random.key(0), 1000)
        >>> draws["y"].shape, bool(abs(draws["y"].mean() - 20.0) < 0.2)
        ((1000,), True)
    """
    sites = _sites(model)
    again = {parse(address) for address in redraw}
    for address in again:
        if address not in sites:
            raise errors.UnknownAddressError(f"redraw names {show(address)!r}, which the model lacks.{suggest(address, sites)}")
    done = _checked(sites, intervene)
    given = {}
    for address, drawn in latents(family).items():
        if address not in sites:
            raise errors.UnknownAddressError(
                f"the family draws {show(address)!r}, which this model lacks.{suggest(address, sites)}\n"
                "The model for predictions must have the latents of the model that was fitted, under the same addresses."
            )
        if address not in again and address not in done:
            given[address] = _compared(drawn, sites[address])
    traces = flatten(sample(family, key, n)) if given else {}
    return _draw(model, jax.random.fold_in(key, 1), n, {address: traces[address] for address in given}, done)


def prior_predictive(model: Bound, key: Any, n: int, *, intervene: Mapping[str, Any] | None = None) -> Any:
    """Draws of all of a model's sites, with leading axis `n`, as if nothing had been observed. Factors do not count.

    Raises:
        NoSamplerError: a prior is improper.
    """
    return _draw(model, key, n, {}, _checked(_sites(model), intervene))


def _sites(model: Bound) -> dict[Address, Located]:
    """What predictions hold: everything but factors, and what stands in a `while_loop`."""
    return {item.site.address: item for item in prepare(model).table if item.site.kind != FACTOR and not item.in_while}


def _checked(sites: Mapping[Address, Located], intervene: Mapping[str, Any] | None) -> dict[Address, Any]:
    """The values of an intervention. Without densities, do is to give a value, whether or not one was observed."""
    done = {}
    for address, value in flatten(intervene or {}).items():
        if address not in sites or sites[address].site.kind not in (SAMPLE, OBSERVED):
            raise errors.UnknownAddressError(
                f"intervene names {show(address)!r}, which the model does not draw.{suggest(address, sites)}"
            )
        done[address] = check_value(value, sites[address].site, sites[address].shape, observed=False)
    return done


def _compared(drawn: Located, wanted: Located) -> Located:
    name = show(drawn.site.address)
    if wanted.site.kind == OBSERVED:
        raise errors.FitError(
            f"this model observes {name!r}, which the family draws.\n  {wanted.site.where}\nThe fit was not conditioned on "
            f"it: fit again with the observation, or fix the value with intervene={{{name!r}: ...}}."
        )
    if drawn.shape != wanted.shape:
        raise errors.ValueShapeError(
            f"the family draws {name!r} of shape {list(drawn.shape)}, and this model has {list(wanted.shape)}.\n"
            f"  {wanted.site.where}\nIf this model has other groups or data points, whose values the fit knows nothing about, "
            f"let the model draw them: redraw=[{name!r}]."
        )
    return wanted


def _draw(model: Bound, key: Any, n: int, traces: Mapping[Address, Any], done: Mapping[Address, Any]) -> Any:
    repeated = {address: jnp.broadcast_to(value, (n, *jnp.shape(value))) for address, value in done.items()}
    return repeat(_predictive(model), key, n, nest({**traces, **repeated}))


@remember
def _predictive(model: Bound) -> Callable[..., Any]:
    return mapped(lambda key, trace: seed(lambda: predict(model, trace))(key))


__all__ = ["posterior_predictive", "prior_predictive"]
