"""GPU, driver and TensorRT; loads no framework and touches no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from infra.doctor.findings import Finding, ok, warning, wrong
from pool.engines import device
from pool.engines.base import Probe
from pool.engines.device import Gpus
from pool.engines.registry import find_plan_engines

PCI: Final = Path("/sys/bus/pci/devices")
_NVIDIA: Final = "0x10de"
_DISPLAYS: Final = "0x03"  # the PCI class of what can be a GPU
_DRIVER: Final = (
    "install NVIDIA's driver, or on AWS start from the ECS GPU-optimized AMI; in a container: run "
    "it with the NVIDIA runtime (`--gpus all`, on ECS a GPU in resourceRequirements)"
)
_LIBRARY: Final = "pip install 'tidepool[gpu]'"


def examine(wanted: str, pci: Path = PCI) -> list[Finding]:
    """Look at the GPUs.

    Args:
        wanted: the `--device` of the workers: "auto", "cpu" or "cuda:N".
        pci: where the kernel shows what is on the bus.
    """
    if wanted == "cpu":
        return [ok("gpu", "none is wanted: workers serve on the CPU")]
    found = device.gpus()
    findings = gpus(wanted, found, on_bus(pci))
    if found.devices:
        name = found.devices[0].name if wanted == "auto" else wanted
        findings += plan_engines([engine.probe() for engine in find_plan_engines(device=name)])
    return findings


def on_bus(pci: Path) -> int:
    """Return how many of NVIDIA's GPUs are on the bus, with a driver or without."""
    count = 0
    for folder in pci.glob("*"):
        try:
            vendor = (folder / "vendor").read_text().strip()
            kind = (folder / "class").read_text()
        except OSError:
            continue
        count += vendor == _NVIDIA and kind.startswith(_DISPLAYS)
    return count


def gpus(wanted: str, found: Gpus, bus: int) -> list[Finding]:
    """Judge what the driver says, against what is wanted and what is on the bus."""
    findings = [
        ok(
            "gpu",
            f"{one.name}: {one.model} ({one.device_class}), {one.memory_bytes >> 30} GiB, "
            f"driver {one.driver}",
        )
        for one in found.devices
    ]
    names = [one.name for one in found.devices]
    if wanted != "auto" and wanted not in names:
        there = ", ".join(["cpu", *names])
        why = f" ({found.reason})" if found.reason else ""
        do = f"choose among {there}" if names else way_out(found.reason)
        return [*findings, wrong("gpu", f"there is no {wanted}{why}; there is: {there}", do)]
    if bus and not names:
        text = f"{bus} NVIDIA GPU on the bus, and none can be used: {found.reason}"
        return [wrong("gpu", text, way_out(found.reason))]
    if bus > len(names):
        text = f"{bus} NVIDIA GPUs are on the bus, and the driver shows {len(names)}"
        return [*findings, warning("gpu", text, "see `nvidia-smi` and the kernel's log")]
    return findings or [ok("gpu", f"none: workers serve on the CPU ({found.reason})")]


def way_out(reason: str) -> str:
    """Return what to do about why there is no GPU."""
    return _LIBRARY if "nvidia-ml-py" in reason else _DRIVER


def plan_engines(probes: list[Probe]) -> list[Finding]:
    """Judge what runs plans on a GPU: TensorRT is what makes one worth its price."""
    findings = []
    for probe in probes:
        if probe.name == "torch":
            continue
        if probe.available:
            findings.append(ok("tensorrt", f"{probe.name} {probe.version} on {probe.device}"))
        elif probe.version:
            findings.append(
                warning(
                    "tensorrt",
                    f"{probe.name} {probe.version} is installed and runs nothing here: "
                    f"{probe.reason}",
                    "install the release that fits this driver and CUDA, or leave it out",
                )
            )
    return findings or [
        warning(
            "tensorrt",
            "not installed: models run on the GPU through torch only, .onnx files on the CPU",
            _LIBRARY,
        )
    ]
