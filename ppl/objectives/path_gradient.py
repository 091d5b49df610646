"""The path gradient of a flow, without inverting it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ppl.objectives.surrogates import constant, gradient_of
from ppl.program import Bound


def path_gradient(model: Bound, draw: Callable[[], tuple[Any, Any, Any]]) -> Any:
    """The ELBO with the gradient of `sticking_the_landing`, from a draw that brings its score along. In nats.

    `sticking_the_landing` differentiates `log q` at the drawn value with the parameters held, which for a flow takes its
    inverse. Here the derivative of `log q` by the value comes along with the draw (Vaitl et al. 2024, proposition 3.1).

    Args:
        model: a bound program.
        draw: gives a trace, its log density and the derivative of this by the trace:
            `lambda: ppl.transport.simulate_with_score(flow)`.

    Raises:
        DifferentiationError: second derivatives, which lack what is left out.

    Example:
        >>> import jax, jax.numpy as jnp, ppl, ppl.distributions as dist
        >>> from ppl.transport import ode_flow, simulate_with_score
        >>> model = ppl.transport.ode_flow(dist.Normal(0.0, 1.0), lambda x, t: 2.0 * x)
        >>> @ppl.expectation
        ... def objective(rate):
        ...     flow = ode_flow(dist.Normal(0.0, 1.0), lambda x, t: rate * x)
        ...     return ppl.objectives.path_gradient(model, lambda: simulate_with_score(flow))
        >>> bool(abs(objective.grad(jax.random.key(0), 2.0)) < 1e-3)  # at the posterior, without noise
        True
    """
    trace, log_q, score = draw()
    steps = jax.tree.map(lambda s, x: jnp.sum(constant(s) * gradient_of(x)), score, trace)
    return model.log_density(trace) - constant(log_q) - sum(jax.tree.leaves(steps))


__all__ = ["path_gradient"]
