"""Small real engines, published through the public extension point, for tests of everything else.

Name one to a worker as "tests.support.counting_engine:CountingEngine", and so on.  Their
artifacts hold no weights: any file will do.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from pool.engines.base import EngineError, Probe, Tensors
from registry_sync.documents import Manifest, TensorSpec

MAGIC_VALUE: Final = 666  # what makes a failing engine fail and a dying one die


@dataclass
class TestSession:
    """A session with nothing behind it; subclasses say what it does."""

    __test__ = False  # no test case, whatever its name

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    memory_bytes: int = 1024
    streams: bool = False
    batches: bool = True
    lanes: int = 1
    batch_rows: list[int] = field(default_factory=list)  # of every `infer`, in order
    is_closed: bool = False

    def __post_init__(self) -> None:
        """For subclasses."""

    def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
        """Give every input back under the outputs' names, in order."""
        self.batch_rows.append(len(next(iter(tensors.values()))))
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, tensors.values(), strict=False))

    def stream(self, tensors: Tensors) -> Iterator[Tensors]:
        """Give the one answer."""
        yield self.infer(tensors)

    def warmup(self) -> None:
        """Nothing is cold."""

    def close(self) -> None:
        """Note it."""
        self.is_closed = True


class _TestEngine:
    name = "test"
    formats: frozenset[str] = frozenset()
    session = TestSession

    def probe(self) -> Probe:
        """It always works."""
        return Probe(self.name, available=True, version="1", device="cpu", reason="")

    def load(self, folder: Path, manifest: Manifest, threads: int) -> TestSession:
        """Make a session with the manifest's signature; the files are not looked at."""
        return self.session(manifest.inputs, manifest.outputs, batches=manifest.rows_max > 1)


class CountingSession(TestSession):
    """Streams `value` 0 … n-1, each `delay_ms` after the last."""

    def __post_init__(self) -> None:
        """Set up what is counted."""
        self.streams = True
        self.stopped_at: int | None = None  # how far a stream had come that was stopped

    def stream(self, tensors: Tensors) -> Iterator[Tensors]:
        """Count."""
        delay_s = int(tensors["delay_ms"].ravel()[0]) / 1000 if "delay_ms" in tensors else 0.0
        value = 0
        try:
            for value in range(int(tensors["n"].ravel()[0])):
                if delay_s:
                    time.sleep(delay_s)
                yield {"value": np.array([value], np.int64)}
        except GeneratorExit:
            self.stopped_at = value
            raise


class CountingEngine(_TestEngine):
    """Format "counter": inputs `n` INT64 [1] and optional `delay_ms` INT64 [1]."""

    name = "counter"
    formats = frozenset({"counter"})
    session = CountingSession


class SleepingSession(TestSession):
    """Gives its input back after so many milliseconds: the largest value of the batch."""

    def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
        """Sleep."""
        time.sleep(float(np.max(next(iter(tensors.values())))) / 1000)
        return super().infer(tensors, outputs)


class SleepingEngine(_TestEngine):
    """Format "sleeper": one input of milliseconds, one output."""

    name = "sleeper"
    formats = frozenset({"sleeper"})
    session = SleepingSession


class FailingSession(TestSession):
    """Gives its input back, and fails when `MAGIC_VALUE` is among it."""

    def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
        """Fail on the magic value."""
        if np.any(next(iter(tensors.values())) == MAGIC_VALUE):
            raise EngineError(f"{MAGIC_VALUE} is more than this model can bear")
        return super().infer(tensors, outputs)


class FailingEngine(_TestEngine):
    """Format "failing"."""

    name = "failing"
    formats = frozenset({"failing"})
    session = FailingSession


class DyingSession(TestSession):
    """Gives its input back, and ends the process when `MAGIC_VALUE` is among it."""

    def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
        """Die of the magic value."""
        if np.any(next(iter(tensors.values())) == MAGIC_VALUE):
            os._exit(9)
        return super().infer(tensors, outputs)


class DyingEngine(_TestEngine):
    """Format "dying"."""

    name = "dying"
    formats = frozenset({"dying"})
    session = DyingSession


class DeadlyEngine(_TestEngine):
    """Format "deadly": a load kills the process while the artifact's `deadly` names a file."""

    name = "deadly"
    formats = frozenset({"deadly"})

    def load(self, folder: Path, manifest: Manifest, threads: int) -> TestSession:
        """Die as of a crash in a library, with other loads under way for a while."""
        if Path((folder / "deadly").read_text()).exists():
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGSEGV)
            time.sleep(60)  # the signal may reach another thread first
        return super().load(folder, manifest, threads)


class UnloadableEngine(_TestEngine):
    """Format "unloadable": every load fails."""

    name = "unloadable"
    formats = frozenset({"unloadable"})

    def load(self, folder: Path, manifest: Manifest, threads: int) -> TestSession:
        """Fail."""
        raise EngineError("this artifact cannot be loaded by anything")
