"""The way on from a miss of the memory: disk, stale answers, renewals; over a real folder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge import disk, levels
from edge.cache import AnswerCache
from edge.disk import Disk
from edge.dispatching.calls import Answer
from edge.errors import (
    BadRequest,
    DeadlineExceeded,
    ModelFailed,
    QuotaExceeded,
    Refusal,
    Unavailable,
    Unprocessable,
    WorkerLost,
)
from edge.flight import Flights
from edge.levels import Kept, Levels, Older
from edge.snapshot import Endpoint
from edge.variants import Arm, Arms
from pool.wire.data import Tensor

KEY = bytes(range(32))
OUTPUTS = [Tensor("y", "FP32", (1, 1), b"1234")]
NEWER = Answer([Tensor("y", "FP32", (1, 1), b"5678")], 1, 2, 3)


class Run:
    """A computation that the test ends."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True
        self.future.cancel()


class Place:
    """Levels over real collaborators, and the computations that they began."""

    def __init__(self, folder: Path | None = None) -> None:
        self.runs: list[Run] = []
        self.now_s = 1000.0
        self.cache: AnswerCache[Kept] = AnswerCache(1 << 20)
        self.flights: Flights[Answer] = Flights()
        self.disk = None if folder is None else Disk(folder, 1 << 20)
        self.has_heard = True
        self.levels = Levels(
            *(self.cache, self.flights, self.disk, lambda: self.now_s, lambda: self.has_heard)
        )
        self.ends_with: Answer | Refusal | None = None

    def lead(self) -> Any:
        run = Run()
        self.runs.append(run)
        if isinstance(self.ends_with, Refusal):
            run.future.set_exception(self.ends_with)
        elif self.ends_with is not None:
            run.future.set_result(self.ends_with)
        return run

    def ask(self, endpoint: Endpoint, key: bytes = KEY) -> asyncio.Task[Answer]:
        deadline_s = time.monotonic() + 10
        way = self.levels.answer(
            key, "red", endpoint, deadline_s, self.lead, lambda until_s: self.lead
        )
        return asyncio.get_running_loop().create_task(way)

    def has_stale(self, age_s: float, endpoint: Endpoint, key: bytes = KEY) -> None:
        """Put an answer into the memory that was fresh until `age_s` ago."""
        self.cache.put(key, OUTPUTS, 4, self.now_s, -age_s, endpoint.stale_s)

    async def has_kept(self, endpoint: Endpoint) -> None:
        """Put an answer on disk, and wait until it is found there."""
        assert self.disk is not None
        self.levels.keep(KEY, "red", endpoint, OUTPUTS, 4)
        deadline_s = time.monotonic() + 20
        while True:
            looking = self.disk.look(KEY, "red")
            if looking is not None and await looking is not None:
                return
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.01)


def endpoint_of(
    *, ttl_s: float = 60.0, disk: bool = False, revalidate_s: float = 0.0, error_s: float = 0.0
) -> Endpoint:
    return Endpoint(
        name="e",
        revision=1,
        arms=(),
        assignment=Arms([Arm("a", 100.0)], "e"),
        spec=None,
        deadline_s=5.0,
        cache_ttl_s=ttl_s,
        rows_max=32,
        cache_disk=disk,
        stale_while_revalidate_s=revalidate_s,
        stale_if_error_s=error_s,
        stale_s=max(revalidate_s, error_s),
        has_levels=True,
    )


REVALIDATES = endpoint_of(revalidate_s=30.0)
COVERS = endpoint_of(error_s=30.0)


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110  # what it waits for happens in a thread
            await asyncio.sleep(0.005)


# --- stale while revalidate ---


async def test_one_renewal_for_however_many_ask() -> None:
    place = Place()
    place.has_stale(5.5, REVALIDATES)
    answers = [await place.ask(REVALIDATES) for _ in range(50)]
    assert {id(answer.outputs) for answer in answers} == {id(OUTPUTS)}
    assert isinstance(answers[0], Older)
    assert answers[0].cache_status == "tidepool; hit; ttl=-6; detail=stale"
    assert len(place.runs) == 1
    place.runs[0].future.set_result(NEWER)
    await turns()
    assert place.levels.counters.renewed == 1
    await place.ask(REVALIDATES)
    await turns()
    assert len(place.runs) == 2  # nobody stored the first in this test, so it is stale still


async def test_answer_older_than_the_window_is_computed() -> None:
    place = Place()
    place.has_stale(30.5, endpoint_of(revalidate_s=60.0))
    place.ends_with = NEWER
    assert await place.ask(REVALIDATES) is NEWER


async def test_renewal_that_fails_leaves_the_answer_and_is_tried_again() -> None:
    place = Place()
    place.has_stale(1.0, REVALIDATES)
    place.ends_with = ModelFailed("no")
    for count in (1, 2, 3):
        assert isinstance(await place.ask(REVALIDATES), Older)
        await turns()
        assert place.levels.counters.not_renewed >= count
    assert place.levels.counters.renewed == 0


async def test_draining_begins_no_renewal() -> None:
    place = Place()
    place.has_stale(1.0, REVALIDATES)
    place.levels.drain()
    assert isinstance(await place.ask(REVALIDATES), Older)
    await turns()
    assert not place.runs


async def test_renewals_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "REVALIDATIONS_MAX", 3)
    place = Place()
    for number in range(10):
        key = number.to_bytes(32, "big")
        place.has_stale(1.0, REVALIDATES, key)
        await place.ask(REVALIDATES, key)
    await turns()
    assert (len(place.runs), place.levels.counters.put_off) == (3, 7)
    for run in place.runs:
        run.future.set_result(NEWER)


async def test_flight_under_way_is_the_renewal() -> None:
    place = Place()
    computed = place.ask(REVALIDATES)
    await turns()
    place.has_stale(1.0, REVALIDATES)
    assert isinstance(await place.ask(REVALIDATES), Older)
    await turns()
    assert len(place.runs) == 1
    place.runs[0].future.set_result(NEWER)
    assert await computed is NEWER


# --- stale if error ---


@pytest.mark.parametrize(
    "refusal",
    [
        ModelFailed("no"),
        WorkerLost("gone"),
        Unavailable("busy", retry_after_s=1.0),
        DeadlineExceeded("late"),
        Refusal("bug"),
    ],
)
async def test_failure_of_ours_is_covered(refusal: Refusal) -> None:
    place = Place()
    place.has_stale(5.5, COVERS)
    place.ends_with = refusal
    answer = await place.ask(COVERS)
    assert isinstance(answer, Older)
    assert answer.cache_status == "tidepool; hit; ttl=-6; detail=stale-if-error"
    assert answer.covers_failure is isinstance(refusal, ModelFailed)
    assert answer.outputs is OUTPUTS


@pytest.mark.parametrize(
    "refusal", [BadRequest("bad"), Unprocessable("no"), QuotaExceeded("slow", retry_after_s=1.0)]
)
async def test_fault_of_the_caller_is_not_covered(refusal: Refusal) -> None:
    place = Place()
    place.has_stale(1.0, COVERS)
    place.ends_with = refusal
    with pytest.raises(type(refusal)):
        await place.ask(COVERS)


async def test_failure_after_the_window_is_one() -> None:
    place = Place()
    place.has_stale(30.5, endpoint_of(error_s=60.0))
    place.ends_with = WorkerLost("gone")
    with pytest.raises(WorkerLost):
        await place.ask(COVERS)


async def test_answer_is_computed_while_that_works() -> None:
    place = Place()
    place.has_stale(1.0, COVERS)
    place.ends_with = NEWER
    assert await place.ask(COVERS) is NEWER


# --- the disk ---

KEEPS = endpoint_of(disk=True)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let reads take long on a busy machine; what a late one does is tested in `test_disk`."""
    monkeypatch.setattr(disk, "READ_S_MAX", 10.0)


async def test_answer_on_disk_spares_the_computation_and_fills_the_memory(tmp_path: Path) -> None:
    place = Place(tmp_path / "answers")
    await place.has_kept(KEEPS)
    answers = await asyncio.gather(*[place.ask(KEEPS) for _ in range(10)])
    assert not place.runs
    assert all(isinstance(answer, Older) and answer.detail == "disk" for answer in answers)
    found = place.cache.find(KEY, place.now_s)
    assert found is not None
    assert found[0] == OUTPUTS
    assert place.now_s + 50 < found[1] <= place.now_s + 60  # it lives no longer than it would have


async def test_nothing_on_disk_is_computed(tmp_path: Path) -> None:
    place = Place(tmp_path / "answers")
    place.ends_with = NEWER
    assert await place.ask(KEEPS) is NEWER
    assert len(place.runs) == 1


async def test_disk_is_not_read_before_it_is_known_what_was_purged(tmp_path: Path) -> None:
    place = Place(tmp_path / "answers")
    await place.has_kept(KEEPS)
    place.has_heard = False
    place.ends_with = NEWER
    assert await place.ask(KEEPS) is NEWER
    place.now_s += levels.TRUST_S  # nobody tells, and so the last known holds
    assert isinstance(await place.ask(KEEPS), Older)


async def test_answer_on_disk_that_has_expired_is_computed(tmp_path: Path) -> None:
    place = Place(tmp_path / "answers")
    await place.has_kept(KEEPS)
    place.ends_with = NEWER
    assert await place.ask(endpoint_of(disk=True, ttl_s=0.0001)) is NEWER


async def test_stale_answer_on_disk_is_served_and_renewed(tmp_path: Path) -> None:
    place = Place(tmp_path / "answers")
    stale = endpoint_of(disk=True, ttl_s=0.0001, revalidate_s=3600.0)
    await place.has_kept(KEEPS)
    answer = await place.ask(stale)
    assert isinstance(answer, Older)
    assert answer.detail == "stale"
    await turns()
    assert len(place.runs) == 1
    place.runs[0].future.set_result(NEWER)


async def test_stale_answer_on_disk_covers_a_failure(tmp_path: Path) -> None:
    place = Place(tmp_path / "answers")
    await place.has_kept(KEEPS)
    place.ends_with = WorkerLost("gone")
    answer = await place.ask(endpoint_of(disk=True, ttl_s=0.0001, error_s=3600.0))
    assert isinstance(answer, Older)
    assert answer.detail == "stale-if-error"


async def test_refusal_to_begin_reaches_everybody_who_waits(tmp_path: Path) -> None:
    place = Place(tmp_path / "answers")

    def refuse() -> Any:
        raise Unprocessable("not now")

    place.lead = refuse  # type: ignore[method-assign]
    asked = [place.ask(KEEPS) for _ in range(3)]
    ends = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(end) for end in ends] == [Unprocessable] * 3


async def test_who_leaves_during_the_look_begins_nothing(tmp_path: Path) -> None:
    place = Place(tmp_path / "answers")
    asked = place.ask(KEEPS)
    await turns()
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await asyncio.sleep(0.1)
    assert not place.runs


async def test_who_leaves_after_the_look_cancels_the_computation(tmp_path: Path) -> None:
    place = Place(tmp_path / "answers")
    asked = place.ask(KEEPS)
    await until(lambda: bool(place.runs))
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert place.runs[0].is_cancelled
    assert len(place.flights) == 0
