"""The form of an answer on disk: whole, of this key and tenant, unchanged, or nothing."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.disk_frame import BadFrame, Stamp, age_s, decode, encode
from pool.wire.data import Tensor

KEY = bytes(range(32))
NOW = Stamp(b"this boot.......", 1000.0, 1.7e9)
OUTPUTS = [
    Tensor("y", "FP32", (1, 3), b"\x01\x02\x03\x04" * 3),
    Tensor("label", "BYTES", (1,), b"\x03\x00\x00\x00cat"),
    Tensor("none", "INT64", (0, 4), b""),
]


def frame(**changes: object) -> bytes:
    given: dict[str, object] = {
        "key": KEY, "tenant": "red", "outputs": OUTPUTS, "stored": NOW, "ttl_s": 60.0,
    }  # fmt: skip
    return encode(**{**given, **changes})  # type: ignore[arg-type]


def test_answer_comes_back_as_it_was_stored() -> None:
    found = decode(frame(), KEY, "red")
    assert found.outputs == OUTPUTS
    assert (found.stored, found.ttl_s, found.frame_bytes) == (NOW, 60.0, len(frame()))


def test_answer_of_views_is_the_same_frame() -> None:
    views = [Tensor(t.name, t.datatype, t.shape, memoryview(t.data)) for t in OUTPUTS]
    assert frame(outputs=views) == frame()


@pytest.mark.rule("SEC-17")
@pytest.mark.parametrize(
    ("key", "tenant"), [(KEY, "blue"), (bytes(32), "red"), (KEY, ""), (KEY, "red "), (KEY, "re")]
)
def test_answer_to_another_question_is_none(key: bytes, tenant: str) -> None:
    with pytest.raises(BadFrame):
        decode(frame(), key, tenant)


def test_every_truncation_and_every_appendix_is_refused() -> None:
    whole = frame()
    for length in range(len(whole)):
        with pytest.raises(BadFrame):
            decode(whole[:length], KEY, "red")
    with pytest.raises(BadFrame):
        decode(whole + b"\0", KEY, "red")


@pytest.mark.rule("SEC-17")
def test_every_flipped_bit_is_noticed() -> None:
    whole = bytearray(frame())
    for at in range(len(whole)):
        for bit in range(8):
            whole[at] ^= 1 << bit
            with pytest.raises(BadFrame):
                decode(bytes(whole), KEY, "red")
            whole[at] ^= 1 << bit
    assert decode(bytes(whole), KEY, "red").outputs == OUTPUTS


def test_noise_is_refused() -> None:
    chance = random.Random(1)
    for _ in range(2000):
        with pytest.raises(BadFrame):
            decode(chance.randbytes(chance.randrange(400)), KEY, "red")


@pytest.mark.parametrize("ttl_s", [math.nan, math.inf])
def test_time_that_is_none_is_refused(ttl_s: float) -> None:
    with pytest.raises(BadFrame):
        decode(frame(ttl_s=ttl_s), KEY, "red")


def test_tenants_and_heads_are_not_taken_for_each_other() -> None:
    # The checksum is over the parts as they lie there; their lengths are part of it.
    with pytest.raises(BadFrame):
        decode(frame(tenant="redd"), KEY, "red")


# --- age ---


def at(boot_s: float = 1000.0, wall_s: float = 1.7e9, boot: bytes = NOW.boot) -> Stamp:
    return Stamp(boot, boot_s, wall_s)


def test_age_is_time_passed() -> None:
    assert age_s(NOW, at(1060.0, 1.7e9 + 60)) == 60.0


@pytest.mark.rule("F13")
def test_calendar_set_back_prolongs_nothing() -> None:
    assert age_s(NOW, at(1060.0, 1.6e9)) == 60.0


@pytest.mark.rule("F13")
def test_calendar_set_forward_makes_older() -> None:
    age = age_s(NOW, at(1060.0, 1.8e9))
    assert age is not None
    assert age >= 1e8


def test_another_boot_goes_by_the_calendar() -> None:
    assert age_s(NOW, at(3.0, 1.7e9 + 60, boot=b"another boot....")) == 60.0


def test_answer_from_the_future_has_no_age() -> None:
    assert age_s(NOW, at(3.0, 1.6e9, boot=b"another boot....")) is None
    assert age_s(NOW, at(999.0)) is None


@given(st.floats(0, 1e9), st.floats(-1e9, 1e9))
def test_no_calendar_makes_an_answer_younger_than_it_is(passed_s: float, set_s: float) -> None:
    age = age_s(NOW, replace(NOW, boot_s=1000.0 + passed_s, wall_s=NOW.wall_s + set_s))
    assert age is not None
    assert age >= passed_s - 1e-6
