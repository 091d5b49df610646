"""An objective as a sum: the values in it that are not linear in one another, and the linear rest.

The expectation of a linear function of values is that function of their expectations. So it is enough to estimate each *term*
with the weights of the sites that it depends on, element by element, and to apply the linear rest, the *tail*, to these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import Literal

from ppl.transforms import relaxed
from ppl.transforms.interpret import scan_sizes
from ppl.transforms.steps import Step, Steps, evaluate

_ALWAYS = frozenset(
    """
    add add_any sub neg reduce_sum broadcast_in_dim reshape squeeze expand_dims transpose copy copy_p slice concatenate pad rev
    cumsum note
    """.split()
)
_IN_ONE_OPERAND = frozenset("mul dot_general".split())
_IN_THE_FIRST = frozenset("div gather dynamic_slice".split())


@dataclasses.dataclass(frozen=True)
class Terms:
    """`numbers` are those of the terms, `tail` the steps from them to the result, `others` what else the tail reads."""

    numbers: tuple[int, ...]
    others: tuple[int, ...]
    tail: tuple[Step, ...]
    result: int


def terms_of(steps: Steps) -> Terms:
    """Take the last result of some steps apart into terms."""
    (result,) = steps.outs
    wanted = {result}
    tail: list[Step] = []
    terms: list[int] = []
    made: set[int] = set()

    def want(numbers: Sequence[int]) -> None:
        wanted.update(number for number in numbers if steps.influences[number])

    for step in reversed(steps.steps):
        outs = [number for number in step.outs if number in wanted and steps.influences[number]]
        made.update(outs)
        if not outs:
            continue
        if step.sums:
            carried = {step.outs[inc.carry] for inc in step.sums}
            terms += [number for number in outs if number not in carried]
            if any(number in carried for number in outs):
                tail.append(step)
                inner = [n for inc, n in zip(step.sums, step.increments, strict=True) if step.outs[inc.carry] in outs]
                terms += [number for number in inner if steps.influences[number]]
                want([_start(step, inc.carry) for inc in step.sums if step.outs[inc.carry] in outs])
        elif _linear(step, steps):
            tail.append(step)
            want(step.ins)
        else:
            terms += outs
    terms += [number for number in wanted if steps.influences[number] and number not in made]
    reads = [number for step in tail for number in (*step.ins, *step.increments)] + [result]
    others = [number for number in reads if not steps.influences[number]]
    return Terms(tuple(dict.fromkeys(terms)), tuple(dict.fromkeys(others)), tuple(tail[::-1]), result)


def _start(step: Step, carry: int) -> int:
    """The number of a carried value's start."""
    return step.ins[scan_sizes(step.eqn)[0] + carry]


def _linear(step: Step, steps: Steps) -> bool:
    """Whether a step is linear in what is random. Sums and products of integers are; their means are real numbers."""
    name = step.eqn.primitive.name
    dtypes = [atom.aval.dtype for atom in (*step.eqn.invars, *step.eqn.outvars)]
    if name == "convert_element_type":
        return _real(dtypes[0]) and _real(dtypes[1]) and (_floating(dtypes[1]) or not _floating(dtypes[0]))
    if _integer(dtypes[-1]) and not _extends(name, dtypes):
        return False
    random = [bool(steps.influences[number]) for number in step.ins]
    if name in _ALWAYS:
        return True
    if name in _IN_ONE_OPERAND:
        return sum(random) == 1
    if name in _IN_THE_FIRST:
        return not any(random[1:])
    if name == "select_n":
        return not random[0]
    return False


def _floating(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.floating)


def _integer(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)


def _real(dtype: Any) -> bool:
    return _floating(dtype) or jnp.issubdtype(dtype, jnp.signedinteger) or jnp.issubdtype(dtype, jnp.bool_)


def _extends(name: str, dtypes: Sequence[Any]) -> bool:
    """Whether a step on integers means the same for real numbers: no quotient, and nothing that wraps around at zero."""
    return name != "div" and not any(jnp.issubdtype(dtype, jnp.unsignedinteger) for dtype in dtypes)


def apply_tail(terms: Terms, read: Callable[[int], Any], estimates: dict[int, Any]) -> Any:
    """The result, given estimates of the terms. `read` gives the values of everything else."""
    values = dict(estimates)

    def look(number: int) -> Any:
        return values[number] if number in values else read(number)

    for step in terms.tail:
        if step.sums:
            for carry in {inc.carry for inc in step.sums}:
                total = look(_start(step, carry))
                for inc, number in zip(step.sums, step.increments, strict=True):
                    if inc.carry == carry:
                        total = total + inc.sign * jnp.sum(look(number), axis=0)
                values[step.outs[carry]] = total
        else:
            values.update(zip(step.outs, _evaluate(step, [look(number) for number in step.ins]), strict=True))
    return look(terms.result)


def _evaluate(step: Step, operands: Sequence[Any]) -> list[Any]:
    """A linear step, whose integers may have become means."""
    if not relaxed.changed(operands, step.eqn.invars):
        return evaluate(step, operands)
    values = {a: x for a, x in zip(step.eqn.invars, operands, strict=True) if not isinstance(a, Literal)}
    return relaxed.evaluate(step.alone, (), list(values.values()), ())


__all__ = ["Terms", "apply_tail", "terms_of"]
