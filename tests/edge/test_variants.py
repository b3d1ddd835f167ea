"""Who gets which arm: pinned, fair, and moved only by the weights that changed."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.variants import Arm, Arms, assign, unit_of
from registry_sync.documents import Assign

HALVES = (Arm("stable", 50), Arm("canary", 50))
UNITS = [f"user-{number}".encode() for number in range(2000)]

PINNED = "0000100000000000000000100000000000100000100001000100000000011000"


def names(arms: list[Arm], units: list[bytes] = UNITS, salt: str = "salt") -> list[str]:
    ready = Arms(arms, salt)
    return [arms[ready.assign(unit)].name for unit in units]


def test_assignments_are_the_same_on_every_day() -> None:
    # These literals are a contract with every running edge: never change them.
    ready = Arms([Arm("stable", 90), Arm("canary", 10)], "magika")
    chosen = "".join(str(ready.assign(unit)) for unit in UNITS[:64])
    assert chosen == PINNED


def test_one_shot_and_prepared_arms_agree() -> None:
    assert [assign(HALVES, "s", unit) for unit in UNITS[:50]] == [
        Arms(HALVES, "s").assign(unit) for unit in UNITS[:50]
    ]


def test_order_of_the_document_does_not_matter() -> None:
    arms = [Arm("a", 20), Arm("b", 30), Arm("c", 50)]
    assert names(arms) == names(arms[::-1]) == names([arms[1], arms[0], arms[2]])


def test_scale_of_the_weights_does_not_matter() -> None:
    assert names([Arm("a", 25), Arm("b", 75)]) == names([Arm("a", 1), Arm("b", 3)])


def test_added_arm_takes_units_only_to_itself() -> None:
    before = names([Arm("a", 50), Arm("b", 50)])
    after = names([Arm("a", 50), Arm("b", 50), Arm("c", 50)])
    moved = {new for old, new in zip(before, after, strict=True) if old != new}
    assert moved == {"c"}


def test_salts_are_independent() -> None:
    left, right = names(list(HALVES), salt="one"), names(list(HALVES), salt="two")
    same = sum(a == b for a, b in zip(left, right, strict=True))
    assert abs(same - len(UNITS) / 2) < 4 * math.sqrt(len(UNITS) / 4)


def test_name_and_unit_do_not_run_into_each_other() -> None:
    # Without the name's length in front, arm "a" of unit "bc" would hash as arm "ab" of unit "c".
    arms = Arms([Arm("a", 1), Arm("ab", 1)], "s")
    hashes = [hasher.copy() for hasher, _, _ in arms._racers]
    hashes[0].update(b"bc")
    hashes[1].update(b"c")
    assert hashes[0].digest() != hashes[1].digest()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_weightless_arm_never_wins(order: tuple[int, int]) -> None:
    arms = [(Arm("a", 0), Arm("b", 1))[index] for index in order]
    assert set(names(arms)) == {"b"}
    three = [Arm("a", 0), Arm("b", 1), Arm("c", 1)]
    assert "a" not in names(three)
    assert {Arms(three, "s").draw(u / 100) for u in range(100)} == {1, 2}


@pytest.mark.parametrize(
    "arms",
    [
        [],
        [Arm("a", 0)],
        [Arm("a", 1), Arm("a", 1)],
        [Arm("a", -1), Arm("b", 1)],
        [Arm("a", math.nan), Arm("b", 1)],
        [Arm("a", math.inf), Arm("b", 1)],
    ],
)
def test_arms_that_mean_nothing_are_refused(arms: list[Arm]) -> None:
    with pytest.raises(ValueError, match="arm"):
        Arms(arms, "s")


class Fixed:
    """A hasher whose digest does not depend on the unit."""

    def __init__(self, digest: bytes) -> None:
        self._digest = digest

    def copy(self) -> Fixed:
        return self

    def update(self, unit: bytes) -> None:
        pass

    def digest(self) -> bytes:
        return self._digest


def fixed(arms: list[Arm], digest: bytes) -> Arms:
    ready = Arms(arms, "s")
    ready._racers = tuple((Fixed(digest), inverse, i) for _, inverse, i in ready._racers)  # type: ignore[misc]
    return ready


@pytest.mark.parametrize("digest", [b"\x00" * 8, b"\xff" * 8])
def test_heavier_arm_wins_at_both_ends_of_the_hash(digest: bytes) -> None:
    assert fixed([Arm("a", 1), Arm("b", 2)], digest).assign(b"u") == 1
    assert fixed([Arm("a", 2), Arm("b", 1)], digest).assign(b"u") == 0


def test_not_even_a_tie_depends_on_the_order_of_the_document() -> None:
    assert fixed([Arm("a", 1), Arm("b", 1)], bytes(8)).assign(b"u") == 0
    assert fixed([Arm("b", 1), Arm("a", 1)], bytes(8)).assign(b"u") == 1


def test_share_of_an_arm_is_its_weight() -> None:
    arms = [Arm("a", 1), Arm("b", 9), Arm("c", 90)]
    count = 100_000
    units = [number.to_bytes(4, "big") for number in range(count)]
    counts = Counter(names(arms, units))
    for arm in arms:
        share = arm.weight / 100
        sigma = math.sqrt(count * share * (1 - share))
        assert abs(counts[arm.name] - count * share) < 4 * sigma


def test_share_of_a_draw_is_its_weight() -> None:
    arms = Arms([Arm("a", 10), Arm("b", 90)], "s")
    counts = Counter(arms.draw(number / 1000) for number in range(1000))
    assert counts == {0: 100, 1: 900}
    assert arms.draw(math.nextafter(1, 0)) == 1


weights = st.one_of(st.just(0.0), st.floats(0.01, 100))
ramps = st.integers(2, 6).flatmap(
    lambda count: st.tuples(
        st.lists(weights, min_size=count, max_size=count).filter(any),
        st.lists(weights, min_size=count, max_size=count).filter(any),
    )
)


def moves(old: list[float], new: list[float], units: list[bytes]) -> Counter[tuple[int, int]]:
    before = Arms([Arm(f"arm{i}", weight) for i, weight in enumerate(old)], "s")
    after = Arms([Arm(f"arm{i}", weight) for i, weight in enumerate(new)], "s")
    pairs = ((before.assign(unit), after.assign(unit)) for unit in units)
    return Counter((left, joined) for left, joined in pairs if left != joined)


@given(st.floats(0, 100), st.floats(0, 100))
@settings(max_examples=100, deadline=None)
def test_of_two_arms_units_only_leave_the_fallen_for_the_risen(old: float, new: float) -> None:
    before, after = [old, 100 - old], [new, 100 - new]
    for left, joined in moves(before, after, UNITS[:100]):
        assert after[left] < before[left]
        assert after[joined] > before[joined]


@given(ramps, st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_unit_moves_only_to_an_arm_that_rose_against_its_own(
    ramp: tuple[list[float], list[float]], seed: int
) -> None:
    old, new = ramp
    rng = random.Random(seed)
    for left, joined in moves(old, new, [rng.randbytes(8) for _ in range(60)]):
        assert new[joined] * old[left] > old[joined] * new[left]


@given(st.integers(2, 6), st.data())
@settings(max_examples=150, deadline=None)
def test_when_one_arm_falls_and_one_rises_nobody_leaves_the_risen_or_joins_the_fallen(
    count: int, data: st.DataObject
) -> None:
    shares = data.draw(st.lists(st.floats(1, 100), min_size=count, max_size=count))
    fallen, risen = data.draw(st.permutations(range(count)))[:2]
    by = data.draw(st.floats(0.01, 1)) * shares[fallen]
    ramped = list(shares)
    ramped[fallen] = max(0.0, ramped[fallen] - by)
    ramped[risen] += by
    for left, joined in moves(shares, ramped, UNITS[:100]):
        assert left == fallen or joined == risen
        assert left != risen
        assert joined != fallen


def test_a_ramp_moves_at_most_twice_the_changed_share() -> None:
    old, new = [60.0, 30.0, 10.0], [40.0, 30.0, 30.0]
    moved = sum(moves(old, new, UNITS).values()) / len(UNITS)
    assert 0.2 - 0.04 < moved < 0.4 * 1 / 1.2 + 0.04


@pytest.mark.parametrize(
    ("by", "headers", "unit"),
    [
        ((), {"x-user-id": "u"}, None),
        (("header:x-user-id",), {"x-user-id": "u"}, b"u"),
        (("header:X-User-Id",), {"x-user-id": "u"}, b"u"),
        (("header:x-user-id",), {}, None),
        (("header:x-user-id",), {"x-user-id": ""}, None),
        (("header:x-user-id", "key"), {}, b"key-1"),
        (("header:x-user-id", "key"), {"x-user-id": "u"}, b"u"),
        (("key", "header:x-user-id"), {"x-user-id": "u"}, b"key-1"),
        (("header:a", "header:b"), {"b": "é"}, "é".encode()),
        (("header:a",), {"a": "\udcff"}, b"\xed\xb3\xbf"),
    ],
)
def test_unit_is_the_first_source_that_the_request_has(
    by: tuple[str, ...], headers: dict[str, str], unit: bytes | None
) -> None:
    assert unit_of(Assign(by=by), headers.get, "key-1") == unit
