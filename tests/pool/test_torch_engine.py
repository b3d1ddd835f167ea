"""torch as an engine, besides what `test_session_contract` holds every engine to."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from pool.engines.base import NUMPY_DTYPES, BuildSpec, CannotBuild, EngineError, PlanRefused
from pool.engines.device import cpu
from pool.engines.registry import find_plan_engines
from pool.engines.torch_engine import TorchCompiledEngine, TorchEngine
from pool.engines.torch_session import TorchSession
from registry_sync.documents import EngineWish, File, Manifest, TensorSpec
from registry_sync.pt2_signature import publish_archive
from tests.support import pt2
from tests.support.compiled import Compiled
from tests.support.loads_at_once import ARCHIVES

ROOT = Path(__file__).parents[2]
# What torch cannot hold.
FOREIGN = {"BYTES"}


def manifest_of(folder: Path, **changed: Any) -> Manifest:
    path = folder / "model.pt2"
    raw = path.rename(folder.parent / "raw.pt2")
    signature = publish_archive(raw, path)
    fields: dict[str, Any] = {
        "model": "m",
        "version": "1",
        "created": "",
        "format": "torch-export",
        "files": (File("model.pt2", "0" * 64, path.stat().st_size),),
        "inputs": signature.inputs,
        "outputs": signature.outputs,
        "rows_max": 8 if signature.has_batch_axis else 1,
        "deterministic": signature.deterministic,
    }
    return Manifest(**(fields | changed))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "artifact").mkdir()
    return tmp_path / "artifact"


def session_of(folder: Path, module: torch.nn.Module, *args: Any, **options: Any) -> TorchSession:
    pt2.save(folder / "model.pt2", module, *args, **options)
    session = TorchEngine("cpu").load(folder, manifest_of(folder), 1)
    session.warmup()
    assert isinstance(session, TorchSession)
    return session


class Same(torch.nn.Module):
    def forward(self, x: Any) -> Any:
        return x.clone()


@pytest.mark.parametrize("datatype", sorted(NUMPY_DTYPES.keys() - FOREIGN))
def test_every_datatype_comes_back_bit_for_bit(folder: Path, datatype: str) -> None:
    dtype = (
        torch.bfloat16
        if datatype == "BF16"
        else torch.from_numpy(np.zeros(1, NUMPY_DTYPES[datatype])).dtype
    )
    session = session_of(folder, Same(), torch.zeros(3, 2).to(dtype))
    assert session.inputs == (TensorSpec("x", datatype, (-1, 2)),)
    raw = np.frombuffer(bytes([0, 1] * 64), NUMPY_DTYPES[datatype])[:4].reshape(2, 2)
    answer = session.infer({"x": raw})["output"]
    assert answer.dtype == raw.dtype
    assert answer.tobytes() == raw.tobytes()


def test_containers_constants_and_scalars_are_served(folder: Path) -> None:
    class Nested(torch.nn.Module):
        def forward(self, x: Any, more: Any, scale: float = 2.0) -> Any:
            return {"a": x * scale, "b": [more["k"] + 1, None]}, x.sum()

    x = torch.ones(3, 2)
    session = session_of(folder, Nested(), x, {"k": x + 1}, 3.0, rows=False)
    given = {"x": np.full((3, 2), 2, np.float32), "more.k": np.zeros((3, 2), np.float32)}
    answer = session.infer(given)
    assert answer["output_0.a"].tolist() == [[6, 6]] * 3
    assert answer["output_0.b.0"].tolist() == [[1, 1]] * 3
    assert answer["output_1"].tolist() == 12.0
    assert answer["output_1"].shape == ()


def test_a_model_that_writes_to_its_inputs_gets_copies(folder: Path) -> None:
    class Writing(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x.mul_(3) + 0

    session = session_of(folder, Writing(), torch.ones(3, 2))
    given = np.ones((2, 2), np.float32)
    assert session.infer({"x": given})["output"].tolist() == [[3, 3]] * 2
    assert given.tolist() == [[1, 1]] * 2


def test_an_index_out_of_range_fails_that_call_only(folder: Path) -> None:
    class Table(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(4, 2)

        def forward(self, ids: Any) -> Any:
            return self.table(ids)

    session = session_of(folder, Table(), torch.zeros(3, dtype=torch.int64))
    assert session.batches
    with pytest.raises(EngineError, match="index out of range") as caught:
        session.infer({"ids": np.array([9])})
    assert "\n" not in str(caught.value)
    assert session.infer({"ids": np.array([3])})["output"].shape == (1, 2)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_threads_that_are_asked_for_are_taken(folder: Path, threads: int) -> None:
    pt2.scaled(folder / "model.pt2")
    TorchEngine("cpu").load(folder, manifest_of(folder), threads).close()
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("threads", [1, 2])
def test_a_plan_takes_the_threads_of_the_worker(folder: Path, threads: int) -> None:
    pt2.scaled(folder / "model.pt2")
    torch.set_num_threads(3)
    spec = spec_of(folder, manifest_of(folder))
    (engine,) = (one for one in find_plan_engines((), "cpu", threads) if one.name == "torch")
    (folder.parent / "plan").write_bytes(b"garbage")
    with pytest.raises(PlanRefused, match="torch cannot load it"):
        engine.load_plan(spec, engine.identity(spec), folder.parent / "plan", folder.parent)
    assert torch.get_num_threads() == threads


def test_archives_are_loaded_by_several_threads_at_once(folder: Path) -> None:
    layers = [torch.nn.Linear(8, 8) for _ in range(40)]  # so that reading takes a while
    pt2.save(folder / "model.pt2", torch.nn.Sequential(*layers), torch.zeros(3, 8))
    manifest = manifest_of(folder)
    with ThreadPoolExecutor(4) as threads:
        loads = [threads.submit(TorchEngine("cpu").load, folder, manifest, 1) for _ in range(8)]
        sessions = [load.result() for load in loads]
    x = np.ones((2, 8), np.float32)
    answers = [session.infer({"input": x})["output"] for session in sessions]
    assert all(np.array_equal(answer, answers[0]) for answer in answers)


def test_fp32_stays_fp32() -> None:
    assert torch.get_float32_matmul_precision() == "highest"


def test_weights_are_counted(folder: Path) -> None:
    session = session_of(folder, pt2.Scaled(), torch.ones(3, 4))
    assert session.memory_bytes == 4 * (4 + 4 + 1)


# Loading.


def test_what_was_not_published_is_not_loaded(folder: Path) -> None:
    pt2.scaled(folder / "model.pt2")
    manifest = manifest_of(folder)
    pt2.scaled(folder / "model.pt2")
    with pytest.raises(EngineError, match="pickled sample inputs; publish it with"):
        TorchEngine("cpu").load(folder, manifest, 1)


def test_a_manifest_of_another_model_is_refused(folder: Path) -> None:
    pt2.scaled(folder / "model.pt2")
    manifest = manifest_of(folder, inputs=(TensorSpec("x", "FP64", (-1, 4)),))
    with pytest.raises(EngineError, match=r'the input "x" FP64, the model has: x FP32'):
        TorchEngine("cpu").load(folder, manifest, 1)


def test_what_torch_says_against_an_archive_is_told_and_not_printed(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pt2.scaled(folder / "model.pt2")
    manifest = manifest_of(folder)
    pt2.altered(
        folder / "model.pt2",
        json_of={"models/model.json": lambda plain: plain.update(schema_version={"major": 99})},
    )
    with pytest.raises(EngineError, match=r"torch cannot load model\.pt2: \w+") as caught:
        TorchEngine("cpu").load(folder, manifest, 1)
    assert str(folder) not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err


def test_its_probe_says_which_torch_there_is_without_loading_it() -> None:
    code = (
        "import sys\n"
        "from pool.engines.registry import find_engines, find_plan_engines\n"
        "probes = [e.probe() for e in (*find_engines(), *find_plan_engines())]\n"
        "assert 'torch' not in sys.modules\n"
        "print([p.version for p in probes if p.name == 'torch'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == str([version("torch")] * 2), done.stderr


def test_a_new_process_loads_a_plan_and_archives_at_once(compiled: Compiled) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.loads_at_once", str(compiled.plan.parent)],
        cwd=ROOT,
        input=msgspec.json.encode(compiled.spec.manifest),
        capture_output=True,
        timeout=120,
    )
    assert json.loads(done.stdout or b"null") == [""] * (1 + ARCHIVES), done.stderr.decode()


def test_a_gpu_that_is_not_there_is_said() -> None:
    probe = TorchEngine("cuda:77").probe()
    assert not probe.available
    assert "cuda:77" in probe.reason or "without CUDA" in probe.reason


# Plans of AOTInductor.


def spec_of(folder: Path, manifest: Manifest, **changed: Any) -> BuildSpec:
    fields: dict[str, Any] = {
        "manifest": manifest,
        "folder": folder,
        "wish": EngineWish(precision="fp32", ahead_of_time=True),
        "rows_max": manifest.rows_max,
        "device_class": cpu().device_class,
    }
    return BuildSpec(**(fields | changed))


@pytest.fixture
def built(compiled: Compiled) -> tuple[BuildSpec, Path, Path]:
    """A plan, what it was built from, and the builder's caches."""
    return compiled.spec, compiled.plan, compiled.caches


def test_a_plan_is_loaded_in_another_process(built: tuple[BuildSpec, Path, Path]) -> None:
    spec, plan, caches = built
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pool.engines.torch_engine import TorchCompiledEngine\n"
        "from tests.pool.test_torch_engine import spec_of\n"
        "from tests.support.twins import MIXED\n"
        f"folder, plan, caches = map(Path, {[str(spec.folder), str(plan), str(caches)]!r})\n"
        "spec = spec_of(folder, MIXED.manifest(folder, 'torch-export'))\n"
        "engine = TorchCompiledEngine('cpu')\n"
        "session = engine.load_plan(spec, engine.identity(spec), plan, caches)\n"
        "given = MIXED.made(5)\n"
        "assert (session.infer(given)['j'] == MIXED.expected(given)['j']).all()\n"
        "print('right')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "right", done.stderr


def test_a_build_leaves_nothing_in_the_caches(built: tuple[BuildSpec, Path, Path]) -> None:
    assert not list(built[2].iterdir())


def test_a_plan_of_another_device_or_version_is_refused(
    built: tuple[BuildSpec, Path, Path],
) -> None:
    spec, plan, caches = built
    engine = TorchCompiledEngine("cpu")
    identity = engine.identity(spec)
    other = engine.identity(spec_of(spec.folder, spec.manifest, device_class="cpu_x86-64-v4_0"))
    assert other.key != identity.key
    with pytest.raises(PlanRefused, match="compiled for cpu_x86-64-v4_0, cpu is cpu_"):
        engine.load_plan(spec, other, plan, caches)
    old = type(identity)(**{**_fields(identity), "runtime": "2.0.0"})
    with pytest.raises(PlanRefused, match=r"compiled by torch 2\.0\.0, here is"):
        engine.load_plan(spec, old, plan, caches)


def _fields(identity: Any) -> dict[str, Any]:
    return {name: getattr(identity, name) for name in identity.__struct_fields__}


def test_a_damaged_plan_is_refused(built: tuple[BuildSpec, Path, Path], tmp_path: Path) -> None:
    spec, plan, caches = built
    engine = TorchCompiledEngine("cpu")
    for data in (b"", b"garbage", plan.read_bytes()[:-2000]):
        (tmp_path / "plan").write_bytes(data)
        with pytest.raises(PlanRefused, match="torch cannot load it"):
            engine.load_plan(spec, engine.identity(spec), tmp_path / "plan", caches)


@pytest.mark.slow
def test_a_plan_holds_no_weights_and_a_closed_session_keeps_none(tmp_path: Path) -> None:
    """Code stays mapped once it was loaded, so weights must not be part of it."""

    class Large(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1024, 4096))

        def forward(self, x: Any) -> Any:
            return (x @ self.weight).sum(1)

    folder = tmp_path / "artifact"
    folder.mkdir()
    pt2.save(folder / "model.pt2", Large(), torch.ones(3, 1024))
    spec = spec_of(folder, manifest_of(folder))
    engine = TorchCompiledEngine("cpu")
    engine.build(spec, tmp_path / "plan", tmp_path / "caches")
    assert (tmp_path / "plan").stat().st_size < 4 << 20
    kept = []
    for _ in range(8):
        session = engine.load_plan(
            spec, engine.identity(spec), tmp_path / "plan", tmp_path / "caches"
        )
        assert session.memory_bytes > 16 << 20
        x = np.ones((2, 1024), np.float32)
        assert session.infer({"x": x})["output"].tolist() == [1024 * 4096.0] * 2
        session.close()
        del session
        gc.collect()
        kept.append(_resident_bytes())
    assert kept[-1] - kept[1] < 16 << 20  # one more copy of the weights


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_a_plan_for_another_device_is_not_built(folder: Path) -> None:
    pt2.scaled(folder / "model.pt2")
    spec = spec_of(folder, manifest_of(folder), device_class="sm_90")
    with pytest.raises(CannotBuild, match="torch here cannot compile for sm_90: cpu is cpu_"):
        TorchCompiledEngine("cpu").build(spec, folder.parent / "plan", folder.parent / "caches")
    assert not (folder.parent / "plan").exists()


def test_an_axis_that_is_computed_from_another_is_not_compiled(folder: Path) -> None:
    class Pair(torch.nn.Module):
        def forward(self, a: Any, b: Any) -> Any:
            return a.repeat_interleave(2, 0) + b

    rows = torch.export.Dim("rows", min=1, max=64)
    program = torch.export.export(
        Pair(),
        (torch.ones(3, 2), torch.ones(6, 2)),
        dynamic_shapes={"a": {0: rows}, "b": {0: 2 * rows}},
    )
    torch.export.save(program, folder / "model.pt2")
    spec = spec_of(folder, manifest_of(folder))
    with pytest.raises(CannotBuild, match="computed from another"):
        TorchCompiledEngine("cpu").build(spec, folder.parent / "plan", folder.parent / "caches")


def test_a_plan_holds_no_pickle(built: tuple[BuildSpec, Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as package:
        assert not [name for name in package.namelist() if name.endswith((".pt", ".pkl"))]
