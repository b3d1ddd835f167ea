"""Remembers whose copy was running when this worker died, so that no other process dies of it.

    DATA/loading/<worker>/<incarnation>.copy   "model/version", or nothing; locked by its process

A candidate may crash the process on some input, or hang until somebody ends it.  Callers are sent
elsewhere then, but a sample is not owed to anybody: after the second time that is over.  The first
may have been a process that was killed for another reason.  What is noted lies in memory that the
file keeps, so that noting it costs nothing and survives the process; not the machine.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections import Counter
from pathlib import Path
from typing import Final

import structlog

Ref = tuple[str, str]  # model, version

DEATHS_MAX: Final = 2  # of processes of one worker, by the copies of one candidate
NOTE_BYTES: Final = 512  # names are far shorter
DIED: Final = "a worker died twice while it was running a copy of a call"

_log = structlog.get_logger()


class CopyGuard:
    """Watches over the copies that one worker process runs.

    Without a folder that can be written nothing is remembered, and everything may be run.

    Args:
        folder: of this worker, the same for every process of it.
        incarnation: of this process.
    """

    def __init__(self, folder: Path, incarnation: str) -> None:
        # The whole mutable state: what has killed too many processes of this worker, and the note.
        self.deadly: frozenset[Ref] = frozenset()
        self._note: mmap.mmap | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            deaths = Counter(_left_behind(folder))
            self.deadly = frozenset(ref for ref in deaths if deaths[ref] >= DEATHS_MAX)
            self._note = _create(folder / f"{incarnation}.copy")
        except OSError as error:
            _log.warning("copies_not_guarded", error=error.strerror or str(error))
        for model, version in self.deadly:
            _log.error("copies_are_deadly", model=model, version=version)

    def begin(self, ref: Ref) -> None:
        """Note that a copy is about to run."""
        if self._note is not None:
            text = "/".join(ref).encode() + b"\n"
            self._note[: len(text)] = text

    def end(self) -> None:
        """Take note that nobody has died of it."""
        if self._note is not None:
            self._note[:1] = b"\n"

    def blame(self) -> None:
        """Let what is noted stand: this process is about to end because of it."""
        self._note = None


def _create(path: Path) -> mmap.mmap:
    # Locked until the process ends, however it does.
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.ftruncate(fd, NOTE_BYTES)
    return mmap.mmap(fd, NOTE_BYTES)


def _left_behind(folder: Path) -> list[Ref]:
    """Return what processes have died of; the files of the others are removed."""
    found: list[Ref] = []
    for path in sorted(folder.glob("*.copy")):
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                line = file.read(NOTE_BYTES).partition(b"\n")[0].strip(b"\0")
        except OSError:  # its process lives
            continue
        model, _, version = line.decode(errors="replace").partition("/")
        if model and version:
            found.append((model, version))
        else:
            path.unlink(missing_ok=True)
    return found
