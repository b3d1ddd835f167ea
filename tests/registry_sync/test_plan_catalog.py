"""The list of plans: what is in it, in which order, and that nothing forged looks vouched for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from registry_sync import plans as documents
from registry_sync.directory import DirectoryStore
from registry_sync.plan_catalog import Listed, plans, rows
from registry_sync.plans import NOT_RUN, GateReport
from registry_sync.stores import Object, Store
from tests.support.plans import FAILED, FLEET, PASSED, STRANGER, identity_of, put, put_gate

KEYS = {FLEET.id: FLEET.key}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty registry."""
    return DirectoryStore(tmp_path / "registry")


def only(found: list[Listed]) -> dict[str, Any]:
    """Return the row of the one plan."""
    (row,) = rows(found)
    return row


def test_no_plans_are_an_empty_list(store: Store) -> None:
    assert plans(store) == []


def test_a_plan_is_shown_with_all_that_people_ask_for(store: Store) -> None:
    meta = put(store, identity_of(), model="magika", version="3", gate=PASSED)
    assert only(plans(store, KEYS)) == {
        "key": meta.key,
        "model": "magika",
        "version": "3",
        "engine": "tensorrt_rtx",
        "runtime": "1.7.1",
        "device": "sm_86",
        "precision": "fp32",
        "bytes": 16,
        "gate": "passed",
        "reason": "",
        "problem": False,
        "relative_error": 3e-5,
        "top1_agreement": 1.0,
        "secret_id": FLEET.id,
        "created": "2026-11-26T05:00:00+00:00",
        "build_s": 1.5,
        "used": "2026-11-26",
        "artifact": "ab" * 32,
    }


def test_a_failed_gate_says_why(store: Store) -> None:
    put(store, identity_of(), gate=FAILED)
    row = only(plans(store, KEYS))
    assert (row["gate"], row["relative_error"]) == ("failed", 0.5)
    assert row["reason"] == "y: relative error 0.5, at most 0.01"


def test_the_verdict_of_a_later_device_counts(store: Store) -> None:
    meta = put(store, identity_of())
    assert only(plans(store, KEYS))["gate"] == "not_run"
    put_gate(store, meta, FAILED)
    assert only(plans(store, KEYS))["gate"] == "failed"


def test_a_later_verdict_changes_nothing_of_one_from_the_build(store: Store) -> None:
    put_gate(store, put(store, identity_of(), gate=FAILED), PASSED)
    assert only(plans(store, KEYS))["gate"] == "failed"


@pytest.mark.parametrize("changes", [{"plan_sha256": "cd" * 32}, {"key": "cd" * 32}])
def test_a_later_verdict_on_another_plan_is_none(store: Store, changes: dict[str, str]) -> None:
    meta = put(store, identity_of())
    other = msgspec.structs.replace(meta, **changes)
    report = documents.GateRecord(key=other.key, plan_sha256=other.plan_sha256, report=PASSED)
    data = documents.write(documents.signed_gate(report, FLEET.key))
    store.put_new(f"engines/{meta.key}/{FLEET.id}/gate.json", data)
    assert only(plans(store, KEYS))["gate"] == "not_run"


def test_what_nobody_of_this_fleet_signed_has_no_verdict(store: Store) -> None:
    put(store, identity_of("sm_86"), gate=PASSED, forger=STRANGER)
    put_gate(store, put(store, identity_of("sm_89")), PASSED, key=STRANGER.key)
    forged, unproven = rows(plans(store, KEYS))
    assert (forged["gate"], forged["relative_error"]) == ("not_run", None)
    assert forged["reason"] == "its MAC is not one of this fleet"
    assert (unproven["gate"], unproven["reason"]) == ("not_run", NOT_RUN.reason)


def test_a_plan_under_a_secret_that_is_not_held_is_shown_as_it_says(store: Store) -> None:
    put(store, identity_of(), gate=PASSED, secret=STRANGER)
    for keys in ({}, KEYS):
        row = only(plans(store, keys))
        assert (row["gate"], row["reason"], row["secret_id"]) == ("passed", "", STRANGER.id)


def test_plans_are_in_order_and_what_cannot_be_read_is_last(store: Store) -> None:
    for model, version, device in (
        ("m", "10", "sm_86"),
        ("m", "9", "sm_86"),
        ("a", "1", "sm_89"),
        ("a", "1", "sm_86"),
    ):
        put(store, identity_of(device, runtime=f"{model}{version}"), model=model, version=version)
    store.put_new(f"engines/{'0' * 64}/{FLEET.id}/plan", b"orphan")
    found = rows(plans(store))
    assert [(row["model"], row["version"], row["device"]) for row in found] == [
        ("a", "1", "sm_86"),
        ("a", "1", "sm_89"),
        ("m", "9", "sm_86"),
        ("m", "10", "sm_86"),
        ("", "", ""),
    ]
    assert found[-1]["bytes"] == 6
    assert "meta.json missing" in found[-1]["reason"]


class Counted(DirectoryStore):
    """A registry that notes what is read of it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.reads: list[str] = []

    def read(self, key: str, offset: int, length: int) -> bytes:
        self.reads.append(key.rpartition("/")[2])
        return super().read(key, offset, length)

    def get(self, key: str) -> Object:
        self.reads.append(key.rpartition("/")[2])
        return super().get(key)


def test_of_plans_that_are_not_on_the_page_only_the_metadata_are_read(tmp_path: Path) -> None:
    store = Counted(tmp_path / "registry")
    for at in range(5):
        meta = put(store, identity_of(runtime=f"1.{at}"), model="m", version=str(at))
        put_gate(store, meta, FAILED)
    store.reads.clear()
    every = plans(store, KEYS)
    assert len(store.reads) == 15
    store.reads.clear()
    assert plans(store, KEYS, lambda found: found[1:3]) == every[1:3]
    counts = {name: store.reads.count(name) for name in set(store.reads)}
    assert counts == {"meta.json": 5, "gate.json": 2, "used.json": 2}


META_KEY = f"engines/{identity_of().key}/{FLEET.id}/meta.json"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"{}", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b" " * (1 << 20) + b"{}", "longer than"),
    ],
)
def test_metadata_that_cannot_be_read_hide_no_other_plan(
    store: Store, data: bytes, why: str
) -> None:
    put(store, identity_of("sm_89"))
    put(store, identity_of())
    store.delete(META_KEY)
    store.put_new(META_KEY, data)
    good, bad = rows(plans(store))
    assert good["device"] == "sm_89"
    assert why in bad["reason"]
    assert bad["key"] == identity_of().key


def test_metadata_of_another_key_are_named(store: Store) -> None:
    meta = put(store, identity_of("sm_89"))
    store.put_new(f"engines/{'1' * 64}/{FLEET.id}/plan", b"the plan's bytes")
    store.put_new(f"engines/{'1' * 64}/{FLEET.id}/meta.json", documents.write(meta))
    assert rows(plans(store))[1]["reason"] == f"it is of another key, {meta.key}"


def test_a_plan_that_was_cut_short_is_named(store: Store) -> None:
    meta = put(store, identity_of())
    store.delete(f"engines/{meta.key}/{FLEET.id}/plan")
    store.put_new(f"engines/{meta.key}/{FLEET.id}/plan", b"short")
    assert only(plans(store))["reason"] == "it has 5 bytes, its metadata say 16"


@pytest.mark.parametrize("data", [b"", b"7", b'{"day": 7}', b"\xff"])
def test_a_day_that_cannot_be_read_is_unknown(store: Store, data: bytes) -> None:
    meta = put(store, identity_of(), used="")
    store.put_new(f"engines/{meta.key}/used.json", data)
    assert only(plans(store))["used"] == ""


def test_what_is_no_plan_is_passed_over(store: Store) -> None:
    for key in ("README", f"{'a' * 63}/x/plan", f"{'a' * 64}/X/plan", f"{'a' * 64}/x/y/plan"):
        store.put_new(f"engines/{key}", b"?")
    assert plans(store) == []


def test_numbers_that_json_has_not_are_null(store: Store) -> None:
    report = GateReport("failed", outputs=(documents.OutputReport("y", float("inf")),))
    put(store, identity_of(), gate=report)
    assert b'"relative_error":null' in msgspec.json.encode(rows(plans(store)))
