"""A worker that uses only signed versions, whatever was brought to its node."""

from __future__ import annotations

from pathlib import Path

import pytest

from pool import loading
from pool.config import WorkerConfig
from pool.load_guard import LoadGuard
from pool.loaded import CannotLoad
from pool.loading import Loader
from pool.parking import Parking
from registry_sync.directory import DirectoryStore
from registry_sync.local import LocalStore
from registry_sync.sync import fetch
from tests.support.artifacts import put_artifact
from tests.support.signed import Signers, make_signers, overwrite

pytestmark = pytest.mark.rule("SEC-10")


@pytest.fixture
def signers(tmp_path: Path) -> Signers:
    return make_signers(tmp_path / "signers")


def loader(tmp_path: Path, signers: Signers | None) -> Loader:
    config = WorkerConfig(
        id="w",
        data=str(tmp_path / "node"),
        listen="unix:/nowhere",
        sync_socket=str(tmp_path / "nobody.sock"),
        require_signed=str(signers.file) if signers else "",
    )
    return Loader(config, (), LoadGuard(tmp_path / "guard", config.id), Parking(()))


async def test_unsigned_version_that_is_here_is_not_loaded(
    tmp_path: Path, signers: Signers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "SYNC_BACK_S_MAX", 0.0)
    store = DirectoryStore(tmp_path / "registry")
    manifest = put_artifact(store, {"model.onnx": b"graph"})
    fetch(store, LocalStore(tmp_path / "node" / "store"), "m", "1")
    assert await loader(tmp_path, None).bring("m", "1") == manifest
    with pytest.raises(CannotLoad):
        await loader(tmp_path, signers).bring("m", "1")
    signed = signers.ours.sign(manifest)
    overwrite(store, signed)
    LocalStore(tmp_path / "node" / "store").save_manifest(signed)
    assert await loader(tmp_path, signers).bring("m", "1") == signed
    signers.revoke(signers.ours.public)
    with pytest.raises(CannotLoad):
        await loader(tmp_path, signers).bring("m", "1")
