"""What is particular to S3: prefixes, pages, refusals by name, writes with a lost answer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry_sync.open import open_store
from registry_sync.s3 import S3Store
from registry_sync.stores import (
    AccessDenied,
    BadStore,
    Conflict,
    NotFound,
    OutcomeUnknown,
    Store,
    StoreUnavailable,
)
from tests.support.faulty_s3 import (
    BROKEN,
    CUT_BODY,
    GONE,
    LOSE_ANSWER,
    RACE,
    RESET,
    SKEWED,
    SLOW_DOWN,
    faulty_s3,
)
from tests.support.seaweed import BUCKET, S3Server

MIB = 1 << 20
Proxied = tuple[Store, list[str | None], list[str]]


def test_a_prefix_is_all_a_store_sees(s3_url: str) -> None:
    inner, outer = open_store(f"{s3_url}/inner/"), open_store(s3_url)
    open_store(f"{s3_url}/inner2").put_new("x", b"")
    inner.put_new("a/b", b"1")
    assert [entry.key for entry in inner.list("")] == ["a/b"]
    assert [entry.key for entry in outer.list("inner")] == ["inner/a/b"]
    assert inner.url == f"{s3_url}/inner"


def test_a_long_listing_is_read_page_by_page(s3_url: str) -> None:
    bucket, prefix = s3_url.removeprefix("s3://").split("/")
    store = S3Store(bucket, prefix, page_keys=3)
    keys = [f"p/{index:02d}" for index in range(10)]
    for key in keys:
        store.put_new(key, b"")
    assert [entry.key for entry in store.list("")] == keys
    assert [entry.key for entry in store.list("p", recursive=False)] == keys


@pytest.mark.rule("F12")
def test_what_the_credentials_forbid_is_named_and_not_retried(
    seaweed: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty_s3(seaweed.endpoint) as proxy:
        for name, value in seaweed.reader_environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = open_store(s3_url)
        with pytest.raises(AccessDenied, match=r"keys\.json: access denied: AccessDenied"):
            store.put_new("keys.json", b"")
        assert len(proxy.requests) == 1
        with pytest.raises(NotFound, match=r"keys\.json"):
            store.get("keys.json")
        assert len(proxy.requests) == 2
        store.close()


@pytest.mark.rule("F13")
def test_a_clock_that_is_wrong_is_named_and_not_retried(proxied: Proxied) -> None:
    store, faults, requests = proxied
    faults += [SKEWED] * 10
    with pytest.raises(AccessDenied, match="RequestTimeTooSkewed"):
        store.get("a")
    assert len(requests) == 1


def test_a_wrong_secret_is_access_denied(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(AccessDenied, match="SignatureDoesNotMatch"):
        open_store(s3_url).get("a")


def test_a_missing_bucket_is_not_an_empty_registry(s3_url: str) -> None:
    store = open_store("s3://no-such-bucket/x")
    for act in (lambda: store.get("a"), lambda: store.list(""), lambda: store.put_new("a", b"")):
        with pytest.raises(BadStore, match="no such bucket"):
            act()


def test_missing_credentials_are_named(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(BadStore, match="credentials"):
        open_store(s3_url).get("a")


def test_a_server_that_is_not_there_is_unavailable(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreUnavailable, match="5 tries"):
        open_store(s3_url).get("a")


@pytest.fixture
def proxied(
    seaweed: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Store, list[str | None], list[str]]]:
    """A store behind a proxy, the faults that it will meet, and the requests it made."""
    with faulty_s3(seaweed.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = open_store(s3_url)
        yield store, proxy.faults, proxy.requests
        store.close()


@pytest.mark.rule("F12")
@pytest.mark.parametrize("fault", [RESET, SLOW_DOWN, LOSE_ANSWER, CUT_BODY, BROKEN])
def test_a_read_is_tried_again(proxied: Proxied, fault: str) -> None:
    store, faults, _ = proxied
    store.put_new("a", b"0123456789")
    faults += [fault, fault]
    assert store.get("a").data == b"0123456789"
    faults += [fault, fault]
    assert store.read("a", 3, 4) == b"3456"


def test_tries_have_an_end(proxied: Proxied) -> None:
    store, faults, requests = proxied
    faults += [SLOW_DOWN] * 10
    with pytest.raises(StoreUnavailable, match="SlowDown"):
        store.get("a")
    assert len(requests) == 5


@pytest.mark.parametrize("fault", [RESET, SLOW_DOWN, LOSE_ANSWER, RACE])
def test_a_creation_that_landed_is_no_conflict(proxied: Proxied, fault: str) -> None:
    store, faults, _ = proxied
    faults += [fault]
    etag = store.put_new("a", b"mine")
    assert store.get("a").etag == etag


@pytest.mark.parametrize("fault", [RESET, SLOW_DOWN, LOSE_ANSWER, RACE])
def test_a_swap_that_landed_is_no_conflict(proxied: Proxied, fault: str) -> None:
    store, faults, _ = proxied
    first = store.put_new("a", b"1")
    faults += [fault]
    assert store.put_if("a", b"2", first) == store.get("a").etag
    assert store.get("a").data == b"2"


def test_a_swap_of_a_missing_key_is_a_conflict_on_aws_too(proxied: Proxied) -> None:
    store, faults, _ = proxied
    faults += [GONE]  # where SeaweedFS says 412
    with pytest.raises(Conflict, match="gone"):
        store.put_if("a", b"2", "0" * 32)


def test_a_retried_creation_that_lost_is_a_conflict_though_the_content_is_equal(
    proxied: Proxied,
) -> None:
    store, faults, _ = proxied
    store.put_new("a", b"same")
    faults += [RESET]
    with pytest.raises(Conflict):
        store.put_new("a", b"same")


def test_a_retried_swap_over_another_content_does_not_claim_to_know(proxied: Proxied) -> None:
    store, faults, _ = proxied
    first = store.put_new("a", b"1")
    store.put_if("a", b"theirs", first)
    faults += [RESET]
    with pytest.raises(OutcomeUnknown, match="read it again"):
        store.put_if("a", b"mine", first)
    assert store.get("a").data == b"theirs"


def test_a_multipart_upload_survives_every_single_fault(proxied: Proxied, tmp_path: Path) -> None:
    store, faults, _ = proxied
    path = tmp_path / "file"
    path.write_bytes(os.urandom(9 * MIB))
    store.put_file_new("clean", path)
    for fault in (RESET, SLOW_DOWN, LOSE_ANSWER):
        for index in range(5):  # the look, the beginning, two parts, the completion
            faults[:] = [*([None] * index), fault]
            store.put_file_new(f"{index}", path)
            assert not faults
            assert store.read(f"{index}", 0, 9 * MIB) == path.read_bytes()
            store.delete(f"{index}")


def test_a_multipart_replacement_whose_answer_is_lost_is_known_to_have_landed(
    proxied: Proxied, tmp_path: Path
) -> None:
    store, faults, _ = proxied
    path = tmp_path / "file"
    path.write_bytes(os.urandom(9 * MIB))
    first = store.put_new("a", b"1")
    faults[:] = [None, None, None, LOSE_ANSWER]  # the beginning, two parts, the completion
    second = store.put_file_if("a", path, first)
    assert not faults
    assert store.list("")[0].etag == second != first
    assert store.read("a", 0, 9 * MIB) == path.read_bytes()


def test_a_multipart_upload_that_fails_leaves_no_parts(proxied: Proxied, tmp_path: Path) -> None:
    store, faults, requests = proxied
    path = tmp_path / "file"
    path.write_bytes(bytes(9 * MIB))
    faults += [None, None, *[SLOW_DOWN] * 10]
    with pytest.raises(StoreUnavailable):
        store.put_file_new("a", path)
    assert requests[-1].startswith("DELETE")
    assert store.list("") == []


def test_s3_urls_name_bucket_and_prefix(s3_url: str) -> None:
    assert open_store(f"s3://{BUCKET}").url == f"s3://{BUCKET}"
    assert open_store(f"s3://{BUCKET}/").url == f"s3://{BUCKET}"
    assert open_store(f"s3://{BUCKET}/a/b/").url == f"s3://{BUCKET}/a/b"
