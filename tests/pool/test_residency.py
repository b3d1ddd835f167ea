"""Who leaves a device when not all fit, against every other choice."""

from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from pool.scaling.residency import MEMORY_S, NoRoom, Resident, Room, Use, decide


def resident(
    name: str, bytes: int, uses_per_s: float = 1.0, wake_s: float = 0.1, is_busy: bool = False
) -> Resident:
    return Resident((name, "1"), bytes, uses_per_s, wake_s, is_busy)


def leaving(new: Resident, there: list[Resident], bytes_max: int, waits: bool = True) -> str:
    """Return who leaves, as text; "-" if there is no room."""
    match decide(new, there, bytes_max, is_waited_for=waits):
        case Room(refs):
            return "".join(sorted(model for model, _ in refs))
        case NoRoom():
            return "-"


def test_nobody_leaves_while_everything_fits() -> None:
    there = [resident("a", 40, 0.0), resident("b", 40, 0.0)]
    assert leaving(resident("n", 20), there, 100) == ""
    assert leaving(resident("n", 21), there, 100) != ""


def test_engine_in_use_never_leaves() -> None:
    there = [resident("a", 50, 0.0, is_busy=True), resident("b", 50, 9.0)]
    assert leaving(resident("n", 50), there, 100) == "b"
    assert leaving(resident("n", 51), there, 100) == "-"


def test_what_is_called_seldom_leaves_before_what_is_called_often() -> None:
    there = [resident("a", 50, 0.2), resident("b", 50, 0.1)]
    assert leaving(resident("n", 10), there, 100) == "b"


def test_what_wakes_quickly_leaves_before_what_takes_long() -> None:
    there = [resident("a", 50, wake_s=0.05), resident("b", 50, wake_s=20.0)]
    assert leaving(resident("n", 10), there, 100) == "a"


def test_what_gives_back_more_for_the_same_wait_leaves_alone() -> None:
    there = [resident("a", 10), resident("b", 10), resident("c", 80)]
    assert leaving(resident("n", 20), there, 100) == "c"


def test_what_does_not_fit_even_alone_says_so_and_how_much_is_missing() -> None:
    found = decide(resident("n", 120), [resident("a", 50)], 100, is_waited_for=True)
    assert found == NoRoom(20, is_final=True)
    busy = resident("a", 50, is_busy=True)
    assert decide(resident("n", 70), [busy], 100, is_waited_for=True) == NoRoom(20, is_final=False)


def test_what_nobody_waits_for_drives_out_only_what_is_worth_clearly_less() -> None:
    """So that two that are wanted alike do not take turns."""
    a, b = resident("a", 80, 1.0), resident("b", 80, 1.5)
    assert leaving(b, [a], 100, waits=False) == leaving(a, [b], 100, waits=False) == "-"
    assert leaving(resident("c", 80, 2.1), [a], 100, waits=False) == "a"
    assert leaving(b, [a], 100, waits=True) == "a"


sizes = st.integers(1, 100)
residents = st.lists(
    st.builds(
        Resident,
        st.tuples(st.sampled_from("abcdefgh"), st.just("1")),
        sizes,
        st.floats(0.001, 10.0),
        st.floats(0.01, 10.0),
        st.booleans(),
    ),
    max_size=7,
    unique_by=lambda one: one.ref,
)


@given(residents, sizes)
@settings(max_examples=100, deadline=None)
def test_choice_is_enough_needed_and_at_most_twice_as_costly_as_the_best(
    there: list[Resident], size: int
) -> None:
    bytes_max = max(100, sum(one.bytes for one in there))
    by_ref = {one.ref: one for one in there}
    missing = size - (bytes_max - sum(one.bytes for one in there))
    idle = [one for one in there if not one.is_busy]
    subsets = itertools.chain.from_iterable(
        itertools.combinations(idle, count) for count in range(len(idle) + 1)
    )
    costs = [
        sum(one.worth for one in subset)
        for subset in subsets
        if sum(one.bytes for one in subset) >= missing
    ]
    found = decide(resident("new", size), there, bytes_max, is_waited_for=True)
    if not costs:
        assert isinstance(found, NoRoom)
        return
    assert isinstance(found, Room)
    chosen = [by_ref[ref] for ref in found.leaving]
    assert not any(one.is_busy for one in chosen)
    given_back = sum(one.bytes for one in chosen)
    assert given_back >= missing
    assert all(given_back - one.bytes < missing for one in chosen)
    assert sum(one.worth for one in chosen) <= 2 * min(costs) + 1e-9


def used(every_s: float, until_s: float, burst: int = 1) -> Use:
    use, arrived, now_s = Use().seen(0.0, 0), 0, 0.0
    while (now_s := now_s + every_s) < until_s:
        for _ in range(burst):
            arrived += 1
            use = use.seen(now_s, arrived)
    return use


def test_use_is_told_from_how_often_there_was_some_lately() -> None:
    for every_s in (1.0, 10.0, 60.0):
        assert 0.7 / every_s < used(every_s, 3600.0).per_s(3600.0) < 1.3 / every_s


def test_calls_at_once_are_one_use() -> None:
    assert used(60.0, 3600.0, burst=1000) != used(60.0, 3600.0)
    assert used(60.0, 3600.0, burst=1000).per_s(3600.0) == used(60.0, 3600.0).per_s(3600.0)


def test_what_was_busy_and_stopped_counts_less_than_what_is_called_now_and_then() -> None:
    busy, steady = used(0.5, 3600.0), used(30.0, 3700.0)
    assert busy.per_s(3600.0) > steady.per_s(3600.0)
    assert busy.per_s(3700.0) < steady.per_s(3700.0)


def test_never_called_is_little_and_not_nothing() -> None:
    fresh = Use()
    looked = fresh.seen(0.0, 0)
    assert 0 < looked.per_s(10 * MEMORY_S) < used(300.0, 10 * MEMORY_S).per_s(10 * MEMORY_S)
    assert 0 < fresh.per_s(0.0) < 0.01


def test_least_waiting_wins_over_an_hour() -> None:
    """Five engines, room for three: against leaving out by last use, and the clairvoyant choice."""
    rng = random.Random(0)
    every_s = {"a": 2.0, "b": 5.0, "c": 30.0, "d": 300.0, "e": 300.0}
    wakes_s = {"a": 0.1, "b": 0.1, "c": 5.0, "d": 0.1, "e": 0.1}
    calls = sorted(
        (at_s, name)
        for name, gap_s in every_s.items()
        for at_s in itertools.accumulate(rng.expovariate(1 / gap_s) for _ in range(9999))
        if at_s < 3600.0
    )

    def waited_s(by_use_alone: bool) -> float:
        uses = dict.fromkeys(every_s, Use())
        arrived = dict.fromkeys(every_s, 0)
        there: list[str] = []
        total_s = 0.0
        for now_s, name in calls:
            arrived[name] += 1
            uses[name] = uses[name].seen(now_s, arrived[name])

            def engine(one: str, now_s: float = now_s) -> Resident:
                return resident(one, 1, uses[one].per_s(now_s), wakes_s[one])

            if name in there:
                there.remove(name)
            else:
                total_s += wakes_s[name]
                found = decide(engine(name), [engine(n) for n in there], 3, is_waited_for=True)
                assert isinstance(found, Room)
                gone = [model for model, _ in found.leaving]
                if by_use_alone and gone:
                    gone = there[:1]
                there = [one for one in there if one not in gone]
            there.append(name)
        return total_s

    assert waited_s(by_use_alone=False) < 0.5 * waited_s(by_use_alone=True)
