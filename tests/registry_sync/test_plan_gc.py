"""Plans that nobody has used for long: found, removed in order, and never while they are used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from registry_sync.directory import DirectoryStore
from registry_sync.local_plans import LocalPlans
from registry_sync.open import open_store
from registry_sync.plan_gc import gc_plans
from registry_sync.plan_store import bring_plan, mark_used, put_gate, put_plan, read_used, used_key
from registry_sync.plans import BadPlan
from registry_sync.stores import Object, Store, StoreUnavailable
from tests.support.made_plans import KEYS, OTHER, SECRET, add, gate_record, key_of, meta_of

PLAN = b"plan" * 1000
KEY = key_of()
PLACE = f"engines/{KEY}/{SECRET[0]}"
TODAY = date(2026, 11, 26)
LONG_AGO = "2026-10-01"


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    is_s3 = request.param == "s3"
    url = request.getfixturevalue("s3_url") if is_s3 else str(tmp_path / "registry")
    with contextlib.closing(open_store(url)) as opened:
        yield opened


@pytest.fixture
def directory(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "registry")


def put(store: Store, folder: Path, day: str, name: str = "m") -> None:
    """Put a plan with all its files, as a node does on that day."""
    local = LocalPlans(folder / "node")
    add(local, PLAN, name, inspector=b"{}")
    local.put_gate(key_of(name), SECRET[0], gate_record(PLAN, "passed", name))
    assert put_plan(store, local, key_of(name), SECRET[0], day)
    put_gate(store, local, key_of(name), SECRET[0])


def keys(store: Store) -> list[str]:
    return [entry.key for entry in store.list("")]


def test_only_what_was_not_used_for_long_goes(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path, LONG_AGO, "a")
    put(store, tmp_path, LONG_AGO, "b")
    put(store, tmp_path, "2026-11-25", "c")
    mark_used(store, key_of("b"), "2026-11-26")
    store.put_new("builds/a/1/sm_86.json", b"{}")
    before = keys(store)
    (would,) = gc_plans(store, TODAY, 30, dry_run=True)
    assert keys(store) == before
    (gone,) = gc_plans(store, TODAY, 30)
    assert gone == would
    assert (gone.key, gone.used, gone.metas) == (key_of("a"), LONG_AGO, (meta_of(PLAN, "a"),))
    assert set(before) - set(keys(store)) == set(gone.objects)
    assert gone.bytes > len(PLAN)
    assert "builds/a/1/sm_86.json" in keys(store)
    assert not [key for key in keys(store) if key_of("a") in key]
    assert gc_plans(store, TODAY, 30) == []


@pytest.mark.parametrize(("used", "goes"), [("2026-11-23", True), ("2026-11-24", False)])
def test_days_are_whole(directory: DirectoryStore, tmp_path: Path, used: str, goes: bool) -> None:
    put(directory, tmp_path, used)
    assert bool(gc_plans(directory, TODAY, 2)) == goes


def test_plans_under_every_secret_go_with_their_key(
    directory: DirectoryStore, tmp_path: Path
) -> None:
    put(directory, tmp_path, LONG_AGO)
    directory.put_new(f"engines/{KEY}/{OTHER[0]}/plan", PLAN)
    (gone,) = gc_plans(directory, TODAY, 30)
    assert gone.objects[:2] == (f"engines/{KEY}/{OTHER[0]}/plan", f"{PLACE}/plan")
    assert gone.objects[-1] == used_key(KEY)
    assert keys(directory) == []


@pytest.mark.parametrize("stored", [None, b"{", b'{"day": "x"}'])
def test_what_has_no_day_is_given_one_and_goes_later(
    directory: DirectoryStore, stored: bytes | None
) -> None:
    directory.put_new(f"{PLACE}/plan", PLAN)
    if stored is not None:
        directory.put_new(used_key(KEY), stored)
    assert gc_plans(directory, TODAY, 30, dry_run=True) == []
    assert gc_plans(directory, TODAY, 30) == []
    assert read_used(directory.get(used_key(KEY)).data) == "2026-11-26"
    (gone,) = gc_plans(directory, date(2026, 12, 27), 30)
    assert f"{PLACE}/plan" in gone.objects
    assert keys(directory) == []


def test_what_a_writer_left_who_died_is_old_from_that_day(
    directory: DirectoryStore, tmp_path: Path
) -> None:
    class Dying(DirectoryStore):
        def put_new(self, key: str, data: bytes) -> str:
            if key.endswith("/meta.json"):
                raise StoreUnavailable("told to fail")
            return super().put_new(key, data)

    local = LocalPlans(tmp_path / "node")
    add(local, PLAN)
    with pytest.raises(StoreUnavailable):
        put_plan(Dying(tmp_path / "registry"), local, KEY, SECRET[0], LONG_AGO)
    (gone,) = gc_plans(directory, TODAY, 30)
    assert gone.objects == (f"{PLACE}/plan", used_key(KEY))


def test_what_is_not_a_plan_stays(directory: DirectoryStore) -> None:
    directory.put_new("engines/readme.txt", b"x")
    directory.put_new("engines/x/used.json", b'{"day": "2020-01-01"}')
    assert gc_plans(directory, TODAY, 30) == []
    assert keys(directory) == ["engines/readme.txt", "engines/x/used.json"]


def test_a_plan_that_is_used_meanwhile_stays(directory: DirectoryStore, tmp_path: Path) -> None:
    put(directory, tmp_path, LONG_AGO)

    class Busy(DirectoryStore):
        def get(self, key: str) -> Object:
            found = super().get(key)
            mark_used(directory, KEY, "2026-11-26")
            return found

    before = keys(directory)
    assert gc_plans(Busy(tmp_path / "registry"), TODAY, 30) == []
    assert keys(directory) == before


def test_a_removal_that_dies_anywhere_leaves_nothing_to_load_and_the_next_one_ends_it(
    tmp_path: Path,
) -> None:
    class Dying(DirectoryStore):
        deletions_left = 0

        def delete(self, key: str) -> None:
            self.deletions_left -= 1
            if self.deletions_left < 0:
                raise StoreUnavailable("told to fail")
            super().delete(key)

    for deletions in range(1, 5):
        root = tmp_path / str(deletions)
        put(DirectoryStore(root / "registry"), root, LONG_AGO)
        dying = Dying(root / "registry")
        dying.deletions_left = deletions
        with pytest.raises(StoreUnavailable):
            gc_plans(dying, TODAY, 30)
        other = LocalPlans(root / "other")
        with contextlib.suppress(BadPlan):
            bring_plan(DirectoryStore(root / "registry"), other, KEY, list(KEYS))
        assert other.find(KEY, KEYS) is None
        (gone,) = gc_plans(DirectoryStore(root / "registry"), TODAY, 30)
        assert gone.objects[-1] == used_key(KEY)
        assert keys(DirectoryStore(root / "registry")) == []


def test_a_plan_can_be_put_again_after_it_went(store: Store, tmp_path: Path) -> None:
    put(store, tmp_path / "a", LONG_AGO)
    gc_plans(store, TODAY, 30)
    put(store, tmp_path / "b", "2026-11-26")
    assert bring_plan(store, LocalPlans(tmp_path / "c"), KEY, list(KEYS)) == SECRET[0]


@pytest.mark.parametrize("days", [0, -1])
def test_less_than_a_day_is_refused(directory: DirectoryStore, days: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        gc_plans(directory, TODAY, days)
