"""How the benchmarks measure: rivals take turns in one process, and stages are timed apart.

`race` returns, for each rival, medians of the time to trace, to lower and compile, and to run, and the median over rounds
of its ratio to the first rival in the same round. Taking turns and pairing rounds keeps a drifting machine out of the
ratios. Tracing and compiling are counted in CPU seconds of the process, which other work on the machine disturbs least;
runs, which use several threads, in wall-clock seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

STAGES = ("trace", "compile", "run")


@dataclasses.dataclass(frozen=True)
class Times:
    """One rival's medians and minima in seconds, and the medians of its ratios to the first rival, by stage."""

    seconds: dict[str, float]
    best: dict[str, float]
    ratios: dict[str, float]


def race(
    rivals: Mapping[str, Callable[..., Any]], args: Sequence[Any], *, stagings: int = 5, runs: int = 15, floor: float = 0.02
) -> dict[str, Times]:
    """Time functions that do the same on the same arguments; the first is what the others are compared with.

    Args:
        rivals: functions to be compiled, by name.
        args: their arguments.
        stagings: rounds of tracing and compiling, each of a new function object after `jax.clear_caches()`.
        runs: rounds of running what was compiled last.
        floor: seconds that one measurement of a run lasts at least; a faster function is called several times.
    """
    samples: dict[str, dict[str, list[float]]] = {name: {stage: [] for stage in STAGES} for name in rivals}
    compiled: dict[str, Any] = {}
    for turn in range(stagings):
        for name in turns(rivals, turn):
            trace, compile_, compiled[name] = staging_times(rivals[name], args)
            samples[name]["trace"].append(trace)
            samples[name]["compile"].append(compile_)
    calls = {name: _calls(function, args, floor) for name, function in compiled.items()}
    for turn in range(runs):
        for name in turns(rivals, turn):
            samples[name]["run"].append(_run_time(compiled[name], args, calls[name]))
    return summarize(samples)


def summarize(samples: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Times]:
    """Medians of the samples, and of their ratios to the first rival's, round by round."""
    first = next(iter(samples.values()))
    return {
        name: Times(
            {stage: statistics.median(times) for stage, times in by_stage.items()},
            {stage: min(times) for stage, times in by_stage.items()},
            {
                stage: statistics.median(a / b for a, b in zip(times, first[stage], strict=True))
                for stage, times in by_stage.items()
            },
        )
        for name, by_stage in samples.items()
    }


def staging_times(function: Callable[..., Any], args: Sequence[Any]) -> tuple[float, float, Any]:
    """CPU seconds to trace, and to lower and compile, and the compiled function. Nothing is cached from before."""

    def fresh(*args: Any) -> Any:
        return function(*args)

    jax.clear_caches()
    gc.collect()
    start = time.process_time()
    traced = jax.jit(fresh).trace(*args)
    middle = time.process_time()
    compiled = traced.lower().compile()
    return middle - start, time.process_time() - middle, compiled


def trace_time(function: Callable[..., Any], args: Sequence[Any]) -> float:
    """CPU seconds to trace. Nothing is cached from before."""

    def fresh(*args: Any) -> Any:
        return function(*args)

    jax.clear_caches()
    gc.collect()
    start = time.process_time()
    jax.jit(fresh).trace(*args)
    return time.process_time() - start


def turns(rivals: Mapping[str, Any], turn: int) -> list[str]:
    """The rivals in the order of a round: everyone is first equally often, and profits from what ran before."""
    names = list(rivals)
    shift = turn % len(names)
    return names[shift:] + names[:shift]


def _calls(function: Callable[..., Any], args: Sequence[Any], floor: float) -> int:
    _run_time(function, args, 2)
    return max(1, round(floor / _run_time(function, args, 3)))


def _run_time(function: Callable[..., Any], args: Sequence[Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(function(*args))
    return (time.perf_counter() - start) / calls


def environment() -> dict[str, Any]:
    """Versions and the kind of machine."""
    packages = ("jax", "jaxlib", "numpyro", "optax", "numpy")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": jax.devices()[0].device_kind,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def arguments(description: str | None, choices: Sequence[str] = ()) -> argparse.Namespace:
    """The options that every benchmark takes, and `--only` where it has parts."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller measurements: does it run?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results there")
    if choices:
        parser.add_argument("--only", nargs="+", choices=choices, default=choices, help="these parts (default: all)")
    return parser.parse_args()


def report(results: Any, options: argparse.Namespace) -> None:
    """Write the results with the environment, if the user asked for it."""
    if options.json is not None:
        record = {"environment": environment(), "quick": options.quick, "results": results}
        options.json.write_text(json.dumps(record, indent=2, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else float(value)


def print_environment() -> None:
    print(", ".join(f"{name} {value}" for name, value in environment().items()), "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A Markdown table; numbers to three figures."""
    cells = [list(columns), *[[_cell(value) for value in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "| " + " | ".join("-" * w for w in widths) + " |")
    print(f"{title}\n", *lines, "", sep="\n")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)
