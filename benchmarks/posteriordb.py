"""Fits of fourteen reference posteriors by generated families and by NUTS, beside NumPyro's guides in the same process.

Both libraries start at the same place with the same scale and take the same number of steps of the same optimizer, with as many
draws a step. NumPyro's models are the programs as `ppl.to_numpyro` gives them: a `numpyro.sample` for each site. Errors are
in standard deviations of the reference: the largest error of a mean, and the largest absolute logarithm of a ratio of standard
deviations. `total` is the wall-clock time of a first fit, with tracing and compiling; `again` that of a second fit to
data of equal shape.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from numpyro.infer.initialization import init_to_value

import ppl
from benchmarks import posteriors
from benchmarks.posteriors import Posterior
from benchmarks.timing import arguments, print_environment, print_table, report
from ppl.address import flatten
from ppl.site import show

KEY = jax.random.key(0)
SAMPLES = 16
GUIDES = {"AutoNormal": AutoNormal, "AutoMultivariateNormal": AutoMultivariateNormal}
RIVALS = {"mean-field": "AutoNormal", "full-rank": "AutoMultivariateNormal"}


class Result(NamedTuple):
    """How far a method is from the reference, in its standard deviations, and what it took."""

    mean_error: float
    sd_error: float
    elbo: float | None
    elbo_error: float | None
    k_hat: float | None
    total: float
    again: float | None


def optimizer(steps: int, rate: float = 0.1) -> Any:
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


def careful(steps: int) -> Any:
    """For networks, whose first gradients far from the posterior are large."""
    return optax.chain(optax.clip_by_global_norm(100.0), optimizer(steps, 0.005))


def errors_of(posterior: Posterior, traces: Any) -> tuple[float, float]:
    """The largest error of a mean, and of the logarithm of a standard deviation, over the reference's parameters."""
    found = np.asarray(jax.jit(jax.vmap(posterior.parameters))(traces), float)
    mean, sd = (np.array([by[name] for name in posterior.names]) for by in (posterior.mean, posterior.sd))
    return float(np.max(np.abs(found.mean(0) - mean) / sd)), float(np.max(np.abs(np.log(found.std(0) / sd))))


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return result, time.perf_counter() - start


def by_family(posterior: Posterior, make: Callable[..., Any], steps: int, draws: int) -> Result:
    """A fit of the ELBO by a generated family."""
    family = make(posterior.model)
    params = family.init(KEY)

    @ppl.expectation
    def elbo(params: Any) -> Any:
        return ppl.objectives.elbo(posterior.model, family(params))

    rule = careful(steps) if "flow" in params else optimizer(steps)

    def fit() -> Any:
        return ppl.maximize(elbo, params, KEY, optimizer=rule, steps=steps, samples=SAMPLES, progress=False).params

    fitted, total = timed(fit)
    _, again = timed(fit)

    def weigh() -> Any:
        trace, log_q = ppl.simulate(family(fitted))
        return trace, posterior.model.log_density(trace) - log_q

    traces, log_w = jax.jit(jax.vmap(ppl.seed(weigh)))(jax.random.split(jax.random.key(1), draws))
    log_w = np.asarray(log_w, float)
    k_hat = float(arviz.psislw(log_w)[1])
    error = float(log_w.std() / np.sqrt(draws))
    return Result(*errors_of(posterior, traces), float(log_w.mean()), error, k_hat, total, again)


def by_guide(posterior: Posterior, guide_class: Any, start: Any, steps: int, draws: int) -> Result:
    """The same with a NumPyro guide, from the same trace."""
    model = ppl.to_numpyro(posterior.model)
    at = {show(address): value for address, value in flatten(start).items()}
    guide = guide_class(model, init_loc_fn=init_to_value(values=at), init_scale=0.1)

    def fit() -> Any:
        svi = SVI(model, guide, optimizer(steps), Trace_ELBO(num_particles=SAMPLES, vectorize_particles=True))
        return svi.run(KEY, steps, progress_bar=False).params

    fitted, total = timed(fit)
    _, again = timed(fit)
    traces = guide.sample_posterior(jax.random.key(1), fitted, sample_shape=(draws,))
    losses = jax.jit(jax.vmap(lambda key: Trace_ELBO().loss(key, fitted, model, guide)))(jax.random.split(KEY, draws))
    elbo, error = float(-losses.mean()), float(losses.std() / np.sqrt(draws))
    return Result(*errors_of(posterior, traces), elbo, error, None, total, again)


def by_nuts(posterior: Posterior, draws: int) -> Result:
    def run() -> Any:
        return ppl.nuts(posterior.model, KEY, warmup=draws, draws=draws, chains=2).flat()

    traces, total = timed(run)
    return Result(*errors_of(posterior, traces), None, None, None, total, None)


def families() -> dict[str, Callable[..., Any]]:
    return {
        "mean-field": ppl.families.mean_field,
        "full-rank": ppl.families.full_rank,
        "structured": ppl.families.structured,
        "spline flow": ppl.families.coupling_flow,
    }


def start_of(posterior: Posterior) -> Any:
    """The trace in the middle of a mean-field family at its initial parameters."""
    family = ppl.families.mean_field(posterior.model)
    paths = jax.tree_util.tree_map_with_path
    narrow = paths(lambda path, x: jnp.full_like(x, -30.0) if path[-1].key == "log_scale" else x, family.init(KEY))
    return family(narrow).simulate(KEY)[0]


def measure(name: str, steps: int, draws: int, nuts: int) -> dict[str, Result]:
    posterior = posteriors.load(name)
    found: dict[str, Result] = {}
    start = start_of(posterior)
    for method, make in families().items():
        found[method] = by_family(posterior, make, steps, draws)
        rival = RIVALS.get(method)
        if rival is not None:
            found[rival] = by_guide(posterior, GUIDES[rival], start, steps, draws)
    found["NUTS"] = by_nuts(posterior, nuts)
    return found


def verdict(results: dict[str, dict[str, Result]]) -> list[tuple[Any, ...]]:
    """Each family beside NumPyro's: in how many posteriors it is worse by more than noise, and the median ratio of times.

    The ELBO may be lower by four standard errors and 0.02 nats, the error of a mean larger by a fifth and 0.1.
    """
    rows = []
    for ours, theirs in RIVALS.items():
        pairs = [(found[ours], found[theirs]) for found in results.values()]
        worse = sum(a.elbo < b.elbo - 4 * np.hypot(a.elbo_error, b.elbo_error) - 0.02 for a, b in pairs)  # type: ignore
        less_accurate = sum(a.mean_error > 1.2 * b.mean_error + 0.1 for a, b in pairs)
        total, again = (float(np.median([getattr(a, t) / getattr(b, t) for a, b in pairs])) for t in ("total", "again"))
        rows.append((f"{ours} / {theirs}", len(pairs), worse, less_accurate, total, again))
    return rows


def main() -> None:
    options = arguments(__doc__, tuple(posteriors.RECIPES))
    print_environment()
    steps, draws, nuts = (200, 500, 100) if options.quick else (20_000, 4000, 1000)
    results: dict[str, dict[str, Result]] = {}
    columns = ("method", "error of a mean", "of log sd", "ELBO", "+-", "k-hat", "total, s", "again, s")
    for name in options.only:
        results[name] = measure(name, steps, draws, nuts)
        print_table(name, columns, [(method, *result) for method, result in results[name].items()])
    columns = ("pair", "posteriors", "lower ELBO", "less accurate", "total, ratio", "again, ratio")
    print_table("Beside NumPyro", columns, verdict(results))
    report({name: {m: r._asdict() for m, r in found.items()} for name, found in results.items()}, options)


if __name__ == "__main__":
    main()
