"""Artifacts come out of S3 whole and right, whatever the network and the server do on the way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from registry_sync.local import LocalStore
from registry_sync.open import open_store
from registry_sync.stores import Store, StoreUnavailable
from registry_sync.sync import FetchError, fetch, present
from tests.support.artifacts import blob_key, put_artifact
from tests.support.faulty_s3 import ALTERED, BROKEN, CUT_BODY, RESET, SLOW, FaultyS3, faulty_s3
from tests.support.seaweed import S3Server
from tests.support.toxics import DOWN, ToxicProxy, Toxics, toxic_proxy

MIB = 1 << 20
FILES = {"model.onnx": b"graph", "weights.bin": os.urandom(9 * MIB)}  # two parts
TURNS_MAX = 20

pytestmark = pytest.mark.rule("F12")


@pytest.fixture
def local(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "data")


@pytest.fixture
def tcp(
    seaweed: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Store, ToxicProxy]]:
    """A store with the artifact in it, and the network that lies before it."""
    server = urlsplit(seaweed.endpoint)
    assert server.hostname is not None
    assert server.port is not None
    with toxic_proxy((server.hostname, server.port)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        store = open_store(s3_url)
        put_artifact(store, FILES)
        yield store, proxy
        store.close()


@pytest.fixture
def http(
    seaweed: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Store, FaultyS3]]:
    """A store with the artifact in it, and the proxy that spoils its answers."""
    with faulty_s3(seaweed.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = open_store(s3_url)
        put_artifact(store, FILES)
        yield store, proxy
        store.close()


def assert_whole(local: LocalStore) -> None:
    """See that the version is there, and what it should be."""
    manifest = present(local, "m", "1")
    assert manifest is not None
    folder = local.folder_of(manifest)
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES


def test_artifact_comes_whole_over_a_bad_network(
    tcp: tuple[Store, ToxicProxy], local: LocalStore
) -> None:
    store, proxy = tcp
    late = Toxics(only=DOWN, delay_s=0.01, jitter_s=0.01, cut_after_bytes=3 * MIB, is_reset=True)
    proxy.toxics = late
    for _ in range(TURNS_MAX):
        try:
            fetch(store, local, "m", "1")
            break
        except StoreUnavailable:
            proxy.heal()  # no connection brings a part: what came before stays
    assert proxy.cut > 0
    assert_whole(local)


@pytest.mark.rule("F11")
def test_flipped_bits_never_become_an_artifact(
    tcp: tuple[Store, ToxicProxy], local: LocalStore
) -> None:
    store, proxy = tcp
    proxy.toxics = Toxics(only=DOWN, flip_every_bytes=2 * MIB)
    for _ in range(TURNS_MAX):
        try:
            fetch(store, local, "m", "1")
            break
        except (StoreUnavailable, FetchError):
            assert present(local, "m", "1") is None
            if proxy.flipped:
                proxy.heal()
    assert proxy.flipped > 0
    assert_whole(local)


def test_artifact_comes_whole_from_a_bad_server(
    http: tuple[Store, FaultyS3], local: LocalStore
) -> None:
    store, proxy = http
    proxy.faults += [BROKEN, RESET, None, CUT_BODY, SLOW, BROKEN]
    fetch(store, local, "m", "1")
    assert not proxy.faults
    assert_whole(local)


@pytest.mark.rule("F11")
@pytest.mark.parametrize("match", ["/blobs/", "/manifest.json"])
def test_altered_answer_is_never_taken(
    http: tuple[Store, FaultyS3], local: LocalStore, match: str
) -> None:
    store, proxy = http
    proxy.match = match
    proxy.faults += [ALTERED] * 100
    with pytest.raises((FetchError, StoreUnavailable)):
        fetch(store, local, "m", "1")
    assert present(local, "m", "1") is None
    assert not local.blob_path(blob_key(FILES["weights.bin"]).rpartition("/")[2]).exists()
    proxy.faults.clear()
    fetch(store, local, "m", "1")
    assert_whole(local)
