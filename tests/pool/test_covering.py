"""A plan's ranges take nothing away from the signature."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper

from pool.engines.base import EngineError, Session
from pool.engines.covering import CoveringSession, bounds_of, covering
from pool.engines.onnxruntime_engine import OnnxRuntimeEngine
from registry_sync.documents import TensorSpec
from registry_sync.plans import ShapeRange
from tests.support import models
from tests.support.artifacts import manifest_of

SHAPE = ("N", "S")
PROFILES = [
    {"x": ShapeRange((1, 2), (1, 4), (1, 8))},
    {"x": ShapeRange((2, 2), (4, 4), (4, 8))},
]


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], Session]:
    """Load a graph of one operator, so that an answer shows who gave it."""

    def loaded(op: str) -> Session:
        folder = tmp_path / op
        folder.mkdir(exist_ok=True)
        tensors = [[models.tensor(name, TensorProto.FLOAT, SHAPE)] for name in ("x", "y")]
        models.save(folder / "model.onnx", [helper.make_node(op, ["x"], ["y"])], *tensors)
        manifest = manifest_of({"model.onnx": (folder / "model.onnx").read_bytes()})
        x, y = (TensorSpec(name, "FP32", (-1, -1)) for name in ("x", "y"))
        manifest = replace(manifest, inputs=(x,), outputs=(y,))
        return OnnxRuntimeEngine().load(folder, manifest, 1)

    return loaded


class Portable:
    """Loads the portable engine, and counts how often; it gives |x|, the plan -x."""

    def __init__(self, load: Callable[[str], Session]) -> None:
        self._load = load
        self.loads = 0
        self.session: Session | None = None

    def __call__(self) -> Session:
        self.loads += 1
        self.session = self._load("Abs")
        return self.session


@pytest.fixture
def portable(load: Callable[[str], Session]) -> Portable:
    return Portable(load)


@pytest.fixture
def session(load: Callable[[str], Session], portable: Portable) -> Session:
    return covering(load("Neg"), PROFILES, portable, counts_rows=True)


def run(session: Session, rows: int, size: int) -> float:
    (value,) = np.unique(session.infer({"x": np.ones((rows, size), np.float32)})["y"])
    return float(value)


@pytest.mark.parametrize("size", [2, 5, 8])
def test_plan_runs_what_it_was_built_for(session: Session, portable: Portable, size: int) -> None:
    assert (run(session, 1, size), run(session, 4, size), portable.loads) == (-1, -1, 0)


@pytest.mark.parametrize("size", [1, 9, 1000])
def test_portable_engine_runs_the_rest_and_is_loaded_once(
    session: Session, portable: Portable, size: int
) -> None:
    before = session.memory_bytes
    assert portable.loads == 0
    assert [run(session, rows, size) for rows in (1, 2, 4)] == [1, 1, 1]
    assert portable.loads == 1
    assert session.memory_bytes > before
    assert run(session, 1, 4) == -1


def test_calls_at_once_load_it_once(session: Session, portable: Portable) -> None:
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda n: run(session, 1, 9 + n), range(16))) == [1.0] * 16
    assert portable.loads == 1


def test_more_rows_are_the_plans_own_affair(session: Session, portable: Portable) -> None:
    assert (run(session, 100, 4), portable.loads) == (-1, 0)


def test_close_gives_both_back(session: Session, portable: Portable) -> None:
    run(session, 1, 9)
    session.close()
    assert portable.session is not None
    for closed in (session, portable.session):
        with pytest.raises(AssertionError, match="infer after close"):
            run(closed, 1, 4)


def test_portable_engine_that_cannot_be_loaded_fails_this_call_alone(
    load: Callable[[str], Session],
) -> None:
    def cannot() -> Session:
        raise EngineError("out of memory")

    session = covering(load("Neg"), PROFILES, cannot, counts_rows=True)
    with pytest.raises(EngineError, match="out of memory"):
        run(session, 1, 9)
    assert run(session, 1, 8) == -1


def test_plan_for_all_sizes_is_left_alone(load: Callable[[str], Session]) -> None:
    session = load("Neg")
    assert covering(session, [], lambda: session, counts_rows=True) is session
    fixed = TensorSpec("x", "FP32", (-1, 4))
    assert not bounds_of([fixed], PROFILES, counts_rows=True)


def test_wrapped_session_shows_what_the_plan_is(load: Callable[[str], Session]) -> None:
    plan = load("Neg")
    plan.warmup()
    session = CoveringSession(plan, {}, lambda: plan)
    shown = ("lanes", "inputs", "outputs", "streams", "batches", "memory_bytes")
    assert all(getattr(session, name) == getattr(plan, name) for name in shown)


def test_first_axis_that_counts_no_rows_has_a_range_as_any_other() -> None:
    spec = TensorSpec("x", "FP32", (-1, 4))
    profile = {"x": ShapeRange((1, 4), (1, 4), (1, 4))}
    assert bounds_of([spec], [profile], counts_rows=False) == {"x": [(0, 1, 1)]}
    assert bounds_of([spec], [profile], counts_rows=True) == {}
