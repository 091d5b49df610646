"""The mixture of `mixture.py` in Storchastic (van Krieken et al. 2021), a PyTorch library of gradient estimators.

Only where `storchastic` is installed (`pip install storchastic`). It runs eagerly, one gradient at a time.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.mixture import COMPONENTS, POINTS

METHODS = ("enumerate", "score function", "leave-one-out, 2 samples")


def measure(params: Any, y: Any, draws: int) -> dict[str, dict[str, Any]]:
    """Means, variances and milliseconds of gradients, by method."""
    import storch
    import torch
    from torch.distributions import Normal, OneHotCategorical

    torch.set_num_threads(2)
    data = torch.tensor(np.array(y))

    def gradient(method: str) -> tuple[float, Any, Any]:
        mean, log_scale, logits = (
            torch.tensor(np.array(params[name])).requires_grad_() for name in ("mean", "log_scale", "logits")
        )
        site = {
            "enumerate": lambda: storch.method.Expect("z"),
            "score function": lambda: storch.method.ScoreFunction("z", n_samples=1, baseline_factory=None),
            "leave-one-out, 2 samples": lambda: storch.method.ScoreFunction("z", n_samples=2, baseline_factory="batch_average"),
        }[method]()
        centre = storch.method.Reparameterization("centre", n_samples=1)(Normal(mean, log_scale.exp()))
        points = storch.denote_independent(data, 0, "points")
        q = OneHotCategorical(logits=storch.denote_independent(logits, 0, "points"))
        z = site(q)
        log_ratio = Normal((z * centre).sum(-1), 1.0).log_prob(points) - np.log(COMPONENTS) - q.log_prob(z)
        storch.add_cost(-POINTS * log_ratio, "points")  # costs are averaged over independent dimensions
        prior = Normal(0.0, 5.0).log_prob(centre) - Normal(mean, log_scale.exp()).log_prob(centre)
        storch.add_cost(-prior.sum(-1), "centre")
        value = float(storch.backward().detach())
        return -value, -torch.cat([log_scale.grad, logits.grad.flatten(), mean.grad]).numpy(), -logits.grad.numpy().ravel()

    found = {}
    for method in METHODS:
        gradient(method)
        start = time.perf_counter()
        draws_of = [gradient(method) for _ in range(draws)]
        seconds = (time.perf_counter() - start) / draws
        values, grads, parts = (np.asarray(part, np.float64) for part in zip(*draws_of, strict=True))
        found[method] = {
            "value": float(values.mean()),
            "grad": grads.mean(0),
            "variance": float(grads.var(0).sum()),
            "discrete": float(parts.var(0).sum()),
            "ms": seconds * 1e3,
        }
    return found
