"""What a wish for an engine may name; wherever it is written, the problem has its path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from registry_sync import catalog, documents, endpoints
from registry_sync.builds import precision_of
from registry_sync.directory import DirectoryStore
from registry_sync.documents import (
    AxisRange,
    BadDocument,
    EndpointSpec,
    EngineWish,
    File,
    GateLimits,
    Manifest,
    TensorSpec,
    Variant,
)
from registry_sync.engine_wishes import wish_problems
from registry_sync.publish import Terms, publish
from tests.support import models

RANGE = AxisRange(1, 8, 64)
IDS, IMAGE = TensorSpec("ids", "INT64", (-1, -1)), TensorSpec("a:b", "FP32", (-1, 3, -1))
MANIFEST = Manifest(
    model="m",
    version="1",
    created="",
    format="onnx",
    files=(File("model.onnx", "0" * 64, 1),),
    inputs=(IDS, IMAGE),
    outputs=(),
    rows_max=32,
    deterministic=True,
)


def problems(wish: EngineWish, *manifests: Manifest) -> list[str]:
    return wish_problems(wish, manifests or [MANIFEST])


def test_wish_that_fits_has_no_problem() -> None:
    assert not problems(EngineWish("tensorrt", "fp32", {"ids:1": RANGE, "a:b:2": RANGE}))
    assert not problems(EngineWish())
    assert not wish_problems(EngineWish("no one"), [])  # nothing is published: that is said already


@pytest.mark.parametrize(
    ("axis", "why"),
    [
        ("mask:1", "there is no input 'mask', only a:b, ids"),
        ("ids:2", "'ids' has 2 axes, counted from 0"),
        ("a:b:1", "its size is 3 and nothing else"),
        ("ids:0", "it follows the batch"),
    ],
)
def test_axis_that_has_no_range_is_named(axis: str, why: str) -> None:
    (found,) = problems(EngineWish(axes={axis: RANGE, "ids:1": RANGE}))
    assert found.replace('"', "'") == (
        f"$.engine.axes.{axis}: {why}; axes that may have a range: a:b:2, ids:1"
    )


def test_precision_that_no_version_has_is_named() -> None:
    (found,) = problems(EngineWish(precision="fp16"))
    assert found.startswith("$.engine.precision: ")
    assert found.endswith(
        "is none of m version 1, which computes in fp32; publish it with --precision fp16"
    )
    half = replace(MANIFEST, version="2", precision="fp16")
    assert not problems(EngineWish(precision="fp16"), MANIFEST, half)
    assert not problems(EngineWish(precision="fp32"), half)
    (found,) = problems(EngineWish(precision="bf16"), half)
    assert "computes in fp16 or fp32" in found


@pytest.mark.parametrize("name", ["tensort", "torch"])
def test_engine_that_does_not_run_the_format_is_named(name: str) -> None:
    (found,) = problems(EngineWish(name))
    assert found.startswith("$.engine.name: ")
    assert found.endswith("for onnx; use auto, onnxruntime or tensorrt or tensorrt_rtx")


def test_formats_of_operators_own_have_engines_of_any_name() -> None:
    assert not problems(EngineWish("acme"), replace(MANIFEST, format="acme-graph"))
    exported = replace(MANIFEST, format="torch-export")
    assert not problems(EngineWish("torch"), MANIFEST, exported)
    assert len(problems(EngineWish("acme"), MANIFEST, exported)) == 1


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "registry")


WRONG = EngineWish("acme", "bf16", {"x:1": RANGE})
PATHS = ["$.engine.name", "$.engine.precision", "$.engine.axes.x:1"]


def paths_of(error: BadDocument) -> list[str]:
    return [problem.partition(": ")[0] for problem in error.problems]


def test_endpoint_is_held_to_its_versions(store: DirectoryStore, tmp_path: Path) -> None:
    publish(store, "m", models.mlp(tmp_path / "m.onnx"))
    spec = EndpointSpec("m", (Variant("a", "m", "1", 100.0),), engine=WRONG)
    with pytest.raises(BadDocument) as caught:
        endpoints.set_spec(store, spec)
    assert paths_of(caught.value) == PATHS
    assert endpoints.get_spec(store, "m")[0].revision == 1


def test_publish_is_held_to_the_signature(store: DirectoryStore, tmp_path: Path) -> None:
    path = models.mlp(tmp_path / "m.onnx")
    with pytest.raises(BadDocument) as caught:
        publish(store, "m", path, terms=Terms(engine=WRONG))
    assert paths_of(caught.value) == PATHS
    assert not list(store.list(""))


def test_terms_of_a_publish_stand_in_the_manifest(store: DirectoryStore, tmp_path: Path) -> None:
    terms = Terms("fp32", EngineWish("tensorrt"), GateLimits(0.5, 0.9))
    publish(store, "m", models.mlp(tmp_path / "m.onnx"), terms=terms)
    manifest = catalog.load_manifest(store, "m", "1")
    assert (manifest.precision, manifest.engine, manifest.gate) == (
        terms.precision,
        terms.engine,
        terms.gate,
    )


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"gate": GateLimits(relative_error_max=11.0)}, "$.gate.relative_error_max"),
        ({"gate": GateLimits(relative_error_max=float("nan"))}, "$.gate.relative_error_max"),
        ({"gate": GateLimits(top1_agreement_min=1.5)}, "$.gate.top1_agreement_min"),
        ({"engine": EngineWish("No Name")}, "$.engine.name"),
        ({"engine": EngineWish(axes={"x:1": AxisRange(5, 4, 3)})}, "$.engine.axes.x:1"),
    ],
)
def test_terms_that_do_not_fit_are_named_and_nothing_is_sent(
    store: DirectoryStore, tmp_path: Path, changes: dict[str, Any], path: str
) -> None:
    with pytest.raises(BadDocument, match=rf"(?m)^{path.replace('$', '[$]')}: "):
        publish(store, "m", models.mlp(tmp_path / "m.onnx"), terms=Terms(**changes))
    assert not list(store.list(""))


def test_precision_is_that_of_the_version_or_fp32() -> None:
    half = replace(MANIFEST, precision="fp16")
    assert precision_of(half) == precision_of(half, EngineWish(precision="bf16")) == "fp16"
    assert precision_of(half, EngineWish(precision="fp32")) == "fp32"
    assert precision_of(MANIFEST, EngineWish(precision="fp16")) == "fp32"
    assert precision_of(replace(half, engine=EngineWish(precision="fp32"))) == "fp32"


def test_documents_round_trip_with_the_new_fields() -> None:
    manifest = replace(MANIFEST, precision="bf16", engine=WRONG, gate=GateLimits(0.1))
    assert documents.read_manifest(documents.write(manifest)) == manifest
