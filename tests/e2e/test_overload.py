"""More calls than can be answered, on real processes: the figures of overload and of fairness.

The capacity is what a closed loop of the same client gets of the same stack in the same run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.models import heavy
from tests.support.open_loop import Stream, Told, answered_per_s, begin, run
from tests.support.stack import Stack, running_stack

DEADLINE_S = 0.5
CLIENTS = 8  # of the closed loop
BODY = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
)
MODEL = "slow"
LAYERS = 96  # some 20 ms of one core


@dataclass(frozen=True)
class Site:
    """A stack whose one model runs call after call, some 20 ms each."""

    stack: Stack

    def stream(self, name: str, key: str = "", **options: float) -> Stream:
        path = f"/v2/models/{MODEL}/infer"
        return Stream(name=name, key=key or self.stack.key, path=path, body=BODY, **options)  # type: ignore[arg-type]

    def run(self, *streams: Stream) -> dict[str, list[Told]]:
        return run(self.stack.port, *streams)

    def memory_mib(self) -> dict[str, float]:
        """What edges and workers hold, each."""
        return {
            name: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20
            for name, pid in self.stack.pids().items()
            if name.startswith(("edge", "worker"))
        }


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("overload")
    with running_stack(folder / "stack") as stack:
        stack.publish(MODEL, heavy(folder / "slow.onnx", LAYERS))
        stack.edit_endpoint(MODEL, cache=None)
        yield Site(stack)


def good(told: Sequence[Told]) -> list[Told]:
    return [one for one in told if one.status == 200 and one.took_s <= DEADLINE_S]


def per_s(told: Sequence[Told], from_s: float, until_s: float) -> float:
    ended = sum(one.status == 200 and from_s <= one.end_s < until_s for one in told)
    return ended / (until_s - from_s)


def quantile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


@dataclass
class Figures:
    """Of one overload."""

    goodput: float  # of the capacity
    answers_p50_s: float
    answers_p99_s: float
    rejects_p50_s: float
    rejects_p99_s: float
    statuses: dict[int, int]
    recovery_s: float
    memory_mib: float  # more than before, of all processes together

    def __str__(self) -> str:
        return (
            f"goodput {self.goodput:.3f} of capacity, answers p50/p99 {self.answers_p50_s:.3f}/"
            f"{self.answers_p99_s:.3f} s, rejects p50/p99 {self.rejects_p50_s * 1e3:.1f}/"
            f"{self.rejects_p99_s * 1e3:.1f} ms, recovery {self.recovery_s:.2f} s, memory "
            f"{self.memory_mib:+.1f} MiB, {self.statuses}"
        )


def overload(
    site: Site, load: float, seconds: float, capacity_s: float, again_s: float = 0.0
) -> Figures:
    """Find the capacity, offer `load` times as much, then 0.4 of it; find it once more."""
    from_s, until_s = capacity_s, capacity_s + seconds
    memory = sum(site.memory_mib().values())
    loading = begin(
        site.stack.port,
        [
            site.stream("before", clients=CLIENTS, seconds=capacity_s - 0.1, deadline_s=10),
            site.stream("flood", times=load, from_s=from_s, seconds=seconds),
            site.stream("after", times=0.4, from_s=until_s, seconds=1.5),
            site.stream(
                "again", clients=CLIENTS, from_s=until_s + 2.0, seconds=again_s, deadline_s=10
            ),
        ],
    )
    most = memory
    while not loading.is_over():
        most = max(most, sum(site.memory_mib().values()))
        time.sleep(0.1)
    told = loading.end()
    capacity = answered_per_s(told["before"])
    if told["again"]:
        capacity = (capacity + answered_per_s(told["again"])) / 2
    flooded, then = told["flood"], told["after"]
    answers = [one.took_s for one in flooded if one.status == 200]
    rejects = [one.took_s for one in flooded if one.status != 200]
    bad_s = [one.at_s - until_s for one in then if one not in good(then)]
    return Figures(
        goodput=per_s(good(flooded), from_s + 0.5, until_s) / capacity,
        answers_p50_s=quantile(answers, 0.5),
        answers_p99_s=quantile(answers, 0.99),
        rejects_p50_s=quantile(rejects, 0.5),
        rejects_p99_s=quantile(rejects, 0.99),
        statuses={n: sum(one.status == n for one in flooded) for n in {o.status for o in flooded}},
        recovery_s=max(bad_s, default=0.0),
        memory_mib=most - memory,
    )


def test_overload_is_answered_at_capacity_and_refused_at_once(site: Site) -> None:
    """The short form, on a machine that does other things as well."""
    found = overload(site, load=4.0, seconds=1.5, capacity_s=1.0)
    print(f"\n4 x: {found}")
    assert found.goodput >= 0.5
    assert set(found.statuses) <= {200, 503, 504}
    assert found.rejects_p50_s <= 0.1
    assert found.recovery_s <= 1.5


@pytest.mark.slow
@pytest.mark.parametrize("load", [2.0, 5.0])
def test_overload_for_a_minute(site: Site, load: float) -> None:
    found = overload(site, load, seconds=60.0, capacity_s=5.0, again_s=5.0)
    print(f"\n{load} x: {found}")
    assert found.goodput >= 0.9
    assert found.answers_p99_s <= DEADLINE_S
    assert found.rejects_p50_s <= 0.02
    assert found.recovery_s <= 1.0
    assert found.memory_mib <= 64.0
