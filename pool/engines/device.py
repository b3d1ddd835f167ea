"""Which devices this machine has, as plans name them; loads no framework and touches no GPU.

A GPU's class is its compute capability ("sm_90"), asked of the driver's management library.  A
CPU's class is its set of instructions: whoever compiles for it uses all of them, so that a plan
fits where exactly the same ones are.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import msgspec

CPU: Final = "cpu"

_CPUINFO: Final = Path("/proc/cpuinfo")

# What a compiler may use, of what the kernel lists.  The rest says how the machine is run: bugs,
# mitigations, virtualization, power.
_X86_ISA: Final = re.compile(
    r"sse.*|ssse3|pni|avx.*|amx.*|fma4?|f16c|bmi[12]|abm|lzcnt|popcnt|movbe|aes|vaes|"
    r"v?pclmulqdq|sha_ni|sha512|sm[34]|gfni|adx|cx16|xsave.*|rtm|mmx|3dnow.*|tbm|xop|cmov|"
    r"movdir.*|serialize|clflushopt|clwb|cldemote|rdrnd|rdrand|rdseed|prefetchw?|enqcmd|"
    r"waitpkg|ptwrite|fsgsbase|lahf_lm|hle|wbnoinvd|clzero|sse4a|mwaitx|pku|rdpid"
)
# From the psABI's levels: enough to tell people apart what the digest tells machines.
_X86_LEVELS: Final = (
    ("v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    ("v3", {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}),
    ("v2", {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"}),
)


class NoSuchDevice(ValueError):
    """A device is named that is not there; the text says which are."""


class Device(msgspec.Struct, frozen=True):
    """One device of this machine."""

    name: str  # "cpu", "cuda:0", …
    device_class: str  # "sm_90", "cpu_x86-64-v4_1f0c9a2e", …
    model: str = ""  # what its maker calls it
    driver: int = 0  # major version; 0: none
    memory_bytes: int = 0  # of the device; 0: the machine's


def label_of(device: Device) -> str:
    """Return what a device's time is counted under: what it costs follows from that.

    That is not its class: two GPUs of one class may differ in price by a factor of three.

    >>> label_of(Device("cuda:0", "sm_89", "NVIDIA L40S"))
    'nvidia-l40s'
    """
    if device.name == CPU:
        return CPU
    return re.sub(r"[^a-z0-9]+", "-", device.model.lower()).strip("-") or device.device_class


class Gpus(msgspec.Struct, frozen=True):
    """What the driver says: the GPUs, or why there are none."""

    devices: tuple[Device, ...] = ()
    reason: str = ""  # empty if there are some


def find(name: str = "") -> Device:
    """Return a device by its name.

    Args:
        name: "cpu", "cuda:1", or empty: the first GPU, else the CPU.

    Raises:
        NoSuchDevice: there is none of this name.
    """
    if name == "cpu":
        return cpu()
    found = gpus()
    if not name:
        return found.devices[0] if found.devices else cpu()
    for device in found.devices:
        if name in (device.name, device.name.removesuffix(":0")):
            return device
    there = ", ".join(["cpu", *(device.name for device in found.devices)])
    why = f" ({found.reason})" if found.reason else ""
    raise NoSuchDevice(f'there is no device "{name}" here{why}; there is: {there}')


@functools.cache
def cpu() -> Device:
    """Return this machine's CPU."""
    return Device("cpu", cpu_class(platform.machine(), _flags(_CPUINFO)), platform.machine())


@functools.cache
def gpus() -> Gpus:
    """Return the GPUs in the order of their PCI addresses; asked once in a process.

    CUDA numbers them by speed unless ``CUDA_DEVICE_ORDER=PCI_BUS_ID``, which makes a difference
    only on a machine with different ones; whoever loads a plan compares the class again.
    """
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return Gpus(reason="nvidia-ml-py is not installed: pip install 'tidepool[gpu]'")
    return _ask(nvml)


def cpu_class(machine: str, flags: Iterable[str]) -> str:
    """Name a set of CPU instructions.

    Args:
        machine: as ``uname -m`` says.
        flags: as the kernel lists them; those that no compiler uses do not count.

    >>> cpu_class("x86_64", ["sse4_2", "avx2", "ibrs"]) == cpu_class("x86_64", ["avx2", "sse4_2"])
    True
    """
    found = set(flags)
    level = machine.lower().replace("_", "-")
    if machine == "x86_64":
        found = {flag for flag in found if _X86_ISA.fullmatch(flag)}
        # Each level includes the ones below it.
        missing = [not needed <= found for _, needed in _X86_LEVELS]
        reached = [name for at, (name, _) in enumerate(_X86_LEVELS) if not any(missing[at:])]
        level = f"x86-64-{reached[0]}" if reached else "x86-64"
    digest = hashlib.sha256(" ".join([machine, *sorted(found)]).encode()).hexdigest()
    return f"cpu_{level}_{digest[:8]}"


def _flags(cpuinfo: Path) -> frozenset[str]:
    """Return what all processors have; empty if the kernel does not say."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return frozenset()
    each = [
        frozenset(found[1].split())
        for found in re.finditer(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    ]
    return frozenset.intersection(*each) if each else frozenset()


def _ask(nvml: ModuleType | Any) -> Gpus:
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Gpus(reason=f"no NVIDIA driver: {error}")
    try:
        driver = int(str(nvml.nvmlSystemGetDriverVersion()).partition(".")[0])
        devices = []
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
            devices.append(
                Device(
                    f"cuda:{index}",
                    f"sm_{major}{minor}",
                    str(nvml.nvmlDeviceGetName(handle)),
                    driver,
                    int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
                )
            )
    except (nvml.NVMLError, ValueError) as error:
        return Gpus(reason=f"the NVIDIA driver does not answer: {error}")
    finally:
        nvml.nvmlShutdown()
    return Gpus(tuple(devices), "" if devices else "the NVIDIA driver shows no GPU")
