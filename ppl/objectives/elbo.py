"""The evidence lower bound."""

from __future__ import annotations

from typing import Any, NamedTuple

from ppl.program import Bound
from ppl.site import show
from ppl.transforms.divergence import closed_form_divergences
from ppl.transforms.shapes import trace_shapes
from ppl.transforms.simulate import simulate


def elbo(model: Bound, family: Bound) -> Any:
    """`E_q[log p(x, z) - log q(z)] <= log p(x)` (Jordan et al. 1999; Blei et al. 2017, equation 13). One draw, in nats.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def model():
        ...     z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ...     ppl.sample("x", dist.Normal(z, 1.0), obs=1.0)
        >>> @ppl.program
        ... def family(mean):
        ...     ppl.sample("z", dist.Normal(mean, 0.5**0.5))
        >>> @ppl.expectation
        ... def objective(mean):
        ...     return ppl.objectives.elbo(model(), family(mean))
        >>> value = objective.estimate(jax.random.key(0), 0.5)
        >>> print(f"{value:.4f}")  # at the posterior: log evidence, exactly
        -1.5155
    """
    trace, log_q = simulate(family)
    return model.log_density(trace) - log_q


def elbo_analytic(model: Bound, family: Bound) -> Any:
    """The ELBO with the divergences of single sites in closed form (Kingma and Welling 2014, equation 7). One draw, in nats.

    `KL(q(z_i | parents) || p(z_i | parents))` stands in place of `log q - log p` at every site for which NumPyro has a formula
    and whose parents in the model do not depend on it in the family; the others are sampled as in `elbo`. Value and gradient
    are unbiased for the same ELBO, usually with less variance. Near the posterior `sticking_the_landing` may have less still.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))
        >>> @ppl.expectation
        ... def objective(mean):
        ...     family = ppl.program(lambda: ppl.sample("z", dist.Normal(mean, 1.0)))
        ...     return ppl.objectives.elbo_analytic(model(), family())
        >>> float(objective.estimate(jax.random.key(0), 2.0))  # -mean**2 / 2, without noise
        -2.0
    """
    trace, log_q = simulate(family)
    log_w = model.log_density(trace) - log_q
    divergences = closed_form_divergences(family, model, trace)
    if not divergences:
        return log_w
    counted = {show(address): False for address in divergences}
    rest = model.mask(counted).log_density(trace) - family.mask(counted).log_density(trace)
    return rest - sum(divergences.values())


class Terms(NamedTuple):
    """`log p(x | z)` (with the model's factors), `log p(z)` and `log q(z)` at one draw of the family, in nats."""

    log_likelihood: Any
    log_prior: Any
    log_q: Any


def elbo_terms(model: Bound, family: Bound) -> Terms:
    """The parts of the ELBO at one draw: `likelihood + prior - log_q` (Hoffman and Johnson 2016).

    The prior is what the latent sites add, taken as a difference: its rounding error is that of `log p(x, z)`.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def model():
        ...     z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ...     ppl.sample("x", dist.Normal(z, 1.0), obs=1.0)
        >>> @ppl.expectation
        ... def kl(mean):
        ...     family = ppl.program(lambda: ppl.sample("z", dist.Normal(mean, 1.0)))
        ...     terms = ppl.objectives.elbo_terms(model(), family())
        ...     return terms.log_q - terms.log_prior
        >>> bool(abs(kl.estimate(jax.random.key(0), 2.0, samples=10_000) - 2.0) < 0.1)  # mean**2 / 2
        True
    """
    trace, log_q = simulate(family)
    log_likelihood = model.mask(latents(model, False)).log_density(trace)
    return Terms(log_likelihood, model.log_density(trace) - log_likelihood, log_q)


def beta_elbo(model: Bound, family: Bound, beta: Any) -> Any:
    """`E_q[log p(x | z) + beta (log p(z) - log q(z))]` (Higgins et al. 2017, equation 4). In nats.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def model():
        ...     z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ...     ppl.sample("x", dist.Normal(z, 1.0), obs=1.0)
        >>> family = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))  # the prior: beta does not matter
        >>> @ppl.expectation
        ... def objective(beta):
        ...     return ppl.objectives.beta_elbo(model(), family(), beta)
        >>> one, four = (objective.estimate(jax.random.key(0), beta) for beta in (1.0, 4.0))
        >>> bool(abs(one - four) < 1e-5)
        True
    """
    trace, log_q = simulate(family)
    return model.scale(latents(model, beta)).log_density(trace) - beta * log_q


def latents(model: Bound, value: Any) -> dict[str, Any]:
    """One value for each latent address of a bound program."""
    return {address: value for address, row in trace_shapes(model).items() if row.kind == "sample"}


__all__ = ["Terms", "beta_elbo", "elbo", "elbo_analytic", "elbo_terms", "latents"]
