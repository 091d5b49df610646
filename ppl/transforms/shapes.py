"""What a trace of a program will hold, without running the program."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ppl.address import nest, parse
from ppl.site import FACTOR, Address, describe_support, show
from ppl.transforms.modify import Program, prepare
from ppl.transforms.stage import Located


class SiteShape(NamedTuple):
    """One row of `trace_shapes`. `support` is a NumPyro constraint, or None where it depends on traced parameters."""

    shape: tuple[int, ...]
    dtype: Any
    kind: str
    distribution: str
    support: Any
    axes: tuple[str, ...]
    where: str


class TraceShapes(Mapping[str, SiteShape]):
    """The sites of a program by address (`"sub/x"`); prints as a table."""

    def __init__(self, rows: dict[Address, SiteShape]):
        self._rows = rows

    def __getitem__(self, name: str) -> SiteShape:
        try:
            return self._rows[parse(name) if name != show(()) else ()]
        except KeyError:
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        return map(show, self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def as_trace(self) -> Any:
        """`jax.ShapeDtypeStruct`s in the nested dict that a trace of the program is."""
        recorded = {a: r for a, r in self._rows.items() if r.kind in ("sample", "deterministic", "subsample")}
        return nest({a: jax.ShapeDtypeStruct(row.shape, row.dtype) for a, row in recorded.items()})

    def __repr__(self) -> str:
        table: list[tuple[str, ...]] = [("address", "shape", "dtype", "kind", "distribution", "support", "stacked along")]
        for address, row in self._rows.items():
            support = describe_support(row.support) if row.distribution else ""
            cells = (list(row.shape), np.dtype(row.dtype).name, row.kind, row.distribution, support, ", ".join(row.axes))
            table.append((show(address), *map(str, cells)))
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in table)


def trace_shapes(program: Program) -> TraceShapes:
    """Addresses, shapes, dtypes, kinds, distributions and supports of a bound program's sites. Runs nothing.

    Example:
        >>> import jax, ppl, ppl.distributions as dist
        >>> @ppl.program
        ... def walk():
        ...     def step(x, _):
        ...         x = ppl.sample("x", dist.Normal(x, 1.0))
        ...         return x, None
        ...     jax.lax.scan(step, 0.0, None, length=10)
        >>> ppl.trace_shapes(walk())
        address  shape  dtype    kind    distribution  support  stacked along
        x        [10]   float32  sample  Normal        Real     scan
    """
    rows = {}
    for located in prepare(program).table:
        site = located.site
        if site.kind != FACTOR:
            rows[site.address] = _row(located)
    return TraceShapes(rows)


def _row(located: Located) -> SiteShape:
    site = located.site
    return SiteShape(located.shape, site.dtype, site.kind, site.distribution_name, site.support, located.axes, str(site.where))


__all__ = ["SiteShape", "TraceShapes", "trace_shapes"]
