"""What every `Session` promises, held against each engine by the same tests.

ONNX Runtime, torch on the CPU and AOTInductor run everywhere; what needs a GPU runs under
``pytest -m gpu``, where an engine that is not installed says so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pool.engines.base import BuildSpec, Engine, EngineError, PlanEngine, Session, Tensors
from pool.engines.onnxruntime_engine import OnnxRuntimeEngine
from pool.engines.tensorrt_engine import TensorRtEngine
from pool.engines.torch_engine import TorchCompiledEngine, TorchEngine
from registry_sync.documents import AxisRange, EngineWish, Manifest
from tests.support.compiled import Compiled
from tests.support.twins import FOUND, MIXED, OPEN, TWINS, Twin

Load = Callable[[Twin], Session]

EVERYWHERE = ["onnxruntime", "torch-cpu", "compiled-cpu"]
ON_A_GPU = ["torch-cuda", "compiled-cuda", "tensorrt", "tensorrt_rtx"]
# Nearly all of its time is a compiler's; `test_torch_engine` waits for one in each run.
COMPILED = pytest.param("compiled-cpu", marks=pytest.mark.slow)
ENGINES = [
    *EVERYWHERE[:-1],
    COMPILED,
    *(pytest.param(name, marks=pytest.mark.gpu) for name in ON_A_GPU),
]
ON_ONNX = ("onnxruntime", "tensorrt", "tensorrt_rtx")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts and plans, each made once."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def load(request: pytest.FixtureRequest, engine: str, shelf: Path) -> Iterator[Load]:
    """Load a twin with the engine, warm; closed at the end."""
    sessions: list[Session] = []

    def loaded(twin: Twin) -> Session:
        if engine == "compiled-cpu" and twin is MIXED:
            session = _compiled(request.getfixturevalue("compiled"), shelf)
        else:
            session = _load(engine, twin, shelf)
        sessions.append(session)
        session.warmup()
        return session

    yield loaded
    for session in sessions:
        session.close()


def _load(engine: str, twin: Twin, shelf: Path) -> Session:
    device = "cuda:0" if engine in ON_A_GPU else "cpu"
    if engine.startswith(("torch", "compiled")):
        folder, manifest = _artifact(shelf, twin, "torch-export")
    else:
        folder, manifest = _artifact(shelf, twin, "onnx")
    portable: Engine | None = None
    if engine == "onnxruntime":
        portable = OnnxRuntimeEngine()
    elif engine.startswith("torch"):
        portable = TorchEngine(device)
    if portable is not None:
        return portable.load(folder, manifest, 1)
    maker: PlanEngine = (
        TorchCompiledEngine(device)
        if engine.startswith("compiled")
        else TensorRtEngine(engine, device)
    )
    return _from_plan(maker, engine, twin, shelf, (folder, manifest))


def _compiled(given: Compiled, shelf: Path) -> Session:
    maker = TorchCompiledEngine("cpu")
    return maker.load_plan(given.spec, maker.identity(given.spec), given.plan, shelf / "caches")


def _artifact(shelf: Path, twin: Twin, format: str) -> tuple[Path, Manifest]:
    folder = shelf / format / twin.name
    if not folder.exists():
        folder.mkdir(parents=True)
        if format == "onnx":
            if twin.onnx is None:
                pytest.skip("no ONNX of it")
            twin.onnx(folder / "model.onnx")
        else:
            twin.archive(folder)
    return folder, twin.manifest(folder, format)


def _from_plan(
    maker: PlanEngine, engine: str, twin: Twin, shelf: Path, artifact: tuple[Path, Manifest]
) -> Session:
    folder, manifest = artifact
    probe = maker.probe()
    if not probe.available or probe.device_class not in probe.builds_for:
        pytest.skip(f"{engine}: {probe.reason or 'builds nothing for this device'}")
    axes = {"ids:1": AxisRange(1, 4, 16)} if twin is OPEN else {}
    wish = EngineWish(precision="fp32", axes=axes, ahead_of_time=True)
    spec = BuildSpec(manifest, folder, wish, twin.rows_max, probe.device_class)
    plan = shelf / f"{engine}-{twin.name}.plan"
    if not plan.exists():
        maker.build(spec, plan, shelf / "caches")
    return maker.load_plan(spec, maker.identity(spec), plan, shelf / "caches")


def _agree(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        if array.dtype.kind == "f":
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], array, err_msg=name)


def _rows(given: Tensors, start: int, end: int) -> Tensors:
    return {name: array[start:end] for name, array in given.items()}


# One model, whatever its engine.


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8])
def test_it_answers_what_the_model_says_for_any_batch(load: Load, rows: int) -> None:
    given = MIXED.made(rows)
    _agree(load(MIXED).infer(given), MIXED.expected(given))


def test_a_larger_batch_than_planned_is_answered_all_the_same(load: Load) -> None:
    given = MIXED.made(21)
    _agree(load(MIXED).infer(given), MIXED.expected(given))


def test_no_rows_are_taken_and_given(load: Load) -> None:
    answer = load(MIXED).infer(MIXED.made(0))
    assert {name: array.shape for name, array in answer.items()} == {
        "y": (0, 3),
        "j": (0, 2),
        "s": (0,),
    }


def test_answers_do_not_change_when_the_next_call_comes(load: Load) -> None:
    session = load(MIXED)
    given = MIXED.made(3)
    first = session.infer(given)
    session.infer(MIXED.made(8))
    _agree(first, MIXED.expected(given))


def test_only_the_outputs_wanted_need_to_be_there(load: Load) -> None:
    given = MIXED.made(4)
    answer = load(MIXED).infer(given, ["s", "j"])
    assert {"s", "j"} <= answer.keys()
    _agree({"s": answer["s"]}, {"s": MIXED.expected(given)["s"]})


def test_inputs_may_be_read_only_and_strided_and_are_never_written(load: Load) -> None:
    session = load(MIXED)
    given = MIXED.made(6)
    wide = np.repeat(given["x"], 2, axis=1)
    odd = {
        "x": wide[:, ::2],
        "i": np.frombuffer(given["i"].tobytes(), np.int64).reshape(6, 2),
        "m": given["m"][::-1],
    }
    kept = {name: array.copy() for name, array in odd.items()}
    _agree(session.infer(odd), MIXED.expected(kept))
    for name, array in kept.items():
        np.testing.assert_array_equal(odd[name], array)


def test_it_declares_what_the_manifest_declares(load: Load) -> None:
    session = load(MIXED)
    assert (session.inputs, session.outputs) == (MIXED.inputs, MIXED.outputs)
    assert session.batches
    assert not session.streams
    assert session.memory_bytes > 0


def test_a_batch_gives_what_its_rows_give_alone(load: Load) -> None:
    session = load(MIXED)
    given = MIXED.made(5)
    alone = [session.infer(_rows(given, row, row + 1)) for row in range(5)]
    joined = {name: np.concatenate([one[name] for one in alone]) for name in alone[0]}
    _agree(session.infer(given), joined)


def test_as_many_threads_as_it_has_lanes_get_right_answers_at_once(load: Load) -> None:
    session = load(MIXED)
    problems: list[BaseException] = []

    def work(offset: int) -> None:
        try:
            for turn in range(60):
                given = MIXED.made(1 + (turn * 3 + offset) % 8)
                _agree(session.infer(given), MIXED.expected(given))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(lane,)) for lane in range(session.lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert not problems


def test_inputs_that_do_not_fit_are_an_engine_error_and_the_next_call_is_answered(
    load: Load,
) -> None:
    session = load(MIXED)
    bad = MIXED.made(2) | {"x": np.ones((2, 5), np.float32)}
    with pytest.raises(EngineError) as caught:
        session.infer(bad)
    assert "/tmp/" not in str(caught.value)
    given = MIXED.made(2)
    _agree(session.infer(given), MIXED.expected(given))


def test_inputs_of_different_rows_are_refused_or_answered_as_the_model_does(load: Load) -> None:
    session = load(MIXED)
    with pytest.raises(EngineError):
        session.infer(MIXED.made(2) | {"i": MIXED.made(3)["i"]})


def test_a_stream_is_the_one_answer(load: Load) -> None:
    given = MIXED.made(2)
    (answer,) = list(load(MIXED).stream(given))
    _agree(answer, MIXED.expected(given))


def test_it_can_be_loaded_again_after_it_was_closed(load: Load) -> None:
    session = load(MIXED)
    session.close()
    given = MIXED.made(2)
    _agree(load(MIXED).infer(given), MIXED.expected(given))


# Other models, for engines that get something wrong.


def _pairs() -> Iterator[Any]:
    for name in [*EVERYWHERE, *ON_A_GPU]:
        for twin in TWINS.values():
            if twin is MIXED or (twin.onnx is None and name in ON_ONNX):
                continue
            if twin is FOUND and name.startswith("tensorrt"):
                continue  # it has no way for sizes that depend on values, and says so
            marks = [pytest.mark.gpu] if name in ON_A_GPU else []
            if name == "compiled-cpu":
                marks = [pytest.mark.slow]  # a compiler takes ten seconds for the smallest
            yield pytest.param(name, twin, marks=marks, id=f"{name}-{twin.name}")


@pytest.mark.parametrize(("engine", "twin"), list(_pairs()))
def test_it_answers_what_other_models_say_and_knows_whether_to_batch(
    engine: str, twin: Twin, shelf: Path
) -> None:
    session = _load(engine, twin, shelf)
    session.warmup()
    try:
        assert session.batches == twin.batches
        for rows in (1, 3, 8):
            given = twin.made(rows)
            _agree(session.infer(given), twin.expected(given))
    finally:
        session.close()
