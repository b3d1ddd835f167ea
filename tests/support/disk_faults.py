"""What is done to a folder of answers on disk, and to the disk under it."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_HOLD = """
import signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
signal.pause()
"""


def values(folder: Path) -> list[Path]:
    """Return the files of large answers."""
    return sorted(folder.glob("*/*.val"))


def flip(path: Path, count: int = 1, seed: int = 1, begin: int = 0) -> None:
    """Flip a bit of `count` random bytes of a file."""
    chance = random.Random(seed)
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        for _ in range(count):
            at = chance.randrange(begin, size)
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ (1 << chance.randrange(8))]))


def flip_rows(folder: Path) -> int:
    """Flip a bit of every small answer, in the database itself; returns how many there were."""
    with contextlib.closing(sqlite3.connect(folder / "cache.db", timeout=10)) as connection:
        rows = connection.execute("SELECT rowid, value FROM Cache WHERE value IS NOT NULL")
        found = rows.fetchall()
        for number, (rowid, value) in enumerate(found):
            damaged = bytearray(value)
            damaged[number * 7919 % len(damaged)] ^= 1 << number % 8
            connection.execute(
                "UPDATE Cache SET value = ? WHERE rowid = ?", (bytes(damaged), rowid)
            )
        connection.commit()
    return len(found)


@contextlib.contextmanager
def held_transaction(folder: Path) -> Iterator[None]:
    """A process that began to write and was stopped in the middle of it."""
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(folder / "cache.db")], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.send_signal(signal.SIGSTOP)
        yield
    finally:
        holder.kill()
        holder.communicate()


@contextlib.contextmanager
def small_disk(path: Path, options: str = "size=8m") -> Iterator[None]:
    """A file system of its own at `path`, which needs the right to mount one."""
    path.mkdir(parents=True, exist_ok=True)
    mode = "mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{options},{mode}", "none", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@contextlib.contextmanager
def filled(path: Path) -> Iterator[None]:
    """Take all the room that is left on the disk of `path`; there may be none for a name even."""
    filler = path / "filler"
    for piece in (64 << 10, 512):
        with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(piece))
    try:
        yield
    finally:
        filler.unlink(missing_ok=True)
