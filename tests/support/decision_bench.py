"""What a decision of the batching policy costs: `python -m tests.support.decision_bench`.

CPU time of this thread, of every decision in simulated lives, over the queue and the learned run
times that the pool has.  Each is decided a few times over, which changes nothing, and the fastest
counts: so p99 is that of the decisions, not that of what else the machine does.
"""

from __future__ import annotations

import time

import numpy as np

from pool.queueing.batching import Limits, Run, Shed, Wait, decide
from pool.queueing.line import Line
from pool.queueing.profile import ArrivalRate, LatencyProfile
from tests.support.batch_world import Case
from tests.support.tickets import asked

TICKETS = 20_000
REPEATS = 5
CASES = {
    "small batches": Case(0.0005, 0.004, 0.025, load=1.3, cv=3),
    "large batches": Case(0.002, 0.010, 0.100, load=1.3, cv=3),
    "large batches, 5 x": Case(0.002, 0.010, 0.100, load=5.0, cv=3),
    "tight": Case(0.001, 0.005, 0.015, load=1.3, cv=3),
    "tight, 5 x": Case(0.001, 0.005, 0.015, load=5.0, cv=3),
    "tight, large batches, 2 x": Case(0.0005, 0.010, 0.039, load=2.0, cv=3),
}


def learned(case: Case) -> LatencyProfile:
    """Let a profile see runs of every size."""
    profile = LatencyProfile()
    for rows in [1, *range(1, case.rows_max + 1)]:
        profile.record(rows, case.run_s(rows), now_s=0.0)
    return profile


def decisions_us(case: Case) -> list[float]:
    """Live through one overload; return what every decision cost, in microseconds."""
    limits = Limits(case.rows_max, learned(case).run_s)
    arrivals_s = case.arrivals_s(0, TICKETS)
    rate, waiting = ArrivalRate(), Line()
    costs_us: list[float] = []
    now_s, arrived = 0.0, 0
    while waiting or arrived < len(arrivals_s):
        if not waiting:
            now_s = max(now_s, arrivals_s[arrived])
        while arrived < len(arrivals_s) and arrivals_s[arrived] <= now_s:
            one = asked(0, arrived_s=arrivals_s[arrived], slo_s=case.slo_s).ticket
            rate.add(1, one.arrived_s, case.slo_s)
            waiting.add(one)
            arrived += 1
        rows_per_s = rate.rows_per_s(now_s)
        costs_ns = []
        for _ in range(REPEATS):
            began_ns = time.thread_time_ns()
            decision = decide(waiting, now_s, limits, rows_per_s)
            costs_ns.append(time.thread_time_ns() - began_ns)
        costs_us.append(min(costs_ns) / 1000)
        match decision:
            case Wait(until_s):
                now_s = min([until_s, *arrivals_s[arrived : arrived + 1]])
            case Shed(count) | Run(count):
                now_s += case.run_s(count) if isinstance(decision, Run) else 0.0
                for ticket, _ in zip(list(waiting), range(count), strict=False):
                    waiting.remove(ticket)
    return costs_us


def main() -> None:
    """Print the table."""
    print(f"{'us of CPU a decision':28}{'p50':>8}{'p99':>8}{'max':>8}{'decisions':>12}")
    for name, case in CASES.items():
        costs_us = decisions_us(case)
        p50, p99 = np.percentile(costs_us, [50, 99])
        print(f"{name:28}{p50:8.1f}{p99:8.1f}{max(costs_us):8.1f}{len(costs_us):12}")


if __name__ == "__main__":
    main()
