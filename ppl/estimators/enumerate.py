"""temp"""
import dataclasses
from typing import Any
import jax.numpy as jnp
import numpy as np
import jax
from ppl.estimators.protocol import PRODUCT, Branches

def support_size(distribution):
    if not getattr(distribution, "has_enumerate_support", False):
        return None
    name = type(distribution).__name__
    if name.startswith("Bernoulli"): return 2
    if name.startswith("Categorical"):
        return int(np.shape(distribution.logits if "Logits" in name else distribution.probs)[-1]) if hasattr(distribution, "logits") or True else None
    return None

@dataclasses.dataclass(frozen=True)
class Enumerate:
    unbiased: bool = True
    coupling = PRODUCT
    axis = None
    def refuses(self, distribution, site): return None
    def branches(self, distribution):
        n = distribution.event_shape
        return 2 if type(distribution).__name__.startswith("Bernoulli") else int(jnp.shape(distribution.enumerate_support())[0])
    def particle(self, key, distribution):
        values = distribution.enumerate_support(expand=True)
        return Branches(values, jnp.exp(distribution.log_prob(values)))
