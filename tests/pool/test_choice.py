"""Which engines are to run a version, by what is wished and what is there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pool.engines.base import BuildSpec, Built, CannotBuild, EngineError, Probe, Session
from pool.engines.choice import option_for, options, portable, spec_of
from pool.engines.onnxruntime_engine import OnnxRuntimeEngine
from registry_sync.builds import Wanted
from registry_sync.documents import AxisRange, EngineWish
from registry_sync.plans import PlanIdentity
from tests.support.artifacts import manifest_of

MANIFEST = manifest_of({"model.onnx": b"graph"})
FOLDER = Path("/nowhere")
NOTHING = Wanted()


@dataclass
class Planner:
    """Says what it would build, and builds nothing."""

    name: str
    is_on_request: bool = False
    device_class: str = "sm_86"
    builds_for: tuple[str, ...] = ("sm_86",)
    reason: str = ""
    formats: frozenset[str] = field(default_factory=lambda: frozenset({"onnx"}))

    def probe(self) -> Probe:
        available = not self.reason
        device_class = self.device_class if available else ""
        return Probe(
            self.name, available, "1", "cuda:0", self.reason, device_class, 0, self.builds_for
        )

    def identity(self, spec: BuildSpec) -> PlanIdentity:
        if spec.wish.axes:
            raise CannotBuild("an axis has no range")
        return PlanIdentity(
            artifact=spec.manifest.digest,
            engine=self.name,
            runtime="1",
            device=spec.device_class,
            precision=spec.wish.precision or "fp32",
        )

    def build(self, spec: BuildSpec, plan: Path, caches: Path) -> Built:
        raise NotImplementedError

    def load_plan(self, *arguments: Any) -> Session:
        raise NotImplementedError


def chosen(*engines: Planner, wanted: Wanted = NOTHING, **manifest: Any) -> tuple[Any, str]:
    spec = spec_of(replace(MANIFEST, **manifest), FOLDER, wanted, "")
    probes = {engine.name: engine.probe() for engine in engines}
    found, problems = options(engines, probes, spec)
    return [option.engine.name for option in found], problems


def asking(**wish: Any) -> Wanted:
    return Wanted(EngineWish(**wish))


def test_every_engine_that_can_is_an_option_in_order() -> None:
    assert chosen(Planner("tensorrt"), Planner("tensorrt_rtx")) == (
        ["tensorrt", "tensorrt_rtx"],
        "",
    )


def test_named_engine_is_the_only_option() -> None:
    engines = (Planner("tensorrt"), Planner("tensorrt_rtx"))
    assert chosen(*engines, wanted=asking(name="tensorrt_rtx")) == (["tensorrt_rtx"], "")


def test_named_portable_engine_leaves_no_option() -> None:
    assert chosen(Planner("tensorrt"), wanted=asking(name="onnxruntime")) == ([], "")


def test_engine_that_cannot_run_here_is_no_option_and_says_why() -> None:
    assert chosen(Planner("tensorrt", reason="no GPU"), Planner("b")) == (["b"], "tensorrt: no GPU")


def test_engine_that_cannot_build_this_is_no_option_and_says_why() -> None:
    wanted = asking(axes={"x:1": AxisRange(1, 2, 3)})
    assert chosen(Planner("tensorrt"), wanted=wanted) == ([], "tensorrt: an axis has no range")


def test_engine_of_other_formats_is_none() -> None:
    assert chosen(Planner("torch", formats=frozenset({"torch-export"}))) == ([], "")


def test_engine_on_request_is_an_option_only_where_it_is_wished() -> None:
    engine = Planner("torch", is_on_request=True)
    assert chosen(engine) == ([], "")
    assert chosen(engine, wanted=asking(ahead_of_time=True)) == (["torch"], "")
    assert chosen(engine, wanted=asking(ahead_of_time=True, name="b")) == ([], "")


def test_plan_is_for_the_device_that_is_here() -> None:
    spec = spec_of(MANIFEST, FOLDER, Wanted(), "")
    engine = Planner("tensorrt", device_class="sm_90")
    (option,), _ = options([engine], {"tensorrt": engine.probe()}, spec)
    assert option.identity.device == option.spec.device_class == "sm_90"
    assert option.key == option.identity.key


# --- the wish ---


def test_precision_that_nobody_names_is_what_the_version_promises() -> None:
    manifest = replace(MANIFEST, precision="fp16")
    assert spec_of(manifest, FOLDER, NOTHING, "").wish.precision == "fp16"
    assert spec_of(manifest, FOLDER, asking(precision="fp32"), "").wish.precision == "fp32"


@pytest.mark.parametrize(("asked", "found"), [(0, 32), (8, 8), (64, 32)])
def test_batches_are_bound_by_the_endpoints_and_the_manifest(asked: int, found: int) -> None:
    assert spec_of(MANIFEST, FOLDER, Wanted(rows_max=asked), "").rows_max == found


# --- orders to build ---


def ordered(name: str, device_class: str, *engines: Planner) -> Any:
    spec = spec_of(MANIFEST, FOLDER, Wanted(), device_class)
    return option_for(engines, {engine.name: engine.probe() for engine in engines}, spec, name)


def test_order_is_taken_by_the_engine_that_builds_for_that_device() -> None:
    engines = (Planner("a", builds_for=()), Planner("b", builds_for=("sm_120", "sm_75")))
    found = ordered("", "sm_75", *engines)
    assert (found.engine.name, found.identity.device) == ("b", "sm_75")


def test_order_asks_for_an_engine_that_is_built_only_on_request() -> None:
    found = ordered("torch", "sm_86", Planner("torch", is_on_request=True))
    assert found.spec.wish.ahead_of_time


def test_order_for_a_device_that_nothing_builds_for_names_those_that_are() -> None:
    with pytest.raises(CannotBuild, match=r"for sm_90; there is: a for sm_86; b for nothing"):
        ordered("", "sm_90", Planner("a"), Planner("b", builds_for=()))


# --- portable ---


def test_portable_engine_is_the_named_one_else_the_first() -> None:
    class Other(OnnxRuntimeEngine):
        name = "other"

    engines = (OnnxRuntimeEngine(), Other())
    assert portable(engines, "onnx", "other").name == "other"
    assert portable(engines, "onnx", "tensorrt").name == "onnxruntime"


def test_format_that_nothing_runs_is_refused() -> None:
    with pytest.raises(EngineError, match="it runs: onnx"):
        portable((OnnxRuntimeEngine(),), "torch-export", "auto")
