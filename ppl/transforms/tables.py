"""Tables of text."""

from __future__ import annotations

from collections.abc import Sequence


def render(rows: Sequence[Sequence[object]]) -> str:
    """Rows of cells, the first of them the head, in columns."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)
