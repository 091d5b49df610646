"""Gaussian families in unconstrained space: mean-field, full-rank, low-rank and block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import errors
from ppl.families.family import Family, shapes
from ppl.families.free import needs_run, refuse_branches
from ppl.families.latents import Latent, latents_of
from ppl.families.start import Centre
from ppl.families.text import joint_text, quoted, site_distribution
from ppl.program import Bound

LOG_SCALE = float(np.log(0.1))


def mean_field(model: Bound, addresses: Sequence[str] | None = None) -> Family:
    """Independent Gaussians without constraints, taken to each variable's support by NumPyro's bijection.

    Parameters: by address, `{"loc": ..., "log_scale": ...}` in the shape of the unconstrained value: 2 D numbers. Each latent
    variable is a site of its own (normal, log-normal, or a transformed normal), with batch dimensions where the model stacks
    values, so that closed-form divergences and estimators by address apply. Where supports move with other variables, or
    variables stand in branches of a `cond`, they are drawn as one vector, and `loc` and `log_scale` are vectors.

    Args:
        model: a bound program, conditioned on its data.
        addresses: latent variables, or prefixes of these; all of them if None.

    Raises:
        FamilyError: the model has a latent variable that is discrete, or that no bijection to the reals reaches.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def model():
        ...     rate = ppl.sample("rate", dist.Gamma(2.0, 1.0))
        ...     ppl.sample("count", dist.Poisson(rate), obs=3)
        >>> family = ppl.families.mean_field(model())
        >>> print(family)  # doctest: +NORMALIZE_WHITESPACE
        import jax
        import jax.numpy as jnp
        <BLANKLINE>
        import ppl
        import ppl.distributions as dist
        <BLANKLINE>
        <BLANKLINE>
        @ppl.program
        def family(params):
            p = params["rate"]
            ppl.sample("rate", dist.LogNormal(p["loc"], jnp.exp(p["log_scale"])))
        <BLANKLINE>
        >>> params = family.init(jax.random.key(0))
        >>> ppl.check_family(model(), family(params))
    """
    latents = latents_of(model, addresses)
    if list(needs_run(latents)):
        normal = 'dist.Normal(params["loc"], jnp.exp(params["log_scale"])).to_event(1)'
        statements = joint_text(normal, latents, model)
        return Family(model, latents, statements, {}, _vectors, "mean_field", shapes(_vectors(None, _zeros(latents))))
    return Family(model, latents, site_lines(latents), {}, _by_site, "mean_field", shapes(_by_site(None, _zeros(latents))))


def site_lines(latents: Sequence[Latent], params: str = "params") -> list[str]:
    """A statement for each latent."""
    lines = []
    for latent in latents:
        lines.append(f"p = {params}[{quoted(latent.name)}]")
        lines.append(f"ppl.sample({quoted(latent.name)}, {site_distribution(latent, _NORMAL)})")
    return lines


_NORMAL = 'dist.Normal(p["loc"], jnp.exp(p["log_scale"]))'


def _by_site(key: Any, centre: Centre) -> Any:
    return {name: {"loc": u, "log_scale": jnp.full_like(u, LOG_SCALE)} for name, u in centre.values.items()}


def _vectors(key: Any, centre: Centre) -> Any:
    return {"loc": centre.vector, "log_scale": jnp.full_like(centre.vector, LOG_SCALE)}


def _zeros(latents: Sequence[Latent]) -> Centre:
    """A place that has the right shapes."""
    return Centre(
        {latent.name: jnp.zeros(latent.free) for latent in latents}, jnp.zeros(sum(latent.size for latent in latents)), None
    )


def joint_family(
    model: Bound, latents: Sequence[Latent], distribution: str, start: Any, kind: str, names: Any = None
) -> Family:
    """A family that draws all its latent variables as one vector."""
    refuse_branches(latents, kind)
    statements = joint_text(distribution, latents, model)
    fits = shapes(jax.eval_shape(lambda: start(jax.random.key(0), _zeros(latents))))
    return Family(model, latents, statements, names or {}, start, kind, fits)


def scale_tril(log_scale: Any, lower: Any) -> Any:
    """The lower triangular factor of a covariance matrix: `diag(exp(log_scale))` times a unit lower triangular matrix.

    Args:
        log_scale: `[..., D]`, logs of the conditional standard deviations.
        lower: `[..., D (D - 1) / 2]`, the entries below the diagonal, row by row.

    Returns:
        `[..., D, D]`.

    Example:
        >>> import jax.numpy as jnp, ppl
        >>> ppl.families.scale_tril(jnp.log(jnp.array([1.0, 2.0])), jnp.array([0.5])).tolist()
        [[1.0, 0.0], [1.0, 2.0]]
    """
    size = log_scale.shape[-1]
    rows, columns = np.tril_indices(size, -1)
    eye = jnp.broadcast_to(jnp.eye(size, dtype=lower.dtype), (*lower.shape[:-1], size, size))
    return jnp.exp(log_scale)[..., None] * eye.at[..., rows, columns].set(lower, unique_indices=True)


def from_scale_tril(tril: Any) -> dict[str, Any]:
    """The parameters that `scale_tril` makes a factor of."""
    scales = jnp.diagonal(tril)
    rows, columns = np.tril_indices(tril.shape[0], -1)
    return {"log_scale": jnp.log(scales), "lower": (tril / scales[:, None])[rows, columns]}


FULL_RANK = """\
dist.MultivariateNormal(
    params["loc"], scale_tril=ppl.families.scale_tril(params["log_scale"], params["lower"])
)"""
LOW_RANK = """\
dist.LowRankMultivariateNormal(
    params["loc"],
    jnp.exp(params["log_scale"])[:, None] * params["factor"],
    jnp.exp(2.0 * params["log_scale"]),
)"""


def full_rank(model: Bound, addresses: Sequence[str] | None = None) -> Family:
    """One Gaussian over all variables without constraints, with any covariance: `D + D (D + 1) / 2` parameters.

    Parameters: `{"loc": [D], "log_scale": [D], "lower": [D (D - 1) / 2]}`, see `ppl.families.scale_tril`. The coordinates are
    in program order. Arguments and errors as for `ppl.families.mean_field`; variables in branches of a `cond` are refused.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("x", dist.Dirichlet(jax.numpy.ones(3))))
        >>> family = ppl.families.full_rank(model())
        >>> jax.tree.map(jax.numpy.shape, family.init(jax.random.key(0)))
        {'loc': (2,), 'log_scale': (2,), 'lower': (1,)}
    """
    return joint_family(model, latents_of(model, addresses), FULL_RANK, _full_rank_start, "full_rank")


def _full_rank_start(key: Any, centre: Centre) -> Any:
    size = centre.vector.shape[0]
    return {**_vectors(key, centre), "lower": jnp.zeros(size * (size - 1) // 2, centre.vector.dtype)}


def low_rank(model: Bound, addresses: Sequence[str] | None = None, *, rank: int | None = None) -> Family:
    """One Gaussian without constraints with covariance `S (I + F F^T) S`, S diagonal and F of `rank` columns: `D (rank + 2)`.

    Parameters: `{"loc": [D], "log_scale": [D], "factor": [D, rank]}`. Otherwise as `ppl.families.full_rank`.

    Args:
        rank: the number of columns; the square root of D, rounded, if None (as in NumPyro).

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("x", dist.Normal(0.0, 1.0).expand([9])))
        >>> ppl.families.low_rank(model(), rank=2).size
        36
    """
    latents = latents_of(model, addresses)
    size = sum(latent.size for latent in latents)
    columns = max(1, round(size**0.5)) if rank is None else rank
    if not 1 <= columns <= size:
        raise errors.FamilyError(f"rank={rank} of a covariance of {size} coordinates: it is at least 1 and at most {size}.")

    def start(key: Any, centre: Centre) -> Any:
        # At zero the gradient in the factor would be zero by symmetry.
        factor = 0.1 * jax.random.normal(key, (size, columns), centre.vector.dtype)
        return {**_vectors(key, centre), "factor": factor}

    return joint_family(model, latents, LOW_RANK, start, "low_rank")


def block(model: Bound, groups: Sequence[Sequence[str] | str] | Mapping[str, Sequence[str]] | None = None) -> Family:
    """A full-rank Gaussian for each address, or for each group of addresses, independent of the others.

    Parameters: those of `ppl.families.full_rank`, by group. A group is named by its addresses, joined by "+", unless `groups`
    is a dict. Addresses that no group names are blocks of their own.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def model():
        ...     for name in "abc":
        ...         ppl.sample(name, dist.Normal(0.0, 1.0))
        >>> sorted(ppl.families.block(model(), [("a", "b")]).init(jax.random.key(0)))
        ['a+b', 'c']
    """
    from ppl.families.by_address import by_address

    latents = latents_of(model)
    pairs: list[Any] = list(groups.items()) if isinstance(groups, Mapping) else [(None, group) for group in groups or ()]
    named: dict[str, tuple[str, ...]] = {}
    for name, group in pairs:
        members = (group,) if isinstance(group, str) else tuple(group)
        named[name or "+".join(members)] = members
    for members in named.values():
        latents_of(model, members)
    rest = [x.name for x in latents if not any(_covered(x.name, m) for members in named.values() for m in members)]
    chosen = {**named, **{name: (name,) for name in rest}}
    return by_address(model, {tuple(members): full_rank for members in chosen.values()}, names=list(chosen))


def _covered(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + "/")
