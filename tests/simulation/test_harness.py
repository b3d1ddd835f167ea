"""The simulation itself: its time, processes, threads and network do what a system's do."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pool.wire import data
from pool.wire.frames import Buffer
from pool.wire.handshake import Secrets
from pool.wire.listening import listen, serve
from pool.wire.peer import Address, Peer, dial
from registry_sync import daemon
from registry_sync.leader import step
from tests.simulation.loop import START_S
from tests.simulation.threads import Stalled
from tests.simulation.world import World, simulate, until

SECRETS = Secrets.parse("a secret of the fleet")


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tp") as name:
        yield Path(name)


# time


def test_all_clocks_are_the_loops_and_come_back() -> None:
    async def main(world: World) -> None:
        unix_s = time.time()
        await asyncio.sleep(3600)
        assert time.monotonic() == asyncio.get_running_loop().time() == START_S + 3600
        assert time.time() - unix_s == 3600
        world.step_wall_clock(-7200)
        assert time.time() - unix_s == -3600
        assert time.monotonic() == START_S + 3600

    before_s = time.monotonic()
    simulate(main)
    assert 0 < time.monotonic() - before_s < 10


def test_clock_that_is_the_default_of_an_argument_is_the_loops_too() -> None:
    def default() -> object:
        defaults = step.__defaults__
        assert defaults is not None
        return defaults[0]

    async def main(world: World) -> None:
        assert default() == world.loop.time

    simulate(main)
    assert default() is time.monotonic


# processes


def test_stopped_process_does_nothing_and_then_catches_up() -> None:
    async def main(world: World) -> None:
        ticks: list[float] = []

        async def tick() -> None:
            while True:
                await asyncio.sleep(1)
                ticks.append(time.monotonic() - START_S)

        process = world.start("p", tick)
        await asyncio.sleep(2.5)
        process.kill(signal.SIGSTOP)
        await asyncio.sleep(10)
        assert ticks == [1, 2]
        process.kill(signal.SIGCONT)
        await asyncio.sleep(1.2)
        assert ticks == [1, 2, 12.5, 13.5]

    simulate(main)


def test_timer_cancelled_by_who_was_stopped_meanwhile_does_not_fire() -> None:
    async def main(world: World) -> None:
        fired: list[str] = []

        async def work() -> None:
            loop = asyncio.get_running_loop()
            late = loop.call_later(2.0, fired.append, "late")
            loop.call_later(1.0, late.cancel)
            await asyncio.sleep(60)

        process = world.start("p", work)
        await asyncio.sleep(0.5)
        process.kill(signal.SIGSTOP)
        await asyncio.sleep(5)
        process.kill(signal.SIGCONT)
        await asyncio.sleep(5)
        assert not fired

    simulate(main)


def test_killed_process_does_not_even_clear_up_and_frees_its_locks(folder: Path) -> None:
    async def main(world: World) -> None:
        words: list[str] = []

        async def work() -> None:
            lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                await asyncio.sleep(60)
            finally:
                words.append("cleared up")
                os.close(lock)

        process = world.start("p", work)
        await asyncio.sleep(1)
        with open(folder / "lock") as other:  # noqa: ASYNC230
            with pytest.raises(BlockingIOError):
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.kill(process.pid, signal.SIGKILL)
            assert await process.ended == -signal.SIGKILL
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        await asyncio.sleep(120)
        assert not words

    simulate(main)


def test_sigterm_reaches_the_handler_and_exit_is_the_processs_own() -> None:
    async def main(world: World) -> None:
        async def work() -> None:
            told = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
            await told.wait()
            os._exit(7)

        process, other = world.start("p", work), world.start("q", lambda: asyncio.sleep(60))
        await asyncio.sleep(1)
        process.kill(signal.SIGTERM)
        assert await process.ended == 7
        other.kill(signal.SIGTERM)
        assert await other.ended == -signal.SIGTERM

    simulate(main)


def test_main_that_ends_by_a_bug_fails_the_scenario() -> None:
    async def main(world: World) -> None:
        async def work() -> None:
            raise ValueError("a bug")

        world.start("p", work)
        await asyncio.get_running_loop().create_future()

    with pytest.raises(AssertionError, match="a bug"):
        simulate(main)


# threads


def test_threads_sleep_in_virtual_time_beside_each_other() -> None:
    async def main(world: World) -> None:
        woken: list[tuple[str, float]] = []

        def work(name: str, seconds: float) -> str:
            time.sleep(seconds)
            woken.append((name, time.monotonic() - START_S))
            return name

        both = await asyncio.gather(
            asyncio.to_thread(work, "slow", 100.0), asyncio.to_thread(work, "quick", 10.0)
        )
        assert both == ["slow", "quick"]
        assert woken == [("quick", 10.0), ("slow", 100.0)]

    simulate(main)


def test_thread_has_no_loop_and_its_errors_come_back() -> None:
    async def main(world: World) -> None:
        with pytest.raises(RuntimeError, match="no running event loop"):
            await asyncio.to_thread(asyncio.get_running_loop)

    simulate(main)


def test_conditions_and_semaphores_wait_in_virtual_time() -> None:
    async def main(world: World) -> None:
        semaphore, event = threading.Semaphore(1), threading.Event()
        order: list[str] = []

        def first() -> None:
            with semaphore:
                time.sleep(5)
                order.append("first")
            event.set()

        def second() -> None:
            with semaphore:
                order.append("second")
            assert event.wait()
            assert not threading.Event().wait(timeout=3.0)

        await asyncio.gather(asyncio.to_thread(first), asyncio.to_thread(second))
        assert order == ["first", "second"]
        assert time.monotonic() == START_S + 8

    simulate(main)


def test_lock_of_a_file_is_waited_for_in_virtual_time(folder: Path) -> None:
    async def main(world: World) -> None:
        def hold() -> None:
            with open(folder / "lock", "a") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                time.sleep(5)

        await asyncio.gather(asyncio.to_thread(hold), asyncio.to_thread(hold))
        assert START_S + 10 <= time.monotonic() < START_S + 11

    simulate(main)


def test_pools_of_threads_are_the_simulations_too() -> None:
    async def main(world: World) -> None:
        def work(number: int) -> int:
            time.sleep(1)
            return number

        def all_of_them() -> list[int]:
            with daemon.ThreadPoolExecutor(2) as pool:
                return list(pool.map(work, range(4)))

        assert await asyncio.to_thread(all_of_them) == [0, 1, 2, 3]
        assert time.monotonic() == START_S + 2

    simulate(main)


def test_thread_that_is_none_of_the_simulations_must_not_sleep() -> None:
    async def main(world: World) -> None:
        errors: list[BaseException] = []

        def work() -> None:
            try:
                time.sleep(1)
            except Stalled as error:
                errors.append(error)

        stray = threading.Thread(target=work)
        stray.start()
        stray.join()
        assert len(errors) == 1

    simulate(main)


def test_killed_process_leaves_its_threads_where_they_are() -> None:
    async def main(world: World) -> None:
        words: list[str] = []

        def load() -> None:
            time.sleep(10)
            words.append("loaded")

        process = world.start("p", lambda: asyncio.to_thread(load))
        await asyncio.sleep(5)
        process.kill()
        await asyncio.sleep(60)
        assert not words

    simulate(main)


def test_loop_that_sleeps_is_an_error() -> None:
    async def main(world: World) -> None:
        time.sleep(1.0)  # noqa: ASYNC251  what is tested

    with pytest.raises(Stalled, match="itself sleeps"):
        simulate(main)


# network


class Echo:
    """Listens, and sends every frame back; says what it heard."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.heard: list[int] = []
        self.lost = 0

    async def __call__(self) -> None:
        await serve(self.address, SECRETS, self._on_peer)
        await asyncio.sleep(1e6)

    def _on_peer(self, peer: Peer) -> None:
        def frame(header: bytes, body: Buffer) -> None:
            message = data.decode(header)
            assert isinstance(message, data.Cancel)
            self.heard.append(message.call_id)
            peer.send(data.encode(message))

        def lost(error: Exception | None) -> None:
            self.lost += 1

        peer.on_frame, peer.on_lost = frame, lost


class Caller:
    """Dials, and keeps what comes."""

    def __init__(self) -> None:
        self.heard: list[int] = []
        self.errors: list[Exception | None] = []

    async def dial(self, address: Address) -> Caller:
        self.peer = await dial(address, SECRETS)
        self.peer.on_frame = self._frame
        self.peer.on_lost = self.errors.append
        return self

    def _frame(self, header: bytes, body: Buffer) -> None:
        message = data.decode(header)
        assert isinstance(message, data.Cancel)
        self.heard.append(message.call_id)

    def say(self, *numbers: int) -> None:
        for number in numbers:
            self.peer.send(data.encode(data.Cancel(number)))


def addresses(folder: Path) -> list[Address]:
    return [Address(path=str(folder / "s")), Address(host="127.0.0.1", port=0)]


@pytest.mark.parametrize("kind", [0, 1])
def test_frames_come_whole_and_in_order_over_either_kind(kind: int, folder: Path) -> None:
    async def main(world: World) -> None:
        address = addresses(folder)[kind]
        sock = listen(address)  # as a supervisor does, who hands it down
        if not address.path:
            address = Address(host="127.0.0.1", port=sock.getsockname()[1])
        echo = Echo(address)

        async def server() -> None:
            await serve(address, SECRETS, echo._on_peer, fds=[os.dup(sock.fileno())])
            await asyncio.sleep(1e6)

        world.start("server", server)
        await asyncio.sleep(1)
        caller = await Caller().dial(address)
        for number in range(200):
            caller.say(number)
            await asyncio.sleep(0)
        await until(lambda: len(caller.heard) == 200)
        assert echo.heard == caller.heard == list(range(200))
        sock.close()

    simulate(main)


def test_who_dials_a_socket_that_is_held_open_waits_for_a_process(folder: Path) -> None:
    """And the socket shows that somebody dials, as an operator of cold places needs it."""

    async def main(world: World) -> None:
        address = addresses(folder)[0]
        with pytest.raises(OSError, match=r"No such file|refused"):
            await dial(address, None)
        sock = listen(address)
        dialled = asyncio.Event()
        world.loop.add_reader(sock, dialled.set)
        caller = await Caller().dial(address)
        caller.say(1, 2)
        await dialled.wait()
        world.loop.remove_reader(sock)
        await asyncio.sleep(30)
        echo = Echo(address)

        async def server() -> None:
            await serve(address, None, echo._on_peer, fds=[os.dup(sock.fileno())])
            await asyncio.sleep(1e6)

        process = world.start("server", server)
        await until(lambda: caller.heard == [1, 2])
        # The process ends, the socket is still held: the next one waits again, until it is closed.
        process.kill()
        await until(lambda: caller.errors)
        other = await Caller().dial(address)
        sock.close()
        await until(lambda: other.errors)

    simulate(main)


def test_death_of_a_process_shows_on_its_connections_and_its_stop_does_not(folder: Path) -> None:
    async def main(world: World) -> None:
        echo = Echo(addresses(folder)[0])
        process = world.start("server", echo)
        await asyncio.sleep(1)
        caller = await Caller().dial(echo.address)
        process.kill(signal.SIGSTOP)
        late = await Caller().dial(echo.address)
        caller.say(1)
        late.say(2)
        await asyncio.sleep(10)
        assert not echo.heard
        process.kill(signal.SIGCONT)
        await until(lambda: caller.heard == [1] and late.heard == [2])
        assert not caller.errors
        process.kill()
        await until(lambda: caller.errors and late.errors)
        with pytest.raises(OSError, match=r"No such file|refused"):
            await dial(echo.address, None)

    simulate(main)


def test_cut_holds_everything_back_until_it_is_healed(folder: Path) -> None:
    async def main(world: World) -> None:
        echo = Echo(addresses(folder)[0])
        process = world.start("server", echo)
        caller = Caller()

        async def client() -> None:
            await caller.dial(echo.address)
            await asyncio.sleep(1e6)

        peer = world.start("client", client, after_s=1.0)
        await asyncio.sleep(2)
        world.loop.network.cut(process, peer)
        peer.call(caller.say, 1)
        await asyncio.sleep(60)
        assert not echo.heard
        assert not caller.errors
        world.loop.network.heal()
        await until(lambda: caller.heard == [1])

    simulate(main)


def test_writer_is_paused_while_the_other_side_does_not_read(folder: Path) -> None:
    async def main(world: World) -> None:
        echo = Echo(addresses(folder)[0])
        process = world.start("server", echo)
        await asyncio.sleep(1)
        caller = await Caller().dial(echo.address)
        process.kill(signal.SIGSTOP)
        much = data.Tensor("x", "UINT8", (1 << 20,), bytes(1 << 20))
        for number in range(20):
            caller.peer.send(data.encode(data.Cancel(number), [much]))
            await asyncio.sleep(0)
        assert caller.peer.behind is not None
        process.kill(signal.SIGCONT)
        await caller.peer.behind
        await until(lambda: len(caller.heard) == 20)

    simulate(main)


# the same seed


def test_what_two_connections_carry_overtakes_each_other_by_the_seed_alone(folder: Path) -> None:
    def life(seed: int) -> list[int]:
        async def main(world: World) -> list[int]:
            echo = Echo(addresses(folder)[0])
            world.start("server", echo)
            await asyncio.sleep(1)
            callers = [await Caller().dial(echo.address) for _ in range(20)]
            for number, caller in enumerate(callers):
                caller.say(number, number + 100)
            await until(lambda: all(len(caller.heard) == 2 for caller in callers))
            return echo.heard

        return simulate(main, seed=seed)

    lives = [life(1), life(1), life(2)]
    assert lives[0] == lives[1] != lives[2]
    for heard in lives:
        assert sorted(heard) == [*range(20), *range(100, 120)]
        assert all(heard.index(n) < heard.index(n + 100) for n in range(20))
