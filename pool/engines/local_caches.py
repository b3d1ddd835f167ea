"""Files of this node that make building and loading quicker, and that may be lost at any time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

FILES_MAX: Final = 64  # of a kind (a suffix) in one folder; the oldest go


def caches_of(data: Path) -> Path:
    """Return the node's folder for what makes later builds and loads quicker, making it."""
    folder = data / "store" / "engine-caches"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def read_cache(path: Path, bytes_max: int) -> bytes:
    """Read a file; one that is not there, too large or not to be read is empty."""
    try:
        if path.stat().st_size > bytes_max:
            return b""
        return path.read_bytes()
    except OSError:
        return b""


def write_cache(path: Path, data: Any) -> None:
    """Write a file in one step, and drop the oldest of its kind.

    What cannot be written is done without.

    Args:
        data: bytes, or what has Python's buffer interface.
    """
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(memoryview(data))
        new.replace(path)
    except OSError:
        with suppress(OSError):
            new.unlink(missing_ok=True)
    ages = sorted(_ages(path.parent, path.suffix), reverse=True)
    for _, old in ages[FILES_MAX:]:
        with suppress(OSError):
            old.unlink(missing_ok=True)


def _ages(folder: Path, suffix: str) -> Iterator[tuple[int, Path]]:
    with suppress(OSError):
        for path in folder.glob(f"*{suffix}"):
            with suppress(OSError):
                yield path.stat().st_mtime_ns, path
