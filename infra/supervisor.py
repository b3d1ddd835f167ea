"""Keeps the processes of one machine running, and ends all of them with itself.

A process that dies is started again, at once the first time and then with a growing pause.  One
that is told to end, by whomever, has its successor started while it still finishes what it has.
One that asks for an heir goes on until that is ready to take over, and for good if it never is.
They end in the order of their `stage`, edges before workers before the controller, so that nothing
that was accepted is lost; whoever does not end in time is killed.  When even the supervisor is
killed, Linux kills the children.

The sockets on which a process listens are made here and handed down, and stay open from one to the
next: who dials between two waits for the successor.  Only those of a process that dies again and
again are closed in between, so that others on its port are dialled instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec
import structlog

RESTART_S_MIN = 0.05
RESTART_S_MAX = 10.0
RESTART_OK_S = 1.0  # who ends sooner has died, whatever its status
STEADY_S = 10.0  # a process that lived so long is restarted at once again
DEATHS_MAX = 5  # without having lived `STEADY_S` in between: it will not get better by itself
HEIR_S_MAX = 600.0  # to get ready; it may load large models
KILL_AFTER_S = 5.0  # on top of what the process was told it may take to drain

PR_SET_PDEATHSIG = 1

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


def _die_with(parent: int) -> None:
    """Let Linux kill this process when its parent dies (runs after fork).

    Not SIGTERM: a process that drains for nobody, or hangs, would outlive the stack.
    """
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before that was heard
        os._exit(1)


_libc = ctypes.CDLL(None)


def _close(*fds: int) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)


class _Child:
    """One started process, and what it has said.

    Args:
        go: of an heir: closed to let it take over.
    """

    def __init__(
        self, spec: ProcessSpec, process: asyncio.subprocess.Process, notice: int, go: int
    ) -> None:
        self.spec = spec
        self.process = process
        self.started_s = time.monotonic()
        self.wants_heir = asyncio.Event()
        self.heir: asyncio.Task[_Child] | None = None
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

    def _close_notice(self) -> None:
        if self._notice >= 0:
            asyncio.get_running_loop().remove_reader(self._notice)
            os.close(self._notice)
            self._notice = -1


class Supervisor:
    """Starts, restarts and ends processes."""

    def __init__(self, log_folder: Path | None = None) -> None:
        # The whole mutable state: the tasks that keep a process each, the running processes, those
        # that drain with the tasks that wait for them, and the sockets by their owners.
        self._keepers: dict[ProcessSpec, asyncio.Task[None]] = {}
        self._running: dict[ProcessSpec, _Child] = {}
        self._leaving: dict[_Child, asyncio.Task[None]] = {}
        self._sockets: dict[ProcessSpec, Sequence[socket.socket]] = {}
        self._deaths: dict[ProcessSpec, tuple[int, int]] = {}  # in a row, and the last code
        self._stop = asyncio.Event()
        self._log_folder = log_folder
        self.failed = asyncio.Event()  # a process cannot be started at all
        self.why_failed = ""

    def start(self, specs: Sequence[ProcessSpec]) -> None:
        """Keep these processes running from now on."""
        for spec in specs:
            self._keepers[spec] = asyncio.get_running_loop().create_task(self._keep(spec))

    def pids(self) -> dict[str, int]:
        """Return the running processes' pids by name; not of those that drain."""
        return {spec.name: child.process.pid for spec, child in self._running.items()}

    def hopeless(self) -> str:
        """Name a process that dies again and again; empty while there is none."""
        for spec, (deaths, code) in self._deaths.items():
            if deaths >= DEATHS_MAX:
                return f"{spec.name} ended {deaths} times, the last time with status {code}"
        return ""

    async def stop(self) -> None:
        """End every process, stage by stage."""
        self._stop.set()
        for stage in sorted({spec.stage for spec in self._keepers}, reverse=True):
            ends = [c.end() for spec, c in self._running.items() if spec.stage == stage]
            await asyncio.gather(
                *ends, *(task for c, task in self._leaving.items() if c.spec.stage == stage)
            )
        await asyncio.gather(*self._keepers.values())
        for spec in list(self._sockets):
            self._close_sockets(spec)

    async def _keep(self, spec: ProcessSpec) -> None:
        pause_s, has_run = RESTART_S_MIN, False
        heir: _Child | None = None
        while not self._stop.is_set():
            try:
                child = self._running[spec] = heir or await self._start(spec)
            except OSError as error:
                if not has_run:
                    self.why_failed = f"{spec.name}: {error}"
                    self.failed.set()
                    return
                _log.warning("process_not_started", process=spec.name, error=str(error))
                pause_s = await self._pause(pause_s)
                continue
            has_run = True
            if self._stop.is_set():  # `stop` came while it was being started
                await child.end()
            raising = asyncio.get_running_loop().create_task(self._raise_heirs(child))
            has_ended = await child.until_over()
            self._running.pop(spec, None)
            raising.cancel()
            heir = await self._heir_of(child)
            if not has_ended:
                _log.info("process_draining", process=spec.name, child_pid=child.process.pid)
                self._see_off(child, child.see_off())
                continue
            if self._stop.is_set():
                return
            if heir is not None:
                continue
            code = child.process.returncode or 0
            lived_s = time.monotonic() - child.started_s
            if code == 0 and lived_s > RESTART_OK_S:  # it was told to end
                continue
            deaths, _ = self._deaths.get(spec, (0, 0))
            if lived_s > STEADY_S:
                pause_s, deaths = RESTART_S_MIN, 0
            if deaths:
                # It may take long to come back: let those who dial the same port reach others.
                # Not at its first death, which would reset who has dialled since.
                self._close_sockets(spec)
            self._deaths[spec] = (deaths + 1, code)
            pause_s = await self._pause(pause_s)

    async def _raise_heirs(self, child: _Child) -> None:
        """Start an heir whenever `child` asks for one, and tell `child` to end once it is ready."""
        while True:
            await child.wants_heir.wait()
            child.wants_heir.clear()
            spec = child.spec
            child.heir = asyncio.get_running_loop().create_task(self._start(spec, is_heir=True))
            try:
                heir = await asyncio.shield(child.heir)
            except OSError as error:
                _log.warning("process_not_started", process=spec.name, error=str(error))
                child.heir = None
                continue
            _log.info("heir_started", process=spec.name, child_pid=heir.process.pid)
            if await heir.until_ready():
                with contextlib.suppress(ProcessLookupError):
                    child.process.terminate()
                return
            _log.warning("heir_not_ready", process=spec.name, child_pid=heir.process.pid)
            child.heir = None
            self._see_off(heir, heir.end())

    async def _heir_of(self, child: _Child) -> _Child | None:
        """Return the heir of a process that does not listen any more, and let it take over."""
        if child.heir is None:
            return None
        try:
            heir = await child.heir
        except OSError:
            return None
        if self._stop.is_set():
            await heir.end()
        if not heir.lives:
            return None
        heir.take_over()
        return heir

    async def _pause(self, pause_s: float) -> float:
        """Wait before the next start; returns how long to wait the next time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._stop.wait()
        return min(pause_s * 2, RESTART_S_MAX)

    def _see_off(self, child: _Child, ending: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(ending)
        self._leaving[child] = task
        task.add_done_callback(lambda _: self._leaving.pop(child))

    async def _start(self, spec: ProcessSpec, *, is_heir: bool = False) -> _Child:
        config = spec.config
        notice = told = waits = go = -1
        handed: list[int] = []
        if spec.listen is not None:
            if spec not in self._sockets:
                self._sockets[spec] = spec.listen()
            notice, told = os.pipe()
            fds = tuple(one.fileno() for one in self._sockets[spec])
            handed = [*fds, told]
            config = msgspec.structs.replace(config, listen_fds=fds, notice_fd=told)
            if is_heir:
                waits, go = os.pipe()
                handed.append(waits)
                config = msgspec.structs.replace(config, go_fd=waits)
        output = self._output(spec)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # never import what lies in the current folder
                "-m",
                spec.module,
                msgspec.json.encode(config).decode(),
                env={**os.environ, **dict(spec.env)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,  # Ctrl-C is ours to pass on
                preexec_fn=functools.partial(_die_with, os.getpid()),
                pass_fds=handed,
            )
        except BaseException:
            _close(notice, go)
            raise
        finally:
            _close(told, waits)
            if output is not None:
                output.close()
        return _Child(spec, process, notice, go)

    def _close_sockets(self, spec: ProcessSpec) -> None:
        for one in self._sockets.pop(spec, ()):
            if one.family == socket.AF_UNIX:
                Path(one.getsockname()).unlink(missing_ok=True)
            one.close()

    def _output(self, spec: ProcessSpec) -> IO[bytes] | None:
        if self._log_folder is None:
            return None
        self._log_folder.mkdir(parents=True, exist_ok=True)
        return open(self._log_folder / f"{spec.name}.jsonl", "ab")
