"""TensorRT behind the plan engine's contract: `tensorrt` 10 and 11, and `tensorrt_rtx`.

Both packages have the same interface under another name.  They differ in where they can build:
`tensorrt` measures on the device that the plan is for; `tensorrt_rtx` compiles for any device class
of its list on any machine, and finishes the kernels when the plan is loaded.

Neither is imported before something is built or loaded: versions come from the packages' metadata.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pool import phases
from pool.engines import device
from pool.engines.base import BuildSpec, Built, CannotBuild, PlanRefused, Probe, Session, reason_of
from pool.engines.targets import Toolkit, installed
from pool.engines.tensorrt_log import Said
from pool.engines.tensorrt_plan import inspected
from pool.engines.tensorrt_profiles import NAMES, OLDEST, RTX, flags_of, graph_of, profiles_of
from pool.engines.torch_lock import TORCH_LOCK
from registry_sync.plans import PlanIdentity


class TensorRtEngine:
    """Builds and loads the plans of one of the two packages."""

    formats = frozenset({"onnx"})
    is_on_request = False

    def __init__(
        self, name: str, device_name: str = "", toolkits: Sequence[Toolkit] | None = None
    ) -> None:
        """Choose the package and the device.

        Args:
            name: one of `NAMES`.
            device_name: where plans are to run, "cuda:1", …; empty: the first GPU.
            toolkits: what is installed; None: found when first needed.
        """
        assert name in NAMES
        self.name = name
        self._device_name = device_name
        self._toolkits = toolkits

    def probe(self) -> Probe:
        """Say what can be run and built here; see `Probe`."""
        toolkit = self._toolkit_of(self.name)
        version = toolkit.version if toolkit else ""
        try:
            found = device.find(self._device_name)
        except device.NoSuchDevice as error:
            return Probe(self.name, False, version, "", str(error))
        unusable = why_unusable(self.name, toolkit)
        reason = unusable or why_not_on(found, toolkit, self._toolkit_of("torch"))
        builds_for: tuple[str, ...] = ()
        if toolkit is not None and not unusable:
            builds_for = toolkit.device_classes or (() if reason else (found.device_class,))
        return Probe(
            self.name,
            available=not reason,
            version=version,
            device=found.name,
            reason=reason,
            device_class=found.device_class,
            driver=found.driver,
            builds_for=builds_for,
        )

    def prepare(self) -> bool:
        """Import what runs plans, and take the GPU's context; see `pool.parking`."""
        probe = self.probe()
        if not probe.available:
            return False
        importlib.import_module(self.name)
        with TORCH_LOCK:
            importlib.import_module("pool.engines.tensorrt_session")
            sessions: Any = importlib.import_module("pool.engines.torch_session")
            sessions.prepare(probe.device)
        return True

    def identity(self, spec: BuildSpec) -> PlanIdentity:
        """Say what the plan depends on; see `PlanEngine.identity`.

        The driver's version matters for `tensorrt` only: what `tensorrt_rtx` builds is made for
        a device class, and is finished by the driver that is there.
        """
        probe = self.probe()
        if not probe.version:
            raise CannotBuild(f"{self.name} is not installed here")
        graph_of(spec)
        assert spec.wish.precision is not None
        return PlanIdentity(
            artifact=spec.manifest.digest,
            engine=self.name,
            runtime=probe.version,
            device=spec.device_class,
            precision=spec.wish.precision,
            driver=0 if self.name == RTX else probe.driver,
            profiles=profiles_of(spec),
            flags=flags_of(spec),
        )

    def build(self, spec: BuildSpec, plan: Path, caches: Path) -> Built:
        """Build for a device class; see `PlanEngine.build`."""
        # Late: it needs onnx, without which plans are loaded.
        tools = importlib.import_module("pool.engines.tensorrt_build")
        identity = self.identity(spec)
        probe = self.probe()
        if spec.device_class not in probe.builds_for:
            known = ", ".join(probe.builds_for) or f"nothing: {probe.reason}"
            raise CannotBuild(
                f"{self.name} {probe.version} builds here for {known}; not for {spec.device_class}"
            )
        timing = None
        if self.name != RTX:  # which compiles without measuring: its timing cache is a no-op
            timing = caches / f"{self.name}-{probe.version}-{spec.device_class}.timing"
        said = Said()
        try:
            trt = importlib.import_module(self.name)
        except (ImportError, OSError) as error:
            raise CannotBuild(f"{self.name} cannot be imported: {reason_of(error)}") from error
        with _on(probe):
            tools.build_plan(trt, spec, identity.profiles, plan, timing, said)
            inspector = b""
            if probe.available and spec.device_class == probe.device_class:
                inspector = inspected(trt, plan)
        return Built(inspector or tools.layers_of(said))

    def load_plan(
        self, spec: BuildSpec, identity: PlanIdentity, plan: Path, caches: Path
    ) -> Session:
        """Make a plan runnable; see `PlanEngine.load_plan`."""
        self._check(identity)
        try:
            phases.enter(phases.IMPORT)
            trt = importlib.import_module(self.name)
            with TORCH_LOCK:  # torch comes with it
                running = importlib.import_module("pool.engines.tensorrt_session")
            phases.enter(phases.DESERIALISE)
        except (ImportError, OSError) as error:
            raise PlanRefused(
                f"{reason_of(error)}: {self.name} runs on torch's streams and memory; install "
                "both with pip install 'tidepool[gpu]'"
            ) from error
        session: Session = running.open_session(
            trt, spec.manifest, identity, plan, self.probe().device, caches
        )
        return session

    def _check(self, identity: PlanIdentity) -> None:
        """Refuse a plan of another engine, version, device or driver before TensorRT sees it."""
        probe = self.probe()
        if identity.engine != self.name:
            raise PlanRefused(f"the plan is one of {identity.engine}, not of {self.name}")
        if identity.runtime != probe.version:
            raise PlanRefused(
                f"the plan is for {self.name} {identity.runtime}, and here is "
                f"{probe.version or 'none'}"
            )
        if probe.driver and identity.device != probe.device_class:
            raise PlanRefused(
                f"the plan is for {identity.device}, and here is {probe.device_class}"
            )
        if identity.driver and identity.driver != probe.driver:
            raise PlanRefused(
                f"the plan is for driver {identity.driver}, and here is {probe.driver or 'none'}"
            )

    def _toolkit_of(self, engine: str) -> Toolkit | None:
        return next((one for one in self._installed if one.engine == engine), None)

    @functools.cached_property
    def _installed(self) -> Sequence[Toolkit]:
        return installed() if self._toolkits is None else self._toolkits


def why_unusable(name: str, toolkit: Toolkit | None) -> str:
    """Say why a package can be used on no device; empty if it can.

    >>> why_unusable("tensorrt", None)
    'tensorrt is not installed'
    """
    if toolkit is None:
        return f"{name} is not installed"
    oldest = OLDEST[name]
    if tuple(int(part) for part in re.findall(r"[0-9]+", toolkit.version)[:2]) < oldest:
        least = ".".join(map(str, oldest))
        return f"{name} {toolkit.version} is too old: install {least} or newer"
    return ""


def why_not_on(found: device.Device, toolkit: Toolkit | None, torch: Toolkit | None) -> str:
    """Say why a package that can be used cannot run plans on a device; empty if it can."""
    assert toolkit is not None
    if found.name == "cpu":
        return device.gpus().reason or "the worker is told to use the CPU"
    if not toolkit.covers(found.device_class):
        return f"{toolkit.engine} {toolkit.version} does not support {found.device_class}"
    if torch is None or not torch.sm_min:
        has = "is not installed" if torch is None else f"{torch.version} is without CUDA"
        return f"torch {has}, on whose streams and memory {toolkit.engine} runs"
    return ""


def _on(probe: Probe) -> contextlib.AbstractContextManager[object]:
    """Make the probe's GPU the current one, on which TensorRT measures, if it can be used."""
    if not probe.available:
        return contextlib.nullcontext()
    with TORCH_LOCK:
        torch: Any = importlib.import_module("torch")
    place: contextlib.AbstractContextManager[object] = torch.cuda.device(probe.device)
    return place
