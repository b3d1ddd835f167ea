"""A process that rests: its sockets stay open, so that to dial it is to start it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Asked:
    """Why a process is started, and since when it is waited for."""

    asked_s: float  # monotonic
    is_for_call: bool = False  # somebody dialled it


async def until_asked(
    wanted: asyncio.Event, stop: asyncio.Event, sockets: Sequence[socket.socket]
) -> Asked | None:
    """Wait until the process is wanted, or somebody dials one of its sockets.

    Who dials waits in the kernel, and is taken by the process once it runs.

    Returns:
        Why it is to be started; None: it is not, because `stop` is set.
    """
    loop = asyncio.get_running_loop()
    dialled = asyncio.Event()
    if not (wanted.is_set() or stop.is_set()):
        for one in sockets:
            loop.add_reader(one.fileno(), dialled.set)
        waits = [loop.create_task(event.wait()) for event in (wanted, stop, dialled)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in sockets:
                loop.remove_reader(one.fileno())
            for wait in waits:
                wait.cancel()
    if stop.is_set():
        return None
    return Asked(time.monotonic(), is_for_call=not wanted.is_set())
