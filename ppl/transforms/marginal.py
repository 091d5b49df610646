"""`marginal`: a program over some of the addresses of another, the rest integrated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr

from ppl import errors
from ppl.address import covers, flatten, nest, parse, suggest
from ppl.estimated import Changes, Estimated, EstimatedOperands, Values, bind, estimated_p
from ppl.lanes import inner_jaxprs, lanes_p
from ppl.notes import note
from ppl.program import Bound, inline
from ppl.site import (
    DETERMINISTIC,
    SAMPLE,
    SUBSAMPLE,
    Address,
    Where,
    describe_support,
    has_value,
    restore,
    show,
    site_p,
    user_frame,
)
from ppl.transforms.compare import contains, mismatch_table
from ppl.transforms.eliminate import Elimination
from ppl.transforms.kinds import UNBIASED_DENSITY
from ppl.transforms.log_density import log_density
from ppl.transforms.modify import Modification
from ppl.transforms.quadrature import accurate
from ppl.transforms.simulate import simulate
from ppl.transforms.stage import Located, check_addresses, density_addresses, sites, stage


def marginal(
    program: Bound,
    keep: str | Sequence[str],
    *,
    proposal: Bound | Callable[[Any], Bound] | None = None,
    particles: int | None = None,
    nodes: int | None = None,
) -> Bound:
    """A program over the addresses in `keep` of a bound program, its other latent variables (auxiliaries) integrated out.

    The result is a bound program like any other. Its value is the nested dict of the kept values. Which integral:

    - with a `proposal`, importance sampling. A value x is scored by `mean_i p(u_i, x) / r(u_i | x)`, u_i ~ r: an unbiased
      estimate w of its density, `E[w] = p(x)`. Where x is drawn, the auxiliary that was drawn with it takes the place of u_1,
      so that `E[1/w | x] = 1/p(x)`: the ELBO of such a family bounds the ELBO of the exact marginal from below (hierarchical
      variational models, Ranganath et al. 2016; importance-weighted ones, Sobolev & Vetrov 2019), and more particles tighten
      it;
    - without, the exact sum over all values of discrete auxiliaries; along a loop (written out, or a `scan`) step by step;
    - with `nodes`, quadrature for up to three continuous auxiliaries, in all combinations of that many nodes each, beside the
      sum over discrete ones. Gauss-Hermite for Normal and LogNormal, Gauss-Legendre for Uniform, the double exponential rule
      for other smooth densities on an interval, with light or exponential tails. The rule is placed by the auxiliary's own
      distribution, and says nothing where p(u, x) is narrow and falls between the nodes. So it is compared with the rule
      of half as many: where the log densities differ by more than 1e-3 (times one plus their size), the density is
      refused (inside `jit`, where nothing can be raised, it is NaN). Twice as many nodes square the error of these rules for
      smooth densities, so that what passes is exact to about 1e-6, or what the precision gives.

    Estimates are of the density: right in importance weights and inside `exp`; the log of one is biased, so that an ELBO
    becomes a bound.

    Args:
        program: a bound program. Its auxiliary sites keep their gradient estimators.
        keep: addresses of latent variables, or prefixes of these.
        proposal: a bound program that draws exactly the auxiliaries, or a function from the kept values (a nested dict) to one.
        particles: how many auxiliaries are drawn from the proposal, 1 unless told.
        nodes: the number of quadrature nodes of each continuous auxiliary.

    Raises:
        UnknownAddressError: `keep` names no latent variable of the program.
        ModelFamilyMismatchError: the proposal does not draw the auxiliaries.
        MarginalError: the auxiliaries cannot be integrated in this way, or there are too few nodes; what would work is said.

    Example:
        >>> import ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def mixture():
        ...     z = ppl.sample("z", dist.Bernoulli(probs=0.3))
        ...     ppl.sample("x", dist.Normal(4.0 * z, 1.0))
        >>> exact = ppl.marginal(mixture(), keep="x")
        >>> print(f"{exact.log_density({'x': 1.0}):.4f}")
        -1.7678
    """
    where = user_frame()
    names = tuple(parse(name) for name in ([keep] if isinstance(keep, str) else keep))
    if not isinstance(program, Bound):
        raise TypeError(f"ppl.marginal integrates a bound program, got {program!r}.\n  {where}")
    if proposal is None and particles is not None:
        raise errors.MarginalError(f"particles={particles} are drawn from a proposal: give proposal=.\n  {where}")
    if proposal is not None and nodes is not None:
        raise errors.MarginalError(f"give either a proposal= (importance sampling) or nodes= (quadrature).\n  {where}")
    for what, number, least in (("particles", particles, 1), ("nodes", nodes, 4)):
        if number is not None and number < least:
            raise errors.MarginalError(f"{what} must be at least {least}, got {number}.\n  {where}")

    def integrated() -> Any:
        model = stage(lambda: inline(program, ()))
        table = sites(model.jaxpr.jaxpr)
        check_addresses(table)
        kept, hidden = _split(model.jaxpr.jaxpr, table, names, where)
        addresses = tuple(item.site.address for item in kept)
        auxiliary = frozenset(item.site.address for item in hidden)
        consts: Any = (model.jaxpr.consts, [])
        common = (model.jaxpr.jaxpr, addresses, auxiliary, is_sampler(model.jaxpr.jaxpr))
        if proposal is None:
            integral: Any = Exact(*common, nodes, where)
        else:
            reverse = staged_proposal(proposal, kept, hidden, where)
            consts = (model.jaxpr.consts, reverse.consts)
            integral = ImportanceSampling(*common, reverse.jaxpr, particles or 1, where)
        outs = bind(Estimated(integral, None, tuple(kept)), EstimatedOperands(consts))
        return nest(dict(zip(addresses, outs, strict=True)))

    integrated.__name__ = f"marginal({getattr(program.function, '__name__', 'program')})"
    return Bound(integrated)


def _split(jaxpr: Jaxpr, table: list[Located], names: tuple[Address, ...], where: Where) -> tuple[list[Located], list[Located]]:
    """The latent variables that are kept, and the auxiliary ones."""
    latents = {a: item for a, item in density_addresses(table).items() if item.site.kind == SAMPLE}
    for name in names:
        if not any(covers(name, address) for address in latents):
            raise errors.UnknownAddressError(
                f"keep names the address {show(name)!r}, which is no latent variable of the program.{suggest(name, latents)}"
                f"\n  {where}"
            )
    if not names:
        raise errors.MarginalError(f"keep at least one address.\n  {where}")
    refuse_subsamples(jaxpr, where)
    kept = [item for address, item in latents.items() if any(covers(name, address) for name in names)]
    rest = [item for item in latents.values() if item not in kept and not has_value(item.site)]
    return kept, rest


def refuse_subsamples(jaxpr: Jaxpr, where: Where) -> None:
    """Refuse costs that are scaled for a subsample: an integral of scaled log densities estimates nothing."""
    for located in sites(jaxpr):
        if located.site.kind == SUBSAMPLE or located.site.plate_scale != 1.0:
            _refuse_subsample(located, where)
    for eqn in jaxpr.eqns:
        if eqn.primitive is lanes_p and getattr(eqn.params["axis"], "total", None) is not None:
            _refuse_subsample(sites(eqn.params["jaxpr"].jaxpr)[0], where)
        for inner in inner_jaxprs(eqn.params):
            refuse_subsamples(inner, where)


def _refuse_subsample(located: Located, where: Where) -> None:
    raise errors.MarginalError(
        f"{located.site.name!r} stands in a plate with size=, whose costs are scaled; an integral of these is no density.\n"
        f"  {located.site.where}\n  {where}\nPut ppl.marginal or ppl.normalize inside of the plate."
    )


def is_sampler(jaxpr: Jaxpr) -> bool:
    """Whether a program draws from its density: nothing in it is observed, weighted, given, masked or scaled."""
    for eqn in jaxpr.eqns:
        if eqn.primitive is site_p:
            site = eqn.params["site"]
            operands = restore(site, eqn.invars)
            given = site.kind == SAMPLE and operands.value is not None
            if site.kind not in (SAMPLE, DETERMINISTIC) or given or operands.scale is not None or operands.mask is not None:
                return False
        elif eqn.primitive is estimated_p:
            estimated = eqn.params["estimated"]
            operands = estimated.restore(eqn.invars)
            if operands.scale is not None or operands.mask is not None or not samples(estimated.changes):
                return False
        elif not all(map(is_sampler, inner_jaxprs(eqn.params))):
            return False
    return True


def samples(changes: Iterable[tuple[str, Any]]) -> bool:
    """Whether a program that draws from its density still does so after some changes."""
    return all(verb in ("intervene", "detach", "with_estimators") for verb, _ in changes)


def staged_proposal(proposal: Any, kept: Sequence[Located], hidden: Sequence[Located], where: Where) -> Any:
    """A proposal as a jaxpr of the kept values, checked to draw the hidden ones."""
    addresses = [item.site.address for item in kept]

    def reverse(*values: Any) -> None:
        bound = proposal if isinstance(proposal, Bound) else proposal(nest(dict(zip(addresses, values, strict=True))))
        if not isinstance(bound, Bound):
            raise TypeError(f"a proposal is a bound program, or a function from a trace to one; got {bound!r}.\n  {where}")
        inline(bound, ())

    closed = jax.make_jaxpr(reverse)(*(jax.ShapeDtypeStruct(item.shape, item.site.dtype) for item in kept))
    drawn = {a: item for a, item in density_addresses(sites(closed.jaxpr)).items() if item.site.kind == SAMPLE}
    check_addresses(sites(closed.jaxpr))
    refuse_subsamples(closed.jaxpr, where)
    wrong = mismatch_table({item.site.address: item for item in hidden}, drawn)
    if wrong:
        raise errors.ModelFamilyMismatchError(
            "the variables to integrate (under `model`) and the proposal (under `family`) disagree:\n" + wrong + f"\n  {where}"
        )
    for item in hidden:
        if contains(drawn[item.site.address].site, item.site) is False:
            raise errors.MarginalError(
                f"the proposal draws {item.site.name!r} from {describe_support(drawn[item.site.address].site.support)} alone, "
                f"a part of its support, {describe_support(item.site.support)}: the rest would be left out of the integral.\n"
                f"  {drawn[item.site.address].site.where}\nPropose from a distribution that covers the support."
            )
    if not is_sampler(closed.jaxpr):
        raise errors.MarginalError(
            "the proposal holds an observation, a factor, a mask or a scale, so that it does not draw from the density that it "
            f"states.\n  {where}\nGive a program that only draws; ppl.normalize makes one of a conditioned program."
        )
    return closed


def program_of(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any] = (), changes: Changes = ()) -> Bound:
    """A staged program, as a bound one."""
    return Bound(
        lambda: jax.core.eval_jaxpr(jaxpr, consts, *args), (), {}, tuple(Modification(verb, dict(v)) for verb, v in changes)
    )


def log_mean_exp(log_weights: Any) -> Any:
    return jax.nn.logsumexp(log_weights) - math.log(log_weights.shape[0])


@dataclasses.dataclass(frozen=True, eq=False)
class _Marginal:
    """What the two ways to integrate share: `model` draws the kept values together with the auxiliaries."""

    model: Jaxpr
    keep: tuple[Address, ...]
    auxiliary: frozenset[Address]
    sampler: bool

    def draw(self, consts: Any, changes: Changes) -> Values:
        return {a: v for a, v in self._trace(consts, changes)[0].items() if a in self.keep}

    def _trace(self, consts: Any, changes: Changes) -> tuple[dict[Address, Any], Any]:
        trace, log_p = simulate(program_of(self.model, consts[0], (), changes))
        return flatten(trace), log_p

    def _known(self, changes: Changes) -> dict[Address, Any]:
        verbs = ("condition", "intervene", "substitute")
        return {a: v for verb, given in changes if verb in verbs for a, v in given.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class Exact(_Marginal):
    """Sums, and quadrature where `nodes` is a number."""

    nodes: int | None
    where: Where

    def simulate(self, consts: Any, changes: Changes) -> tuple[Values, Any]:
        values = {**self._known(changes), **self.draw(consts, changes)}
        return values, self.score(consts, changes, values)

    def score(self, consts: Any, changes: Changes, values: Values) -> Any:
        staged = stage(lambda: inline(program_of(self.model, consts[0], (), changes), ()))
        latent = {item.site.address for item in sites(staged.jaxpr.jaxpr) if item.site.kind == SAMPLE}

        def total(nodes: int | None) -> Any:
            elimination = Elimination(self.auxiliary, nodes, {a: v for a, v in values.items() if a in latent})
            elimination.run(staged.jaxpr.jaxpr, staged.jaxpr.consts, [], frozenset())
            return elimination.total()

        return total(None) if self.nodes is None else accurate(total(self.nodes), total(self.nodes // 2), self.where)


@dataclasses.dataclass(frozen=True, eq=False)
class ImportanceSampling(_Marginal):
    """Importance sampling, with the auxiliary that was drawn along in the first place where there is one."""

    proposal: Jaxpr
    particles: int
    where: Where

    def simulate(self, consts: Any, changes: Changes) -> tuple[Values, Any]:
        trace, log_p = self._trace(consts, changes)
        values = {**self._known(changes), **{a: v for a, v in trace.items() if a in self.keep}}
        if not (self.sampler and samples(changes)):
            return values, self.score(consts, changes, values)
        hidden = nest({a: v for a, v in trace.items() if a in self.auxiliary})
        drawn = log_p - log_density(self._reverse(consts, values, ()), {_PROPOSAL: hidden})
        fresh = self._log_weights(consts, changes, values, self.particles - 1, changes)
        return values, self._noted(log_mean_exp(jnp.append(fresh, drawn)), "high")

    def score(self, consts: Any, changes: Changes, values: Values) -> Any:
        return self._noted(log_mean_exp(self._log_weights(consts, changes, values, self.particles)), "low")

    def _log_weights(self, consts: Any, changes: Changes, values: Values, number: int, drawn_with: Changes = ()) -> Any:
        model = program_of(self.model, consts[0], (), changes)
        fixed = {a for verb, given in changes if verb in ("condition", "intervene") for a in given}
        kept = {a: v for a, v in values.items() if a not in fixed}

        def log_weight(_: Any) -> Any:
            trace, log_r = simulate(self._reverse(consts, values, drawn_with))
            return log_density(model, nest(kept | flatten(trace[_PROPOSAL]))) - log_r

        return jax.vmap(log_weight)(jnp.arange(number)) if number else jnp.zeros(0)

    def _reverse(self, consts: Any, values: Values, changes: Changes) -> Bound:
        """The proposal, under a prefix, so that its draws are told from the program's own; detached where all is."""
        args = [values[address] for address in self.keep]
        detached = [change for change in changes if change[0] == "detach"]
        proposal = program_of(self.proposal, consts[1], args, detached)
        return Bound(lambda: inline(proposal, (_PROPOSAL,)))

    def _noted(self, log_density: Any, side: str) -> Any:
        names = ", ".join(map(show, self.keep))
        reason = f"the density of {names}, estimated by importance sampling with {self.particles} particles"
        return note(log_density, UNBIASED_DENSITY, f"{reason}, whose log is too {side} on average ({self.where})")


_PROPOSAL = "<proposal>"
