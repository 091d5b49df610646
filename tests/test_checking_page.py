"""Every Python block of docs/checking.md runs, in order, and prints what the text block after it shows, up to rounding."""

import contextlib
import io
import pathlib
import re
import warnings

import numpy as np
from test_readme import BLOCK

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "checking.md"
NUMBER = r"-?\d[\d,]*\.?\d*"


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
            found, expected = (re.findall(NUMBER, text) for text in (printed.getvalue(), block["output"] or ""))
            words = (re.sub(NUMBER, "0", text).split() for text in (printed.getvalue(), block["output"] or ""))
            assert next(words) == next(words), f"line {line + 1}"
            # Training rounds differently from one version of JAX to the next.
            assert np.allclose(
                [float(x.replace(",", "")) for x in found], [float(x.replace(",", "")) for x in expected], 0.1, 0.05
            )
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (PAGE.parent / target).exists(), target
