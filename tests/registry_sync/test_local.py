"""A node's own folder: what is visible is whole, and stays inside."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import msgspec
import pytest

from registry_sync.documents import File, Manifest
from registry_sync.local import BadLayout, LocalStore
from registry_sync.names import BadName
from tests.support.artifacts import manifest_of

FILES = {"model.onnx": b"graph", "weights/a.bin": b"aaaa", "weights/deep/b.bin": b"bb"}
MANIFEST = manifest_of(FILES)


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "data")


@pytest.fixture
def filled(local: LocalStore) -> LocalStore:
    put_blobs(local, MANIFEST, FILES)
    return local


def put_blobs(local: LocalStore, manifest: Manifest, files: dict[str, bytes]) -> None:
    for file in manifest.files:
        local.blob_path(file.sha256).write_bytes(files[file.path])


def test_a_manifest_is_here_when_all_its_files_are(filled: LocalStore) -> None:
    assert filled.has(MANIFEST)
    filled.blob_path(MANIFEST.files[1].sha256).unlink()
    assert not filled.has(MANIFEST)


def test_a_blob_of_another_size_is_not_here(filled: LocalStore) -> None:
    filled.blob_path(MANIFEST.files[0].sha256).write_bytes(b"grap")
    assert not filled.has(MANIFEST)


@pytest.mark.rule("SEC-14")
def test_a_link_is_no_blob(filled: LocalStore) -> None:
    blob = filled.blob_path(MANIFEST.files[0].sha256)
    blob.unlink()
    blob.symlink_to("other")  # as long as the file, which is what stat says of a link
    assert not filled.has(MANIFEST)


def test_a_blob_is_named_by_a_digest_only(local: LocalStore) -> None:
    with pytest.raises(BadName):
        local.blob_path("../../etc/passwd")


def test_a_folder_shows_the_files_under_their_names(filled: LocalStore) -> None:
    folder = filled.folder_of(MANIFEST)
    assert {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    } == FILES
    assert (folder / "model.onnx").samefile(filled.blob_path(MANIFEST.files[0].sha256))


def test_a_folder_is_made_once(filled: LocalStore) -> None:
    folder = filled.folder_of(MANIFEST)
    inode = folder.stat().st_ino
    assert filled.folder_of(MANIFEST) == folder
    assert folder.stat().st_ino == inode
    assert [path.name for path in folder.parent.iterdir()] == [MANIFEST.digest]


def test_equal_artifacts_share_a_folder(filled: LocalStore) -> None:
    other = msgspec.structs.replace(MANIFEST, model="other", version="7", labels={"a": "b"})
    assert filled.folder_of(other) == filled.folder_of(MANIFEST)


def test_a_damaged_folder_is_made_again(filled: LocalStore) -> None:
    folder = filled.folder_of(MANIFEST)
    (folder / "weights" / "a.bin").unlink()
    assert filled.folder_of(MANIFEST) == folder
    assert (folder / "weights" / "a.bin").read_bytes() == b"aaaa"
    assert len(list(folder.parent.iterdir())) == 1


def test_without_a_blob_no_folder_appears(filled: LocalStore) -> None:
    filled.blob_path(MANIFEST.files[2].sha256).unlink()
    with pytest.raises(FileNotFoundError):
        filled.folder_of(MANIFEST)
    assert list((filled.blob_path("0" * 64).parents[2] / "trees").iterdir()) == []


def test_a_folder_made_by_many_at_once_is_whole_for_each(filled: LocalStore) -> None:
    failures: list[BaseException] = []

    def look() -> None:
        try:
            folder = filled.folder_of(MANIFEST)
            for path, data in FILES.items():
                assert (folder / path).read_bytes() == data
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_where_links_cannot_be_files_are_copied(
    filled: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def link(*_args: object, **_options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)
    folder = filled.folder_of(MANIFEST)
    assert (folder / "weights" / "deep" / "b.bin").read_bytes() == b"bb"
    assert not (folder / "model.onnx").samefile(filled.blob_path(MANIFEST.files[0].sha256))


@pytest.mark.rule("SEC-14", "SEC-15")
@pytest.mark.parametrize("path", ["../out", "/etc/out", "a/../../out", "", ".", "a//b", "a\0b"])
def test_a_path_does_not_leave_the_folder(filled: LocalStore, path: str) -> None:
    # Built past the reader, which refuses such a path as well.
    evil = msgspec.structs.replace(
        MANIFEST, files=(File(path, MANIFEST.files[0].sha256, MANIFEST.files[0].bytes),)
    )
    with pytest.raises(BadLayout, match="folder"):
        filled.folder_of(evil)


@pytest.mark.rule("SEC-15")
def test_files_in_each_others_way_are_refused(filled: LocalStore) -> None:
    one = MANIFEST.files[0]
    for paths in (("a", "a/b"), ("a/b", "a"), ("a", "a")):
        evil = msgspec.structs.replace(
            MANIFEST, files=tuple(File(path, one.sha256, one.bytes) for path in paths)
        )
        with pytest.raises(BadLayout, match="in the way"):
            filled.folder_of(evil)


def test_a_manifest_is_kept(local: LocalStore) -> None:
    assert local.load_manifest("m", "1") is None
    local.save_manifest(MANIFEST)
    assert local.load_manifest("m", "1") == MANIFEST
    assert local.load_manifest("m", "2") is None


def test_a_manifest_is_kept_with_what_this_release_ignores(
    local: LocalStore, tmp_path: Path
) -> None:
    text = msgspec.json.encode({**msgspec.to_builtins(MANIFEST), "later": 1})
    local.save_manifest(MANIFEST, text)
    assert (tmp_path / "data/models/m/1/manifest.json").read_bytes() == text
    assert local.load_manifest("m", "1") == MANIFEST


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b'{"schema": 99}'])
def test_a_damaged_manifest_counts_as_none(local: LocalStore, tmp_path: Path, text: bytes) -> None:
    local.save_manifest(MANIFEST)
    (tmp_path / "data/models/m/1/manifest.json").write_bytes(text)
    assert local.load_manifest("m", "1") is None


def test_a_manifest_in_the_wrong_place_counts_as_none(local: LocalStore, tmp_path: Path) -> None:
    local.save_manifest(MANIFEST)
    (tmp_path / "data/models/m/1").rename(tmp_path / "data/models/m/2")
    assert local.load_manifest("m", "2") is None


def test_a_document_is_the_last_one_saved(local: LocalStore) -> None:
    assert local.load_document("endpoints/a.json") is None
    local.save_document("endpoints/a.json", b"1")
    local.save_document("endpoints/a.json", b"2")
    assert local.load_document("endpoints/a.json") == b"2"


@pytest.mark.rule("SEC-14")
def test_a_document_does_not_leave_its_folder(local: LocalStore) -> None:
    for act in (
        lambda: local.save_document("../x", b""),
        lambda: local.load_document("/etc/passwd"),
    ):
        with pytest.raises(ValueError, match="not a key"):
            act()
