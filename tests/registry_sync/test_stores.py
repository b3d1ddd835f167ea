"""One contract for both stores, then what is particular to each."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from registry_sync.directory import DirectoryStore
from registry_sync.open import open_store
from registry_sync.stores import (
    AccessDenied,
    BadStore,
    Conflict,
    NotFound,
    Store,
    StoreError,
    StoreUnavailable,
    check_key,
)
from tests.support.competitors import INCREMENTS, create, increment, rewrite

MIB = 1 << 20
PROCESSES = 5

# Legal in a key, and meant to upset URLs, signatures, XML and shells.
ODD_NAMES = [
    "a b/c  d.json",
    "plus+and&amp;=?#.json",
    "percent%20%2F.json",
    "ümlaut/日本/🌊.json",
    "quote'\"<x>;$(id)`.json",
    "-dash/~tilde/..dots/...",
    "*glob[0-9]{a,b}.json",
    "CaSe/case",
    "case/CaSe",
    "x" * 255,
]


# --- the contract ---


def test_what_was_put_is_read(store: Store) -> None:
    etag = store.put_new("models/a/1/manifest.json", b"\0\r\n{}")
    found = store.get("models/a/1/manifest.json")
    assert (found.data, found.etag) == (b"\0\r\n{}", etag)


def test_an_empty_object_is_an_object(store: Store) -> None:
    store.put_new("empty", b"")
    assert store.get("empty").data == b""
    assert store.size("empty") == 0
    assert store.read("empty", 0, 10) == b""


@pytest.mark.parametrize(
    "act",
    [
        lambda store: store.get("no/such"),
        lambda store: store.get_if_changed("no/such", "0"),
        lambda store: store.read("no/such", 0, 1),
        lambda store: store.size("no/such"),
    ],
)
def test_reading_a_missing_key_names_it(store: Store, act: Callable[[Store], object]) -> None:
    with pytest.raises(NotFound, match="no/such"):
        act(store)


def test_create_only_never_replaces(store: Store) -> None:
    store.put_new("a", b"first")
    with pytest.raises(Conflict, match="a: already there"):
        store.put_new("a", b"second")
    assert store.get("a").data == b"first"


def test_a_write_under_the_present_etag_replaces(store: Store) -> None:
    first = store.put_new("a", b"1")
    second = store.put_if("a", b"2", first)
    assert first != second
    assert store.get("a").data == b"2"
    assert store.get("a").etag == second


def test_a_write_under_an_old_etag_is_a_conflict(store: Store) -> None:
    first = store.put_new("a", b"1")
    store.put_if("a", b"2", first)
    with pytest.raises(Conflict, match="a: changed"):
        store.put_if("a", b"3", first)
    assert store.get("a").data == b"2"


def test_a_write_under_an_etag_of_a_missing_key_is_a_conflict(store: Store) -> None:
    etag = store.put_new("a", b"1")
    store.delete("a")
    with pytest.raises(Conflict, match="gone"):
        store.put_if("a", b"2", etag)
    assert store.list("") == []


def test_an_equal_content_has_an_equal_etag(store: Store) -> None:
    first = store.put_new("a", b"1")
    assert store.put_if("a", b"1", store.put_if("a", b"2", first)) == first
    assert store.put_new("b", b"1") == first


def test_an_unchanged_object_is_not_sent_again(store: Store) -> None:
    etag = store.put_new("a", b"1")
    assert store.get_if_changed("a", etag) is None
    for other in (None, "0" * 32):
        found = store.get_if_changed("a", other)
        assert found is not None
        assert (found.data, found.etag) == (b"1", etag)


def test_ranges_are_cut_at_the_end(store: Store) -> None:
    store.put_new("a", b"0123456789")
    assert store.read("a", 0, 4) == b"0123"
    assert store.read("a", 4, 3) == b"456"
    assert store.read("a", 8, 100) == b"89"
    assert store.read("a", 10, 1) == b""
    assert store.read("a", 1000, 1) == b""


def test_deleting_is_final_and_may_be_repeated(store: Store) -> None:
    store.put_new("a/b", b"1")
    store.delete("a/b")
    store.delete("a/b")
    store.delete("never/was")
    assert store.list("") == []
    store.put_new("a/b", b"2")
    assert store.get("a/b").data == b"2"


def test_a_listing_shows_what_is_below_a_folder(store: Store) -> None:
    etags = {
        key: store.put_new(key, key.encode())
        for key in ("e/b.json", "e/a.json", "e/a/state.json", "e/a/history/1.json", "eh/x", "z")
    }
    below = ["e/a.json", "e/a/history/1.json", "e/a/state.json", "e/b.json"]
    assert [entry.key for entry in store.list("e/")] == below
    assert [entry.key for entry in store.list("e")] == below
    assert [entry.key for entry in store.list("e", recursive=False)] == ["e/a.json", "e/b.json"]
    assert [entry.key for entry in store.list("", recursive=False)] == ["z"]
    assert {entry.key: entry.etag for entry in store.list("")} == etags
    assert all(entry.bytes == len(entry.key) for entry in store.list(""))
    assert store.list("nowhere/") == []


def test_a_listing_shows_a_change_by_its_etag(store: Store) -> None:
    first = store.put_new("a", b"1")
    assert store.list("")[0].etag == first
    second = store.put_if("a", b"2", first)
    assert store.list("")[0].etag == second


@pytest.mark.slow
def test_a_listing_of_more_than_a_thousand_objects_is_whole(store: Store) -> None:
    for index in range(1100):
        store.put_new(f"p/{index:04d}", b"")
    assert len(store.list("p")) == 1100


def test_odd_names_are_kept(store: Store) -> None:
    for name in ODD_NAMES:
        store.put_new(f"odd/{name}", name.encode())
    assert [entry.key for entry in store.list("odd")] == sorted(
        (f"odd/{name}" for name in ODD_NAMES), key=str.encode
    )
    for name in ODD_NAMES:
        assert store.get(f"odd/{name}").data == name.encode()
        store.delete(f"odd/{name}")
    assert store.list("odd") == []


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\0", "a\nb", "\ud800", "a" * 256]
)
def test_a_key_that_is_none_is_refused(store: Store, key: str) -> None:
    for act in (
        lambda: store.get(key),
        lambda: store.put_new(key, b""),
        lambda: store.put_if(key, b"", "0"),
        lambda: store.delete(key),
        lambda: store.size(key),
        lambda: store.read(key, 0, 1),
    ):
        with pytest.raises(ValueError, match="not a key"):
            act()


def test_a_key_may_be_1024_bytes_long_and_no_longer() -> None:
    assert check_key("/".join(["a" * 127] * 8) + "a")
    with pytest.raises(ValueError, match="not a key"):
        check_key("/".join(["a" * 127] * 8) + "aa")


def test_a_file_comes_back_as_it_was(store: Store, tmp_path: Path) -> None:
    # Three parts of a multipart upload, the last one short.
    check_file_round_trip(store, tmp_path / "file", 24 * MIB - 7)


def test_a_small_file_comes_back_as_it_was(store: Store, tmp_path: Path) -> None:
    for count in (0, 1, 8 * MIB):
        store.delete("blobs/file")
        check_file_round_trip(store, tmp_path / "file", count)


@pytest.mark.parametrize("count", [10, 9 * MIB])
def test_a_file_never_replaces(store: Store, tmp_path: Path, count: int) -> None:
    store.put_new("a", b"first")
    path = tmp_path / "file"
    path.write_bytes(b"x" * count)
    assert store.put_file_new("a", path) is None
    assert store.get("a").data == b"first"


@pytest.mark.parametrize("count", [10, 9 * MIB])
def test_a_file_that_was_created_has_the_etag_that_is_told(
    store: Store, tmp_path: Path, count: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * count)
    etag = store.put_file_new("a", path)
    assert [entry.etag for entry in store.list("")] == [etag]


@pytest.mark.parametrize("count", [10, 9 * MIB])
def test_a_file_replaces_only_the_object_it_was_told_of(
    store: Store, tmp_path: Path, count: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * count)
    with pytest.raises(Conflict):
        store.put_file_if("a", path, "0" * 32)
    assert store.list("") == []
    first = store.put_new("a", b"1")
    second = store.put_file_if("a", path, first)
    assert [entry.etag for entry in store.list("")] == [second]
    assert store.size("a") == count
    path.write_bytes(b"y" * (count + 1))
    with pytest.raises(Conflict, match="a: changed"):
        store.put_file_if("a", path, first)
    assert store.read("a", count - 1, 10) == b"x"
    store.put_file_if("a", path, second)
    assert store.read("a", count - 1, 10) == b"yy"


def test_of_many_creators_exactly_one_wins(url: str, store: Store) -> None:
    outcomes = in_processes(create, url)
    assert sorted(outcomes) == ["lost"] * (PROCESSES - 1) + ["won"]
    assert store.get("race").data.startswith(b"writer ")


def test_concurrent_increments_lose_none(url: str, store: Store) -> None:
    store.put_new("counter", b"0")
    in_processes(increment, url)
    assert store.get("counter").data == str(PROCESSES * INCREMENTS).encode()


def test_a_reader_never_sees_a_part_of_a_write(url: str, store: Store) -> None:
    store.put_new("record", b"0" * 5000)
    with multiprocessing.get_context("spawn").Pool(2) as processes:
        writers = processes.starmap_async(rewrite, [(url, b"1"), (url, b"2")])
        while not writers.ready():
            data = store.get("record").data
            assert data == data[:1] * 5000
        writers.get()


def check_file_round_trip(store: Store, path: Path, count: int) -> None:
    chunk = os.urandom(MIB)
    with open(path, "wb") as file:
        for index in range(count // MIB):
            file.write(chunk[index % 97 :] + chunk[: index % 97])
        file.write(chunk[: count % MIB])
    store.put_file_new("blobs/file", path)
    assert store.size("blobs/file") == count
    found = hashlib.sha256()
    for offset in range(0, count, 8 * MIB):
        found.update(store.read("blobs/file", offset, 8 * MIB))
    with open(path, "rb") as file:
        assert found.digest() == hashlib.file_digest(file, "sha256").digest()


def in_processes(target: Callable[[str, int], str], url: str) -> list[str]:
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as processes:
        return processes.starmap(target, [(url, index) for index in range(PROCESSES)], chunksize=1)


# --- the directory ---


def test_a_directory_is_made_and_says_where_it_is(tmp_path: Path) -> None:
    store = open_store((tmp_path / "new" / "er").as_uri())
    assert store.url == (tmp_path / "new" / "er").as_uri()
    assert (tmp_path / "new" / "er").is_dir()


def test_an_object_is_a_file_of_its_name(tmp_path: Path) -> None:
    DirectoryStore(tmp_path).put_new("endpoints/a.json", b"{}")
    assert (tmp_path / "endpoints" / "a.json").read_bytes() == b"{}"


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.put_new("a", b"1")
    with pytest.raises(Conflict):
        store.put_new("a", b"2")
    assert list((tmp_path / ".tidepool" / "tmp").iterdir()) == []


def test_the_stores_own_folder_is_no_part_of_the_registry(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.put_new("a", b"1")
    assert [entry.key for entry in store.list("")] == ["a"]
    with pytest.raises(ValueError, match="own"):
        store.put_new(".tidepool/x", b"")


def test_a_link_does_not_lead_out_of_the_registry(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_bytes(b"s")
    store = DirectoryStore(tmp_path / "registry")
    (tmp_path / "registry" / "out").symlink_to(tmp_path / "secret")
    (tmp_path / "registry" / "file").symlink_to(tmp_path / "secret" / "key")
    for act in (
        lambda: store.get("out/key"),
        lambda: store.put_new("out/new", b""),
        lambda: store.delete("out/key"),
        lambda: store.get("file"),
    ):
        with pytest.raises(AccessDenied):
            act()
    assert store.list("") == []
    assert [path.name for path in (tmp_path / "secret").iterdir()] == ["key"]


def test_a_directory_holds_no_object_and_folder_of_one_name(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    store.put_new("a/b", b"1")
    for key in ("a", "a/b/c"):
        with pytest.raises(StoreError, match="both"):
            store.put_new(key, b"")
        with pytest.raises(NotFound):
            store.get(key)


def test_a_registry_that_is_not_mounted_is_not_an_empty_one(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path / "registry")
    store.put_new("endpoints/a.json", b"1")
    (tmp_path / "registry").rename(tmp_path / "elsewhere")
    (tmp_path / "registry").mkdir()
    for act in (
        lambda: store.get("endpoints/a.json"),
        lambda: store.list("endpoints"),
        lambda: store.put_new("b", b""),
    ):
        with pytest.raises(StoreUnavailable, match="mounted"):
            act()


def test_a_file_put_there_by_hand_is_noticed_at_once(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    etag = store.put_new("a", b"1")
    (tmp_path / "a").write_bytes(b"2")
    assert store.get_if_changed("a", etag) is not None
    assert store.list("")[0].etag != etag


def test_a_directory_needs_no_boto3(tmp_path: Path) -> None:
    code = (
        "import sys; from registry_sync.open import open_store;"
        f"open_store({str(tmp_path)!r}).list('');"
        "sys.exit('boto3' in sys.modules or 'botocore' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- URLs ---


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://x/y",
        "s3://",
        "s3:///x",
        "s3://b/../x",
        "s3://u:p@b/x",
        "s3://b/x?y",
        "file://host/x",
        "file://",
        "/dev/null/x",
    ],
)
def test_what_is_no_registry_is_refused(url: str) -> None:
    with pytest.raises(BadStore):
        open_store(url)
