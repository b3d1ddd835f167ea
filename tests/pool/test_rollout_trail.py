"""The audit trail of decisions on rollouts, over a registry in a folder."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from pool.rollouts import trail as trail_module
from pool.rollouts.policy import decided, move
from pool.rollouts.signals import Look, Verdict
from pool.rollouts.trail import Trail, record_of
from registry_sync import audit
from registry_sync.directory import DirectoryStore
from registry_sync.documents import EndpointState
from registry_sync.rollout_terms import Phase, RolloutState
from registry_sync.stores import AccessDenied, StoreError, StoreUnavailable
from tests.support.rollouts import ENOUGH, counts, look_at, spec_of

HARM = Verdict(harms=("9% of the candidate's calls fail (e-value 400, 22 needed)",), log_e={"e": 6})


class Faulty(DirectoryStore):
    """A registry whose trail cannot be written where a test says."""

    error: StoreError | None = None
    puts = 0

    def put_new(self, key: str, data: bytes) -> str:
        self.puts += 1
        if self.error is not None:
            raise self.error
        return super().put_new(key, data)


@pytest.fixture
def store(tmp_path: Path) -> Faulty:
    return Faulty(tmp_path)


def document(look: Look, at: datetime | None = None) -> EndpointState:
    """The state that follows from a look."""
    found = move(look)
    assert found is not None
    stamp = (at or datetime.now(UTC)).isoformat(timespec="milliseconds")
    state = replace(found.state, at=stamp, epoch=3)
    return EndpointState("e", 1, dict(found.weights), rollout=state)


def watched(verdict: Verdict = ENOUGH, state: Phase = "running", **more: Any) -> Look:
    rollout = {name: more.pop(name) for name in ("wish", "guard") if name in more}
    known = {"counts": {"stable": counts(900), "canary": counts(100, 9)}, **more}
    now = RolloutState("r1", state, 1, 1)
    return look_at(spec_of(10.0, 100.0, **rollout), now, 10.0, verdict, **known)


def records(store: Faulty) -> list[audit.Record]:
    """All of them, oldest first."""
    now = datetime.now(UTC)
    query = audit.Query(now - timedelta(days=3), now + timedelta(days=1))
    found = [one.record for one in audit.page(store, query, limit=1000).found]
    return [one for one in reversed(found) if one is not None]


async def written(trail: Trail, *states: EndpointState) -> None:
    for state in states:
        trail.on_states({"e": state})
    await trail.finish(10)


BACK = watched(HARM)


@pytest.mark.parametrize(
    ("look", "what", "before", "after"),
    [
        (look_at(spec_of(), None), "begin", "", "step 0: stable 100 %, canary 0 %"),
        (
            look_at(spec_of(), RolloutState("r1")),
            "step",
            "step 0",
            "step 1: stable 90 %, canary 10 %",
        ),
        (
            BACK,
            "rollback",
            "step 1: stable 90 %, canary 10 %",
            "step 1: stable 100 %, canary 0 %",
        ),
        (
            watched(wish="promote"),
            "promote",
            "step 1: stable 90 %, canary 10 %",
            "step 2: stable 0 %, canary 100 %",
        ),
        (watched(wish="pause"), "pause", *["step 1: stable 90 %, canary 10 %"] * 2),
        (watched(state="paused"), "resume", *["step 1: stable 90 %, canary 10 %"] * 2),
    ],
)
def test_record_says_what_was_decided_and_what_it_changed(
    look: Look, what: str, before: str, after: str
) -> None:
    record = record_of("e", document(look))
    assert (record.what, record.before, record.after) == (f"rollout.{what}", before, after)
    assert (record.by, record.who, record.target) == ("controller", "epoch 3", "e")


def test_resumption_against_a_guard_is_one() -> None:
    state = RolloutState("r1", "paused", 1, 1, harm="looks bad", evidence={})
    found = move(look_at(spec_of(overruled=1), state, 10.0))
    assert found is not None
    assert decided(found.state) == "resume"


def test_reason_comes_with_its_evidence_in_one_bounded_line() -> None:
    why = record_of("e", document(BACK)).why
    assert why.startswith("9% of the candidate's calls fail (e-value 400, 22 needed); ")
    assert "stable 0 of 900 calls failed; canary 9 of 100 calls failed; e e 403" in why
    lost = document(watched(failed="no\nmemory " * 500, failed_s=60.0))
    why = record_of("e", lost).why
    assert why.isprintable()
    assert len(why) <= audit.REASON_CHARS_MAX
    assert "9 of 100" in why


async def test_decision_is_recorded_once_however_often_it_is_seen(store: Faulty) -> None:
    trail, back = Trail(store, lambda: True), document(BACK)
    await written(trail, back, back, replace(back, cache_epoch=5))
    await written(Trail(store, lambda: True), back)  # the next controller cannot know
    assert [one.what for one in records(store)] == ["rollout.rollback"]
    assert store.puts == 2


async def test_next_controller_writes_what_the_last_one_could_not(store: Faulty) -> None:
    back = document(BACK)
    await written(Trail(store, lambda: False), back)
    assert not records(store)
    await written(Trail(store, lambda: True), back)
    assert [one.who for one in records(store)] == ["epoch 3"]


async def test_decision_of_long_ago_is_nobodys_to_record(store: Faulty) -> None:
    old = document(BACK, datetime.now(UTC) - timedelta(days=2))
    await written(Trail(store, lambda: True), old)
    assert not store.puts


async def test_registry_that_is_away_is_tried_again_in_order(
    store: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail_module, "AGAIN_S", 0.05)
    store.error = StoreUnavailable("away")
    trail = Trail(store, lambda: True)
    earlier = datetime.now(UTC) - timedelta(seconds=1)
    begun, back = document(look_at(spec_of(), None), earlier), document(BACK)
    await written(trail, begun, back)
    trail.round()
    assert trail._writing is None  # not at once
    assert store.puts == 1
    store.error = None
    await asyncio.sleep(0.06)
    trail.round()
    await trail.finish(10)
    assert [one.what for one in records(store)] == ["rollout.begin", "rollout.rollback"]


async def test_record_that_is_refused_is_said_whole(store: Faulty) -> None:
    store.error = AccessDenied("audit/", "not for you")
    with capture_logs() as logs:
        await written(Trail(store, lambda: True), document(BACK))
    (lost,) = logs
    assert lost["event"] == "audit_record_lost"
    assert "not for you" in lost["error"]
    assert "9 of 100 calls failed" in lost["record"]


async def test_bug_while_writing_is_said_with_the_record(
    store: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "put_new", None)
    with capture_logs() as logs:
        await written(Trail(store, lambda: True), document(BACK))
    assert [line["event"] for line in logs] == ["bug", "audit_record_lost"]


async def test_what_waits_for_the_registry_is_bounded_and_said(
    store: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trail_module, "DUE_MAX", 2)
    store.error = StoreUnavailable("away")
    trail = Trail(store, lambda: True)
    states = [document(BACK, datetime.now(UTC) - timedelta(seconds=n)) for n in range(3)]
    with capture_logs() as logs:
        await written(trail, *states)
    assert [line["event"] for line in logs] == ["audit_record_lost"]


async def test_evidence_that_is_no_evidence_harms_nobody(store: Faulty) -> None:
    odd = document(BACK)
    assert odd.rollout is not None
    odd = replace(odd, rollout=replace(odd.rollout, evidence={"arms": 3}))
    with capture_logs() as logs:
        await written(Trail(store, lambda: True), odd)
    assert [line["event"] for line in logs] == ["bug"]
