"""How much of what anybody could serve on time, knowing the future, the batching policy serves.

Every figure is printed beside those of Nexus and of a batcher like Triton's.
"""

from __future__ import annotations

import asyncio

import pytest

from pool.queueing.engine_queue import EngineQueue
from pool.queueing.ticket import Answer
from tests.support import virtual_time
from tests.support.batch_world import POLICIES, Case, goodput, optimum
from tests.support.tickets import VirtualRunner, asked, echo

# α, β and the deadline.  The first two are 6 and 10 β, the last is 3 β.
SHORT = (0.0005, 0.004, 0.025)
LONG = (0.002, 0.010, 0.100)
TIGHT = (0.001, 0.005, 0.015)

POISSON = {
    f"{name}, Poisson, {load:g} x": Case(*engine, load=load, cv=1)
    for name, engine in (("short", SHORT), ("long", LONG))
    for load in (0.5, 0.8, 1.0, 1.3, 2.0)
}
BURSTS = {
    f"{name}, CV 3, {load:g} x": Case(*engine, load=load, cv=3)
    for name, engine in (("short", SHORT), ("long", LONG))
    for load in (0.5, 0.8, 1.0, 1.3, 2.0)
}
TIGHT_BURSTS = {
    f"tight, CV 3, {load:g} x": Case(*TIGHT, load=load, cv=3) for load in (0.5, 0.8, 1.3, 2.0)
}
TIGHT_POISSON = {
    f"tight, Poisson, {load:g} x": Case(*TIGHT, load=load, cv=1) for load in (0.5, 1.3, 2.0)
}
# What must be reached; of the tight ones 0.85 at 0.5 and 1.3 times the load is the promise.
ALL = [
    *[(name, case, 0.97) for name, case in POISSON.items()],
    *[(name, case, 0.96) for name, case in BURSTS.items()],
    *[(name, case, 0.90) for name, case in TIGHT_BURSTS.items()],
    *[(name, case, 0.92) for name, case in TIGHT_POISSON.items()],
]
QUICK = ("0.5 x", "1.3 x")


def compare(name: str, case: Case, seeds: int, tickets: int) -> float:
    """Print what each policy serves of the optimum; return ours."""
    lives = [case.arrivals_s(seed, tickets) for seed in range(seeds)]
    best = sum(optimum(case, arrivals_s) for arrivals_s in lives)
    shares = {
        policy: sum(goodput(case, arrivals_s, decides) for arrivals_s in lives) / best
        for policy, decides in POLICIES.items()
    }
    figures = "".join(f"{policy:>14} {share:.3f}" for policy, share in shares.items())
    print(f"\n{name:24}{figures}", end="")
    assert max(shares.values()) <= 1.0
    return shares["ours"]


@pytest.mark.parametrize(
    ("name", "case", "share_min"), [one for one in ALL if one[0].endswith(QUICK)]
)
def test_goodput_comes_near_the_offline_optimum(name: str, case: Case, share_min: float) -> None:
    assert compare(name, case, seeds=2, tickets=400) >= share_min


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case", "share_min"), ALL)
def test_goodput_comes_near_the_offline_optimum_at_full_size(
    name: str, case: Case, share_min: float
) -> None:
    assert compare(name, case, seeds=3, tickets=1500) >= share_min


async def answered_on_time(case: Case, arrivals_s: list[float]) -> int:
    """Let tickets come to a real queue that knows nothing of its engine at first."""
    loop = asyncio.get_running_loop()
    session = echo()
    runner = VirtualRunner(session, case.run_s)
    queue = EngineQueue(session, name="sim", rows_max=case.rows_max, clock=loop.time, runner=runner)
    everybody = []
    for at_s in arrivals_s:
        await asyncio.sleep(at_s - loop.time())
        one = asked(0, arrived_s=loop.time(), slo_s=case.slo_s)
        everybody.append(one)
        queue.submit(one.ticket)
    await asyncio.sleep(10 * case.slo_s)
    await queue.close()
    assert queue.counters.late <= 2  # before it knows anything
    return sum(isinstance(one.outcome, Answer) for one in everybody)


@pytest.mark.parametrize("name", ["tight, CV 3, 0.5 x", "tight, CV 3, 1.3 x"])
def test_a_queue_that_learns_its_run_times_comes_near_it_too(name: str) -> None:
    case = TIGHT_BURSTS[name]
    arrivals_s = case.arrivals_s(0, 1500)
    served = virtual_time.run(answered_on_time(case, arrivals_s))
    share = served / optimum(case, arrivals_s)
    print(f"\n{name}: {share:.3f} of the optimum through the queue", end="")
    assert share >= 0.85
