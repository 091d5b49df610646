"""`Family`: a variational family generated from a model, which is the program that its source text says."""

from __future__ import annotations

import dataclasses
import functools
import linecache
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import errors
from ppl.families.latents import Latent
from ppl.families.start import Centre, centre_of
from ppl.families.text import HEADER, family_source, word
from ppl.program import Bound, Program


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """A variational family: a function from parameters to a bound program with the model's latent variables.

    The program is the one that `source()` (and `print(family)`) shows, which can be pasted and edited. It is made of that text,
    so that what is shown is what runs.

    Attributes:
        model: the bound program it was generated from.
        latents: the latent variables it draws.
        statements: the body of the program, lines of Python.
        names: what the text refers to beside `ppl`, `dist`, `jax` and `jnp`.
        start: from a key and the place to start from to initial parameters.
        kind: the name of the constructor.
        fits: what parameters look like, to check those that are given; None if any do.
    """

    model: Bound
    latents: Sequence[Latent]
    statements: Sequence[str]
    names: Mapping[str, Any]
    start: Callable[[Any, Centre], Any]
    kind: str
    fits: Any = None
    parts: Mapping[str, Family] = dataclasses.field(default_factory=dict)

    def __call__(self, params: Any) -> Bound:
        """The bound program at some parameters.

        Raises:
            FamilyError: the parameters have another structure or other shapes than `init` gives.
        """
        if self.fits is not None:
            check_params(params, self.fits, self.kind)
        return self.program(params)

    def init(self, key: Any, *, at: Mapping[str, Any] | None = None) -> Any:
        """Initial parameters: narrow (a standard deviation of 0.1 without constraints) around the best of a few places.

        The places are the median of draws from the prior, and uniform draws without constraints. Where the model's log density
        or its gradient is not finite, others are tried.

        Args:
            key: decides the draws.
            at: a trace, or a part of one, to start from.

        Raises:
            FamilyError: the log density or its gradient is finite nowhere; the addresses that are not are named.
        """
        if not self.latents:
            return self.start(key, Centre({}, jnp.zeros(0), None))
        return self.start(key, centre_of(self.model, self.latents, key, at))

    @functools.cached_property
    def program(self) -> Program:
        """The family as a program of its parameters."""
        text = self.source()
        file = f"<{self.kind} {id(self):x}>"
        namespace: dict[str, Any] = dict(self.namespace())
        exec(compile(text, file, "exec"), namespace)
        linecache.cache[file] = (len(text), None, text.splitlines(True), file)
        return namespace["family"]

    def namespace(self) -> dict[str, Any]:
        """What the text refers to beside its imports: `exec(family.source(), family.namespace())` makes the program again."""
        named: dict[str, Any] = {"model": self.model, **self.names}
        for part in self.parts.values():
            named |= part.namespace()
        return named

    def source(self, name: str = "family") -> str:
        """The program as Python text, ready to be pasted. `model` in it is the model, where it occurs."""
        inner = [part.source(f"{name}_{word(key)}").removeprefix(HEADER) for key, part in self.parts.items()]
        return HEADER + "".join(inner) + family_source(name, self.statements)

    def __str__(self) -> str:
        return self.source()

    def __repr__(self) -> str:
        names = ", ".join(latent.name for latent in self.latents)
        return f"Family({self.kind}: {names})"

    @property
    def size(self) -> int:
        """The number of parameters; that of an encoder is not known to its family."""
        return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(self.fits))


def check_params(params: Any, fits: Any, kind: str) -> None:
    """Refuse parameters that are not shaped like `fits`."""
    found = jax.tree_util.tree_flatten_with_path(params)[0]
    wanted = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(fits)[0]}
    given = {jax.tree_util.keystr(path): leaf for path, leaf in found}
    problems = [f"{path} is missing" for path in wanted if path not in given]
    problems += [f"{path} is unknown" for path in given if path not in wanted]
    for path in wanted.keys() & given.keys():
        if tuple(np.shape(given[path])) != tuple(wanted[path].shape):
            problems.append(f"{path} has shape {list(np.shape(given[path]))}, not {list(wanted[path].shape)}")
    if problems:
        raise errors.FamilyError(
            f"these are no parameters of the family {kind}: {'; '.join(sorted(problems))}.\nfamily.init(key) gives some."
        )


def shapes(params: Any) -> Any:
    """The shapes of parameters."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), params)
