"""A controller that uses only signed versions: what is not signed is never told to anybody."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from pool.registry_watch import RegistryWatch, Snapshot, trusted_of
from registry_sync import catalog, endpoints
from registry_sync.directory import DirectoryStore
from registry_sync.documents import BadDocument, EndpointSpec, Manifest, Variant, write
from registry_sync.stores import Store, StoreUnavailable
from registry_sync.trust import Trust
from tests.support.artifacts import manifest_of
from tests.support.signed import Signers, make_signers, overwrite

pytestmark = pytest.mark.rule("SEC-10")


@pytest.fixture
def signers(tmp_path: Path) -> Signers:
    return make_signers(tmp_path / "signers")


@pytest.fixture
def store(tmp_path: Path, signers: Signers) -> DirectoryStore:
    """1 is signed by us, 2 by somebody else, 3 by nobody."""
    store = DirectoryStore(tmp_path / "registry")
    for version, sign in (("1", signers.ours.sign), ("2", signers.theirs.sign), ("3", None)):
        manifest = manifest_of({"model.onnx": b"g"}, version=version)
        put(store, sign(manifest) if sign else manifest)
    return store


@pytest.fixture
def watch(store: DirectoryStore, signers: Signers) -> RegistryWatch:
    return RegistryWatch(store, trust=Trust(signers.file))


def put(store: Store, manifest: Manifest) -> None:
    store.put_new(catalog.manifest_key(manifest.model, manifest.version), write(manifest))


def set_endpoint(store: Store, *versions: str, name: str = "e") -> None:
    weight = 100 / len(versions)
    arms = tuple(Variant(f"a{v}", "m", v, weight) for v in versions)
    endpoints.set_spec(store, EndpointSpec(name, arms))


def versions(snapshot: Snapshot, name: str = "e") -> list[str]:
    return [variant.version for variant in snapshot.specs[name].variants]


def test_signed_version_is_used(store: DirectoryStore, watch: RegistryWatch) -> None:
    set_endpoint(store, "1")
    assert watch.poll()
    assert versions(watch.snapshot) == ["1"]
    assert not watch.snapshot.rejected


@pytest.mark.parametrize("version", ["2", "3"])
def test_endpoint_with_one_version_that_is_not_stays_out_whole(
    store: DirectoryStore, watch: RegistryWatch, version: str
) -> None:
    set_endpoint(store, "1", version)
    watch.poll()
    assert "e" not in watch.snapshot.specs
    assert ("m", version) not in watch.snapshot.manifest_bytes
    why = watch.snapshot.rejected["endpoints/e.json"]
    assert f"m version {version}: $.signature: " in why


def test_last_good_spec_goes_on(store: DirectoryStore, watch: RegistryWatch) -> None:
    set_endpoint(store, "1")
    watch.poll()
    set_endpoint(store, "3")
    watch.poll()
    assert versions(watch.snapshot) == ["1"]
    assert "endpoints/e.json" in watch.snapshot.rejected


def test_version_called_by_number_is_refused_with_the_reason(watch: RegistryWatch) -> None:
    assert watch.resolve("m", "1") is not None
    for version in ("2", "3"):
        with pytest.raises(BadDocument, match="signature"):
            watch.resolve("m", version)
    assert watch.snapshot.manifests.keys() == {("m", "1")}


def test_trusted_key_is_followed_without_a_new_spec(
    store: DirectoryStore, watch: RegistryWatch, signers: Signers
) -> None:
    set_endpoint(store, "2")
    watch.poll()
    signers.trust(signers.theirs.public)
    assert watch.poll()
    assert versions(watch.snapshot) == ["2"]
    assert not watch.snapshot.rejected


def test_revoked_key_ends_what_it_signed_and_nothing_else(
    store: DirectoryStore, watch: RegistryWatch, signers: Signers
) -> None:
    signers.trust(signers.theirs.public)
    set_endpoint(store, "1", name="e")
    set_endpoint(store, "1", "2", name="f")
    watch.poll()
    watch.resolve("m", "2")
    assert watch.snapshot.specs.keys() == {"e", "f"}
    signers.revoke(signers.theirs.public)
    assert watch.poll()
    assert watch.snapshot.specs.keys() == watch.snapshot.spec_bytes.keys() == {"e"}
    assert watch.snapshot.manifests.keys() == watch.snapshot.manifest_bytes.keys() == {("m", "1")}
    assert "(theirs), which is revoked here" in watch.snapshot.rejected["endpoints/f.json"]
    assert not watch.poll()


def test_revoked_key_counts_though_the_registry_is_dead(
    store: DirectoryStore, watch: RegistryWatch, signers: Signers, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_endpoint(store, "1")
    watch.poll()

    def dead(*_: object, **__: object) -> None:
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(store, "list", dead)
    signers.revoke(signers.ours.public)
    with pytest.raises(StoreUnavailable):
        watch.poll()
    assert not watch.snapshot.specs
    assert not watch.snapshot.manifest_bytes


def test_last_good_copy_is_held_against_today_s_keys(
    store: DirectoryStore, watch: RegistryWatch, signers: Signers
) -> None:
    set_endpoint(store, "1")
    watch.poll()
    trust = Trust(signers.file)
    assert trusted_of(watch.snapshot, trust) == watch.snapshot
    signers.revoke(signers.ours.public)
    kept = trusted_of(watch.snapshot, trust)
    assert not kept.specs
    assert not kept.manifests


def test_manifest_that_was_replaced_in_the_bucket_is_not_read(
    store: DirectoryStore, signers: Signers
) -> None:
    good = catalog.load_manifest(store, "m", "1")
    overwrite(store, replace(good, files=manifest_of({"model.onnx": b"evil"}).files))
    set_endpoint(store, "1")
    watch = RegistryWatch(store, trust=Trust(signers.file))
    watch.poll()
    assert not watch.snapshot.specs
    assert "something was changed" in watch.snapshot.rejected["endpoints/e.json"]
