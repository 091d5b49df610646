"""The command line: fit a file, check it, draw from it, format it."""

from __future__ import annotations

import contextlib
import difflib
import functools
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

FAILED, USAGE, FOUND, INTERRUPTED = 1, 2, 3, 130

app = typer.Typer(
    help="Programmable variational inference: models, families and objectives in .vi files.",
    epilog="Exit codes: 0 done, 1 an error in a file, its data or a fit, 2 wrong usage, 3 a check or a format found something.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
out, err = Console(highlight=False), Console(stderr=True, highlight=False)

File = Annotated[Path, typer.Argument(help="A .vi file.", exists=True, dir_okay=False)]
Data = Annotated[
    list[Path] | None, typer.Option("--data", "-d", help="Data: .json, .csv or .npz; may be repeated.", exists=True)
]
Python = Annotated[bool, typer.Option("--python-imports", help="Allow 'from module import name', which runs Python code.")]
Seed = Annotated[int | None, typer.Option(help="Of all randomness; the file's, or 0.")]


class _FailureError(Exception):
    """Something to say before leaving with an exit code."""

    def __init__(self, message: str, code: int = FAILED):
        super().__init__(message)
        self.code = code


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Errors that the user can do something about are shown as text, without a traceback."""
    from ppl.errors import PPLError

    try:
        yield
    except _FailureError as failure:
        err.print(Text(f"error: {failure}", style="red"), soft_wrap=True)
        raise typer.Exit(failure.code) from None
    except (PPLError, OSError, ImportError) as error:
        err.print(Text("error:", style="bold red"), Text(str(error)), soft_wrap=True)
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        err.print("interrupted")
        raise typer.Exit(INTERRUPTED) from None


def _command(function: Any) -> Any:
    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        with _failures():
            function(*args, **kwargs)

    return app.command()(guarded)


def _load(file: Path, data: list[Path] | None, python_imports: bool) -> Any:
    from ppl import lang
    from ppl.lang.files import read_data

    module = lang.load(file, python_imports=python_imports)
    given: dict[str, Any] = {}
    for path in data or ():
        given |= read_data(path, module.declared)
    missing = [name for name in module.declared if name not in given]
    if missing and data:
        raise _FailureError(f"{', '.join(map(str, data))}: no {', '.join(missing)}, which {file} declares as data")
    if missing:
        raise _FailureError(f"{file} declares data ({', '.join(missing)}): give them with --data FILE")
    return module.with_data(given) if given else module


def _table(head: tuple[str, ...], rows: Any, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for i, name in enumerate(head):
        table.add_column(name, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


@_command
def fit(
    file: File,
    data: Data = None,
    report: Annotated[Path | None, typer.Option(help="Write a page about the fit: one HTML file.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A folder for fit.npz and draws.npz, and for checkpoints: run again to go on."),
    ] = None,
    only: Annotated[
        int | None, typer.Option("--fit", help="Which fit statement of the file, from 1; all if not given.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps, in place of the file's.", min=1)] = None,
    samples: Annotated[int | None, typer.Option(help="Samples a step, in place of the file's.", min=1)] = None,
    draws: Annotated[int, typer.Option(help="Draws of the fitted family to show.", min=100)] = 4000,
    seed: Seed = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
    python_imports: Python = False,
) -> None:
    """Run the fit statements of a file and show what came out."""
    if report is not None:
        _report_needs()
    module = _load(file, data, python_imports)
    if not module.fits:
        raise _FailureError(
            f"{file} has no fit statement. Add one, for example: fit {_some(module.objectives)} with adam(0.01)"
        )
    if only is not None and not 1 <= only <= len(module.fits):
        raise _FailureError(f"{file} has {len(module.fits)} fit statements, and --fit is {only}", USAGE)
    chosen = list(enumerate(module.fits, 1)) if only is None else [(only, module.fits[only - 1])]
    for number, spec in chosen:
        tag = "" if len(chosen) == 1 else f"-{number}-{'-'.join(spec.names)}"
        _fit_one(spec, file, tag, report, output, steps, samples, draws, seed, quiet)


def _fit_one(
    spec: Any,
    file: Path,
    tag: str,
    report: Path | None,
    output: Path | None,
    steps: int | None,
    samples: int | None,
    draws: int,
    seed: int | None,
    quiet: bool,
) -> None:
    import ppl
    from ppl.reports.tables import HEAD, elements, posterior_rows

    seed = spec.seed if seed is None else seed
    options: dict[str, Any] = {"progress": not quiet}
    options |= {name: value for name, value in (("steps", steps), ("samples", samples)) if value is not None}
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        options["checkpoint"] = output / f"checkpoint{tag}"
    out.print(Text(f"{file.name}: {' and '.join(spec.names)}", style="bold"))
    found = spec.run(key=jax.random.key(seed), **options)
    model, family = spec.programs
    draw_key, check_key, report_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), 3)
    if family is not None:
        traces = found.sample(draw_key, draws)
        rows, remark = posterior_rows(elements(traces, 1))
        out.print(_table(HEAD, rows), *([remark] if remark else []), sep="\n")
        if output is not None:
            _save_draws(output / f"draws{tag}.npz", traces)
    if output is not None:
        found.save(output / f"fit{tag}.npz")
    out.print()
    if model is None or family is None:
        out.print(Text(str(found)), soft_wrap=True)
    else:
        try:
            out.print(Text(str(found.check(check_key, draws=draws))), soft_wrap=True)
        except ImportError as error:
            out.print(Text(f"{found}\nIs it to be trusted? {error}"), soft_wrap=True)
    if report is not None:
        path = report.with_stem(report.stem + tag)
        path.parent.mkdir(parents=True, exist_ok=True)
        settings = {"file": file.name, "objective": " and ".join(spec.names), "seed": seed}
        title = f"{file.stem}: {' and '.join(spec.names)}"
        source = file.read_text(encoding="utf-8-sig")
        ppl.report(found, path, report_key, title=title, source=source, settings=settings, count_from=1)
        out.print(f"\nreport: {path}")


def _report_needs() -> None:
    """Say what is missing before a long fit, and not behind it."""
    try:
        import arviz  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise _FailureError("a report needs ArviZ and matplotlib: pip install 'ppl[diagnostics]'") from error


def _save_draws(path: Path, traces: Any) -> None:
    from ppl.address import flatten
    from ppl.site import show

    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        np.savez(file, **{show(address): np.asarray(value) for address, value in flatten(traces).items()})  # type: ignore[arg-type]
    temporary.replace(path)


def _some(names: Any) -> str:
    return names[0] if names else "elbo"


@_command
def check(file: File, data: Data = None, python_imports: Python = False) -> None:
    """Types and shapes of a file; with its data also supports, and the estimators of each objective: are they unbiased?"""
    from ppl import lang
    from ppl.transforms.inforce import show_estimator

    module = lang.load(file, python_imports=python_imports)
    if module.declared and not data:
        out.print(f"{file}: types and shapes are right. Give --data to check supports and estimators too.")
        return
    module = _load(file, data, python_imports)
    params = module.init(jax.random.key(0))
    findings = 0
    for name in module.objectives:
        result = module.objective(name).check(params)
        rows = [
            (row.address, row.distribution, show_estimator(row.estimator), "yes" if row.unbiased else "NO", str(row.branches))
            for row in result.sites
        ]
        out.print(_table(("site", "distribution", "estimator", "unbiased", "branches"), rows, f"objective {name}"))
        for finding in result:
            out.print(Text(str(finding), style="yellow"), soft_wrap=True)
        out.print(Text("" if list(result) else "every condition for unbiased gradients holds", style="green"))
        findings += not result.ok
    if findings:
        raise typer.Exit(FOUND)


@_command
def sample(
    file: File,
    program: Annotated[str, typer.Option("--program", "-p", help="Which program; the file's first if not given.")] = "",
    number: Annotated[int, typer.Option("-n", help="Draws.", min=1)] = 1000,
    data: Data = None,
    output: Annotated[Path | None, typer.Option("--out", "-o", help="Write the draws there, as .npz.")] = None,
    seed: Seed = 0,
    python_imports: Python = False,
) -> None:
    """Draw from a program of a file at its initial parameters: a model's prior, with what it would observe."""
    from ppl.diagnostics.predictive import prior_predictive
    from ppl.reports.tables import HEAD, elements, posterior_rows

    module = _load(file, data, python_imports)
    if not module.programs:
        raise _FailureError(f"{file} has no model or family")
    name = program or module.programs[0]
    if name not in module.programs:
        raise _FailureError(f"{file} has no program {name!r}; it has {', '.join(module.programs)}", USAGE)
    bound = module.at(name, module.init(jax.random.key(0)))
    traces = prior_predictive(bound, jax.random.key(seed or 0), number)
    rows, remark = posterior_rows(elements(traces, 1))
    out.print(_table(HEAD, rows, f"{name}, {number:,} draws"), *([remark] if remark else []), sep="\n")
    if output is not None:
        _save_draws(output, traces)


@_command
def render(
    file: File,
    output: Annotated[Path, typer.Argument(help="Where: .svg, .png, .pdf, or .dot for the text of the graph.")],
    program: Annotated[str, typer.Option("--program", "-p", help="Which program; the file's first if not given.")] = "",
    data: Data = None,
    python_imports: Python = False,
) -> None:
    """Draw the dependency graph of a program."""
    import ppl

    module = _load(file, data, python_imports)
    name = program or _some(module.programs)
    if name not in module.programs:
        raise _FailureError(f"{file} has no program {name!r}; it has {', '.join(module.programs)}", USAGE)
    graph = ppl.render(module.at(name, module.init(jax.random.key(0))))
    if output.suffix == ".dot":
        output.write_text(graph.source)
        return
    import graphviz

    try:
        output.write_bytes(graph.pipe(format=output.suffix.lstrip(".") or "svg"))
    except graphviz.ExecutableNotFound:
        raise _FailureError(
            "pictures need Graphviz's program dot (https://graphviz.org/download/); .dot files do not"
        ) from None
    except graphviz.CalledProcessError:
        raise _FailureError(f"Graphviz cannot write {output.suffix or 'files without a suffix'}", USAGE) from None


@_command
def format(
    files: Annotated[list[Path], typer.Argument(help="The .vi files.", exists=True, dir_okay=False)],
    check_only: Annotated[bool, typer.Option("--check", help="Change nothing; exit with 3 if something would change.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Change nothing; show what would change.")] = False,
) -> None:
    """Lay files out in the one standard way."""
    from ppl.lang import format_source
    from ppl.lang.parser import read

    changed = 0
    for file in files:
        text = read(file).text
        formatted = format_source(text)
        if formatted == text:
            continue
        changed += 1
        if diff:
            lines = difflib.unified_diff(text.splitlines(True), formatted.splitlines(True), str(file), f"{file} (formatted)")
            sys.stdout.writelines(lines)
        elif check_only:
            out.print(f"would change {file}")
        else:
            temporary = file.with_name(f".{file.name}")
            temporary.write_text(formatted, encoding="utf-8")
            temporary.replace(file)
            out.print(f"changed {file}")
    if changed and (check_only or diff):
        raise typer.Exit(FOUND)


@_command
def new(file: Annotated[Path, typer.Argument(help="Where to put it; a .json file with data goes beside it.")]) -> None:
    """Write a commented file to start from, and data for it."""
    starter = resources.files("ppl.lang").joinpath("starter")
    data = file.with_suffix(".json")
    for path in (file, data):
        if path.exists():
            raise _FailureError(f"{path} exists already, and is left as it is")
    file.write_text(starter.joinpath("starter.vi").read_text(encoding="utf-8"), encoding="utf-8")
    data.write_text(starter.joinpath("starter.json").read_text(encoding="utf-8"), encoding="utf-8")
    out.print(f"wrote {file} and {data}. Next: ppl fit {file} --data {data}")


def main() -> None:
    app()
