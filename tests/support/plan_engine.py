"""A small real engine that needs plans: graphs that ONNX Runtime has optimized beforehand.

Named to a worker as "tests.support.plan_engine:OptimizedEngine".  What a build does besides is
told through files in the folder of the environment variable `PLAN_STUDIO`, since it happens in a
process of its own: see `Studio`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
from pathlib import Path

import msgspec
import onnxruntime as ort

from pool.engines import device
from pool.engines.base import BuildSpec, Built, CannotBuild, PlanRefused, Probe, Session
from pool.engines.onnxruntime_engine import OnnxRuntimeSession, session_options
from pool.engines.tensorrt_engine import TensorRtEngine
from registry_sync.plans import PlanIdentity

STUDIO = "PLAN_STUDIO"
PATIENT = "PLAN_PATIENT"  # in the environment: builders give way, as they do elsewhere
IS_BUILDER = getattr(sys.modules["__main__"].__spec__, "name", "") == "pool.builder"
ELSEWHERE = "sm_86"  # a device class for which it builds and that is not here


def take_part() -> None:
    """Let this builder run like everybody else: where tests run, nobody is ever idle."""
    with contextlib.suppress(OSError):
        for thread in map(int, os.listdir("/proc/self/task")):
            os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, thread, 0)


class Studio:
    """A folder by which a test steers builds, and learns of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def env(self) -> dict[str, str]:
        return {STUDIO: str(self.folder)}

    def hold(self, point: str) -> None:
        """Let builds stop at a point, "begun" or "written", until `release`."""
        (self.folder / f"hold-{point}").touch()

    def release(self, point: str) -> None:
        (self.folder / f"hold-{point}").unlink(missing_ok=True)

    def kill(self, times: int) -> None:
        """Let so many builders die of SIGKILL when the plan is half written."""
        (self.folder / "kill").write_text(str(times))

    def limit(self) -> None:
        """Let no builder write more than half a plan, as `ulimit -f` does."""
        (self.folder / "limit").touch()

    def unlimit(self) -> None:
        (self.folder / "limit").unlink()

    def refuse(self) -> None:
        """Let every plan be refused by the device from now on."""
        (self.folder / "refuse").touch()

    def at(self, point: str) -> list[int]:
        """Return the pids of the builders that have come to a point, in order."""
        try:
            return [int(line) for line in (self.folder / point).read_text().split()]
        except FileNotFoundError:
            return []


def _studio() -> Path | None:
    folder = os.environ.get(STUDIO)
    return Path(folder) if folder else None


def _pass(point: str) -> None:
    """Note that this process has come to a point, and wait there if it is held."""
    folder = _studio()
    if folder is None:
        return
    with open(folder / point, "a") as file:
        file.write(f"{os.getpid()}\n")
    while (folder / f"hold-{point}").exists():
        time.sleep(0.01)


def _limit(size: int) -> None:
    folder = _studio()
    if folder is not None and (folder / "limit").exists():
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, most))


def _die_half_way(plan: Path) -> None:
    folder = _studio()
    if folder is None or not (folder / "kill").exists():
        return
    times = int((folder / "kill").read_text())
    if times:
        (folder / "kill").write_text(str(times - 1))
        plan.write_bytes(plan.read_bytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)


class OptimizedEngine:
    """Builds for this CPU and, unseen, for one other device class."""

    def __init__(self) -> None:
        if IS_BUILDER and not os.environ.get(PATIENT):
            take_part()

    name = "optimized"
    formats = frozenset({"onnx"})
    is_on_request = False

    def probe(self) -> Probe:
        cpu = device.cpu()
        builds_for = (cpu.device_class, ELSEWHERE)
        return Probe(self.name, True, ort.__version__, "cpu", "", cpu.device_class, 0, builds_for)

    def identity(self, spec: BuildSpec) -> PlanIdentity:
        if spec.manifest.labels.get("unbuildable"):
            raise CannotBuild("this model says that it cannot be built")
        return PlanIdentity(
            artifact=spec.manifest.digest,
            engine=self.name,
            runtime=ort.__version__,
            device=spec.device_class,
            precision=spec.wish.precision or "fp32",
        )

    def build(self, spec: BuildSpec, plan: Path, caches: Path) -> Built:
        _pass("begun")
        if spec.manifest.labels.get("broken"):
            raise CannotBuild("node 3 (Odd): no importer; node 7 (Odd): no importer")
        optimized = caches / f"{plan.parent.name}.onnx"
        build_plan(spec.folder / spec.manifest.files[0].path, optimized)
        data = optimized.read_bytes()
        _limit(len(data))
        plan.write_bytes(data)
        optimized.unlink()
        _die_half_way(plan)
        _pass("written")
        return Built(b'{"layers": []}')

    def load_plan(
        self, spec: BuildSpec, identity: PlanIdentity, plan: Path, caches: Path
    ) -> Session:
        folder = _studio()
        if folder is not None and (folder / "refuse").exists():
            raise PlanRefused("this device does not like it")
        options = session_options(1)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            session = ort.InferenceSession(
                plan.read_bytes(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            # ONNX Runtime's exceptions have no base class of their own.
            raise PlanRefused(f"ONNX Runtime does not load it: {error}") from error
        return OnnxRuntimeSession(session, spec.manifest)


class HopefulRtx(TensorRtEngine):
    """TensorRT for RTX on a machine that takes itself for one with a GPU.

    All else is real: the plan, and what the runtime says when it is to load it.
    """

    def __init__(self) -> None:
        super().__init__("tensorrt_rtx")
        if IS_BUILDER:
            take_part()

    def probe(self) -> Probe:
        return msgspec.structs.replace(
            super().probe(), available=True, reason="", device="cuda:0", device_class=ELSEWHERE
        )

    def build(self, spec: BuildSpec, plan: Path, caches: Path) -> Built:
        return TensorRtEngine(self.name).build(spec, plan, caches)  # which needs no GPU


def build_plan(graph: Path, plan: Path) -> None:
    """Write the plan of a graph, whatever model it is."""
    options = session_options(1)
    options.optimized_model_filepath = str(plan)
    ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
