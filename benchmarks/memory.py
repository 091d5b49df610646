"""Peak memory of whole processes: an IWAE of a VAE with many particles, and training on data larger than memory.

Each row is a process of its own, whose peak resident memory the operating system reports.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from typing import Any

from benchmarks.timing import arguments, print_environment, print_table, report

ROWS = ("baseline", "all at once", "chunks of 10,000", "chunks of 1,000")


def measure(row: str, particles: int, images: int) -> dict[str, Any]:
    """Value and gradient of the bound of a batch of images, in this process."""
    import jax
    import jax.numpy as jnp

    import ppl
    from benchmarks import vae

    key = jax.random.key(0)
    params, batch = vae.init(key), vae.images(jax.random.key(1), images)
    chunk = {"baseline": None, "all at once": None, "chunks of 10,000": 10_000, "chunks of 1,000": 1_000}[row]
    samples = ppl.Samples(1 if row == "baseline" else particles, chunk=None if chunk is None else min(chunk, particles // 2))

    @ppl.expectation
    def objective(params: Any) -> Any:
        def one(image: Any) -> Any:
            image = image[None]
            return ppl.objectives.iwae(vae.model(params, image), vae.family(params, image), samples)

        return jnp.mean(jax.vmap(one)(batch))

    step = jax.jit(objective.value_and_grad)
    value, grad = jax.block_until_ready(step(key, params))
    start = time.perf_counter()
    jax.block_until_ready(step(jax.random.key(2), params))
    return {
        "nats": float(value),
        "gradient": float(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(grad)) ** 0.5),
        "seconds": time.perf_counter() - start,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def child(row: str, particles: int, images: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory", "--row", row, str(particles), str(images)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    options = arguments(__doc__)
    print_environment()
    particles = 4_000 if options.quick else 100_000
    found = {row: child(row, particles, 1) for row in ROWS}
    rows = [(row, r["nats"], r["gradient"], r["seconds"], r["peak_mb"]) for row, r in found.items()]
    columns = ("particles", "bound, nats", "length of gradient", "seconds", "peak memory, MB")
    print_table(f"IWAE of an MNIST VAE, one image, {particles:,} particles (baseline: 1); limit 2,000 MB", columns, rows)
    report(found, options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--row"]:
        print(json.dumps(measure(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    else:
        main()
