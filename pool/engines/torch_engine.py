"""torch as an engine: archives of `torch.export`, run as they are or compiled by AOTInductor.

Knows what can be done without importing torch, which costs a process two seconds and hundreds of
megabytes: `torch_session` and `torch_compile` are imported when a model is there to load or build.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import shutil
from pathlib import Path
from typing import Any, Final

from pool import phases
from pool.engines import device as devices
from pool.engines.base import (
    BuildSpec,
    Built,
    CannotBuild,
    EngineError,
    PlanRefused,
    Probe,
    Session,
)
from pool.engines.torch_lock import TORCH_LOCK
from registry_sync.documents import Manifest
from registry_sync.plans import GateReport, PlanIdentity

NAME: Final = "torch"
FORMATS: Final = frozenset({"torch-export"})
COMPILERS: Final = ("g++", "clang++")
# Of what is compiled; another number makes other plans.
COMPILE_FLAGS: Final = ("aot_inductor", "weights=artifact")


class TorchEngine:
    """Makes sessions that run an archive's graph operator by operator, on a CPU or a GPU.

    Args:
        device: "cpu", "cuda:0", …; empty: the first GPU if torch can use one, else the CPU.
    """

    name = NAME
    formats = FORMATS

    def __init__(self, device: str = "") -> None:
        self._device = device

    def probe(self) -> Probe:
        """Say which torch there is and where it runs; see `Engine.probe`."""
        return _probe(self._device, builds=False)

    def prepare(self) -> bool:
        """Import torch, and take the device's context; see `pool.parking`."""
        probe = self.probe()
        if not probe.available:
            return False
        with TORCH_LOCK:
            sessions: Any = importlib.import_module("pool.engines.torch_session")
            sessions.prepare(probe.device)
        return True

    def load(self, folder: Path, manifest: Manifest, threads: int) -> Session:
        """Load `model.pt2` in `folder`; see `Engine.load`."""
        probe = self.probe()
        if not probe.available:
            raise EngineError(probe.reason)
        phases.enter(phases.TURN)
        with TORCH_LOCK:
            phases.enter(phases.IMPORT)
            sessions: Any = importlib.import_module("pool.engines.torch_session")
            phases.enter(phases.DESERIALISE)
            session: Session = sessions.load(folder, manifest, threads, probe.device)
        return session


class TorchCompiledEngine:
    """Makes sessions of what AOTInductor has compiled from an archive for exactly this device."""

    name = NAME
    formats = FORMATS
    is_on_request = True

    def __init__(self, device: str = "", threads: int = 0) -> None:
        self._device = device
        self._threads = threads

    def probe(self) -> Probe:
        """Say what can be run and built here; see `PlanEngine.probe`."""
        return _probe(self._device, builds=True)

    def identity(self, spec: BuildSpec) -> PlanIdentity:
        """Say what the plan of `spec` depends on; see `PlanEngine.identity`.

        The shapes are the export's own, and what it compiles for a GPU asks nothing of a driver.
        """
        version = _version()
        if not version:
            raise CannotBuild(_INSTALL)
        return PlanIdentity(
            artifact=spec.manifest.digest,
            engine=self.name,
            runtime=version,
            device=spec.device_class,
            precision=spec.manifest.precision,  # it computes as the archive says
            flags=COMPILE_FLAGS,
        )

    def build(self, spec: BuildSpec, plan: Path, caches: Path) -> Built:
        """Compile; see `PlanEngine.build`."""
        probe = self.probe()
        if spec.device_class not in probe.builds_for:
            raise CannotBuild(
                f"torch here cannot compile for {spec.device_class}: "
                + (probe.reason or f"{probe.device} is {probe.device_class}")
            )
        with TORCH_LOCK:
            compiler: Any = importlib.import_module("pool.engines.torch_compile")
            built: Built = compiler.build(spec, plan, caches, probe.device)
        return built

    def load_plan(
        self, spec: BuildSpec, identity: PlanIdentity, plan: Path, caches: Path
    ) -> Session:
        """Load what was compiled; see `PlanEngine.load_plan`."""
        probe = self.probe()
        if not probe.available:
            raise PlanRefused(probe.reason)
        if identity.runtime != probe.version:
            raise PlanRefused(f"compiled by torch {identity.runtime}, here is {probe.version}")
        if identity.device != probe.device_class:
            raise PlanRefused(
                f"compiled for {identity.device}, {probe.device} is {probe.device_class}"
            )
        with TORCH_LOCK:
            compiler: Any = importlib.import_module("pool.engines.torch_compile")
            session: Session = compiler.load(spec, plan, caches, probe.device, self._threads)
        return session


_INSTALL: Final = "torch is not installed: pip install 'tidepool[torch]'"


def export_onnx(archive: Path, folder: Path) -> GateReport:
    """Write an archive of `torch.export` as ``model.onnx``; see `onnx_export.export`.

    Raises:
        ValueError: it cannot be exported, or computes something else as ONNX.
    """
    try:
        with TORCH_LOCK:
            exporter: Any = importlib.import_module("pool.engines.onnx_export")
    except ImportError as error:
        raise ValueError(f"{archive.name}: {error}; pip install 'tidepool[torch]'") from None
    report: GateReport = exporter.export(archive, folder)
    return report


def _probe(wanted: str, *, builds: bool) -> Probe:
    version = _version()
    if not version:
        return Probe(NAME, available=False, version="", device=wanted or "cpu", reason=_INSTALL)
    # The wheels of pytorch.org say so in their version; those of PyPI for Linux have CUDA.
    has_cuda = not version.endswith("+cpu")
    try:
        device = devices.find(wanted if wanted or has_cuda else "cpu")
    except devices.NoSuchDevice as error:
        return Probe(NAME, available=False, version=version, device=wanted, reason=str(error))
    if device.name != "cpu" and not has_cuda:
        return Probe(
            NAME,
            available=False,
            version=version,
            device=device.name,
            reason=f"torch {version} is built without CUDA",
            device_class=device.device_class,
            driver=device.driver,
        )
    can_build = builds and any(map(shutil.which, COMPILERS))
    reason = "" if can_build or not builds else "there is no C++ compiler: install g++"
    return Probe(
        NAME,
        available=True,
        version=version,
        device=device.name,
        reason=reason,
        device_class=device.device_class,
        driver=device.driver,
        builds_for=(device.device_class,) if can_build else (),
    )


@functools.cache
def _version() -> str:
    if importlib.util.find_spec("torch") is None:
        return ""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""
