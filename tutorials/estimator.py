"""A gradient estimator from nothing: REBAR, in one function, checked and compared.

An estimator replaces a draw by a few weighted values. Its contract is one sentence: under automatic differentiation, the value
and the gradient of `sum_i weights[i] * k(values[i])` are unbiased for those of `E[k(X)]`, whatever `k` is. Where the sites are,
what plates and loops stand around them, and which costs depend on them is the engine's business.

REBAR (Tucker et al. 2017) is for binary draws. It takes the score function, and subtracts a control variate: the same score, of
a cost at a *relaxed* draw, whose own gradient can be had pathwise and is added back. In weighted values:

    the draw b                                      weight  w             w = exp(log p(b) - sg log p(b)), of value one
    a relaxed draw z                                weight  eta
    a relaxed draw z~ that rounds to the same b     weight -eta w

z and z~ have one distribution, so the last two cancel on average, in value and in gradient; together they follow the noise
of the first.

Run it with `python tutorials/estimator.py` (a minute on two cores). It tests the estimator against exact gradients and saves a
picture.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import ppl
import ppl.distributions as dist
import ppl.testing
from ppl.estimators import Branches, DisARM, Enumerate, LeaveOneOut, ScoreFunction

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# --- The estimator -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Rebar:
    """REBAR for Bernoulli sites with logits."""

    temperature: float = 0.5
    eta: float = 1.0
    unbiased: bool = True
    # Value i of all sites goes with value i of all others: "the relaxed one" means everything relaxed. The weights have the
    # constant values 1, eta and -eta.
    coupling: str = "joint"
    axis: str = "rebar"
    relaxes: bool = True  # the site draws floating-point numbers

    def refuses(self, distribution, site):
        if isinstance(distribution, dist.BernoulliLogits):
            return None
        return f"{site.distribution_name} is no Bernoulli distribution with logits"

    def branches(self, distribution):
        return 3

    def particle(self, key, distribution):
        logits = jnp.broadcast_to(distribution.logits, distribution.batch_shape)
        u, v = jax.random.uniform(key, (2, *logits.shape), minval=1e-6, maxval=1 - 1e-6)
        z = logits + jnp.log(u) - jnp.log1p(-u)
        b = jax.lax.stop_gradient(1.0 * (z > 0))
        # The noise that leads to the same b: uniform above 1 - p where b is one, below it where b is zero.
        p = jax.nn.sigmoid(logits)
        same = jnp.clip(jnp.where(b == 1, 1 - p + v * p, v * (1 - p)), 1e-6, 1 - 1e-6)
        z_same = logits + jnp.log(same) - jnp.log1p(-same)
        log_p = distribution.log_prob(b)
        w = jnp.exp(log_p - jax.lax.stop_gradient(log_p))
        soft = jax.nn.sigmoid(z / self.temperature), jax.nn.sigmoid(z_same / self.temperature)
        return Branches(jnp.stack([b, *soft]), jnp.stack([w, self.eta * jnp.ones_like(w), -self.eta * w]))


# --- A problem -----------------------------------------------------------------------------------------------------------
#
# Four switches that act together, and two that depend on them. Small enough for exact gradients, which `assert_unbiased`
# finds by itself.


@ppl.program
def switches(logits):
    first = ppl.sample("first", dist.Bernoulli(logits=logits).to_event(1))
    return first, ppl.sample("second", dist.Bernoulli(logits=first[:2] - logits[2:]).to_event(1))


def cost(estimator):
    @ppl.expectation
    def objective(logits):
        first, second = ppl.sample("on", switches(logits).with_estimators(estimator))
        return (jnp.sum(first) - 0.45 * jnp.sum(second) + 1.0) ** 2

    return objective


CHOICES = {
    "score function": (ScoreFunction(), 2),
    "leave-one-out": (ScoreFunction(LeaveOneOut()), 2),
    "DisARM": (DisARM(), 1),
    "REBAR": (Rebar(), 1),
}
LOGITS = jnp.array([0.3, -0.4, 0.2, 0.8])


def variances(draws):
    """The total variance of the gradient for each estimator."""
    keys = jax.random.split(jax.random.key(1), draws)
    found = {}
    for name, (estimator, samples) in CHOICES.items():
        objective = cost(estimator)
        grads = jax.jit(jax.vmap(lambda key, o=objective, n=samples: o.grad(key, LOGITS, samples=n)))(keys)
        found[name] = float(np.var(np.asarray(grads, float), axis=0).sum())
    return found


def draw(found, path):
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    names = list(found)[::-1]
    bars = axes.barh(names, [found[name] for name in names], color=["#d95f02"] + ["#7f9fbf"] * (len(names) - 1), height=0.6)
    axes.bar_label(bars, fmt="%.3g", padding=4)
    axes.set(xlabel="total variance of the gradient", xlim=(0, 1.15 * max(found.values())))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("estimator.png"))
    parser.add_argument("--quick", action="store_true", help="fewer draws")
    options = parser.parse_args(arguments)
    draws = 2_000 if options.quick else 20_000

    print(cost(Rebar()).estimators(LOGITS))
    exact = cost(Enumerate()).value_and_grad(jax.random.key(0), LOGITS)
    checked = ppl.testing.assert_unbiased(cost(Rebar()), (LOGITS,), exact=exact, draws=draws)
    print(f"\n{checked}\n")
    found = variances(draws)
    for name, variance in found.items():
        print(f"{name:15} total variance {variance:8.3f}")
    draw(found, options.out)
    return {"variance": found}


if __name__ == "__main__":
    main()
