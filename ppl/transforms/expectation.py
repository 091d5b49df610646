"""`expectation`: an objective that may draw samples, as functions with unbiased values and gradients."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ppl import errors
from ppl.densities import batched_distribution, draw, per_lane
from ppl.estimators import Estimator, Particle, Reparameterize, choose
from ppl.site import DETERMINISTIC, FACTOR, OBSERVED, SAMPLE, SUBSAMPLE, PlateAxis, Site, rebind, restore
from ppl.transforms.interpret import run_staged
from ppl.transforms.partition import combine, partition
from ppl.transforms.seed import random_inputs
from ppl.transforms.simulate import given_value, refuse_improper
from ppl.transforms.stage import Located, check_addresses, sites, stage


class SampleAxis(PlateAxis):
    """The axis of independent repetitions of an objective."""


@dataclasses.dataclass(frozen=True)
class Surrogate:
    """Each site becomes a weighted value; the total is the log weight, for each repetition where there are several."""

    repetitions: int | None = None
    weighted: bool = True

    def records(self, located: Located) -> bool:
        return False

    def zero(self) -> Any:
        if not self.weighted:
            return None
        return jnp.zeros(() if self.repetitions is None else (self.repetitions,), jnp.result_type(float))

    def in_lane(self, axis: PlateAxis | None) -> Surrogate:
        return Surrogate(None, self.weighted) if isinstance(axis, SampleAxis) else self

    def join(self, axis: PlateAxis | None, size: int, totals: Any) -> Any:
        return totals if totals is None or isinstance(axis, SampleAxis) else jnp.sum(totals, axis=0)

    def check(self, eqn: Any, site: Site) -> None:
        return

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        if site.kind == DETERMINISTIC:
            return given_value(site, leaves), None, None
        if site.kind in (OBSERVED, FACTOR):
            raise errors.ObjectiveError(
                f"the objective states {site.kind} {site.name!r}, and has no density that it could count in.\n"
                f"  {site.where}\nPut it into a program and use that program's log density."
            )
        refuse_improper(site)
        if site.kind == SUBSAMPLE:
            return draw(site, leaves, key), None, None
        if site.detached:
            return jax.lax.stop_gradient(draw(site, leaves, key)), None, None
        particle = self._particle(site, leaves, key)
        if particle.log_weight is None:
            return particle.value, None, None
        return particle.value, None, self._per_repetition(particle.log_weight)

    def _particle(self, site: Site, leaves: Sequence[Any], key: Any) -> Particle:
        distribution = restore(site, leaves).distribution
        estimator = estimator_of(site)
        reason = estimator.refuses(distribution, site)
        if reason is not None:
            raise errors.EstimatorError(
                f"{type(estimator).__name__} cannot serve {site.name!r} ~ {site.distribution_name}: {reason}.\n"
                f"  {site.where}\nLeave the choice open, or use with_estimators to name another."
            )
        batched = batched_distribution(site, leaves) if site.plates else distribution
        if batched is not None:
            return estimator.particle(key, batched)
        return per_lane(site, leaves, key, estimator.particle)

    def _per_repetition(self, log_weight: Any) -> Any:
        if self.repetitions is None:
            return jnp.sum(log_weight)
        return jnp.sum(jnp.reshape(log_weight, (self.repetitions, -1)), axis=1)


def estimator_of(site: Site) -> Estimator:
    """The estimator in force at a site: the user's, or one chosen by the types of its distribution."""
    if site.estimator is not None:
        return site.estimator
    template = restore(site, [0.0] * site.tree.num_leaves).distribution
    return choose(template, site)


def _takes_noise(site: Site) -> bool:
    return site.detached or isinstance(estimator_of(site), Reparameterize)


def _weighted(site: Site) -> bool:
    return site.kind == SAMPLE and not site.detached and not isinstance(estimator_of(site), Reparameterize)


class Expectation:
    """The expected value of a function that draws samples. See `expectation`."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        functools.update_wrapper(self, function, updated=())

    def estimate(self, key: Any, *args: Any, samples: int | None = None, **kwargs: Any) -> Any:
        """An unbiased estimate of the expectation: the mean of `samples` independent evaluations (one if None).

        It is also the surrogate: an ordinary JAX function whose derivatives in `args`, of any order, are unbiased
        estimates of the derivatives of the expectation.
        """
        if samples is not None and samples < 1:
            raise errors.ObjectiveError(f"samples must be at least 1, got {samples}")
        staged = stage(self._repeated(samples), *args, **kwargs)
        check_addresses([located for located in sites(staged.jaxpr.jaxpr) if not located.site.simulated])
        weighted = any(_weighted(located.site) for located in sites(staged.jaxpr.jaxpr))
        inputs = random_inputs(key, staged.jaxpr.jaxpr, _takes_noise)
        value, record = run_staged(staged, Surrogate(samples, weighted), inputs)
        if weighted:
            value = value * jnp.exp(record.total - jax.lax.stop_gradient(record.total)).astype(value.dtype)
        return value if samples is None else jnp.mean(value, axis=0)

    def _repeated(self, samples: int | None) -> Callable[..., Any]:
        @functools.wraps(self.function, updated=())
        def one(*args: Any, **kwargs: Any) -> Any:
            value = self.function(*args, **kwargs)
            if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
                raise errors.ObjectiveError(
                    f"the objective {self.__name__!r} must return one real number, got {jax.tree.map(jnp.shape, value)}."  # type: ignore[attr-defined]
                )
            return jnp.asarray(value)

        if samples is None:
            return one

        def repeated(*args: Any, **kwargs: Any) -> Any:
            return jax.vmap(lambda: one(*args, **kwargs), axis_size=samples, axis_name=SampleAxis("samples"))()

        return repeated

    def value_and_grad(
        self, key: Any, *args: Any, argnums: int | Sequence[int] = 0, samples: int | None = None, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Unbiased estimates of the expectation and of its gradient in `args[argnums]`.

        The gradient has the structure of the argument, with None for leaves that are no floating-point arrays (the
        functions and integers inside a network, for example).
        """
        numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
        if any(not -len(args) <= n < len(args) for n in numbers):
            raise errors.ObjectiveError(f"argnums={argnums} does not fit {len(args)} arguments")
        trainable, fixed = zip(*(partition(args[n]) for n in numbers), strict=True)

        def surrogate(trainable: Any) -> Any:
            full = list(args)
            for n, arrays, rest in zip(numbers, trainable, fixed, strict=True):
                full[n] = combine(arrays, rest)
            return self.estimate(key, *full, samples=samples, **kwargs)

        value, grads = jax.value_and_grad(surrogate)(trainable)
        return value, grads[0] if isinstance(argnums, int) else grads

    def grad(self, key: Any, *args: Any, **kwargs: Any) -> Any:
        """The gradient of `value_and_grad`."""
        return self.value_and_grad(key, *args, **kwargs)[1]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One unbiased draw, for use inside another objective: sums and scalings of expectations stay unbiased."""
        staged = stage(self.function, *args, **kwargs)
        check_addresses([located for located in sites(staged.jaxpr.jaxpr) if not located.site.simulated])
        return run_staged(staged, _Nested())[0]

    def __repr__(self) -> str:
        return f"expectation({self.__name__})"  # type: ignore[attr-defined]


class _Nested(Surrogate):
    def zero(self) -> Any:
        return None

    def join(self, axis: PlateAxis | None, size: int, totals: Any) -> Any:
        return None

    def in_lane(self, axis: PlateAxis | None) -> _Nested:
        return self

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        return rebind(site, leaves, simulated=True), None, None


def expectation(function: Callable[..., Any]) -> Expectation:
    """Make an objective of a function that may draw samples and returns one real number.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.expectation
        ... def second_moment(mean):
        ...     return ppl.sample("x", dist.Normal(mean, 1.0)) ** 2
        >>> value, grad = second_moment.value_and_grad(jax.random.key(0), 2.0, samples=100_000)
        >>> bool(abs(value - 5.0) < 0.1), bool(abs(grad - 4.0) < 0.1)
        (True, True)
    """
    return Expectation(function)
