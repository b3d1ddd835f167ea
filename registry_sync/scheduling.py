"""How a serving process takes its turns on the cores."""

from __future__ import annotations

import os


def take_turns() -> bool:
    """Let this process's threads, those to come too, not interrupt others the moment they wake.

    By default Linux lets a thread that wakes take the core from the one that runs.  Edge and
    worker wake one another several times for each call, so each is interrupted in the middle of a
    burst of them.  SCHED_BATCH takes that away and nothing else: turns are as fair as before, and
    where a core is free nothing changes.

    Returns:
        Whether the system could be told; elsewhere it goes as before.

    Source:
        sched(7), SCHED_BATCH.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except (AttributeError, OSError):  # another system, or a sandbox that forbids it
        return False
    return True
