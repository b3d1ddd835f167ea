"""Runs a scenario: the loop, the replaced system, and the log by which two lives are compared."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog

from tests.simulation import system
from tests.simulation.loop import SimulatedLoop
from tests.simulation.processes import Process, current
from tests.support.virtual_time import _alarm

T = TypeVar("T")

CANCELS_MAX = 3
CANCEL_S = 30.0  # of virtual time, for what is cancelled to end


@dataclass
class Line:
    """One line that somebody logged."""

    at_s: float
    process: str
    event: str
    fields: dict[str, Any]

    def __str__(self) -> str:
        said = " ".join(f"{name}={value}" for name, value in self.fields.items())
        return f"{self.at_s:12.6f} {self.process:8} {self.event} {said}"


@dataclass
class World:
    """What a scenario acts on."""

    loop: SimulatedLoop
    lines: list[Line] = field(default_factory=list)

    @property
    def now_s(self) -> float:
        """The virtual time since the beginning of time."""
        return self.loop.time()

    def start(
        self, name: str, main: Callable[[], Coroutine[Any, Any, object]], after_s: float = 0.0
    ) -> Process:
        """Start a process that runs `main`."""
        process = Process(self.loop, name)
        process.run(main, after_s)
        return process

    def go(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Let a part of the scenario run beside the rest."""
        return self.loop.create_task(work)

    def step_wall_clock(self, seconds: float) -> None:
        """Set everybody's wall clock forward, or back; the monotonic one is not touched."""
        self.loop.wall_s += seconds

    def log(self, event: str = "") -> list[Line]:
        """Return what was logged, or of that one event."""
        return [line for line in self.lines if event in ("", line.event)]

    def text(self, count: int = 400) -> str:
        """Return the last lines of the log."""
        return "\n".join(map(str, self.lines[-count:]))


async def until(true: Callable[[], object], s_max: float = 60.0, step_s: float = 0.01) -> None:
    """Wait, in virtual time, until something holds."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + s_max
    while not true():
        assert loop.time() < deadline_s, f"not within {s_max} s of virtual time"
        await asyncio.sleep(step_s)


def simulate(
    main: Callable[[World], Coroutine[Any, Any, T]], *, seed: int = 0, wall_s_max: float = 60.0
) -> T:
    """Run a scenario to its end.

    Whatever a process logs as a bug, and whatever a main of one ends with but by leaving, fails
    the scenario, after it.

    Raises:
        Deadlock, Livelock, TookTooLong: see `tests.support.virtual_time`.
        Stalled: see `tests.simulation.threads`.
    """
    with _cleared_up():
        return _simulate(main, seed, wall_s_max)


def _simulate(main: Callable[[World], Coroutine[Any, Any, T]], seed: int, wall_s_max: float) -> T:
    loop = SimulatedLoop(seed)
    world = World(loop)
    try:
        with system.replaced(loop), _logging(world), _alarm(wall_s_max, loop):
            result = _run(loop, main(world))
    except BaseException as error:
        print(world.text())
        for failure in loop.failures:
            traceback.print_exception(failure)
        if isinstance(error, asyncio.CancelledError) and loop.failures:
            raise AssertionError(f"{loop.failures}") from loop.failures[0]
        raise
    bugs = world.log("bug")
    if loop.failures or bugs:
        print(world.text())
        raise AssertionError(f"{loop.failures} {[str(line) for line in bugs]}")
    return result


def _run(loop: SimulatedLoop, main: Coroutine[Any, Any, T]) -> T:
    asyncio.set_event_loop(loop)
    try:
        loop.main = loop.create_task(main)
        return loop.run_until_complete(loop.main)
    finally:
        loop.is_over = True
        loop.threads.close()
        _end_tasks(loop)
        loop.network.close()
        asyncio.set_event_loop(None)
        loop.close()


def _end_tasks(loop: SimulatedLoop) -> None:
    """Cancel what is left; a process that has ended may wait for what never comes."""
    for _ in range(CANCELS_MAX):
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if not tasks:
            return
        loop.run_until_complete(asyncio.wait(tasks, timeout=CANCEL_S))
    for task in asyncio.all_tasks(loop):
        task._log_destroy_pending = False


@contextmanager
def _cleared_up() -> Iterator[None]:
    """Let go of what processes leave to the system at their end, without a warning."""
    gc.collect(0)
    gc.freeze()  # what was there before is not looked at
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
            gc.collect()
            sys.unraisablehook = hook
        gc.unfreeze()


@contextmanager
def _logging(world: World) -> Iterator[None]:
    def keep(_: Any, level: str, fields: dict[str, Any]) -> dict[str, Any]:
        process = current()
        event = str(fields.pop("event"))
        if level == "exception" or fields.get("exc_info"):
            fields["traceback"] = structlog.processors.format_exc_info(None, level, fields)
        name = "" if process is None else process.name
        world.lines.append(Line(world.loop.time(), name, event, fields))
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(
        processors=[keep],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=False,  # each life has a log of its own
    )
    try:
        yield
    finally:
        structlog.configure(**before)
