"""Whether a model and a variational family speak of the same latent variables, with the same supports."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from ppl import errors
from ppl.site import SAMPLE, Address, Site, describe_support, show
from ppl.supports import base, interval
from ppl.transforms.modify import Program, prepare
from ppl.transforms.stage import Located, density_addresses


def contains(model: Site, family: Site) -> bool | None:
    """Whether the model's support holds all that the family draws; None where it cannot be told."""
    if family.distribution_name == "Delta" or model.support is None or family.support is None:
        return None
    outer, inner = interval(model.support), interval(family.support)
    if outer is None or inner is None:
        same = type(base(model.support)) is type(base(family.support))
        return True if same else None
    discrete_outer, low_outer, high_outer = outer
    discrete_inner, low_inner, high_inner = inner
    if discrete_outer and not discrete_inner:
        return False
    return bool(np.all(low_inner >= low_outer) and np.all(high_inner <= high_outer))


def fits(model: Located, family: Located) -> bool:
    """Whether a value that the family draws is one that the model can score."""
    return not _problem(model, family)


def latents(program: Program) -> dict[Address, Located]:
    """The latent sites of a bound program."""
    return {a: item for a, item in density_addresses(prepare(program).table).items() if item.site.kind == SAMPLE}


@dataclasses.dataclass(frozen=True)
class Coverage:
    """A value that `simulate` drew at `family` and `log_density` scored at `model`, whose supports or plates' scales differ."""

    model: Located
    family: Located
    leaves: bool = False
    scaled_apart: bool = False


_collected: contextvars.ContextVar[list[Coverage] | None] = contextvars.ContextVar("collected", default=None)


@contextlib.contextmanager
def collecting() -> Iterator[list[Coverage]]:
    """Collect the supports that differ instead of refusing the first of them."""
    found: list[Coverage] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def collect(pairs: Iterable[tuple[Located, Located]]) -> bool:
    """Note the pairs (model, family) whose supports differ, if they are being collected; whether they are."""
    found = _collected.get()
    if found is None:
        return False
    for model, family in pairs:
        if (model.subsampled, model.scale) != (family.subsampled, family.scale):
            found.append(Coverage(model, family, scaled_apart=True))
        if model.shape == family.shape and contains(model.site, family.site) is False:
            found.append(Coverage(model, family, leaves=True))
        elif model.shape == family.shape and contains(family.site, model.site) is False:
            found.append(Coverage(model, family, leaves=False))
    return True


def check_family(model: Program, family: Program) -> None:
    """Refuse a variational family that does not fit a model, before anything is compiled.

    Args:
        model: a bound program, conditioned on its data.
        family: a bound program that should draw the model's latent variables.

    Raises:
        ModelFamilyMismatchError: with a table of latents, shapes and supports.

    Example:
        >>> import ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def model():
        ...     ppl.sample("rate", dist.Gamma(2.0, 1.0))
        >>> @ppl.program
        ... def family():
        ...     ppl.sample("rate", dist.Normal(0.0, 1.0))
        >>> ppl.check_family(model(), family())
        Traceback (most recent call last):
            ...
        ppl.errors.ModelFamilyMismatchError: the model and the variational family disagree:
        address  model               family          problem
        rate     float32[] Positive  float32[] Real  the family leaves the model's support
    """
    wanted, drawn = latents(model), latents(family)
    table = mismatch_table(wanted, drawn)
    if table:
        raise errors.ModelFamilyMismatchError("the model and the variational family disagree:\n" + table)


def mismatch_table(model: Mapping[Address, Located], family: Mapping[Address, Located]) -> str:
    """The disagreements, a line for each address; empty if there are none."""
    rows = []
    for address in sorted({*model, *family}):
        problem = _problem(model.get(address), family.get(address))
        rows.append((show(address), _describe(model.get(address)), _describe(family.get(address)), problem))
    if not any(row[-1] for row in rows):
        return ""
    rows.insert(0, ("address", "model", "family", "problem"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _problem(model: Located | None, family: Located | None) -> str:
    if family is None:
        return "the family does not draw it"
    if model is None:
        return "no latent of the model"
    if model.shape != family.shape:
        return "the shapes differ"
    if contains(model.site, family.site) is False:
        return "the family leaves the model's support"
    return ""


def _describe(located: Located | None) -> str:
    if located is None:
        return "-"
    return f"{np.dtype(located.site.dtype).name}{list(located.shape)} {describe_support(located.site.support)}"
