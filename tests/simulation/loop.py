"""The event loop of the simulation: virtual time, processes, and no system behind it."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from tests.simulation.network import Network
from tests.simulation.processes import Call, Gone, Process, current, of
from tests.simulation.threads import Threads
from tests.support.virtual_time import VirtualTimeLoop

START_S: Final = 10_000.0  # a machine's clock is far from 0 when anything begins
ENDED: Final = (asyncio.CancelledError, Gone)


class SimulatedLoop(VirtualTimeLoop):
    """Runs many processes in one; each callback belongs to the process that asked for it.

    Args:
        seed: of every delay, and of all that the code itself leaves to chance.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.dice = random.Random(seed)
        self.is_over = False  # the scenario has ended: the dead run too, to be cleared up
        self.processes: dict[int, Process] = {}
        self.failures: list[BaseException] = []  # what nobody has caught
        self.main: asyncio.Task[Any] | None = None  # the scenario
        self.wall_s = 1_800_000_000.0 - START_S  # what the wall clock shows above the monotonic one
        super().__init__()
        self.jumping.now_s = START_S
        self.network = Network(self)
        self.threads = Threads(self)
        # What starts programs; set by who knows them.
        self.spawn: Callable[[Sequence[str], Sequence[int]], Any] = _no_programs
        self.set_exception_handler(self._on_exception)

    # what is due

    def call_soon(
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        process = of(context)
        if process is None:
            return super().call_soon(callback, *args, context=context)
        context = contextvars.copy_context() if context is None else context
        call = Call(self, process, callback, args, context)
        call.handle = super().call_soon(call, context=context)
        return call.handle

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        process = of(context)
        if process is None:
            return super().call_at(when, callback, *args, context=context)
        context = contextvars.copy_context() if context is None else context
        call = Call(self, process, callback, args, context)
        timer = super().call_at(when, call, context=context)
        call.handle = timer
        return timer

    def call_soon_threadsafe(
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        # Threads of the simulation hold the loop while they run.
        self._check_closed()
        return self.call_soon(callback, *args, context=context)

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = super().create_task(coro, **options)
        process = of(options.get("context"))
        if process is not None:
            process.tasks.add(task)
        return task

    def outside(self, callback: Callable[[], object]) -> None:
        """Have `callback` called whatever becomes of the process that asks for it."""
        super().call_soon(callback, context=contextvars.Context())

    # what the system would do

    def run_in_executor(
        self, executor: object, work: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self.create_future()

        def done(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.threads.start(lambda: work(*args), done)
        return future

    def add_signal_handler(self, sig: int, callback: Callable[..., object], *args: Any) -> None:
        process = current()
        assert process is not None, "only a process of the simulation gets signals"
        process.handlers[sig] = lambda: callback(*args)

    def remove_signal_handler(self, sig: int) -> bool:
        process = current()
        return process is not None and process.handlers.pop(sig, None) is not None

    def add_reader(self, fd: Any, callback: Callable[..., object], *args: Any) -> None:
        process = current()
        if process is None:
            super().add_reader(fd, callback, *args)
            return

        def ready() -> None:
            if self.is_over or process.state == "running":
                callback(*args)
                return
            self.remove_reader(fd)  # or it would come up again and again
            if process.state == "stopped":
                again = (fd, callback, *args)
                context = contextvars.copy_context()
                process.frozen.append(Call(self, process, self.add_reader, again, context))

        super().add_reader(fd, ready)

    async def subprocess_exec(
        self,
        protocol_factory: Callable[[], Any],
        program: Any,
        *args: Any,
        pass_fds: Sequence[int] = (),
        **_: Any,
    ) -> tuple[Any, Any]:
        return self.spawn(args, pass_fds), protocol_factory()

    async def create_unix_connection(
        self, protocol_factory: Callable[[], Any], path: Any = None, **_: Any
    ) -> tuple[Any, Any]:
        return await self.network.dial(f"unix:{path}", protocol_factory)

    async def create_connection(
        self, protocol_factory: Callable[[], Any], host: Any = None, port: Any = None, **_: Any
    ) -> tuple[Any, Any]:
        return await self.network.dial(f"tcp:{port}", protocol_factory)

    async def create_unix_server(
        self, protocol_factory: Callable[[], Any], path: Any = None, *, sock: Any = None, **_: Any
    ) -> Any:
        return self.network.listen(sock, protocol_factory)

    async def create_server(
        self,
        protocol_factory: Callable[[], Any],
        host: Any = None,
        port: Any = None,
        *,
        sock: Any = None,
        **_: Any,
    ) -> Any:
        return self.network.listen(sock, protocol_factory)

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, ENDED) and not self.is_over:
            loop.default_exception_handler(context)
            self.fail(error or RuntimeError(context.get("message", "?")))

    def fail(self, error: BaseException) -> None:
        """End the scenario: something has failed that nobody waits for."""
        self.failures.append(error)
        if self.main is not None:
            self.outside(self.main.cancel)


def _no_programs(arguments: Sequence[str], pass_fds: Sequence[int]) -> Any:
    raise FileNotFoundError(f"no simulated program: {arguments}")
