"""Calls that share a run: joined, run, cut apart."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pool.engines.base import DeviceLost, EngineError, Tensors
from pool.queueing.running import run_tickets
from pool.queueing.ticket import Failed
from tests.support.tickets import asked


class Doubling:
    """Says what it was given, and doubles it; refuses 13."""

    streams = False
    lanes = 1

    def __init__(self) -> None:
        self.runs: list[list[int]] = []

    def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
        return self._run([tensors["x"].tolist()])

    def _run(self, parts: list[list[int]]) -> Tensors:
        self.runs += parts
        joint = [value for part in parts for value in part]
        if 13 in joint:
            raise EngineError("13")
        return {"y": np.array(joint) * 2}


class DoublingParts(Doubling):
    """Takes the parts as they are."""

    def infer_joint(self, parts: Sequence[Tensors], outputs: Sequence[str] = ()) -> Tensors:
        return self._run([part["x"].tolist() for part in parts])


def run(session: Any, *values: int) -> list[Any]:
    tickets = [asked(value, arrived_s=0.0).ticket for value in values]
    ran = run_tickets(session, tickets, [ticket.inputs for ticket in tickets])
    return [one if isinstance(one, Failed) else one["y"].tolist() for one in ran.results]


def test_calls_are_joined_before_a_session_that_takes_one_tensor() -> None:
    session = Doubling()
    assert run(session, 1, 2, 3) == [[2], [4], [6]]
    assert session.runs == [[1, 2, 3]]


def test_a_session_that_takes_parts_gets_them_unjoined() -> None:
    session = DoublingParts()
    assert run(session, 1, 2, 3) == [[2], [4], [6]]
    assert session.runs == [[1], [2], [3]]


def test_if_parts_fail_together_only_the_bad_one_fails() -> None:
    results = run(DoublingParts(), 1, 13, 3)
    assert [results[0], results[2]] == [[2], [6]]
    assert isinstance(results[1], Failed)


@pytest.mark.rule("F20")
def test_a_bad_one_of_many_is_found_by_halves() -> None:
    session = Doubling()
    values = [*range(100, 119), 13, *range(200, 212)]
    results = run(session, *values)
    assert [one for one in results if not isinstance(one, Failed)] == [
        [2 * value] for value in values if value != 13
    ]
    assert isinstance(results[19], Failed)
    assert len(session.runs) == 11


class Cramped(Doubling):
    """Has memory for four rows at a time."""

    def _run(self, parts: list[list[int]]) -> Tensors:
        made = super()._run(parts)
        if len(made["y"]) > 4:
            raise EngineError("out of memory")
        return made


@pytest.mark.rule("F18")
def test_a_batch_that_is_too_large_for_the_memory_is_run_in_halves() -> None:
    session = Cramped()
    assert run(session, *range(8)) == [[2 * value] for value in range(8)]
    assert [len(one) for one in session.runs] == [8, 4, 4]


class Small(DoublingParts):
    """Has memory for two at a time; what it raises is what the frameworks do."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def _run(self, parts: list[list[int]]) -> Tensors:
        self.runs.append([value for part in parts for value in part])
        if len(parts) > 2:
            raise self.error
        return {"y": np.array(self.runs[-1]) * 2}


@pytest.mark.rule("F18")
@pytest.mark.parametrize(
    "error", [MemoryError(), EngineError("out of memory on cuda:0: tried to allocate 2 GiB")]
)
def test_what_has_no_memory_together_is_run_in_halves_and_answered(error: Exception) -> None:
    session = Small(error)
    assert run(session, 1, 2, 3, 4) == [[2], [4], [6], [8]]
    assert session.runs == [[1, 2, 3, 4], [1, 2], [3, 4]]


class Losing(Doubling):
    """Loses its device."""

    def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
        self._run([tensors["x"].tolist()])
        raise DeviceLost("cuda:0 is lost to this process: device-side assert triggered")


@pytest.mark.rule("F18")
@pytest.mark.parametrize("values", [(1,), (1, 2)])
def test_a_lost_device_ends_the_process_and_nobody_is_run_again(values: tuple[int, ...]) -> None:
    asked_to_end: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: asked_to_end.append(number))
    try:
        session = Losing()
        results = run(session, *values)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert asked_to_end == [signal.SIGTERM]
    assert [one.status for one in results] == [502] * len(values)
    assert "lost its device" in results[0].detail
    assert session.runs == [list(values)]
