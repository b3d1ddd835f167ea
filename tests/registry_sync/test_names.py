"""What may become part of a path or a key."""

from __future__ import annotations

import pytest

from registry_sync.datatypes import DATATYPES, ITEMSIZE
from registry_sync.names import BadName, check_digest, check_name, check_version


@pytest.mark.parametrize("name", ["a", "0", "resnet-50", "a.b_c-d", "a..b", "x" * 64])
def test_a_name_is_returned_as_it_is(name: str) -> None:
    assert check_name("model", name) == name
    assert check_version(name) == name


@pytest.mark.rule("SEC-4")
@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../a", "a/b", "a\\b", "-a", "_a", ".a"),
        *("A", "ä", "１", "a b", "a:b", "a%2e", "a\n", "a\0", "x" * 65),
    ],
)
def test_what_could_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(BadName, match="model"):
        check_name("model", name)
    with pytest.raises(BadName, match="version"):
        check_version(name)


@pytest.mark.parametrize("name", [None, 1, b"a", ["a"]])
def test_a_name_that_is_no_string_is_refused(name: object) -> None:
    with pytest.raises(BadName):
        check_name("model", name)  # type: ignore[arg-type]


def test_a_refusal_does_not_repeat_a_long_name_whole() -> None:
    with pytest.raises(BadName) as refusal:
        check_name("model", "A" * 10_000)
    assert len(str(refusal.value)) < 250


def test_a_digest_is_64_lower_case_hexadecimal_digits() -> None:
    assert check_digest("0123456789abcdef" * 4) == "0123456789abcdef" * 4


@pytest.mark.rule("SEC-4")
@pytest.mark.parametrize(
    "digest", ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n", "sha256:" + "a" * 64]
)
def test_what_is_no_digest_is_refused(digest: str) -> None:
    with pytest.raises(BadName):
        check_digest(digest)


def test_every_datatype_but_bytes_has_a_size() -> None:
    assert set(ITEMSIZE) | {"BYTES"} == DATATYPES
    assert ITEMSIZE["FP16"] == 2
    assert ITEMSIZE["BOOL"] == 1
