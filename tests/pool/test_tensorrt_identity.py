"""What a TensorRT plan depends on, and what is said of a machine, without the framework."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from pool.engines.base import CannotBuild
from pool.engines.device import Device
from pool.engines.targets import Toolkit
from pool.engines.tensorrt_engine import TensorRtEngine, why_not_on
from tests.support import models
from tests.support.build_specs import spec_of

RTX = TensorRtEngine("tensorrt_rtx", "cpu")
VERSION = RTX.probe().version


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    folder.mkdir()
    return folder / "model.onnx"


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return tmp_path / "plan"


def test_identity_is_found_without_importing_the_framework(graph: Path) -> None:
    models.mlp(graph)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from pool.engines.base import BuildSpec\n"
        "from pool.engines.tensorrt_engine import TensorRtEngine\n"
        "from registry_sync.documents import EngineWish, File, Manifest, TensorSpec\n"
        "spec = TensorSpec('x', 'FP32', (-1, 16))\n"
        "manifest = Manifest(model='m', version='1', created='', format='onnx',\n"
        "    files=(File('model.onnx', '0' * 64, 1),), inputs=(spec,), outputs=(),\n"
        "    rows_max=4, deterministic=True)\n"
        "wish = EngineWish(precision='fp32')\n"
        "engine = TensorRtEngine('tensorrt_rtx', 'cpu')\n"
        "print(engine.identity(BuildSpec(manifest, Path(), wish, 4, 'sm_86')).runtime)\n"
        "loaded = {'tensorrt', 'tensorrt_rtx', 'torch', 'onnx'} & sys.modules.keys()\n"
        "assert not loaded, loaded\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.strip()) == (0, VERSION), ran.stderr


def test_version_is_the_one_that_the_framework_says() -> None:
    assert importlib.import_module("tensorrt_rtx").__version__ == VERSION


def test_what_a_plan_depends_on_changes_its_key(graph: Path) -> None:
    spec = spec_of(models.mlp(graph))
    other_device = spec_of(graph, device_class="sm_89")
    other_batch = spec_of(graph, rows_max=8)
    keys = [RTX.identity(one).key for one in (spec, other_device, other_batch, spec)]
    assert len(set(keys)) == 3
    assert keys[0] == keys[3]


def test_plan_of_rtx_holds_over_drivers(graph: Path) -> None:
    assert RTX.identity(spec_of(models.mlp(graph))).driver == 0


def test_engine_that_is_not_installed_says_so(graph: Path, plan: Path) -> None:
    engine = TensorRtEngine("tensorrt")
    assert engine.probe().reason == "tensorrt is not installed"
    with pytest.raises(CannotBuild, match="tensorrt is not installed here"):
        engine.build(spec_of(models.mlp(graph)), plan, plan.parent)


@pytest.mark.parametrize(("name", "version"), [("tensorrt", "10.0.1"), ("tensorrt_rtx", "1.2.0")])
def test_release_that_is_too_old_is_neither_built_with_nor_run(
    graph: Path, plan: Path, name: str, version: str
) -> None:
    toolkit = Toolkit(name, version, frozenset({"onnx"}), ("sm_86",))
    engine = TensorRtEngine(name, "cpu", [toolkit])
    with pytest.raises(CannotBuild, match=f"{name} {version} is too old: install 1"):
        engine.build(spec_of(models.mlp(graph)), plan, plan.parent)
    assert not engine.probe().available


ON_GPU = Toolkit("tensorrt", "11.4", frozenset({"onnx"}), sm_min=75)
TORCH = Toolkit("torch", "2.13.0", frozenset({"torch-export"}), sm_min=75, cpu=True)
TORCH_CPU = Toolkit("torch", "2.13.0+cpu", frozenset({"torch-export"}), cpu=True)


@pytest.mark.parametrize(
    ("device_class", "torch", "reason"),
    [
        ("sm_86", TORCH, ""),
        ("sm_86", None, "torch is not installed, on whose streams and memory tensorrt runs"),
        ("sm_86", TORCH_CPU, "torch 2.13.0+cpu is without CUDA, on whose streams"),
        ("sm_70", TORCH, "tensorrt 11.4 does not support sm_70"),
    ],
)
def test_what_is_missing_beside_a_gpu_is_said(
    device_class: str, torch: Toolkit | None, reason: str
) -> None:
    found = why_not_on(Device("cuda:0", device_class, driver=580), ON_GPU, torch)
    assert found.startswith(reason)
    assert bool(found) == bool(reason)
