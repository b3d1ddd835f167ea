"""Archives of torch.export as versions."""

from __future__ import annotations

import os
import pickle
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
from registry_sync.pt2_archive import SAMPLES, WEIGHTS
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


class Hostile:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/tidepool-was-run",)


def test_hostile_sample_inputs_do_not_reach_the_registry(
    store: DirectoryStore, tmp_path: Path
) -> None:
    hostile = pickle.dumps(Hostile())
    path = pt2.altered(pt2.scaled(tmp_path / "m.pt2"), removed=(SAMPLES,), added={SAMPLES: hostile})
    published(store, path)
    blobs = [one for one in (tmp_path / "registry" / "blobs").rglob("*") if one.is_file()]
    assert len(blobs) == 1
    assert hostile in path.read_bytes()
    assert hostile not in blobs[0].read_bytes()
    with zipfile.ZipFile(blobs[0]) as archive:
        assert archive.getinfo(f"model/{SAMPLES}").file_size == 0


@pytest.mark.parametrize(
    ("name", "bytes_"),
    [
        *(("data/weights/weight_0", bytes_) for bytes_ in (0, 12, 15, 17, 18)),
        *(("data/constants/tensor_0", bytes_) for bytes_ in (0, 3, 5)),
    ],
)
def test_a_weight_of_another_size_than_its_shape_is_refused(
    store: DirectoryStore, tmp_path: Path, name: str, bytes_: int
) -> None:
    path = pt2.altered(
        pt2.scaled(tmp_path / "m.pt2"), removed=(name,), added={name: b"\x00" * bytes_}
    )
    with pytest.raises(BadModel, match=rf"by its shape and type, but \w+ has {bytes_}: it is dam"):
        publish(store, "m", path)
    assert not [one for one in (tmp_path / "registry").rglob("*") if one.is_file()]


@pytest.mark.parametrize(
    "change",
    [
        {"sizes": [{"as_int": 5}]},
        {"strides": [{"as_int": 2}]},
        {"storage_offset": {"as_int": 1}},
        {"dtype": 8},
        {"dtype": 99},
        {"sizes": [{"as_int": -4}]},
        {"sizes": [{"as_int": 4}, {"as_int": 1}]},
        {"sizes": 4},
    ],
)
def test_a_shape_that_its_file_does_not_hold_is_refused(
    store: DirectoryStore, tmp_path: Path, change: dict[str, Any]
) -> None:
    def alter(plain: Any) -> None:
        plain["config"]["weight"]["tensor_meta"].update(change)

    path = pt2.altered(pt2.scaled(tmp_path / "m.pt2"), json_of={WEIGHTS: alter})
    with pytest.raises(BadModel, match=r"takes \d+ bytes by its shape|shape cannot be read"):
        publish(store, "m", path)


class Parts(torch.nn.Module):
    """Weights that are parts of one tensor: they share its file, which is larger than either."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.arange(12.0)
        self.register_buffer("first", whole[2:6])
        self.register_buffer("second", whole[6:10].flip(0).reshape(2, 2).t()[0])
        self.register_buffer("third", whole[7:11])
        self.register_buffer("none", torch.zeros(0, 4))

    def forward(self, x: Any) -> Any:
        return x * self.first + self.third + self.second.sum() + self.none.sum()


@pytest.mark.filterwarnings("ignore:No complete tensor found")
def test_weights_that_are_parts_of_a_larger_one_are_published(
    store: DirectoryStore, tmp_path: Path
) -> None:
    module = Parts()
    manifest = published(store, pt2.save(tmp_path / "m.pt2", module, torch.ones(3, 4)))
    blob = tmp_path / "registry" / blob_key(manifest.files[0].sha256)
    program = torch.export.load(str(blob))
    x = torch.ones(2, 4)
    assert torch.equal(program.module(check_guards=False)(x), module(x))


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
