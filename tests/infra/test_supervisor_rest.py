"""Processes that rest: their sockets stay open, and whoever dials one has it started."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from infra.child import ProcessSpec
from infra.supervisor import DEATHS_MAX, Supervisor
from pool.wire.listening import listen
from pool.wire.peer import Address

PATIENCE_S = 30.0


class Config(msgspec.Struct, frozen=True):
    """What `tests.support.echo_process` is told."""

    listen: str
    drain_s: float = 0.0
    dies: bool = False
    listen_fds: tuple[int, ...] = ()
    notice_fd: int = -1
    asked_s: float = 0.0
    is_for_call: bool = False


class Resting:
    """One process that may rest, and how it is dialled."""

    def __init__(self, folder: Path, **config: object) -> None:
        self.path = str(folder / "s")
        made = msgspec.convert({"listen": self.path, **config}, Config)
        self.supervisor = Supervisor(folder / "log")
        self.spec = ProcessSpec(
            "echo",
            "tests.support.echo_process",
            made,
            0,
            made.drain_s + 5.0,
            listen=lambda: [listen(Address(path=self.path))],
            may_rest=True,
        )

    @property
    def state(self) -> str:
        return self.supervisor.states()["echo"][0]

    @property
    def pid(self) -> int:
        return self.supervisor.states()["echo"][1]

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not is_so():
                self.supervisor.changed.clear()
                await self.supervisor.changed.wait()

    async def until_state(self, state: str) -> None:
        await self.until(lambda: self.state == state)

    async def ask(self) -> str:
        """Dial it, and return who answers and why that process was started."""
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_unix_connection(self.path)
            try:
                return (await reader.readline()).decode().strip()
            finally:
                writer.close()


@asynccontextmanager
async def resting(*, wanted: bool = False, **config: object) -> AsyncIterator[Resting]:
    """Supervise a process that rests at first unless it is `wanted`."""
    folder = Path(tempfile.mkdtemp(prefix="tp"))
    made = Resting(folder, **config)
    made.supervisor.start([made.spec], () if wanted else ("echo",))
    try:
        if not wanted:
            async with asyncio.timeout(PATIENCE_S):
                while not Path(made.path).exists():  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
        yield made
    finally:
        await made.supervisor.stop()
        shutil.rmtree(folder)


async def test_cold_place_starts_its_process_when_it_is_dialled_and_not_before() -> None:
    async with resting() as one:
        await asyncio.sleep(0.05)
        assert (one.state, one.pid) == ("cold", 0)
        assert await one.ask() == f"{one.pid} for a call"
        await one.until_state("up")


async def test_place_that_is_wanted_is_up_without_a_call_and_rests_when_it_is_not() -> None:
    async with resting(wanted=True) as one:
        await one.until_state("up")
        assert await one.ask() == f"{one.pid} wanted"
        one.supervisor.want(())
        await one.until_state("cold")
        one.supervisor.want(("echo",))
        await one.until_state("up")


async def test_call_that_comes_while_its_process_drains_is_answered_by_a_new_one() -> None:
    async with resting(wanted=True, drain_s=0.3) as one:
        await one.until_state("up")
        old = one.pid
        one.supervisor.want(())
        await one.until(lambda: not one.supervisor.pids())  # it has said that it listens no more
        assert one.state == "draining"
        assert await one.ask() == f"{one.pid} for a call"
        assert one.pid not in (0, old)


async def test_order_to_rest_that_is_older_than_a_call_does_not_end_what_the_call_woke() -> None:
    async with resting() as one:
        await one.ask()
        await one.until_state("up")
        pid = one.pid
        one.supervisor.want(())
        await asyncio.sleep(0.05)
        assert (one.state, one.pid) == ("up", pid)
        one.supervisor.want(("echo",))  # now somebody else answers for it
        one.supervisor.want(())
        await one.until_state("cold")


async def test_process_that_dies_while_it_starts_is_started_for_the_next_call_only() -> None:
    async with resting(dies=True) as one:
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(one.path)
            await one.until_state("starting")
        # The one who had dialled is gone, so nobody waits for it any more.
        async with asyncio.timeout(PATIENCE_S):
            while one.state != "cold":  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert not one.supervisor.failed.is_set()


async def test_process_that_is_told_to_rest_while_it_starts_has_not_died() -> None:
    async with resting() as one:
        for _ in range(DEATHS_MAX):
            one.supervisor.want(("echo",))
            await one.until_state("starting")
            one.supervisor.want(())
            await one.until_state("cold")
        assert one.supervisor.hopeless() == ""
        assert await one.ask() == f"{one.pid} for a call"


async def test_stop_ends_a_cold_place_at_once() -> None:
    async with resting() as one:
        async with asyncio.timeout(PATIENCE_S):
            await one.supervisor.stop()
        assert not Path(one.path).exists()
