"""The skeleton of the page: headings, tables and facts as HTML."""

from __future__ import annotations

import html
import importlib.resources
from collections.abc import Iterable, Sequence


def page(title: str, body: Iterable[str]) -> str:
    """A whole document without anything from elsewhere."""
    style = importlib.resources.files("ppl.reports").joinpath("style.css").read_text()
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title>\n<style>\n{style}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading with what stands under it; nothing where there is nothing."""
    inner = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{inner}\n</section>" if inner else ""


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{html.escape(text)}</p>' if text else ""


def code(text: str) -> str:
    return f"<pre><code>{html.escape(text.strip())}</code></pre>" if text.strip() else ""


def figure(drawn: str, kind: str = "") -> str:
    return f'<figure class="{kind}">{drawn}</figure>' if drawn else ""


def facts(rows: Iterable[tuple[str, str, str]]) -> str:
    """Numbers with their names and remarks, side by side where there is room."""
    cells = [
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}<small>{html.escape(remark)}</small></dd></div>"
        for name, value, remark in rows
    ]
    return f'<dl class="facts">{"".join(cells)}</dl>' if cells else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    if not lines:
        return ""
    top = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table></div>'
