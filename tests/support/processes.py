"""What tests ask Linux about processes, and `tidepool` commands that are expected to end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    stdout: str
    stderr: str


def tidepool(
    *arguments: str,
    env: Mapping[str, str | None] | None = None,
    stdin: bytes = b"",
    cwd: Path | None = None,
    timeout_s: float = 90.0,
) -> Ended:
    """Run a command to its end; a variable of None in `env` is taken out."""
    done = subprocess.run(
        command(*arguments),
        input=stdin,
        capture_output=True,
        env=environment(env),
        cwd=cwd,
        timeout=timeout_s,
    )
    return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())


def private_text(path: Path, text: str) -> None:
    """Write a file that only its owner can use, as secrets must be."""
    path.touch(mode=0o600)
    path.write_text(text)


def command(*arguments: str) -> Sequence[str]:
    """Return the command line of `tidepool ARGUMENTS`."""
    return [sys.executable, "-m", "infra.cli", *arguments]


def environment(changes: Mapping[str, str | None] | None = None) -> dict[str, str]:
    """Return this process's environment with changes, and without an operator's own key."""
    merged: dict[str, str | None] = {
        **os.environ,
        "TIDEPOOL_API_KEY": None,
        **(changes or {}),
    }
    return {name: value for name, value in merged.items() if value is not None}


def descendants(pid: int) -> list[int]:
    """Return the pids of everything that a process has started, directly or not."""
    found: list[int] = []
    for child in _children(pid):
        found += [child, *descendants(child)]
    return found


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that ended and was not reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found.extend(map(int, (task / "children").read_text().split()))
    except (FileNotFoundError, ProcessLookupError):
        pass  # it has ended
    return found
