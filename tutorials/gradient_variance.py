"""Which gradient estimator? Two clusters, one of whose labels are discrete: variance, time and where the noise comes from.

Run it with `python tutorials/gradient_variance.py`. It takes less than a minute, prints tables and saves a picture.
"""

from __future__ import annotations

import argparse
import pathlib

import jax
import jax.numpy as jnp
import matplotlib

import ppl
import ppl.distributions as dist
from ppl.estimators import ScoreFunction

matplotlib.use("Agg")

Y = jnp.concatenate([jnp.linspace(-2.5, -1.5, 10), jnp.linspace(1.5, 2.5, 10)])


@ppl.program
def model():
    centre = ppl.sample("centre", dist.Normal(0.0, 3.0).expand([2]).to_event(1))

    def datum(y):
        label = ppl.sample("label", dist.Bernoulli(probs=0.5))
        ppl.sample("y", dist.Normal(centre[label], 1.0), obs=y)

    ppl.plate("data", datum)(Y)


@ppl.program
def family(phi):
    ppl.sample("centre", dist.Normal(phi["loc"], jnp.exp(phi["log_scale"])).to_event(1))
    ppl.plate("data", lambda logit: ppl.sample("label", dist.Bernoulli(logits=logit)))(phi["logits"])


@ppl.expectation
def elbo(phi):
    trace, log_q = ppl.simulate(family(phi))
    return model().log_density(trace) - log_q


PHI = {"loc": jnp.array([-1.0, 1.0]), "log_scale": jnp.array([-1.0, -1.0]), "logits": jnp.zeros(len(Y))}

CHOICES = {
    "chosen for you": None,
    "scores for the labels": {"label": ScoreFunction()},
    "scores for the centres": {"centre": ScoreFunction()},
    "scores everywhere": ScoreFunction(),
}


def main(arguments: list[str] | None = None) -> ppl.GradientVariance:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("gradient_variance.png"), help="where the picture goes"
    )
    parser.add_argument("--draws", type=int, default=5000)
    options = parser.parse_args(arguments)
    found = ppl.gradient_variance(elbo, PHI, key=jax.random.key(0), draws=options.draws, estimators=CHOICES)
    print(found)
    figure = found.plot()
    figure.savefig(options.out, dpi=110)
    return found


if __name__ == "__main__":
    main()
