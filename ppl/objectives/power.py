"""Power posteriors, also called generalized or tempered."""

from __future__ import annotations

from typing import Any

from ppl.objectives.elbo import beta_elbo
from ppl.program import Bound


def power_elbo(model: Bound, family: Bound, power: Any) -> Any:
    """The ELBO of the power posterior `p(z) p(x | z)^power` (Bissiri et al. 2016; Knoblauch et al. 2022). In nats.

    `power > 0` below one trusts the data less. Any loss may stand for the likelihood: `ppl.factor("loss", -loss)`.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def model():
        ...     z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ...     ppl.sample("x", dist.Normal(z, 1.0), obs=1.0)
        >>> @ppl.expectation
        ... def objective(mean):
        ...     family = ppl.program(lambda: ppl.sample("z", dist.Normal(mean, 0.25**0.5)))
        ...     return ppl.objectives.power_elbo(model(), family(), power=3.0)
        >>> g = objective.grad(jax.random.key(0), 0.75, samples=10_000)  # at the posterior of three equal observations
        >>> bool(abs(g) < 0.1)
        True
    """
    return power * beta_elbo(model, family, 1 / power)
