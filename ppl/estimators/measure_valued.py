"""Measure-valued derivatives: the derivative of a density as a multiple of the difference of two densities."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from ppl.estimators.enumerate import support_size
from ppl.estimators.local_expectation import local_branches
from ppl.estimators.protocol import EACH, Branches, is_unknown
from ppl.estimators.weak_derivatives import WEAK_DERIVATIVES, Draw
from ppl.site import Site


class _Served(NamedTuple):
    """A base distribution, its batch shape, and the transforms from it to the site's distribution."""

    base: Any
    shape: tuple[int, ...]
    transforms: tuple[Any, ...]
    derive: Callable[[Any, Any, tuple[int, ...]], Draw]
    parameters: tuple[str, ...]
    constants: tuple[str, ...]

    def varying(self) -> tuple[str, ...]:
        """Parameters that are not constant, if the distribution holds `unknown` for these."""
        return tuple(name for name in self.parameters if _varies(self.base, name))


def _varies(base: Any, name: str) -> bool:
    stated = [vars(base)[n] for n in ((name, "logits") if name == "probs" else (name,)) if n in vars(base)]
    return any(is_unknown(value) for value in stated)


def _served(distribution: Any) -> _Served | None:
    shape = tuple(distribution.batch_shape)
    transforms: tuple[Any, ...] = ()
    base = distribution
    while isinstance(base, dist.ExpandedDistribution | dist.TransformedDistribution):
        if isinstance(base, dist.TransformedDistribution):
            if any(t.domain.event_dim or t.codomain.event_dim for t in base.transforms):
                return None
            transforms = (*base.transforms, *transforms)
        base = base.base_dist
    if not type(base).__module__.startswith(("numpyro.", "ppl.")):
        return None  # a subclass may draw in another way
    known = next((known for kind, known in WEAK_DERIVATIVES.items() if isinstance(base, kind)), None)
    return None if known is None else _Served(base, shape, transforms, *known)


@dataclasses.dataclass(frozen=True)
class MeasureValued:
    """A draw, and coupled draws x+ and x- for each parameter of one element at a time (Mohamed et al. 2020, sec. 6).

    The gradient in a parameter is `c * (k(x+) - k(x-))`, where the derivative of the density is c times the difference of the
    densities of x+ and x-; no derivative of the cost k is taken, which may be discontinuous. x+ and x- share their random
    numbers, and one of them is the draw itself where that has the right density. N coupled elements with P parameters that are
    not constant take up to 2 N P evaluations more than a draw; independent elements of a plate branch together.

    Serves the mean and scale of Normal and Laplace; HalfNormal; Exponential; both parameters of Gamma and Beta; Dirichlet; the
    scale of Weibull; the bounds of Uniform; Poisson; Geometric; Bernoulli, Binomial and Categorical; and elementwise transforms
    of these that are constant, such as LogNormal and InverseGamma. Derivatives are of the first order.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.expectation
        ... def positive(mean):
        ...     x = ppl.sample("x", dist.Normal(mean, 1.0), estimator=ppl.estimators.MeasureValued())
        ...     return 1.0 * (x > 0)
        >>> g = positive.grad(jax.random.key(0), 0.0, samples=20_000)  # exactly 0.3989
        >>> bool(abs(g - 0.3989) < 0.01)
        True
    """

    unbiased: bool = dataclasses.field(default=True, init=False)
    coupling = EACH
    axis: Hashable | None = dataclasses.field(default=None, init=False)
    varying: tuple[str, ...] | None = dataclasses.field(default=None, init=False, repr=False)

    def refuses(self, distribution: Any, site: Site) -> str | None:
        if _categorical(distribution) and support_size(distribution) is not None:
            return None
        served = _served(distribution)
        if served is None:
            return f"no decomposition of the derivative of {site.distribution_name} into two densities is known to it"
        if any(is_unknown(leaf) for leaf in jax.tree.leaves(served.transforms)):
            return "the parameters of its transform are not constant"
        unserved = [name for name in served.constants if _varies(served.base, name)]
        if unserved:
            return f"its parameter {unserved[0]!r} is not constant, and can be served for {', '.join(served.parameters)} alone"
        return None

    def specialize(self, distribution: Any) -> MeasureValued:
        """Itself with branches for the parameters alone that are not constant."""
        served = _served(distribution)
        special = copy.copy(self)
        object.__setattr__(special, "varying", () if served is None else served.varying())
        return special

    def branches(self, distribution: Any) -> int:
        return jax.eval_shape(lambda: self.particle(jax.random.key(0), distribution).weights).shape[0]

    def particle(self, key: Any, distribution: Any) -> Branches:
        if _categorical(distribution):
            return local_branches(key, distribution, distribution.enumerate_support(expand=True))
        served = _served(distribution)
        assert served is not None
        draw = served.derive(key, served.base, served.shape)
        names = served.parameters if self.varying is None else self.varying
        values, weights = [draw.value], [jnp.ones(served.shape)]
        for slope in (slope for name in names for slope in draw.slopes[name]):
            change = (slope.parameter - jax.lax.stop_gradient(slope.parameter)) * jax.lax.stop_gradient(slope.coefficient)
            for value, weight in ((slope.plus, change), (slope.minus, -change)):
                if value is None:
                    weights[0] = weights[0] + weight
                else:
                    values.append(jnp.broadcast_to(value, jnp.shape(draw.value)))
                    weights.append(jnp.broadcast_to(weight, served.shape))
        stacked = jax.lax.stop_gradient(jnp.stack(values))
        for transform in served.transforms:
            stacked = transform(stacked)
        return Branches(stacked, jnp.stack(weights))


def _categorical(distribution: Any) -> bool:
    while isinstance(distribution, dist.ExpandedDistribution):
        distribution = distribution.base_dist
    return isinstance(distribution, dist.CategoricalProbs | dist.CategoricalLogits)
