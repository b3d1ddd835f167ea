"""How much memory a device has, and how much of it is free now.

A GPU is asked of the driver's management library.  A CPU has what the machine has, or what the
control group leaves to this process, if that is less.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from pathlib import Path
from typing import Any, Final

from registry_sync.memory import proc_bytes

PROC: Final = Path("/proc/meminfo")
CGROUP: Final = Path("/sys/fs/cgroup")
# Where each version of control groups says the limit, what is used, and how much of that is
# cached files, which make room by themselves.
CGROUP_FILES: Final = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def total_bytes(device: str) -> int:
    """Return how much memory `device` ("cpu", "cuda:0", …) has; 0: it does not say."""
    if device != "cpu":
        return _of_gpu(device)[0]
    machine = proc_bytes(PROC, "MemTotal:")
    group = _of_group(CGROUP)
    return machine if group is None else min(machine or group[0], group[0])


def available_bytes(device: str) -> int:
    """Return how much of its memory is free now; 0: it does not say."""
    if device != "cpu":
        return _of_gpu(device)[1]
    machine = proc_bytes(PROC, "MemAvailable:")
    group = _of_group(CGROUP)
    return machine if group is None else min(machine or group[1], group[1])


def _of_group(root: Path) -> tuple[int, int] | None:
    """Return limit and free bytes of this process's control group; None where there is no limit."""
    for limit_name, used_name, stat_name, cached_name in CGROUP_FILES:
        with contextlib.suppress(OSError, ValueError):
            limit = int((root / limit_name).read_text())  # "max" is no number
            used = int((root / used_name).read_text())
            stat = dict(line.split() for line in (root / stat_name).read_text().splitlines())
            return limit, max(1, limit - used + int(stat.get(cached_name, 0)))
    return None


@functools.cache
def _nvml() -> Any:
    """Return the library, which stays open: to open it takes longer than to ask."""
    nvml = importlib.import_module("pynvml")
    nvml.nvmlInit()
    return nvml


def _of_gpu(device: str) -> tuple[int, int]:
    try:
        nvml = _nvml()
        index = int(device.partition(":")[2] or 0)
        memory = nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(index))
        return int(memory.total), int(memory.free)
    except Exception:
        # The library's errors have no base class that could be named without it; whatever it is,
        # nobody is refused because a driver does not say how much there is.
        return 0, 0
