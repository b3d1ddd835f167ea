"""Sessions on a GPU, besides what `test_session_contract` holds every engine to.

    pytest -m gpu --noconftest -o addopts= tests/pool/test_cuda_session.py

runs them on a machine that has torch, numpy, onnx, onnxruntime, msgspec, structlog and pytest.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.bench import gpu_loop
from pool.engines import device as devices
from pool.engines.base import Tensors
from pool.engines.buckets import buckets
from pool.engines.cuda_lane import Turns
from pool.engines.cuda_lanes import LANES, CudaSession
from pool.engines.torch_engine import TorchEngine
from registry_sync.documents import AxisRange, EngineWish, File, Manifest, TensorSpec, write
from registry_sync.pt2_signature import publish_archive
from tests.support.twins import FOUND, HALVES, MIXED, OPEN, SUMMED, Twin

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
CYCLES = 5


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "artifact").mkdir()
    return tmp_path / "artifact"


def load(twin: Twin, folder: Path, **changed: Any) -> CudaSession:
    if not list(folder.iterdir()):
        twin.archive(folder)
    manifest = twin.manifest(folder, "torch-export", **changed)
    session = TorchEngine("cuda:0").load(folder, manifest, 1)
    assert isinstance(session, CudaSession)
    session.warmup()
    return session


def agree(found: Tensors, expected: Tensors) -> None:
    for name, array in expected.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype
        if array.dtype.kind == "f":
            np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(found[name], array)


def test_the_driver_and_torch_speak_of_the_same_device() -> None:
    found = devices.find()
    major, minor = torch.cuda.get_device_capability(0)
    assert (found.name, found.device_class) == ("cuda:0", f"sm_{major}{minor}")
    assert found.driver > 0
    assert found.memory_bytes > 2**30


@pytest.mark.parametrize("twin", [MIXED, HALVES], ids=lambda twin: twin.name)
def test_every_size_of_batch_is_recorded_before_the_first_call(folder: Path, twin: Twin) -> None:
    session = load(twin, folder)
    assert session.lanes == LANES
    assert session.captured == len(buckets(twin.rows_max))
    for rows in range(1, twin.rows_max + 1):
        given = twin.made(rows)
        agree(session.infer(given), twin.expected(given))
    assert session.captured == len(buckets(twin.rows_max))
    session.close()


def test_an_axis_that_is_open_is_recorded_only_at_the_size_that_the_manifest_tunes(
    folder: Path,
) -> None:
    session = load(OPEN, folder)
    assert session.captured == 0
    session.close()
    wish = EngineWish(axes={"ids:1": AxisRange(1, 4, 64)})
    session = load(OPEN, folder, engine=wish)
    assert session.captured == len(buckets(OPEN.rows_max))
    for length in (1, 4, 7):
        given = {"ids": np.arange(3 * length).reshape(3, length)}
        agree(session.infer(given), OPEN.expected(given))
    session.close()


@pytest.mark.parametrize("twin", [SUMMED, FOUND], ids=lambda twin: twin.name)
def test_a_model_whose_first_output_axis_is_not_the_rows_is_neither_padded_nor_cut(
    folder: Path, twin: Twin
) -> None:
    session = load(twin, folder)
    assert not session.batches
    for rows in (1, 3, 5):
        given = twin.made(rows)
        agree(session.infer(given), twin.expected(given))
    session.close()


def test_a_model_that_waits_in_the_middle_runs_unrecorded_and_harms_nobody(folder: Path) -> None:
    other = folder.parent / "other"
    other.mkdir()
    first = load(MIXED, other)
    session = load(FOUND, folder)
    assert session.captured == 0
    given = MIXED.made(5)
    agree(first.infer(given), MIXED.expected(given))
    agree(session.infer(FOUND.made(4)), FOUND.expected(FOUND.made(4)))
    session.close()
    first.close()


def test_a_recording_that_fails_leaves_the_device_as_it_was(folder: Path) -> None:
    """Of a program that nobody could see to wait."""

    def program(given: Any) -> Any:
        total = float(given["x"].sum())
        return {"y": given["x"] + total * 0 + torch.empty_like(given["x"]).zero_()}

    session = CudaSession(
        [program, program],
        device=torch.device("cuda:0"),
        inputs=SUMMED.inputs,
        outputs=(TensorSpec("y", "FP32", (-1, 2)),),
        rows_max=8,
        deterministic=True,
        weights_bytes=0,
    )
    session.warmup()
    assert (session.captured, session.batches) == (0, True)
    given = SUMMED.made(5)
    np.testing.assert_array_equal(session.infer(given)["y"], given["x"])
    session.close()
    torch.cuda.empty_cache()
    after = load(MIXED, folder)
    assert after.captured
    agree(after.infer(MIXED.made(3)), MIXED.expected(MIXED.made(3)))
    after.close()


def test_padding_never_shows(folder: Path) -> None:
    session = load(MIXED, folder)
    odd = MIXED.made(8)
    odd["x"][:] = np.nan
    for _ in range(2 * session.lanes):  # whatever lane it is
        session.infer(odd)
    for rows in (1, 3, 5, 6, 7):
        given = MIXED.made(rows)
        agree(session.infer(given), MIXED.expected(given))
    session.close()


def test_parts_are_joined_on_their_way_to_the_device(folder: Path) -> None:
    session = load(MIXED, folder)
    for sizes in [(1,) * 8, (3, 1, 2), (8, 8, 5), (0, 2)]:
        parts = [MIXED.made(size) for size in sizes]
        found = session.infer_joint(parts)
        start = 0
        for part, size in zip(parts, sizes, strict=True):
            rows = {name: array[start : start + size] for name, array in found.items()}
            agree(rows, MIXED.expected(part))
            start += size
    session.close()


def test_two_sessions_in_four_threads_answer_each_its_own(folder: Path) -> None:
    other = folder.parent / "other"
    other.mkdir()
    sessions = [(load(MIXED, folder), MIXED), (load(HALVES, other), HALVES)]
    problems: list[BaseException] = []

    def work(session: CudaSession, twin: Twin) -> None:
        try:
            for turn in range(200):
                given = twin.made(1 + turn % 8)
                agree(session.infer(given), twin.expected(given))
        except BaseException as error:
            problems.append(error)

    threads = [
        threading.Thread(target=work, args=(session, twin))
        for session, twin in sessions
        for _ in range(session.lanes)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert not problems
    for session, _ in sessions:
        session.close()


@pytest.mark.parametrize("count", [1, 2])
def test_no_more_runs_compute_at_once_than_may(count: int) -> None:
    cuda: Any = torch.cuda
    turns = Turns(count)
    began = cuda.Event(enable_timing=True)
    began.record()
    runs = []
    for stream in [cuda.Stream() for _ in range(4)]:
        marks = [cuda.Event(enable_timing=True) for _ in range(2)]
        with turns.take(stream), cuda.stream(stream):
            marks[0].record()
            cuda._sleep(50_000_000)  # cycles
            marks[1].record()
        runs.append(marks)
    cuda.synchronize()
    times_ms = [[began.elapsed_time(mark) for mark in marks] for marks in runs]
    at_once = [
        sum(start <= other_start < end for other_start, _ in times_ms) for start, end in times_ms
    ]
    assert max(at_once) == count, times_ms


def test_a_session_is_loaded_and_recorded_while_another_serves(folder: Path) -> None:
    other = folder.parent / "other"
    other.mkdir()
    serving = load(MIXED, other)
    problems: list[BaseException] = []
    stop = threading.Event()

    def serve() -> None:
        try:
            turn = 0
            while not stop.is_set():
                turn += 1
                given = MIXED.made(1 + turn % 12)
                agree(serving.infer(given), MIXED.expected(given))
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        for _ in range(CYCLES):
            session = load(HALVES, folder)
            assert session.captured
            session.close()
    finally:
        stop.set()
        thread.join(timeout=60)
    assert not problems
    serving.close()


# Numbers.


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A ResNet of 18 layers, as published."""
    folder = tmp_path_factory.mktemp("images") / "artifact"
    folder.mkdir()
    raw = folder.parent / "raw.pt2"
    gpu_loop.export(raw, rows_max=8, half=False, stages=((64, 2), (128, 2)))
    signature = publish_archive(raw, folder / "model.pt2")
    return (
        folder,
        Manifest(
            model="images",
            version="1",
            created="",
            format="torch-export",
            files=(File("model.pt2", "0" * 64, (folder / "model.pt2").stat().st_size),),
            inputs=signature.inputs,
            outputs=signature.outputs,
            rows_max=8,
            deterministic=True,
        ),
    )


def test_fp32_on_the_gpu_is_fp32_and_not_tf32(images: tuple[Path, Manifest]) -> None:
    folder, manifest = images
    row = np.random.default_rng(0).standard_normal((3, 3, 224, 224)).astype(np.float32)
    given = {manifest.inputs[0].name: row}
    answers = []
    for device in ("cpu", "cuda:0"):
        session = TorchEngine(device).load(folder, manifest, 0)
        session.warmup()
        answers.append(session.infer(given)["output"])
        session.close()
    scale = np.abs(answers[0]).max()
    assert np.abs(answers[0] - answers[1]).max() / scale < 5e-5  # TF32 is off by some 1e-3


# Memory.


def test_memory_is_back_after_close(images: tuple[Path, Manifest]) -> None:
    folder, manifest = images
    left = []
    for _ in range(CYCLES):
        session = TorchEngine("cuda:0").load(folder, manifest, 0)
        session.warmup()
        held = torch.cuda.memory_reserved(0)
        assert session.memory_bytes > 0
        session.close()
        del session
        left.append((torch.cuda.memory_allocated(0), torch.cuda.memory_reserved(0)))
        assert left[-1][1] < held
    # What libraries keep for a stream, they have taken by the third time: 5 MiB each, one by one.
    assert all(last <= before for last, before in zip(left[-1], left[2], strict=True)), left


def _alone(code: str) -> str:
    """Run code in a process of its own, which may lose its device."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


def test_a_load_that_has_no_room_says_so_and_leaves_nothing(
    images: tuple[Path, Manifest], tmp_path: Path
) -> None:
    folder, manifest = images
    (tmp_path / "manifest.json").write_bytes(write(manifest))
    said = _alone(
        "import gc, torch\n"
        "from pathlib import Path\n"
        "from pool.engines.base import EngineError\n"
        "from pool.engines.torch_engine import TorchEngine\n"
        "from registry_sync.documents import read_manifest\n"
        f"manifest = read_manifest(Path({str(tmp_path / 'manifest.json')!r}).read_bytes())\n"
        "torch.cuda.set_per_process_memory_fraction(1e-6, 0)\n"
        "try:\n"
        f"    TorchEngine('cuda:0').load(Path({str(folder)!r}), manifest, 0)\n"
        "except EngineError as error:\n"
        "    said = str(error)\n"
        "gc.collect()\n"
        "print(torch.cuda.memory_allocated(0), said)"
    )
    assert said.startswith("0 out of memory on cuda:0"), said


def test_an_index_out_of_range_is_a_lost_device_and_no_wrong_answer(tmp_path: Path) -> None:
    said = _alone(
        "import os, numpy as np, torch\n"
        "from pathlib import Path\n"
        "from pool.engines.base import DeviceLost\n"
        "from pool.engines.torch_engine import TorchEngine\n"
        "from tests.pool.test_torch_engine import manifest_of\n"
        "from tests.support import pt2\n"
        "class Table(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.table = torch.nn.Embedding(2, 4)\n"
        "    def forward(self, ids):\n"
        "        return self.table(ids)\n"
        f"folder = Path({str(tmp_path)!r}) / 'artifact'\n"
        "folder.mkdir()\n"
        "pt2.save(folder / 'model.pt2', Table(), torch.zeros(3, dtype=torch.int64))\n"
        "session = TorchEngine('cuda:0').load(folder, manifest_of(folder), 0)\n"
        "session.warmup()\n"
        "assert session.batches and session.captured\n"
        "assert session.infer({'ids': np.array([1, 0])})['output'].shape == (2, 4)\n"
        "try:\n"
        "    print('answered', session.infer({'ids': np.array([10**9])}), flush=True)\n"
        "except DeviceLost as error:\n"
        "    print('lost', error, flush=True)\n"
        "os._exit(0)"  # whoever frees something now would be told of it once more
    )
    assert said.startswith("lost cuda:0 is lost to this process"), said
