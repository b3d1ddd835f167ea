"""A store in a directory: for one machine, or a network file system with working flock.

Objects are files named by their keys. Writing is: temporary file, fsync, rename
under a lock, fsync of the folder; so a reader never sees half an object and a
crash loses only what was not yet acknowledged. The two conditional writes hold
between processes by `flock` on one of a fixed set of lock files; readers take
no lock. What is not an object lives in `.tidepool/` below the root.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from registry_sync.stores import (
    AccessDenied,
    BadStore,
    Conflict,
    Entry,
    NotFound,
    Object,
    StoreError,
    StoreUnavailable,
    check_folder,
    check_key,
)

_PRIVATE = ".tidepool"
_LOCKS = 64  # keys share lock files by hash, so that their number stays bounded
# Objects above this are blobs: immutable and never compared-and-swapped, so their etag is taken
# from the inode. Hashing them would make one listing read the whole registry.
_HASHED_BYTES_MAX = 4 << 20
_STAMP_SETTLED_NS = 2_000_000_000  # far above any file system's timestamp granularity
_ETAGS_REMEMBERED_MAX = 10_000
_ABANDONED_S = 24 * 3600.0  # temporary files older than this belong to nobody


class DirectoryStore:
    """Objects as files below `root`, which is made if it does not exist."""

    def __init__(self, root: Path) -> None:
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._root = root.resolve(strict=True)
            self._private = self._root / _PRIVATE
            for folder in (self._private, self._private / "tmp", self._private / "locks"):
                folder.mkdir(exist_ok=True)
            _remove_abandoned(self._private / "tmp")
        except OSError as error:
            raise BadStore(f"{root} cannot be a registry: {error.strerror}") from error
        # The whole mutable state: etags of files seen, by what stat says of them.
        self._etags: dict[tuple[int, ...], str] = {}

    @property
    def url(self) -> str:
        return self._root.as_uri()

    def get(self, key: str) -> Object:
        with self._errors(key), self._open(key) as file:
            data = file.read()
            return Object(data, self._etag(file, data))

    def get_if_changed(self, key: str, etag: str | None) -> Object | None:
        with self._errors(key), self._open(key) as file:
            found = self._etag(file)
            if found == etag:
                return None
            file.seek(0)
            return Object(file.read(), found)

    def put_new(self, key: str, data: bytes) -> str:
        with self._errors(key):
            return self._place(key, lambda file: _write(file, data), _create_only)

    def put_if(self, key: str, data: bytes, etag: str) -> str:
        with self._errors(key):
            return self._place(key, lambda file: _write(file, data), _only_if(etag))

    def put_file_new(self, key: str, path: Path) -> str | None:
        with self._errors(key):
            if self._path(key).is_file():
                return None
        try:
            return self._place_file(key, path, _create_only)
        except Conflict:
            return None

    def put_file_if(self, key: str, path: Path, etag: str) -> str:
        return self._place_file(key, path, _only_if(etag))

    def read(self, key: str, offset: int, length: int) -> bytes:
        assert offset >= 0
        assert length > 0
        with self._errors(key), self._open(key) as file:
            return os.pread(file.fileno(), length, offset)

    def size(self, key: str) -> int:
        with self._errors(key), self._open(key) as file:
            return os.fstat(file.fileno()).st_size

    def list(self, prefix: str, recursive: bool = True) -> list[Entry]:
        folder = check_folder(prefix)
        with self._errors(prefix):
            if not (self._root / folder).is_dir():
                self._require_mounted()
                return []
            keys = sorted(self._keys(folder, recursive), key=str.encode)
        entries = []
        for key in keys:
            # Removed since it was seen: then it is not part of the listing.
            with contextlib.suppress(NotFound), self._errors(key), self._open(key) as file:
                entries.append(Entry(key, self._etag(file), os.fstat(file.fileno()).st_size))
        return entries

    def delete(self, key: str) -> None:
        with contextlib.suppress(NotFound), self._errors(key):
            path = self._path(key)
            with self._lock(key):
                path.unlink()
                _fsync_folder(path.parent)

    def close(self) -> None:
        self._etags.clear()

    def _path(self, key: str) -> Path:
        """Return the file of a key, refusing one that a link leads out of the root."""
        path = self._root / check_key(key)
        if key.split("/", 1)[0] == _PRIVATE:
            raise ValueError(f"{key!r}: {_PRIVATE}/ is the store's own")
        if not path.parent.resolve().is_relative_to(self._root):
            raise AccessDenied(key, "a symbolic link leads out of the registry")
        return path

    def _open(self, key: str) -> BinaryIO:
        # Without O_NONBLOCK a named pipe somebody left here would block the reader for ever.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(self._path(key), flags)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise FileNotFoundError(errno.ENOENT, "not a file", key)
        return os.fdopen(descriptor, "rb")

    def _keys(self, folder: str, recursive: bool) -> Iterator[str]:
        for entry in os.scandir(self._root / folder):
            if entry.is_file(follow_symlinks=False):
                yield folder + entry.name
            elif (
                recursive
                and entry.is_dir(follow_symlinks=False)
                and (folder, entry.name) != ("", _PRIVATE)
            ):
                with contextlib.suppress(FileNotFoundError):
                    yield from self._keys(f"{folder}{entry.name}/", recursive)

    def _place_file(
        self, key: str, path: Path, objection: Callable[[str | None], str | None]
    ) -> str:
        with open(path, "rb") as source, self._errors(key):
            return self._place(
                key, lambda file: shutil.copyfileobj(source, file, 1 << 20), objection
            )

    def _place(
        self,
        key: str,
        fill: Callable[[BinaryIO], object],
        objection: Callable[[str | None], str | None],
    ) -> str:
        """Write a temporary file and make it the object, if `objection` has none.

        Args:
            fill: writes the content.
            objection: told the present etag (None: no object) while the key is
                locked; returns why not, or None to go ahead.
        """
        path = self._path(key)
        self._require_mounted()
        temporary = self._private / "tmp" / uuid.uuid4().hex
        try:
            with open(temporary, "xb+") as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
                with self._lock(key):
                    reason = objection(self._present_etag(key))
                    if reason is not None:
                        raise Conflict(key, reason)
                    _make_folders(path.parent, self._root)
                    if path.is_dir():
                        raise FileExistsError(errno.EEXIST, "a folder", key)
                    os.rename(temporary, path)
                    _fsync_folder(path.parent)
                file.seek(0)
                return self._etag(file)
        finally:
            temporary.unlink(missing_ok=True)

    def _present_etag(self, key: str) -> str | None:
        try:
            with self._open(key) as file:
                return self._etag(file)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _etag(self, file: BinaryIO, data: bytes | None = None) -> str:
        """Return the etag of an open file; `data`, if it was read already, spares reading it."""
        of = os.fstat(file.fileno())
        stamp = (of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns, of.st_ctime_ns)
        if of.st_size > _HASHED_BYTES_MAX:
            return f"{of.st_size:x}-{of.st_ino:x}-{of.st_mtime_ns:x}"
        known = self._etags.get(stamp)
        if known is not None:
            return known
        content = file.read() if data is None else data
        etag = hashlib.blake2b(content, digest_size=16).hexdigest()
        # An inode freed and taken again within one tick of the clock has the same stamp but not
        # the same bytes, so only stamps that lie well back are trusted (as git's index does).
        if time.time_ns() - of.st_ctime_ns > _STAMP_SETTLED_NS:
            if len(self._etags) >= _ETAGS_REMEMBERED_MAX:
                self._etags.clear()
            self._etags[stamp] = etag
        return etag

    @contextlib.contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        """Keep every other writer of the key, in any process, out meanwhile."""
        slot = hashlib.blake2b(key.encode(), digest_size=4).digest()
        path = self._private / "locks" / f"{int.from_bytes(slot) % _LOCKS:02d}"
        # Closing the descriptor lets the lock go, also when the process is killed.
        with open(path, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _require_mounted(self) -> None:
        """Tell an empty registry from a file system that is not mounted (any more)."""
        if not self._private.is_dir():
            raise StoreUnavailable(f"{self.url}: the registry's folder is gone; is it mounted?")

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Turn what the file system says into a `StoreError` that names the key."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR):
                self._require_mounted()
                raise NotFound(key, self.url) from error
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise AccessDenied(key, os.strerror(error.errno)) from error
            if error.errno == errno.ELOOP:
                raise AccessDenied(key, "it is a symbolic link") from error
            if error.errno == errno.EEXIST:
                raise StoreError(
                    f"{key}: a directory cannot hold both this object and a folder of its name"
                ) from error
            raise StoreUnavailable(f"{key}: {error.strerror or error} in {self.url}") from error


def _create_only(found: str | None) -> str | None:
    return None if found is None else "already there"


def _only_if(etag: str) -> Callable[[str | None], str | None]:
    def objection(found: str | None) -> str | None:
        if found == etag:
            return None
        return "changed by somebody else" if found else "gone"

    return objection


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)


def _make_folders(folder: Path, root: Path) -> None:
    """Make the folders down to `folder`, each durable before anything is put in it."""
    if folder == root or folder.is_dir():
        return
    _make_folders(folder.parent, root)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    if not folder.is_dir():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
    _fsync_folder(folder.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(folder: Path) -> None:
    """Remove temporary files whose writer must have died long ago."""
    oldest_s = time.time() - _ABANDONED_S
    for entry in os.scandir(folder):
        with contextlib.suppress(FileNotFoundError):
            if entry.stat().st_mtime < oldest_s:
                os.unlink(entry.path)
