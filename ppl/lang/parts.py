"""Parts of the parameters, for objectives that train some of them: dicts by path (`q`, `q.m`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Part = dict[str, Any]


def split(params: Mapping[str, Any], over: Mapping[str, Iterable[str]]) -> tuple[dict[str, Part], dict[str, Any]]:
    """The part of the parameters that each objective trains, and what none does."""
    rest = {name: dict(value) if isinstance(value, dict) else value for name, value in params.items()}
    return {name: {path: _take(rest, path) for path in paths} for name, paths in over.items()}, rest


def joined(parts: Iterable[Part], rest: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that `split` took apart."""
    found = {name: dict(value) if isinstance(value, dict) else value for name, value in rest.items()}
    for path, value in (item for part in parts for item in part.items()):
        first, _, inner = path.partition(".")
        if inner:
            found.setdefault(first, {})[inner] = value
        else:
            found[first] = value
    return found


def _take(rest: dict[str, Any], path: str) -> Any:
    first, _, inner = path.partition(".")
    return rest[first].pop(inner) if inner else rest.pop(first)
