"""Notes: marks on values of a program that analyses find and that change nothing.

A note says that a value is of some kind, why, and where the user wrote it. To JAX it is the identity: it is differentiated and
batched through, and compiles to nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ppl.site import Where, user_frame


@dataclasses.dataclass(frozen=True)
class Note:
    """What is noted of a value.

    Attributes:
        kind: what it is, for the analysis that looks for it: `EXPECTATION`, or a word of another analysis.
        reason: for people: what gave the value.
        where: the user's source line.
    """

    kind: str
    reason: str
    where: Where


EXPECTATION = "expectation"
"""One draw of a nested expectation: unbiased wherever it is used linearly."""

note_p = Primitive("note")


def note(value: Any, kind: str, reason: str) -> Any:
    """The value, every array of real numbers in it with a note.

    Example:
        >>> import jax, ppl.notes
        >>> print(jax.make_jaxpr(lambda x: ppl.notes.note(x, "checked", "by hand"))(1.0).eqns[0].params["note"].kind)
        checked
    """
    mark = Note(kind, reason, user_frame())

    def write(leaf: Any) -> Any:
        return note_p.bind(leaf, note=mark) if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(write, value)


note_p.def_impl(lambda x, *, note: x)
note_p.def_abstract_eval(lambda x, *, note: x)
mlir.register_lowering(note_p, lambda ctx, x, *, note: [x])
batching.defvectorized(note_p)
# The tangent is no such value itself, so it goes without the note.
ad.primitive_jvps[note_p] = lambda primals, tangents, *, note: (note_p.bind(*primals, note=note), tangents[0])
