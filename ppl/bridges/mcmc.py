"""`nuts`: any program under the No-U-Turn sampler of NumPyro or BlackJAX, in one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin, summary
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import initialize_model, unconstrain_fn

from ppl import errors
from ppl.address import flatten, nest
from ppl.bridges.to_numpyro import to_numpyro
from ppl.program import Bound
from ppl.site import SAMPLE, has_value, show
from ppl.transforms.modify import prepare
from ppl.transforms.stage import density_addresses


@dataclasses.dataclass(frozen=True)
class Draws:
    """Draws of a Markov chain Monte Carlo sampler.

    Attributes:
        trace: nested dict by address of latent and deterministic values, of shape `(chains, draws, *shape)`, constrained.
        divergences: whether each draw ended a divergent trajectory, `(chains, draws)`.
        steps: leapfrog steps of each draw, `(chains, draws)`.
    """

    trace: dict[str, Any]
    divergences: np.ndarray
    steps: np.ndarray

    def flat(self) -> dict[str, Any]:
        """The trace with chains and draws as one leading axis."""
        return jax.tree.map(lambda x: jnp.reshape(x, (-1, *jnp.shape(x)[2:])), self.trace)

    def r_hat(self) -> dict[str, Any]:
        """Split R-hat (Gelman and Rubin) by address and element; near 1 where the chains agree."""
        return _by_address(split_gelman_rubin, self.trace)

    def effective_sample_size(self) -> dict[str, Any]:
        """How many independent draws they are worth, by address and element (Geyer's initial monotone sequence)."""
        return _by_address(effective_sample_size, self.trace)

    def to_arviz(self) -> Any:
        """ArviZ's InferenceData with groups `posterior` and `sample_stats`; needs arviz."""
        try:
            import arviz
        except ImportError as error:
            raise ImportError("to_arviz needs ArviZ: pip install 'ppl[diagnostics]'") from error
        posterior = {show(address): np.asarray(value) for address, value in flatten(self.trace).items()}
        return arviz.from_dict(posterior, sample_stats={"diverging": self.divergences, "n_steps": self.steps})

    def __repr__(self) -> str:
        chains, draws = self.divergences.shape
        return f"Draws({chains} chains of {draws}, {int(self.divergences.sum())} divergences)"

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("address", "mean", "sd", "5%", "50%", "95%", "n_eff", "r_hat")]
        values = {show(address): np.asarray(value) for address, value in flatten(self.trace).items()}
        for name, found in summary(values, prob=0.9).items():
            for index in np.ndindex(np.shape(found["mean"])):
                cells = [found[k][index] for k in ("mean", "std", "5.0%", "median", "95.0%")]
                place = f"{name}[{','.join(map(str, index))}]" if index else name
                shown = (f"{found['n_eff'][index]:.0f}", f"{found['r_hat'][index]:.3f}")
                rows.append((place, *(f"{cell:.3f}" for cell in cells), *shown))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            row[0].ljust(widths[0]) + "".join("  " + c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))
            for row in rows
        ]
        return "\n".join([*lines, "", repr(self)])


def nuts(
    model: Bound,
    key: Any,
    *,
    warmup: int = 1000,
    draws: int = 1000,
    chains: int = 4,
    initial: Any = None,
    library: str = "numpyro",
    progress: bool = False,
    **options: Any,
) -> Draws:
    """Draw from the posterior of a bound program with the No-U-Turn sampler (Hoffman and Gelman 2014).

    Latents are sampled in unconstrained space, through NumPyro's bijections, with step size and diagonal mass matrix adapted
    during warmup. All chains run in one compiled loop.

    Args:
        model: a bound program; its latents must be continuous.
        key: a PRNG key.
        warmup, draws: steps of each chain that are thrown away, and kept.
        chains: how many.
        initial: where the chains start: None for draws uniform in (-2, 2) in unconstrained space; a nested dict with a value
            for every latent, an axis of chains in front; or anything with a method `initial_values(key, chains)` that makes
            one, such as a `Fit`.
        library: `"numpyro"` or `"blackjax"`.
        progress: whether NumPyro shows a progress bar (then chains run one after the other).
        **options: of NumPyro's `NUTS` (`target_accept_prob`, `dense_mass`, ...), or of BlackJAX's `window_adaptation`
            (`target_acceptance_rate`, `is_mass_matrix_diagonal`, ...).

    Returns:
        `Draws`.

    Raises:
        EstimatorError: a latent is discrete.
        NumPyroError: as in `to_numpyro`.
        MissingAddressError, ValueShapeError: `initial` does not fit the program.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def model():
        ...     mean = ppl.sample("mean", dist.Normal(0.0, 1.0))
        ...     ppl.sample("y", dist.Normal(mean, 1.0), obs=2.0)
        >>> draws = ppl.nuts(model(), jax.random.key(0), warmup=200, draws=500, chains=2)
        >>> draws.trace["mean"].shape, bool(abs(draws.trace["mean"].mean() - 1.0) < 0.2)
        ((2, 500), True)
    """
    if library not in ("numpyro", "blackjax"):
        raise ValueError(f"library is 'numpyro' or 'blackjax', got {library!r}")
    latents = _continuous_latents(model)
    start_key, run_key = jax.random.split(key)
    if hasattr(initial, "initial_values"):
        initial = initial.initial_values(start_key, chains)
    numpyro_model = to_numpyro(model)
    start = None if initial is None else _unconstrained(numpyro_model, latents, initial, chains)
    if library == "numpyro":
        kernel = NUTS(numpyro_model, **options)
        method = "sequential" if progress else "vectorized"
        mcmc = MCMC(kernel, num_warmup=warmup, num_samples=draws, num_chains=chains, chain_method=method, progress_bar=progress)
        if start is not None and chains == 1:
            start = jax.tree.map(lambda x: x[0], start)
        mcmc.run(run_key, init_params=start, extra_fields=("diverging", "num_steps"))
        found = mcmc.get_samples(group_by_chain=True)
        extra = mcmc.get_extra_fields(group_by_chain=True)
        diverging, steps = extra["diverging"], extra["num_steps"]
    else:
        from ppl.bridges.blackjax import run_nuts

        keys = jax.random.split(start_key, chains)
        info = initialize_model(keys if chains > 1 else keys[0], numpyro_model, dynamic_args=True)
        if start is None:
            start = info.param_info.z if chains > 1 else jax.tree.map(lambda x: x[None], info.param_info.z)
        positions, diverging, steps = run_nuts(info.potential_fn(), start, run_key, warmup, draws, options)
        found = jax.jit(jax.vmap(jax.vmap(info.postprocess_fn())))(positions)
    trace = {tuple(name.split("/")): value for name, value in found.items()}
    return Draws(nest(trace), np.asarray(diverging), np.asarray(steps))


def _by_address(function: Any, trace: Any) -> dict[str, Any]:
    return nest({address: function(np.asarray(value)) for address, value in flatten(trace).items()})


def _continuous_latents(model: Bound) -> dict[Any, Any]:
    table = density_addresses(prepare(model).table)
    latents = {a: item for a, item in table.items() if item.site.kind == SAMPLE and not has_value(item.site)}
    if not latents:
        raise errors.UnknownAddressError(f"{model!r} has no latent variable to sample")
    for item in latents.values():
        if not jnp.issubdtype(item.site.dtype, jnp.floating):
            raise errors.EstimatorError(
                f"NUTS moves along gradients, and {item.site.name!r} is discrete ({item.site.distribution_name}).\n"
                f"  {item.site.where}\nSum it out with ppl.marginal(model, keep=...), or fit a variational family to it."
            )
    return latents


def _unconstrained(numpyro_model: Any, latents: Mapping[Any, Any], initial: Any, chains: int) -> Any:
    given = flatten(initial)
    missing = [show(address) for address in latents if address not in given]
    if missing:
        raise errors.MissingAddressError(f"initial lacks {', '.join(map(repr, missing))}")
    values = {}
    for address, item in latents.items():
        value, shape = jnp.asarray(given[address]), (chains, *item.shape)
        if value.shape != shape:
            raise errors.ValueShapeError(
                f"initial {show(address)!r} has shape {list(value.shape)}; {chains} chains need {list(shape)}"
            )
        values[show(address)] = value
    return jax.vmap(lambda values: unconstrain_fn(numpyro_model, (), {}, values))(values)
