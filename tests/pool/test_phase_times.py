"""Histograms of phases: what is counted, and what comes of it in `status` and `/metrics`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from edge.pool_metrics import pool_text
from infra.status_view import lines
from pool import controller as controller_module
from pool.phase_times import LOAD, ROWS_MAX, START, PhaseTimes
from pool.wire import control
from tests.support.control import engine, worker
from tests.support.control_stack import Stack, running_controller


def samples(times: PhaseTimes) -> dict[tuple[str, str, str, str], float]:
    status = {"workers": [], "edges": [], "endpoints": [], "phases": times.rows()}
    text = pool_text(msgspec.json.encode(status)).decode()
    return {
        (sample.name, *(sample.labels.get(label, "") for label in ("of", "phase", "le"))): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        if family.name.startswith("tidepool_wake")
        for sample in family.samples
    }


def test_each_phase_has_a_histogram_and_all_together_have_one() -> None:
    times = PhaseTimes()
    times.add(LOAD, "ort", {"fetch": 1_000, "deserialise": 30_000})
    times.add(LOAD, "ort", {"fetch": 3_000, "deserialise": 60_000})
    times.add(START, "", {"spawn": 10_000, "import": 400_000})
    found = samples(times)
    assert found["tidepool_wake_phase_seconds_bucket", "load", "fetch", "0.001"] == 1
    assert found["tidepool_wake_phase_seconds_bucket", "load", "fetch", "0.005"] == 2
    assert found["tidepool_wake_phase_seconds_count", "load", "deserialise", ""] == 2
    assert found["tidepool_wake_phase_seconds_sum", "load", "deserialise", ""] == 0.09
    assert found["tidepool_wake_seconds_sum", "load", "", ""] == pytest.approx(0.094)
    assert found["tidepool_wake_seconds_bucket", "start", "", "0.2"] == 0
    assert found["tidepool_wake_seconds_bucket", "start", "", "0.5"] == 1


def test_phases_add_up_to_the_whole() -> None:
    times = PhaseTimes()
    for took_us in (5_000, 70_000, 900_000):
        times.add(LOAD, "ort", {"fetch": took_us // 10, "deserialise": took_us})
    *phases, whole = times.rows()
    assert sum(row["sum_s"] for row in phases) == pytest.approx(whole["sum_s"])
    assert whole["phase"] == ""
    assert 20 < whole["p50_ms"] <= 100


def test_what_is_not_known_is_not_counted() -> None:
    times = PhaseTimes()
    times.add(START, "", {})
    assert times.rows() == []


def test_phases_of_others_cannot_fill_the_memory() -> None:
    times = PhaseTimes()
    for at in range(2 * ROWS_MAX):
        times.add(LOAD, "theirs", {f"p{at}": 1})
    assert len(times.rows()) == ROWS_MAX


def test_longest_wake_is_in_the_last_bucket() -> None:
    times = PhaseTimes()
    times.add(LOAD, "ort", {"fetch": 3_600_000_000})
    assert samples(times)["tidepool_wake_seconds_bucket", "load", "", "+Inf"] == 1


@pytest.fixture
async def stack(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stack]:
    monkeypatch.setattr(controller_module, "SETTLE_S", 0.0)
    async with running_controller() as made:
        yield made


def woken(loads: int, incarnation: str = "i1") -> control.RegisterWorker:
    """A worker that has loaded so often, and says how long that and its own start took."""
    phases = {"fetch": 1_000, "deserialise": 9_000}
    state = msgspec.structs.replace(engine(), loads=loads, wake_us=10_000, phases=phases)
    made = worker("w1", state, incarnation=incarnation)
    assert isinstance(made, control.RegisterWorker)
    return msgspec.structs.replace(made, phases={"spawn": 20_000, "import": 480_000})


def counted(stack: Stack) -> dict[tuple[str, str], int]:
    rows: Any = stack.status()["phases"]
    return {(row["of"], row["phase"]): row["count"] for row in rows}


async def test_worker_that_dials_again_is_counted_once(stack: Stack) -> None:
    stack.put_spec()
    await stack.controller.poll()
    for _ in range(2):
        await stack.joined(woken(1))
    assert counted(stack)["load", "deserialise"] == 1
    assert counted(stack)["start", "import"] == 1
    assert stack.status()["endpoints"][0]["wakes"] == 1
    await stack.joined(woken(1, "i2"))
    assert counted(stack)["load", "deserialise"] == 2
    assert counted(stack)["start", "import"] == 2


async def test_status_shows_the_phases_of_the_last_load_and_of_the_start(stack: Stack) -> None:
    await stack.joined(woken(1))
    found: Any = stack.status()["workers"][0]
    assert found["phases_ms"] == {"spawn": 20.0, "import": 480.0}
    (shown,) = found["engines"]
    assert shown["phases_ms"] == {"fetch": 1.0, "deserialise": 9.0}
    assert shown["wake_ms"] == 10.0
    text = "\n".join(lines(msgspec.json.decode(msgspec.json.encode(stack.status()))))
    assert "  started in 500 ms: spawn 20.0, import 480.0" in text
    assert "    woke in 10 ms: fetch 1.0, deserialise 9.0" in text
