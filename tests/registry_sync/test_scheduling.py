"""Serving processes do not interrupt one another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.processes import environment
from tests.support.stack import Stack

SCRIPT = """
import os, threading
from registry_sync.scheduling import take_turns
print(take_turns())
threads = [threading.Thread(target=lambda: print(os.sched_getscheduler(0))) for _ in range(2)]
for one in threads: one.start(); one.join()
"""


def test_threads_to_come_take_turns_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment({})
    )
    assert done.stdout.split() == ["True", str(os.SCHED_BATCH), str(os.SCHED_BATCH)]


def test_edge_and_worker_take_turns(stack: Stack) -> None:
    pids = stack.pids()
    assert os.sched_getscheduler(pids["worker-0"]) == os.SCHED_BATCH
    threads = Path(f"/proc/{pids['edge-0']}/task").iterdir()
    # Importing numpy starts a thread before; granian's come after.
    found = [os.sched_getscheduler(int(thread.name)) for thread in threads]
    assert found.count(os.SCHED_BATCH) >= len(found) - 1
