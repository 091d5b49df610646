"""Families as source text."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist

from ppl.families.free import coordinates_of, needs_run
from ppl.families.latents import Latent, latents_of
from ppl.program import Bound

HEADER = """\
import jax
import jax.numpy as jnp

import ppl
import ppl.distributions as dist
"""


def family_source(name: str, statements: Sequence[str]) -> str:
    """The definition of a program of `params`."""
    lines = "\n".join(statements).replace("{name}", name).split("\n")
    body = "\n".join("    " + line if line else "" for line in lines)
    return f"\n\n@ppl.program\ndef {name}(params):\n{body}\n"


@functools.cache
def _constants() -> dict[int, str]:
    return {id(getattr(dist.constraints, name)): name for name in dist.constraints.__all__}


def constraint_text(latent: Latent) -> str:
    """A constraint, as text that makes it."""
    support = latent.support
    if id(support) in _constants():
        return f"dist.constraints.{_constants()[id(support)]}"
    for name in ("interval", "open_interval", "greater_than", "greater_than_eq", "less_than", "less_than_eq"):
        if type(support) is getattr(dist.constraints, name, None):
            bounds = [getattr(support, bound) for bound in ("lower_bound", "upper_bound") if hasattr(support, bound)]
            return f"dist.constraints.{name}({', '.join(map(array_text, bounds))})"
    for name in _constants().values():
        if type(support).__name__.strip("_").lower() == name.replace("_", "") and not jax.tree.leaves(support):
            return f"dist.constraints.{name}"
    return f"ppl.trace_shapes(model)[{quoted(latent.name)}].support"


def quoted(name: str) -> str:
    """A name as a string in the text."""
    return json.dumps(name, ensure_ascii=False)


def word(name: str) -> str:
    """A name as an identifier."""
    return "".join(c if c.isalnum() and c.isascii() else "_" for c in name)


def array_text(value: Any) -> str:
    """A number or array, as text that makes it."""
    array = np.asarray(value)
    if array.ndim == 0:
        number = array.item()
        return repr(number) if np.isfinite(number) else f"float({str(number)!r})"
    return f"jnp.array({array.tolist()!r})"


def joint_text(distribution: str, latents: Sequence[Latent], model: Bound) -> list[str]:
    """The statement that draws latent variables as one vector."""
    if list(needs_run(latents)):
        coordinates_of(model, latents)  # refuses what depends on variables of other families
        names = [latent.name for latent in latents]
        some = "" if len(latents) == len(latents_of(model, discrete=True, subsampled=True)) else f", {json.dumps(names)}"
        return [f"normal = {distribution}", f"ppl.families.joint(normal, model{some})"]
    items = []
    for latent in latents:
        support = constraint_text(latent)
        items.append(f"    {quoted(latent.name)}: " + (f"({support}, {latent.shape!r})" if latent.shape else support) + ",")
    return [f"normal = {distribution}", "parts = {", *items, "}", "ppl.families.joint(normal, parts)"]


def site_distribution(latent: Latent, normal: str) -> str:
    """A distribution over a latent's support, the image of a normal one over its unconstrained values."""
    support = latent.support
    if isinstance(support, type(dist.constraints.real)):
        return normal
    if isinstance(support, type(dist.constraints.positive)) and normal.startswith("dist.Normal("):
        return "dist.LogNormal(" + normal.removeprefix("dist.Normal(")
    return f"dist.TransformedDistribution({normal}, dist.biject_to({constraint_text(latent)}))"


def free_text(latent: Latent, value: str) -> str:
    """The unconstrained value of a value."""
    if isinstance(latent.support, type(dist.constraints.real)):
        return value
    if isinstance(latent.support, type(dist.constraints.positive)):
        return f"jnp.log({value})"
    return f"dist.biject_to({constraint_text(latent)}).inv({value})"
