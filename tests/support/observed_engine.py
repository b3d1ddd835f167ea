"""Test engines that write down what they do, for tests that look at them from another process.

The artifact's file `diary.txt` holds the path of the file to write to: one line per happening.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pool.engines.base import EngineError, Tensors
from registry_sync.documents import Manifest
from tests.support.counting_engine import MAGIC_VALUE, TestSession, _TestEngine

DIARY = "diary.txt"
BROKEN, STUCK = ".broken", ".stuck"  # a file of the diary's name and this ending lets runs …
STUCK_S = 2.0
LOAD_S = "load_s.txt"  # a file that says how long a load takes; at once if there is none


class Diary:
    """The lines that an engine has written, read by a test."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines()

    def count(self, word: str) -> int:
        return sum(line.split()[0] == word for line in self.lines())


@dataclass
class _ObservedSession(TestSession):
    diary: Path | None = None

    def note(self, line: str) -> None:
        assert self.diary is not None
        with self.diary.open("a") as file:
            file.write(f"{line}\n")


class ObservedSession(_ObservedSession):
    """Gives its inputs back after `delay_ms`, if it has such an input; fails on `MAGIC_VALUE`."""

    def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
        """Note the rows of the run."""
        first = next(iter(tensors.values()))
        self.note(f"run {len(first)}")
        assert self.diary is not None
        if self.diary.with_suffix(BROKEN).exists():
            raise EngineError("it was told to fail")
        if self.diary.with_suffix(STUCK).exists():
            time.sleep(STUCK_S)
        if "delay_ms" in tensors:
            time.sleep(float(np.max(tensors["delay_ms"])) / 1000)
        if np.any(first == MAGIC_VALUE):
            raise EngineError(f"{MAGIC_VALUE} is more than this model can bear")
        if np.any(first == -MAGIC_VALUE):
            raise ValueError("a bug of the model's own")
        return super().infer(tensors, outputs)


class ObservedCounting(_ObservedSession):
    """Streams 0 … n-1, `delay_ms` apart, each `width` times; fails instead of giving `fail`."""

    def __post_init__(self) -> None:
        """It streams."""
        self.streams = True

    def stream(self, tensors: Tensors) -> Iterator[Tensors]:
        """Note every value, and how it ends."""
        n, delay_ms, fail_at, width = (
            int(tensors[name].ravel()[0]) for name in ("n", "delay_ms", "fail", "width")
        )
        try:
            for value in range(n):
                if delay_ms:
                    time.sleep(delay_ms / 1000)
                if value == fail_at:
                    raise EngineError("the model lost its thread")
                self.note(f"value {value}")
                yield {"value": np.full(width, value, np.int64)}
        except GeneratorExit:
            self.note(f"stopped {time.monotonic()}")
            raise
        self.note("end")


class ObservedEngine(_TestEngine):
    """Format "observed"."""

    name = "observed"
    formats = frozenset({"observed"})
    session: type[_ObservedSession] = ObservedSession

    def load(self, folder: Path, manifest: Manifest, threads: int) -> _ObservedSession:
        """Make a session that writes where the artifact says."""
        if (folder / LOAD_S).exists():
            time.sleep(float((folder / LOAD_S).read_text()))
        return self.session(
            manifest.inputs,
            manifest.outputs,
            batches=manifest.rows_max > 1,
            diary=Path((folder / DIARY).read_text()),
        )


class ObservedCountingEngine(ObservedEngine):
    """Format "observed-counter": inputs `n`, `delay_ms`, `fail` and `width`, INT64 [1] each."""

    name = "observed-counter"
    formats = frozenset({"observed-counter"})
    session = ObservedCounting
