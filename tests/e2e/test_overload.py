"""More calls than can be answered, on real processes: the figures of overload and of fairness.

One capacity is what a closed loop of the same client gets of the same stack in the same run.  The
other holds on a machine that does other things as well: so many runs as the engine did, as long as
they took, fit into the time.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import pytest

from tests.support.models import heavy
from tests.support.open_loop import Stream, Told, answered_per_s, begin, run
from tests.support.stack import Stack

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

    def memory_mib(self) -> dict[str, float]:
        """What edges and workers hold, each."""
        return {
            name: int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20
            for name, pid in self.stack.pids().items()
            if name.startswith(("edge", "worker"))
        }


@pytest.fixture(scope="module")
def site(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Site:
    path = tmp_path_factory.mktemp("overload") / "slow.onnx"
    stack.publish(MODEL, heavy(path, LAYERS))
    stack.edit_endpoint(MODEL, cache=None)
    return Site(stack)


def good(told: Sequence[Told]) -> list[Told]:
    return [one for one in told if one.status == 200 and one.took_s <= DEADLINE_S]


def per_s(told: Sequence[Told], from_s: float, until_s: float) -> float:
    ended = sum(one.status == 200 and from_s <= one.end_s < until_s for one in told)
    return ended / (until_s - from_s)


def quantile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def recovery_s(told: Sequence[Told], since_s: float) -> float:
    """Return after how long the first of five calls in a row came that were answered in time."""
    calls = sorted(told, key=lambda one: one.at_s)
    in_time = set(good(calls))
    for first in range(len(calls) - 4):
        if in_time.issuperset(calls[first : first + 5]):
            return calls[first].at_s - since_s
    return math.inf


@dataclass
class Figures:
    """Of one overload."""

    goodput: float  # of what the engine could do meanwhile, by the runs that it did
    closed: float  # of what a closed loop got before and after
    answers_p50_s: float
    answers_p99_s: float
    rejects_p50_s: float
    rejects_p99_s: float
    statuses: dict[int, int]
    recovery_s: float
    memory_mib: float  # more than before, of all processes together

    def __str__(self) -> str:
        return (
            f"goodput {self.goodput:.3f} of the engine's capacity, {self.closed:.3f} of a closed "
            f"loop's; answers p50/p99 {self.answers_p50_s:.3f}/{self.answers_p99_s:.3f} s; rejects "
            f"p50/p99 {self.rejects_p50_s * 1e3:.1f}/{self.rejects_p99_s * 1e3:.1f} ms; recovery "
            f"{self.recovery_s:.2f} s; memory {self.memory_mib:+.1f} MiB; {self.statuses}: "
            "504 were taken, and came too late"
        )


def overload(site: Site, load: float, seconds: float, capacity_s: float) -> Figures:
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
                "again", clients=CLIENTS, from_s=until_s + 2.0, seconds=capacity_s, deadline_s=10
            ),
        ],
    )
    most = memory
    while not loading.is_over():
        most = max(most, sum(site.memory_mib().values()))
        time.sleep(0.1)
    told = loading.end()
    capacity = (answered_per_s(told["before"]) + answered_per_s(told["again"])) / 2
    goodput = per_s(good(told["flood"]), from_s + 0.5, until_s)
    flooded, then = told["flood"], told["after"]
    answers = [one.took_s for one in flooded if one.status == 200]
    rejects = [one.took_s for one in flooded if one.status != 200]
    return Figures(
        goodput=goodput * fmean([one.infer_s for one in flooded if one.status == 200]),
        closed=goodput / capacity,
        answers_p50_s=quantile(answers, 0.5),
        answers_p99_s=quantile(answers, 0.99),
        rejects_p50_s=quantile(rejects, 0.5),
        rejects_p99_s=quantile(rejects, 0.99),
        statuses={n: sum(one.status == n for one in flooded) for n in {o.status for o in flooded}},
        recovery_s=recovery_s(then, until_s),
        memory_mib=most - memory,
    )


def test_overload_is_refused_at_once_and_its_cause_told_apart(site: Site) -> None:
    """The short form, on a machine that does other things as well."""
    noisy, quiet = (site.stack.make_key(tenant=tenant) for tenant in ("noisy", "quiet"))
    told = run(
        site.stack.port,
        site.stream("before", noisy, clients=CLIENTS, seconds=1.0, deadline_s=10),
        site.stream("flood", noisy, times=4.0, from_s=1.1, seconds=2.0),
        site.stream("quiet", quiet, times=0.2, from_s=2.0, seconds=1.1),
        site.stream("after", noisy, times=0.2, from_s=3.6, seconds=0.7),
    )
    capacity = answered_per_s(told["before"])
    flood, beside = told["flood"], told["quiet"]
    rejects = [one for one in flood if one.status != 200]
    print(
        f"\n4 x for 2 s: {per_s(good([*flood, *beside]), 1.6, 3.1) / capacity:.2f} of capacity, "
        f"rejects p50 {quantile([one.took_s for one in rejects], 0.5) * 1e3:.1f} ms"
    )
    assert per_s([*flood, *beside], 1.6, 3.1) >= 0.5 * capacity
    assert quantile([one.took_s for one in rejects], 0.5) <= 0.1
    assert {one.status for one in rejects if one.at_s < 1.9} <= {503, 504}
    assert 429 in {one.status for one in rejects if one.at_s > 2.2}
    assert all(1000 <= one.retry_after_ms <= 2000 for one in rejects if one.status in (429, 503))
    assert len({one.retry_after_ms for one in rejects}) > 5  # not all of them come back at once
    for spared in (beside, told["after"]):
        assert sum(one.status == 200 for one in spared) >= 0.8 * len(spared)


@pytest.mark.slow
@pytest.mark.parametrize("load", [2.0, 5.0])
def test_overload_for_a_minute(site: Site, load: float) -> None:
    found = overload(site, load, seconds=60.0, capacity_s=5.0)
    print(f"\n{load} x: {found}")
    # The promise is 0.9; neighbours on the machine take from engine, edge and clients unevenly.
    assert found.goodput >= 0.85
    late = found.statuses.get(504, 0)
    assert late <= 0.1 * (late + found.statuses[200])  # of those that were taken
    assert found.answers_p99_s <= DEADLINE_S
    assert found.rejects_p50_s <= 0.02
    assert found.recovery_s <= 1.0
    assert found.memory_mib <= 64.0


@pytest.mark.slow
def test_noisy_tenant_at_10_times_its_share_beside_a_quiet_one(site: Site) -> None:
    noisy, quiet = (site.stack.make_key(tenant=tenant) for tenant in ("noisy", "quiet"))
    told = run(
        site.stack.port,
        site.stream("before", noisy, clients=CLIENTS, seconds=4.0, deadline_s=10),
        site.stream("alone", quiet, times=0.3, from_s=5.0, seconds=30.0),
        site.stream("noisy", noisy, times=5.0, from_s=36.0, seconds=30.5),
        site.stream("beside", quiet, times=0.3, from_s=36.5, seconds=30.0),
    )
    alone, beside = ([one.took_s for one in good(told[name])] for name in ("alone", "beside"))
    p99 = quantile(alone, 0.99), quantile(beside, 0.99)
    failed = {name: sum(one.status != 200 for one in told[name]) for name in ("alone", "beside")}
    busy = sum(one.infer_s for one in told["beside"]) / 30.0
    print(
        f"\nquiet tenant's p50/p99: alone {quantile(alone, 0.5):.3f}/{p99[0]:.3f} s, beside "
        f"{quantile(beside, 0.5):.3f}/{p99[1]:.3f} s; {failed} of {len(told['beside'])} "
        f"failed; {busy:.2f} of the engine"
    )
    # The promise is 1.5 x and none, and is held in virtual time (tests/pool/test_overload.py): here
    # every stall of the machine counts.
    assert failed["beside"] <= failed["alone"] + 0.02 * len(told["beside"])
    assert p99[1] <= 3.0 * p99[0]
