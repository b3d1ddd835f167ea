"""Bringing a model's files from the registry to a node, verified, once, and resumed.

A blob is downloaded into `<hex>.partial`, which is always a prefix of it,
hashed on the way, and renamed only when size and digest fit. The partial file
is also the lock: whoever holds its flock downloads, everybody else of the node
waits for them. A process that dies lets the lock go and leaves the prefix.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from registry_sync.documents import BadDocument, File, Manifest, read_manifest
from registry_sync.local import LocalStore
from registry_sync.names import check_name, check_version
from registry_sync.parts import (
    FULL,
    PART_BYTES,
    PARTS_AHEAD_MAX,
    read_in_order,
    require_room,
    write_all,
)
from registry_sync.stores import Store

MANIFEST_BYTES_MAX = 16 << 20
_HASH_BYTES = 1 << 20


class FetchError(Exception):
    """A model could not be brought here, and the store is not to blame for not answering."""

    retry = False  # whether the same call may succeed later with nothing changed in the registry


class BadBlob(FetchError):
    """The registry's bytes are not those of the manifest."""

    def __init__(self, sha256: str, reason: str) -> None:
        super().__init__(f"blob {sha256}: {reason}")
        self.sha256 = sha256


class BadManifest(FetchError):
    """The registry's manifest cannot be used."""


class DiskFull(FetchError):
    """The node has no room for what was asked; what had been written of it was removed."""

    retry = True

    def __init__(self, what: str, size: int, folder: Path) -> None:
        super().__init__(f"{what}: no room for its {size} bytes in {folder}; free some")


class Stopped(FetchError):
    """The caller's `stop` was set; what had been written is kept for the next time."""

    retry = True


def present(local: LocalStore, model: str, version: str) -> Manifest | None:
    """Return the manifest if it and all its files are already on this node."""
    manifest = local.load_manifest(check_name("model", model), check_version(version))
    return manifest if manifest is not None and local.has(manifest) else None


def fetch(
    store: Store,
    local: LocalStore,
    model: str,
    version: str,
    stop: threading.Event | None = None,
    on_manifest: Callable[[Manifest], object] = lambda manifest: None,
) -> Manifest:
    """Bring a version's manifest and files to this node and return the manifest.

    What is here already is not asked for again, so a broken registry does not
    touch it. Blocks; several threads and processes may call it for the same
    version, and one of them downloads.

    Args:
        stop: set by another thread to have it given up between two parts.
        on_manifest: called before the files are fetched; not if they are here.

    Raises:
        BadName: `model` or `version` cannot be names.
        BadManifest, BadBlob: the registry's content is at fault; or the manifest is not one
            that `local` trusts.
        DiskFull: this node is.
        Stopped: `stop` was set.
        StoreError: the store is, see there; `NotFound` if it lacks the version
            or one of its blobs.
    """
    manifest = present(local, model, version)
    if manifest is not None:
        return manifest
    key = f"models/{model}/{version}/manifest.json"
    data = store.read(key, 0, MANIFEST_BYTES_MAX + 1)
    if len(data) > MANIFEST_BYTES_MAX:
        raise BadManifest(f"{key}: longer than {MANIFEST_BYTES_MAX} bytes")
    try:
        local.trust.check(data)
        manifest = read_manifest(data)
    except BadDocument as error:
        raise BadManifest(f"{key}: {error}") from error
    if (manifest.model, manifest.version) != (model, version):
        raise BadManifest(f"{key}: is about {manifest.model} {manifest.version}")
    on_manifest(manifest)
    _fetch_files(store, local, manifest.files, stop)
    # Last, so that a kept manifest tells of a fetch that was once complete.
    local.save_manifest(manifest, data)
    return manifest


def _fetch_files(
    store: Store, local: LocalStore, files: Sequence[File], stop: threading.Event | None
) -> None:
    """Bring files: small ones side by side, each large one by parts that are."""
    small = [file for file in files if file.bytes <= PART_BYTES]
    threads = ThreadPoolExecutor(min(PARTS_AHEAD_MAX, max(1, len(small))), "file")
    try:
        for _ in threads.map(lambda file: fetch_blob(store, local, file, stop), small):
            pass
    finally:
        # Not waited for, as in `read_in_order`.
        threads.shutdown(wait=False, cancel_futures=True)
    for file in files:
        if file.bytes > PART_BYTES:
            fetch_blob(store, local, file, stop)


def golden_path(local: LocalStore, manifest: Manifest) -> Path | None:
    """Return the file with a version's recorded inputs and outputs; None if it is not here."""
    if manifest.golden is None:
        return None
    path = local.blob_path(manifest.golden)
    return path if path.is_file() else None


def fetch_golden(
    store: Store, local: LocalStore, manifest: Manifest, stop: threading.Event | None = None
) -> None:
    """Bring a version's recorded inputs and outputs to this node, if it has any.

    They are no part of the artifact: nobody needs them to serve.  Raises as `fetch` does.
    """
    if manifest.golden is not None:
        size = store.size(f"blobs/sha256/{manifest.golden}")
        fetch_blob(store, local, File("golden.npz", manifest.golden, size), stop)


def fetch_blob(
    store: Store, local: LocalStore, file: File, stop: threading.Event | None = None
) -> None:
    """Bring one file's blob to this node; raises as `fetch` does."""
    stop = threading.Event() if stop is None else stop
    blob = local.blob_path(file.sha256)
    partial = blob.with_name(f"{blob.name}.partial")
    while not local.has_blob(file.sha256, file.bytes):
        with _locked(partial) as descriptor:
            # While this process waited, the file that it opened may have become the blob.
            if not _is_still(descriptor, partial):
                continue
            try:
                _complete(store, file, descriptor, partial, stop)
                os.rename(partial, blob)
                _fsync_folder(blob.parent)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                partial.unlink(missing_ok=True)
                raise DiskFull(f"blob {file.sha256}", file.bytes, blob.parent) from error


def _complete(
    store: Store, file: File, descriptor: int, partial: Path, stop: threading.Event
) -> None:
    """Make the open partial file the whole blob, verified and durable."""
    key = f"blobs/sha256/{file.sha256}"
    size = store.size(key)
    if size != file.bytes:
        partial.unlink()
        raise BadBlob(file.sha256, f"{size} bytes in {store.url}, the manifest says {file.bytes}")
    digest = hashlib.sha256()
    begun = _hash_prefix(descriptor, file.bytes, digest)
    require_room(partial.parent, file.bytes - begun)
    _append(store, key, descriptor, begun, file, digest, stop)
    if begun and digest.hexdigest() != file.sha256:
        # A prefix left by a machine that lost power may be anything: it is believed only once.
        os.ftruncate(descriptor, 0)
        digest = hashlib.sha256()
        _append(store, key, descriptor, 0, file, digest, stop)
    if digest.hexdigest() != file.sha256:
        partial.unlink()
        raise BadBlob(file.sha256, f"its bytes in {store.url} have the sha256 {digest.hexdigest()}")
    os.fchmod(descriptor, 0o444)
    os.fsync(descriptor)


def _append(
    store: Store,
    key: str,
    descriptor: int,
    begun: int,
    file: File,
    digest: hashlib._Hash,
    stop: threading.Event,
) -> None:
    """Download from byte `begun` to the end: parts in parallel, written and hashed in order."""
    with contextlib.closing(read_in_order(store, key, begun, file.bytes)) as parts:
        for offset, length, data in parts:
            if stop.is_set():
                raise Stopped(f"blob {file.sha256}: stopped at {offset} of {file.bytes} bytes")
            if len(data) != length:
                raise BadBlob(file.sha256, f"ends at byte {offset + len(data)} of {file.bytes}")
            write_all(descriptor, data, offset)
            digest.update(data)


def _hash_prefix(descriptor: int, size: int, digest: hashlib._Hash) -> int:
    """Hash what an earlier download left and return its length; too much counts as nothing."""
    begun = os.fstat(descriptor).st_size
    if begun > size:
        os.ftruncate(descriptor, 0)
        return 0
    for offset in range(0, begun, _HASH_BYTES):
        digest.update(os.pread(descriptor, min(_HASH_BYTES, begun - offset), offset))
    return begun


@contextlib.contextmanager
def _locked(partial: Path) -> Iterator[int]:
    """Open (or make) the partial file and hold its lock meanwhile."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(partial, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _is_still(descriptor: int, partial: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), partial.lstat())
    except FileNotFoundError:
        return False


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
