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

A process that may rest runs only while it is wanted.  While it rests its sockets stay open, and
whoever dials one has it started.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import os
import signal
import socket
import sys
import time
from collections.abc import Collection, Coroutine, Sequence
from pathlib import Path
from typing import IO

import msgspec
import structlog

from infra.child import Child, ProcessSpec
from infra.resting import Asked, until_asked

RESTART_S_MIN = 0.05
RESTART_S_MAX = 10.0
RESTART_OK_S = 1.0  # who ends sooner has died, whatever its status
STEADY_S = 10.0  # a process that lived so long is restarted at once again
DEATHS_MAX = 5  # without having lived `STEADY_S` in between: it will not get better by itself
CALL_S_MIN = 10.0  # who was started by a call is not told to rest sooner

PR_SET_PDEATHSIG = 1

_log = structlog.get_logger()


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


class Supervisor:
    """Starts, restarts and ends processes."""

    def __init__(self, log_folder: Path | None = None) -> None:
        # The whole mutable state: the tasks that keep a process each, the running processes, those
        # that drain with the tasks that wait for them, and the sockets by their owners.
        self._keepers: dict[ProcessSpec, asyncio.Task[None]] = {}
        self._running: dict[ProcessSpec, Child] = {}
        self._leaving: dict[Child, asyncio.Task[None]] = {}
        self._sockets: dict[ProcessSpec, Sequence[socket.socket]] = {}
        self._wanted: dict[ProcessSpec, asyncio.Event] = {}  # of those that may rest
        self._deaths: dict[ProcessSpec, tuple[int, int]] = {}  # in a row, and the last code
        self._stop = asyncio.Event()
        self._log_folder = log_folder
        self.failed = asyncio.Event()  # a process cannot be started at all
        self.why_failed = ""
        self.changed = asyncio.Event()  # `states` may be others now

    def start(self, specs: Sequence[ProcessSpec], resting: Collection[str] = ()) -> None:
        """Keep these processes running from now on; the named ones rest at first."""
        for spec in specs:
            if spec.may_rest:
                wanted = self._wanted[spec] = asyncio.Event()
                if spec.name not in resting:
                    wanted.set()
            self._keepers[spec] = asyncio.get_running_loop().create_task(self._keep(spec))

    def want(self, names: Collection[str]) -> None:
        """Let these run of the processes that may rest, and let the others drain and rest.

        One that somebody has just dialled goes on for a while, lest the call that woke it is lost
        to an order that is older.
        """
        for spec, wanted in self._wanted.items():
            child = self._running.get(spec)
            if spec.name in names:
                wanted.set()
                if child is not None:
                    child.is_for_call = False
                continue
            wanted.clear()
            if child is None or child.rests:
                continue
            if not child.is_for_call or time.monotonic() - child.started_s > CALL_S_MIN:
                self._let_rest(child)
        self.changed.set()

    def states(self) -> dict[str, tuple[str, int]]:
        """Return state (cold, starting, up or draining) and pid of the processes that may rest."""
        found = {}
        for spec in self._wanted:
            child = self._running.get(spec)
            leaving = [child] if child is not None else []
            leaving += [one for one in self._leaving if one.spec is spec]
            if child is not None and not child.rests:
                found[spec.name] = ("up" if child.is_ready else "starting", child.process.pid)
            elif leaving:
                found[spec.name] = ("draining", leaving[0].process.pid)
            else:
                found[spec.name] = ("cold", 0)
        return found

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
        heir: Child | None = None
        while not self._stop.is_set():
            try:
                child = heir or await self._next(spec)
            except OSError as error:
                if not has_run:
                    self.why_failed = f"{spec.name}: {error}"
                    self.failed.set()
                    return
                _log.warning("process_not_started", process=spec.name, error=str(error))
                pause_s = await self._pause(pause_s)
                continue
            if child is None:
                return
            has_run = True
            self._running[spec] = child
            self.changed.set()
            if self._stop.is_set():  # `stop` came while it was being started
                await child.end()
            elif spec.may_rest and not self._wanted[spec].is_set() and not child.is_for_call:
                self._let_rest(child)  # and so did an order to rest
            raising = asyncio.get_running_loop().create_task(self._raise_heirs(child))
            has_ended = await child.until_over()
            self._running.pop(spec, None)
            raising.cancel()
            heir = await self._heir_of(child)
            if not has_ended:
                _log.info("process_draining", process=spec.name, child_pid=child.process.pid)
                if child not in self._leaving:
                    self._see_off(child, child.see_off())
                continue
            if self._stop.is_set():
                return
            if heir is not None or child.rests:
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

    async def _next(self, spec: ProcessSpec) -> Child | None:
        """Start the process, if it may rest not before it is asked for; None: `stop` came first."""
        asked: Asked | None = Asked(time.monotonic())
        if spec.may_rest:
            asked = await until_asked(self._wanted[spec], self._stop, self._open(spec))
        return None if asked is None else await self._start(spec, asked)

    def _let_rest(self, child: Child) -> None:
        child.rests = True
        self._see_off(child, child.end())

    async def _raise_heirs(self, child: Child) -> None:
        """Start an heir whenever `child` asks for one, and tell `child` to end once it is ready."""
        while True:
            await child.wants_heir.wait()
            child.wants_heir.clear()
            spec = child.spec
            child.heir = asyncio.get_running_loop().create_task(
                self._start(spec, Asked(time.monotonic()), is_heir=True)
            )
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

    async def _heir_of(self, child: Child) -> Child | None:
        """Return the heir of a process that does not listen any more, and let it take over."""
        if child.heir is None:
            return None
        try:
            heir = await child.heir
        except OSError:
            return None
        if self._stop.is_set() or child.rests:
            await heir.end()
        if not heir.lives:
            return None
        heir.take_over()
        heir.is_for_call = child.is_for_call
        return heir

    async def _pause(self, pause_s: float) -> float:
        """Wait before the next start; returns how long to wait the next time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._stop.wait()
        return min(pause_s * 2, RESTART_S_MAX)

    def _see_off(self, child: Child, ending: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(ending)
        self._leaving[child] = task

        def left(_: object) -> None:
            self._leaving.pop(child)
            self.changed.set()

        task.add_done_callback(left)

    def _open(self, spec: ProcessSpec) -> Sequence[socket.socket]:
        """Return the sockets on which a process listens, made once."""
        if spec.listen is None:
            return ()
        if spec not in self._sockets:
            self._sockets[spec] = spec.listen()
        return self._sockets[spec]

    async def _start(self, spec: ProcessSpec, asked: Asked, *, is_heir: bool = False) -> Child:
        config = spec.config
        if spec.may_rest:
            config = msgspec.structs.replace(
                config, asked_s=asked.asked_s, is_for_call=asked.is_for_call
            )
        notice = told = waits = go = -1
        handed: list[int] = []
        if spec.listen is not None:
            fds = tuple(one.fileno() for one in self._open(spec))
            notice, told = os.pipe()
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
        child = Child(spec, process, notice, go, self.changed.set)
        child.is_for_call = asked.is_for_call
        return child

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
