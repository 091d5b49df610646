"""Kinds of density, and whether an objective uses each where it is right.

A log density is exact; or the log of an unbiased estimate of the *density*, as from `marginal` and `normalize`; or an unbiased
estimate of the *log density*, as from a stochastic trace (Hutchinson). The kind travels with the value as a note (`ppl.notes`).

The first estimate is right inside `exp`: in importance weights and averages of them. Linearly, in an ELBO, its log makes the
objective a bound of the exact one, on the side where optimizing it is safe. The second is right linearly, and nowhere else:
its `exp` overestimates, by Jensen's inequality, and no objective says by how much. Such a use is refused, and so is a square of
either, in which the noise counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.extend.core import Jaxpr, Literal
from jax.extend.core import primitives as jp

from ppl import errors
from ppl.lanes import inner_jaxprs
from ppl.notes import Note, note_p
from ppl.site import site_p
from ppl.transforms.interpret import scan_sizes

UNBIASED_DENSITY = "unbiased density"
UNBIASED_LOG_DENSITY = "unbiased log density"

_LINEAR = frozenset(
    """
    add add_any sub neg reduce_sum broadcast_in_dim reshape squeeze expand_dims transpose copy copy_p slice concatenate pad rev
    cumsum gather dynamic_slice select_n convert_element_type mul div dot_general stop_gradient optimization_barrier
    dynamic_update_slice scatter-add scatter_add
    """.split()
)
_SQUARES = frozenset("square integer_pow pow mul dot_general".split())
_NO_VALUE = frozenset("is_finite eq ne".split())
"""What is asked of a value to see whether it is a number."""


class Use(NamedTuple):
    """How an estimated density is used: linearly up to the result, or in a nonlinear operation."""

    note: Note
    operation: str | None


class _Flow:
    """The notes that reach each value linearly; `uses` collects where they end."""

    def __init__(self, kinds: Sequence[str]):
        self.kinds, self.uses = kinds, dict[Use, None]()

    def run(self, jaxpr: Jaxpr, ins: Sequence[dict[int, Note]]) -> list[dict[int, Note]]:
        env = dict(zip(jaxpr.invars, ins, strict=True))

        def read(atom: Any) -> dict[int, Note]:
            return {} if isinstance(atom, Literal) else env.get(atom, {})

        for eqn in jaxpr.eqns:
            operands = [read(atom) for atom in eqn.invars]
            env.update(zip(eqn.outvars, self.equation(eqn, operands), strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn: Any, ins: list[dict[int, Note]]) -> list[dict[int, Note]]:
        if eqn.primitive is note_p and eqn.params["note"].kind in self.kinds:
            return [{id(eqn.params["note"]): eqn.params["note"]}]
        inner = list(inner_jaxprs(eqn.params))
        if inner:
            return self._inside(eqn, inner, ins)
        name = eqn.primitive.name
        everything = _union(ins)
        if not everything or name in _NO_VALUE:
            return [{}] * len(eqn.outvars)
        shared = [a for i, a in enumerate(ins) for b in ins[i + 1 :] if a.keys() & b.keys()]
        nonlinear = (
            (name not in _LINEAR and eqn.primitive is not note_p)
            or (name in ("mul", "dot_general") and bool(shared))
            or (name in ("div", "gather", "dynamic_slice") and any(ins[1:]))
            or (name == "select_n" and bool(ins[0]))
        )
        if not nonlinear:
            return [everything] * len(eqn.outvars)
        operation = "a random choice" if eqn.primitive is site_p else name
        self.uses.update(dict.fromkeys(Use(note, operation) for note in everything.values()))
        return [{}] * len(eqn.outvars)

    def _inside(self, eqn: Any, inner: list[Jaxpr], ins: list[dict[int, Note]]) -> list[dict[int, Note]]:
        if eqn.primitive is jp.cond_p:
            branches = [self.run(branch, ins[1:]) for branch in inner]
            return [_union(outs) for outs in zip(*branches, strict=True)]
        if len(inner) == 1 and len(inner[0].invars) == len(ins) and eqn.primitive is not jp.scan_p:
            return self.run(inner[0], ins)
        if eqn.primitive is jp.scan_p:
            first, n_carry = scan_sizes(eqn)
            while True:
                outs = self.run(inner[0], ins)
                carry = [_union(pair) for pair in zip(ins[first : first + n_carry], outs[:n_carry], strict=True)]
                if [c.keys() for c in carry] == [c.keys() for c in ins[first : first + n_carry]]:
                    return outs
                ins = [*ins[:first], *carry, *ins[first + n_carry :]]
        everything = _union(ins)
        while True:  # a while_loop: whatever goes in may come out
            reached = _union([everything, *(out for body in inner for out in self.run(body, [everything] * len(body.invars)))])
            if reached.keys() == everything.keys():
                return [everything] * len(eqn.outvars)
            everything = reached


def _union(states: Sequence[dict[int, Note]]) -> dict[int, Note]:
    return {key: note for state in states for key, note in state.items()}


def uses_of(jaxpr: Jaxpr, kind: str) -> list[Use]:
    """How the values of one kind are used in an objective."""
    if not _any(jaxpr, lambda eqn: eqn.primitive is note_p and eqn.params["note"].kind == kind):
        return []
    flow = _Flow((kind,))
    outs = flow.run(jaxpr, [{}] * len(jaxpr.invars))
    flow.uses.update(dict.fromkeys(Use(note, None) for out in outs for note in out.values()))
    return list(flow.uses)


def _any(jaxpr: Jaxpr, holds: Callable[[Any], bool]) -> bool:
    return any(holds(eqn) or any(_any(inner, holds) for inner in inner_jaxprs(eqn.params)) for eqn in jaxpr.eqns)


def refuse_misuse(jaxpr: Jaxpr) -> None:
    """Refuse an objective that uses an unbiased log density other than linearly, or squares the log of an unbiased density."""
    squared = next((use for use in uses_of(jaxpr, UNBIASED_DENSITY) if use.operation in _SQUARES), None)
    if squared is not None:
        raise errors.DensityKindError(
            f"an exact log density is needed in place of {squared.note.reason}.\nIt is multiplied by itself "
            f"({squared.operation}), as in a variance, where the noise of the estimate would count. Integrate exactly "
            "(ppl.marginal without a proposal), or use it linearly or inside exp."
        )
    wrong = next((use for use in uses_of(jaxpr, UNBIASED_LOG_DENSITY) if use.operation is not None), None)
    if wrong is not None:
        raise errors.DensityKindError(
            f"{wrong.note.reason} is an unbiased estimate of a log density, and is used in {wrong.operation}.\n"
            f"  {wrong.note.where}\n"
            "It is right where it is added up, as in an ELBO. Inside exp (importance weights, IWAE, chi-square bounds, "
            "ppl.marginal, ppl.normalize) or squared it is biased: use an exact log density there, or the product of two "
            "independent estimates in place of a square."
        )


__all__ = ["UNBIASED_DENSITY", "UNBIASED_LOG_DENSITY", "Use", "refuse_misuse", "uses_of"]
