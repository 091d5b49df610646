"""`report`: everything about a fit on one page."""

from __future__ import annotations

import html
import importlib.metadata
import inspect
import math
import os
import platform
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ppl.diagnostics import plots
from ppl.diagnostics.check import Check
from ppl.inference.fit import Fit
from ppl.program import Bound, Program
from ppl.reports import figures
from ppl.reports.page import code, facts, figure, page, paragraph, section, table
from ppl.reports.tables import HEAD, elements, parameter_rows, posterior_rows
from ppl.site import describe_support
from ppl.transforms.shapes import trace_shapes

PACKAGES = ("ppl", "jax", "jaxlib", "numpyro", "optax", "numpy")
DRAWS = 4000


def report(
    fit: Fit,
    path: str | os.PathLike[str],
    key: Any,
    *,
    title: str | None = None,
    source: str | None = None,
    settings: Mapping[str, Any] | None = None,
    reference: Any = None,
    count_from: int = 0,
) -> Path:
    """Write one HTML page about a fit, which needs no network to be read.

    It has the program and its graph, the objective with its uncertainty, the posterior as a table and pictures, what
    `fit.check` finds in words, and versions and key to do it again. The graph needs Graphviz (the program `dot`); without it
    there is the table of sites alone. Of a fit without model or family, such as that of a flow, the page has the objective,
    its training and the parameters.

    Args:
        fit: the fit.
        path: where to write it; what is there is replaced as a whole.
        key: a PRNG key, for the draws shown.
        title: of the page; the model's name if None.
        source: the text of the programs; that of the Python functions if None.
        settings: what else it takes to do it again, by name.
        reference: draws by address to show beside the fit's, such as those of MCMC.
        count_from: the index of an array's first element in names such as `theta[0]`; 1 in `.vi` files.

    Returns:
        The path.

    Example:
        >>> import jax, numpy as np, pathlib, ppl, tempfile, ppl.distributions as dist
        >>> from ppl import report
        >>> @ppl.program
        ... def model():
        ...     z = ppl.sample("z", dist.Normal(0.0, 1.0))
        ...     ppl.sample("x", dist.Normal(z, 1.0), obs=1.0)
        >>> family = ppl.program(lambda mean: ppl.sample("z", dist.Normal(mean, 0.5**0.5)))
        >>> fit = ppl.Fit(0.5, np.zeros(0), None, model=model(), family=family)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = report(fit, pathlib.Path(folder) / "fit.html", jax.random.key(0)).read_text()
        >>> "Nothing speaks against" in page
        True
    """
    history = _histories(fit)
    if fit.model is None or fit.family is None:
        title = title if title is not None else " and ".join(history)
        top = _without_posterior(fit, history, count_from)
        parts = [code(source or _source(fit))]
    else:
        title = title if title is not None else _name(fit.target)
        top = _with_posterior(fit, history, key, reference, count_from)
        parts = [figure(figures.graph(fit.target)), _sites(fit.target), code(source or _source(fit))]
    body = [
        f"<h1>{html.escape(title)}</h1>",
        *top,
        section("Training", *[_training(name, values) for name, values in history.items()]),
        section("Program", *parts),
        section("To do it again", facts((name, str(value), "") for name, value in _settings(key, settings).items())),
    ]
    return _write(Path(path), page(title, body))


def _with_posterior(fit: Fit, history: Mapping[str, np.ndarray], key: Any, reference: Any, count_from: int) -> list[str]:
    draw_key, check_key = jax.random.split(key)
    draws = elements(fit.sample(draw_key, DRAWS), count_from)
    beside = reference if reference is None or not count_from else elements(reference, count_from)
    found = fit.check(check_key, draws=DRAWS)
    rows, remark = posterior_rows(draws)
    return [
        paragraph(f"{_steps(history)}{len(draws)} number{'s' if len(draws) != 1 else ''} in the posterior", "lead"),
        paragraph(_verdict(found), "verdict good" if found.ok else "verdict warning"),
        facts(_facts(found)),
        section("Findings", _findings(found)),
        section("Posterior", table(HEAD, rows), paragraph(remark, "lead"), *_pictures(draws, beside)),
    ]


def _without_posterior(fit: Fit, history: Mapping[str, np.ndarray], count_from: int) -> list[str]:
    rows, remark = parameter_rows(fit.params, count_from)
    ends = {name: values[-max(1, len(values) // 10) :] for name, values in history.items() if len(values)}
    return [
        paragraph(f"{_steps(history)}no model and family, so there is no posterior to show", "lead"),
        facts((name, f"{end.mean():.4g}", f"sd {end.std():.2g}, last {len(end)} steps") for name, end in ends.items()),
        section("Parameters", table(("", "value"), rows), paragraph(remark, "lead")),
    ]


def _write(path: Path, text: str) -> Path:
    """Beside its place first, so that a crash leaves the old page as it was."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    return path


def _histories(fit: Fit) -> dict[str, np.ndarray]:
    return dict(fit.history) if isinstance(fit.history, Mapping) else {"objective": np.asarray(fit.history)}


def _steps(history: Mapping[str, np.ndarray]) -> str:
    steps = max(map(len, history.values()))
    return f"{steps:,} steps · " if steps else ""


def _verdict(found: Check) -> str:
    if found.ok:
        return "Nothing speaks against this fit."
    warnings = len(found.warnings)
    return f"{warnings} warning{'s' if warnings > 1 else ''}: read the findings before using these numbers."


def _facts(found: Check) -> list[tuple[str, str, str]]:
    trusted = found.weights_reliable
    doubt = "" if trusted else "not reliable: see k-hat"
    rows = [("ELBO", _estimate(found.elbo), "nats; lower bound")]
    if not math.isnan(found.k_hat):
        rows += [
            ("log evidence", _estimate(found.log_evidence), doubt or "by importance weights"),
            ("upper bound", _estimate(found.eubo), doubt or "nats"),
            (
                "k-hat",
                f"{found.k_hat:.2f}",
                f"{'below' if found.k_hat <= found.k_hat_limit else 'above'} its limit of {found.k_hat_limit:.2f}",
            ),
            ("effective draws", f"{found.effective_sample_size:,.0f}", f"of {found.draws:,}, after weighting"),
        ]
    if not math.isnan(found.signal_to_noise):
        rows.append(("gradient signal/noise", f"{found.signal_to_noise:.2g}", "small at an optimum"))
    return rows


def _estimate(estimate: Any) -> str:
    return str(estimate).replace(" +- ", "\u00a0±\u00a0")


def _findings(found: Check) -> str:
    items = []
    for finding in found.findings:
        at = f"<code>{html.escape(finding.address)}</code> " if finding.address else ""
        head = f"<strong>{finding.severity}</strong> {at}"
        inner = f"<p>{html.escape(finding.message)}</p>{paragraph(finding.advice)}"
        items.append(f'<li class="{finding.severity}">{head}{inner}</li>')
    return f'<ul class="findings">{"".join(items)}</ul>' if items else ""


def _pictures(draws: Any, reference: Any) -> list[str]:
    forest = figures.svg(plots.forest(draws, reference), "medians and intervals of the posterior")
    densities = figures.svg(plots.densities(draws, reference), "marginal densities of the posterior")
    return [figure(forest), figure(densities, "wide" if len(draws) > 2 else "")]


def _training(name: str, values: np.ndarray) -> str:
    if len(values) < 2:
        return ""
    drawn = plots.loss(values)
    if name != "objective":
        drawn.axes[0].set_ylabel(name)
    return figure(figures.svg(drawn, f"{name} over the steps"))


def _sites(model: Bound) -> str:
    shapes = trace_shapes(model)
    rows = [
        (address, row.kind, row.distribution, _shape(row.shape), describe_support(row.support))
        for address, row in shapes.items()
    ]
    return table(("site", "kind", "distribution", "shape", "support"), rows)


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]" if shape else "scalar"


def _source(fit: Fit) -> str:
    texts = []
    for part in (fit.model, fit.family):
        if hasattr(part, "source"):
            texts.append(part.source())
            continue
        function = part.function if isinstance(part, Bound | Program) else part
        try:
            texts.append(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
        except (TypeError, OSError):
            continue
    return "\n\n".join(dict.fromkeys(texts))


def _name(model: Bound) -> str:
    return getattr(model.function, "__name__", "a program")


def _settings(key: Any, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    data = jax.random.key_data(key) if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    found: dict[str, Any] = {**(settings or {}), "key of the draws": " ".join(map(str, np.ravel(data)))}
    found["Python"] = platform.python_version()
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


__all__ = ["report"]
