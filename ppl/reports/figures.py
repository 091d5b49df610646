"""Pictures as inline SVG whose lines and letters take the colour of the page around them."""

from __future__ import annotations

import io
import re
from typing import Any

from ppl import errors
from ppl.program import Bound


def svg(figure: Any, label: str) -> str:
    """A matplotlib figure as an SVG element that scales with the page."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ppl"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), label)


def graph(program: Bound) -> str:
    """The dependency graph of a program as SVG; an empty string where Graphviz is not installed."""
    try:
        import graphviz

        from ppl.render import render

        drawn = render(program).pipe(format="svg").decode()
    except (ImportError, graphviz.ExecutableNotFound, errors.PPLError):
        return ""
    drawn = re.sub(r'<polygon fill="(white|#ffffff)" stroke="(none|transparent)"[^>]*/>', "", drawn)
    drawn = drawn.replace('fill="white"', 'fill="none"').replace('fill="#d3d3d3"', 'fill="#808080" fill-opacity="0.35"')
    return _inline(drawn, "dependency graph of the model")


def _inline(text: str, label: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<title>.*?</title>", "", text, flags=re.DOTALL)
    text = re.sub(r'(?<=[:"\s])(#000000|#000|black)(?=[;"\s])', "currentColor", text)
    text = re.sub("#0072b2", "var(--fit)", text, flags=re.IGNORECASE)
    text = re.sub("#d55e00", "var(--reference)", text, flags=re.IGNORECASE)
    head, rest = text.split(">", 1)
    width = re.search(r'width="([\d.]+)pt"', head)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    limit = f"max-width:{float(width.group(1)) * 4 / 3:.0f}px" if width else ""
    return f'{head} role="img" aria-label="{label}" style="{limit}">{rest}'
