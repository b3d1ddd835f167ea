"""What `guard/sitecustomize.py` caught in the processes that this process's tests started."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "guard"
VARIABLE = "GUARD_FILE"


def begin() -> str:
    """Let it watch the processes to come; returns the folder for their PYTHONPATH."""
    os.environ[VARIABLE] = str(Path(tempfile.gettempdir()) / f"tidepool-guard-{os.getpid()}")
    take()
    return str(FOLDER)


def caught() -> str:
    """Return what was caught; it stays, so that no second try of a test makes it good."""
    path = os.environ.get(VARIABLE, "")
    return Path(path).read_text() if os.path.exists(path) else ""


def take() -> str:
    """Return what was caught, and forget it."""
    found = caught()
    Path(os.environ[VARIABLE]).unlink(missing_ok=True)
    return found
