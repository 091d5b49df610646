"""Every Python block of README and of docs/ runs, in order, and prints what the text block after it shows.

A block marked "python no-test" needs what is not there: other machines, files of the reader's.
"""

import contextlib
import io
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"```python\n(?P<code>.*?)```(?:\n+```text\n(?P<output>.*?)```)?", re.DOTALL)

DOCUMENTS = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if BLOCK.search((ROOT / name).read_text())])
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
    for document in [ROOT / name for name in (*DOCUMENTS, "tutorials/README.md", "benchmarks/README.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document}: {target}"
