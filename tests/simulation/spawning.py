"""Starting `python -m module CONFIG` as a process of the simulation; for supervisors.

The descriptors that are handed down are real ones: sockets that listen, and the pipes on which a
process says how it stands.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pool import controller_main, worker
from pool.config import ControllerConfig, WorkerConfig
from registry_sync import daemon
from registry_sync.config import SyncConfig
from tests.simulation.processes import Process, current

if TYPE_CHECKING:
    from tests.simulation.loop import SimulatedLoop

SPAWN_S: Final = (0.2, 0.6)  # an interpreter's start and its imports

Main = Callable[[], Coroutine[Any, Any, object]]


class Spawned:
    """The transport of a child, as asyncio's subprocesses want one."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def get_pid(self) -> int:
        return self._process.pid

    def get_returncode(self) -> int | None:
        return self._process.code

    def get_pipe_transport(self, fd: int) -> None:
        return None

    def send_signal(self, number: int) -> None:
        self._process.kill(number)

    def terminate(self) -> None:
        self._process.kill(signal.SIGTERM)

    def kill(self) -> None:
        self._process.kill(signal.SIGKILL)

    async def _wait(self) -> int:
        ended = asyncio.get_running_loop().create_future()
        self._process.at_end(lambda code: ended.done() or ended.set_result(code))
        return await ended

    def close(self) -> None:
        """Nothing is left to close."""


def spawn(loop: SimulatedLoop, arguments: Sequence[str], pass_fds: Sequence[int]) -> Spawned:
    """Start `python … -m module CONFIG`; it ends with its parent, as its supervisor has it."""
    module, config = arguments[-2:]
    fds = {fd: os.dup(fd) for fd in pass_fds}
    decoded = msgspec.json.decode(config)
    for name in ("notice_fd", "go_fd"):
        if name in decoded:
            decoded[name] = fds.get(decoded[name], -1)
    if "listen_fds" in decoded:
        decoded["listen_fds"] = [fds[fd] for fd in decoded["listen_fds"]]
    parent = current()
    process = Process(loop, decoded.get("id") or f"{parent.name}.sync")
    for fd in fds.values():
        process.holds(fd)
    if parent is not None:
        parent.children.append(process)
    process.run(_main(loop, module, msgspec.json.encode(decoded)), loop.dice.uniform(*SPAWN_S))
    return Spawned(process)


def _main(loop: SimulatedLoop, module: str, config: bytes) -> Main:
    match module:
        case "pool.worker":
            settings = msgspec.json.decode(config, type=WorkerConfig)
            began_s = loop.time()
            return lambda: worker.run(settings, (began_s, loop.time()))
        case "pool.controller_main":
            of_controller = msgspec.json.decode(config, type=ControllerConfig)
            return lambda: controller_main.run(of_controller)
        case "registry_sync":
            of_sync = msgspec.json.decode(config, type=SyncConfig)
            return lambda: daemon.serve(of_sync)
    raise AssertionError(f"no simulated process runs {module}")
