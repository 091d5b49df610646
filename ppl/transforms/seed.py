"""`seed`: what is random is drawn from a key."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl.densities import draw
from ppl.site import FACTOR, SAMPLE, SUBSAMPLE, PlateAxis, Site
from ppl.transforms.interpret import Inputs, SiteId, run_staged, site_ids
from ppl.transforms.simulate import given_value, refuse_improper
from ppl.transforms.stage import Located, stage


@functools.cache
def _words(site_id: SiteId) -> tuple[int, int]:
    digest = hashlib.blake2b(repr(site_id).encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def site_keys(key: Any, ids: Sequence[SiteId]) -> dict[SiteId, Any]:
    """A key for each site: a function of its address alone, not of its place in the program."""
    if not ids:
        return {}
    if not jnp.issubdtype(jax.typeof(key).dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    words = np.array([_words(site_id) for site_id in ids], np.uint32)
    fold = jax.vmap(lambda pair: jax.random.fold_in(jax.random.fold_in(key, pair[0]), pair[1]))
    keys = fold(words)
    return {site_id: keys[i] for i, site_id in enumerate(ids)}


@dataclasses.dataclass(frozen=True)
class Seed:
    """Draw every site; densities do not matter."""

    def records(self, located: Located) -> bool:
        return False

    def zero(self) -> Any:
        return None

    def in_lane(self, axis: PlateAxis | None) -> Seed:
        return self

    def join(self, axis: PlateAxis | None, size: int, totals: Any) -> Any:
        return None

    def check(self, eqn: Any, site: Site) -> None:
        return

    def site(self, site: Site, leaves: Sequence[Any], given: dict[Any, Any], key: Any) -> tuple[Any, Any, Any]:
        value = given_value(site, leaves)
        if value is None or (site.kind == SUBSAMPLE):
            refuse_improper(site)
            value = draw(site, leaves, key)
        return value, None, None


def seed(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function with random choices as an ordinary JAX function of a key.

    `ppl.seed(f)(key, *args)` runs `f(*args)`, drawing each site from a key derived from `key`, its address and its indices
    along `vmap` and `scan`. The result does not depend on other sites, nor on `jit`.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> def walk(steps):
        ...     def step(x, _):
        ...         return ppl.sample("x", dist.Normal(x, 1.0)), None
        ...     return jax.lax.scan(step, 0.0, None, length=steps)[0]
        >>> jax.jit(ppl.seed(walk), static_argnums=1)(jax.random.key(0), 10).shape
        ()
    """

    @functools.wraps(function, updated=())
    def seeded(key: Any, *args: Any, **kwargs: Any) -> Any:
        staged = stage(function, *args, **kwargs)
        inputs = Inputs(keys=site_keys(key, site_ids(staged.jaxpr.jaxpr)))
        return run_staged(staged, Seed(), inputs)[0]

    del seeded.__wrapped__  # type: ignore[attr-defined]  # its signature lacks the key
    return seeded


__all__ = ["FACTOR", "SAMPLE", "Seed", "seed", "site_keys"]
