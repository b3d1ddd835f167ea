"""The audit trail: what a record holds, how it is found again, and what happens where it is not."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from registry_sync import audit
from registry_sync.audit import Actor, Page, Query, Record
from registry_sync.keys import make_key
from registry_sync.open import open_store
from registry_sync.stores import Store, StoreUnavailable
from tests.support.faulty_s3 import LOSE_ANSWER, RESET, FaultyS3, faulty_s3
from tests.support.seaweed import S3Server

ALICE = Actor("api", "0123456789abcdef", "because", "r-1")
TRIES = 5  # of an S3 request


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Both kinds of store."""
    if request.param == "directory":
        return open_store(str(tmp_path / "registry"))
    return open_store(request.getfixturevalue("s3_url"))


@pytest.fixture
def faulty(
    seaweed: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Store, FaultyS3]]:
    """A store in S3 whose answers a test may spoil."""
    with faulty_s3(seaweed.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        monkeypatch.setattr("registry_sync.s3._PAUSE_S_FIRST", 0.001)
        yield open_store(s3_url), proxy


def now() -> datetime:
    return datetime.now(UTC)


def everything(**changes: object) -> Query:
    """Return the query for all records of the last day, or as `changes` say."""
    values = {"since": now() - timedelta(days=1), "until": now(), **changes}
    return Query(**values)  # type: ignore[arg-type]


def put(store: Store, at: datetime, what: str = "endpoint.set", target: str = "m") -> str:
    """Write a record of the past; returns its id."""
    record = Record(at.isoformat(timespec="microseconds"), "api", "k", what, target)
    assert audit._append(store, record) is None
    return at.strftime("%Y-%m-%d/%H%M%S.%fZ")


def pages(store: Store, query: Query, limit: int) -> list[Page]:
    """Read page by page to the end."""
    found = [audit.page(store, query, limit=limit)]
    while found[-1].next:
        assert len(found) < 200, "the pages have no end"
        found.append(audit.page(store, query, limit=limit, before=found[-1].next))
    return found


def test_a_change_leaves_one_record(store: Store) -> None:
    done = audit.carry_out(store, ALICE, "endpoint.set", "m", lambda: 7, audit.revisions)
    assert (done.result, done.lost) == (7, None)
    (found,) = audit.page(store, everything(), limit=10).found
    record = found.record
    assert record is not None
    assert (record.by, record.who, record.why, record.request_id) == (
        *("api", "0123456789abcdef"),
        *("because", "r-1"),
    )
    assert (record.what, record.target, record.before, record.after) == (
        *("endpoint.set", "m"),
        *("6", "7"),
    )
    assert now() - timedelta(minutes=5) < datetime.fromisoformat(record.at) <= now()
    assert record.outcome == "done"


def test_a_change_that_was_refused_leaves_none(store: Store) -> None:
    def refused() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        audit.carry_out(store, ALICE, "endpoint.set", "m", refused)
    assert audit.page(store, everything(), limit=10) == Page([], "")


def test_a_change_whose_outcome_nobody_knows_is_recorded_as_such(store: Store) -> None:
    def lost() -> None:
        raise StoreUnavailable("who knows")

    with pytest.raises(StoreUnavailable):
        audit.carry_out(store, ALICE, "endpoint.set", "m", lost)
    (found,) = audit.page(store, everything(), limit=10).found
    assert found.record is not None
    assert found.record.outcome == "unknown"


def test_no_made_key_gets_into_a_record(store: Store) -> None:
    key, made = make_key("t", ["admin"])
    secret = key.rpartition("_")[2]
    actor = Actor("api", key, f"because of {key}, and {key}", key)
    audit.carry_out(store, actor, "key.revoke", key, lambda: None)
    (entry,) = store.list("audit")
    text = store.get(entry.key).data.decode()
    assert secret not in text
    assert text.count(f"tp_{made.id}_…") == 5


def test_the_newest_comes_first_and_pages_hold_everything_once(store: Store) -> None:
    start = now()
    made = [put(store, start - timedelta(hours=5 * back)) for back in range(12)]
    query = everything(since=start - timedelta(days=9))
    for limit in (1, 2, 5, 12, 100):
        found = pages(store, query, limit)
        assert [one.id[:25] for page in found for one in page.found] == made
        assert all(len(page.found) == limit for page in found[:-1])


def test_a_query_is_by_time_endpoint_key_and_person(store: Store) -> None:
    start = now() - timedelta(hours=2)
    cases = itertools.product(("a", "b"), ("endpoint.set", "key.revoke"))
    for index, (target, what) in enumerate(cases):
        put(store, start - timedelta(minutes=index), what, target)

    def found(**query: object) -> list[tuple[str, str]]:
        records = [f.record for f in audit.page(store, everything(**query), limit=9).found]
        return [(r.target, r.what) for r in records if r is not None]

    assert len(found()) == 4
    assert found(endpoint="a") == [("a", "endpoint.set")]
    assert found(key="b") == [("b", "key.revoke")]
    assert len(found(key="k")) == 4
    assert len(found(who="k")) == 4
    assert found(who="a") == []
    assert len(found(since=start - timedelta(minutes=1))) == 2
    assert len(found(until=start - timedelta(seconds=90))) == 2
    assert found(since=now()) == []


def test_what_cannot_be_read_is_shown_as_such(store: Store) -> None:
    day = now().strftime("%Y-%m-%d")
    store.put_new(f"audit/{day}/000000.000000Z-a.json", b"{")
    store.put_new(f"audit/{day}/000000.000001Z-b.json", b'{"schema": 2}')
    store.put_new(f"audit/{day}/no record.txt", b"")
    query = everything(since=now() - timedelta(days=2), endpoint="m")
    found = audit.page(store, query, limit=10).found
    assert [one.record for one in found] == [None, None]
    assert all("cannot" not in one.id and one.problem for one in found)


def test_a_newer_release_may_add_fields(store: Store) -> None:
    at = now()
    plain = {**msgspec.to_builtins(Record(at.isoformat(), "api", "k", "new.thing", "m")), "x": [1]}
    store.put_new(f"audit/{at:%Y-%m-%d/%H%M%S.%f}Z-a.json", json.dumps(plain).encode())
    (found,) = audit.page(store, everything(until=now()), limit=10).found
    assert found.record is not None
    assert found.record.what == "new.thing"


def test_one_page_reads_and_lists_no_more_than_so_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "registry"))
    monkeypatch.setattr(audit, "EXAMINED_MAX", 64)
    monkeypatch.setattr(audit, "DAYS_MAX", 3)
    start = now()
    for index in range(100):
        put(store, start - timedelta(seconds=index), target="many")
    put(store, start - timedelta(days=20), target="one")
    query = everything(since=start - timedelta(days=30), endpoint="one")
    first = audit.page(store, query, limit=10)
    assert not first.found
    assert first.next
    found = pages(store, query, 10)
    assert len(found) >= 10
    assert [one.record.target for page in found for one in page.found if one.record] == ["one"]


@pytest.mark.parametrize("before", ["x", "2026-13-01/", "2026-11-26", "../keys", "2026-11-26/a/b"])
def test_what_is_no_place_in_the_trail_is_refused(tmp_path: Path, before: str) -> None:
    store = open_store(str(tmp_path / "registry"))
    with pytest.raises(ValueError, match=r"record|month"):
        audit.page(store, everything(), limit=1, before=before)


def test_a_record_that_cannot_be_written_loses_neither_the_change_nor_itself(
    faulty: tuple[Store, FaultyS3],
) -> None:
    store, s3 = faulty

    def act() -> int:
        store.put_new("x", b"1")
        s3.faults += [RESET] * TRIES
        return 3

    done = audit.carry_out(store, ALICE, "endpoint.set", "m", act, audit.revisions)
    assert store.get("x").data == b"1"
    assert done.result == 3
    assert done.lost is not None
    assert (done.lost.record.target, done.lost.record.after) == ("m", "3")
    assert "audit/" in done.lost.error
    assert audit.page(store, everything(), limit=10).found == []


def test_a_record_whose_answer_is_lost_is_there_once(faulty: tuple[Store, FaultyS3]) -> None:
    store, s3 = faulty
    s3.faults = [LOSE_ANSWER]
    done = audit.carry_out(store, ALICE, "endpoint.set", "m", lambda: 1, audit.revisions)
    assert done.lost is None
    assert len(audit.page(store, everything(), limit=10).found) == 1


@pytest.mark.parametrize(
    ("reason", "why"), [("x" * 1025, "1025 characters"), ("a\nb", "one line"), ("\x00", "one line")]
)
def test_a_reason_is_one_short_line(reason: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        audit.check_reason(reason)
    assert audit.check_reason("because of incident 7: ünïcödé") != ""
