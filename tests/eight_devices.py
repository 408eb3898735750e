"""Programs of eight simulated devices, each in a process of its own."""

import os
import subprocess
import sys


def printed(program: str) -> str:
    """What a Python program prints on eight CPU devices; an AssertionError if it fails."""
    flags = "--xla_force_host_platform_device_count=8"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout.strip()
