"""How a serving process collects garbage and gives memory back, and what Linux says of memory."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

# Python's default looks at the young objects after every 700 allocations, which is every ~20
# requests, and then walks the many objects that a full cache holds: 8 % of an edge's CPU time.
# Requests leave no reference cycles on their usual way, so looking rarely costs no memory.
YOUNG_OBJECTS_MAX = 50_000
MIDDLE_ROUNDS = 50
OLD_ROUNDS = 100

# More than almost any call's tensors, for which to be mapped anew would cost time.
MAPPED_BYTES_MIN = 8 << 20
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def calm_collector() -> None:
    """Let the collector leave alone what start-up made, and look at the rest less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_MAX, MIDDLE_ROUNDS, OLD_ROUNDS)


def map_large_blocks() -> None:
    """Let large blocks go back to the system when they are freed; before there are threads.

    glibc raises its bound with every large block that is freed, up to 32 MiB: weights then lie
    where a thread's smaller blocks do, and what is free at the end of that place is kept, up to
    60 MiB a thread, which `give_back` cannot reach.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, MAPPED_BYTES_MIN)
        set_option(_M_TRIM_THRESHOLD, MAPPED_BYTES_MIN // 4)


def give_back() -> None:
    """Give freed memory back to the system, where the C library has a way to say so.

    glibc keeps what a thread has freed for that thread: 100 MB after one large body.  Takes a few
    milliseconds, during which other threads that allocate may wait.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def proc_bytes(path: Path, name: str) -> int:
    """Return a figure that a file of /proc gives in kB, in bytes; 0 where it does not say.

    >>> proc_bytes(Path("/proc/meminfo"), "MemTotal:") > 0
    True
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in path.read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) << 10
    return 0
