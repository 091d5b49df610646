"""Bounds for families with auxiliary variables, whose density is an integral."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ppl.objectives.elbo import elbo
from ppl.objectives.iwae import iwae
from ppl.program import Bound
from ppl.transforms.marginal import marginal

Reverse = Bound | Callable[[Any], Bound]


def hvi(model: Bound, family: Bound, keep: str | Sequence[str], reverse: Reverse) -> Any:
    """`E[log p(x, z) + log r(u | z) - log q(u, z)]` (Ranganath et al. 2016, equation 5). In nats.

    The ELBO of the family's marginal over `keep`, less what `reverse` does not know of the auxiliary variables u: a program
    over them, or a function from a trace of the kept values to one.

    Example:
        >>> import jax, jax.numpy as jnp, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, jnp.sqrt(2.0))))
        >>> @ppl.program
        ... def family(mean):
        ...     u = ppl.sample("u", dist.Normal(mean, 1.0))
        ...     ppl.sample("z", dist.Normal(u, 1.0))
        >>> @ppl.program
        ... def back(z):
        ...     ppl.sample("u", dist.Normal(0.5 * z, jnp.sqrt(0.5)))
        >>> @ppl.expectation
        ... def objective(mean):
        ...     return ppl.objectives.hvi(model(), family(mean), "z", lambda trace: back(trace["z"]))
        >>> value = objective.estimate(jax.random.key(0), 0.0, samples=100)
        >>> bool(abs(value) < 1e-5)  # the marginal is the model, and `back` is exact
        True
    """
    return elbo(model, marginal(family, keep, proposal=reverse, particles=1))


def iwhvi(model: Bound, family: Bound, keep: str | Sequence[str], reverse: Reverse, particles: int) -> Any:
    """`hvi` with the density of the family averaged over `particles` auxiliaries (Sobolev and Vetrov 2019). In nats.

    One of them is the auxiliary that z was drawn with, the others are drawn from `reverse`. Higher with every particle, towards
    the ELBO of the exact marginal.

    Example:
        >>> import jax, jax.numpy as jnp, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, jnp.sqrt(2.0))))
        >>> @ppl.program
        ... def family(mean):
        ...     ppl.sample("z", dist.Normal(ppl.sample("u", dist.Normal(mean, 1.0)), 1.0))
        >>> prior = ppl.program(lambda: ppl.sample("u", dist.Normal(0.0, 1.0)))
        >>> @ppl.expectation
        ... def objective(mean, particles):
        ...     return ppl.objectives.iwhvi(model(), family(mean), "z", prior(), particles)
        >>> one, many = (objective.estimate(jax.random.key(0), 0.0, n, samples=2000) for n in (1, 100))
        >>> bool(one < -0.3), bool(abs(many) < 0.05)  # the exact marginal is the model
        (True, True)
    """
    return elbo(model, marginal(family, keep, proposal=reverse, particles=particles))


def diwhvi(model: Bound, family: Bound, keep: str | Sequence[str], reverse: Reverse, particles: int, outer: int) -> Any:
    """The importance-weighted bound over `outer` draws, each with the density of `iwhvi` (Sobolev and Vetrov 2019). In nats.

    The estimate w of a draw's density has `E[1 / w | z] = 1 / q(z)`, so that this bounds the log evidence from below.

    Example:
        >>> import jax, jax.numpy as jnp, ppl, ppl.distributions as dist
        >>> model = ppl.program(lambda: ppl.sample("z", dist.Normal(0.0, jnp.sqrt(2.0))))
        >>> @ppl.program
        ... def family(mean):
        ...     ppl.sample("z", dist.Normal(ppl.sample("u", dist.Normal(mean, 1.0)), 1.0))
        >>> prior = ppl.program(lambda: ppl.sample("u", dist.Normal(0.0, 1.0)))
        >>> @ppl.expectation
        ... def objective(mean, outer):
        ...     return ppl.objectives.diwhvi(model(), family(mean), "z", prior(), particles=5, outer=outer)
        >>> one, many = (objective.estimate(jax.random.key(0), 0.5, n, samples=2000) for n in (1, 20))
        >>> bool(one < many < 0.02)  # log evidence 0
        True
    """
    return iwae(model, marginal(family, keep, proposal=reverse, particles=particles), particles=outer)
