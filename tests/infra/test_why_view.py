"""How the reasons behind an endpoint's replicas read."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from infra.why_view import why_lines
from pool.placement import WorkerView
from pool.scale_desk import ScaleDesk
from pool.scaling.signals import Limits
from pool.wire.control import EngineState

REF = ("m", "1")


def explained(of_version: Mapping[str, object] | None = None, /, **more: object) -> str:
    desk = ScaleDesk()
    desk.restore(None, 0.0, 0.0)
    engine = EngineState("m", "1", "test", "warm", wake_us=70_000, rows_per_s=200.0)
    limits = {REF: Limits(idle_s=90.0, replica_hours_per_day_max=30.0)}
    for now_s, calls in ((1.0, 2), (3.0, 0)):
        engine = msgspec.structs.replace(engine, calls=calls, arrived=2, arrived_rows=8)
        views = [WorkerView("w", False, {REF: engine})]
        desk.count("w", "i", [engine])
        desk.round(limits, views, now_s=now_s, unix_s=now_s)
    version = {**desk.why(REF, 63.0), "owner": "", **(of_version or {})}
    why = {"endpoint": "e", "due": "", "versions": [version], **more}
    return "\n".join(why_lines(msgspec.json.decode(msgspec.json.encode(why))))


def test_it_tells_demand_limits_and_decisions() -> None:
    text = explained()
    assert text.startswith("endpoint e\n  m/1  1 replica wanted: ")
    assert "2 calls seen, 0 waiting, 0 running; 1 warm, 0 loading" in text
    assert "50 calls/s by one replica; a wake takes 70 ms, a process an unknown time more" in text
    assert "0 to 4 replicas, idle 90 s, a cold start costs 60 min of idling" in text
    assert "30 replica hours a day" in text
    assert "62 s ago  1  " in text


def test_no_number_is_shown_as_a_power_of_ten() -> None:
    learned = {"calls_per_s": 49_968.2, "wake_s": 0.0999, "start_s": 4.05}
    version = {
        **{"model": "m", "version": "1", "wanted": 1, "reason": "demand", "holds_s": 0.5},
        **{"terms": {"demand": 12_345.6}, "log": [], "learned": learned},
        "demand": dict.fromkeys(("arrived", "waiting", "running", "warm", "loading"), 0),
        "limits": msgspec.to_builtins(Limits(replica_hours_per_day_max=24_000.0)),
    }
    text = "\n".join(why_lines({"endpoint": "e", "due": "", "versions": [version]}))
    assert "49,970 calls/s by one replica; a wake takes 99.9 ms, a process 4.05 s more" in text
    assert "term      demand 12,350" in text
    assert "24,000 replica hours a day" in text


def test_it_tells_what_was_unloaded_and_what_ends_that() -> None:
    text = explained({"unloaded": True})
    assert "m/1  unloaded by request: none is loaded until a call or `tidepool warm`" in text
    assert "  m/1  1 replica wanted otherwise: " in text


def test_it_tells_when_there_are_fewer_workers_than_replicas() -> None:
    assert "short     there are workers for 0 of 1" in explained(workers=0)
    assert "short" not in explained(workers=1)


def test_it_tells_what_the_clock_wants() -> None:
    assert explained(due="schedule").startswith("endpoint e  due by its schedule\n")


def test_it_tells_when_nothing_is_decided_yet() -> None:
    why = {"endpoint": "e", "due": "", "versions": [ScaleDesk().why(REF, 0.0)]}
    assert why_lines(why) == ["endpoint e", "  m/1  nothing is decided yet"]


def test_two_zeros_and_who_helps_out_are_told() -> None:
    none = explained({"state": "no_instance", "wake_ms": 240_000, "fallback": False})
    assert "    now       asleep, and no instance is up: one takes about 4 min" in none
    assert "fallback" not in none
    helped = explained({"state": "no_instance", "wake_ms": 200, "fallback": True})
    assert "no instance is up: fallback workers answer after about 200 ms" in helped
    assert "    fallback  cpu: fallback workers answer" in helped
    assert "    now       asleep on a machine that is up" in explained({"state": "asleep"})
    assert "    now " not in explained({"state": "warm", "wake_ms": None})
