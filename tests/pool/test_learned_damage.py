"""Whatever is read back of what was learned, and whatever policies do: the controller goes on."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from pool.placement import Demand, Ref, WorkerView
from pool.scale_desk import BUG_S, ScaleDesk
from pool.scaling import kept
from pool.scaling.policy import ScalingPolicy
from pool.scaling.signals import Decision, Limits, Signals
from pool.wire.control import EngineState
from tests.support.learned import kept_of

CLOCK: Ref = ("clock", "1")  # called in bursts, every hundred seconds
OTHER: Ref = ("other", "1")
LIMITS = {CLOCK: Limits(replica_hours_per_day_max=20.0), OTHER: Limits()}
NOW_UNIX_S = 1.7e9

WORST = (math.nan, math.inf, 1.7e308, 2**63)
SANE_MAX = 1e18
BAD = (
    *(*WORST, -math.inf, -1.7e308, 5e-324, 1e-300, -1.0, -0.0, 0.0),
    *(2**53, 2**64 - 1, -(2**63)),
    *(1e18, -1e18, 1e14, -1e14, 3e7, 14_400, -1e4, 2e3, 50),  # about the bounds
)


def rounds(desk: ScaleDesk, now_s: float, calls: int = 0, **more: Any) -> dict[Ref, Demand]:
    """Let a desk see one worker that has both versions, with so many calls in each."""
    engines = [
        EngineState(
            *(*ref, "test", "warm"),
            calls=calls,
            waiting=calls // 2,
            rows_per_s=10.0,
            idle_s=0.0 if calls else 0.5,
            **more,
        )
        for ref in LIMITS
    ]
    desk.count("w", "i", engines)
    views = [WorkerView("w", False, {(e.model, e.version): e for e in engines})]
    return desk.round(LIMITS, views, now_s=now_s, unix_s=NOW_UNIX_S + now_s)


@functools.cache
def whole() -> bytes:
    """Return what was learned of a clock with bursts: gaps, ticks, rates, hours, all there is."""
    desk = ScaleDesk()
    desk.restore(None, 0.0, NOW_UNIX_S)
    desk.started({"spawn": 300_000})
    rounds(desk, 0.0)
    arrived = 0
    for burst in range(1, 12):
        for second in range(6):
            arrived += 100
            rows = {"arrived": arrived, "arrived_rows": arrived, "wake_us": 80_000, "bytes": 1000}
            rounds(desk, 100.0 * burst + second, 9, **rows)
        rounds(desk, 100.0 * burst + 7, **rows)
    return kept_of(desk, 1200.0, NOW_UNIX_S + 1200.0)


def serve(data: bytes | None) -> ScaleDesk:
    """Let the next controller's desk take over `data` and serve for hours; nothing may fail."""
    desk = ScaleDesk()
    with capture_logs() as logs:
        desk.restore(data, 50.0, NOW_UNIX_S + 1210.0)
        arrived = 0
        for now_s, calls in ((51.0, 0), (52.0, 3), (53.0, 90), (60.0, 0), (4000.0, 0), (4100.0, 5)):
            arrived += calls
            for ref, demand in rounds(desk, now_s, calls, arrived=arrived).items():
                assert 0 <= demand.replicas <= LIMITS[ref].replicas_max
                assert 0 <= demand.size_bytes <= 2**53
                assert 0.0 <= desk.wake_s(ref, "cold") <= 2 * kept.WAKE_S_MAX
                msgspec.json.encode(desk.why(ref, now_s))
            assert not math.isnan(desk.next_s())
        inherited = kept_of(desk, 5000.0, NOW_UNIX_S + 6000.0)
    again = kept.read(inherited)
    assert again is not None
    assert set(again.versions) >= set(LIMITS)
    assert not again.damaged  # nor does the next one inherit anything bad
    found = opened(inherited)
    assert all(-SANE_MAX <= at(found, path) <= SANE_MAX for path in numbers(found))
    assert not [log for log in logs if log["event"] == "bug"]
    return desk


# damage


class Packed:
    """Bytes that hold an array."""

    def __init__(self, inside: Any) -> None:
        self.inside = inside


def opened(value: Any) -> Any:
    """Return what was packed, and what is packed within it."""
    match value:
        case bytes():
            try:
                inside = msgspec.msgpack.decode(value)
            except (msgspec.DecodeError, UnicodeDecodeError):
                return value
            return Packed(opened(inside)) if isinstance(inside, list) else value
        case list():
            return [opened(each) for each in value]
        case dict():
            return {name: opened(each) for name, each in value.items()}
    return value


def closed(value: Any) -> Any:
    match value:
        case Packed():
            return msgspec.msgpack.encode(closed(value.inside))
        case list():
            return [closed(each) for each in value]
        case dict():
            return {name: closed(each) for name, each in value.items()}
    return value


def numbers(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where the numbers are."""
    match value:
        case int() | float():
            yield path
        case Packed():
            yield from numbers(value.inside, (*path, "inside"))
        case list():
            for index, each in enumerate(value):
                yield from numbers(each, (*path, index))
        case dict():
            for name, each in value.items():
                yield from numbers(each, (*path, name))


def at(value: Any, path: tuple[Any, ...]) -> float:
    for step in path:
        value = value.inside if step == "inside" else value[step]
    assert isinstance(value, int | float)
    return value


def put(value: Any, path: tuple[Any, ...], number: float) -> None:
    for step in path[:-1]:
        value = value.inside if step == "inside" else value[step]
    value[path[-1]] = number


PATHS = tuple(numbers(opened(whole())))
# Each number once; of long lists, and of what is the same in both versions, one stands for all.
PLACES: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
for _path in PATHS:
    _head = tuple("*" if step in ("clock/1", "other/1") else step for step in _path)
    _is_many = sum(path[:-1] == _path[:-1] for path in PATHS) > 9
    PLACES.setdefault((*_head[:-1], "*") if _is_many else _head, []).append(_path)


def test_all_that_is_kept_has_numbers_to_damage() -> None:
    assert len(PLACES) > 20
    assert len(PATHS) > 400


def damaged(*changes: tuple[tuple[Any, ...], float]) -> bytes:
    found = opened(whole())
    for path, number in changes:
        put(found, path, number)
    data = closed(found)
    assert isinstance(data, bytes)
    return data


def test_what_is_whole_is_taken_over() -> None:
    assert damaged() == whole()
    desk = serve(whole())
    assert desk.wake_s(CLOCK) == desk.wake_s(OTHER) == 0.08
    assert desk.wake_s(CLOCK, "cold") == pytest.approx(0.38)


def test_every_number_can_be_bad_without_harm() -> None:
    for paths in PLACES.values():
        for bad in WORST:
            serve(damaged((paths[0], bad)))
        serve(damaged(*((path, -1e4) for path in paths)))  # all of a list, at its bound


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0, 1e300])
def test_bad_number_that_belongs_to_all_costs_all(index: int, bad: float) -> None:
    assert not ScaleDesk().restore(damaged((("inside", index), bad)), 50.0, NOW_UNIX_S)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(PLACES, key=str)).flatmap(
                lambda place: st.sampled_from(PLACES[place])
            ),
            st.one_of(st.sampled_from(BAD), st.floats(), st.integers(-(2**63), 2**64 - 1)),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_any_numbers_in_what_was_kept_do_no_harm(
    changes: list[tuple[tuple[Any, ...], float]],
) -> None:
    serve(damaged(*changes))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(whole())), st.integers(0, 4), st.binary(max_size=9)),
        min_size=1,
        max_size=4,
    )
)
def test_any_change_of_the_bytes_does_no_harm(changes: list[tuple[int, int, bytes]]) -> None:
    data = whole()
    for at, gone, more in changes:
        data = data[:at] + more + data[at + gone :]
    serve(data)


@pytest.mark.parametrize("bad", [math.inf, math.nan, -1.0, 1e300])
def test_bad_number_costs_its_own_version_what_was_learned_and_no_other(bad: float) -> None:
    data = damaged((("inside", 2, "clock/1", 4), bad))
    serve(data)
    desk = ScaleDesk()
    with capture_logs() as logs:
        assert desk.restore(data, 50.0, NOW_UNIX_S)
    assert (desk.wake_s(CLOCK), desk.wake_s(OTHER)) == (0.0, 0.08)
    assert [log["versions"] for log in logs if log["event"] == "learned_damaged"] == [1]


# bugs


class Buggy(ScalingPolicy):
    """A policy that fails in one of its ways, from the second time on."""

    fails = ""
    times = 0

    def _count(self, what: str) -> None:
        self.times += what == self.fails
        if what == self.fails and self.times > (what == "observe"):
            raise ZeroDivisionError(what)

    def observe(self, signals: Signals) -> None:
        self._count("observe")
        super().observe(signals)

    def decide(self, limits: Limits, signals: Signals) -> Decision:
        self._count("decide")
        decision = super().decide(limits, signals)
        if self.fails == "until":
            return msgspec.structs.replace(decision, until_s=math.nan)
        return decision

    def save(self) -> bytes:
        self._count("save")
        return super().save()

    def restore(self, data: bytes, now_s: float) -> None:
        self._count("restore")
        super().restore(data, now_s)


class First:
    """Makes one policy that fails, and then only good ones."""

    def __init__(self, fails: str) -> None:
        self.made: list[Buggy] = []
        self._fails = fails

    def __call__(self) -> ScalingPolicy:
        policy = Buggy()
        policy.fails = "" if self.made else self._fails
        self.made.append(policy)
        return policy


@pytest.mark.parametrize("fails", ["observe", "decide", "until", "save", "restore"])
def test_bug_of_a_policy_costs_its_version_a_new_one_and_one_word_about_it(fails: str) -> None:
    make = First(fails)
    desk = ScaleDesk(make=make)
    with capture_logs() as logs:
        desk.restore(whole(), 50.0, NOW_UNIX_S + 1210.0)
        for second in range(4):
            found = rounds(desk, 51.0 + second, 3, arrived=3 * second)
            assert [demand.replicas >= 1 for demand in found.values()] == [True, True]
        again = kept.read(kept_of(desk, 56.0, NOW_UNIX_S + 1216.0))
        assert rounds(desk, 57.0, 3)[CLOCK].replicas >= 1
        gone = desk.round({}, [], now_s=58.0, unix_s=NOW_UNIX_S)  # all are put away
    assert gone == {}
    assert again is not None
    assert set(again.versions) == set(LIMITS)
    assert again.versions[OTHER].policy
    assert again.versions[CLOCK].wake_s == 0.08  # that is no policy's
    assert len([log for log in logs if log["event"] == "bug"]) == 1
    assert len(make.made) == 3


def test_version_that_is_put_away_in_the_middle_of_a_bug_is_put_away() -> None:
    desk = ScaleDesk(make=First("save"))
    desk.restore(None, 0.0, NOW_UNIX_S)
    rounds(desk, 1.0, 3)
    with capture_logs() as logs:
        assert desk.round({}, [], now_s=2.0, unix_s=NOW_UNIX_S) == {}
    assert desk.wanted() == {}
    assert [log["event"] for log in logs] == ["bug"]


def test_policies_that_fail_every_time_are_not_said_to_every_time() -> None:
    def make() -> ScalingPolicy:
        policy = Buggy()
        policy.fails = "decide"
        return policy

    desk = ScaleDesk(make=make)
    desk.restore(None, 0.0, NOW_UNIX_S)
    with capture_logs() as logs:
        for second in range(round(BUG_S) + 10):
            assert rounds(desk, float(second), 3)[OTHER].replicas == 1
            assert desk.has_decided(OTHER)
    assert len([log for log in logs if log["event"] == "bug"]) == 2 * len(LIMITS)


# what workers say


@pytest.mark.parametrize("absurd", [2**53, 5 * 3600 * 10**6])
def test_absurd_times_of_a_worker_are_not_believed(absurd: int) -> None:
    desk = ScaleDesk()
    desk.restore(None, 0.0, NOW_UNIX_S)
    desk.started({"spawn": 400_000})
    rounds(desk, 1.0, wake_us=90_000)
    desk.started({"spawn": absurd, "import": absurd})
    rounds(desk, 2.0, wake_us=absurd)
    assert desk.wake_s(CLOCK, "cold") == pytest.approx(0.49)


@pytest.mark.parametrize("rows_per_s", [5e-324, 1e-300, 2.0**53])
def test_absurd_speed_of_a_worker_is_not_believed(rows_per_s: float) -> None:
    seen: list[Signals] = []

    class Watch(ScalingPolicy):
        def observe(self, signals: Signals) -> None:
            seen.append(signals)
            super().observe(signals)

    desk = ScaleDesk(make=Watch)
    desk.restore(None, 0.0, NOW_UNIX_S)
    for now_s, arrived in ((1.0, 0), (3.0, 2**53)):
        busy = EngineState(
            *(*CLOCK, "test", "warm"),
            calls=2**53,
            waiting=2**52,
            rows_per_s=rows_per_s,
            arrived=arrived,
            arrived_rows=arrived,
        )
        desk.count("w", "i", [busy])
        views = [WorkerView("w", False, {CLOCK: busy})]
        found = desk.round({CLOCK: Limits()}, views, now_s=now_s, unix_s=NOW_UNIX_S)
    assert found[CLOCK].replicas >= 1
    assert [signals.calls_per_s for signals in seen] == [0.0, 0.0]
