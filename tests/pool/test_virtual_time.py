"""The tests' own clock: it jumps, and says so when nothing can happen any more."""

from __future__ import annotations

import asyncio
import signal
import time

import pytest

from tests.support import virtual_time


def test_hours_take_no_time() -> None:
    async def main() -> float:
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    started_s = time.monotonic()
    assert virtual_time.run(main()) == 3600
    assert time.monotonic() - started_s < 5


def test_waiting_for_what_never_comes_is_an_error() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(virtual_time.Deadlock):
        virtual_time.run(main())


def test_turning_without_end_at_one_moment_is_an_error() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        def again() -> None:
            loop.call_soon(again)

        again()
        await loop.create_future()

    with pytest.raises(virtual_time.Livelock):
        virtual_time.run(main())


def test_a_task_that_never_gives_the_loop_back_is_an_error_even_if_it_swallows_exceptions() -> None:
    async def stuck() -> None:
        while True:
            try:
                time.sleep(0.01)  # noqa: ASYNC251  what is tested
            except Exception:
                continue

    async def main() -> None:
        task = asyncio.create_task(stuck())
        await asyncio.sleep(1)
        await task

    with pytest.raises(virtual_time.TookTooLong):
        virtual_time.run(main(), wall_s_max=0.1)


def test_the_alarm_of_somebody_else_is_given_back() -> None:
    before = signal.getsignal(signal.SIGALRM)
    virtual_time.run(asyncio.sleep(1))
    assert signal.getsignal(signal.SIGALRM) is before
