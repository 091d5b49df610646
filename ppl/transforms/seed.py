"""`seed`: what is random is drawn from a key."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr

from ppl import errors
from ppl.densities import Noise, draw, takes_noise
from ppl.estimated import Estimated
from ppl.site import SAMPLE, SUBSAMPLE, Address, PlateAxis, Site
from ppl.transforms.expand import expanded
from ppl.transforms.interpret import Inputs, Record, SiteId, run_staged, site_ids
from ppl.transforms.simulate import given_value, refuse_improper
from ppl.transforms.stage import Located, sites, stage

_SMALL = 256
"""Sites of at most this many elements share one draw of noise, padded to the longest."""


@functools.cache
def _words(site_id: SiteId, count: int) -> tuple[int, ...]:
    digest = hashlib.blake2b(repr(site_id).encode(), digest_size=4 * count).digest()
    return tuple(int.from_bytes(digest[i : i + 4], "little") for i in range(0, 4 * count, 4))


def site_keys(key: Any, ids: Sequence[SiteId]) -> dict[SiteId, Any]:
    """A key for each site: a function of its address alone, not of its place in the program.

    The hash of the address is XORed into the key. JAX's generators are counter-based ciphers, whose streams under
    distinct keys are independent (Salmon et al. 2011), so nothing is hashed at run time.
    """
    if not ids:
        return {}
    if not jnp.issubdtype(jax.typeof(key).dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    if jnp.ndim(key):
        raise errors.ValueShapeError(
            f"it takes one key, got an array of keys, {list(jnp.shape(key))}. Map over them with jax.vmap."
        )
    data = jax.random.key_data(key)
    count = data.shape[-1]
    words = np.array([_words(site_id, count) for site_id in ids], np.uint32)
    keys = jax.random.wrap_key_data(data ^ words, impl=jax.random.key_impl(key))
    return {site_id: keys[i] for i, site_id in enumerate(ids)}


def random_inputs(key: Any, jaxpr: Jaxpr, wants_noise: Callable[[SiteId], bool], samples: int | None = None) -> Inputs:
    """A key for each site of a jaxpr, or the noise already drawn from it; `samples` of each, stacked, where that is a number.

    Normal noise is drawn for all small sites in one call, and for larger ones by size: on a CPU each call of the generator is
    a loop of its own, which would cost more than the rest of a small program.
    """
    ids = site_ids(jaxpr)
    keys: dict[SiteId, Any] = site_keys(key, list(dict.fromkeys(ids)))
    lead = () if samples is None else (samples,)
    # Without it, a longer draw does not begin with a shorter one.
    padding = getattr(jax.config, "jax_threefry_partitionable")  # noqa: B009
    groups: dict[Any, list[tuple[SiteId, tuple[int, ...]]]] = {}
    for site_id, located in zip(ids, sites(jaxpr), strict=True):
        site, shape = located.site, lead + located.site.full_shape
        if site.kind == SAMPLE and not located.in_body and wants_noise(site_id) and takes_noise(site):
            size = math.prod(shape)
            groups.setdefault((site.dtype, None if size <= _SMALL and padding else size), []).append((site_id, shape))
    if samples is not None:
        noisy = {site_id for group in groups.values() for site_id, _ in group}
        rest = [site_id for site_id in keys if site_id not in noisy]
        if rest:
            split = jax.vmap(lambda key: jax.random.split(key, samples))(jnp.stack([keys[site_id] for site_id in rest]))
            keys.update({site_id: split[i] for i, site_id in enumerate(rest)})
    for (dtype, _), group in groups.items():
        longest = max(math.prod(shape) for _, shape in group)
        normal = functools.partial(jax.random.normal, shape=(longest,), dtype=dtype)
        noise = jax.vmap(normal)(jnp.stack([keys[site_id] for site_id, _ in group]))
        for i, (site_id, shape) in enumerate(group):
            # An element of JAX's noise depends on the key and its index alone, so a longer draw begins with the shorter one.
            keys[site_id] = Noise(jnp.reshape(noise[i, : math.prod(shape)], shape))
    return Inputs(keys=keys)


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

    def estimated(self, estimated: Estimated, leaves: Sequence[Any], given: dict[Address, Any]) -> tuple[list[Any], Record]:
        raise NotImplementedError("estimated programs are expanded before they are run")


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
        staged = expanded(stage(function, *args, **kwargs))
        inputs = random_inputs(key, staged.jaxpr.jaxpr, lambda _: True)
        return run_staged(staged, Seed(), inputs)[0]

    del seeded.__wrapped__  # type: ignore[attr-defined]  # its signature lacks the key
    return seeded


__all__ = ["Seed", "random_inputs", "seed", "site_keys"]
