"""Sticking the landing: the ELBO without the score of the family in its gradient."""

from __future__ import annotations

from typing import Any

from ppl.objectives.surrogates import check_scores, frozen
from ppl.program import Bound
from ppl.transforms.simulate import simulate


def sticking_the_landing(model: Bound, family: Bound) -> Any:
    """The ELBO with `log q` differentiated through the draw alone (Roeder et al. 2017, section 3). In nats.

    What is left out, `E_q[d log q]`, is zero for any estimator: unbiased for discrete sites too. The variance of the gradient
    falls to zero as the family approaches the posterior where sites are reparameterized.

    Raises:
        EstimatorError: the score of the family does not have mean zero: it has an observation, a factor, a substituted value or
            a support that moves with its parameters.
        DifferentiationError: second derivatives, which lack what is left out.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(3.0, 2.0)))
        >>> @ppl.expectation
        ... def objective(mean):
        ...     family = ppl.program(lambda: ppl.sample("z", dist.Normal(mean, 2.0)))
        ...     return ppl.objectives.sticking_the_landing(model(), family())
        >>> float(objective.grad(jax.random.key(0), 3.0))  # at the posterior, without noise
        0.0
    """
    check_scores(family, "sticking_the_landing", weighted=False)
    trace, _ = simulate(family)
    return model.log_density(trace) - frozen(family.log_density, trace)
