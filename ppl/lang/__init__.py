"""The text syntax: models, families and objectives written as in a paper, elaborated to the programs of the Python API.

`docs/language.md` is its reference. `layout`, `operators` and `parser` make a `tree` of a text; `check` infers types;
`evaluate`, `statements`, `loops`, `binders` and `densities` elaborate it inside of JAX's tracing; `module` is what a file says.
"""

from ppl.lang.fits import FitSpec
from ppl.lang.formula import objective
from ppl.lang.module import Module, load
from ppl.lang.parser import parse
from ppl.lang.printer import format_source

__all__ = ["FitSpec", "Module", "format_source", "load", "objective", "parse"]
