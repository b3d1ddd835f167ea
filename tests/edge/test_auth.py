"""Who is calling: keys, remembered only as long as the documents by which they were good."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from edge import auth as auth_module
from edge.auth import KEY_CHARS_MAX, Auth, allow, allow_admin
from edge.errors import Forbidden, Unauthorized
from edge.snapshot import Snapshot
from registry_sync.directory import DirectoryStore
from registry_sync.documents import KeyRecord
from registry_sync.keys import add_key, list_keys, make_key, rotate_key

KEY, RECORD = make_key("t", ["infer:*"])


def snapshot(*records: KeyRecord) -> Snapshot:
    return Snapshot(keys={record.id: record for record in records})


def check(auth: Auth, found: Snapshot, key: str = KEY) -> KeyRecord:
    return auth.check(found, {"x-api-key": key}.get)


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer   {KEY} "},
        {"x-api-key": KEY},
    ],
)
def test_key_is_taken_from_either_header(headers: dict[str, str]) -> None:
    assert Auth().check(snapshot(RECORD), headers.get) is RECORD


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"x-api-key": ""},
        {"authorization": "Bearer"},
        {"authorization": f"Basic {KEY}", "x-api-key": KEY},
        {"x-api-key": KEY + "x"},
        {"x-api-key": KEY[:-1]},
        {"x-api-key": "x" * (KEY_CHARS_MAX + 1)},
        {"x-api-key": "\udcff"},
    ],
)
def test_what_is_no_good_key_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(Unauthorized):
        Auth().check(snapshot(RECORD), headers.get)


def test_no_keys_at_all_refuse_everybody() -> None:
    with pytest.raises(Unauthorized):
        check(Auth(), Snapshot())


def test_known_key_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    auth, found = Auth(), snapshot(RECORD)
    check(auth, found)
    monkeypatch.setattr(auth_module, "recognise", None)
    assert check(auth, found) is RECORD


def test_revoked_key_is_refused_with_the_next_documents() -> None:
    auth = Auth()
    check(auth, snapshot(RECORD))
    with pytest.raises(Unauthorized):
        check(auth, Snapshot())


def test_request_that_still_has_old_documents_leaves_nothing_behind() -> None:
    auth, old, new = Auth(), snapshot(RECORD), Snapshot()
    check(auth, old)
    for _ in range(2):
        with pytest.raises(Unauthorized):
            check(auth, new)
        check(auth, old)


def test_key_ends_at_its_time_even_if_it_was_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    key, record = make_key("t", ["infer:*"], not_after=time.time() + 1000)
    auth, found = Auth(), snapshot(record)
    assert check(auth, found, key) is record
    later_s = time.time() + 1001
    monkeypatch.setattr(time, "time", lambda: later_s)
    with pytest.raises(Unauthorized):
        check(auth, found, key)


def test_keys_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth_module, "REMEMBERED_MAX", 2)
    made = [make_key("t", ["infer:*"]) for _ in range(5)]
    auth, found = Auth(), snapshot(*(record for _, record in made))
    for key, record in made * 2:
        assert check(auth, found, key) is record
        assert len(auth._good) <= 2


@pytest.mark.parametrize("scope", ["infer:*", "infer:e", "admin"])
def test_scope_that_covers_an_endpoint_allows_it(scope: str) -> None:
    allow(make_key("t", [scope])[1], "e")


@pytest.mark.parametrize("scope", ["infer:f", "infer:ee"])
def test_scope_of_another_endpoint_allows_nothing(scope: str) -> None:
    with pytest.raises(Forbidden):
        allow(make_key("t", [scope])[1], "e")


def test_admin_routes_need_the_scope() -> None:
    allow_admin(make_key("t", ["admin"])[1])
    with pytest.raises(Forbidden):
        allow_admin(RECORD)


def test_rotated_key_is_remembered_and_its_former_secret_ends_in_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store = DirectoryStore(tmp_path / "registry")
    add_key(store, RECORD)
    new = rotate_key(store, RECORD.id, 60.0, time.time())
    found, auth = snapshot(*list_keys(store)), Auth()
    for key in (KEY, new, KEY, new):
        assert check(auth, found, key).id == RECORD.id
    later_s = time.time() + 61.0
    monkeypatch.setattr(auth_module.time, "time", lambda: later_s)
    assert check(auth, found, new).id == RECORD.id
    with pytest.raises(Unauthorized):
        check(auth, found, KEY)
