"""What a process owes to the supervisor that started it, and how it ends.

The supervisor keeps the sockets on which its processes listen and hands them down, so that what
dials between two processes waits in the kernel and is refused by nobody.  A process that was told
to end says so at once: its successor starts while it still finishes what it has.  One that wants to
be replaced asks for an heir, which gets ready beside it.

What is said on the notice pipe, a byte each: "r" start my heir · "u" I, the heir, am ready · "d" I
drain, somebody else may listen.
"""

from __future__ import annotations

import asyncio
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


def ask_for_heir(notice_fd: int) -> bool:
    """Ask for a successor that gets ready while this process goes on; tell whether that could be.

    SIGTERM comes once it is.
    """
    return _say(notice_fd, b"r")


def say_ready(notice_fd: int) -> None:
    """Say that this heir could take over."""
    _say(notice_fd, b"u")


async def until_told(go_fd: int) -> None:
    """Wait until the predecessor does not listen any more, or nobody is left to say so."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    loop.add_reader(go_fd, told.set)
    try:
        await told.wait()
    finally:
        loop.remove_reader(go_fd)
        os.close(go_fd)


def _say(notice_fd: int, word: bytes) -> bool:
    if notice_fd < 0:
        return False
    try:
        os.write(notice_fd, word)
    except OSError:  # the supervisor is gone
        return False
    return True


def leave(code: int = 0) -> NoReturn:
    """End the process now, whatever its threads do.

    A thread may load a model for minutes, wait for a registry that does not answer, or hold the
    connection of a client that does not leave.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
