"""The log of who got which arm, for those who join it with what became of these people.

One line for a unit, an arm and a segment, from every process that chose it: at least once, so that
its reader keeps one of each.  Where no rollout runs, a revision of the spec is the segment.  A
caller that picked its arm, or that has no unit, has no line.

The request's way takes note of a unit; hashing, rendering and writing are a thread's.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec

from edge.log_writer import LogWriter
from edge.watch import Firsts, UnitHash

FLUSH_S: Final = 0.1
ROWS_MAX: Final = 16_384  # of which nothing is written yet
ROWS_AT_ONCE: Final = 1024
UNIT_BYTES_MAX: Final = 256  # a longer one is hashed at once, and always: it must not lie here


class Exposure(msgspec.Struct, frozen=True, gc=False):
    """What a line says besides the unit."""

    endpoint: str
    revision: int
    rollout: str  # its id; empty: none runs
    segment: int
    variant: str
    model: str
    version: str
    salt: str
    names: Literal["hashed", "plain"]  # how a unit is named


class Line(msgspec.Struct, omit_defaults=True, kw_only=True, gc=False):
    """One line."""

    timestamp: str
    level: str
    tier: str
    pid: int
    event: str
    edge: str
    endpoint: str
    revision: int
    rollout: str = ""
    segment: int | None = None
    variant: str
    model: str
    version: str
    unit: str


Row = tuple[float, Exposure, bytes | str]  # a unit, or its name


class ExposureLog:
    """The log of one edge process.

    Args:
        edge: this process's id.
        writer: where lines go.
    """

    def __init__(self, edge: str, writer: LogWriter) -> None:
        self._edge = edge
        self._writer = writer
        # The whole mutable state: what will be lines.
        self._rows: list[Row] = []

    def note(self, exposure: Exposure, unit: bytes, firsts: Firsts) -> None:
        """Take note of a unit that has got its arm for the first time.

        Args:
            exposure: of the arm.
            unit: who got it.
            firsts: is told to take the unit for new once more, if there is no room for a line.
        """
        if len(self._rows) < ROWS_MAX:
            name = unit if len(unit) <= UNIT_BYTES_MAX else UnitHash(exposure.salt).hex_of(unit)
            self._rows.append((time.time(), exposure, name))
        else:
            firsts.forget(unit)

    def flush(self) -> None:
        """Give what there is to the thread that writes it; what it cannot take waits here."""
        while self._rows:
            rows = self._rows[:ROWS_AT_ONCE]
            if not self._writer.put(functools.partial(render, self._edge, os.getpid(), rows)):
                return
            del self._rows[: len(rows)]

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_S)
            self.flush()


def render(edge: str, pid: int, rows: Sequence[Row]) -> bytes:
    """Return the lines of `rows`, each with its end."""
    return b"".join([msgspec.json.encode(_line(edge, pid, row)) + b"\n" for row in rows])


def _line(edge: str, pid: int, row: Row) -> Line:
    unix_s, of, unit = row
    if isinstance(unit, str):
        name = unit
    elif of.names == "plain":
        name = unit.decode("utf-8", "replace")  # a header may hold bytes that are no text
    else:
        name = UnitHash(of.salt).hex_of(unit)
    return Line(
        timestamp=datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z"),
        level="info",
        tier="edge",
        pid=pid,
        event="exposure",
        edge=edge,
        endpoint=of.endpoint,
        revision=of.revision,
        rollout=of.rollout,
        segment=of.segment if of.rollout else None,
        variant=of.variant,
        model=of.model,
        version=of.version,
        unit=name,
    )
