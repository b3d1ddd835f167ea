"""What publishing leaves in a store, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper, numpy_helper

from registry_sync import artifact, catalog, endpoints
from registry_sync.directory import DirectoryStore
from registry_sync.documents import BadDocument, Cache, File, TensorSpec, Variant
from registry_sync.golden import find_golden
from registry_sync.names import BadName
from registry_sync.open import open_store
from registry_sync.publish import BadArtifact, BadModel, VersionExists, publish
from registry_sync.stores import NotFound, OutcomeUnknown, StoreUnavailable
from tests.support import models
from tests.support.artifacts import manifest_of

X = models.tensor("x", TensorProto.FLOAT, ["N", 4])
Y = models.tensor("y", TensorProto.FLOAT, ["N", 4])
SIDECAR = {
    "format": "counting",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
}


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "registry")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return models.mlp(tmp_path / "any name.onnx")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "folder"
    path.mkdir()
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def keys(store: DirectoryStore) -> set[str]:
    return {entry.key for entry in store.list("")}


def custom(folder: Path, **changes: Any) -> Path:
    (folder / "tidepool.json").write_text(json.dumps({**SIDECAR, **changes}))
    (folder / "weights").write_bytes(b"w")
    return folder


# --- what is left in the store ---


def test_file_becomes_blob_manifest_and_endpoint(store: DirectoryStore, model: Path) -> None:
    assert publish(store, "digits", model, labels={"git": "abc"}) == "1"
    manifest = catalog.load_manifest(store, "digits", "1")
    assert manifest.files == (File("model.onnx", sha256(model), model.stat().st_size),)
    assert (manifest.format, manifest.labels, manifest.golden) == ("onnx", {"git": "abc"}, None)
    assert manifest.inputs == (TensorSpec("x", "FP32", (-1, 16)),)
    assert manifest.outputs == (TensorSpec("y", "FP32", (-1, 10)),)
    assert store.get(f"blobs/sha256/{sha256(model)}").data == model.read_bytes()
    assert keys(store) == {
        f"blobs/sha256/{sha256(model)}",
        "models/digits/1/manifest.json",
        "endpoints/digits.json",
    }


def test_created_is_now_in_utc(store: DirectoryStore, model: Path) -> None:
    publish(store, "digits", model)
    created = datetime.fromisoformat(catalog.load_manifest(store, "digits", "1").created)
    assert created.utcoffset() == timedelta(0)
    assert abs(created.timestamp() - time.time()) < 60


def test_first_publish_gives_the_model_an_endpoint_at_100_percent(
    store: DirectoryStore, model: Path
) -> None:
    publish(store, "digits", model)
    spec, _ = endpoints.get_spec(store, "digits")
    assert spec.variants == (Variant("stable", "digits", "1", 100.0),)
    assert (spec.revision, spec.cache) == (1, Cache(3600.0, False))


def test_answers_of_a_model_that_is_not_deterministic_are_not_cached(
    store: DirectoryStore, model: Path
) -> None:
    publish(store, "digits", model, nondeterministic=True)
    assert not catalog.load_manifest(store, "digits", "1").deterministic
    assert endpoints.get_spec(store, "digits")[0].cache is None


def test_later_publishes_move_no_traffic(store: DirectoryStore, model: Path) -> None:
    publish(store, "digits", model)
    before = store.get("endpoints/digits.json")
    assert publish(store, "digits", model) == "2"
    assert store.get("endpoints/digits.json") == before


def test_endpoint_that_a_killed_first_publish_left_out_is_made_by_the_next(
    store: DirectoryStore, model: Path
) -> None:
    publish(store, "digits", model)
    store.delete("endpoints/digits.json")
    publish(store, "digits", model)
    assert endpoints.get_spec(store, "digits")[0].variants[0].version == "2"


def test_versions_count_on_from_the_highest(store: DirectoryStore, model: Path) -> None:
    assert publish(store, "digits", model, version="9") == "9"
    assert publish(store, "digits", model) == "10"
    assert publish(store, "digits", model) == "11"
    assert catalog.versions(store, "digits") == ["9", "10", "11"]
    assert catalog.models(store) == {"digits": ["9", "10", "11"]}


def test_version_that_is_taken_is_refused_and_stays_as_it_is(
    store: DirectoryStore, model: Path, tmp_path: Path
) -> None:
    publish(store, "digits", model, version="3")
    before = keys(store)
    with pytest.raises(VersionExists, match=r"^digits version 3 is published already"):
        publish(store, "digits", models.mlp(tmp_path / "other.onnx", seed=1), version="3")
    assert keys(store) == before


@pytest.mark.parametrize("version", ["0", "v1", "1.0", "../1", "01", ""])
def test_version_that_is_no_decimal_number_is_refused(
    store: DirectoryStore, model: Path, version: str
) -> None:
    with pytest.raises(BadName):
        publish(store, "digits", model, version=version)


@pytest.mark.parametrize("name", ["../digits", "Digits", ""])
def test_model_that_is_no_name_is_refused(store: DirectoryStore, model: Path, name: str) -> None:
    with pytest.raises(BadName):
        publish(store, name, model)


def test_labels_that_do_not_fit_are_refused_before_anything_is_written(
    store: DirectoryStore, model: Path
) -> None:
    with pytest.raises(BadDocument, match=r"^\$\.labels\.a: 1025 characters"):
        publish(store, "digits", model, labels={"a": "x" * 1025})
    assert keys(store) == set()


# --- batches ---


@pytest.mark.parametrize(
    ("given", "answered", "rows_max"),
    [
        (["N", 4], ["N", 4], 32),
        ([None, 4], ["M", 4], 32),
        ([1, 4], [1, 4], 1),
        ([], [], 1),
        (["N", 4], [4], 1),
        (["N", 4], [], 1),
    ],
)
def test_rows_are_batched_if_the_first_axis_of_every_tensor_is_symbolic(
    store: DirectoryStore, tmp_path: Path, given: list[Any], answered: list[Any], rows_max: int
) -> None:
    x, y = (models.tensor(n, TensorProto.FLOAT, s) for n, s in (("x", given), ("y", answered)))
    path = models.save(tmp_path / "m.onnx", [helper.make_node("Identity", ["x"], ["y"])], [x], [y])
    publish(store, "m", path)
    assert catalog.load_manifest(store, "m", "1").rows_max == rows_max


def test_one_input_with_a_fixed_first_axis_prevents_batches(
    store: DirectoryStore, tmp_path: Path
) -> None:
    z = models.tensor("z", TensorProto.FLOAT, [4])
    path = models.save(
        tmp_path / "m.onnx", [helper.make_node("Add", ["x", "z"], ["y"])], [X, z], [Y]
    )
    publish(store, "m", path)
    assert catalog.load_manifest(store, "m", "1").rows_max == 1


def test_model_without_inputs_is_not_batched(store: DirectoryStore, tmp_path: Path) -> None:
    dice = helper.make_node("RandomNormal", [], ["y"], shape=[1, 4])
    publish(store, "m", models.save(tmp_path / "m.onnx", [dice], [], [Y]))
    assert catalog.load_manifest(store, "m", "1").rows_max == 1


# --- folders ---


def test_folder_is_published_with_everything_in_it(store: DirectoryStore, folder: Path) -> None:
    w = numpy_helper.from_array(np.zeros((4,), np.float32), "w")
    models.save(
        folder / "model.onnx",
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [X],
        [Y],
        [w],
        external="w.bin",
    )
    (folder / "vocab").mkdir()
    (folder / "vocab" / "words.txt").write_text("a b")
    publish(store, "m", folder)
    files = catalog.load_manifest(store, "m", "1").files
    assert files == tuple(
        File(name, sha256(folder / name), (folder / name).stat().st_size)
        for name in ("model.onnx", "vocab/words.txt", "w.bin")
    )


def test_only_graph_of_a_folder_is_found_under_any_name(
    store: DirectoryStore, folder: Path
) -> None:
    models.mlp(folder / "net.onnx")
    publish(store, "m", folder)
    assert [file.path for file in catalog.load_manifest(store, "m", "1").files] == ["model.onnx"]


def test_graph_named_model_wins_over_others(store: DirectoryStore, folder: Path) -> None:
    models.mlp(folder / "a.onnx")
    models.mlp(folder / "model.onnx", features=5)
    publish(store, "m", folder)
    manifest = catalog.load_manifest(store, "m", "1")
    assert [file.path for file in manifest.files] == ["a.onnx", "model.onnx"]
    assert manifest.inputs[0].shape == (-1, 5)


def test_folder_with_several_graphs_or_none_is_refused(store: DirectoryStore, folder: Path) -> None:
    with pytest.raises(BadArtifact, match=r"one \.onnx file at the folder's top, found none"):
        publish(store, "m", folder)
    models.mlp(folder / "a.onnx")
    models.mlp(folder / "b.onnx")
    with pytest.raises(BadArtifact, match=r"found a\.onnx, b\.onnx; other formats need a tidepool"):
        publish(store, "m", folder)


def test_graph_whose_weights_are_left_behind_is_refused(
    store: DirectoryStore, folder: Path
) -> None:
    w = numpy_helper.from_array(np.zeros((4,), np.float32), "w")
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    path = models.save(folder / "model.onnx", nodes, [X], [Y], [w], external="w.bin")
    with pytest.raises(BadModel, match=r"'w\.bin', which is not published with it: publish the"):
        publish(store, "m", path)


@pytest.mark.rule("SEC-15")
def test_symbolic_links_are_refused(store: DirectoryStore, folder: Path, model: Path) -> None:
    linked_file, linked_folder = folder / "file", folder / "folder"
    models.mlp(folder / "model.onnx")
    for link, target in ((linked_file, "/etc/passwd"), (linked_folder, "/etc")):
        link.symlink_to(target)
        with pytest.raises(BadArtifact, match=rf"{link}: a symbolic link; publish what it points"):
            publish(store, "m", folder)
        link.unlink()
    for name, meant in (("x.onnx", model), ("link", folder)):
        path = folder.parent / name
        path.symlink_to(meant)
        with pytest.raises(BadArtifact, match=rf"a symbolic link; .*: {meant}$"):
            publish(store, "m", path)
    assert keys(store) == set()


@pytest.mark.rule("SEC-15")
@pytest.mark.parametrize("name", ["model.zip", "weights.tar.gz", "sub/W.TGZ", "model.onnx.zst"])
def test_archives_are_refused_with_the_way_out(
    store: DirectoryStore, folder: Path, name: str
) -> None:
    archive = folder / name
    archive.parent.mkdir(exist_ok=True)
    archive.write_bytes(b"PK")
    for path, shown in ((archive, archive.name), (folder, name)):
        with pytest.raises(BadArtifact, match=f"^{shown}: an archive; unpack it, and publish the"):
            publish(store, "m", path)
    assert not catalog.models(store)


@pytest.mark.rule("SEC-15")
def test_pipes_and_names_that_are_no_paths_are_refused(store: DirectoryStore, folder: Path) -> None:
    models.mlp(folder / "model.onnx")
    os.mkfifo(folder / "pipe")
    with pytest.raises(BadArtifact, match="pipe: neither a plain file nor a folder"):
        publish(store, "m", folder)
    (folder / "pipe").unlink()
    for name in (b"back\\slash", b"new\nline", b"\xff"):
        odd = os.path.join(os.fsencode(folder), name)
        with open(odd, "wb"):
            pass
        with pytest.raises(BadArtifact, match="not a name for a file of an artifact"):
            publish(store, "m", folder)
        os.unlink(odd)
    with pytest.raises(BadArtifact, match="No such file"):
        publish(store, "m", folder / "nothing")


@pytest.mark.rule("SEC-15")
def test_number_of_files_is_bounded(
    store: DirectoryStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact, "FILES_MAX", 3)
    models.mlp(folder / "model.onnx")
    for name in "abc":
        (folder / name).touch()
    with pytest.raises(BadArtifact, match="more than 3 files"):
        publish(store, "m", folder)


def test_file_of_another_kind_is_refused(store: DirectoryStore, folder: Path) -> None:
    (folder / "model.pt").write_bytes(b"x")
    with pytest.raises(BadArtifact, match=r"model\.pt: not an \.onnx or \.pt2 file; publish"):
        publish(store, "m", folder / "model.pt")


# --- other formats ---


def test_folder_in_another_format_says_itself_what_it_is(
    store: DirectoryStore, folder: Path
) -> None:
    publish(store, "m", custom(folder, rows_max=8, deterministic=True))
    manifest = catalog.load_manifest(store, "m", "1")
    assert (manifest.format, manifest.rows_max, manifest.deterministic) == ("counting", 8, True)
    assert manifest.inputs == (TensorSpec("x", "FP32", (-1, 4)),)
    assert [file.path for file in manifest.files] == ["weights"]


def test_other_formats_are_batched_by_shape_and_not_cached_unless_they_say_so(
    store: DirectoryStore, folder: Path
) -> None:
    publish(store, "m", custom(folder))
    manifest = catalog.load_manifest(store, "m", "1")
    assert (manifest.rows_max, manifest.deterministic) == (32, False)


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"format": "onnx"}, BadArtifact, "signature is read from its graph"),
        ({"formt": "x"}, BadDocument, r"tidepool\.json: \$\.formt: unknown field; did you mean"),
        ({"inputs": 5}, BadDocument, r"tidepool\.json: \$\.inputs: expected a list, got 5"),
        ({"rows_max": 0}, BadDocument, r"\$\.rows_max: 0 is out of range"),
        (
            {"inputs": [{"name": "x", "datatype": "FLOAT", "shape": []}]},
            BadDocument,
            r'\$\.inputs\[0\]\.datatype: datatype "FLOAT" is not one of',
        ),
    ],
)
def test_sidecar_that_does_not_fit_is_refused(
    store: DirectoryStore, folder: Path, changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        publish(store, "m", custom(folder, **changes))
    assert keys(store) == set()


# --- golden ---


def test_recorded_inputs_and_outputs_become_a_blob(
    store: DirectoryStore, model: Path, tmp_path: Path
) -> None:
    golden = tmp_path / "golden.npz"
    np.savez(golden, x=np.zeros((50, 16), np.float32), y=np.zeros((50, 3), np.float32))
    publish(store, "digits", model, golden=golden)
    assert catalog.load_manifest(store, "digits", "1").golden == sha256(golden)
    assert store.size(f"blobs/sha256/{sha256(golden)}") == golden.stat().st_size


def pickled(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, x=np.array([object()]))


def single_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


ROWS = np.ones((2, 16), np.float32)


def recording(**arrays: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **arrays)


def text_inside(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "no array")


def damaged(path: Path) -> None:
    np.savez_compressed(path, x=ROWS)
    data = bytearray(path.read_bytes())
    data[50:80] = b"\xff" * 30
    path.write_bytes(data)


def bomb(path: Path) -> None:
    np.savez_compressed(path, x=np.zeros(65 * 1024**2, np.uint8))


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (pickled, "not an .npz file without pickles"),
        (single_array, "not an .npz file without pickles"),
        (lambda path: path.write_bytes(b"PK\x05\x06" + b"\0" * 18), "holds no arrays"),
        (lambda path: path.write_bytes(b"x"), "not an .npz file without pickles"),
        (bomb, "bytes unpacked; at most 67108864"),
        (recording(z=ROWS), 'golden.npz: it has no "x"'),
        (recording(x=ROWS, z=ROWS), '"z" is neither an input nor an output'),
        (recording(x=ROWS[:, :15]), r"has shape \[2, 15\], the signature says \[-1, 16\]"),
        (recording(x=ROWS[0]), r"has shape \[16\]"),
        (recording(x=ROWS[:0]), '"x" has no row'),
        (recording(x=ROWS.astype(np.float64)), "is float64, the signature says FP32"),
        (recording(x=ROWS * np.float32("nan")), '"x" holds NaN'),
        (text_inside, '"x" is no array'),
        (damaged, "not an .npz file without pickles"),
    ],
)
def test_golden_file_that_is_none_is_refused(
    store: DirectoryStore, model: Path, tmp_path: Path, write: Callable[[Path], Any], text: str
) -> None:
    golden = tmp_path / "golden.npz"
    write(golden)
    with pytest.raises(BadArtifact, match=text):
        publish(store, "digits", model, golden=golden)
    assert keys(store) == set()


@pytest.mark.parametrize(
    ("datatype", "arrays", "text"),
    [
        ("FP32", {"b": np.ones((3, 2), np.float32)}, 'numbers of rows: 2 of "a", 3 of "b"'),
        ("BF16", {"b": np.full((2, 2), 0x7F81, np.uint16)}, '"b" holds NaN'),
        ("BF16", {"b": np.full((2, 2), 0xFF80, np.uint16)}, ""),  # -inf, as masks have it
        ("BYTES", {"b": np.full((2, 2), "é")}, ""),
        ("BYTES", {"b": np.ones((2, 2))}, "is float64, the signature says BYTES"),
    ],
)
def test_golden_inputs_fit_one_another_and_their_datatypes(
    tmp_path: Path, datatype: str, arrays: dict[str, Any], text: str
) -> None:
    inputs = (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", datatype, (-1, 2)))
    manifest = replace(manifest_of({"a": b"a"}), inputs=inputs, rows_max=4)
    np.savez(tmp_path / "golden.npz", a=np.ones((2, 2), np.float32), **arrays)
    with pytest.raises(BadArtifact, match=text) if text else nullcontext():
        find_golden(tmp_path / "golden.npz", manifest)


# --- faults ---


class Faulty(DirectoryStore):
    """Fails in its n-th call that writes."""

    def __init__(self, root: Path, fails_at: int) -> None:
        super().__init__(root)
        self.calls_left = fails_at

    def _count(self) -> None:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise StoreUnavailable("out of order")

    def put_new(self, key: str, data: bytes) -> str:
        self._count()
        return super().put_new(key, data)

    def put_file_new(self, key: str, path: Path) -> str | None:
        self._count()
        return super().put_file_new(key, path)


def test_publish_that_dies_anywhere_shows_nothing_or_all_of_a_version(
    folder: Path, tmp_path: Path
) -> None:
    models.mlp(folder / "model.onnx")
    (folder / "words.txt").write_text("a")
    for fails_at in range(4):
        root = tmp_path / f"registry-{fails_at}"
        with pytest.raises(StoreUnavailable):
            publish(Faulty(root, fails_at), "m", folder)
        store = DirectoryStore(root)
        if catalog.versions(store, "m"):
            for file in catalog.load_manifest(store, "m", "1").files:
                assert store.size(f"blobs/sha256/{file.sha256}") == file.bytes
        else:
            assert not store.list("endpoints")
        # And publishing again mends it.
        version = publish(store, "m", folder)
        assert endpoints.get_spec(store, "m")[0].variants[0].version == version
    publish(Faulty(tmp_path / "registry-4", 4), "m", folder)


def test_blobs_that_are_there_are_not_sent_again(model: Path, tmp_path: Path) -> None:
    publish(DirectoryStore(tmp_path / "registry"), "digits", model)
    store = Faulty(tmp_path / "registry", 2)  # manifest and endpoint only
    assert publish(store, "other", model) == "1"


def test_blob_of_a_wrong_size_is_replaced(store: DirectoryStore, model: Path) -> None:
    store.put_new(f"blobs/sha256/{sha256(model)}", b"half")
    publish(store, "digits", model)
    assert store.get(f"blobs/sha256/{sha256(model)}").data == model.read_bytes()


def test_file_that_changes_while_it_is_sent_is_not_published(model: Path, tmp_path: Path) -> None:
    class Slow(DirectoryStore):
        def put_file_new(self, key: str, path: Path) -> str | None:
            models.mlp(path, seed=2)
            return super().put_file_new(key, path)

    store = Slow(tmp_path / "registry")
    with pytest.raises(BadArtifact, match=r"^model\.onnx: changed while it was published"):
        publish(store, "digits", model)
    assert keys(store) == set()


def test_version_whose_write_was_overtaken_unseen_is_taken(model: Path, tmp_path: Path) -> None:
    class Lossy(DirectoryStore):
        def put_new(self, key: str, data: bytes) -> str:
            if key == "models/digits/1/manifest.json" and not self.list("models"):
                super().put_new(key, b"{}")
                raise OutcomeUnknown(key)
            return super().put_new(key, data)

    with pytest.raises(VersionExists):
        publish(Lossy(tmp_path / "a"), "digits", model, version="1")
    assert publish(Lossy(tmp_path / "b"), "digits", model) == "2"


# --- races ---


def test_publishers_at_once_get_different_versions(model: Path, tmp_path: Path) -> None:
    def one(_: int) -> str:
        return publish(DirectoryStore(tmp_path / "registry"), "digits", model)

    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(one, range(24)))
    assert sorted(map(int, versions)) == list(range(1, 25))


def test_publishers_of_one_version_at_once_have_one_winner(tmp_path: Path) -> None:
    paths = [models.mlp(tmp_path / f"{seed}.onnx", seed=seed) for seed in range(8)]

    def one(path: Path) -> str | None:
        try:
            publish(DirectoryStore(tmp_path / "registry"), "digits", path, version="5")
        except VersionExists:
            return None
        return sha256(path)

    with ThreadPoolExecutor(8) as pool:
        winners = [digest for digest in pool.map(one, paths) if digest]
    manifest = catalog.load_manifest(DirectoryStore(tmp_path / "registry"), "digits", "5")
    assert winners == [manifest.files[0].sha256]


def publish_in_child(root: str, path: str) -> str:
    return publish(DirectoryStore(Path(root)), "digits", Path(path))


def test_publishing_processes_get_different_versions(model: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        work = [(str(tmp_path / "registry"), str(model))] * 8
        versions = pool.starmap(publish_in_child, work)
        pool.close()
        pool.join()
    assert sorted(map(int, versions)) == list(range(1, 9))


_KILLED = """
import sys
from pathlib import Path
from registry_sync import catalog, publish
from registry_sync.directory import DirectoryStore

class Told(DirectoryStore):
    def put_new(self, key, data):
        print(key, flush=True)
        sys.stdin.read()
        return super().put_new(key, data)

publish.publish(Told(Path(sys.argv[1])), "digits", Path(sys.argv[2]))
"""


def test_publish_killed_before_its_manifest_leaves_nothing_visible(
    model: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "registry"), str(model)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"models/digits/1/manifest.json\n"
        process.send_signal(signal.SIGKILL)
    store = DirectoryStore(tmp_path / "registry")
    assert keys(store) == {f"blobs/sha256/{sha256(model)}"}
    assert publish(store, "digits", model) == "1"


def test_s3_keeps_the_same_promises(s3_url: str, model: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        versions = list(pool.map(lambda _: publish(open_store(s3_url), "digits", model), range(4)))
    store = open_store(s3_url)
    assert sorted(versions) == catalog.versions(store, "digits") == ["1", "2", "3", "4"]
    assert store.get(f"blobs/sha256/{sha256(model)}").data == model.read_bytes()
    assert endpoints.get_spec(store, "digits")[0].revision == 1
    with pytest.raises(VersionExists):
        publish(store, "digits", model, version="2")
    with pytest.raises(NotFound):
        catalog.load_manifest(store, "digits", "5")
    store.close()
