"""An edge that uses only signed versions, whatever its controller says."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from edge import world as world_module
from edge.dispatching.dispatch import Pool
from edge.metrics import Metrics
from edge.snapshot import Snapshot, compile_snapshot
from edge.world import World
from pool.wire import control
from pool.wire.control import Documents
from registry_sync.documents import EndpointSpec, Keys, Manifest, Variant, write
from registry_sync.trust import Trust
from tests.support.artifacts import manifest_of
from tests.support.signed import Signers, make_signers

pytestmark = pytest.mark.rule("SEC-10")


@pytest.fixture
def signers(tmp_path: Path) -> Signers:
    return make_signers(tmp_path / "signers")


@pytest.fixture
def metrics(tmp_path: Path) -> Metrics:
    return Metrics(tmp_path, "e1")


def documents(manifests: dict[str, Manifest], **endpoints: str) -> Documents:
    specs = {
        name: write(EndpointSpec(name, (Variant("a", "m", version, 100.0),)))
        for name, version in endpoints.items()
    }
    found = {f"m/{version}": write(manifest) for version, manifest in manifests.items()}
    return Documents(1, 1, specs, {}, found, write(Keys(())), {})


def test_only_signed_versions_and_their_endpoints_are_known(
    signers: Signers, metrics: Metrics
) -> None:
    signed, unsigned = (manifest_of({"f": b"1"}, version=v) for v in "12")
    given = documents({"1": signers.ours.sign(signed), "2": unsigned}, e="1", f="2")
    found = compile_snapshot(given, Snapshot(), metrics, Trust(signers.file))
    assert found.versions.keys() == {("m", "1")}
    assert found.endpoints.keys() == {"e"}
    assert "not signed" in found.rejected["models/m/2/manifest.json"]
    without = compile_snapshot(given, Snapshot(), metrics)
    assert without.endpoints.keys() == {"e", "f"}


def test_revoked_key_ends_what_it_signed_also_as_the_last_good_one(
    signers: Signers, metrics: Metrics
) -> None:
    trust = Trust(signers.file)
    given = documents({"1": signers.ours.sign(manifest_of({"f": b"1"}))}, e="1")
    old = compile_snapshot(given, Snapshot(), metrics, trust)
    assert old.endpoints.keys() == {"e"}
    signers.revoke(signers.ours.public)
    new = compile_snapshot(given, old, metrics, trust)
    assert not new.endpoints
    assert not new.versions


def test_last_good_endpoint_serves_on_while_its_version_is_signed(
    signers: Signers, metrics: Metrics
) -> None:
    trust = Trust(signers.file)
    one = signers.ours.sign(manifest_of({"f": b"1"}))
    two = manifest_of({"f": b"2"}, version="2")
    old = compile_snapshot(documents({"1": one}, e="1"), Snapshot(), metrics, trust)
    new = compile_snapshot(documents({"1": one, "2": two}, e="2"), old, metrics, trust)
    assert new.endpoints["e"] is old.endpoints["e"]
    gone = compile_snapshot(documents({"2": two}, e="2"), old, metrics, trust)
    assert not gone.endpoints  # nobody can tell any more whether it may


async def test_running_edge_follows_its_own_file_without_a_controller(
    signers: Signers, metrics: Metrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world_module, "COUNTERS_S", 0.005)
    given = documents({"1": signers.ours.sign(manifest_of({"f": b"1"}))}, e="1")
    (tmp_path / "edge").mkdir()
    (tmp_path / "edge" / "documents.last").write_bytes(control.pack(given))

    async def nobody() -> None:
        return None

    pool = Pool("e1", None)
    world = World(
        edge_id="e1",
        folder=tmp_path / "edge",
        pool=pool,
        find=nobody,
        secrets=None,
        metrics=metrics,
        trust=Trust(signers.file),
    )
    world.boot()
    assert world.snapshot.endpoints.keys() == {"e"}
    running = asyncio.create_task(world.run())
    try:
        signers.revoke(signers.ours.public)
        async with asyncio.timeout(10):
            while world.snapshot.endpoints:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await pool.close()
    assert not world.snapshot.versions
