"""Couplings: programs that draw the ends of paths together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ppl import errors
from ppl.program import Bound, sample
from ppl.site import user_frame
from ppl.transforms.simulate import simulate
from ppl.transport.assignment import assignment
from ppl.transport.pushforward import Flow


def rows(data: Any) -> Bound:
    """A program that draws one row of data, uniformly. Data are any pytree with a common leading axis.

    Example:
        >>> import jax, jax.numpy as jnp, ppl
        >>> point, label = ppl.transport.rows((jnp.ones((10, 2)), jnp.arange(10))).sample(jax.random.key(0))
        >>> point.shape, label.shape
        ((2,), ())
    """
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(lengths) != 1 or () in lengths:
        raise errors.ValueShapeError(f"the arrays of the data have the leading axes {sorted(lengths)}.\n  {user_frame()}")
    ((length,),) = lengths

    def draw() -> Any:
        row = sample("row", dist.DiscreteUniform(0, length - 1))
        return jax.tree.map(lambda x: jnp.asarray(x)[row], data)

    # Detached: which row it is depends on no parameter, so no estimator has anything to do.
    return Bound(draw).detach()


def independent(source: Any, target: Any, size: int | None = None) -> Bound:
    """A program that draws the two ends of a path independently, or `size` such pairs, stacked.

    Args:
        source, target: distributions, or bound programs, whose results are the ends.
        size: the number of pairs.

    Example:
        >>> import jax, jax.numpy as jnp, ppl, ppl.distributions as dist
        >>> data = jnp.linspace(0.0, 1.0, 100)
        >>> coupling = ppl.transport.independent(dist.Normal(0.0, 1.0), ppl.transport.rows(data), size=8)
        >>> x0, x1 = coupling.sample(jax.random.key(0))
        >>> x0.shape, x1.shape
        ((8,), (8,))
    """

    def pair() -> tuple[Any, Any]:
        return sample("source", source), sample("target", target)

    return Bound(pair if size is None else lambda: jax.vmap(lambda _: pair())(jnp.arange(size)))


def squared_distance(x0: Any, x1: Any) -> Any:
    """The sum of squared differences of two points."""
    return sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum((a - b) ** 2), x0, x1)))


def cost_matrix(sources: Any, targets: Any, cost: Callable[[Any, Any], Any] = squared_distance) -> Any:
    """The cost of every pair, `(n, m)`."""
    return jax.vmap(lambda x0: jax.vmap(lambda x1: cost(x0, x1))(targets))(sources)


def optimal(
    coupling: Bound,
    *,
    cost: Callable[[Any, Any], Any] = squared_distance,
    match: Callable[[Any], Any] = assignment,
) -> Bound:
    """A coupling of a batch with its pairs drawn anew so that their cost is least (minibatch OT; Tong et al. 2024, sec. 4.2).

    The targets are permuted: no point is dropped or doubled, so that the marginals of a pair stay what they are. Under a
    condition they do not: the field of a class then sees only the part of the source that is near to it. Draw the condition
    with both ends, `((x0, c), (x1, c))`, and let the cost compare the conditions, so that pairs with equal ones are preferred
    (Cheng and Schwing 2025).

    Args:
        coupling: a bound program that returns stacked sources and targets, for example `independent(..., size=256)`.
        cost: of a source and a target.
        match: from the matrix of costs to a permutation: `assignment`, or `entropic(epsilon)`, which makes random choices.

    Example:
        >>> import jax, jax.numpy as jnp, ppl, ppl.distributions as dist
        >>> pairs = ppl.transport.independent(dist.Normal(0.0, 1.0), dist.Normal(3.0, 1.0), size=64)
        >>> x0, x1 = ppl.transport.optimal(pairs).sample(jax.random.key(0))
        >>> bool(jnp.all(jnp.diff(x1[jnp.argsort(x0)]) >= 0))  # in one dimension: in order
        True
    """

    def draw() -> tuple[Any, Any]:
        sources, targets = sample("pairs", coupling)
        permutation = match(jax.lax.stop_gradient(cost_matrix(sources, targets, cost)))
        return sources, jax.tree.map(lambda x: x[permutation], targets)

    return Bound(draw)


def entropic(epsilon: float, **options: Any) -> Callable[[Any], Any]:
    """A random permutation that follows the entropic plan, by Sinkhorn's iterations (ott-jax): for `optimal(match=...)`.

    Pairs of the plan at regularization `2 sigma^2` (and a cost of squared distances) are the ends of the Schroedinger bridge of
    a Brownian motion of scale sigma (Tong et al. 2024, proposition 3.4). Pairs drawn from the plan one by one would use some
    points twice and others never. So a whole permutation is drawn, the best one for `log plan + Gumbel noise` (Mena et al.
    2018): each point is used once, and pairs follow the plan approximately.

    Args:
        epsilon: the regularization, in units of the cost.
        options: for `ott.solvers.linear.solve`: `max_iterations`, `threshold`, ...

    Raises:
        ImportError: ott-jax is missing.
    """
    try:
        from ott.geometry import geometry
        from ott.solvers import linear
    except ImportError as error:  # pragma: no cover
        raise ImportError("ppl.transport.entropic needs ott-jax: pip install 'ppl[flows]'") from error

    def match(cost: Any) -> Any:
        geom = geometry.Geometry(cost_matrix=cost, epsilon=epsilon)
        plan: Any = linear.solve(geom, **options)
        log_plan = (plan.f[:, None] + plan.g[None, :] - cost) / epsilon
        gumbel = sample("gumbel", dist.Gumbel(jnp.zeros_like(cost), 1.0).to_event(2))
        return assignment(-jax.lax.stop_gradient(log_plan + gumbel))

    return match


def pairs_of(flow: Flow, size: int | None = None) -> Bound:
    """The coupling of a flow's base with where the flow takes it: what rectifying it again trains on (Liu et al. 2023, sec. 2).

    Nothing is differentiated through it.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> flow = ppl.transport.ode_flow(dist.Normal(0.0, 1.0), lambda x, t: 0.0 * x + 2.0)
        >>> x0, x1 = ppl.transport.pairs_of(flow).sample(jax.random.key(0))
        >>> print(f"{x1 - x0:.4f}")
        2.0000
    """
    if not isinstance(flow, Flow) or flow.modifications:
        raise TypeError(f"pairs are those of an unmodified flow (ode_flow, flow), got {flow!r}.\n  {user_frame()}")

    def one() -> tuple[Any, Any]:
        x0 = next(iter(simulate(flow.base.detach())[0].values()))
        return jax.lax.stop_gradient((x0, flow.transport.forward(flow.parameters, x0)))

    return Bound(one if size is None else lambda: jax.vmap(lambda _: one())(jnp.arange(size)))


__all__ = ["cost_matrix", "entropic", "independent", "optimal", "pairs_of", "rows", "squared_distance"]
