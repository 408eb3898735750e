"""Processes of Python programs, for tests of several that know each other."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from tests.launch.test_study import ROOT

# What the watch says when a process is lost.
MESSAGE = "is gone, and this one ends as well. Start all processes again"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


class Running:
    """A process with its output in files: no pipe is full while others are waited for."""

    def __init__(self, program: str, *words: str, env: dict[str, str] | None = None) -> None:
        self.files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115 - closed by stop
        out, errors = self.files
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *words],
            cwd=ROOT, env=os.environ | (env or {}), stdout=out, stderr=errors,
        )  # fmt: skip

    def ended(self, seconds: float) -> subprocess.CompletedProcess:
        """How it ended, within so many seconds."""
        status = self.process.wait(timeout=seconds)
        return subprocess.CompletedProcess(self.process.args, status, *self.said())

    def said(self) -> list[str]:
        """Its stdout and stderr until now, read without moving the positions where it writes."""
        return [os.pread(file.fileno(), 1 << 24, 0).decode() for file in self.files]

    def stop(self) -> None:
        """Kills it, if it still runs."""
        self.process.kill()
        self.process.wait()
        for file in self.files:
            file.close()


@contextlib.contextmanager
def stopped_at_end() -> Iterator[list[Running]]:
    """A list of processes, of which none is left in the end."""
    running: list[Running] = []
    try:
        yield running
    finally:
        for one in running:
            one.stop()
