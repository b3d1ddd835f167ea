"""Answers on disk as a client sees them: over restarts, edges, tenants and purges."""

from __future__ import annotations

import itertools
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry_sync import endpoints
from tests.support.observed_engine import Diary
from tests.support.stack import TEST_ENGINES, Answer, Stack, running_stack, until

DISK = re.compile(r"tidepool; hit; ttl=(\d+); detail=disk")
MISS = "tidepool; fwd=uri-miss"
MODEL = "kept"

_fresh = itertools.count(1)


@pytest.fixture(scope="module")
def disk_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A system whose edges keep nothing in memory, so that every hit is one of the disk."""
    data = tmp_path_factory.mktemp("disk")
    arguments = ("--cache-memory-bytes", "0", "--cache-disk-bytes", str(16 << 20))
    with running_stack(data, engines=TEST_ENGINES, arguments=arguments) as stack:
        yield stack


@pytest.fixture(scope="module")
def diary(disk_stack: Stack) -> Diary:
    diary = disk_stack.publish_observed(MODEL, deterministic=True)
    disk_stack.edit_endpoint(MODEL, cache={"ttl_s": 3600, "disk": True})
    return diary


def _state(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    return answer.headers["cache-status"]


def _kept(stack: Stack, *, model: str = MODEL, key: str = "") -> int:
    """Let an answer be kept on disk; returns the number that was asked about.

    What a busy machine does not read within 20 ms is a miss, so that one try is not enough.
    """
    x = next(_fresh)
    until(lambda: DISK.match(_state(stack.infer_observed(model, x, key=key))), 40.0, "it is kept")
    return x


def test_the_second_call_is_a_hit_of_the_disk(disk_stack: Stack, diary: Diary) -> None:
    x = next(_fresh)
    first = disk_stack.infer_observed(MODEL, x)
    assert _state(first) == MISS

    def hit() -> Answer | None:
        answer = disk_stack.infer_observed(MODEL, x)
        return answer if DISK.match(_state(answer)) else None

    second = until(hit, 40.0, "it is kept")
    assert second is not None
    ttl = DISK.fullmatch(_state(second))
    assert ttl is not None
    assert 3550 <= int(ttl[1]) <= 3600
    assert second.body == first.body
    timing = second.headers["server-timing"]
    assert re.search(r"\bcache;dur=[0-9.]+", timing)
    assert "infer;dur" not in timing


def test_answers_survive_a_restart(disk_stack: Stack, diary: Diary) -> None:
    known = [_kept(disk_stack) for _ in range(20)]
    disk_stack.restart()
    disk_stack.until_ready(MODEL)
    runs = diary.count("run")
    answers = [disk_stack.infer_observed(MODEL, x) for x in known]
    assert [answer.output() for answer in answers] == [[x] for x in known]
    # One is enough to show it; a read that a busy machine makes late is a miss.
    assert any(DISK.match(_state(answer)) for answer in answers)
    assert diary.count("run") - runs < len(known)


def test_answers_survive_an_edge_that_is_killed(disk_stack: Stack, diary: Diary) -> None:
    x = _kept(disk_stack)
    old = disk_stack.pids()["edge-0"]
    os.kill(old, signal.SIGKILL)
    until(lambda: disk_stack.pids().get("edge-0", old) != old, 30.0, "another edge has begun")

    def hits() -> bool:
        try:
            return bool(DISK.match(_state(disk_stack.infer_observed(MODEL, x))))
        except OSError:  # nobody listens yet
            return False

    runs = diary.count("run")
    until(hits, 60.0, "it is found")
    assert diary.count("run") - runs <= 20


def test_edges_share_the_disk(wide_stack: Stack) -> None:
    diary = wide_stack.publish_observed("kept-shared", deterministic=True)
    wide_stack.edit_endpoint("kept-shared", cache={"ttl_s": 3600, "disk": True})

    def one_run_serves_both() -> bool:
        x, runs = next(_fresh), diary.count("run")
        states = [_state(wide_stack.infer_observed("kept-shared", x)) for _ in range(10)]
        is_shared = any(map(DISK.match, states))
        assert diary.count("run") - runs <= 2
        return is_shared and diary.count("run") == runs + 1

    # Ten connections may all have come to one edge, and a read may have been late.
    until(one_run_serves_both, 60.0, "one edge answers what the other has computed")


@pytest.mark.rule("F24")
def test_tenants_never_share(disk_stack: Stack, diary: Diary) -> None:
    red, blue = (disk_stack.make_key(tenant=tenant) for tenant in ("red", "blue"))
    x = _kept(disk_stack, key=red)
    runs = diary.count("run")
    assert _state(disk_stack.infer_observed(MODEL, x, key=blue)) == MISS
    assert diary.count("run") == runs + 1


def test_purge_holds_for_the_disk(disk_stack: Stack, diary: Diary) -> None:
    for version in (None, "1"):
        x = _kept(disk_stack)
        endpoints.purge(disk_stack.store, MODEL, version)
        disk_stack.poke()
        assert _state(disk_stack.infer_observed(MODEL, x)) == MISS


def test_purge_holds_over_a_restart(disk_stack: Stack, diary: Diary) -> None:
    x = _kept(disk_stack)
    endpoints.purge(disk_stack.store, MODEL)
    disk_stack.poke()
    disk_stack.restart()
    disk_stack.until_ready(MODEL)
    assert _state(disk_stack.infer_observed(MODEL, x)) == MISS


def test_purge_holds_that_no_edge_was_there_for(disk_stack: Stack, diary: Diary) -> None:
    x = _kept(disk_stack)
    disk_stack.stop()
    endpoints.purge(disk_stack.store, MODEL)
    disk_stack.start()
    disk_stack.until_ready(MODEL)
    assert _state(disk_stack.infer_observed(MODEL, x)) == MISS


def test_no_store_neither_reads_nor_stores(disk_stack: Stack, diary: Diary) -> None:
    x, runs = next(_fresh), diary.count("run")
    for _ in range(2):
        answer = disk_stack.infer_observed(MODEL, x, {"cache-control": "no-store"})
        assert _state(answer) == "tidepool; fwd=bypass; detail=no-store"
    assert _state(disk_stack.infer_observed(MODEL, x)) == MISS
    assert diary.count("run") == runs + 3


def test_no_cache_computes_and_stores(disk_stack: Stack, diary: Diary) -> None:
    x, runs = next(_fresh), diary.count("run")
    for _ in range(2):
        answer = disk_stack.infer_observed(MODEL, x, {"cache-control": "no-cache"})
        assert _state(answer) == "tidepool; fwd=request; detail=no-cache"
    assert diary.count("run") == runs + 2
    until(lambda: DISK.match(_state(disk_stack.infer_observed(MODEL, x))), 40.0, "it is stored")


def test_shorter_time_holds_for_what_is_there_already(disk_stack: Stack) -> None:
    model = "kept-shorter"
    disk_stack.publish_observed(model, deterministic=True)
    disk_stack.edit_endpoint(model, cache={"ttl_s": 3600, "disk": True})
    x = _kept(disk_stack, model=model)
    disk_stack.edit_endpoint(model, cache={"ttl_s": 0.001, "disk": True})
    assert _state(disk_stack.infer_observed(model, x)) == MISS


def test_other_version_finds_nothing_of_the_first(disk_stack: Stack) -> None:
    model = "kept-versions"
    for _ in range(2):
        disk_stack.publish_observed(model, deterministic=True)
    cache = {"ttl_s": 3600, "disk": True}
    disk_stack.edit_endpoint(model, cache=cache)
    x = _kept(disk_stack, model=model)
    two = [{"name": "stable", "model": model, "version": "2", "weight": 100}]
    disk_stack.edit_endpoint(model, variants=two)
    assert _state(disk_stack.infer_observed(model, x)) == MISS


def test_endpoint_without_disk_touches_none(stack: Stack) -> None:
    stack.publish_observed("kept-nowhere", deterministic=True)
    for _ in range(3):
        stack.infer_observed("kept-nowhere", 1)
    names = {path.name for path in (stack.data / "edge").iterdir()}
    assert not {name for name in names if name.startswith("answers")}


def test_what_the_levels_do_is_counted(disk_stack: Stack, diary: Diary) -> None:
    def lookups(outcome: str) -> float:
        return disk_stack.metric("tidepool_cache_lookups_total", level="disk", outcome=outcome)

    misses, hits = lookups("miss"), lookups("hit")
    _kept(disk_stack)
    assert lookups("hit") >= hits + 1
    assert lookups("miss") + lookups("late") >= misses + 1
    assert disk_stack.metric("tidepool_cache_stored_total", level="disk") >= 1
    assert disk_stack.metric("tidepool_cache_disk_bytes") > 0
    assert disk_stack.metric("tidepool_cache_disk_off") == 0


def test_folder_is_ours_alone(disk_stack: Stack, diary: Diary) -> None:
    _kept(disk_stack)
    folder = Path(disk_stack.data) / "edge" / "answers"
    assert folder.stat().st_mode & 0o777 == 0o700
