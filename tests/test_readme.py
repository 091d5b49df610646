"""Every Python block of the READMEs runs, in order, and prints what the text block after it shows."""

import contextlib
import io
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"```python\n(?P<code>.*?)```(?:\n+```text\n(?P<output>.*?)```)?", re.DOTALL)


@pytest.mark.parametrize("document", ["README.md", "docs/transport.md"])
def test_blocks(document):
    text = (ROOT / document).read_text()
    blocks = list(BLOCK.finditer(text))
    assert blocks
    namespace = {"__name__": "readme"}
    for block in blocks:
        line = text.count("\n", 0, block.start("code"))
        code = compile("\n" * line + block["code"], document, "exec")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, namespace)
        expected = block["output"] or ""
        assert printed.getvalue().split() == expected.split(), f"{document}, line {line + 1}"


def test_pictures_and_links_exist():
    for document in (ROOT / "README.md", ROOT / "tutorials" / "README.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document}: {target}"
