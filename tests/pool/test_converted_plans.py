"""Converted graphs become real plans on this CPU, strongly typed, and smaller than in fp32."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from pool.engines.base import BuildSpec
from pool.engines.conversion import convert_artifact
from pool.engines.tensorrt_engine import TensorRtEngine
from pool.wanted import wanted_of
from registry_sync import catalog
from registry_sync.directory import DirectoryStore
from registry_sync.documents import AxisRange, EngineWish, Manifest, Precision
from registry_sync.publish import Terms, publish
from tests.support import minilm, models

RTX = TensorRtEngine("tensorrt_rtx", "cpu")
EXACT: Precision = "fp32"
HALVES: tuple[Precision, ...] = ("fp16", "bf16")
SEQUENCE = AxisRange(1, 32, 128)


def published(
    tmp_path: Path, path: Path, precision: Precision, engine: EngineWish | None = None
) -> tuple[Manifest, Path]:
    """Publish, and lay the artifact out as a worker finds it."""
    store = DirectoryStore(tmp_path / "registry")
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def convert(draft: Manifest, sources: Any, golden: Any) -> Any:
        return convert_artifact(draft, sources, scratch, golden).sources

    publish(store, "m", path, rows_max=4, terms=Terms(precision, engine), convert=convert)
    manifest = catalog.load_manifest(store, "m", "1")
    folder = tmp_path / "artifact"
    folder.mkdir()
    for file in manifest.files:
        (folder / file.path).write_bytes(store.get(catalog.blob_key(file.sha256)).data)
    return manifest, folder


def build(manifest: Manifest, folder: Path, precision: Precision) -> int:
    """Build for a GPU that is not here; return the plan's size in bytes."""
    plan = folder.parent / f"plan.{precision}"
    wanted = wanted_of(manifest, EngineWish(precision=precision))
    spec = BuildSpec(manifest, folder, wanted.engine, wanted.rows_max, "sm_86")
    RTX.build(spec, plan, folder.parent / "caches")
    return plan.stat().st_size


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_masked_transformer_becomes_a_plan(tmp_path: Path, precision: Precision) -> None:
    axes = {"ids:1": SEQUENCE, "mask:1": SEQUENCE}
    path = models.attention(tmp_path / "m.onnx")
    manifest, folder = published(tmp_path, path, precision, EngineWish(axes=axes))
    assert build(manifest, folder, precision) > 0


def test_convolutions_become_a_plan(tmp_path: Path) -> None:
    manifest, folder = published(tmp_path, models.conv(tmp_path / "m.onnx", 64), "fp16")
    assert build(manifest, folder, "fp16") > 0


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_magika_becomes_a_smaller_plan(tmp_path: Path, precision: Precision) -> None:
    package = importlib.util.find_spec("magika")
    assert package is not None
    assert package.origin is not None
    (graph,) = (Path(package.origin).parent / "models").rglob("*.onnx")
    manifest, folder = published(tmp_path, graph, precision)
    assert build(manifest, folder, precision) < build(manifest, folder, "fp32")


@pytest.mark.slow
def test_minilm_becomes_plans_of_half_the_size(tmp_path: Path) -> None:
    axes = dict.fromkeys(("input_ids:1", "attention_mask:1"), AxisRange(2, 64, 256))
    path = minilm.export(tmp_path / "m.onnx")
    for precision in HALVES:
        here = tmp_path / precision
        here.mkdir()
        manifest, folder = published(here, path, precision, EngineWish(axes=axes))
        sizes = {kind: build(manifest, folder, kind) for kind in (precision, EXACT)}
        assert sizes[precision] < 0.6 * sizes[EXACT]
        assert sizes[precision] > 2 * minilm.PARAMETERS
