"""Every Python block of docs/checking.md runs, in order, and prints what the text block after it shows."""

import contextlib
import io
import pathlib
import re
import warnings

from test_readme import BLOCK

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "checking.md"


def test_blocks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it writes a picture and a fit
    text = PAGE.read_text()
    namespace = {"__name__": "page"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="arviz")
        for block in BLOCK.finditer(text):
            line = text.count("\n", 0, block.start("code"))
            code = compile("\n" * line + block["code"], PAGE.name, "exec")
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(code, namespace)
            assert printed.getvalue().split() == (block["output"] or "").split(), f"line {line + 1}"
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (PAGE.parent / target).exists(), target
