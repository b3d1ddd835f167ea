"""Bringing files to a node: verified, resumed, once, and never half visible."""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import msgspec
import pytest

from registry_sync.directory import DirectoryStore
from registry_sync.documents import File, write
from registry_sync.local import LocalStore
from registry_sync.names import BadName
from registry_sync.open import open_store
from registry_sync.parts import PART_BYTES
from registry_sync.stores import NotFound, Object, StoreUnavailable
from registry_sync.sync import (
    BadBlob,
    BadManifest,
    DiskFull,
    FetchError,
    Stopped,
    fetch,
    fetch_blob,
    present,
)
from tests.support.artifacts import blob_key, manifest_of, put_artifact

MIB = 1 << 20
BIG = os.urandom(MIB) * 40  # five parts
BIG_AND_EQUAL = bytes(40 * MIB)  # the same one in every process
FILES = {"model.onnx": b"graph", "weights.bin": BIG}


class Watched(DirectoryStore):
    """Counts the bytes read of blobs, waits before each read, fails when told to."""

    def __init__(self, root: Path, pause_s: float = 0.0) -> None:
        super().__init__(root)
        self.pause_s = pause_s
        self.reads: list[tuple[str, int, int]] = []
        self.reading = 0
        self.reading_max = 0
        self.fail_from: int | None = None
        self._count = threading.Lock()

    def read(self, key: str, offset: int, length: int) -> bytes:
        with self._count:
            self.reads.append((key, offset, length))
            self.reading += 1
            self.reading_max = max(self.reading_max, self.reading)
        try:
            time.sleep(self.pause_s if key.startswith("blobs/") else 0.0)
            if self.fail_from is not None and offset >= self.fail_from:
                raise StoreUnavailable(f"{key}: told to fail")
            return super().read(key, offset, length)
        finally:
            with self._count:
                self.reading -= 1

    def bytes_read(self) -> int:
        return sum(length for key, _, length in self.reads if key.startswith("blobs/"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "registry"


@pytest.fixture
def store(root: Path) -> Watched:
    return Watched(root)


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "data")


def blobs(local: LocalStore) -> list[str]:
    return sorted(path.name for path in local.blob_path("0" * 64).parent.iterdir())


def partial_of(local: LocalStore, data: bytes) -> Path:
    blob = local.blob_path(hashlib.sha256(data).hexdigest())
    return blob.with_name(f"{blob.name}.partial")


def test_a_version_is_brought_whole(store: Watched, local: LocalStore) -> None:
    manifest = put_artifact(store, FILES)
    assert present(local, "m", "1") is None
    assert fetch(store, local, "m", "1") == manifest
    assert present(local, "m", "1") == manifest
    for file in manifest.files:
        blob = local.blob_path(file.sha256)
        assert blob.read_bytes() == FILES[file.path]
        assert blob.stat().st_mode & 0o777 == 0o444
    assert blobs(local) == sorted(file.sha256 for file in manifest.files)


def test_a_version_is_brought_from_s3(s3_url: str, local: LocalStore) -> None:
    store = open_store(s3_url)
    with contextlib.closing(store):
        manifest = put_artifact(store, FILES)
        fetch(store, local, "m", "1")
    assert local.has(manifest)


def test_many_small_files_are_brought_side_by_side(root: Path, local: LocalStore) -> None:
    store = Watched(root, pause_s=0.1)
    manifest = put_artifact(store, {f"w/{n}": bytes([n]) * 1000 for n in range(16)})
    fetch(store, local, "m", "1")
    assert local.has(manifest)
    assert store.reading_max > 1
    assert len(store.reads) == 1 + 16  # the manifest, and each blob once


def test_of_many_small_files_the_one_that_fails_is_named(store: Watched, local: LocalStore) -> None:
    manifest = put_artifact(store, {f"w/{n}": bytes([n]) * 1000 for n in range(16)})
    store.delete(blob_key(bytes([7]) * 1000))
    with pytest.raises(NotFound, match=manifest.files[7].sha256):
        fetch(store, local, "m", "1")
    assert present(local, "m", "1") is None


def test_an_empty_file_is_brought(store: Watched, local: LocalStore) -> None:
    manifest = put_artifact(store, {"model.onnx": b"g", "empty": b""})
    fetch(store, local, "m", "1")
    assert local.has(manifest)


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_sizes_around_a_part_are_brought_whole(
    store: Watched, local: LocalStore, extra: int
) -> None:
    data = os.urandom(1009) * (2 * PART_BYTES // 1009 + 1)
    put_artifact(store, {"a": data[: 2 * PART_BYTES + extra]})
    fetch(store, local, "m", "1")
    assert local.blob_path(
        hashlib.sha256(data[: 2 * PART_BYTES + extra]).hexdigest()
    ).stat().st_size == (2 * PART_BYTES + extra)


def test_a_blob_that_is_here_is_not_asked_for_again(store: Watched, local: LocalStore) -> None:
    put_artifact(store, {"a": BIG, "b": BIG})
    fetch(store, local, "m", "1")
    assert store.bytes_read() == len(BIG)
    store.put_new("models/m/2/manifest.json", write(manifest_of({"c": BIG}, version="2")))
    fetch(store, local, "m", "2")
    assert store.bytes_read() == len(BIG)


def test_what_is_here_does_not_need_the_registry(
    store: Watched, local: LocalStore, root: Path
) -> None:
    manifest = put_artifact(store, FILES)
    fetch(store, local, "m", "1")
    root.rename(root.with_name("gone"))
    assert fetch(store, local, "m", "1") == manifest


def test_what_is_not_here_fails_by_the_stores_own_error(store: Watched, local: LocalStore) -> None:
    with pytest.raises(NotFound, match=r"models/m/1/manifest\.json"):
        fetch(store, local, "m", "1")
    put_artifact(store, FILES)
    store.delete(blob_key(BIG))
    with pytest.raises(NotFound, match=blob_key(BIG)):
        fetch(store, local, "m", "1")
    assert present(local, "m", "1") is None


def test_a_lost_blob_is_brought_again(store: Watched, local: LocalStore) -> None:
    manifest = put_artifact(store, FILES)
    fetch(store, local, "m", "1")
    local.blob_path(manifest.files[0].sha256).unlink()
    fetch(store, local, "m", "1")
    assert local.has(manifest)


@pytest.mark.parametrize(("model", "version"), [("../m", "1"), ("m", "../1"), ("M", "1")])
def test_a_bad_name_does_not_reach_the_store(
    store: Watched, local: LocalStore, model: str, version: str
) -> None:
    with pytest.raises(BadName):
        fetch(store, local, model, version)
    assert store.reads == []


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        write(manifest_of(FILES, version="2")),
        write(manifest_of(FILES, model="other")),
        write(msgspec.structs.replace(manifest_of(FILES), schema=99)),
        write(manifest_of({"../../evil": b"x"})),
        write(manifest_of({"/evil": b"x"})),
        b" " * (16 * MIB + 1),
    ],
    ids=["no JSON", "other version", "other model", "too new", "dots", "absolute", "too long"],
)
def test_a_manifest_that_does_not_fit_is_named(
    store: Watched, local: LocalStore, text: bytes
) -> None:
    store.put_new("models/m/1/manifest.json", text)
    with pytest.raises(BadManifest, match=r"models/m/1/manifest\.json"):
        fetch(store, local, "m", "1")
    assert blobs(local) == []


@pytest.mark.rule("F11")
@pytest.mark.parametrize(
    "stored",
    [BIG[:-1] + b"\0", BIG[:-1], BIG + b"\0", b""],
    ids=["last byte", "shorter", "longer", "empty"],
)
def test_other_bytes_than_the_manifests_are_refused(
    store: Watched, local: LocalStore, stored: bytes
) -> None:
    manifest = manifest_of({"a": BIG})
    assert stored != BIG
    store.put_new(blob_key(BIG), stored)
    store.put_new("models/m/1/manifest.json", write(manifest))
    with pytest.raises(BadBlob, match=manifest.files[0].sha256) as refusal:
        fetch(store, local, "m", "1")
    assert not refusal.value.retry
    assert refusal.value.sha256 == manifest.files[0].sha256
    assert blobs(local) == []
    assert present(local, "m", "1") is None


def test_a_blob_that_shrinks_while_it_is_read_is_refused(store: Watched, local: LocalStore) -> None:
    class Shrinking(Watched):
        def size(self, key: str) -> int:
            return len(BIG)

    manifest = manifest_of({"a": BIG})
    store.put_new(blob_key(BIG), BIG[: 12 * MIB])
    with pytest.raises(BadBlob, match="ends at byte"):
        fetch_blob(Shrinking(Path(store.url.removeprefix("file://"))), local, manifest.files[0])


# --- resuming ---


def test_a_failed_download_leaves_a_prefix_and_goes_on_there(
    store: Watched, local: LocalStore
) -> None:
    manifest = put_artifact(store, {"a": BIG})
    store.fail_from = 3 * PART_BYTES
    with pytest.raises(StoreUnavailable):
        fetch(store, local, "m", "1")
    partial = partial_of(local, BIG)
    assert partial.read_bytes() == BIG[: 3 * PART_BYTES]
    assert blobs(local) == [partial.name]
    store.fail_from = None
    store.reads.clear()
    fetch(store, local, "m", "1")
    assert store.bytes_read() == len(BIG) - 3 * PART_BYTES
    assert local.has(manifest)


@pytest.mark.parametrize(
    "left",
    [b"x", b"x" * len(BIG), BIG[: 9 * MIB] + b"x", BIG + b"x", BIG, BIG[:-1]],
    ids=["wrong", "wrong whole", "wrong end", "too long", "whole", "one short"],
)
def test_whatever_was_left_the_blob_comes_out_right(
    store: Watched, local: LocalStore, left: bytes
) -> None:
    manifest = put_artifact(store, {"a": BIG})
    partial_of(local, BIG).write_bytes(left)
    fetch(store, local, "m", "1")
    assert local.blob_path(manifest.files[0].sha256).read_bytes() == BIG
    assert blobs(local) == [manifest.files[0].sha256]


def test_a_link_in_the_partials_place_is_not_followed(
    store: Watched, local: LocalStore, tmp_path: Path
) -> None:
    put_artifact(store, {"a": BIG})
    (tmp_path / "victim").write_bytes(b"precious")
    partial_of(local, BIG).symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic"):
        fetch(store, local, "m", "1")
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_parts_are_read_side_by_side_but_not_without_bound(root: Path, local: LocalStore) -> None:
    store = Watched(root, pause_s=0.02)
    data = bytes(20 * PART_BYTES)
    put_artifact(store, {"a": data})
    fetch(store, local, "m", "1")
    assert 2 <= store.reading_max <= 8


def test_a_stop_is_followed_between_parts(root: Path, local: LocalStore) -> None:
    store = Watched(root, pause_s=0.05)
    manifest = put_artifact(store, {"a": BIG})
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped) as stopped:
        fetch(store, local, "m", "1", stop)
    assert stopped.value.retry
    assert not local.has(manifest)


# --- processes ---


def run(target: object, *arguments: object) -> BaseProcess:
    process = multiprocessing.get_context("spawn").Process(
        target=target,  # type: ignore[arg-type]
        args=arguments,
    )
    process.start()
    return process


def fetch_slowly(root: Path, data: Path, pause_s: float, counts: Path) -> None:
    store = Watched(root, pause_s)
    fetch(store, LocalStore(data), "m", "1")
    (counts / str(os.getpid())).write_text(str(store.bytes_read()))


@contextlib.contextmanager
def fetching(*arguments: object) -> Iterator[BaseProcess]:
    process = run(fetch_slowly, *arguments)
    try:
        yield process
    finally:
        process.kill()
        process.join()
        process.close()


def test_a_process_killed_in_the_middle_leaves_nothing_visible_and_a_good_prefix(
    store: Watched, local: LocalStore, root: Path, tmp_path: Path
) -> None:
    data = os.urandom(MIB) * 200
    manifest = put_artifact(store, {"a": data})
    partial = partial_of(local, data)
    with fetching(root, tmp_path / "data", 0.4, tmp_path) as process:
        wait_for(lambda: partial.exists() and partial.stat().st_size > 0)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    left = partial.read_bytes()
    assert 0 < len(left) < len(data)
    assert data.startswith(left)
    assert present(local, "m", "1") is None
    assert blobs(local) == [partial.name]
    store.reads.clear()
    fetch(store, local, "m", "1")
    assert local.has(manifest)
    assert local.blob_path(manifest.files[0].sha256).read_bytes() == data
    assert store.bytes_read() == len(data) - len(left)


@pytest.mark.rule("F22")
def test_of_many_processes_one_downloads(
    store: Watched, local: LocalStore, root: Path, tmp_path: Path
) -> None:
    manifest = put_artifact(store, FILES)
    counts = tmp_path / "counts"
    counts.mkdir()
    processes = [run(fetch_slowly, root, tmp_path / "data", 0.1, counts) for _ in range(4)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
        process.close()
    read = sum(int(path.read_text()) for path in counts.iterdir())
    assert len(list(counts.iterdir())) == 4
    assert read == sum(len(data) for data in FILES.values())
    assert local.has(manifest)


def test_who_waits_for_a_process_that_is_killed_takes_over(
    store: Watched, local: LocalStore, root: Path, tmp_path: Path
) -> None:
    manifest = put_artifact(store, {"a": BIG})
    partial = partial_of(local, BIG)
    with fetching(root, tmp_path / "data", 30.0, tmp_path) as process:
        wait_for(partial.exists)
        time.sleep(0.1)
        waiter = threading.Thread(target=fetch, args=(store, local, "m", "1"))
        waiter.start()
        waiter.join(0.3)
        assert waiter.is_alive()
        process.kill()
        waiter.join(20.0)
        assert not waiter.is_alive()
    assert local.has(manifest)


# --- a full disk ---


def fetch_with_small_files(root: Path, data: Path) -> None:
    # The kernel refuses to let a file grow, as it does on a full disk or over a quota.
    resource.setrlimit(resource.RLIMIT_FSIZE, (9 * MIB, 9 * MIB))
    with pytest.raises(DiskFull, match=hashlib.sha256(BIG_AND_EQUAL).hexdigest()):
        fetch(DirectoryStore(root), LocalStore(data), "m", "1")
    os._exit(7)


@pytest.mark.rule("F9")
def test_a_write_that_finds_no_room_removes_what_it_wrote(
    store: Watched, local: LocalStore, root: Path, tmp_path: Path
) -> None:
    put_artifact(store, {"a": BIG_AND_EQUAL})
    process = run(fetch_with_small_files, root, tmp_path / "data")
    process.join()
    assert process.exitcode == 7
    process.close()
    assert blobs(local) == []


@pytest.mark.rule("F9")
def test_a_blob_that_cannot_fit_is_not_begun(
    store: Watched, local: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_artifact(store, {"a": BIG})

    class Disk:
        f_bavail = len(BIG) // 4096 - 1
        f_frsize = 4096

    monkeypatch.setattr(os, "statvfs", lambda _path: Disk)
    with pytest.raises(DiskFull):
        fetch(store, local, "m", "1")
    assert store.bytes_read() == 0
    assert blobs(local) == []


def test_every_failure_of_the_store_leaves_a_state_from_which_the_next_try_succeeds(
    root: Path, tmp_path: Path
) -> None:
    manifest = put_artifact(DirectoryStore(root), FILES)

    class Failing(DirectoryStore):
        calls_left = 0

        def spend(self) -> None:
            self.calls_left -= 1
            if self.calls_left < 0:
                raise StoreUnavailable("told to fail")

        def size(self, key: str) -> int:
            self.spend()
            return super().size(key)

        def get(self, key: str) -> Object:
            self.spend()
            return super().get(key)

        def read(self, key: str, offset: int, length: int) -> bytes:
            self.spend()
            return super().read(key, offset, length)

    store = Failing(root)
    for calls in range(100):
        local = LocalStore(tmp_path / f"data{calls}")
        store.calls_left = calls
        try:
            fetch(store, local, "m", "1")
        except StoreUnavailable:
            assert not local.has(manifest)
            store.calls_left = 100
            fetch(store, local, "m", "1")
            assert local.has(manifest)
        else:
            break
    assert calls == 9  # the manifest, two sizes, one part and five


@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_a_256_mib_file_is_put_and_brought(
    request: pytest.FixtureRequest, kind: str, root: Path, local: LocalStore, tmp_path: Path
) -> None:
    url = str(root) if kind == "directory" else request.getfixturevalue("s3_url")
    chunk, digest, path = os.urandom(MIB), hashlib.sha256(), tmp_path / "big"
    with open(path, "wb") as file:
        for index in range(256):
            # No two parts are equal, so that none can stand for another.
            part = chunk[index:] + chunk[:index]
            digest.update(part)
            file.write(part)
    with contextlib.closing(open_store(url)) as store:
        store.put_file_new(f"blobs/sha256/{digest.hexdigest()}", path)
        fetch_blob(store, local, File("big", digest.hexdigest(), 256 * MIB))
    assert local.has_blob(digest.hexdigest(), 256 * MIB)


def test_fetch_errors_say_whether_to_try_again() -> None:
    assert [kind.retry for kind in (FetchError, BadBlob, BadManifest, DiskFull, Stopped)] == [
        False,
        False,
        False,
        True,
        True,
    ]


def wait_for(condition: object, limit_s: float = 20.0) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end_s, "it did not come about"
        time.sleep(0.005)
