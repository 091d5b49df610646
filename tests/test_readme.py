"""Every Python block of README and of docs/ runs, in order, and prints what the text block after it shows.

A block marked "python no-test" needs what is not there: other machines, files of the reader's.
"""

import contextlib
import io
import pathlib
import re
import warnings

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"```python\n(?P<code>.*?)```(?:\n+```text\n(?P<output>.*?)```)?", re.DOTALL)
DOCUMENTS = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if BLOCK.search((ROOT / name).read_text())])
def test_blocks(document, tmp_path, monkeypatch):
    text = (ROOT / document).read_text()
    monkeypatch.chdir(tmp_path)  # a page may write pictures and files
    (tmp_path / "tutorials").symlink_to(ROOT / "tutorials")  # and read data
    namespace = {"__name__": "readme"}
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("code"))
        code = compile("\n" * line + block["code"], document, "exec")
        with contextlib.redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module="arviz")
            exec(code, namespace)
        found, expected = printed.getvalue(), block["output"] or ""
        where = f"{document}, line {line + 1}"
        assert NUMBER.sub("0", found).split() == NUMBER.sub("0", expected).split(), f"{where}:\n{found}"
        # Training rounds differently from one version of JAX, and of XLA's optimizations, to the next.
        np.testing.assert_allclose(numbers(found), numbers(expected), rtol=0.1, atol=0.02, err_msg=where)


def numbers(text):
    return [float(number.replace(",", "")) for number in NUMBER.findall(text)]


def test_pictures_and_links_exist():
    for document in [ROOT / name for name in (*DOCUMENTS, "tutorials/README.md", "benchmarks/README.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document}: {target}"
