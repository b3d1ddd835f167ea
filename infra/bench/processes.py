"""Starts and ends the processes that a bench needs, and waits until they answer."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import infra

START_S_MAX = 30.0
END_S_MAX = 5.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class StartFailed(Exception):
    """A peer ended or did not listen in time; says what it wrote."""


def environment() -> dict[str, str]:
    """Return our environment, with this very package first for `python -m`."""
    root = str(Path(infra.__file__).parents[1])
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root}


def die_with_parent() -> None:
    """Let the kernel end this process when the one that started it ends (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    """Return a port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    module: str, arguments: Sequence[str], port: int, python: str = sys.executable
) -> Iterator[int]:
    """Run `python -m module` until the block ends; yields its pid once `port` accepts.

    Raises:
        StartFailed: it did not come up within 30 s.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [python, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(),
        )
        try:
            if not _accepts(process, port):
                log.seek(0)
                text = log.read()[-2000:].decode(errors="replace")
                raise StartFailed(f"{module} does not listen on port {port}: {text}")
            yield process.pid
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Tell a process to end, and kill it if it does not in time."""
    process.terminate()
    try:
        process.wait(END_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _accepts(process: subprocess.Popen[bytes], port: int) -> bool:
    until_s = time.monotonic() + START_S_MAX
    while process.poll() is None and time.monotonic() < until_s:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            time.sleep(0.02)
        else:
            return True
    return False
