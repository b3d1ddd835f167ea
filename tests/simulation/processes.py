"""Processes of the simulation: all of them live in this one, told apart by a context variable."""

from __future__ import annotations

import asyncio
import contextvars
import fcntl
import os
import signal
import weakref
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.loop import SimulatedLoop
    from tests.simulation.network import Listener, SimulatedTransport

PID_MIN = 1 << 23  # above every pid that Linux gives

_here: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class Gone(BaseException):
    """Unwinds what is left of a process that has ended.  No `Exception`: nobody swallows it."""


def current() -> Process | None:
    """Return the process whose code runs now; None: the test's own."""
    return _here.get()


def of(context: contextvars.Context | None) -> Process | None:
    """Return the process to which a context belongs."""
    return current() if context is None else context.get(_here)


class Process:
    """One process: its tasks, connections, signals and locks.

    `state` is "running", "stopped" (as by SIGSTOP: what is due waits, peers notice nothing) or
    "dead" (nothing of it runs any more, not even a `finally`).
    """

    def __init__(self, loop: SimulatedLoop, name: str) -> None:
        self.name = name
        self.pid = PID_MIN + len(loop.processes)
        self.state = "running"
        self.stopped_s = 0.0  # when it was stopped last
        self.wall_s = 0.0  # by which its host's wall clock is ahead of everybody's
        self.code: int | None = None  # once it is dead; a signal's negative
        self.handlers: dict[int, Callable[[], None]] = {}
        self.transports: dict[SimulatedTransport, None] = {}  # in order, or chance would decide
        self.listeners: dict[Listener, None] = {}
        self.frozen: list[Call] = []
        self.children: list[Process] = []
        self.tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self.ended: asyncio.Future[int] = loop.create_future()
        self._loop = loop
        # Descriptors, and what they were.
        self._locks: list[tuple[int, tuple[int, int]]] = []
        self._open: list[tuple[int, tuple[int, int]]] = []
        self._context = contextvars.copy_context()
        self._context.run(_here.set, self)
        loop.processes[self.pid] = self

    def run(self, main: Callable[[], Coroutine[Any, Any, object]], after_s: float = 0.0) -> None:
        """Begin `main` in `after_s`; the process ends with it."""

        async def whole() -> None:
            try:
                await asyncio.sleep(after_s)
                await main()
            except Gone:
                raise
            except BaseException as error:
                if self.state != "dead" and not self._loop.is_over:
                    self.exit(1)
                    self._loop.fail(error)
                raise Gone from error
            self.exit(0)

        self.task = self._loop.create_task(whole(), context=self._context)

    def call(self, callback: Callable[..., object], *args: object) -> None:
        """Have `callback` called in this process."""
        self._loop.call_soon(callback, *args, context=self._context)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Let a task of this process begin."""
        return self._loop.create_task(work, context=self._context)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal."""
        if self.state == "dead":
            return
        if number == signal.SIGSTOP:
            self.state = "stopped"
            self.stopped_s = self._loop.time()
        elif number == signal.SIGCONT:
            self._go_on()
        elif number in self.handlers:
            self.call(self.handlers[number])
        else:
            self.exit(-number)

    def exit(self, code: int) -> None:
        """End at once: connections are reset, locks free, nothing of it runs again."""
        if self.state == "dead":
            return
        self.state, self.code = "dead", code
        self.frozen.clear()
        for listener in list(self.listeners):
            listener.close()
        for transport in list(self.transports):
            transport.vanish()
        for task in self.tasks:
            task._log_destroy_pending = False  # nobody will ever run it again
        for child in self.children:
            child.kill(signal.SIGKILL)
        for descriptor, identity in self._locks:
            if _identity(descriptor) == identity:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        for descriptor, identity in self._open:
            if _identity(descriptor) == identity:
                os.close(descriptor)
        self._loop.outside(lambda: self.ended.done() or self.ended.set_result(code))

    def at_end(self, callback: Callable[[int], object]) -> None:
        """Have `callback` called in the process of who asks, once this one has ended."""
        self.ended.add_done_callback(
            lambda ended: callback(ended.result()), context=contextvars.copy_context()
        )

    def holds(self, descriptor: int) -> None:
        """Take note of a descriptor that the system would close at the end."""
        self._open.append((descriptor, _identity(descriptor)))

    def takes(self, descriptor: int) -> None:
        """Take note that somebody in the process closes a descriptor, and the system need not."""
        self._open = [(found, identity) for found, identity in self._open if found != descriptor]

    def locked(self, descriptor: int) -> None:
        """Take note of a lock that the system would free at the end."""
        self._locks.append((descriptor, _identity(descriptor)))

    def _go_on(self) -> None:
        if self.state == "stopped":
            self.state = "running"
            frozen, self.frozen = self.frozen, []
            for call in frozen:
                call.again()

    def __repr__(self) -> str:
        return f"<{self.name} {self.state}>"


class Call:
    """Something due in a process, which runs only while the process does."""

    __slots__ = ("_args", "_callback", "_context", "_loop", "_process", "handle")

    def __init__(
        self,
        loop: SimulatedLoop,
        process: Process,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: contextvars.Context,
    ) -> None:
        self._loop = loop
        self._process = process
        self._callback = callback
        self._args = args
        self._context = context
        self.handle: asyncio.Handle | None = None

    def __call__(self) -> None:
        if self.handle is not None and self.handle.cancelled():
            return  # while it was frozen
        if self._loop.is_over or self._process.state == "running":
            self._callback(*self._args)
        elif self._process.state == "stopped":
            self._process.frozen.append(self)

    def again(self) -> None:
        """Come up once more."""
        asyncio.BaseEventLoop.call_soon(self._loop, self, context=self._context)


def _identity(descriptor: int) -> tuple[int, int]:
    try:
        found = os.fstat(descriptor)
    except OSError:
        return (0, 0)
    return (found.st_dev, found.st_ino)
