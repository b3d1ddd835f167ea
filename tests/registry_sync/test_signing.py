"""Signed manifests: by whom, over what, and that nothing of it can be changed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from registry_sync import ed25519, signing
from registry_sync.documents import Signature, read_manifest, write
from registry_sync.signing import BadKey, load_key, make_key, message_of, parse_public
from registry_sync.trust import (
    BadTrust,
    Trust,
    Untrusted,
    change_keys,
    parse_keys,
    read_keys_file,
    with_revoked,
    with_trusted,
)
from tests.support.artifacts import manifest_of
from tests.support.signed import Signers, make_signers

pytestmark = pytest.mark.rule("SEC-10")

MANIFEST = replace(
    manifest_of({"model.onnx": b"graph", "more/weights": b"w"}), labels={"who": "me"}
)


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> Signers:
    return make_signers(tmp_path_factory.mktemp("signers"))


@pytest.fixture(scope="module")
def trust(signers: Signers) -> Trust:
    return Trust(signers.file)


@pytest.fixture(scope="module")
def signed(signers: Signers) -> bytes:
    return write(signers.ours.sign(MANIFEST))


def why(trust: Trust, data: bytes) -> str:
    with pytest.raises(Untrusted) as caught:
        trust.check(data)
    return str(caught.value)


def test_signed_manifest_is_good_and_reads_as_before(trust: Trust, signed: bytes) -> None:
    trust.check(signed)
    found = read_manifest(signed)
    assert found.signature is not None
    assert replace(found, signature=None) == MANIFEST


def test_without_a_file_of_keys_everything_is_good() -> None:
    Trust().check(b"anything")
    assert not Trust().is_required


def test_unsigned_manifest_is_refused_with_the_way_out(trust: Trust) -> None:
    found = why(trust, write(MANIFEST))
    assert "not signed" in found
    assert "--sign" in found


def test_stranger_s_key_is_refused_by_its_id(trust: Trust, signers: Signers) -> None:
    found = why(trust, write(signers.theirs.sign(MANIFEST)))
    assert signers.theirs.public.id in found
    assert "tidepool keys signing trust" in found


def test_refusal_names_no_path(trust: Trust, signers: Signers, signed: bytes) -> None:
    for data in (write(MANIFEST), signed.replace(b'"me"', b'"you"'), b"{", b"[]"):
        assert str(signers.folder) not in why(trust, data)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        below = [p for name, item in value.items() for p in _paths(item, (*path, name))]
        return [*([path] if path else []), *below]
    if isinstance(value, list):
        return [path, *(p for i, item in enumerate(value) for p in _paths(item, (*path, i)))]
    return [path]


PLAIN = json.loads(write(MANIFEST))


@pytest.mark.parametrize("path", [p for p in _paths(PLAIN) if p != ("signature",)], ids=str)
def test_no_value_can_be_changed_or_removed(
    trust: Trust, signed: bytes, path: tuple[Any, ...]
) -> None:
    for change in ("other", "gone"):
        plain = json.loads(signed)
        holder = plain
        for step in path[:-1]:
            holder = holder[step]
        if change == "other":
            holder[path[-1]] = [holder[path[-1]]]
        else:
            del holder[path[-1]]
        assert "something was changed" in why(trust, json.dumps(plain).encode())


def test_no_field_can_be_added_even_one_that_nobody_knows(trust: Trust, signed: bytes) -> None:
    plain = {**json.loads(signed), "newer": 1}
    assert "something was changed" in why(trust, json.dumps(plain).encode())


def test_fields_of_a_newer_release_are_signed_too(signers: Signers, trust: Trust) -> None:
    plain = {**PLAIN, "newer": {"b": [1.5, None], "a": "\u00e4"}}
    pem = (signers.folder / "ours.key").read_bytes()
    value = ed25519.sign(pem, message_of(plain)).hex()
    plain["signature"] = {"algorithm": "ed25519", "key": signers.ours.public.id, "value": value}
    trust.check(json.dumps(plain, indent=3).encode())  # its layout does not matter


def test_signature_of_another_version_is_none_of_this_one(trust: Trust, signers: Signers) -> None:
    other = signers.ours.sign(replace(MANIFEST, version="2"))
    moved = replace(MANIFEST, signature=other.signature)
    assert "something was changed" in why(trust, write(moved))


@pytest.mark.parametrize(
    "change",
    [
        {"algorithm": "none"},
        {"algorithm": "ED25519"},
        {"value": ""},
        {"value": "zz"},
        {"value": "00" * 64},
        {"key": ""},
        {"key": "x" * 100},
        {"value": 7},
    ],
)
def test_broken_signature_is_refused(
    trust: Trust, signed: bytes, change: dict[str, object]
) -> None:
    plain = json.loads(signed)
    plain["signature"].update(change)
    why(trust, json.dumps(plain).encode())


@given(st.binary(max_size=60) | st.integers(0, 5000).map(lambda at: at.to_bytes(2)))
def test_nothing_but_refusal_comes_of_noise(trust: Trust, signed: bytes, noise: bytes) -> None:
    at = int.from_bytes(noise[:2]) % len(signed)
    spoilt = signed[:at] + noise + signed[at:]
    try:
        trust.check(spoilt)
    except Untrusted:
        return
    # Only where the values are the same: spaces between them.
    assert json.loads(spoilt) == json.loads(signed)


def test_deep_nesting_is_refused_and_not_a_crash(trust: Trust, signed: bytes) -> None:
    deep = b"[" * 900 + b"]" * 900
    assert why(trust, signed[:-1] + b',"x":' + deep + b"}")


def test_signature_of_anything_else_is_none_of_a_manifest(trust: Trust, signers: Signers) -> None:
    pem = (signers.folder / "ours.key").read_bytes()
    bare = message_of(PLAIN).partition(b"\n")[2]
    value = ed25519.sign(pem, bare).hex()
    manifest = replace(MANIFEST, signature=Signature("ed25519", signers.ours.public.id, value))
    assert "something was changed" in why(trust, write(manifest))


def test_a_node_without_the_policy_reads_signatures_of_newer_releases(signed: bytes) -> None:
    plain = json.loads(signed)
    plain["signature"]["algorithm"] = "ml-dsa-65"
    assert read_manifest(json.dumps(plain).encode()).model == MANIFEST.model


# The file of trusted keys.


def test_revoked_key_is_refused_at_once_and_by_its_name(tmp_path: Path) -> None:
    signers = make_signers(tmp_path)
    trust = Trust(signers.file)
    signers.trust(signers.theirs.public)
    data = write(signers.theirs.sign(MANIFEST))
    trust.check(data)
    before = trust.changes()
    signers.revoke(signers.theirs.public)
    assert "(theirs), which is revoked here" in why(trust, data)
    assert trust.changes() == before + 1
    trust.check(write(signers.ours.sign(MANIFEST)))
    with pytest.raises(BadTrust, match="is revoked: make another"):
        signers.trust(signers.theirs.public)


def test_file_that_cannot_be_read_leaves_the_last_good_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signers = make_signers(tmp_path)
    trust = Trust(signers.file)
    good, bad = write(signers.ours.sign(MANIFEST)), write(signers.theirs.sign(MANIFEST))
    for spoil in ("not a key\n", None):
        if spoil is None:
            signers.file.unlink()
        else:
            signers.file.write_text(spoil)
        trust.check(good)
        why(trust, bad)
        assert trust.status()["problem"]


def test_at_a_start_without_a_file_nobody_is_trusted(tmp_path: Path, signed: bytes) -> None:
    trust = Trust(tmp_path / "none")
    assert "not trusted here" in why(trust, signed)
    assert trust.status()["trusted"] == []


def test_file_that_everybody_may_write_is_none(tmp_path: Path) -> None:
    signers = make_signers(tmp_path)
    signers.file.chmod(0o666)
    with pytest.raises(BadTrust, match="everybody may write it"):
        read_keys_file(signers.file)


def test_lines_that_people_write_stay(tmp_path: Path) -> None:
    signers = make_signers(tmp_path)
    signers.file.write_text(f"# ours\n\n{signers.ours.public.line}\n")
    signers.file.chmod(0o600)
    signers.trust(signers.theirs.public)
    signers.trust(signers.theirs.public)  # twice is once
    signers.revoke(signers.ours.public)
    assert signers.file.read_text() == (
        f"# ours\n\nrevoked {signers.ours.public.line}\n{signers.theirs.public.line}\n"
    )
    assert signers.file.stat().st_mode & 0o777 == 0o600


def test_key_that_is_trusted_and_revoked_is_revoked() -> None:
    line = "ed25519:" + "ab" * 32
    keys = parse_keys(f"revoked {line}\n{line} again\n")
    assert not keys.trusted
    assert len(keys.revoked) == 1


def test_bad_line_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# fine\ned25519:12 short\n")
    with pytest.raises(BadTrust, match=r"keys line 2: 'ed25519:12 short' is no public key"):
        change_keys(path, lambda lines: [*lines, "more"])
    with pytest.raises(BadTrust, match="no key 'x' is trusted; trusted are none"):
        with_revoked([], "x")
    assert path.read_text() == "# fine\ned25519:12 short\n"
    assert with_trusted([], parse_public("ed25519:" + "ab" * 32 + " me")) == [
        "ed25519:" + "ab" * 32 + " me"
    ]


# Private keys.


def test_private_key_is_its_owner_s_alone_and_never_written_over(tmp_path: Path) -> None:
    public = make_key(tmp_path / "k", "release 2026")
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600
    assert parse_public((tmp_path / "k.pub").read_text()) == public
    before = (tmp_path / "k").read_bytes()
    with pytest.raises(BadKey, match="is there already"):
        make_key(tmp_path / "k", "")
    (tmp_path / "k.pub").unlink()
    with pytest.raises(BadKey, match="is there already"):
        make_key(tmp_path / "k", "")
    assert (tmp_path / "k").read_bytes() == before


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_private_key_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    make_key(tmp_path / "k", "")
    (tmp_path / "k").chmod(mode)
    with pytest.raises(BadKey, match="chmod 600"):
        load_key(tmp_path / "k")


def test_public_half_is_told_from_the_private_one(tmp_path: Path) -> None:
    make_key(tmp_path / "k", "me")
    with pytest.raises(BadKey, match=f"is the public half; sign with .* {tmp_path / 'k'}$"):
        load_key(tmp_path / "k.pub")


def test_what_is_no_private_key_is_refused_without_showing_it(tmp_path: Path) -> None:
    path = tmp_path / "k"
    for content in (b"secret words", b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(BadKey) as caught:
            load_key(path)
        assert "secret words" not in str(caught.value)
    with pytest.raises(BadKey, match="No such file"):
        load_key(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(BadKey, match="not a plain file"):
        load_key(tmp_path / "pipe")


def test_no_private_key_is_in_what_is_published_or_shown(signers: Signers) -> None:
    pem = (signers.folder / "ours.key").read_text()
    body = "".join(pem.splitlines()[1:-1])
    for shown in (repr(signers.ours), write(signers.ours.sign(MANIFEST)).decode()):
        assert body not in shown


def test_keys_of_openssl_do_too(tmp_path: Path) -> None:
    path = tmp_path / "openssl.key"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", path], check=True)
    path.chmod(0o600)
    key = load_key(path)
    plain = msgspec.json.decode(write(key.sign(MANIFEST)))
    signature = msgspec.convert(plain["signature"], Signature)
    assert signing.is_signed(plain, signature, key.public)


def test_a_known_signature_holds_for_ever(trust: Trust) -> None:
    """What former releases signed must be good in this one: the form must never change."""
    assert message_of({"signature": 1, "b": [1, 2.5, True, None], "a": "ä\n"}) == (
        b'tidepool manifest 1\n{"a":"\\u00e4\\n","b":[1,2.5,true,null]}'
    )
    # RFC 8032, 7.1, test 1.
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    value = bytes.fromhex(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bac"
        "c61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )
    assert ed25519.is_signed(public, value, b"")
    assert not ed25519.is_signed(public, value, b"x")
