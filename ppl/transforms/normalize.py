"""`normalize`: a program that draws from an unnormalized one, by sampling-importance-resampling."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.extend.core import Jaxpr

from ppl import errors
from ppl.address import flatten, nest
from ppl.estimated import Changes, Estimated, EstimatedOperands, Values, bind
from ppl.estimators import Estimator
from ppl.notes import note
from ppl.program import Bound, inline, sample
from ppl.site import SAMPLE, Address, Where, has_value, show, split_estimator, user_frame
from ppl.transforms.kinds import UNBIASED_DENSITY
from ppl.transforms.log_density import log_density
from ppl.transforms.marginal import log_mean_exp, program_of, refuse_subsamples, staged_proposal
from ppl.transforms.simulate import simulate
from ppl.transforms.stage import check_addresses, density_addresses, sites, stage


def normalize(program: Bound, *, proposal: Bound, particles: int, estimator: Estimator | None = None) -> Bound:
    """A program that draws the latent variables of an unnormalized one, a conditioned model for example.

    It draws N particles from the proposal and one of them, J, by their weights `w_i = p(x_i) / q(x_i)`: sampling-importance-
    resampling (Rubin 1988). What is so drawn follows the posterior nearly, and exactly as N grows. The density of the program
    is the one that it does draw from, which is `p(x) E[1 / Z(x)]` with `Z(x) = (w(x) + w_2 + .. + w_N) / N` over N - 1 fresh
    particles (Domke & Sheldon 2019; Lew et al. 2022): w = p(x) / Z(x) has `E[w] = density` where x is scored and
    `E[1/w | x] = 1 / density` where it is drawn with the other particles that it was chosen from. The ELBO of this family is
    the importance-weighted bound of N particles. N = 1 is the proposal.

    The number J is a random choice at the address `<index>` like any other, so that gradients through the resampling are there.

    Args:
        program: a bound program; it may be conditioned, weighted by factors, or `ppl.unnormalized`.
        proposal: a bound program that draws the latent variables.
        particles: N.
        estimator: the gradient estimator of J. If None: the exact sum over J up to 64 particles, beyond that the score
            function. `ppl.estimators.Ignore()` leaves the gradient through J out, which is cheaper and biased.

    Raises:
        ModelFamilyMismatchError: the proposal does not draw the program's latent variables.
        MarginalError: there is no particle, or the proposal states another density than the one it draws from.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def model():
        ...     x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ...     ppl.sample("y", dist.Normal(x, 1.0), obs=2.0)
        >>> @ppl.program
        ... def wide():
        ...     ppl.sample("x", dist.Normal(0.0, 2.0))
        >>> posterior = ppl.normalize(model(), proposal=wide(), particles=100)
        >>> draws = jax.vmap(posterior.sample)(jax.random.split(jax.random.key(0), 10_000))
        >>> bool(abs(draws["x"].mean() - 1.0) < 0.05)  # the posterior mean
        True
    """
    where = user_frame()
    for bound in (program, proposal):
        if not isinstance(bound, Bound):
            raise TypeError(f"ppl.normalize takes bound programs, got {bound!r}.\n  {where}")
    if particles < 1:
        raise errors.MarginalError(f"particles must be at least 1, got {particles}.\n  {where}")

    def resampled() -> Any:
        target = stage(lambda: inline(program, ()))
        table = sites(target.jaxpr.jaxpr)
        check_addresses(table)
        refuse_subsamples(target.jaxpr.jaxpr, where)
        latents = [item for item in density_addresses(table).values() if item.site.kind == SAMPLE and not has_value(item.site)]
        if not latents:
            raise errors.MarginalError(f"the program has no latent variable to draw.\n  {where}")
        drawn = staged_proposal(proposal, [], latents, where)
        addresses = tuple(item.site.address for item in latents)
        static, arrays = split_estimator(estimator)
        integral = Resampling(target.jaxpr.jaxpr, drawn.jaxpr, addresses, particles, static, where)
        consts = (target.jaxpr.consts, drawn.consts, arrays)
        outs = bind(Estimated(integral, None, tuple(latents)), EstimatedOperands(consts))
        return nest(dict(zip(addresses, outs, strict=True)))

    resampled.__name__ = f"normalize({getattr(program.function, '__name__', 'program')})"
    return Bound(resampled)


@dataclasses.dataclass(frozen=True, eq=False)
class Resampling:
    """Sampling-importance-resampling."""

    target: Jaxpr
    proposal: Jaxpr
    addresses: tuple[Address, ...]
    particles: int
    estimator: Any
    where: Where

    def draw(self, consts: Any, changes: Changes) -> Values:
        traces, _, log_weights = self._particles(consts, changes, self.particles)
        return self._choose(consts, changes, traces, log_weights)[0]

    def simulate(self, consts: Any, changes: Changes) -> tuple[Values, Any]:
        traces, log_p, log_weights = self._particles(consts, changes, self.particles)
        values, index = self._choose(consts, changes, traces, log_weights)
        return values, self._noted(log_p[index] - log_mean_exp(log_weights), "high")

    def score(self, consts: Any, changes: Changes, values: Values) -> Any:
        self._check(changes, values)
        trace = nest({a: values[a] for a in self.addresses})
        log_p = log_density(program_of(self.target, consts[0]), trace)
        own = log_p - log_density(program_of(self.proposal, consts[1]), trace)
        others = self._particles(consts, (), self.particles - 1)[2] if self.particles > 1 else jnp.zeros(0)
        return self._noted(log_p - log_mean_exp(jnp.append(others, own)), "low")

    def _particles(self, consts: Any, changes: Changes, number: int) -> tuple[dict[Address, Any], Any, Any]:
        self._check(changes, {})
        target = program_of(self.target, consts[0])
        proposal = program_of(self.proposal, consts[1], (), changes)

        def particle(_: Any) -> Any:
            trace, log_q = simulate(proposal)
            log_p = log_density(target, trace)
            values = flatten(trace)
            return {a: values[a] for a in self.addresses}, log_p, log_p - log_q

        result: tuple[dict[Address, Any], Any, Any] = jax.vmap(particle)(jnp.arange(number))
        return result

    def _choose(
        self, consts: Any, changes: Changes, traces: dict[Address, Any], log_weights: Any
    ) -> tuple[dict[Address, Any], Any]:
        if any(verb == "detach" for verb, _ in changes):
            log_weights = jax.lax.stop_gradient(log_weights)
        if self.particles == 1:
            index: Any = 0
        else:
            index = sample("<index>", dist.Categorical(logits=log_weights), estimator=self.estimator or consts[2])
        return {a: v[index] for a, v in traces.items()}, index

    def _check(self, changes: Changes, values: Values) -> None:
        """Particles are drawn whole: what is given of them has to be all of it."""
        for verb, given in changes:
            some = verb in ("condition", "substitute") and not set(given) <= set(values)
            if verb in ("intervene", "mask") or some:
                names = ", ".join(map(show, given))
                raise errors.MarginalError(
                    f"{verb} of {names}: ppl.normalize draws {', '.join(map(show, self.addresses))} together, "
                    f"not some of them given others.\n  {self.where}\n"
                    "Do this to the program before it is normalized, or give it all of the values."
                )

    def _noted(self, log_density: Any, side: str) -> Any:
        names = ", ".join(map(show, self.addresses))
        reason = f"the density of {names}, drawn by sampling-importance-resampling from {self.particles} particles, estimated"
        return note(log_density, UNBIASED_DENSITY, f"{reason}, whose log is too {side} on average ({self.where})")
