"""Commands on a terminal of their own."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

from tests.support.stack import Stack, until


def on_terminal(stack: Stack, is_enough: Callable[[str], bool], *arguments: str) -> str:
    """Run a command on a terminal until enough was seen, press Ctrl-C, and return what was."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "infra.cli", *arguments, "--data", str(stack.data)],
        stdout=child,
        stderr=child,
        env={**stack.environment, "TERM": "xterm", "COLUMNS": "160", "LINES": "60"},
        cwd=stack.data,
    )
    os.close(child)
    seen = b""

    def read() -> None:
        nonlocal seen
        try:
            while found := os.read(parent, 1 << 16):
                seen += found
        except OSError:  # the terminal's other side has closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        until(lambda: is_enough(seen.decode(errors="replace")), 30.0, "enough on the terminal")
        process.send_signal(signal.SIGINT)
        process.wait(20)
    finally:
        process.kill()
        process.wait()
        reader.join()
        os.close(parent)
    return seen.decode(errors="replace")
