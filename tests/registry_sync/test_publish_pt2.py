"""Archives of torch.export as versions."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from registry_sync.artifact import BadArtifact
from registry_sync.catalog import blob_key, manifest_key
from registry_sync.directory import DirectoryStore
from registry_sync.documents import Manifest, read_manifest, read_spec
from registry_sync.onnx_signature import BadModel
from registry_sync.publish import publish
from tests.support import pt2


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "registry")


def published(store: DirectoryStore, path: Path, **options: Any) -> Manifest:
    version = publish(store, "m", path, **options)
    return read_manifest(store.get(manifest_key("m", version)).data)


def test_an_archive_becomes_a_version_with_its_signature(
    store: DirectoryStore, tmp_path: Path
) -> None:
    manifest = published(store, pt2.scaled(tmp_path / "any name.pt2"))
    assert manifest.format == "torch-export"
    assert [file.path for file in manifest.files] == ["model.pt2"]
    assert [(spec.name, spec.datatype, spec.shape) for spec in manifest.inputs] == [
        ("x", "FP32", (-1, 4))
    ]
    assert (manifest.rows_max, manifest.deterministic) == (32, True)
    assert read_spec(store.get("endpoints/m.json").data).cache is not None


def test_what_lies_in_the_registry_holds_no_pickle(store: DirectoryStore, tmp_path: Path) -> None:
    manifest = published(store, pt2.scaled(tmp_path / "m.pt2"))
    blob = tmp_path / "registry" / blob_key(manifest.files[0].sha256)
    with zipfile.ZipFile(blob) as archive:
        assert archive.getinfo("model/data/sample_inputs/model.pt").file_size == 0


def test_the_same_archive_shares_its_blob(store: DirectoryStore, tmp_path: Path) -> None:
    path = pt2.scaled(tmp_path / "m.pt2")
    assert published(store, path).digest == published(store, path).digest


def test_a_batch_is_no_larger_than_the_export_allows(store: DirectoryStore, tmp_path: Path) -> None:
    rows = torch.export.Dim("rows", min=1, max=7)
    program = torch.export.export(
        pt2.Scaled(), (torch.ones(3, 4),), dynamic_shapes={"x": {0: rows}}
    )
    torch.export.save(program, tmp_path / "m.pt2")
    assert published(store, tmp_path / "m.pt2").rows_max == 7


def test_an_archive_that_could_run_code_is_refused(store: DirectoryStore, tmp_path: Path) -> None:
    path = pt2.altered(pt2.scaled(tmp_path / "m.pt2"), added={"data/weights/model.pt": b"\x80"})
    with pytest.raises(BadModel, match="weights as a pickle"):
        publish(store, "m", path)
    assert not list((tmp_path / "registry").rglob("*.json"))


def test_a_sidecar_for_an_archive_is_refused(store: DirectoryStore, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    pt2.scaled(folder / "model.pt2")
    (folder / "tidepool.json").write_text('{"format": "torch-export", "inputs": [], "outputs": []}')
    with pytest.raises(BadArtifact, match=r"publish the \.pt2 file"):
        publish(store, "m", folder)
