"""One call on one device, on eight, and in two processes (numpyro#1645)."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent


def start(script, *arguments, devices):
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
    }
    command = [sys.executable, str(ROOT / "tests" / "devices" / script), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return out


def test_eight_devices_agree_with_one_numpyro_1645():
    """Samples, minibatches, chunks, particles and whole fits; the script asserts that the work was spread."""
    lines = output(start("eight.py", devices=8)).splitlines()
    differences = {name: float(value) for name, value in (line.rsplit(maxsplit=1) for line in lines)}
    assert len(differences) == 7
    assert all(value < 2e-5 for value in differences.values()), differences


def test_two_processes_agree_with_one_numpyro_1645(tmp_path):
    """Also when they go on from a checkpoint; and they make the same compiled calls, whatever each one's clock says."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    pair = [start("two.py", address, 2, index, tmp_path / "pair", devices=2) for index in (0, 1)]
    alone = output(start("two.py", "-", 1, 0, tmp_path / "alone", devices=1))
    # Gloo says on standard output which ranks it has connected.
    results = [result.splitlines()[-2:] for result in (alone, *map(output, pair))]
    assert results[1][0] == results[2][0]
    numbers = [np.array(numbers.split(), float) for _, numbers in results]
    assert abs(numbers[0][2] - 1.0) < 0.1  # the coefficients that made the data
    assert abs(numbers[0][3] + 2.0) < 0.1
    for other in numbers[1:]:
        np.testing.assert_allclose(other, numbers[0], rtol=1e-4)
