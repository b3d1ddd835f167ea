"""Of identical requests one is computed, and nobody's fate hangs on another caller."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

from edge.errors import (
    BadRequest,
    ClientGone,
    DeadlineExceeded,
    ModelFailed,
    NotFound,
    QuotaExceeded,
    Refusal,
    Unavailable,
    Unprocessable,
    WorkerLost,
)
from edge.flight import FAILURES_MAX, RUNS_MAX, Flights

LONG_S = 30.0


class Model:
    """A computation that is told when and how to end, and counts how often it was started."""

    def __init__(self) -> None:
        self.ends: list[asyncio.Future[str]] = []
        self.cancelled = 0
        self.leaders: list[str] = []

    def start(self, name: str, deadline_s: float) -> Callable[[], Computing]:
        def begin() -> Computing:
            self.leaders.append(name)
            computing = Computing(self, deadline_s)
            self.ends.append(computing.future)
            return computing

        return begin


class Computing:
    """One computation under way; ends when it is told to, or at its leader's deadline."""

    def __init__(self, model: Model, deadline_s: float) -> None:
        self._model = model
        loop = asyncio.get_running_loop()
        self.future: asyncio.Future[str] = loop.create_future()
        loop.call_at(deadline_s, self._expire)

    def _expire(self) -> None:
        if not self.future.done():
            self.future.set_exception(DeadlineExceeded("too late"))

    def cancel(self) -> None:
        self._model.cancelled += 1
        self.future.cancel()


class Stage:
    """Flights, a model and callers."""

    def __init__(self) -> None:
        self.flights: Flights[str] = Flights()
        self.model = Model()

    def call(self, name: str = "", *, left_s: float = LONG_S, key: str = "k") -> asyncio.Task[str]:
        deadline_s = asyncio.get_running_loop().time() + left_s
        return asyncio.create_task(
            self.flights.run(key, deadline_s, self.model.start(name, deadline_s))
        )


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def outcomes(tasks: list[asyncio.Task[str]]) -> list[Any]:
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)


@pytest.mark.rule("F23")
async def test_a_thousand_identical_misses_are_computed_once() -> None:
    stage = Stage()
    tasks = [stage.call() for _ in range(1000)]
    await turns()
    assert len(stage.model.ends) == 1
    stage.model.ends[0].set_result("answer")
    assert await outcomes(tasks) == ["answer"] * 1000
    assert len(stage.flights) == 0


async def test_different_keys_fly_apart() -> None:
    stage = Stage()
    tasks = [stage.call(key="a"), stage.call(key="b")]
    await turns()
    stage.model.ends[0].set_result("a")
    stage.model.ends[1].set_result("b")
    assert await outcomes(tasks) == ["a", "b"]


async def test_answer_is_not_kept() -> None:
    stage = Stage()
    for number in range(2):
        task = stage.call()
        await turns()
        stage.model.ends[number].set_result(str(number))
        assert await task == str(number)


async def test_first_caller_who_leaves_does_not_disturb_the_others() -> None:
    stage = Stage()
    first, *others = [stage.call() for _ in range(5)]
    await turns()
    first.cancel()
    await turns()
    assert stage.model.cancelled == 0
    stage.model.ends[0].set_result("answer")
    assert await outcomes(others) == ["answer"] * 4
    assert first.cancelled()


async def test_computation_ends_when_all_callers_left() -> None:
    stage = Stage()
    tasks = [stage.call() for _ in range(3)]
    await turns()
    for task in tasks:
        task.cancel()
    await turns()
    assert stage.model.cancelled == 1
    assert len(stage.flights) == 0


async def test_caller_right_after_all_left_gets_a_flight_of_its_own() -> None:
    stage = Stage()
    first = stage.call()
    await turns()
    first.cancel()
    await turns(2)
    second = stage.call()
    await turns()
    stage.model.ends[-1].set_result("second")
    assert await outcomes([second]) == ["second"]


async def test_everybody_waits_by_their_own_deadline() -> None:
    stage = Stage()
    patient, hasty = stage.call(left_s=LONG_S), stage.call(left_s=0.01)
    (failure,) = await outcomes([hasty])
    assert type(failure) is DeadlineExceeded
    stage.model.ends[0].set_result("answer")
    assert await outcomes([patient]) == ["answer"]


async def test_hasty_first_caller_leaves_the_lead_to_another() -> None:
    stage = Stage()
    hasty, patient = stage.call(left_s=0.01), stage.call(left_s=LONG_S)
    (failure,) = await outcomes([hasty])
    assert type(failure) is DeadlineExceeded
    await turns()
    stage.model.ends[1].set_result("answer")
    assert await outcomes([patient]) == ["answer"]


async def test_hasty_follower_leaves_by_its_own_deadline() -> None:
    stage = Stage()
    patient, hasty = stage.call(left_s=LONG_S), stage.call(left_s=0.01)
    (failure,) = await outcomes([hasty])
    assert type(failure) is DeadlineExceeded
    assert stage.model.cancelled == 0
    stage.model.ends[0].set_result("answer")
    assert await outcomes([patient]) == ["answer"]


@pytest.mark.parametrize(
    "error", [BadRequest("b"), NotFound("n"), Unprocessable("u"), ModelFailed("m")]
)
async def test_failure_of_body_or_model_goes_to_everybody_at_once(error: Refusal) -> None:
    stage = Stage()
    tasks = [stage.call() for _ in range(4)]
    await turns()
    stage.model.ends[0].set_exception(error)
    assert await outcomes(tasks) == [error] * 4
    assert len(stage.model.ends) == 1


@pytest.mark.parametrize(
    "error",
    [DeadlineExceeded("d"), ClientGone(), QuotaExceeded("q", retry_after_s=1.0)],
)
async def test_leaders_own_failure_goes_to_the_leader_and_another_leads(error: Refusal) -> None:
    stage = Stage()
    leader, *others = [stage.call() for _ in range(3)]
    await turns()
    stage.model.ends[0].set_exception(error)
    assert await outcomes([leader]) == [error]
    assert len(stage.model.ends) == 2
    stage.model.ends[1].set_result("answer")
    assert await outcomes(others) == ["answer"] * 2


async def test_leader_who_failed_does_not_lead_again() -> None:
    stage = Stage()
    tasks = [stage.call(str(left_s), left_s=left_s) for left_s in (9.0, 1.0, 2.0)]
    await turns()
    stage.model.ends[0].set_exception(WorkerLost("w"))
    await turns()
    assert stage.model.leaders == ["9.0", "2.0"]
    stage.model.ends[1].set_result("answer")
    assert (await outcomes(tasks))[1:] == ["answer"] * 2


async def test_next_leader_is_who_has_most_time_left() -> None:
    stage = Stage()
    tasks = [stage.call(str(left_s), left_s=left_s) for left_s in (1.0, 2.0, 9.0, 3.0)]
    await turns()
    stage.model.ends[0].set_exception(DeadlineExceeded("late"))
    await turns()
    assert stage.model.leaders == ["1.0", "9.0"]
    stage.model.ends[1].set_result("answer")
    assert (await outcomes(tasks))[1:] == ["answer"] * 3


@pytest.mark.parametrize(
    "error",
    [WorkerLost("w"), Unavailable("u", retry_after_s=1.0), RuntimeError("a bug")],
)
async def test_other_failure_is_tried_once_more_and_then_goes_to_everybody(
    error: Exception,
) -> None:
    stage = Stage()
    leader, *others = [stage.call() for _ in range(4)]
    await turns()
    stage.model.ends[0].set_exception(error)
    assert await outcomes([leader]) == [error]
    await turns()
    again = WorkerLost("again")
    stage.model.ends[1].set_exception(again)
    assert await outcomes(others) == [again] * 3
    assert len(stage.model.ends) == FAILURES_MAX
    assert len(stage.flights) == 0


async def test_second_run_that_succeeds_saves_the_followers() -> None:
    stage = Stage()
    leader, *others = [stage.call() for _ in range(4)]
    await turns()
    stage.model.ends[0].set_exception(WorkerLost("w"))
    await turns()
    stage.model.ends[1].set_result("answer")
    assert await outcomes(others) == ["answer"] * 3
    assert (await outcomes([leader]))[0].status == 502


async def test_lone_caller_gets_its_failure_without_a_second_run() -> None:
    stage = Stage()
    task = stage.call()
    await turns()
    error = WorkerLost("w")
    stage.model.ends[0].set_exception(error)
    assert await outcomes([task]) == [error]
    assert len(stage.model.ends) == 1


async def test_failure_is_not_kept() -> None:
    stage = Stage()
    for number in range(3):
        task = stage.call()
        await turns()
        stage.model.ends[number].set_exception(ModelFailed("m"))
        assert (await outcomes([task]))[0].status == 500


async def test_runs_of_one_flight_are_bounded() -> None:
    stage = Stage()
    tasks = [stage.call() for _ in range(RUNS_MAX + 5)]
    for number in range(RUNS_MAX):
        await turns()
        stage.model.ends[number].set_exception(DeadlineExceeded("late"))
    assert {type(outcome) for outcome in await outcomes(tasks)} == {DeadlineExceeded}
    assert len(stage.model.ends) == RUNS_MAX


async def test_follower_who_left_never_leads() -> None:
    stage = Stage()
    tasks = [stage.call(str(number), left_s=10.0 + number) for number in range(3)]
    await turns()
    tasks[2].cancel()
    stage.model.ends[0].set_exception(WorkerLost("w"))
    await turns()
    assert stage.model.leaders == ["0", "1"]
    stage.model.ends[1].set_result("answer")
    assert await outcomes([tasks[1]]) == ["answer"]


async def test_joiner_of_the_second_run_gets_its_answer() -> None:
    stage = Stage()
    tasks = [stage.call() for _ in range(2)]
    await turns()
    stage.model.ends[0].set_exception(WorkerLost("w"))
    await turns()
    tasks.append(stage.call())
    await turns()
    assert len(stage.model.ends) == 2
    stage.model.ends[1].set_result("answer")
    assert (await outcomes(tasks))[1:] == ["answer"] * 2


async def test_computation_that_somebody_cancels_is_a_lost_worker() -> None:
    stage = Stage()
    task = stage.call()
    await turns()
    stage.model.ends[0].cancel()
    assert (await outcomes([task]))[0].status == 502


@pytest.mark.parametrize("turn", range(7))
async def test_callers_cancelled_in_any_turn_of_a_failure_leave_no_unread_exception(
    turn: int,
) -> None:
    stage = Stage()
    unread: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unread.append(context))
    tasks = [stage.call() for _ in range(3)]
    await turns()
    stage.model.ends[0].set_exception(ModelFailed("m"))
    await turns(turn)
    for task in tasks:
        task.cancel()
    await outcomes(tasks)
    del tasks, task
    await turns()
    gc.collect()
    assert unread == []
    assert len(stage.flights) == 0


async def test_timer_of_a_follower_ends_with_its_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    timers: list[asyncio.TimerHandle] = []
    loop = asyncio.get_running_loop()
    call_at = loop.call_at

    def record(*args: Any, **options: Any) -> asyncio.TimerHandle:
        timers.append(call_at(*args, **options))
        return timers[-1]

    leader = stage.call()
    await turns()
    monkeypatch.setattr(loop, "call_at", record)
    follower = stage.call()
    await turns()
    monkeypatch.undo()
    stage.model.ends[0].set_result("answer")
    assert await outcomes([leader, follower]) == ["answer"] * 2
    assert [timer.cancelled() for timer in timers] == [True]


async def test_repr_shows_what_is_under_way() -> None:
    stage = Stage()
    tasks = [stage.call() for _ in range(3)]
    await turns()
    assert repr(stage.flights) == "<Flights 1 under way, 3 callers>"
    assert "k" in stage.flights
    stage.model.ends[0].set_result("answer")
    await outcomes(tasks)
    assert repr(stage.flights) == "<Flights 0 under way, 0 callers>"
