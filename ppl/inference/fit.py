"""`Fit`: what an optimization ends with, and what can be asked of it."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ppl import errors
from ppl.diagnostics import check as checks
from ppl.diagnostics import draws as drawn
from ppl.diagnostics import handover, plots
from ppl.diagnostics.predictive import posterior_predictive, prior_predictive
from ppl.diagnostics.resample import resample
from ppl.diagnostics.to_arviz import to_arviz
from ppl.inference import saving
from ppl.objectives.elbo import elbo
from ppl.program import Bound
from ppl.transforms.expectation import Expectation


@dataclasses.dataclass(frozen=True)
class Fit:
    """The end of an optimization.

    Attributes:
        params: the parameters, in the structure they came in.
        history: the estimate of the objective at each step, an array of shape `(steps,)`.
        optimizer_state: optax's, to go on from.
        estimator_state: the moving averages of baselines, by site.
        model: the model that was fitted, a bound program or a function from parameters to one; None if not told.
        family: the variational family, a function from parameters to a bound program; None if not told.
        state: all that the run goes on from, by `maximize(..., state=fit.state)`.
        stopped: why it ended: "steps", "plateau", "callback"; "not finite" or "interrupted" in the fit that an error carries.

    Of several objectives, `history`, `optimizer_state` and `estimator_state` are dicts by their names.

    Every method that draws takes an explicit key, and needs `model` or `family` or both, which `ppl.maximize(..., model=,
    family=)` remembers. Traces are nested dicts of arrays, with a leading axis of draws.

    Example:
        >>> import jax, jax.numpy as jnp, ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def model():
        ...     z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ...     ppl.sample("x", dist.Normal(z, 1.0), obs=1.0)
        >>> family = ppl.program(lambda params: ppl.sample("z", dist.Normal(params["mean"], 0.5**0.5)))
        >>> fit = ppl.Fit({"mean": jnp.array(0.5)}, jnp.zeros(0), None, model=model(), family=family)
        >>> fit.sample(jax.random.key(0), 1000)["z"].shape
        (1000,)
        >>> report = fit.check(jax.random.key(1))
        >>> report.ok, str(report.log_evidence)
        (True, '-1.5155 +- 0.0000')
    """

    params: Any
    history: Any
    optimizer_state: Any
    estimator_state: Any = dataclasses.field(default_factory=dict)
    model: Any = None
    family: Any = None
    state: Any = None
    stopped: str = "steps"

    def __repr__(self) -> str:
        histories = self.history if isinstance(self.history, dict) else {"objective": self.history}
        steps = min(len(history) for history in histories.values())
        tail = max(1, steps // 10)
        if not steps:
            return "Fit(steps=0)"
        means = ", ".join(f"{name}={history[-tail:].mean():.4f}" for name, history in histories.items())
        return f"Fit(steps={steps}, {means} (mean of the last {min(tail, steps)} steps))"

    @property
    def _watched(self) -> Any:
        """The history of the objective, the first of several."""
        return next(iter(self.history.values())) if isinstance(self.history, dict) else self.history

    @functools.cached_property
    def posterior(self) -> Bound:
        """The family at the fitted parameters, a bound program. Its `log_density` scores a trace."""
        return _bound(self.family, self.params, "family")

    @functools.cached_property
    def target(self) -> Bound:
        """The model, at the fitted parameters if it has some, a bound program."""
        return _bound(self.model, self.params, "model")

    def sample(self, key: Any, n: int) -> Any:
        """Draws from the fitted family: traces with leading axis `n`."""
        return drawn.sample(self.posterior, key, n)

    def resample(self, key: Any, n: int, *, particles: int | None = None) -> Any:
        """Draws from the fitted family, chosen by importance weights; see `ppl.diagnostics.resample.resample`. Needs ArviZ."""
        return resample(self.target, self.posterior, key, n, particles)

    def predictive(
        self,
        key: Any,
        n: int,
        *,
        model: Any = None,
        prior: bool = False,
        intervene: Mapping[str, Any] | None = None,
        redraw: Sequence[str] = (),
    ) -> Any:
        """Posterior predictive draws of all of a model's sites, with leading axis `n`; from the prior where that is asked for.

        `model` is another model with the same latents, with new covariates for example; the fitted one if None. See
        `ppl.diagnostics.predictive.posterior_predictive`.
        """
        model = self.target if model is None else _bound(model, self.params, "model")
        if prior:
            return prior_predictive(model, key, n, intervene=intervene)
        return posterior_predictive(model, self.posterior, key, n, intervene=intervene, redraw=redraw)

    def check(
        self, key: Any, *, draws: int = 4000, model: Any = None, family: Any = None, objective: Expectation | None = None
    ) -> checks.Check:
        """Did it work? See `ppl.diagnostics.check.check`; needs ArviZ.

        Args:
            key: a PRNG key.
            draws: of the family.
            model, family: others than those of the fit: bound to all data where training saw minibatches, for example.
            objective: what was optimized, as a function of the parameters, to see whether its gradient is at rest; the ELBO if
                None, and nothing where there were several objectives, of which the ELBO need not be one.
        """
        model, family = self.model if model is None else model, self.family if family is None else family
        bound = _bound(model, self.params, "model"), _bound(family, self.params, "family")
        if objective is None and not isinstance(self.history, dict):
            objective = Expectation(lambda params: elbo(_bound(model, params, "model"), _bound(family, params, "family")))
        return checks.check(*bound, key, draws=draws, history=self._watched, objective=objective, params=self.params)

    def to_arviz(self, key: Any, n: int = 1000) -> Any:
        """ArviZ's `InferenceData`, see `ppl.diagnostics.to_arviz.to_arviz`; needs ArviZ."""
        return to_arviz(self.target, self.posterior, key, n)

    def initial_values(self, key: Any, chains: int) -> Any:
        """Where Markov chains may start, see `ppl.diagnostics.handover.initial_values`."""
        return handover.initial_values(self.target, self.posterior, key, chains)

    def metropolis(self, key: Any, n: int, chains: int = 4) -> handover.Chains:
        """Markov chains that the family proposes for, see `ppl.diagnostics.handover.metropolis`."""
        return handover.metropolis(self.target, self.posterior, key, n, chains)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write parameters, history and states to a file that `ppl.load` reads: arrays and JSON in a zip archive, no code.

        Model and family are programs, and are not saved, nor is the state of the run, which checkpoints keep. The file is
        written beside its place and then moved there, so that a crash leaves the old one as it was.
        """
        saving.save(self, path)

    def plot_loss(self, figure: Any = None, axes: Any = None) -> Any:
        """The (first) objective over the steps, see `ppl.diagnostics.plots.loss`; needs matplotlib."""
        return plots.loss(self._watched, figure=figure, axes=axes)

    def plot_densities(self, key: Any, reference: Any = None, *, n: int = 4000, figure: Any = None) -> Any:
        """Marginal densities, beside draws of a reference, see `ppl.diagnostics.plots.densities`; needs matplotlib."""
        return plots.densities(self.sample(key, n), reference, figure=figure)

    def plot_pairs(self, key: Any, reference: Any = None, *, n: int = 4000, figure: Any = None) -> Any:
        """Densities and pairs, beside draws of a reference, see `ppl.diagnostics.plots.pairs`; needs matplotlib."""
        return plots.pairs(self.sample(key, n), reference, figure=figure)

    def plot_forest(self, key: Any, reference: Any = None, *, n: int = 4000, figure: Any = None, axes: Any = None) -> Any:
        """Intervals of all latents, beside a reference, see `ppl.diagnostics.plots.forest`; needs matplotlib."""
        return plots.forest(self.sample(key, n), reference, figure=figure, axes=axes)


def _bound(program: Any, params: Any, what: str) -> Bound:
    """A program at some parameters."""
    if program is None:
        raise errors.FitError(f"the fit was not told its {what}. Pass it where it is made: ppl.maximize(..., {what}=...).")
    found = program if isinstance(program, Bound) else program(params)
    if not isinstance(found, Bound):
        raise errors.FitError(
            f"the {what} must be a bound program, or a function from parameters to one; "
            f"{program!r} gave {type(found).__name__}. Did you call the program with its arguments?"
        )
    return found
