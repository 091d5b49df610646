"""`check`: did the fit work? In numbers, and in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from ppl import errors
from ppl.diagnostics import convergence, latents
from ppl.diagnostics.corrections import corrections
from ppl.diagnostics.draws import Draws, weighted
from ppl.diagnostics.findings import NOTE, WARNING, Finding
from ppl.diagnostics.weighable import why_not
from ppl.diagnostics.weights import (
    FEWEST,
    LIGHT,
    Estimate,
    effective_sample_size,
    finite,
    log_mean,
    mean,
    reliable_k_hat,
    smooth,
    tail_weight,
    upper_bound,
)
from ppl.program import Bound
from ppl.site import Address
from ppl.transforms import compare

NOT_KNOWN = Estimate(math.nan, math.nan)


@dataclasses.dataclass(frozen=True)
class Check:
    """What `check` found. Printed, it is a report.

    Attributes:
        draws: from the family, that everything is estimated from.
        elbo: the lower bound `E_q[log w]` of the log evidence, in nats.
        log_evidence: `log mean w`, with the delta method's standard error.
        eubo: the upper bound `E_p[log w]`, from self-normalized weights.
        cubo: the upper bound `log(E_q[w^2]) / 2` (Dieng et al. 2017), which takes a lighter tail (`k_hat` below 1/2).
        k_hat: shape of the weights' tail; minus infinity where they have none.
        k_hat_limit: what it should be below, for this many draws.
        tail_weight: the weight of the tail that `k_hat` is fitted to, over its share of the draws; near 1 where the tail
            decides nothing, whatever its shape.
        effective_sample_size: of the weights.
        signal_to_noise: of the gradient of one draw, where training stopped.
        findings: warnings and notes.

    Numbers that do not exist, for a minibatch for example, are NaN.
    """

    draws: int
    elbo: Estimate = NOT_KNOWN
    log_evidence: Estimate = NOT_KNOWN
    eubo: Estimate = NOT_KNOWN
    cubo: Estimate = NOT_KNOWN
    k_hat: float = math.nan
    k_hat_limit: float = math.nan
    tail_weight: float = math.nan
    effective_sample_size: float = math.nan
    signal_to_noise: float = math.nan
    findings: tuple[Finding, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing speaks against using the fit."""
        return not self.warnings

    @property
    def weights_reliable(self) -> bool:
        """Whether importance weights, and what is estimated from them, can be trusted."""
        return self.k_hat <= self.k_hat_limit or self.tail_weight < LIGHT

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == WARNING]

    def __str__(self) -> str:
        n = len(self.warnings)
        seen = f"from {self.draws:,} draws of the family"
        head = f"nothing speaks against this fit ({seen})" if self.ok else f"{n} warning{'s'[: n - 1]} ({seen})"
        trusted = self.weights_reliable
        doubt = "" if trusted else "  not reliable: see k-hat"
        lost = max(0.0, self.log_evidence.value - self.elbo.value)
        loss = f"; the family loses about {lost:.2g} nats" if trusted else ""
        rows: list[tuple[str, Any, str]] = [("ELBO", self.elbo, f"lower bound{loss}")]
        if not math.isnan(self.k_hat):
            share = self.effective_sample_size / self.draws
            below = "below" if self.k_hat <= self.k_hat_limit else "above" if trusted else "ABOVE"
            rows += [
                ("log evidence", self.log_evidence, doubt.strip()),
                ("upper bound", self.eubo, doubt.strip()),
                ("k-hat", "-inf" if math.isinf(self.k_hat) else f"{self.k_hat:.2f}", f"{below} {self.k_hat_limit:.2f}"),
                ("effective draws", f"{self.effective_sample_size:,.0f}", f"{share:.0%} of the draws, after weighting"),
            ]
        if not math.isnan(self.signal_to_noise):
            rows.append(("gradient signal/noise", f"{self.signal_to_noise:.2g}", "small at an optimum"))
        width = max(len(str(value)) for _, value, _ in rows)
        table = [f"{name:<22} {value!s:<{width}}  {remark}".rstrip() for name, value, remark in rows]
        return "\n".join([head, *table, *map(str, self.findings)])


def check(
    model: Bound,
    family: Bound,
    key: Any,
    *,
    draws: int = 4000,
    history: Any = None,
    objective: Any = None,
    params: Any = None,
) -> Check:
    """Look for what can be wrong with a fitted family.

    The weights `p(x, z) / q(z)` of draws of the family estimate the evidence, and the shape of their tail says whether they
    can (Yao et al. 2018; Vehtari et al. 2024). Then: supports, units that equal their prior, scales at zero, draws that pile up
    at a bound, and whether training has come to rest. A family that misses a far-away mode altogether passes: its draws
    never see it.

    Args:
        model: a bound program, conditioned on its data.
        family: a bound program that draws the model's latents.
        key: a PRNG key.
        draws: of the family, at least 100.
        history: of the objective, to see whether it still moves.
        objective: an expectation, a function of
        params: the parameters, whose gradient is measured there.

    Returns:
        A `Check`.

    Raises:
        ModelFamilyMismatchError: the programs disagree on latents.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> from ppl.diagnostics.check import check
        >>> @ppl.program
        ... def model():
        ...     z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ...     ppl.sample("x", dist.Normal(z, 1.0), obs=1.0)
        >>> family = ppl.program(lambda sd: ppl.sample("z", dist.Normal(0.5, sd)))
        >>> report = check(model(), family(0.2), jax.random.key(0))
        >>> report.ok, bool(report.k_hat > 0.7), report.findings[0].about
        (False, True, 'weights')
    """
    if draws < FEWEST:
        raise errors.FitError(f"a check needs at least {FEWEST} draws, got {draws}")
    draw_key, prior_key, unit_key, gradient_key = jax.random.split(key, 4)
    found: list[Finding] = list(latents.uncovered(model, family))
    numbers: dict[str, Any] = {}
    drawn = weighted(model, family, draw_key, draws)
    reason = why_not(model, family)
    if reason is None:
        try:
            numbers, more = _of_weights(drawn, compare.latents(model))
        except errors.FitError as error:
            more = [Finding("density", WARNING, "", str(error), "Nothing else can be said before that is mended.")]
        found = more + found
    else:
        found.append(reason)
        if reason.severity == NOTE:
            numbers["elbo"] = mean(drawn.log_weights)
    if not latents.points(family):
        found += latents.of_draws(model, family, prior_key, drawn.trace)
        found += latents.inactive(model, family, unit_key, drawn.trace)
    if history is not None:
        found += convergence.of_history(history)
    if objective is not None:
        signal = convergence.signal(objective, params, gradient_key)
        numbers["signal_to_noise"] = signal.signal_to_noise
        found += convergence.of_gradient(signal)
    return Check(draws=draws, findings=tuple(found), **numbers)


def _of_weights(drawn: Draws, addresses: Iterable[Address]) -> tuple[dict[str, Any], list[Finding]]:
    log_w = finite(drawn)
    weights, k_hat = smooth(log_w)
    limit = reliable_k_hat(len(log_w))
    outside = float(np.mean(log_w == -np.inf))
    squared = log_mean(2 * log_w)
    numbers: dict[str, Any] = {
        "elbo": mean(log_w) if outside == 0 else Estimate(-math.inf, math.nan),
        "log_evidence": log_mean(log_w),
        "eubo": upper_bound(log_w),
        "cubo": Estimate(squared.value / 2, squared.standard_error / 2),
        "k_hat": k_hat,
        "k_hat_limit": limit,
        "tail_weight": tail_weight(log_w),
        "effective_sample_size": effective_sample_size(log_w),
    }
    found = []
    if outside > 0:
        found.append(
            Finding(
                "support",
                WARNING,
                "",
                f"{outside:.1%} of the family's draws have density zero under the model.",
                "Give the family the support of the model's latents: its ELBO is minus infinity.",
            )
        )
    if k_hat > limit and numbers["tail_weight"] < LIGHT:
        found.append(
            Finding(
                "weights",
                NOTE,
                "",
                f"k-hat is {k_hat:.2f}: the family's tails are thinner than the posterior's. The tail carries "
                f"{numbers['tail_weight']:.1f} times its share of the weight, so that little depends on it.",
                "Do not use it for rare events: the chance of an extreme value is too low.",
            )
        )
        found += corrections(drawn.trace, addresses, weights)
    elif k_hat > limit:
        found.append(
            Finding(
                "weights",
                WARNING,
                "",
                f"k-hat is {k_hat:.2f}: the family is narrower than the posterior, or misses a part of it. Few draws carry the "
                f"weight (the largest has {weights.max():.0%}).",
                "Do not use its intervals as they are, nor the evidence and upper bound above, which are likely too low. Try a "
                "richer family (full rank, a flow), another parametrization of the model (noncentered), or NUTS from "
                "fit.initial_values.",
            )
        )
    else:
        found += corrections(drawn.trace, addresses, weights)
    return numbers, found


__all__ = ["Check", "check"]
