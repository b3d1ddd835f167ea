"""Keeps the processes of one machine running, and ends all of them with itself.

A process that dies is started again, at once the first time and then with a growing pause.  They
end in the order of their `stage`, edges before workers before the controller, so that nothing that
was accepted is lost; whoever does not end in time is killed.  When even the supervisor is killed,
Linux kills the children.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec
import structlog

RESTART_S_MIN = 0.05
RESTART_S_MAX = 10.0
STEADY_S = 10.0  # a process that lived so long is restarted at once again
DEATHS_MAX = 5  # without having lived `STEADY_S` in between: it will not get better by itself
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


def _die_with(parent: int) -> None:
    """Let Linux kill this process when its parent dies (runs after fork).

    Not SIGTERM: a process that drains for nobody, or hangs, would outlive the stack.
    """
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before that was heard
        os._exit(1)


_libc = ctypes.CDLL(None)


class Supervisor:
    """Starts, restarts and ends processes."""

    def __init__(self, log_folder: Path | None = None) -> None:
        # The whole mutable state: the tasks that keep a process each, and the running processes.
        self._keepers: dict[ProcessSpec, asyncio.Task[None]] = {}
        self._running: dict[ProcessSpec, asyncio.subprocess.Process] = {}
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
        """Return the running processes' pids by name."""
        return {spec.name: process.pid for spec, process in self._running.items()}

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
            specs = [spec for spec in self._keepers if spec.stage == stage]
            await asyncio.gather(*(self._end(spec) for spec in specs))
        await asyncio.gather(*self._keepers.values())

    async def _end(self, spec: ProcessSpec) -> None:
        process = self._running.get(spec)
        if process is None or process.returncode is not None:
            return
        try:
            process.terminate()
            async with asyncio.timeout(spec.drain_s_max + KILL_AFTER_S):
                await process.wait()
        except ProcessLookupError:
            return
        except TimeoutError:
            _log.warning("process_killed", process=spec.name, child_pid=process.pid)
            process.kill()
            await process.wait()

    async def _keep(self, spec: ProcessSpec) -> None:
        pause_s = RESTART_S_MIN
        argument = msgspec.json.encode(spec.config).decode()
        env = {**os.environ, **dict(spec.env)}
        parent = os.getpid()
        while not self._stop.is_set():
            started_s = time.monotonic()
            output = self._output(spec)
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-P",  # never import what lies in the current folder
                    "-m",
                    spec.module,
                    argument,
                    env=env,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C is ours to pass on
                    preexec_fn=functools.partial(_die_with, parent),
                )
            except OSError as error:
                self.why_failed = f"{spec.name}: {error}"
                self.failed.set()
                return
            finally:
                if output is not None:
                    output.close()
            self._running[spec] = process
            if self._stop.is_set():  # `stop` came while it was being started
                await self._end(spec)
            code = await process.wait()
            self._running.pop(spec, None)
            if self._stop.is_set():
                return
            lived_s = time.monotonic() - started_s
            _log.warning("process_ended", process=spec.name, code=code, lived_s=round(lived_s, 3))
            deaths, _ = self._deaths.get(spec, (0, 0))
            if lived_s > STEADY_S:
                pause_s, deaths = RESTART_S_MIN, 0
            self._deaths[spec] = (deaths + 1, code)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stop.wait()
            pause_s = min(pause_s * 2, RESTART_S_MAX)

    def _output(self, spec: ProcessSpec) -> IO[bytes] | None:
        if self._log_folder is None:
            return None
        self._log_folder.mkdir(parents=True, exist_ok=True)
        return open(self._log_folder / f"{spec.name}.jsonl", "ab")
