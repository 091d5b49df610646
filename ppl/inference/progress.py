"""How far a run is: a bar where somebody looks at it, and a few lines in a log file."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm.auto import tqdm

_SECONDS = 10.0, 600.0
"""Until the first line in a log file; then twice as long each time, up to the latter."""


@contextlib.contextmanager
def progress_bar(wanted: bool, steps: int, done: int) -> Iterator[Any]:
    """What is called with the number of steps taken, recent values by objective, and the number of skipped updates."""
    if not wanted:
        yield lambda *_: None
    elif sys.stderr.isatty() or "ipykernel" in sys.modules:
        with tqdm(total=steps, initial=done, unit="step") as bar:

            def show(step: int, values: dict[str, Any], skipped: int) -> None:
                bar.set_postfix_str(_values(values, skipped), refresh=False)
                bar.update(step - bar.n)

            yield show
    else:
        yield _Lines(steps, done)


class _Lines:
    def __init__(self, steps: int, done: int):
        self.steps, self.shown, self.time, self.wait = steps, done, time.monotonic(), _SECONDS[0]

    def __call__(self, step: int, values: dict[str, Any], skipped: int) -> None:
        elapsed = time.monotonic() - self.time
        if step > self.shown and (elapsed >= self.wait or step == self.steps):
            rate = (step - self.shown) / max(elapsed, 1e-9)
            print(f"step {step}/{self.steps}, {_values(values, skipped)}, {rate:.3g} steps/s", file=sys.stderr, flush=True)
            self.shown, self.time, self.wait = step, time.monotonic(), min(2 * self.wait, _SECONDS[1])


def _values(values: dict[str, Any], skipped: int) -> str:
    shown = [f"{name} {_estimate(np.asarray(v, float))}" for name, v in values.items()]
    return ", ".join(shown + ([f"{skipped} skipped"] if skipped else []))


def _estimate(values: np.ndarray) -> str:
    """The mean with its standard error."""
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return f"{values.mean():.4g}" if len(values) else "nan"
    return f"{values.mean():.4f} +- {values.std(ddof=1) / len(values) ** 0.5:.4f}"
