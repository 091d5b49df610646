"""Eight schools: one objective, two variational families, and a posterior to compare with.

Eight schools tried a coaching programme. School j reports an average gain of `y[j]` points with a standard error of
`sigma[j]` (Rubin 1981). How well did the programme work in each school, given what the others say?

Run it with `python tutorials/eight_schools.py`. It takes less than a minute on two cores, prints a table and saves a
picture.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

import ppl
import ppl.distributions as dist

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DATA = json.loads((pathlib.Path(__file__).parent / "data" / "eight_schools.json").read_text())
NAMES = DATA["data"]["school"]
Y = jnp.array(DATA["data"]["y"], dtype=float)
SIGMA = jnp.array(DATA["data"]["sigma"], dtype=float)


# --- The model -------------------------------------------------------------------------------------------------------
#
# Each school has a true effect theta[j] = mu + tau z[j] around a common mean mu. We make z[j] the latent variable and not
# theta[j] ("noncentered"): when tau is small, theta[j] is squeezed onto mu, and z[j] is not.


@ppl.program
def eight_schools():
    mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
    tau = ppl.sample("tau", dist.HalfCauchy(5.0))

    def school(y, sigma):
        z = ppl.sample("z", dist.Normal(0.0, 1.0))
        theta = mu + tau * z
        ppl.sample("y", dist.Normal(theta, sigma), obs=y)
        return theta

    return ppl.plate("schools", school)(Y, SIGMA)


# --- The objective ---------------------------------------------------------------------------------------------------
#
# A family draws the latent variables; the model says how probable it finds them. The expected difference of the two log
# densities is the evidence lower bound (ELBO). Its maximum over all families is the log evidence log p(y).


@ppl.expectation
def elbo(family, phi):
    trace, log_q = ppl.simulate(family(phi))
    return eight_schools().log_density(trace) - log_q


# With K draws in place of one we get a tighter bound (Burda et al. 2016). It needs no new machinery: it is four lines.


@ppl.expectation
def importance_weighted(family, phi, K=200):
    def log_weight(_):
        trace, log_q = ppl.simulate(family(phi))
        return eight_schools().log_density(trace) - log_q

    return jax.nn.logsumexp(jax.vmap(log_weight)(jnp.arange(K))) - jnp.log(K)


# --- Family 1: a Gaussian --------------------------------------------------------------------------------------------
#
# What an automatic guide would choose: a full-rank Gaussian over (log tau, mu, z[1..8]), here factored as
# q(tau) q(mu | tau) q(z | tau, mu). The lognormal makes tau positive, as the model demands.


@ppl.program
def gaussian(phi):
    tau = ppl.sample("tau", dist.LogNormal(phi["tau"][0], jnp.exp(phi["tau"][1])))
    mu = ppl.sample("mu", dist.Normal(phi["mu"][0] + phi["mu"][1] * jnp.log(tau), jnp.exp(phi["log_sd_mu"])))
    loc = phi["z"] + phi["slope"] @ jnp.array([jnp.log(tau), mu])
    scale = jnp.tril(phi["scale"], -1) + jnp.diag(jnp.exp(jnp.diag(phi["scale"])))
    ppl.sample("z", dist.MultivariateNormal(loc, scale_tril=scale))


GAUSSIAN_START = {
    "tau": jnp.zeros(2),
    "mu": jnp.zeros(2),
    "log_sd_mu": jnp.zeros(()),
    "z": jnp.zeros(len(Y)),
    "slope": jnp.zeros((len(Y), 2)),
    "scale": jnp.zeros((len(Y), len(Y))),
}


# --- Family 2: the same order, with shapes that fit --------------------------------------------------------------------
#
# A family is a program, so it can say what we know about the posterior:
#
# - the data allow tau = 0, where a lognormal has no density at all. A Weibull does, with one parameter more than an
#   exponential;
# - mu is less certain the larger tau is, so its mean and log scale may depend on log(1 + tau);
# - z[j] follows from a normal prior and one normal measurement. We learn that measurement ("effect", "noise") and shrink it
#   as Bayes' rule would. Two numbers per school serve at every mu and tau.


@ppl.program
def shrinkage(phi):
    tau = ppl.sample("tau", dist.Weibull(*jnp.exp(phi["tau"])))
    features = jnp.array([1.0, jnp.log1p(tau)])
    mu = ppl.sample("mu", dist.Normal(phi["mu"] @ features, jnp.exp(phi["log_sd_mu"] @ features)))

    def school(effect, log_noise):
        noise = jnp.exp(log_noise)
        precision = 1 + (tau / noise) ** 2
        ppl.sample("z", dist.Normal((effect - mu) * tau / noise**2 / precision, precision**-0.5))

    ppl.plate("schools", school)(phi["effect"], phi["log_noise"])


SHRINKAGE_START = {
    "tau": jnp.zeros(2),  # log scale, log concentration
    "mu": jnp.zeros(2),
    "log_sd_mu": jnp.zeros(2),
    "effect": jnp.zeros(len(Y)),
    "log_noise": jnp.full(len(Y), jnp.log(10.0)),
}


# --- Fit and look ------------------------------------------------------------------------------------------------------


def fit(family, start, key, steps):
    """Maximize the ELBO of a family."""
    # Before anything is compiled: does the family draw what the model needs, in the right shapes and supports?
    ppl.check_family(eight_schools(), family(start))

    @ppl.expectation
    def objective(phi):
        return elbo(family, phi)

    # The step size falls to zero, so that the noise of the gradients averages out at the end.
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, steps))
    return ppl.maximize(objective, start, key, optimizer=optimizer, steps=steps, samples=32, progress=False)


def mean_and_error(objective, family, phi, key, repetitions):
    """Mean of independent estimates, and its standard error."""
    keys = jax.random.split(key, repetitions)
    estimates = jax.jit(lambda keys: jax.lax.map(lambda key: objective.estimate(key, family, phi), keys, batch_size=1000))(keys)
    return float(estimates.mean()), float(estimates.std() / np.sqrt(repetitions))


def posterior_draws(family, phi, key, number):
    """Columns mu, tau, theta[1..8]."""

    def draw(key):
        trace, _ = family(phi).simulate(key)
        theta = eight_schools().substitute(trace).sample(key)  # the model's result for these latent values
        return jnp.array([trace["mu"], trace["tau"], *theta])

    return np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(key, number)))


def summarize(draws):
    q05, q50, q95 = np.quantile(draws, [0.05, 0.5, 0.95], axis=0)
    return {"mean": draws.mean(0), "sd": draws.std(0), "q05": q05, "q50": q50, "q95": q95}


def print_table(summary, reference, error):
    columns = ("mean", "sd", "q05", "q50", "q95")
    header = "".join(f"{c:>8}" for c in ("mean", "sd", "5%", "50%", "95%"))
    print(f"{'':9}{'this fit':^40}   {reference['method']:^40}   error of the")
    print(f"{'':9}{header}   {header}   mean, in sd")
    for i, name in enumerate(reference["names"]):
        cells = ["".join(f"{table[c][i]:8.2f}" for c in columns) for table in (summary, reference)]
        print(f"{name:9}{cells[0]}   {cells[1]}   {error[i]:+11.3f}")


def picture(path, summary, reference, histories, log_evidence):
    """Intervals of the schools, and the way to the optimum."""
    blue, orange, grey = "#0072B2", "#D55E00", "#8C8C8C"
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), width_ratios=[1.5, 1], layout="constrained")

    rows = np.arange(len(NAMES))
    y, sigma = np.asarray(Y), np.asarray(SIGMA)
    left.errorbar(y, rows - 0.27, xerr=1.645 * sigma, fmt="s", color=grey, ms=5, lw=1.5, label="school's own data alone")
    for table, offset, colour, marker, label in (
        (reference, 0.0, orange, "o", "reference posterior (NUTS)"),
        (summary, 0.27, blue, "D", "variational posterior"),
    ):
        low, middle, high = (np.asarray(table[c])[2:] for c in ("q05", "q50", "q95"))
        left.errorbar(
            middle, rows + offset, xerr=[middle - low, high - middle], fmt=marker, color=colour, ms=5, lw=2.2, label=label
        )
    left.axvline(summary["mean"][0], color="black", lw=0.8, ls=":")
    left.annotate("mean of mu", (summary["mean"][0], -0.62), xytext=(4, 0), textcoords="offset points", fontsize=9, va="center")
    left.set_yticks(rows, [f"school {name}" for name in NAMES])
    left.set_ylim(len(rows) - 0.4, -0.85)
    left.set_xlim(-32, 70)  # room for the legend
    left.set_xlabel("effect of coaching (points): median and 90% interval")
    left.set_title("The schools' effects shrink toward a common mean")
    left.legend(loc="center right", fontsize=9, framealpha=1.0)

    for (name, history), colour, style in zip(histories.items(), (grey, blue), ("--", "-"), strict=True):
        window = max(1, len(history) // 80)
        smooth = np.convolve(history, np.ones(window) / window, mode="valid")
        right.plot(np.arange(len(smooth)) + window, smooth, style, color=colour, lw=1.8, label=f"ELBO, {name} family")
    right.axhline(log_evidence, color="black", lw=0.8, ls=":", label=f"log evidence, {log_evidence:.2f}")
    right.set_ylim(log_evidence - 1.6, log_evidence + 0.15)
    right.set_xlabel("step (running mean)")
    right.set_ylabel("nats")
    right.set_title("Two families, one objective")
    right.legend(loc="lower right", fontsize=9, framealpha=1.0)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("eight_schools.png"), help="where the picture goes")
    parser.add_argument("--steps", type=int, default=4000, help="optimizer steps for each family")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    began = time.perf_counter()
    fit_key, elbo_key, evidence_key, draw_key = jax.random.split(jax.random.key(options.seed), 4)

    families = {"Gaussian": (gaussian, GAUSSIAN_START), "shrinkage": (shrinkage, SHRINKAGE_START)}
    fits, elbos = {}, {}
    for name, (family, start) in families.items():
        fits[name] = fit(family, start, fit_key, options.steps)
        elbos[name] = mean_and_error(elbo, family, fits[name].params, elbo_key, 100_000)
        print(f"ELBO of the {name + ' family':17} {elbos[name][0]:.4f} +- {elbos[name][1]:.4f}")

    # How much could any other family gain? Nothing beyond the log evidence, which 200 draws bound closely.
    phi = fits["shrinkage"].params
    evidence = mean_and_error(importance_weighted, shrinkage, phi, evidence_key, 1_000)
    print(f"importance-weighted bound     {evidence[0]:.4f} +- {evidence[1]:.4f}   (log evidence, nearly)\n")

    draws = posterior_draws(shrinkage, phi, draw_key, 100_000)
    summary, reference = summarize(draws), DATA["reference"]
    error = (summary["mean"] - np.array(reference["mean"])) / np.array(reference["sd"])
    print_table(summary, reference, error)
    worst = int(np.argmax(np.abs(error)))
    print(f"\nlargest error of a mean: {abs(error[worst]):.3f} reference sd ({reference['names'][worst]})")

    picture(options.out, summary, reference, {name: f.history for name, f in fits.items()}, evidence[0])
    print(f"picture: {options.out}   ({time.perf_counter() - began:.0f} s)")
    return {"elbo": elbos, "evidence": evidence, "summary": summary, "error": error, "fits": fits}


if __name__ == "__main__":
    main()
