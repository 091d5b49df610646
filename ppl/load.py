"""`load`: what was saved, by the suffix of the file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppl import lang
from ppl.inference.fit import Fit
from ppl.inference.saving import read


def load(
    path: str | os.PathLike[str],
    data: Mapping[str, Any] | None = None,
    *,
    like: Any = None,
    model: Any = None,
    family: Any = None,
    python_imports: bool = False,
) -> Any:
    """A fit that `fit.save` wrote, or the programs and objectives of a `.vi` file. No code in either is run.

    Args:
        path: of the file.
        data: of a `.vi` file, arrays by name, as in `ppl.lang.load`.
        like: a template, needed where parameters are more than dicts, lists, tuples, numbers and arrays (a network, say):
            parameters of the same structure, or a fit whose optimizer state, model and family serve too. Its values do not
            matter, except for leaves that are no data, such as the functions in a network.
        model, family: programs are not saved; say them again for the fit's methods.
        python_imports: whether a `.vi` file may import Python modules, which runs their code.

    Returns:
        The `ppl.lang.Module` of a `.vi` file, or the fit. Its optimizer state is None unless a fit was given as template.

    Raises:
        LanguageError: the text of a `.vi` file is wrong.
        SavedFileError: the file is none of ours, is damaged, or differs from the template.
        FileNotFoundError: there is none.

    Example:
        >>> import os, tempfile, numpy as np, ppl
        >>> fit = ppl.Fit({"mean": np.array([1.0, 2.0])}, np.array([-3.0, -2.5]), None)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "fit.npz")
        ...     fit.save(path)
        ...     ppl.load(path).params
        {'mean': array([1., 2.])}
    """
    if Path(path).suffix == ".vi":
        return lang.load(path, data, python_imports=python_imports)
    fields: dict[str, Any] = {"optimizer_state": None} | read(path, like, Fit)
    if isinstance(like, Fit):
        model, family = model or like.model, family or like.family
    return Fit(**fields, model=model, family=family)


__all__ = ["load"]
