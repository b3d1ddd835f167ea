"""Where blocking work is done, and how its duration is told."""

from __future__ import annotations

import asyncio
import functools
import threading
import time

import pytest

from pool.queueing.runner import ThreadRunner, run_here


def test_work_is_done_in_the_thread_and_its_end_is_told_on_the_loop() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        told: asyncio.Future[tuple[str, float]] = loop.create_future()
        runner = ThreadRunner("engine t", loop)

        def done(result: str, run_s: float) -> None:
            assert threading.current_thread() is threading.main_thread()
            told.set_result((result, run_s))

        def work() -> str:
            time.sleep(0.02)
            return threading.current_thread().name

        runner.start(work, done)
        name, run_s = await told
        assert name == "engine t"
        assert run_s == pytest.approx(0.02, rel=0.9)
        runner.close()

    asyncio.run(main())


def test_the_thread_ends_after_what_was_started() -> None:
    async def main() -> list[int]:
        runner = ThreadRunner("engine closing", asyncio.get_running_loop())
        heard: list[int] = []
        last = asyncio.Event()

        def note(result: int, _: float) -> None:
            heard.append(result)
            if result == 2:
                last.set()

        for i in range(3):
            runner.start(functools.partial(int, i), note)
        runner.close()
        await last.wait()
        return heard

    assert asyncio.run(main()) == [0, 1, 2]
    _wait_until_gone("engine closing")


def _wait_until_gone(name: str) -> None:
    deadline_s = time.monotonic() + 5
    while any(thread.name == name for thread in threading.enumerate()):
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def test_a_result_for_a_loop_that_is_gone_is_dropped() -> None:
    async def main() -> threading.Event:
        runner = ThreadRunner("engine late", asyncio.get_running_loop())
        go = threading.Event()
        runner.start(go.wait, lambda result, _: None)
        runner.close()
        return go

    go = asyncio.run(main())
    go.set()
    _wait_until_gone("engine late")


def test_waiting_is_its_own_doing() -> None:
    result, run_s, own_s = run_here(lambda: time.sleep(0.02), time.monotonic)
    assert result is None
    assert own_s == run_s >= 0.02


def test_computing_is_its_own_doing_and_never_more_than_the_duration() -> None:
    _, run_s, own_s = run_here(lambda: sum(range(300_000)), time.monotonic)
    assert 0 < own_s <= run_s
