"""Endpoint documents in a store: compare-and-swap, history, rollback, state."""

from __future__ import annotations

import multiprocessing
import random
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec.structs import replace

from registry_sync import catalog, documents, endpoints
from registry_sync.directory import DirectoryStore
from registry_sync.documents import (
    CACHE_EPOCHS_MAX,
    Assign,
    BadDocument,
    EndpointSpec,
    EndpointState,
    File,
    Manifest,
    TensorSpec,
    Variant,
)
from registry_sync.endpoints import NoHistory, RevisionConflict
from registry_sync.names import BadName
from registry_sync.open import open_store
from registry_sync.stores import Conflict, NotFound, OutcomeUnknown, Store, StoreUnavailable
from registry_sync.swap import swap

IMAGE = TensorSpec("x", "FP32", (-1, 4))
SIZE = TensorSpec("z", "INT64", ())
LABEL = TensorSpec("y", "BYTES", (-1,))


def publish(store: Store, version: str, model: str = "m", **changes: object) -> None:
    manifest = Manifest(
        model=model,
        version=version,
        created="",
        format="onnx",
        files=(File("model.onnx", "ab" * 32, 1),),
        inputs=(IMAGE, SIZE),
        outputs=(LABEL,),
        rows_max=1,
        deterministic=True,
    )
    key = catalog.manifest_key(model, version)
    store.put_new(key, documents.write(replace(manifest, **changes)))


def spec(version: str = "1", **changes: object) -> EndpointSpec:
    return replace(EndpointSpec("m", (Variant("stable", "m", version, 100.0),)), **changes)


def revisions(store: Store) -> list[int]:
    return [past.revision for past in endpoints.history(store, "m")]


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    store = DirectoryStore(tmp_path / "registry")
    for version in ("1", "2", "3"):
        publish(store, version)
    return store


# --- set and get ---


def test_spec_is_read_as_it_was_set_with_its_revision(store: DirectoryStore) -> None:
    assert endpoints.set_spec(store, spec(deadline_ms=5)) == 1
    found, etag = endpoints.get_spec(store, "m")
    assert found == spec(deadline_ms=5, revision=1)
    assert etag == store.get("endpoints/m.json").etag


def test_each_set_raises_the_revision_by_one(store: DirectoryStore) -> None:
    assert [endpoints.set_spec(store, spec(version)) for version in "123"] == [1, 2, 3]


def test_unknown_endpoint_is_not_found(store: DirectoryStore) -> None:
    for ask in (endpoints.get_spec, endpoints.history, endpoints.rollback):
        with pytest.raises(NotFound):
            ask(store, "nobody")


@pytest.mark.parametrize("name", ["../m", "M", ""])
def test_name_that_is_none_touches_no_key(store: DirectoryStore, name: str) -> None:
    with pytest.raises(BadName):
        endpoints.get_spec(store, name)
    with pytest.raises(BadDocument, match=r"^\$\.endpoint: "):
        endpoints.set_spec(store, spec(endpoint=name))


def test_names_lists_endpoints_and_nothing_else(store: DirectoryStore) -> None:
    endpoints.set_spec(store, spec())
    endpoints.set_spec(store, spec())
    endpoints.set_spec(store, spec(endpoint="a.json"))
    endpoints.write_state(store, EndpointState("m", 1, {}), None)
    store.put_new("endpoints/Odd Name.json", b"{}")
    assert endpoints.names(store) == ["a.json", "m"]


def test_create_leaves_an_endpoint_that_is_there_alone(store: DirectoryStore) -> None:
    assert endpoints.create(store, spec("1"))
    assert not endpoints.create(store, spec("2"))
    assert endpoints.get_spec(store, "m")[0] == spec("1", revision=1)


# --- what is refused ---


def test_spec_that_does_not_fit_is_refused(store: DirectoryStore) -> None:
    with pytest.raises(BadDocument, match=r"^\$\.deadline_ms: 0 is out of range"):
        endpoints.set_spec(store, spec(deadline_ms=0))


def test_variant_that_is_not_published_is_refused(store: DirectoryStore) -> None:
    arms = [("a", "m", "1", 50.0), ("b", "m", "9", 25.0), ("c", "other", "1", 25.0)]
    variants = tuple(Variant(*arm) for arm in arms)
    with pytest.raises(BadDocument) as caught:
        endpoints.set_spec(store, spec(variants=variants))
    assert caught.value.problems == [
        "$.variants[1].version: m version 9 is not published; published are 1, 2, 3",
        "$.variants[2].version: other version 1 is not published; published are none",
    ]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"inputs": (replace(IMAGE, shape=(-1, 5)), SIZE)},
            "input x is FP32 [-1, 5], but FP32 [-1, 4] in $.variants[0]",
        ),
        (
            {"inputs": (replace(IMAGE, datatype="FP16"), SIZE)},
            "input x is FP16 [-1, 4], but FP32 [-1, 4] in $.variants[0]",
        ),
        ({"inputs": (IMAGE,)}, "input z is absent, but INT64 [] in $.variants[0]"),
        ({"outputs": (LABEL, SIZE)}, "output z is INT64 [], but absent in $.variants[0]"),
    ],
)
def test_variants_of_different_signatures_are_refused(
    store: DirectoryStore, changes: dict[str, object], problem: str
) -> None:
    publish(store, "1", "other", **changes)
    variants = (Variant("a", "m", "1", 100.0), Variant("b", "other", "1", 0.0))
    with pytest.raises(BadDocument) as caught:
        endpoints.set_spec(store, spec(variants=variants))
    assert caught.value.problems == [f"$.variants[1]: {problem}"]


def test_order_of_tensors_is_no_difference(store: DirectoryStore) -> None:
    publish(store, "1", "other", inputs=(SIZE, IMAGE))
    variants = (Variant("a", "m", "1", 50.0), Variant("b", "other", "1", 50.0))
    assert endpoints.set_spec(store, spec(variants=variants)) == 1


def test_spec_of_a_newer_release_is_not_overwritten(store: DirectoryStore) -> None:
    newer = documents.write(spec(revision=1)).replace(b'"schema":1', b'"schema":2')
    store.put_new("endpoints/m.json", newer)
    with pytest.raises(BadDocument, match="newer"):
        endpoints.set_spec(store, spec())
    assert store.get("endpoints/m.json").data == newer


def test_spec_under_another_endpoints_key_is_refused(store: DirectoryStore) -> None:
    store.put_new("endpoints/n.json", documents.write(spec(revision=1)))
    with pytest.raises(BadDocument, match=r"\$\.endpoint: endpoints/n\.json is about m"):
        endpoints.get_spec(store, "n")


# --- revisions ---


def test_stale_revision_is_refused(store: DirectoryStore) -> None:
    for _ in range(7):
        endpoints.set_spec(store, spec())
    with pytest.raises(RevisionConflict, match=r"^at revision 7, yours is 5$"):
        endpoints.set_spec(store, spec(), if_revision=5)
    assert endpoints.set_spec(store, spec(), if_revision=7) == 8


def test_revision_in_the_spec_counts_as_the_expected_one(store: DirectoryStore) -> None:
    endpoints.set_spec(store, spec())
    endpoints.set_spec(store, spec(revision=1))
    with pytest.raises(RevisionConflict, match=r"^at revision 2, yours is 1$"):
        endpoints.set_spec(store, spec(revision=1))
    assert endpoints.set_spec(store, spec(revision=1), if_revision=2) == 3


def test_expected_revision_zero_is_a_new_endpoint(store: DirectoryStore) -> None:
    assert endpoints.set_spec(store, spec(), if_revision=0) == 1
    with pytest.raises(RevisionConflict, match=r"^at revision 1, yours is 0$"):
        endpoints.set_spec(store, spec(), if_revision=0)


def test_endpoint_that_is_not_there_has_no_revision_to_replace(store: DirectoryStore) -> None:
    with pytest.raises(RevisionConflict, match=r"^at revision 0, yours is 3$"):
        endpoints.set_spec(store, spec(), if_revision=3)


# --- history ---


def test_every_spec_that_was_replaced_is_kept_byte_for_byte(store: DirectoryStore) -> None:
    kept = {}
    for version in "123":
        endpoints.set_spec(store, spec(version))
        kept[f"endpoints/m/history/{version}.json"] = store.get("endpoints/m.json").data
    del kept["endpoints/m/history/3.json"]
    found = {entry.key for entry in store.list("endpoints/m/history")}
    assert {key: store.get(key).data for key in found} == kept


def test_history_is_every_spec_ever_current_oldest_first(store: DirectoryStore) -> None:
    for number in range(12):
        endpoints.set_spec(store, spec(deadline_ms=number + 1))
    past = endpoints.history(store, "m")
    assert [old.revision for old in past] == list(range(1, 13))
    assert [old.deadline_ms for old in past] == list(range(1, 13))


class Broken(DirectoryStore):
    """Fails before or after its n-th write."""

    fails_at = -1
    after = False

    def _write(self, write: object) -> str:
        self.fails_at -= 1
        if self.fails_at == -1 and not self.after:
            raise StoreUnavailable("out of order")
        etag: str = write()  # type: ignore[operator]
        if self.fails_at == -1:
            raise StoreUnavailable("out of order")
        return etag

    def put_new(self, key: str, data: bytes) -> str:
        return self._write(lambda: super(Broken, self).put_new(key, data))

    def put_if(self, key: str, data: bytes, etag: str) -> str:
        return self._write(lambda: super(Broken, self).put_if(key, data, etag))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("fails_at", [0, 1])
def test_write_that_dies_midway_loses_no_history(
    store: DirectoryStore, tmp_path: Path, fails_at: int, after: bool
) -> None:
    endpoints.set_spec(store, spec("1"))
    broken = Broken(tmp_path / "registry")
    broken.fails_at, broken.after = fails_at, after
    with pytest.raises(StoreUnavailable):
        endpoints.set_spec(broken, spec("2"))
    landed = (fails_at, after) == (1, True)
    assert revisions(store) == ([1, 2] if landed else [1])
    endpoints.set_spec(store, spec("3"))
    assert revisions(store) == ([1, 2, 3] if landed else [1, 2])
    assert [old.variants[0].version for old in endpoints.history(store, "m")] == (
        ["1", "2", "3"] if landed else ["1", "3"]
    )


# --- rollback ---


def test_rollback_makes_the_previous_spec_current_as_a_new_revision(
    store: DirectoryStore,
) -> None:
    for version in "123":
        endpoints.set_spec(store, spec(version))
    assert endpoints.rollback(store, "m") == 4
    assert endpoints.get_spec(store, "m")[0] == spec("2", revision=4)
    assert revisions(store) == [1, 2, 3, 4]


def test_two_rollbacks_end_where_they_began(store: DirectoryStore) -> None:
    for version in "12":
        endpoints.set_spec(store, spec(version))
    endpoints.rollback(store, "m")
    assert endpoints.rollback(store, "m") == 4
    assert endpoints.get_spec(store, "m")[0] == spec("2", revision=4)


def test_first_spec_cannot_be_rolled_back(store: DirectoryStore) -> None:
    endpoints.set_spec(store, spec())
    with pytest.raises(NoHistory, match=r"^m is at revision 1: there is no previous spec"):
        endpoints.rollback(store, "m")


# --- writers at once ---


class Overtaken(DirectoryStore):
    """Lets another writer in before, or after, its own next swap; `lost` hides the outcome."""

    rival: EndpointSpec | None = None
    after = False
    lost = False

    def put_if(self, key: str, data: bytes, etag: str) -> str:
        rival, self.rival = self.rival, None
        if rival is None:
            return super().put_if(key, data, etag)
        try:
            if not self.after:
                endpoints.set_spec(self, rival)
            written = super().put_if(key, data, etag)
            endpoints.set_spec(self, rival)
        except Conflict:
            if self.lost:
                raise OutcomeUnknown(key) from None
            raise
        if self.lost:
            raise OutcomeUnknown(key)
        return written


def overtaken(store: DirectoryStore, tmp_path: Path, *, after: bool, lost: bool) -> Overtaken:
    endpoints.set_spec(store, spec("1"))
    found = Overtaken(tmp_path / "registry")
    found.rival, found.after, found.lost = spec("2"), after, lost
    return found


@pytest.mark.parametrize("lost", [False, True])
def test_writer_that_was_overtaken_writes_again(
    store: DirectoryStore, tmp_path: Path, lost: bool
) -> None:
    slow = overtaken(store, tmp_path, after=False, lost=lost)
    assert endpoints.set_spec(slow, spec("3")) == 3
    assert [old.variants[0].version for old in endpoints.history(store, "m")] == ["1", "2", "3"]


@pytest.mark.parametrize("lost", [False, True])
def test_writer_that_was_overtaken_is_told_if_it_expected_a_revision(
    store: DirectoryStore, tmp_path: Path, lost: bool
) -> None:
    slow = overtaken(store, tmp_path, after=False, lost=lost)
    with pytest.raises(RevisionConflict, match=r"^at revision 2, yours is 1$"):
        endpoints.set_spec(slow, spec("3"), if_revision=1)


@pytest.mark.parametrize("if_revision", [None, 1])
def test_write_that_landed_unseen_does_not_undo_its_successor(
    store: DirectoryStore, tmp_path: Path, if_revision: int | None
) -> None:
    slow = overtaken(store, tmp_path, after=True, lost=True)
    assert endpoints.set_spec(slow, spec("3"), if_revision=if_revision) == 2
    assert [old.variants[0].version for old in endpoints.history(store, "m")] == ["1", "3", "2"]


def count_up(url: str, times: int, writers: int) -> int:
    """Raise the deadline by 1 ms so often, as a script with `--if-revision` would."""
    store = open_store(url)
    conflicts = 0
    for _ in range(times):
        pause_s = 0.05
        while True:
            current, _ = endpoints.get_spec(store, "m")
            # A content of its own: after a lost answer nobody can tell his write from an equal one.
            own = Assign(salt=uuid.uuid4().hex)
            raised = replace(current, deadline_ms=current.deadline_ms + 1, assign=own)
            try:
                endpoints.set_spec(store, raised, if_revision=current.revision)
                break
            except RevisionConflict:
                conflicts += 1
                # Longer each time, or most of what fifty do on a slow store is to be too late.
                time.sleep(random.uniform(0, pause_s))
                pause_s = min(2 * pause_s, max(0.1, 0.04 * writers))
    store.close()
    return conflicts


def check_count(url: str, processes: int, times: int) -> None:
    store = open_store(url)
    endpoints.set_spec(store, spec(deadline_ms=1000))
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool:
        pool.starmap(count_up, [(url, times, processes)] * processes, chunksize=1)
        pool.close()
        pool.join()
    current, _ = endpoints.get_spec(store, "m")
    writes = processes * times
    assert (current.revision, current.deadline_ms) == (1 + writes, 1000 + writes)
    assert revisions(store) == list(range(1, writes + 2))
    assert len(store.list("endpoints/m/history")) == writes
    store.close()


@pytest.mark.rule("F15")
def test_processes_that_count_up_lose_nothing(store: DirectoryStore) -> None:
    check_count(store.url, processes=8, times=10)


@pytest.mark.rule("F15")
@pytest.mark.slow
def test_fifty_processes_that_count_up_lose_nothing(store: DirectoryStore) -> None:
    check_count(store.url, processes=50, times=20)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_processes_that_count_up_on_s3_lose_nothing(s3_url: str) -> None:
    store = open_store(s3_url)
    publish(store, "1")
    store.close()
    check_count(s3_url, processes=50, times=20)


def test_threads_that_count_up_on_s3_lose_nothing(s3_url: str) -> None:
    store = open_store(s3_url)
    publish(store, "1")
    endpoints.set_spec(store, spec(deadline_ms=1000))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: count_up(s3_url, 4, 4), range(4)))
    assert endpoints.get_spec(store, "m")[0].deadline_ms == 1016
    assert revisions(store) == list(range(1, 18))
    store.close()


def test_writers_without_an_expected_revision_all_get_through(store: DirectoryStore) -> None:
    endpoints.set_spec(store, spec())
    with ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda _: endpoints.set_spec(store, spec()), range(40)))
    assert sorted(written) == list(range(2, 42))
    assert revisions(store) == list(range(1, 42))


def test_swap_gives_up_in_the_end(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry_sync.swap.PAUSE_S_MAX", 0.0)
    monkeypatch.setattr("registry_sync.swap.PAUSE_S_MIN", 0.0)
    asked = []

    class Busy(DirectoryStore):
        def put_new(self, key: str, data: bytes) -> str:
            asked.append(key)
            raise Conflict(key, "taken")

    with pytest.raises(Conflict, match="other writers were faster 100 times"):
        swap(Busy(Path(store.url.removeprefix("file://"))), "x", lambda _: b"")
    assert len(asked) == 100


# --- state ---

STATE = EndpointState("m", 1, {"stable": 100.0})


def test_state_is_none_before_it_is_written(store: DirectoryStore) -> None:
    assert endpoints.read_state(store, "m") is None


def test_state_is_read_as_it_was_written(store: DirectoryStore) -> None:
    etag = endpoints.write_state(store, STATE, None)
    assert endpoints.read_state(store, "m") == (STATE, etag)
    later = replace(STATE, step=1)
    assert endpoints.read_state(store, "m") != (later, endpoints.write_state(store, later, etag))


@pytest.mark.parametrize("etag", [None, "stale"])
def test_state_that_somebody_changed_is_not_overwritten(
    store: DirectoryStore, etag: str | None
) -> None:
    endpoints.write_state(store, STATE, None)
    with pytest.raises(Conflict):
        endpoints.write_state(store, replace(STATE, step=1), etag)


def test_state_that_does_not_fit_is_not_written(store: DirectoryStore) -> None:
    with pytest.raises(BadDocument, match=r"^\$\.weights\.stable: "):
        endpoints.write_state(store, replace(STATE, weights={"stable": -1.0}), None)


def test_updates_of_a_state_at_once_lose_nothing(store: DirectoryStore) -> None:
    def purge(state: EndpointState | None) -> EndpointState:
        state = state or STATE
        return replace(state, cache_epoch=state.cache_epoch + 1)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: endpoints.update_state(store, "m", purge), range(40)))
    assert sorted(state.cache_epoch for state in found) == list(range(1, 41))


# --- purge ---


def epochs(state: EndpointState) -> tuple[int, dict[str, int]]:
    return state.cache_epoch, state.cache_epochs


def test_purge_raises_the_epoch_and_leaves_the_rest_of_the_state(store: DirectoryStore) -> None:
    endpoints.set_spec(store, spec())
    state = replace(STATE, weights={"stable": 100.0}, step=3, verdict="running", reason="why")
    endpoints.write_state(store, state, None)
    assert endpoints.purge(store, "m") == replace(state, cache_epoch=1)
    assert endpoints.purge(store, "m") == replace(state, cache_epoch=2)
    found = endpoints.read_state(store, "m")
    assert found is not None
    assert found[0] == replace(state, cache_epoch=2)


def test_purge_needs_no_state_and_says_nothing_of_weights(store: DirectoryStore) -> None:
    endpoints.set_spec(store, spec())
    assert endpoints.purge(store, "m") == EndpointState("m", 1, {}, cache_epoch=1)


def test_purge_of_a_version_leaves_the_others(store: DirectoryStore) -> None:
    endpoints.set_spec(store, spec("1"))
    endpoints.purge(store, "m", "1")
    assert epochs(endpoints.purge(store, "m", "1")) == (0, {"1": 2})
    # Version 2 is not in the spec, but a rollback may bring it, and its answers, back.
    assert epochs(endpoints.purge(store, "m", "2")) == (0, {"1": 2, "2": 1})
    # A whole purge is one for every version: their own counts begin again under it.
    assert epochs(endpoints.purge(store, "m")) == (1, {})


def test_version_that_is_not_published_is_not_purged(store: DirectoryStore) -> None:
    endpoints.set_spec(store, spec())
    with pytest.raises(NotFound, match="version 9 of m: not found"):
        endpoints.purge(store, "m", "9")
    with pytest.raises(BadName):
        endpoints.purge(store, "m", "../1")
    with pytest.raises(NotFound):
        endpoints.purge(store, "nobody")
    assert endpoints.read_state(store, "m") is None


def test_purges_of_more_versions_than_are_kept_purge_the_endpoint(store: DirectoryStore) -> None:
    endpoints.set_spec(store, spec())
    full = {str(version): 1 for version in range(2, CACHE_EPOCHS_MAX + 2)}
    endpoints.write_state(store, replace(STATE, cache_epochs=full), None)
    assert epochs(endpoints.purge(store, "m", "2")) == (0, {**full, "2": 2})
    assert epochs(endpoints.purge(store, "m", "1")) == (1, {})


def test_purges_at_once_are_all_counted(store: DirectoryStore) -> None:
    endpoints.set_spec(store, spec())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: endpoints.purge(store, "m", "1"), range(20)))
    found = endpoints.read_state(store, "m")
    assert found is not None
    assert epochs(found[0]) == (0, {"1": 20})


def test_every_change_of_a_state_leaves_a_new_mark(store: DirectoryStore) -> None:
    endpoints.set_spec(store, spec())
    marks = set()
    for _ in range(3):
        endpoints.update_state(store, "m", lambda _: STATE)
        marks.add(store.get(endpoints.mark_key("m")).data)
    assert len(marks) == 3
    assert endpoints.names(store) == ["m"]
