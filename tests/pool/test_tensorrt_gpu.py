"""What TensorRT does on a GPU beyond the sessions' contract; run by ``pytest -m gpu``.

Not seen running yet: no GPU was there on which an installed TensorRT runs.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from pool.engines.base import BuildSpec, EngineError, PlanRefused, Session
from pool.engines.buckets import buckets
from pool.engines.onnxruntime_engine import OnnxRuntimeEngine
from pool.engines.tensorrt_engine import TensorRtEngine
from pool.engines.tensorrt_profiles import NAMES, RTX
from registry_sync.documents import AxisRange
from tests.support import models
from tests.support.build_specs import sequence, spec_of

pytestmark = pytest.mark.gpu

ROWS_MAX = 8


@pytest.fixture(params=NAMES)
def engine(request: pytest.FixtureRequest) -> TensorRtEngine:
    engine = TensorRtEngine(request.param, "cuda:0")
    if not engine.probe().available:
        pytest.skip(engine.probe().reason)
    return engine


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    (tmp_path / "artifact").mkdir()
    return tmp_path / "artifact" / "model.onnx"


@pytest.fixture
def opened() -> Iterator[list[Session]]:
    sessions: list[Session] = []
    yield sessions
    for session in sessions:
        session.close()


def spec_here(engine: TensorRtEngine, graph: Path, **changed: Any) -> BuildSpec:
    here = engine.probe().device_class
    return spec_of(graph, rows_max=ROWS_MAX, device_class=here, **changed)


def load(engine: TensorRtEngine, spec: BuildSpec, opened: list[Session]) -> Any:
    plan = spec.folder.parent / "plan"
    if not plan.exists():
        engine.build(spec, plan, plan.parent / "caches")
    session = engine.load_plan(spec, engine.identity(spec), plan, plan.parent / "caches")
    opened.append(session)
    session.warmup()
    return session


def test_every_bucket_is_recorded_as_a_cuda_graph(
    engine: TensorRtEngine, graph: Path, opened: list[Session]
) -> None:
    session = load(engine, spec_here(engine, models.mlp(graph)), opened)
    assert session.captured == len(buckets(ROWS_MAX))


def test_graphs_give_what_runs_of_other_shapes_between_them_do_not_change(
    engine: TensorRtEngine, graph: Path, opened: list[Session]
) -> None:
    """A graph holds the state of its context: other shapes must go to another one."""
    spec = spec_here(engine, models.mlp(graph))
    session = load(engine, spec, opened)
    reference = OnnxRuntimeEngine().load(spec.folder, spec.manifest, 1)
    dice = np.random.default_rng(0)
    for rows in (8, 3, 8, 21, 4, 1, 5, 8):
        given = {"x": dice.normal(size=(rows, 16)).astype(np.float32)}
        found, expected = session.infer(given)["y"], reference.infer(given)["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_open_axes_are_answered_within_their_range_and_refused_outside_by_name(
    engine: TensorRtEngine, graph: Path, opened: list[Session]
) -> None:
    axes = dict.fromkeys(("ids:1", "mask:1"), AxisRange(1, 16, 64))
    spec = spec_here(engine, sequence(graph), axes=axes)
    session = load(engine, spec, opened)
    reference = OnnxRuntimeEngine().load(spec.folder, spec.manifest, 1)
    for length in (1, 64, 7):
        given = {name: np.ones((3, length), np.int64) for name in ("ids", "mask")}
        found, expected = session.infer(given)["y"], reference.infer(given)["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(EngineError, match='"ids" has size 65 on axis 1; the plan was built for'):
        session.infer({name: np.ones((3, 65), np.int64) for name in ("ids", "mask")})


@pytest.mark.parametrize("datatype", ["BF16", "BOOL", "UINT8", "INT64"])
def test_bits_go_through_as_they_are(
    engine: TensorRtEngine, graph: Path, opened: list[Session], datatype: str
) -> None:
    session = load(engine, spec_here(engine, models.identity(graph, datatype)), opened)
    dtype = {"BF16": np.uint16, "BOOL": np.bool_, "UINT8": np.uint8, "INT64": np.int64}[datatype]
    given = np.arange(12).reshape(3, 4).astype(dtype)
    np.testing.assert_array_equal(session.infer({"x": given})["y"], given)


def test_layers_are_told_by_the_inspector(engine: TensorRtEngine, graph: Path) -> None:
    spec = spec_here(engine, models.mlp(graph))
    built = engine.build(spec, graph.parents[1] / "plan", graph.parents[1] / "caches")
    assert "source" not in json.loads(built.inspector)


def test_what_was_measured_or_compiled_is_kept_for_the_next_time(
    engine: TensorRtEngine, graph: Path, opened: list[Session]
) -> None:
    load(engine, spec_here(engine, models.mlp(graph)), opened)
    kind = "runtime" if engine.name == RTX else "timing"
    (kept,) = (graph.parents[1] / "caches").glob(f"*.{kind}")
    assert kept.stat().st_size > 0


def test_altered_plan_is_refused(engine: TensorRtEngine, graph: Path) -> None:
    spec = spec_here(engine, models.mlp(graph))
    plan = graph.parents[1] / "plan"
    engine.build(spec, plan, plan.parent / "caches")
    plan.write_bytes(plan.read_bytes()[:-100])
    with pytest.raises(PlanRefused, match="TensorRT does not load the plan"):
        engine.load_plan(spec, engine.identity(spec), plan, plan.parent)


def test_plan_of_another_device_class_is_refused(engine: TensorRtEngine, graph: Path) -> None:
    spec = spec_here(engine, models.mlp(graph))
    foreign = replace(engine.identity(spec), device="sm_1")
    with pytest.raises(PlanRefused, match="the plan is for sm_1, and here is"):
        engine.load_plan(spec, foreign, Path("/nowhere"), graph.parent)


def test_memory_is_back_after_close(
    engine: TensorRtEngine, graph: Path, opened: list[Session]
) -> None:
    torch = importlib.import_module("torch")
    spec = spec_here(engine, models.mlp(graph, 512, 4096))
    free = []
    for _ in range(20):
        load(engine, spec, opened).close()
        opened.clear()
        free.append(torch.cuda.mem_get_info(0)[0])
    assert free[-1] >= free[4] - 16 * 1024**2
