"""What a process owes to the supervisor that started it, and how it ends.

The supervisor keeps the sockets on which its processes listen and hands them down, so that what
dials between two processes waits in the kernel and is refused by nobody.  A process that was told
to end says so at once: its successor starts while it still finishes what it has.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn


def say_draining(notice_fd: int) -> None:
    """Let the supervisor start a successor; -1: there is no supervisor."""
    if notice_fd < 0:
        return
    with contextlib.suppress(OSError):  # it is gone: then nobody wants one
        os.write(notice_fd, b"d")
        os.close(notice_fd)


def leave(code: int = 0) -> NoReturn:
    """End the process now, whatever its threads do.

    A thread may load a model for minutes, wait for a registry that does not answer, or hold the
    connection of a client that does not leave.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
