"""A node that uses only signed versions: nothing else is brought, and nothing else that is here."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from registry_sync import catalog
from registry_sync.directory import DirectoryStore
from registry_sync.documents import Manifest
from registry_sync.local import LocalStore
from registry_sync.publish import publish
from registry_sync.sync import BadBlob, BadManifest, fetch, present
from registry_sync.trust import Trust
from tests.support import models
from tests.support.artifacts import put_artifact
from tests.support.signed import Signers, make_signers, overwrite

pytestmark = pytest.mark.rule("SEC-10")


@pytest.fixture
def signers(tmp_path: Path) -> Signers:
    return make_signers(tmp_path / "signers")


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "registry")


@pytest.fixture
def local(tmp_path: Path, signers: Signers) -> LocalStore:
    return LocalStore(tmp_path / "node", Trust(signers.file))


def put_signed(store: DirectoryStore, signers: Signers) -> Manifest:
    signed = signers.ours.sign(put_artifact(store, {"model.onnx": b"graph"}))
    overwrite(store, signed)
    return signed


def is_empty(tmp_path: Path) -> bool:
    return not [path for path in (tmp_path / "node").rglob("*") if path.is_file()]


def test_signed_version_is_brought(
    store: DirectoryStore, local: LocalStore, signers: Signers
) -> None:
    signed = put_signed(store, signers)
    assert fetch(store, local, "m", "1") == signed
    assert present(local, "m", "1") == signed


def test_unsigned_version_is_not_brought_not_even_its_files(
    store: DirectoryStore, local: LocalStore, tmp_path: Path
) -> None:
    put_artifact(store, {"model.onnx": b"graph"})
    with pytest.raises(BadManifest, match="not signed, and this node") as caught:
        fetch(store, local, "m", "1")
    assert not caught.value.retry
    assert is_empty(tmp_path)


def test_stranger_s_version_is_not_brought(
    store: DirectoryStore, local: LocalStore, signers: Signers, tmp_path: Path
) -> None:
    overwrite(store, signers.theirs.sign(put_artifact(store, {"model.onnx": b"graph"})))
    with pytest.raises(BadManifest, match="is not trusted here"):
        fetch(store, local, "m", "1")
    assert is_empty(tmp_path)


def test_changed_manifest_is_not_brought_and_changed_bytes_are_not_either(
    store: DirectoryStore, local: LocalStore, signers: Signers
) -> None:
    signed = put_signed(store, signers)
    evil = put_artifact(store, {"model.onnx": b"evil!"}, version="2")
    overwrite(store, replace(signed, files=evil.files))
    with pytest.raises(BadManifest, match="something was changed"):
        fetch(store, local, "m", "1")
    overwrite(store, signed)
    blob = catalog.blob_key(signed.files[0].sha256)
    store.put_if(blob, b"EVIL!", store.get(blob).etag)
    with pytest.raises(BadBlob):
        fetch(store, local, "m", "1")


def test_signed_version_under_another_name_is_not_brought(
    store: DirectoryStore, local: LocalStore, signers: Signers
) -> None:
    signed = put_signed(store, signers)
    put_artifact(store, {"model.onnx": b"other"}, model="fraud")
    key = catalog.manifest_key("fraud", "1")
    store.put_if(key, store.get(catalog.manifest_key("m", "1")).data, store.get(key).etag)
    with pytest.raises(BadManifest, match="is about m 1"):
        fetch(store, local, "fraud", "1")
    overwrite(store, replace(signed, model="fraud"))
    with pytest.raises(BadManifest, match="something was changed"):
        fetch(store, local, "fraud", "1")


def test_what_came_before_the_policy_is_not_used(
    store: DirectoryStore, tmp_path: Path, signers: Signers
) -> None:
    put_artifact(store, {"model.onnx": b"graph"})
    fetch(store, LocalStore(tmp_path / "node"), "m", "1")
    with_policy = LocalStore(tmp_path / "node", Trust(signers.file))
    assert present(with_policy, "m", "1") is None
    with pytest.raises(BadManifest, match="not signed"):
        fetch(store, with_policy, "m", "1")


def test_what_a_revoked_key_signed_is_not_used_though_it_is_here(
    store: DirectoryStore, local: LocalStore, signers: Signers
) -> None:
    put_signed(store, signers)
    fetch(store, local, "m", "1")
    signers.revoke(signers.ours.public)
    assert present(local, "m", "1") is None
    with pytest.raises(BadManifest, match=r"\(ours\), which is revoked here"):
        fetch(store, local, "m", "1")


def test_publish_signs_the_version_that_it_gets(
    store: DirectoryStore, local: LocalStore, signers: Signers, tmp_path: Path
) -> None:
    models.identity(tmp_path / "mlp.onnx")
    for version in ("1", "2"):
        made = publish(store, "mlp", tmp_path / "mlp.onnx", sign=signers.ours.sign)
        assert made == version
        found = fetch(store, local, "mlp", version)
        assert found.signature is not None
        assert found.signature.key == signers.ours.public.id
