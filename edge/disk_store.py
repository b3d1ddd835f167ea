"""Frames of answers in one folder of the node, by key, on diskcache; blocking.

The only module that knows diskcache (CVE-2025-69872: it unpickles what it finds).  Its `Disk` is
replaced by one that takes and gives bytes only, and names files itself.  The folder must be ours
alone.  A database that is broken is set aside and a new one made in its place; a full disk gets
the cache's room back.  Several processes and threads share the folder, each with a `DiskStore` of
its own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import re
import secrets
import shutil
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import diskcache
import structlog

T = TypeVar("T")
Kind = Literal["insecure", "busy", "full", "broken", "failed"]

BUSY_S_MAX = 1.0  # waited for another writer; nobody waits for ours
LOCK_S_MAX = 1.0
LOCK_POLL_S = 0.01
FILE_BYTES_MIN = 32 << 10  # larger frames are files of their own
ENTRY_SHARE_MAX = 0.125  # of the bytes, as in memory
EVICTED_TOGETHER = 16  # in one transaction, at whose end the database shrinks
ORPHAN_S_MIN = 60.0  # a younger file's row may be about to be written

_SETTINGS = {
    "statistics": 0,
    "tag_index": 0,
    "eviction_policy": "least-recently-stored",  # reads write nothing
    "cull_limit": 1,  # expired ones, with every write; the rest is done here
    "disk_min_file_size": FILE_BYTES_MIN,
    "sqlite_mmap_size": 0,  # reading a mapped file that was cut short kills the process
    "sqlite_cache_size": 512,  # pages, for each thread
}
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # neither led elsewhere nor held up by a pipe
_FILE_NAME = re.compile(r"[0-9a-f]{2}/[0-9a-f]{30}\.val")
_BROKEN_CODES = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT}

_log = structlog.get_logger()


class DiskFault(Exception):
    """The disk did not do what it was asked; the answer must come from elsewhere."""

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class FrameDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no types
    """How diskcache keeps keys and values: both bytes, never pickled, in files of known names."""

    def put(self, key: object) -> tuple[bytes, bool]:
        """Return a key as it lies in the database."""
        return _bytes_of(key), True

    def get(self, key: object, raw: object) -> bytes:
        """Return the key that lies in the database."""
        if not raw:
            raise DiskFault("broken", "a pickled key")
        return _bytes_of(key)

    def store(
        self, value: object, read: object, key: object = None
    ) -> tuple[int, int, str | None, bytes | None]:
        """Return size, mode, file name and value of a row."""
        frame = _bytes_of(value)
        if len(frame) < self.min_file_size:
            return 0, diskcache.core.MODE_RAW, None, frame
        name, path = self.filename()
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.dirname(path), 0o700)  # only this one: the folder itself must be there
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(frame)
        except OSError:
            self.remove(name)
            raise
        return len(frame), diskcache.core.MODE_BINARY, name, None

    def fetch(self, mode: object, filename: object, value: object, read: object) -> bytes:
        """Return the value of a row."""
        if mode == diskcache.core.MODE_RAW:
            return _bytes_of(value)
        if mode == diskcache.core.MODE_BINARY and not read:
            with open(os.open(self._path(filename), _READ), "rb") as file:
                return file.read()
        raise DiskFault("broken", f"a value of mode {mode}")

    def filename(self, key: object = None, value: object = None) -> tuple[str, str]:
        """Return a new file's name and path."""
        digits = secrets.token_hex(16)
        name = f"{digits[:2]}/{digits[2:]}.val"
        return name, self._path(name)

    def remove(self, file_path: object) -> None:
        """Remove a row's file; one that is gone is no error."""
        with contextlib.suppress(OSError):
            os.remove(self._path(file_path))

    def _path(self, name: object) -> str:
        if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
            raise DiskFault("broken", "a row names a file that is none of ours")
        return os.path.join(self._directory, name)


class DiskStore:
    """One thread's way to the folder."""

    def __init__(self, folder: Path, bytes_max: int) -> None:
        """Open nothing yet; `bytes_max` is for the whole folder."""
        self._folder = folder
        self._bytes_max = bytes_max
        # The whole mutable state: the open database, and which file it is.
        self._cache: diskcache.Cache | None = None
        self._identity: tuple[int, int] | None = None

    def open(self) -> None:
        """Open the database, making it where there is none; raises `DiskFault`."""
        self._do(lambda cache: None)

    def get(self, key: bytes) -> bytes | None:
        """Return the frame of `key`, or None; raises `DiskFault`."""
        _bytes_of(key)
        found: bytes | None = self._do(lambda cache: cache.get(key))
        return found

    def put(self, key: bytes, frame: bytes, keep_s: float) -> bool:
        """Keep a frame for `keep_s` seconds, and evict what is beyond the bound.

        Returns:
            Whether it was kept: one above an eighth of the bound is not.

        Raises:
            DiskFault: it was not kept.
        """
        if len(_bytes_of(frame)) > self._bytes_max * ENTRY_SHARE_MAX:
            return False

        def put(cache: diskcache.Cache) -> None:
            cache.set(_bytes_of(key), frame, expire=keep_s)
            _evict(cache)

        self._do(put)
        return True

    def delete(self, key: bytes) -> None:
        """Remove what is kept of `key`; raises `DiskFault`."""
        self._do(lambda cache: cache.delete(key))

    def held_bytes(self) -> int:
        """Return what the database and its files weigh; raises `DiskFault`."""
        return int(self._do(lambda cache: cache.volume()))

    def sweep(self) -> int:
        """Remove files that no row names, which killed writers leave; returns how many."""

        def sweep(cache: diskcache.Cache) -> int:
            rows = cache._sql("SELECT filename FROM Cache WHERE filename IS NOT NULL").fetchall()
            named = {name for (name,) in rows}
            oldest_s = time.time() - ORPHAN_S_MIN
            count = 0
            for path in self._folder.glob("*/*.val"):
                if str(path.relative_to(self._folder)) in named:
                    continue
                with contextlib.suppress(OSError):
                    if path.stat().st_mtime < oldest_s:
                        path.unlink()
                        count += 1
            return count

        return self._do(sweep)

    def close(self) -> None:
        """Close the database."""
        cache, self._cache = self._cache, None
        if cache is not None:
            with contextlib.suppress(sqlite3.Error):
                cache.close()

    def _do(self, act: Callable[[diskcache.Cache], T]) -> T:
        try:
            return act(self._opened())
        except DiskFault as fault:
            self._recover(fault)
            raise
        except Exception as error:
            # A damaged database makes diskcache raise whatever its rows lead to.
            found = DiskFault(_kind_of(error), f"{type(error).__name__}: {error}")
            self._recover(found)
            raise found from error

    def _opened(self) -> diskcache.Cache:
        if self._cache is not None:
            if self._identity == self._identify():
                return self._cache
            self.close()  # another process has set it aside, or somebody removed it
        with self._lock():
            self._require_own_folder()
            self._identity = self._identify()  # so that what cannot be opened can be set aside
            self._cache = diskcache.Cache(
                str(self._folder),
                timeout=BUSY_S_MAX,
                disk=FrameDisk,
                # What is just being stored comes on top until it is culled.
                size_limit=int(self._bytes_max * (1 - ENTRY_SHARE_MAX)),
                **_SETTINGS,
            )
            self._identity = self._identify()
        return self._cache

    def _identify(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._folder / diskcache.core.DBNAME)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _require_own_folder(self) -> None:
        try:
            self._folder.mkdir(mode=0o700)
        except FileExistsError:
            pass
        found = os.lstat(self._folder)
        if not stat.S_ISDIR(found.st_mode):
            raise DiskFault("insecure", f"{self._folder} is no folder")
        if found.st_uid != os.geteuid():
            raise DiskFault("insecure", f"{self._folder} belongs to user {found.st_uid}")
        if found.st_mode & 0o077:
            mode = stat.S_IMODE(found.st_mode)
            raise DiskFault("insecure", f"{self._folder} is open to others: {mode:o}, not 700")

    def _recover(self, fault: DiskFault) -> None:
        """Do what the next attempt needs."""
        if fault.kind == "busy" and self._cache is not None:
            return
        self.close()
        if fault.kind not in ("broken", "full"):
            return
        identity = self._identity
        with contextlib.suppress(OSError, DiskFault), self._lock():
            self._require_own_folder()
            if self._identify() == identity:  # nobody else has been faster
                self._set_aside(keeps_database=fault.kind == "broken")

    def _set_aside(self, *, keeps_database: bool) -> None:
        aside = self._folder.with_name(f"{self._folder.name}.broken")
        shutil.rmtree(aside, ignore_errors=True)
        self._folder.rename(aside)
        if keeps_database:  # for whoever looks into it; its values are worth nothing without it
            for folder in aside.iterdir():
                if folder.is_dir():
                    shutil.rmtree(folder, ignore_errors=True)
        else:
            shutil.rmtree(aside, ignore_errors=True)
        _log.warning("disk_cache_set_aside", folder=str(self._folder), kept=keeps_database)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """Be the only one who opens or sets aside."""
        path = self._folder.with_name(f"{self._folder.name}.lock")
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            deadline_s = time.monotonic() + LOCK_S_MAX
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline_s:
                        raise DiskFault("busy", f"{path} is held by another process") from None
                    time.sleep(LOCK_POLL_S)
            yield


def _evict(cache: diskcache.Cache) -> None:
    """Remove the oldest until the bound holds.

    Not by `cull`, which removes ten at a time: of large answers that is all of them.
    """
    while cache.volume() > cache.size_limit:
        with cache.transact():
            count = 0
            for key in itertools.islice(cache, EVICTED_TOGETHER):
                cache.delete(key)
                count += 1
                if cache.volume() <= cache.size_limit:
                    break
        if not count:
            break


def _bytes_of(value: Any) -> bytes:
    if type(value) is not bytes:
        raise DiskFault("broken", f"{type(value).__name__} where only bytes are kept")
    return value


def _kind_of(error: BaseException) -> Kind:
    if isinstance(error, diskcache.Timeout):
        # It stands for whatever kept a transaction from beginning.
        error = error.__context__ or error
    if isinstance(error, OSError):
        return "full" if error.errno in _FULL_ERRNOS else "failed"
    if isinstance(error, diskcache.Timeout):
        return "busy"
    if not isinstance(error, sqlite3.Error):
        return "broken"
    code = getattr(error, "sqlite_errorcode", None) or 0
    if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "busy"
    if code & 0xFF == sqlite3.SQLITE_FULL:
        return "full"
    if code & 0xFF in _BROKEN_CODES or code == sqlite3.SQLITE_IOERR_SHORT_READ:
        return "broken"
    return "failed"
