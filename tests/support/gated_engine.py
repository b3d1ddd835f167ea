"""Engines whose loads wait for a gate: a file, named in the artifact, that is to go away."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from registry_sync.documents import Manifest
from tests.support.counting_engine import CountingSession, TestSession, _TestEngine

POLL_S: Final = 0.005


class Gate:
    """The file, as the tests see it; it is open at first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def close(self) -> None:
        """Let loads wait from now on."""
        self.path.touch()

    def open(self) -> None:
        """Let them go on."""
        self.path.unlink(missing_ok=True)


class GatedEngine(_TestEngine):
    """Format "gated": gives its input back once it is loaded."""

    name = "gated"
    formats = frozenset({"gated"})

    def load(self, folder: Path, manifest: Manifest, threads: int) -> TestSession:
        """Wait for the gate."""
        gate = Path((folder / "gate").read_text())
        while gate.exists():
            time.sleep(POLL_S)
        return super().load(folder, manifest, threads)


class GatedCountingEngine(GatedEngine):
    """Format "gated-counter": streams as the `counter` does."""

    name = "gated-counter"
    formats = frozenset({"gated-counter"})
    session = CountingSession
