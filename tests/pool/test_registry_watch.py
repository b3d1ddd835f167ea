"""The controller's eyes on a registry, over a real directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pool import registry_watch
from pool.registry_watch import RegistryWatch, Snapshot, restore
from pool.wire.control import Documents
from pool.wish_watch import WishWatch
from registry_sync import endpoints, keys
from registry_sync.directory import DirectoryStore
from registry_sync.documents import Cache, EndpointSpec, EndpointState, Keys, Variant, write
from registry_sync.stores import AccessDenied, NotFound, Store, StoreUnavailable
from tests.support.artifacts import put_artifact


class Watched:
    """A store that counts what is asked of it, and fails where it is told to."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.calls: list[tuple[str, str]] = []
        self.down: set[str] = set()  # keys or folders that do not answer

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def counted(key: str, *more: Any, **named: Any) -> Any:
            self.calls.append((name, key))
            if key in self.down:
                raise StoreUnavailable(f"{key}: no answer")
            return method(key, *more, **named)

        return counted if callable(method) else method


@pytest.fixture
def directory(tmp_path: Path) -> DirectoryStore:
    store = DirectoryStore(tmp_path / "registry")
    put_artifact(store, {"model.onnx": b"1"})
    put_artifact(store, {"model.onnx": b"2"}, version="2")
    return store


@pytest.fixture
def store(directory: DirectoryStore) -> Any:
    return Watched(directory)


@pytest.fixture
def watch(store: Any) -> RegistryWatch:
    return RegistryWatch(store)


def put(store: Any, key: str, data: bytes) -> None:
    try:
        store.put_if(key, data, store.get(key).etag)
    except NotFound:
        store.put_new(key, data)


def spec(name: str = "e", version: str = "1", revision: int = 1) -> EndpointSpec:
    return EndpointSpec(name, (Variant("a", "m", version, 100.0),), revision=revision)


def put_spec(store: Any, name: str = "e", version: str = "1", revision: int = 1) -> None:
    put(store, f"endpoints/{name}.json", write(spec(name, version, revision)))


def version_of(snapshot: Snapshot, name: str = "e") -> str:
    return snapshot.specs[name].variants[0].version


def test_empty_registry_is_known_to_be_empty(tmp_path: Path) -> None:
    watch = RegistryWatch(DirectoryStore(tmp_path / "none"))
    assert not watch.is_known
    assert watch.poll() is False
    assert (watch.is_known, watch.snapshot) == (True, Snapshot())


def test_new_document_is_taken_with_everything_that_it_names(store: Any, watch: Any) -> None:
    put_spec(store)
    assert watch.poll() is True
    assert watch.snapshot.specs == {"e": spec()}
    assert watch.snapshot.spec_bytes == {"e": store.get("endpoints/e.json").data}
    assert watch.snapshot.manifest_bytes.keys() == watch.snapshot.manifests.keys() == {("m", "1")}


def test_nothing_new_is_no_change_and_two_questions(store: Any, watch: Any) -> None:
    put_spec(store)
    put(store, "keys.json", write(Keys(())))
    watch.poll()
    store.calls.clear()
    assert watch.poll() is False
    assert store.calls == [("list", "endpoints/"), ("get_if_changed", "keys.json")]


def test_changed_document_is_read_and_no_other(store: Any, watch: Any) -> None:
    put_spec(store)
    put_spec(store, "other")
    watch.poll()
    put_spec(store, "e", "2", revision=2)
    store.calls.clear()
    assert watch.poll() is True
    assert version_of(watch.snapshot) == "2"
    assert ("get", "endpoints/other.json") not in store.calls
    assert ("get", "models/m/1/manifest.json") not in store.calls


def test_deleted_document_is_gone_with_its_state(store: Any, watch: Any) -> None:
    put_spec(store)
    put(store, "endpoints/e/state.json", write(EndpointState("e", 1, {"a": 100.0})))
    watch.poll()
    assert watch.snapshot.states.keys() == {"e"}
    store.delete("endpoints/e.json")
    assert watch.poll() is True
    assert not watch.snapshot.specs
    assert not watch.snapshot.states


def test_purge_is_seen_by_the_list_that_shows_the_specs(store: Any, watch: Any) -> None:
    put_spec(store)
    put_spec(store, "other")
    watch.poll()
    endpoints.purge(store, "e")
    store.calls.clear()
    assert watch.poll() is True
    assert store.calls == [
        ("list", "endpoints/"),
        ("get", "endpoints/e/state.json"),
        ("get_if_changed", "keys.json"),
    ]
    assert {name: state.cache_epoch for name, state in watch.snapshot.states.items()} == {"e": 1}
    endpoints.purge(store, "e", "1")
    assert watch.poll() is True
    assert watch.snapshot.states["e"].cache_epochs == {"1": 1}
    assert watch.poll() is False


def test_purge_whose_state_cannot_be_read_is_seen_in_the_next_round(store: Any, watch: Any) -> None:
    put_spec(store)
    watch.poll()
    endpoints.purge(store, "e")
    store.down.add("endpoints/e/state.json")
    with pytest.raises(StoreUnavailable):
        watch.poll()
    store.down.clear()
    assert watch.poll() is True
    assert watch.snapshot.states["e"].cache_epoch == 1


def test_state_that_is_gone_is_forgotten_with_the_next_spec(store: Any, watch: Any) -> None:
    put_spec(store)
    put(store, "endpoints/e/state.json", write(EndpointState("e", 1, {"a": 100.0})))
    watch.poll()
    store.delete("endpoints/e/state.json")
    put_spec(store, revision=2)
    watch.poll()
    assert not watch.snapshot.states


BAD = {
    "no document": (b"{", "$"),
    "a value that does not fit": (write(spec()).replace(b"10000", b"-1"), "$.deadline_ms"),
    "a newer schema": (write(spec()).replace(b'"schema":1', b'"schema":2'), "$.schema"),
    "another name": (write(spec("f")), "$.endpoint"),
    "a version that nobody has published": (write(spec(version="9")), "is not published"),
    "weights that do not add up": (write(spec()).replace(b":100.0", b":99.0"), "$.variants"),
    "too much": (write(spec()) + b" " * (4 << 20), "at most"),
}


@pytest.mark.parametrize("case", BAD)
def test_document_that_does_not_fit_stays_out_and_says_why(
    case: str, store: Any, watch: Any
) -> None:
    put_spec(store)
    watch.poll()
    bad, why = BAD[case]
    put(store, "endpoints/e.json", bad)
    assert watch.poll() is True
    assert watch.snapshot.specs == {"e": spec()}, "the last good one holds"
    assert why in watch.snapshot.rejected["endpoints/e.json"]
    assert watch.poll() is False


def test_bad_document_does_not_keep_a_good_one_out(store: Any, watch: Any) -> None:
    put(store, "endpoints/a.json", b"{")
    put_spec(store, "b")
    watch.poll()
    assert watch.snapshot.specs.keys() == {"b"}


def test_document_that_fits_again_is_rejected_no_more(store: Any, watch: Any) -> None:
    put(store, "endpoints/e.json", b"{")
    watch.poll()
    put_spec(store)
    watch.poll()
    assert not watch.snapshot.rejected


def test_bad_document_that_is_deleted_is_rejected_no_more(store: Any, watch: Any) -> None:
    put(store, "endpoints/e.json", b"{")
    watch.poll()
    store.delete("endpoints/e.json")
    assert watch.poll() is True
    assert not watch.snapshot.rejected


def test_bad_state_leaves_the_last_good_one_until_it_fits_or_is_gone(
    store: Any, watch: Any
) -> None:
    key, good = "endpoints/e/state.json", write(EndpointState("e", 1, {"a": 100.0}))
    put_spec(store)
    put(store, key, good)
    for bad in (b"{", write(EndpointState("f", 1, {})), write(EndpointState("e", 1, {"a": 9.0}))):
        put(store, key, bad)
        put(store, "endpoints/e@state", bad)
        watch.poll()
        watch.poll()  # nothing has changed: it stays said
        assert watch.snapshot.state_bytes.get("e", good) == good
        assert watch.snapshot.rejected[key].startswith("$")
        put(store, key, good)
        put(store, "endpoints/e@state", good)
        watch.poll()
        assert not watch.snapshot.rejected
    put(store, key, b"{")
    put(store, "endpoints/e@state", b"{")
    watch.poll()
    store.delete("endpoints/e.json")
    watch.poll()
    assert not watch.snapshot.rejected


def test_document_with_a_name_that_is_none_stays_out(store: Any, watch: Any) -> None:
    put(store, "endpoints/E.json", write(spec()))
    watch.poll()
    assert watch.snapshot.rejected.keys() == {"endpoints/E.json"}


def test_bad_document_costs_nothing_until_it_changes(store: Any, watch: Any) -> None:
    put(store, "endpoints/e.json", b"{")
    watch.poll()
    store.calls.clear()
    watch.poll()
    assert len(store.calls) == 2


def test_document_that_came_before_its_version_is_taken_once_that_is_there(
    store: Any, watch: Any
) -> None:
    put_spec(store, version="7")
    watch.poll()
    assert "is not published" in watch.snapshot.rejected["endpoints/e.json"]
    put_artifact(store, {"model.onnx": b"7"}, version="7")
    assert watch.poll() is True
    assert version_of(watch.snapshot) == "7"
    assert not watch.snapshot.rejected


def test_manifest_that_says_another_name_is_refused(store: Any, watch: Any) -> None:
    put_spec(store, version="8")
    store.put_new("models/m/8/manifest.json", store.get("models/m/1/manifest.json").data)
    watch.poll()
    assert "m/8 says it is m/1" in watch.snapshot.rejected["endpoints/e.json"]


def test_registry_that_does_not_answer_changes_nothing(store: Any, watch: Any) -> None:
    put_spec(store)
    watch.poll()
    before = watch.snapshot
    store.down = {"endpoints/"}
    with pytest.raises(StoreUnavailable):
        watch.poll()
    assert watch.snapshot is before


@pytest.mark.parametrize(
    "down", ["endpoints/b.json", "models/m/2/manifest.json", "endpoints/b/state.json"]
)
def test_change_that_was_read_in_a_round_that_failed_is_not_lost(
    down: str, store: Any, watch: Any
) -> None:
    put_spec(store, "a")
    put_spec(store, "b")
    watch.poll()
    put_spec(store, "a", "2", revision=2)
    put_spec(store, "b", "2", revision=2)
    store.down = {down}
    with pytest.raises(StoreUnavailable):
        watch.poll()
    store.down = set()
    assert watch.poll() is True
    assert version_of(watch.snapshot, "a") == version_of(watch.snapshot, "b") == "2"


# keys


def some_keys() -> bytes:
    return write(Keys((keys.make_key("t", ["infer:*"])[1],)))


def test_keys_are_taken_and_gone_with_their_document(store: Any, watch: Any) -> None:
    put(store, "keys.json", data := some_keys())
    watch.poll()
    assert watch.snapshot.key_bytes == data
    store.delete("keys.json")
    assert watch.poll() is True
    assert watch.snapshot.key_bytes == b""


def test_keys_that_do_not_fit_leave_the_last_good_ones(store: Any, watch: Any) -> None:
    put(store, "keys.json", good := some_keys())
    watch.poll()
    put(store, "keys.json", b'{"keys": 1}')
    for _ in range(2):
        watch.poll()
        assert watch.snapshot.key_bytes == good
        assert "$.keys" in watch.snapshot.rejected["keys.json"]


def test_bad_keys_that_are_deleted_are_rejected_no_more(store: Any, watch: Any) -> None:
    put(store, "keys.json", b"{")
    watch.poll()
    store.delete("keys.json")
    watch.poll()
    assert not watch.snapshot.rejected


def test_keys_that_cannot_be_reached_leave_the_last_good_ones(store: Any, watch: Any) -> None:
    put(store, "keys.json", good := some_keys())
    watch.poll()
    store.down = {"keys.json"}
    put_spec(store)
    watch.poll()
    assert watch.snapshot.key_bytes == good
    assert watch.snapshot.specs.keys() == {"e"}, "the rest goes on"
    store.down = set()
    watch.poll()
    assert not watch.snapshot.rejected


def test_look_that_did_not_read_the_keys_or_the_wishes_is_not_whole(store: Any) -> None:
    watch = RegistryWatch(store, None, WishWatch(store, 60.0))
    put(store, "keys.json", some_keys())
    assert watch.poll() is True
    for folder in ("keys.json", "builds"):
        assert watch.is_whole
        store.down = {folder}
        watch.poll(is_asked=True)
        assert not watch.is_whole
        watch.poll()
        assert not watch.is_whole, "nobody has read it meanwhile"
        store.down.clear()
        watch.poll(is_asked=True)
    assert watch.is_whole
    assert not watch.wishes.rejected


def test_wishes_that_must_not_be_listed_need_no_second_look(
    store: Any, watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = store.list

    def denied(folder: str, **options: Any) -> Any:
        if folder == "builds":
            raise AccessDenied(folder, "s3:ListBucket")
        return listed(folder, **options)

    monkeypatch.setattr(store, "list", denied, raising=False)
    watch.poll()
    assert "access denied" in watch.wishes.rejected["builds"]
    assert watch.is_whole


def test_keys_that_were_never_reached_are_not_taken_for_none(store: Any, watch: Any) -> None:
    store.down = {"keys.json"}
    with pytest.raises(StoreUnavailable):
        watch.poll()
    assert not watch.is_known


# versions called by number


def test_version_that_no_endpoint_names_is_found(watch: Any) -> None:
    watch.poll()
    assert watch.resolve("m", "2").version == "2"
    assert watch.snapshot.manifests.keys() == {("m", "2")}


def test_version_that_is_known_is_not_read_again(store: Any, watch: Any) -> None:
    watch.resolve("m", "2")
    store.calls.clear()
    before = watch.snapshot
    watch.resolve("m", "2")
    assert (store.calls, watch.snapshot) == ([], before)


def test_version_that_is_not_published_is_none(watch: Any) -> None:
    assert watch.resolve("m", "9") is None
    assert watch.resolve("nobody", "1") is None


@pytest.mark.parametrize("ref", [("../m", "1"), ("m", "1/../2"), ("m", "X!"), ("", "1")])
def test_version_with_a_name_that_is_none_touches_no_store(
    ref: tuple[str, str], store: Any, watch: Any
) -> None:
    with pytest.raises(ValueError, match=r"model|version"):
        watch.resolve(*ref)
    assert not store.calls


def test_resolved_versions_outlive_a_poll(store: Any, watch: Any) -> None:
    watch.resolve("m", "2")
    put_spec(store)
    watch.poll()
    assert watch.snapshot.manifests.keys() == {("m", "1"), ("m", "2")}


def test_only_so_many_versions_are_kept_that_nobody_names(
    store: Any, watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_watch, "RESOLVED_MAX", 2)
    put_spec(store)
    watch.poll()
    for version in ("2", "3", "4"):
        if version != "2":
            put_artifact(store, {"model.onnx": version.encode()}, version=version)
        watch.resolve("m", version)
    assert watch.snapshot.manifests.keys() == {("m", "1"), ("m", "3"), ("m", "4")}
    assert watch.snapshot.manifest_bytes.keys() == watch.snapshot.manifests.keys()


def test_versions_that_were_named_once_are_not_kept_for_ever(
    store: Any, watch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_watch, "RESOLVED_MAX", 1)
    for n in range(3, 8):
        put_artifact(store, {"model.onnx": str(n).encode()}, version=str(n))
        put_spec(store, version=str(n), revision=n)
        watch.poll()
    assert watch.snapshot.manifests.keys() == {("m", "6"), ("m", "7")}


# the last good copy


def documents(snapshot: Snapshot, **changes: Any) -> Documents:
    held: dict[str, Any] = {
        "specs": dict(snapshot.spec_bytes),
        "states": dict(snapshot.state_bytes),
        "manifests": {"/".join(ref): data for ref, data in snapshot.manifest_bytes.items()},
        "keys": snapshot.key_bytes,
        "rejected": dict(snapshot.rejected),
    }
    return Documents(1, 1, **{**held, **changes})


def test_last_good_copy_gives_the_same_snapshot(store: Any, watch: Any) -> None:
    put(store, "endpoints/e.json", write(EndpointSpec("e", spec().variants, cache=Cache())))
    put(store, "endpoints/e/state.json", write(EndpointState("e", 1, {"a": 100.0})))
    put(store, "endpoints/bad.json", b"{")
    put(store, "keys.json", some_keys())
    watch.poll()
    assert restore(documents(watch.snapshot)) == watch.snapshot


def test_what_changed_while_nobody_looked_is_seen_after_a_restart(store: Any, watch: Any) -> None:
    put_spec(store)
    put_spec(store, "gone")
    watch.poll()
    store.delete("endpoints/gone.json")
    put_spec(store, "e", "2", revision=2)
    again = RegistryWatch(store, restore(documents(watch.snapshot)))
    assert again.is_known
    assert again.poll() is True
    assert again.snapshot.specs == {"e": spec("e", "2", 2)}


def test_copy_that_cannot_be_read_whole_gives_what_can(store: Any, watch: Any) -> None:
    put_spec(store)
    put_spec(store, "f", "2")
    watch.poll()
    broken = {"m/1": b"{", "m/2": watch.snapshot.manifest_bytes["m", "2"]}
    found = restore(documents(watch.snapshot, manifests=broken, keys=b"{"))
    assert found.specs.keys() == {"f"}
    assert found.key_bytes == b""
