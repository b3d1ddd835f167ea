"""The clocks, the processes of the system and chance, as the code under test sees them."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import inspect
import os
import random
import secrets
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import FunctionType, ModuleType
from typing import Any, NoReturn

import pool.queueing.engine_queue
import pool.shadow
from tests.simulation import threads
from tests.simulation.loop import SimulatedLoop
from tests.simulation.processes import Gone, current

LOCK_POLL_S = 0.002
PACKAGES = ("pool", "edge", "registry_sync", "infra")


@contextlib.contextmanager
def replaced(loop: SimulatedLoop) -> Iterator[None]:
    """Let the code see the loop's time, its processes and its dice, while inside."""
    old_clock, old_flock, old_kill = time.monotonic, fcntl.flock, os.kill
    old_pid, old_exit = os.getpid, os._exit

    def getpid() -> int:
        process = current()
        return old_pid() if process is None else process.pid

    def wall() -> float:
        process = current()
        return loop.time() + loop.wall_s + (0.0 if process is None else process.wall_s)

    def kill(pid: int, number: int) -> None:
        if pid in loop.processes:
            loop.processes[pid].kill(number)
        else:
            old_kill(pid, number)

    def leave(code: int) -> NoReturn:
        process = current()
        if process is None:
            old_exit(code)
        process.exit(code)
        raise Gone

    def flock(file: Any, operation: int) -> None:
        while True:
            try:
                old_flock(file, operation | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if operation & fcntl.LOCK_NB:
                    raise
                loop.threads.sleep(LOCK_POLL_S)  # whoever holds it sleeps in virtual time too
        process = current()
        if process is not None and not operation & fcntl.LOCK_UN:
            process.locked(file if isinstance(file, int) else file.fileno())

    def token_bytes(count: int = 32) -> bytes:
        return loop.dice.randbytes(count)

    patches: list[tuple[Any, str, Any]] = [
        (time, "monotonic", loop.time),
        (time, "time", wall),
        (time, "sleep", loop.threads.sleep),
        (threading, "Condition", threads.Condition),
        (pool.queueing.engine_queue, "ThreadRunner", threads.Runner),
        (pool.shadow, "ThreadRunner", threads.Runner),
        *((module, "ThreadPoolExecutor", threads.Executor) for module in _with_executors()),
        (gc, "collect", lambda *_: 0),  # a serving process calms the collector for good
        (gc, "freeze", lambda: None),
        (gc, "set_threshold", lambda *_: None),
        (os, "fsync", lambda descriptor: None),  # no machine loses its power here
        (os, "getpid", getpid),
        (os, "kill", kill),
        (os, "_exit", leave),
        (fcntl, "flock", flock),
        (secrets, "token_bytes", token_bytes),
        (secrets, "token_hex", lambda count=32: token_bytes(count).hex()),
        (uuid, "uuid4", lambda: uuid.UUID(bytes=token_bytes(16), version=4)),
    ]
    dice = random.getstate()
    before = [(target, name, getattr(target, name)) for target, name, _ in patches]
    threads.enter(loop)
    random.seed(loop.dice.random())
    try:
        for target, name, value in patches:
            setattr(target, name, value)
        with _default_arguments(old_clock, loop.time):
            yield
    finally:
        for target, name, value in before:
            setattr(target, name, value)
        random.setstate(dice)
        threads.leave()


@contextlib.contextmanager
def _default_arguments(old: object, new: object) -> Iterator[None]:
    """Replace a clock where it is the default of an argument, which was bound long ago."""
    changed = []
    for function in _functions():
        defaults, keywords = function.__defaults__ or (), function.__kwdefaults__ or {}
        if any(value is old for value in (*defaults, *keywords.values())):
            changed.append((function, function.__defaults__, function.__kwdefaults__))
            function.__defaults__ = tuple(new if value is old else value for value in defaults)
            function.__kwdefaults__ = {
                name: new if value is old else value for name, value in keywords.items()
            }
    try:
        yield
    finally:
        for function, positional, keyword in changed:
            function.__defaults__, function.__kwdefaults__ = positional, keyword


def _with_executors() -> list[ModuleType]:
    return [m for m in _modules() if vars(m).get("ThreadPoolExecutor") is ThreadPoolExecutor]


def _modules() -> list[ModuleType]:
    """Return every module of ours that is loaded."""
    found = list(sys.modules.items())
    return [module for name, module in found if name.partition(".")[0] in PACKAGES and module]


def _functions() -> Iterator[FunctionType]:
    for module in _modules():
        for value in list(vars(module).values()):
            if getattr(value, "__module__", "") == module.__name__:
                yield from _functions_of(value)


def _functions_of(value: object) -> Iterator[FunctionType]:
    if inspect.isclass(value):
        for member in vars(value).values():
            yield from _functions_of(getattr(member, "__func__", member))
    elif isinstance(value, FunctionType):
        yield value
