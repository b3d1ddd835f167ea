"""The figures of the keep-alive, of the whole policy over the mix of 684 applications.

The policy was tuned on other seeds of the mix (101 to 103) than the frozen one.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from infra.simulate.apps684 import END_S, apps684
from infra.simulate.engine import Load, World
from infra.simulate.run import Job, run_jobs
from pool.scaling.signals import Limits

MINUTE_S = 60.0


def cold_and_waste(loads: Sequence[Load], policy: str, cost_min: float) -> tuple[float, float]:
    """Return the share of cold calls, and the waste over that of ten minutes."""
    limits = Limits(replicas_max=1024, cold_start_cost_s=cost_min * MINUTE_S)
    world = World(end_s=END_S, limits=limits)
    found, fixed = run_jobs(loads, [Job(policy, world), Job("fixed-10m", world)])
    return found.cold / found.calls, found.waste_s / fixed.waste_s


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cost_min", "waste_max", "cold_max"), [(38.0, 1.0, 0.12), (190.0, 1.9, 0.045)]
)
def test_cold_share_of_the_mix(cost_min: float, waste_max: float, cold_max: float) -> None:
    cold, waste = cold_and_waste(apps684(), "tidepool", cost_min)
    print(f"cold share {cold:.4f} at {waste:.3f} times fixed-10m's waste")
    assert waste <= waste_max
    assert cold <= cold_max


@pytest.mark.parametrize(
    ("cost_min", "waste_max", "cold_max"), [(38, 1.25, 0.08), (190, 2.1, 0.03)]
)
def test_cold_share_of_a_part_of_the_mix(
    cost_min: float, waste_max: float, cold_max: float
) -> None:
    """One application in sixteen: a little above what is measured, so that no loss goes unseen."""
    cold, waste = cold_and_waste(apps684()[::16], "tidepool", cost_min)
    assert waste <= waste_max
    assert cold <= cold_max
