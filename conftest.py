"""How the tests run: nearly all of their time would go to XLA's optimizations of programs that run once, so these are off.

`JAX_DISABLE_MOST_OPTIMIZATIONS=0 python -m pytest` runs them compiled as users' programs are.
"""

import os

os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

collect_ignore_glob = ["tests/devices/*"]  # scripts that test_devices.py runs
