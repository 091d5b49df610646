"""Wake-sleep and reweighted wake-sleep: the model and the family each ascend an objective of their own.

Each holds the other program's parameters constant, so that sums of them are objectives: `wake_theta + sleep_phi` is the
wake-sleep algorithm (Hinton et al. 1995), `wake_theta + wake_phi` reweighted wake-sleep (Bornschein and Bengio 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ppl import errors
from ppl.objectives.particles import at_least
from ppl.objectives.surrogates import check_scores, constant, held
from ppl.objectives.vis import vis_model
from ppl.program import Bound
from ppl.transforms.simulate import simulate


def wake_theta(model: Bound, family: Bound, particles: int = 1) -> Any:
    """`log mean_k w_k` with the family held constant: to be ascended in the model, in nats. The wake-phase update of p.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.expectation
        ... def objective(mean):
        ...     model, family = (ppl.program(lambda m=m: ppl.sample("z", dist.Normal(m, 1.0))) for m in (mean, 0.0))
        ...     return ppl.objectives.wake_theta(model(), family())
        >>> g = objective.grad(jax.random.key(0), 1.0, samples=10_000)  # E[z - mean]
        >>> bool(abs(g + 1.0) < 0.05)
        True
    """
    return vis_model(model, family, particles)


def wake_phi(model: Bound, family: Bound, particles: int) -> Any:
    """`sum_k w~_k log q(z_k)`: to be ascended in the family, in nats. The wake-phase update of q.

    It estimates minus the cross-entropy from the posterior to the family. Draws and normalized weights are constant: the
    gradient is consistent, with a bias of order 1 / particles.

    Raises:
        EstimatorError: the log density of the family is not that of its draws.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))
        >>> @ppl.expectation
        ... def objective(mean):
        ...     family = ppl.program(lambda: ppl.sample("z", dist.Normal(mean, 1.0)))
        ...     return ppl.objectives.wake_phi(model(), family(), particles=1000)
        >>> bool(abs(objective.grad(jax.random.key(0), 0.5, samples=100) + 0.5) < 0.03)
        True
    """
    at_least(2, particles, "wake_phi")
    check_scores(family, "wake_phi")
    constant_model = held(model)

    def particle(_: Any) -> Any:
        trace, log_q = simulate(family.detach())
        return constant(constant_model.log_density(trace) - log_q), log_q

    log_w, log_q = jax.vmap(particle)(jnp.arange(particles))
    return jnp.sum(jax.nn.softmax(log_w) * log_q)


def sleep_phi(model: Bound, family: Callable[[dict[str, Any]], Bound], observed: Sequence[str]) -> Any:
    """`E_p(x,z)[log q(z | x)]`: to be ascended in the family, in nats; unbiased. The sleep-phase update of q.

    Args:
        model: a bound program that is *not* conditioned: it dreams data and latents.
        family: from a dict of dreamt data, by name, to the bound family of the other latents.
        observed: the names of the data at the top level of the model's trace.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def model():
        ...     ppl.sample("x", dist.Normal(ppl.sample("z", dist.Normal(0.0, 1.0)), 1.0))
        >>> @ppl.program
        ... def family(slope, x):
        ...     ppl.sample("z", dist.Normal(slope * x, 0.5**0.5))
        >>> @ppl.expectation
        ... def objective(slope):
        ...     return ppl.objectives.sleep_phi(model(), lambda data: family(slope, data["x"]), ["x"])
        >>> bool(abs(objective.grad(jax.random.key(0), 0.5, samples=10_000)) < 0.05)  # the posterior
        True
    """
    trace, _ = simulate(model.detach())
    missing = [name for name in observed if name not in trace]
    if missing:
        raise errors.MissingAddressError(
            f"sleep_phi dreams its data, and the model draws no {missing[0]!r}: give it without conditioning; it draws "
            f"{', '.join(map(repr, trace))}."
        )
    trace = jax.lax.stop_gradient(trace)
    data = {name: trace[name] for name in observed}
    return family(data).log_density({name: value for name, value in trace.items() if name not in data})
