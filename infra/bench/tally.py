"""The one line that a load client prints when it is done."""

from __future__ import annotations

import msgspec

MARK = "tidepool-load "


class LoadFailed(Exception):
    """The client could not run or told nothing."""


class Tally(msgspec.Struct, frozen=True):
    """What the client saw; errors by kind."""

    requests: int  # answers received, bad statuses included
    duration_us: int
    connect: int
    read: int
    write: int
    timeout: int
    status: int  # answers of 400 and above
    p50_us: int
    p99_us: int

    @property
    def errors(self) -> int:
        return self.connect + self.read + self.write + self.timeout + self.status


def parse(stdout: str) -> Tally:
    """Read what the client printed last.

    Raises:
        LoadFailed: no line of figures, or no answer counted.
    """
    lines = [line for line in stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        raise LoadFailed(f"the client told no figures: {stdout[-300:]!r}")
    tally = msgspec.json.decode(lines[-1].removeprefix(MARK), type=Tally)
    if not tally.requests or not tally.duration_us:
        raise LoadFailed(f"not one answer: {tally}")
    return tally
