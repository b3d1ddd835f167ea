"""Remembers what this worker was loading when it died, so that no successor dies of it for ever.

    DATA/loading/<worker>/<incarnation>.journal   one for each process: "+" and "-" a line, locked
    DATA/loading/<worker>/deaths.json             how often what has killed a process

A journal that nobody holds a lock on is of a process that has died; what it was loading is what it
died of, perhaps together with something else that was loaded at the same time.  So whatever is
under suspicion is loaded alone from then on.  Blocks; for threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec
import structlog

from pool.deaths import Deaths, What, after_death, is_suspect, pause_s, refusal
from pool.loaded import CannotLoad
from registry_sync.locks import locked

RECORD: Final = "deaths.json"
JOURNAL_BYTES_MAX: Final = 1 << 20  # of a predecessor's; it is emptied whenever nothing is loading

_log = structlog.get_logger()


class _Row(msgspec.Struct, frozen=True):
    what: What
    deaths: Deaths


_what_of = msgspec.json.Decoder(What)
_rows_of = msgspec.json.Decoder(list[_Row])


class LoadGuard:
    """Watches over the loads of one worker process.

    Without a folder that can be written nothing is remembered, and everything may be loaded.

    Args:
        folder: of this worker, the same for every process of it.
        incarnation: of this process.
    """

    def __init__(
        self, folder: Path, incarnation: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._clock = clock
        # The whole mutable state: what is being loaded, whether somebody does that alone, and who
        # waits to; whether loads are held, and who waits for those under way; the journal's
        # descriptor, -1 without one; and what has killed us.
        self._turn = threading.Condition()
        self._loading: Counter[What] = Counter()
        self._is_alone = False
        self._waits_alone = 0
        self._is_held = False
        self._on_clear: Callable[[], None] | None = None
        self.waits = False  # a load has been held
        self._journal = -1
        self._record: dict[What, Deaths] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._journal = _create_locked(folder / f"{incarnation}.journal")
            # Another process of the same worker, which drains, may be writing.
            with locked(folder):
                self._record = self._learn(_read(folder / RECORD))
        except OSError as error:
            _log.warning("loads_not_guarded", error=error.strerror or str(error))

    def refused(self) -> dict[What, str]:
        """Return what is not to be loaded now, and why."""
        now_s = self._clock()
        with self._turn:
            waits = {
                what: (deaths, pause_s(deaths, now_s)) for what, deaths in self._record.items()
            }
        return {what: refusal(deaths, left_s) for what, (deaths, left_s) in waits.items() if left_s}

    def is_suspect(self, model: str, version: str, engine: str) -> bool:
        """Tell whether the last process that was loading this died of it, perhaps."""
        with self._turn:
            return is_suspect(self._record, What(model, version, engine))

    @contextlib.contextmanager
    def loading(self, model: str, version: str, engine: str) -> Iterator[None]:
        """Keep in mind, while inside, that this is being loaded.

        A process that does not come out again has died of it.  Who comes out, with the engine
        or with an exception, has not.

        Raises:
            CannotLoad: too many processes have not come out again.
        """
        what = What(model, version, engine)
        with self._turn:
            deaths = self._record.get(what)
            left_s = pause_s(deaths, self._clock())
            if deaths is not None and left_s:
                raise CannotLoad(refusal(deaths, left_s))
            self._enter(what, alone=is_suspect(self._record, what))
        try:
            yield
        finally:
            with self._turn:
                self._leave(what)

    def hold(self, on_clear: Callable[[], None]) -> bool:
        """Let no load begin; tell whether none is under way.

        Args:
            on_clear: if there is one, called in some thread when there is none any more.
        """
        with self._turn:
            self._is_held = True
            self._on_clear = on_clear if self._loading else None
            return not self._loading

    def go_on(self) -> None:
        """Let loads begin again."""
        with self._turn:
            self._is_held = self.waits = False
            self._on_clear = None
            self._turn.notify_all()

    def close(self) -> None:
        """Forget what is being loaded: this process ends because it was told to."""
        with self._turn, contextlib.suppress(OSError):
            if self._journal >= 0:
                os.ftruncate(self._journal, 0)

    def _enter(self, what: What, *, alone: bool) -> None:
        self._waits_alone += alone
        while self._is_held or self._is_alone or (self._loading if alone else self._waits_alone):
            self.waits |= self._is_held
            self._turn.wait()
        self._waits_alone -= alone
        self._is_alone = alone
        self._loading[what] += 1
        self._write("+", what)

    def _leave(self, what: What) -> None:
        self._is_alone = False
        self._loading -= Counter([what])
        self._write("-", what)
        if not self._loading and self._journal >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._journal, 0)
        if self._record.pop(what, None) is not None:
            self._forget(what)
        if self._on_clear is not None and not self._loading:
            on_clear, self._on_clear = self._on_clear, None
            on_clear()
        self._turn.notify_all()

    def _write(self, sign: str, what: What) -> None:
        if self._journal < 0:
            return
        try:
            os.write(self._journal, sign.encode() + msgspec.json.encode(what) + b"\n")
        except OSError as error:  # a full disk must not keep anything from being loaded
            _log.warning("load_not_noted", error=error.strerror or str(error))

    def _learn(self, record: dict[What, Deaths]) -> dict[What, Deaths]:
        """Count the deaths of predecessors, and keep that."""
        for journal in sorted(self._folder.glob("*.journal")):
            loading = _left_behind(journal)
            if loading is None:
                continue
            record = after_death(record, loading, self._clock())
            for what in loading:
                _log.error("died_while_loading", what=str(what), deaths=record[what].count)
            _store(self._folder / RECORD, record)
            journal.unlink(missing_ok=True)
        return record

    def _forget(self, what: What) -> None:
        try:
            with locked(self._folder):
                record = _read(self._folder / RECORD)
                record.pop(what, None)
                _store(self._folder / RECORD, record)
        except OSError as error:
            _log.warning("deaths_not_forgotten", error=error.strerror or str(error))


def guard_folder(data: Path, worker: str) -> Path:
    """Return where a worker's guard keeps what it knows."""
    return data / "loading" / quote(worker, safe="")


def _create_locked(path: Path) -> int:
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd


def _left_behind(journal: Path) -> frozenset[What] | None:
    """Return what a process was loading that has ended; None if it lives."""
    try:
        with open(journal, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lines = file.read(JOURNAL_BYTES_MAX).splitlines()
    except OSError:
        return None
    loading: Counter[What] = Counter()
    for line in lines:
        with contextlib.suppress(msgspec.DecodeError):  # cut short, by a full disk
            what = _what_of.decode(line[1:])
            loading[what] += 1 if line[:1] == b"+" else -1
    return frozenset(what for what, count in loading.items() if count > 0)


def _read(path: Path) -> dict[What, Deaths]:
    try:
        rows = _rows_of.decode(path.read_bytes())
    except FileNotFoundError:
        return {}
    except msgspec.DecodeError as error:
        _log.warning("deaths_unreadable", error=str(error))
        return {}
    return {row.what: row.deaths for row in rows}


def _store(path: Path, record: dict[What, Deaths]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.encode([_Row(*row) for row in record.items()]))
    partial.replace(path)
