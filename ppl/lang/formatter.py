"""Lines of a file with its comments and blank lines."""

from __future__ import annotations

from ppl.lang import tree
from ppl.lang.printer import lines

_BLOCKS = tree.Program | tree.Function | tree.Objective


def layout(file: tree.File) -> str:
    """The text of a file. Comments on lines of their own stay before the line that they stand before, others behind theirs."""
    text, comments = file.text, list(file.comments)
    out: list[str] = []
    last_end = 0
    before = (0, 0)  # depth of the line printed last, and its column in the text

    def gap(start: int) -> bool:
        """Whether a blank line stands between what was printed last and this."""
        between = text[last_end:start]
        return between.count("\n") > 1

    def column(offset: int) -> int:
        return offset - (text.rfind("\n", 0, offset) + 1)

    def take(limit: int, depth: int) -> None:
        """The comments before a place, those on lines of their own at the depth of the line that they go with."""
        nonlocal last_end
        while comments and comments[0].span[0] < limit:
            comment = comments.pop(0)
            line_start = text.rfind("\n", 0, comment.span[0]) + 1
            if out and text[line_start : comment.span[0]].strip():
                out[-1] += f"  {comment.text}"
            else:
                if out and gap(comment.span[0]) and out[-1]:
                    out.append("")
                here = column(comment.span[0])
                inside = depth > before[0] and here > before[1]
                out.append("    " * (before[0] if here >= before[1] and not inside else depth) + comment.text)
            last_end = comment.span[1]

    previous: tree.Node | None = None
    for item in file.items:
        entries = list(lines(item))
        for place, (depth, line, node) in enumerate(entries):
            start, end = _header(node, entries, place)
            if text:
                take(start, depth)
            apart = gap(start) if text and out and not isinstance(node, tree.Comment) else False
            if place == 0 and previous is not None and not (text and _comment_before(out)):
                apart = apart or isinstance(item, _BLOCKS) or isinstance(previous, _BLOCKS)
            if apart and out and out[-1]:
                out.append("")
            out.append("    " * depth + line)
            last_end = max(last_end, end)
            before = (depth, column(start) if text else 0)
            if text:
                stop = text.find("\n", end)
                take(len(text) if stop < 0 else stop, depth)
        previous = item
    take(len(text) + 1, 0)
    return "\n".join(out) + "\n" if out else ""


def _comment_before(out: list[str]) -> bool:
    return bool(out) and out[-1].lstrip().startswith("#")


def _header(node: tree.Node, entries: list[tuple[int, str, tree.Node]], place: int) -> tuple[int, int]:
    """Where a line's own part begins and ends: a block's header ends before its first statement."""
    start, end = node.span
    if isinstance(node, tree.Comment):
        return start, start
    if isinstance(node, (_BLOCKS, tree.For, tree.If)) and place + 1 < len(entries):
        parts = [
            child
            for child in tree.children(node)
            if isinstance(child, tree.Draw | tree.Define | tree.Factor | tree.Return | tree.Evaluate | tree.For | tree.If)
        ]
        if parts and not (isinstance(node, tree.Function) and entries[place][1].rstrip()[-1:] != ":"):
            others = [child.span[1] for child in tree.children(node) if child.span[1] <= parts[0].span[0]]
            end = max([start, *others])
    return start, end
