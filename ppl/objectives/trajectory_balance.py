"""Balance losses: trajectory, sub-trajectory and detailed balance, on draws of the family or of anything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ppl import errors
from ppl.objectives.particles import constant_draw
from ppl.program import Bound
from ppl.transforms.by_site import add_up, log_density_by_site


def trajectory_balance(model: Bound, family: Bound, log_evidence: Any, behaviour: Bound | None = None) -> Any:
    """`(log Z - log w)^2 / 2`, `w = p(x, z) / q(z)`, of one constant draw (Malkin et al. 2022). In squared nats.

    To be minimized in the family, the model and the learned `log_evidence` together: zero where the family is the posterior and
    `log_evidence` the evidence. On draws of the family, its gradient in the family has the mean of that of minus the ELBO,
    draw by draw the score-function gradient with `log_evidence` for a baseline (Malkin et al. 2023, proposition 1).

    Args:
        model: the backward process, or a model conditioned on its data.
        family: the forward process, or a variational family.
        log_evidence: a learned number, in nats.
        behaviour: what draws: a bound program over the same addresses, the family if None. `noisier(forward, 0.1)` explores,
            `family.substitute(trace)` replays a trace. No gradient flows through the draw.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))
        >>> @ppl.expectation
        ... def objective(mean):
        ...     family = ppl.program(lambda: ppl.sample("z", dist.Normal(mean, 1.0)))
        ...     return ppl.objectives.trajectory_balance(model(), family(), log_evidence=0.0)
        >>> g = objective.grad(jax.random.key(0), 0.5, samples=100_000)
        >>> bool(abs(g - 0.5) < 0.02)  # the derivative of KL(q || p) = mean**2 / 2
        True
    """
    trace, log_q = constant_draw(family, behaviour)
    return 0.5 * (log_evidence - model.log_density(trace) + log_q) ** 2


def sub_trajectory_balance(
    backward: Bound,
    forward: Bound,
    log_evidence: Any,
    log_flow: Callable[[Any, Any], Any],
    decay: float = 0.9,
    behaviour: Bound | None = None,
) -> Any:
    """`sum_i<j decay^(j-i) D_ij^2 / 2` over `sum_i<j decay^(j-i)`, of one constant draw (Madan et al. 2023).

    In squared nats.

    `D_ij` is the imbalance of the trajectory from x_i to x_j, `log f_i + sum log F - log f_j - sum log B`, where
    `f_0 = Z q(x_0)`, `f_K` is the target, and the flows between are learned. `decay = inf` is trajectory balance, `decay = 0`
    detailed balance.

    Args:
        backward, forward: processes over the addresses `x` and `end`, as `ppl.transport` makes them.
        log_evidence: a learned number, in nats.
        log_flow: from a state `x_k` and its number k, 0 < k < K, to `log f_k(x_k)` in nats.
        decay: what a sub-trajectory counts less for each step that it is longer.
        behaviour: as in `trajectory_balance`.

    Raises:
        ObjectiveError: the programs are no processes of that kind.

    Example:
        >>> import jax, jax.numpy as jnp, ppl
        >>> from ppl.transport import backward_process, forward_process, gaussian
        >>> walk = forward_process(gaussian(jnp.zeros(1), 1.0), lambda x, k: gaussian(0.6 * x, 0.8), 4)  # stationary
        >>> back = backward_process(gaussian(jnp.zeros(1), 1.0), lambda x, k: gaussian(0.6 * x, 0.8), 4)
        >>> flow = lambda x, k: gaussian(jnp.zeros(1), 1.0).log_prob(x)
        >>> objective = ppl.expectation(lambda z: ppl.objectives.sub_trajectory_balance(back, walk, z, flow))
        >>> bool(objective.estimate(jax.random.key(0), 0.0) < 1e-10)
        True
    """
    balance = _cumulative(backward, forward, log_evidence, log_flow, behaviour)
    n = balance.shape[0]
    difference = balance[None, :] - balance[:, None]
    length = jnp.arange(n)[None, :] - jnp.arange(n)[:, None]
    # Relative to the longest or the shortest, so that the largest weight is one.
    weight = jnp.where(length > 0, jnp.asarray(decay, float) ** (length - (n - 1 if decay > 1 else 1)), 0.0)
    return 0.5 * jnp.sum(weight * difference**2) / jnp.sum(weight)


def detailed_balance(
    backward: Bound, forward: Bound, log_evidence: Any, log_flow: Callable[[Any, Any], Any], behaviour: Bound | None = None
) -> Any:
    """The mean over steps of `(log f_k + log F_k - log f_k+1 - log B_k)^2 / 2`, of one constant draw (Bengio et al. 2023).

    In squared nats. Arguments and errors as in `sub_trajectory_balance`.

    Example:
        >>> import jax, jax.numpy as jnp, ppl
        >>> from ppl.transport import backward_process, forward_process, gaussian
        >>> walk = forward_process(gaussian(jnp.zeros(1), 1.0), lambda x, k: gaussian(0.6 * x, 0.8), 4)
        >>> back = backward_process(gaussian(jnp.zeros(1), 1.0), lambda x, k: gaussian(0.6 * x, 0.8), 4)
        >>> flow = lambda x, k: gaussian(jnp.zeros(1), 1.0).log_prob(x)
        >>> objective = ppl.expectation(lambda z: ppl.objectives.detailed_balance(back, walk, z, flow))
        >>> print(f"{objective.estimate(jax.random.key(0), 2.0):.3f}")  # 2**2 / 2 at the first of four steps
        0.500
    """
    balance = _cumulative(backward, forward, log_evidence, log_flow, behaviour)
    return 0.5 * jnp.mean(jnp.diff(balance) ** 2)


def _cumulative(backward: Bound, forward: Bound, log_evidence: Any, log_flow: Any, behaviour: Bound | None) -> Any:
    """`D_0k` for k = 0 ... K: what of the trajectory up to x_k is out of balance; shape `(K + 1,)`."""
    trace, by_forward = constant_draw(forward, behaviour, by_site=True)
    if sorted(trace) != ["end", "x"]:
        raise errors.ObjectiveError(
            "detailed and sub-trajectory balance are of processes with the addresses 'x' (the states but the last, stacked) "
            f"and 'end', as ppl.transport.forward_process makes them; the forward program has {', '.join(map(repr, trace))}. "
            "Trajectory balance is of any two programs."
        )
    by_backward = log_density_by_site(backward, trace)
    x, end = ([add_up(part, name) for part in (by_forward, by_backward)] for name in ("x", "end"))
    for part in x:
        if jnp.ndim(part) != 1:
            raise errors.ObjectiveError("the address 'x' of a process stands in one scan over its steps")
    arrived = log_evidence + jnp.cumsum(jnp.append(x[0], end[0]))  # log Z q F_1 ... F_k
    returned = jnp.cumsum(x[1])  # log B_1 ... B_k
    k = jnp.arange(1, x[0].shape[0])
    flows = jax.vmap(log_flow)(jax.tree.map(lambda states: states[1:], trace["x"]), k) + returned[:-1]
    between = arrived[1:-1] - flows
    return jnp.concatenate([jnp.reshape(jnp.zeros_like(end[0]), (1,)), between, (arrived[-1] - returned[-1] - end[1])[None]])


__all__ = ["detailed_balance", "sub_trajectory_balance", "trajectory_balance"]
