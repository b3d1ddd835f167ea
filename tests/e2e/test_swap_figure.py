"""What callers notice while a plan is built beside them and swapped in: nothing."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.e2e.test_plans import WISH, Same, plan_of
from tests.support import pt2
from tests.support.load import FEATURES, Load
from tests.support.stack import running_stack, until

CLIENTS = 8
QUIET_S = 10.0
BUILT_S_MAX = 240.0
RATIO_MAX = 2.0


def p99_ms(latencies_s: list[float]) -> float:
    return float(np.quantile(latencies_s, 0.99)) * 1e3


@pytest.mark.slow  # minutes, and a compiler
@pytest.mark.parametrize(
    ("pause_s", "busy_s"),  # between a client's calls; that are looked at, at least
    [(0.0, 20.0), (0.02, 60.0)],
    ids=["full", "light"],
)
def test_p99_while_a_plan_is_built_and_swapped(
    tmp_path: Path, pause_s: float, busy_s: float
) -> None:
    with running_stack(tmp_path / "stack") as stack:
        stack.publish("same", pt2.save(tmp_path / "same.pt2", Same(), torch.ones(3, FEATURES)))
        stack.edit_endpoint("same", cache=None)
        with Load(stack.url, stack.key, "same", threads=CLIENTS, pause_s=pause_s) as load:
            time.sleep(3.0)
            warmed = load.answered
            time.sleep(QUIET_S)
            quiet = load.answered
            began_s = time.monotonic()
            stack.edit_endpoint("same", cache=None, engine=WISH)
            until(lambda: plan_of(stack, "same"), BUILT_S_MAX, "the plan serves", 0.5)
            swapped_s = time.monotonic() - began_s
            time.sleep(max(5.0, busy_s - swapped_s))
            busy = load.answered
            time.sleep(QUIET_S)
        load.assert_clean()
        before = load.latencies_s[warmed:quiet]
        during = load.latencies_s[quiet:busy]
        after = load.latencies_s[busy:]
    quiet_ms = max(p99_ms(before), p99_ms(after))
    print(
        f"\npause {pause_s} s: swapped after {swapped_s:.0f} s; {len(during)} answers meanwhile, "
        f"none failed; p99 {p99_ms(during):.2f} ms, "
        f"quiet {p99_ms(before):.2f} ms before and {p99_ms(after):.2f} after: "
        f"{p99_ms(during) / quiet_ms:.2f} x; slowest {max(during) * 1e3:.0f} ms, quiet "
        f"{max(before) * 1e3:.0f}"
    )
    assert p99_ms(during) <= RATIO_MAX * quiet_ms
