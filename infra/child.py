"""One process that the supervisor has started: what it says, and how it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import structlog

HEIR_S_MAX = 600.0  # to get ready; it may load large models
KILL_AFTER_S = 5.0  # on top of what the process was told it may take to drain

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process to keep: `python -m module '<config as JSON>'`."""

    name: str
    module: str
    config: msgspec.Struct
    stage: int  # ends together with its stage, higher ones first
    drain_s_max: float = 0.0
    env: tuple[tuple[str, str], ...] = ()
    # Make the sockets that `config.listen_fds` names.  None: the process listens by itself, and
    # its successor starts only after it.
    listen: Callable[[], Sequence[socket.socket]] | None = None
    # It runs only while it is wanted, or once somebody has dialled a socket of its; `config` says
    # why it was started (`asked_s`, `is_for_call`).
    may_rest: bool = False


class Child:
    """One started process, and what it has said.

    Args:
        notice: where it says so; -1: nowhere.
        go: of an heir: closed to let it take over.
        on_change: called when it is ready, drains or has ended.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        process: asyncio.subprocess.Process,
        notice: int,
        go: int,
        on_change: Callable[[], None],
    ) -> None:
        self.spec = spec
        self.process = process
        self.started_s = time.monotonic()
        self.wants_heir = asyncio.Event()
        self.heir: asyncio.Task[Child] | None = None
        self.is_for_call = False  # somebody dialled, and nobody has wanted it since
        self.rests = False  # it was told to end, and nobody is to take its place
        self._on_change = on_change
        self._notice = notice
        self._go = go
        self._is_ready = asyncio.Event()
        self._is_over = asyncio.get_running_loop().create_future()
        self._ended = asyncio.get_running_loop().create_task(self._watch())
        if notice >= 0:
            asyncio.get_running_loop().add_reader(notice, self._on_notice)

    async def until_over(self) -> bool:
        """Wait until it has ended or drains; tell whether it has ended."""
        await self._is_over
        return self._ended.done()

    async def until_ready(self) -> bool:
        """Wait until this heir could take over; tell whether it lives to do so."""
        ready = asyncio.ensure_future(self._is_ready.wait())
        try:
            async with asyncio.timeout(HEIR_S_MAX):
                await asyncio.wait([ready, self._is_over], return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            return False
        finally:
            ready.cancel()
        return self.lives

    @property
    def is_ready(self) -> bool:
        """Whether it has said that it serves, or could."""
        return self._is_ready.is_set()

    @property
    def lives(self) -> bool:
        """Whether it has neither ended nor begun to."""
        return not self._is_over.done()

    def take_over(self) -> None:
        """Let this heir listen."""
        if self._go >= 0:
            os.close(self._go)
            self._go = -1

    async def end(self) -> None:
        """Tell it to end, and kill it if it does not in time."""
        with contextlib.suppress(ProcessLookupError):
            if self.process.returncode is None:
                self.process.terminate()
        await self.see_off()

    async def see_off(self) -> None:
        """Wait for it to end, as it was told; kill it if it does not in time."""
        spec = self.spec
        try:
            async with asyncio.timeout(spec.drain_s_max + KILL_AFTER_S):
                await asyncio.shield(self._ended)
        except TimeoutError:
            _log.warning("process_killed", process=spec.name, child_pid=self.process.pid)
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self._ended

    async def _watch(self) -> None:
        code = await self.process.wait()
        level = logging.WARNING if code else logging.INFO
        _log.log(
            level, "process_ended", process=self.spec.name, child_pid=self.process.pid, code=code
        )
        if not self._is_over.done():
            self._is_over.set_result(None)
        self._close_notice()
        self.take_over()  # nobody is left to be told
        self._on_change()

    def _on_notice(self) -> None:
        words = os.read(self._notice, 64)
        if b"r" in words:
            self.wants_heir.set()
        if b"u" in words:
            self._is_ready.set()
        if b"d" in words and not self._is_over.done():
            self._is_over.set_result(None)
        if b"d" in words or not words:
            self._close_notice()
        self._on_change()

    def _close_notice(self) -> None:
        if self._notice >= 0:
            asyncio.get_running_loop().remove_reader(self._notice)
            os.close(self._notice)
            self._notice = -1
