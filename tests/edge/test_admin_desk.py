"""Work on the registry from the admin port: bounded in number and time, and never half-recorded."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edge.admin import desk as desk_module
from edge.admin.desk import THREADS, Changed, Desk
from edge.admin.problems import Problem
from pool.wire.control import Answer
from registry_sync import audit
from registry_sync.audit import Actor
from registry_sync.open import open_store
from registry_sync.stores import Store

ALICE = Actor("api", "alice", "because", "r-1")


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A registry in a directory."""
    open_store(str(tmp_path / "registry"))
    return str(tmp_path / "registry")


async def all_follow(what: str) -> Answer:
    assert what == "poke"
    return Answer(True, "")


async def nobody_leads(what: str) -> Answer:
    raise ConnectionError("no controller can be reached")


async def one_lags(what: str) -> Answer:
    return Answer(False, "not within 10 s: edges e-1")


async def one_is_refused(what: str) -> Answer:
    return Answer(True, "", b'{"edges": 1, "rejected": {"endpoints/m.json": "not signed"}}')


async def another_is_refused(what: str) -> Answer:
    return Answer(True, "", b'{"edges": 1, "rejected": {"endpoints/n.json": "not signed"}}')


def recorded(url: str) -> list[str]:
    """Return what the audit trail holds."""
    now = datetime.now(UTC)
    query = audit.Query(now - timedelta(hours=1), now)
    found = audit.page(open_store(url), query, limit=100).found
    return [one.record.what for one in found if one.record is not None]


@pytest.mark.parametrize(
    ("ask", "pending"),
    [
        (all_follow, ""),
        (nobody_leads, "no controller can be reached"),
        (one_lags, "not within 10 s: edges e-1"),
        (one_is_refused, "the last good one serves on: not signed"),
        (another_is_refused, ""),
    ],
)
async def test_change_says_whether_every_edge_has_it(url: str, ask: object, pending: str) -> None:
    desk = Desk(url, ask)  # type: ignore[arg-type]
    done = await desk.change(ALICE, "endpoint.set", "m", lambda store: store.put_new("x", b"1"))
    assert (done.pending, done.is_recorded) == (pending, True)
    assert recorded(url) == ["endpoint.set"]


async def test_work_that_takes_too_long_may_still_be_done(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk_module, "WORK_S_MAX", 0.05)
    desk, go_on = Desk(url, all_follow), threading.Event()

    def slow(store: Store) -> None:
        go_on.wait(30)
        store.put_new("x", b"1")

    with pytest.raises(Problem) as found:
        await desk.change(ALICE, "endpoint.set", "m", slow)
    assert (found.value.status, found.value.code) == (503, "outcome-unknown")
    go_on.set()
    await _until(lambda: recorded(url) == ["endpoint.set"])
    assert open_store(url).get("x").data == b"1"


async def test_work_that_no_thread_had_time_for_is_not_done(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk_module, "WORK_S_MAX", 0.2)
    desk, go_on = Desk(url, all_follow), threading.Event()
    held = [asyncio.ensure_future(desk.read(lambda _: go_on.wait(30))) for _ in range(THREADS)]
    await asyncio.sleep(0)
    with pytest.raises(Problem, match="nothing was changed"):
        await desk.change(ALICE, "endpoint.set", "m", lambda store: store.put_new("x", b"1"))
    go_on.set()
    await asyncio.gather(*held, return_exceptions=True)
    assert await desk.read(lambda store: store.list("")) == []


async def test_change_of_a_client_that_left_is_made_and_recorded(url: str) -> None:
    desk, begun, go_on = Desk(url, all_follow), threading.Event(), threading.Event()

    def act(store: Store) -> None:
        begun.set()
        go_on.wait(30)
        store.put_new("x", b"1")

    asked: asyncio.Future[Changed[None]]
    asked = asyncio.ensure_future(desk.change(ALICE, "endpoint.set", "m", act))
    await _until(begun.is_set)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    go_on.set()
    await _until(lambda: recorded(url) == ["endpoint.set"])


async def test_note_without_a_registry_costs_only_the_record() -> None:
    desk = Desk("", all_follow)
    desk.note(ALICE, "endpoint.load", "m")
    await _until(lambda: desk.records_lost == 1)


async def test_bug_in_a_handler_is_no_problem_of_the_registry(url: str) -> None:
    with pytest.raises(ZeroDivisionError):
        await Desk(url, all_follow).read(lambda _: 1 // 0)


async def _until(holds: object) -> None:
    assert callable(holds)
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110  # threads set no event of a loop
            await asyncio.sleep(0.01)


async def test_store_in_s3_is_opened_before_there_are_calls(s3_url: str, tmp_path: Path) -> None:
    desk = Desk(s3_url, all_follow)
    await desk.prepare()
    assert desk._store is not None
    for url in (str(tmp_path / "no"), "", "s3://"):  # not made, not told, not one
        desk = Desk(url, all_follow)
        await desk.prepare()
        assert desk._store is None
    assert list(tmp_path.iterdir()) == []
