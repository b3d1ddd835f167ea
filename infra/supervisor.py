"""Keeps the processes of one machine running, and ends all of them with itself.

A process that dies is started again, at once the first time and then with a growing pause.  They
end in the order of their `stage`, edges before workers before the controller, so that nothing that
was accepted is lost; whoever does not end in time is killed.  Linux tells the children when even
the supervisor is killed.
"""

from __future__ import annotations

import asyncio
import ctypes
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


def _die_with_parent() -> None:
    """Let Linux send SIGTERM to this process when its parent dies (runs after fork)."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


_libc = ctypes.CDLL(None)


class Supervisor:
    """Starts, restarts and ends processes."""

    def __init__(self, log_folder: Path | None = None) -> None:
        # The whole mutable state: the tasks that keep a process each, and the running processes.
        self._keepers: dict[ProcessSpec, asyncio.Task[None]] = {}
        self._running: dict[ProcessSpec, asyncio.subprocess.Process] = {}
        self._stopping = False
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

    async def stop(self) -> None:
        """End every process, stage by stage."""
        self._stopping = True
        for stage in sorted({spec.stage for spec in self._keepers}, reverse=True):
            specs = [spec for spec in self._keepers if spec.stage == stage]
            await asyncio.gather(*(self._end(spec) for spec in specs))
        for keeper in self._keepers.values():
            keeper.cancel()

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
        while not self._stopping:
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
                    preexec_fn=_die_with_parent,
                )
            except OSError as error:
                self.why_failed = f"{spec.name}: {error}"
                self.failed.set()
                return
            finally:
                if output is not None:
                    output.close()
            self._running[spec] = process
            code = await process.wait()
            self._running.pop(spec, None)
            if self._stopping:
                return
            lived_s = time.monotonic() - started_s
            _log.warning("process_ended", process=spec.name, code=code, lived_s=round(lived_s, 3))
            if lived_s > STEADY_S:
                pause_s = RESTART_S_MIN
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RESTART_S_MAX)

    def _output(self, spec: ProcessSpec) -> IO[bytes] | None:
        if self._log_folder is None:
            return None
        self._log_folder.mkdir(parents=True, exist_ok=True)
        return open(self._log_folder / f"{spec.name}.jsonl", "ab")
