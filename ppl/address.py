"""Addresses and traces: a trace is a nested dict of arrays, an address the path to one of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from ppl.site import Address, show


def parse(name: str) -> Address:
    """`"sub/x"` is `("sub", "x")`."""
    if not isinstance(name, str) or not name or not all(name.split("/")):
        raise TypeError(f"an address is a non-empty string, with '/' between the parts of a path; got {name!r}")
    return tuple(name.split("/"))


def flatten(trace: Any) -> dict[Address, Any]:
    """Values by address. A trace that is no dict holds its one value at the empty address."""
    if not isinstance(trace, Mapping):
        return {(): trace}
    return {(*parse(name), *rest): value for name, inner in trace.items() for rest, value in flatten(inner).items()}


def nest(values: Mapping[Address, Any]) -> Any:
    """The nested dict of values by address."""
    if () in values:
        return values[()]
    trace: dict[str, Any] = {}
    for address, value in values.items():
        inner = trace
        for name in address[:-1]:
            inner = inner.setdefault(name, {})
        inner[address[-1]] = value
    return trace


def covers(prefix: Address, address: Address) -> bool:
    return address[: len(prefix)] == prefix


def suggest(address: Address, known: Iterable[Address]) -> str:
    """A hint for a misspelt address."""
    names = [show(other) for other in known]
    close = difflib.get_close_matches(show(address), names, n=1)
    return (f" Did you mean {close[0]!r}?" if close else "") + f" The program has: {', '.join(names) or 'no sites'}."
