"""`expectation`: an objective that may draw samples, as functions with unbiased values and gradients."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import errors
from ppl.estimators import Reparameterize
from ppl.notes import EXPECTATION, note
from ppl.samples import Samples, as_samples
from ppl.site import SAMPLE, Site, rebind
from ppl.transforms.algebra import Algebra
from ppl.transforms.baselines import Outcome, State, check_state, initial_state, next_state, outcome
from ppl.transforms.check import Report, check
from ppl.transforms.draws import sole_value
from ppl.transforms.expand import expanded
from ppl.transforms.inforce import Table, estimators_of
from ppl.transforms.interpret import Inputs, run_staged
from ppl.transforms.kinds import refuse_misuse
from ppl.transforms.partition import combine, partition
from ppl.transforms.plan import SitePlan, choose_elements, chosen_estimator, first_choice, make_plan
from ppl.transforms.seed import Seed, random_inputs
from ppl.transforms.stage import Staged, check_addresses, sites, stage_objective
from ppl.transforms.surrogate import Frame, run_steps

LANES = "repetitions of the objective"
"""The name of the axis of independent repetitions."""


@dataclasses.dataclass(frozen=True)
class Draw(Seed):
    """Each site becomes a draw that can be differentiated: for objectives in which no site has a weight."""

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        estimator = chosen_estimator(site) if site.kind == SAMPLE and not site.detached else None
        return sole_value(site, leaves, key, estimator), None, None


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float)


def _outline(leaf: Any) -> str:
    if not _is_array(leaf):
        return repr(leaf)
    return f"{jnp.result_type(leaf)} of shape {jnp.shape(leaf)}"


def _takes_noise(plan: SitePlan | None) -> bool:
    return plan is not None and (plan.site.detached or (isinstance(plan.estimator, Reparameterize) and not plan.weighted))


class Expectation(Algebra):
    """The expected value of a function that draws samples. See `expectation`, and `Algebra` for what can be made of them."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        functools.update_wrapper(self, function, updated=())

    def estimate(
        self, key: Any, *args: Any, samples: int | Samples | None = None, state: State | None = None, **kwargs: Any
    ) -> Any:
        """An unbiased estimate of the expectation: the mean of `samples` independent evaluations (one if None;
        `ppl.Samples` evaluates them in chunks, or on several devices).

        It is also the surrogate: an ordinary JAX function whose derivatives in `args`, of any order, are unbiased
        estimates of the derivatives of the expectation.

        With a `state` (see `init_state`), it returns the estimate and the next state.
        """
        outcome, after = self._evaluate(key, args, kwargs, samples, state)
        return outcome.value if state is None else (outcome.value, after)

    def init_state(self, *args: Any, **kwargs: Any) -> State:
        """The state of the moving-average baselines in force, before the first step; empty where there are none."""
        jaxpr = self._stage(args, kwargs).jaxpr
        return initial_state(first_choice(jaxpr.jaxpr, jaxpr.consts))

    def baseline_loss(
        self, key: Any, *args: Any, samples: int | Samples | None = None, state: State | None = None, **kwargs: Any
    ) -> Any:
        """The squared error of all `Learned` baselines, to be minimized in what predicts them. Zero where there are none.

        With the key of `estimate`, it is the error of the predictions that were used there.
        """
        return self._evaluate(key, args, kwargs, samples, state)[0].loss

    def training_loss(
        self, key: Any, *args: Any, sign: float, samples: int | Samples | None = None, state: State | None = None, **kwargs: Any
    ) -> tuple[Any, tuple[Any, State]]:
        """`sign` times the estimate, plus the loss of its baselines: what a step of training minimizes. Also the estimate and
        the next state."""
        outcome, after = self._evaluate(key, args, kwargs, samples, state)
        return sign * outcome.value + outcome.loss, (outcome.value, after)

    def _evaluate(
        self, key: Any, args: Any, kwargs: Any, samples: int | Samples | None, state: State | None
    ) -> tuple[Outcome, State]:
        return evaluate(self._stage(args, kwargs), key, None if samples is None else as_samples(samples), state)

    def _stage(self, args: Any, kwargs: Any) -> Staged:
        def one(*args: Any, **kwargs: Any) -> Any:
            value = self.function(*args, **kwargs)
            if not _is_array(value) or jnp.shape(value) != () or not jnp.issubdtype(jnp.result_type(value), jnp.floating):
                raise errors.ObjectiveError(
                    f"the objective {self.__name__!r} must return one real number, a floating-point scalar; got "  # type: ignore[attr-defined]
                    f"{jax.tree.map(_outline, value)}."
                )
            return jnp.asarray(value)

        staged = expanded(stage_objective(one, *args, **kwargs), stage_objective)
        refuse_misuse(staged.jaxpr.jaxpr)
        check_addresses([located for located in sites(staged.jaxpr.jaxpr) if not located.site.simulated])
        return staged

    def value_and_grad(
        self,
        key: Any,
        *args: Any,
        argnums: int | Sequence[int] = 0,
        samples: int | Samples | None = None,
        state: State | None = None,
        **kwargs: Any,
    ) -> Any:
        """Unbiased estimates of the expectation and of its gradient in `args[argnums]`; with a `state`, the next one too.

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
            outcome, after = self._evaluate(key, full, kwargs, samples, state)
            return outcome.value, after

        (value, after), grads = jax.value_and_grad(surrogate, has_aux=True)(trainable)
        found = grads[0] if isinstance(argnums, int) else grads
        return (value, found) if state is None else (value, found, after)

    def grad(self, key: Any, *args: Any, **kwargs: Any) -> Any:
        """The gradient of `value_and_grad`; with a `state`, the next one too."""
        _, *rest = self.value_and_grad(key, *args, **kwargs)
        return rest[0] if len(rest) == 1 else tuple(rest)

    def estimators(self, *args: Any, argnums: int | Sequence[int] = 0, **kwargs: Any) -> Table:
        """The estimators in force, a row for each random choice; prints as a table. Runs and compiles nothing.

        Args:
            args: as for `value_and_grad`, whose `argnums` say what is differentiated.

        Raises:
            EstimatorError: no estimator serves a site (`check` reports all of these).

        Example:
            >>> import ppl, ppl.distributions as dist
            >>> @ppl.expectation
            ... def objective(p):
            ...     x = ppl.sample("x", dist.Normal(p, 1.0))
            ...     return x * ppl.sample("b", dist.Bernoulli(logits=p))
            >>> for row in objective.estimators(0.3):
            ...     print(row.address, type(row.estimator).__name__, row.branches, row.why)
            x Reparameterize 1 draws have right pathwise derivatives
            b Enumerate 2 few values
        """
        return estimators_of(self, args, kwargs, argnums)

    def check(self, *args: Any, argnums: int | Sequence[int] = 0, **kwargs: Any) -> Report:
        """Every condition for unbiased gradients that can be decided without running: those that fail, with file and line.

        The conditions: the objective is continuous in what gradients flow through, along draws and past them; every estimator
        is unbiased and serves its distribution; families stay within, and cover, the supports of their models; draws of nested
        expectations are used linearly. Continuity is decided by analysis of the jaxpr and by a few evaluations of small pieces
        of it in NumPy.

        Args:
            args: as for `value_and_grad`, whose `argnums` say what is differentiated.

        Returns:
            A report with `ok`, `findings` and `sites`.

        Example:
            >>> import jax.numpy as jnp, ppl, ppl.distributions as dist
            >>> @ppl.expectation
            ... def chance(mean):
            ...     return jnp.where(ppl.sample("x", dist.Normal(mean, 1.0)) > 0.0, 1.0, 0.0)
            >>> report = chance.check(0.5)
            >>> report.ok, [(finding.address, finding.condition, finding.severity) for finding in report]
            (False, [('x', 'continuity', 'fails')])
        """
        return check(self, evaluate, args, kwargs, argnums)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One unbiased draw, for use inside another objective: sums, scalings and products of independent draws stay unbiased.

        Nonlinear functions of it do not; `check` finds them.
        """
        staged = expanded(stage_objective(self.function, *args, **kwargs), stage_objective)
        check_addresses([located for located in sites(staged.jaxpr.jaxpr) if not located.site.simulated])
        return note(run_staged(staged, _Nested())[0], EXPECTATION, self.__name__)  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return f"expectation({self.__name__})"  # type: ignore[attr-defined]


class _Nested(Seed):
    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        return rebind(site, leaves, simulated=True), None, None


def evaluate(staged: Staged, key: Any, samples: Samples | None, state: State | None) -> tuple[Outcome, State]:
    """The surrogate of a staged objective, averaged over independent repetitions, and the next state of its baselines."""
    jaxpr, consts = staged.jaxpr.jaxpr, staged.jaxpr.consts
    choices = first_choice(jaxpr, consts)
    plan = make_plan(jaxpr, consts, choices) if any(site.weighted for site in choices.values()) else None
    chosen = choices if plan is None else plan.sites

    def inputs(key: Any, count: int | None) -> Inputs:
        return random_inputs(key, jaxpr, lambda site_id: _takes_noise(chosen.get(site_id)), count)

    before = check_state(chosen, state)

    def one(inputs: Inputs) -> Outcome:
        if plan is None:
            value = run_staged(staged, Draw(), inputs)[0]
            return Outcome(value, jnp.zeros_like(value), {})
        wanted = [*plan.terms.numbers, *plan.terms.others]
        elements = choose_elements(plan, inputs.keys)
        values, weights = run_steps(plan.steps, [], Frame(plan, inputs.keys, chosen=elements), wanted)
        return outcome(plan, values, weights, elements, before, None if samples is None else LANES)

    def mean_of(samples: Samples, key: Any, count: int) -> Outcome:
        found = jax.vmap(one, axis_name=LANES, axis_size=count)(samples.place(inputs(key, count)))
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), found)

    if samples is None:
        found = one(inputs(key, None))
    elif samples.chunk is None:
        found = mean_of(samples, key, samples.number)
    else:
        found = _in_chunks(functools.partial(mean_of, samples), key, samples.number // samples.chunk, samples.chunk)
    return found, next_state(chosen, before, found.returns)


def _in_chunks(mean_of: Callable[[Any, int], Outcome], key: Any, chunks: int, size: int) -> Outcome:
    """The mean over chunks, one in memory at a time: for the gradient each is computed again."""
    body = jax.checkpoint(lambda key: mean_of(key, size))
    keys = jax.random.split(key, chunks)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(body, keys[0]))
    found, _ = jax.lax.scan(lambda total, key: (jax.tree.map(jnp.add, total, body(key)), None), zero, keys)
    return jax.tree.map(lambda x: x / chunks, found)


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
