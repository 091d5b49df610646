"""`expectation`: an objective that may draw samples, as functions with unbiased values and gradients."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ppl import errors
from ppl.estimators import Reparameterize
from ppl.site import SAMPLE, Site, rebind
from ppl.transforms.draws import sole_value
from ppl.transforms.expand import expanded
from ppl.transforms.interpret import Inputs, run_staged
from ppl.transforms.kinds import refuse_misuse
from ppl.transforms.partition import combine, partition
from ppl.transforms.plan import SitePlan, chosen_estimator, first_choice, make_plan
from ppl.transforms.resolve import resolve
from ppl.transforms.seed import Seed, random_inputs
from ppl.transforms.stage import Staged, check_addresses, sites, stage
from ppl.transforms.surrogate import Frame, run_steps

LANES = "repetitions of the objective"
"""The name of the axis of independent repetitions."""


@dataclasses.dataclass(frozen=True)
class Draw(Seed):
    """Each site becomes a draw that can be differentiated: for objectives in which no site has a weight."""

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        estimator = chosen_estimator(site) if site.kind == SAMPLE and not site.detached else None
        return sole_value(site, leaves, key, estimator), None, None


def _takes_noise(plan: SitePlan | None) -> bool:
    return plan is not None and (plan.site.detached or isinstance(plan.estimator, Reparameterize))


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
        staged = self._stage(args, kwargs)
        return estimate(staged, key, samples)

    def _stage(self, args: Any, kwargs: Any) -> Staged:
        def one(*args: Any, **kwargs: Any) -> Any:
            value = self.function(*args, **kwargs)
            if jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
                raise errors.ObjectiveError(
                    f"the objective {self.__name__!r} must return one real number, got {jax.tree.map(jnp.shape, value)}."  # type: ignore[attr-defined]
                )
            return jnp.asarray(value)

        staged = expanded(stage(one, *args, **kwargs))
        refuse_misuse(staged.jaxpr.jaxpr)
        check_addresses([located for located in sites(staged.jaxpr.jaxpr) if not located.site.simulated])
        return staged

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
        staged = expanded(stage(self.function, *args, **kwargs))
        check_addresses([located for located in sites(staged.jaxpr.jaxpr) if not located.site.simulated])
        return run_staged(staged, _Nested())[0]

    def __repr__(self) -> str:
        return f"expectation({self.__name__})"  # type: ignore[attr-defined]


class _Nested(Seed):
    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        return rebind(site, leaves, simulated=True), None, None


def estimate(staged: Staged, key: Any, samples: int | None) -> Any:
    """The surrogate of a staged objective, averaged over independent repetitions."""
    jaxpr, consts = staged.jaxpr.jaxpr, staged.jaxpr.consts
    choices = first_choice(jaxpr)
    plan = make_plan(jaxpr, consts, choices) if any(site.weighted for site in choices.values()) else None
    chosen = choices if plan is None else plan.sites
    inputs = random_inputs(key, jaxpr, lambda site_id: _takes_noise(chosen.get(site_id)), samples)

    def one(inputs: Inputs) -> Any:
        if plan is None:
            return run_staged(staged, Draw(), inputs)[0]
        wanted = [*plan.terms.numbers, *plan.terms.others]
        values, weights = run_steps(plan.steps, [], Frame(plan, inputs.keys), wanted)
        return resolve(plan, values, weights)

    if samples is None:
        return one(inputs)
    return jnp.mean(jax.vmap(one, axis_name=LANES, axis_size=samples)(inputs), axis=0)


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
