"""By how much importance weights change the means and standard deviations of a family's draws."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from ppl.address import flatten
from ppl.diagnostics.findings import WARNING, Finding
from ppl.site import Address, show

SHIFT, RATIO = 0.2, 1.2
"""A mean that is off by more than this many standard deviations, or a standard deviation by more than this factor, is told."""


def corrections(trace: Any, addresses: Iterable[Address], weights: np.ndarray) -> Iterator[Finding]:
    """The element of each latent that weights change most, if that is more than the weights' own error, four times over.

    Args:
        trace: draws of the family.
        addresses: of the latents.
        weights: of the draws, adding up to one, which can be trusted.
    """
    error = float(np.sqrt(np.sum(weights**2)))
    wanted = set(addresses)
    for address, value in flatten(trace).items():
        if address not in wanted:
            continue
        draws = np.asarray(value, float)
        mean, sd = draws.mean(axis=0), draws.std(axis=0)
        right = np.tensordot(weights, draws, axes=1)
        spread = np.sqrt(np.maximum(np.tensordot(weights, (draws - right) ** 2, axes=1), np.finfo(float).tiny))
        shift = np.abs(mean - right) / spread
        ratio = np.abs(np.log(np.maximum(sd, np.finfo(float).tiny) / spread))
        badness = np.maximum(shift / max(SHIFT, 4 * error), ratio / max(math.log(RATIO), 4 * error))
        worst = np.unravel_index(int(np.argmax(badness)), badness.shape)
        if badness[worst] > 1:
            at = f" at [{', '.join(map(str, worst))}]" if worst else ""
            yield Finding(
                "weights",
                WARNING,
                show(address),
                f"the family has mean {mean[worst]:.3g} and standard deviation {sd[worst]:.3g}{at}; importance "
                f"weights make that {right[worst]:.3g} and {spread[worst]:.3g}.",
                "Use fit.resample in place of fit.sample, or a richer family.",
            )


__all__ = ["corrections"]
