"""What server processes cost: CPU time, memory, and which processes belong together.

CPU time is read from each process's own CPU clock.  Of the ways there are, it is the
only one that is both exact and whole: /proc/PID/stat is whole but counts in ticks of
10 ms, so two seconds of a server at 5 % are known to a fifth; the schedstat files
count nanoseconds but of live threads only, and a thread that ended takes its share
with it.  Linux only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

PROC = Path("/proc")


class ProcessGone(Exception):
    """A server process ended while it was measured: the sample means nothing."""


def cpu_ns(pid: int) -> int:
    """Return the CPU time that a process has used, ended threads included.

    Raises:
        ProcessGone: there is no such process.

    Source:
        clock_getcpuclockid(3); the clock id of a process is ``~pid << 3 | CPUCLOCK_SCHED``.
    """
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)
    except OSError:
        raise ProcessGone(f"process {pid} is gone") from None


def read(pids: Iterable[int]) -> dict[int, int]:
    """Read the CPU clocks of several processes, in nanoseconds."""
    return {pid: cpu_ns(pid) for pid in pids}


def used_ns(before: Mapping[int, int], after: Mapping[int, int]) -> int:
    """Return what was used between two readings; a process that is new counts in full.

    Raises:
        ProcessGone: a process of the first reading is missing in the second.
    """
    gone = before.keys() - after.keys()
    if gone:
        raise ProcessGone(f"processes {sorted(gone)} ended during the measurement")
    return sum(ns - before.get(pid, 0) for pid, ns in after.items())


def tree(root: int) -> list[int]:
    """Return a process and all that descend from it, the root first."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The second field is the name in brackets, which may hold blanks and brackets.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(sorted(children.get(pid, ())))
    return found


def pss_bytes(pids: Iterable[int]) -> int:
    """Return the memory of several processes; a page shared by n of them counts 1/n to each."""
    total = 0
    for pid in pids:
        try:
            rollup = (PROC / str(pid) / "smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            raise ProcessGone(f"process {pid} is gone") from None
        total += sum(
            int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Pss:")
        )
    return total


def machine_busy_ns() -> int:
    """Return the CPU time that the whole machine has spent working, since boot."""
    fields = (PROC / "stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[:7])
    ticks = user + nice + system + irq + softirq
    return ticks * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))
