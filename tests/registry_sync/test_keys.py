"""API keys: made, recognised, kept."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from registry_sync import documents, keys
from registry_sync.directory import DirectoryStore
from registry_sync.documents import BadDocument, KeyRecord, Keys, Quota, read_keys
from registry_sync.keys import (
    CannotRotate,
    KeyExists,
    NoSuchKey,
    make_key,
    recognise,
    record_of,
    rotate_key,
    verify,
)
from registry_sync.stores import OutcomeUnknown

NOW_S = 1_800_000_000.0
KEY, RECORD = make_key("acme", ["infer:*"])
OWN_KEY = "an operator's own key"
OWN_RECORD = record_of(OWN_KEY, "ops", ["admin", "infer:*"])
RECORDS = keys.by_id(Keys((RECORD, OWN_RECORD)))


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "registry")


# --- make ---


def test_made_key_names_its_id_and_holds_256_random_bits() -> None:
    assert re.fullmatch(r"tp_[0-9a-f]{16}_[0-9a-f]{64}", KEY)
    assert KEY.split("_")[1] == RECORD.id == keys.find_id(KEY)
    assert make_key("acme", ["infer:*"])[0] != KEY


@pytest.mark.rule("SEC-21")
def test_record_keeps_the_salted_hash_of_the_secret_and_nothing_of_it() -> None:
    secret = KEY.split("_")[2]
    salted = bytes.fromhex(RECORD.salt) + secret.encode()
    assert RECORD.sha256 == hashlib.sha256(salted).hexdigest()
    assert secret not in documents.write(RECORD).decode()


def test_two_records_of_one_key_share_nothing_but_the_id() -> None:
    again = record_of(KEY, "acme", ["infer:*"])
    assert (again.id, again.salt == RECORD.salt, again.sha256 == RECORD.sha256) == (
        RECORD.id,
        False,
        False,
    )


def test_operators_own_key_has_an_id_from_its_hash() -> None:
    digest = hashlib.sha256(OWN_KEY.encode()).hexdigest()
    assert keys.find_id(OWN_KEY) == OWN_RECORD.id == f"env-{digest[:12]}"


@pytest.mark.parametrize(
    "key",
    ["tp_ab_cd", "tp_" + "A" * 16 + "_" + "0" * 64, KEY + "0", KEY[:-1], f" {KEY}", KEY + "\n"],
    ids=itertools.count(),  # the key is another one in each process
)
def test_key_that_only_looks_like_a_made_one_is_an_own_one(key: str) -> None:
    assert keys.find_id(key).startswith("env-")


@pytest.mark.parametrize(
    "key", ["x" * 15, "x" * 257, "", "é" * 20, "x" * 16 + "\n", " " + "x" * 20]
)
def test_own_key_that_cannot_be_one_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ValueError, match=r"^a key of \d+ characters does not fit") as caught:
        record_of(key, "ops", ["admin"])
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("key", ["x" * 16, "x" * 256, "!" + " ~" * 20])
def test_any_16_to_256_printable_characters_may_be_a_key(key: str) -> None:
    record = record_of(key, "ops", ["admin"])
    assert verify(key, {record.id: record}, NOW_S) == record


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"scopes": []}, r"\$\.keys\[0\]\.scopes: 0 items"),
        ({"scopes": ["root"]}, r"\$\.keys\[0\]\.scopes\[0\]: scope .root. is not one"),
        ({"scopes": ["infer:../x"]}, r"\$\.keys\[0\]\.scopes\[0\]: "),
        ({"tenant": "Acme"}, r"\$\.keys\[0\]\.tenant: "),
        ({"quota": Quota(rows_per_s=-1)}, r"\$\.keys\[0\]\.quota\.rows_per_s: -1 is out of range"),
        ({"quota": Quota(requests_per_s=0)}, r"\$\.keys\[0\]\.quota\.requests_per_s: 0 is out"),
        ({"quota": Quota(1e10)}, r"\$\.keys\[0\]\.quota\.requests_per_s: 10000000000.0 is out"),
        ({"quota": Quota(burst_s=3601)}, r"\$\.keys\[0\]\.quota\.burst_s: 3601 is out of range"),
        ({"quota": Quota(concurrent=0)}, r"\$\.keys\[0\]\.quota\.concurrent: 0 is out of range"),
        ({"not_after": float("nan")}, r"\$\.keys\[0\]\.not_after: "),
    ],
)
def test_record_that_does_not_fit_is_refused(changes: dict[str, Any], path: str) -> None:
    with pytest.raises(BadDocument, match=f"^{path}"):
        make_key(**{"tenant": "acme", "scopes": ["infer:*"], **changes})


# --- verify ---


@pytest.mark.parametrize(
    ("key", "record"), [(KEY, RECORD), (OWN_KEY, OWN_RECORD)], ids=["made", "own"]
)
def test_key_is_recognised(key: str, record: KeyRecord) -> None:
    assert verify(key, RECORDS, NOW_S) is record


@pytest.mark.parametrize(
    "key",
    [
        "",
        "tp_",
        KEY[:-1],
        KEY + "x",
        KEY.upper(),
        KEY[:-1] + ("0" if KEY[-1] != "0" else "1"),
        f"tp_{RECORD.id}_{'0' * 64}",
        f"tp_{'0' * 16}_{KEY[-64:]}",
        KEY[-64:],
        OWN_KEY + " ",
        OWN_KEY.upper(),
        "\ud800" * 20,
        RECORD.sha256,
        "nobody",
    ],
    ids=itertools.count(),
)
def test_any_other_key_is_not(key: str) -> None:
    assert verify(key, RECORDS, NOW_S) is None


@settings(max_examples=100, deadline=None)
@given(key=st.text(st.characters(), max_size=100))
def test_no_text_makes_it_fail(key: str) -> None:
    assert verify(key, RECORDS, NOW_S) is None


def test_text_without_a_utf8_form_is_not_mistaken_for_another() -> None:
    record = record_of("?" * 20, "ops", ["admin"])
    assert verify("\ud800" * 20, {record.id: record}, NOW_S) is None


def test_no_records_means_that_nobody_is_known() -> None:
    assert verify(KEY, {}, NOW_S) is None


def test_key_is_good_until_its_last_second() -> None:
    key, record = make_key("acme", ["infer:*"], not_after=NOW_S)
    known = {record.id: record}
    assert verify(key, known, NOW_S - 0.001) is record
    assert verify(key, known, NOW_S) is None


@pytest.mark.rule("SEC-21")
def test_unknown_id_costs_the_same_hash_and_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    work: list[tuple[str, int, int]] = []
    real_compare, real_sha256 = hmac.compare_digest, hashlib.sha256

    def compare(left: str, right: str) -> bool:
        work.append(("compare", len(left), len(right)))
        return real_compare(left, right)

    def sha256(data: bytes) -> Any:
        work.append(("hash", len(data), 0))
        return real_sha256(data)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    monkeypatch.setattr(hashlib, "sha256", sha256)
    for known in (RECORDS, {}):
        verify(KEY, known, NOW_S)
    assert work == [("hash", 16 + 64, 0), ("compare", 64, 64)] * 2


# --- quota ---


def test_quota_is_kept_without_the_limits_that_it_has_not() -> None:
    record = make_key("acme", ["infer:*"], Quota(requests_per_s=5, concurrent=2))[1]
    plain = json.loads(documents.write(Keys((record,))))["keys"][0]["quota"]
    # A release that knew only limits by name reads it too: numbers, no null.
    assert plain == {"requests_per_s": 5.0, "concurrent": 2}
    assert read_keys(documents.write(Keys((record,)))).keys == (record,)


def test_limits_that_are_not_known_here_are_passed_over() -> None:
    plain = json.loads(documents.write(Keys((RECORD,))))
    plain["keys"][0]["quota"] = {"rows": 3, "tokens_per_s": 7, "rows_per_s": 9}
    (record,) = read_keys(json.dumps(plain).encode()).keys
    assert record.quota == Quota(rows_per_s=9)


# --- rotate ---


@pytest.fixture
def rotated(store: DirectoryStore) -> str:
    """The new key of RECORD, whose old one is good for 60 s."""
    keys.add_key(store, RECORD)
    return rotate_key(store, RECORD.id, 60.0, NOW_S)


def good_until(store: DirectoryStore, key: str, now_s: float) -> float | None:
    """Return until when a key is good; -1 if it is not."""
    found = recognise(key, keys.by_id(Keys(keys.list_keys(store))), now_s)
    return -1 if found is None else found[1]


def test_rotated_key_keeps_its_id_and_all_but_its_secret(
    store: DirectoryStore, rotated: str
) -> None:
    (record,) = keys.list_keys(store)
    assert keys.find_id(rotated) == RECORD.id
    assert rotated != KEY
    same = {"salt": RECORD.salt, "sha256": RECORD.sha256, "previous": ()}
    assert replace(record, **same) == RECORD
    assert rotated.split("_")[2] not in documents.write(record).decode()


def test_both_secrets_are_good_until_the_grace_ends(store: DirectoryStore, rotated: str) -> None:
    assert good_until(store, rotated, NOW_S) is None
    assert good_until(store, KEY, NOW_S) == NOW_S + 60
    assert good_until(store, KEY, NOW_S + 59.9) == NOW_S + 60
    assert good_until(store, KEY, NOW_S + 60) == -1
    assert good_until(store, rotated, NOW_S + 60) is None


def test_without_grace_every_earlier_secret_ends_at_once(
    store: DirectoryStore, rotated: str
) -> None:
    newest = rotate_key(store, RECORD.id, 0.0, NOW_S)
    assert [good_until(store, key, NOW_S) for key in (KEY, rotated, newest)] == [-1, -1, None]


def test_revoking_ends_all_secrets(store: DirectoryStore, rotated: str) -> None:
    keys.revoke_key(store, RECORD.id)
    assert [good_until(store, key, NOW_S) for key in (KEY, rotated)] == [-1, -1]


def test_key_with_an_end_is_not_made_good_for_longer(store: DirectoryStore) -> None:
    key, record = make_key("acme", ["infer:*"], not_after=NOW_S + 10)
    keys.add_key(store, record)
    new = rotate_key(store, record.id, 60.0, NOW_S)
    assert [good_until(store, one, NOW_S) for one in (key, new)] == [NOW_S + 10] * 2
    with pytest.raises(CannotRotate, match="expired"):
        rotate_key(store, record.id, 60.0, NOW_S + 10)


def test_secrets_in_grace_are_bounded_and_ended_ones_forgotten(
    store: DirectoryStore, rotated: str
) -> None:
    for _ in range(3):
        rotate_key(store, RECORD.id, 60.0, NOW_S)
    with pytest.raises(CannotRotate, match="4 earlier secrets"):
        rotate_key(store, RECORD.id, 60.0, NOW_S)
    rotate_key(store, RECORD.id, 60.0, NOW_S + 60)
    assert len(keys.list_keys(store)[0].previous) == 1


def test_operators_own_key_is_not_rotated(store: DirectoryStore) -> None:
    keys.add_key(store, OWN_RECORD)
    with pytest.raises(CannotRotate, match="TIDEPOOL_API_KEY"):
        rotate_key(store, OWN_RECORD.id, 60.0, NOW_S)
    with pytest.raises(NoSuchKey, match="no key with the id 'x'"):
        rotate_key(store, "x", 60.0, NOW_S)


# --- the store ---


def test_keys_are_added_listed_and_revoked(store: DirectoryStore) -> None:
    assert keys.list_keys(store) == ()
    keys.add_key(store, RECORD)
    keys.add_key(store, OWN_RECORD)
    assert keys.list_keys(store) == (RECORD, OWN_RECORD)
    keys.revoke_key(store, RECORD.id)
    assert keys.list_keys(store) == (OWN_RECORD,)
    keys.revoke_key(store, OWN_RECORD.id)
    assert keys.list_keys(store) == ()


def test_stored_document_is_one_that_readers_take(store: DirectoryStore) -> None:
    keys.add_key(store, RECORD)
    found = keys.by_id(documents.read_keys(store.get("keys.json").data))
    assert verify(KEY, found, NOW_S) == RECORD


def test_id_that_is_taken_is_not_replaced_unasked(store: DirectoryStore) -> None:
    keys.add_key(store, RECORD)
    again = record_of(KEY, "other", ["admin"])
    with pytest.raises(KeyExists, match=RECORD.id):
        keys.add_key(store, again)
    assert keys.list_keys(store) == (RECORD,)
    keys.add_key(store, again, replace=True)
    assert keys.list_keys(store) == (again,)


def test_unknown_id_cannot_be_revoked(store: DirectoryStore) -> None:
    keys.add_key(store, RECORD)
    with pytest.raises(NoSuchKey, match=f"no key with the id 'x'; there are {RECORD.id}"):
        keys.revoke_key(store, "x")


def test_record_that_does_not_fit_is_not_added(store: DirectoryStore) -> None:
    with pytest.raises(BadDocument):
        keys.add_key(store, replace(RECORD, scopes=("root",)))
    assert keys.list_keys(store) == ()


def test_keys_of_a_newer_release_are_left_alone(store: DirectoryStore) -> None:
    store.put_new("keys.json", b'{"schema":2,"keys":[]}')
    with pytest.raises(BadDocument, match="newer"):
        keys.add_key(store, RECORD)
    assert store.get("keys.json").data == b'{"schema":2,"keys":[]}'


def test_changes_at_once_lose_nothing(store: DirectoryStore) -> None:
    made = [make_key("acme", ["infer:*"])[1] for _ in range(24)]
    for record in made[:8]:
        keys.add_key(store, record)
    with ThreadPoolExecutor(8) as pool:
        revoked = [pool.submit(keys.revoke_key, store, record.id) for record in made[:8]]
        added = [pool.submit(keys.add_key, store, record) for record in made[8:]]
        for work in (*revoked, *added):
            work.result()
    assert set(keys.list_keys(store)) == set(made[8:])


def test_change_whose_answer_was_lost_is_no_error(tmp_path: Path) -> None:
    class Lossy(DirectoryStore):
        losing = True

        def put_new(self, key: str, data: bytes) -> str:
            return self._lose(key, super().put_new(key, data))

        def put_if(self, key: str, data: bytes, etag: str) -> str:
            return self._lose(key, super().put_if(key, data, etag))

        def _lose(self, key: str, etag: str) -> str:
            self.losing = not self.losing
            if not self.losing:
                raise OutcomeUnknown(key)
            return etag

    store = Lossy(tmp_path / "registry")
    keys.add_key(store, RECORD)
    assert keys.list_keys(store) == (RECORD,)
    key = rotate_key(store, RECORD.id, 60.0, NOW_S)
    (record,) = keys.list_keys(store)
    assert verify(key, {record.id: record}, NOW_S) is record
    assert len(record.previous) == 1
    keys.revoke_key(store, RECORD.id)
    assert keys.list_keys(store) == ()
