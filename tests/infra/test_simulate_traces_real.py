"""The traces that other people recorded: who is ahead of Tidepool, in which trade.

The files belong to their publishers and lie beside the repository; without them nothing is tested.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.simulate.engine import World
from infra.simulate.report import ALL, SPEED, WARMTH, dominators
from infra.simulate.study import Study, end_s_of, report_of
from infra.simulate.traces import Reading, read_trace

TRACES = Path(__file__).parents[2].parent / "shared" / "traces"
FILES = sorted(TRACES.glob("*.csv"))


# Who is as good as tidepool in both measures of a trade, or in all four, and better in one.
KPA_BY_A_LITTLE = "azure_llm_2023_conv"
LOST = {
    KPA_BY_A_LITTLE: {WARMTH: ["kpa"], SPEED: ["kpa"], ALL: ["kpa"]},
    "mooncake_conversation": {WARMTH: ["kpa"]},
    "ali_gentd26_coldload_ms": {WARMTH: ["ray"], SPEED: ["kpa"]},
}


if FILES:

    @pytest.mark.slow
    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
    def test_nobody_else_is_ahead_in_a_trade(path: Path) -> None:
        loads = read_trace(path, Reading())
        report = report_of(Study(loads, World(end_s=end_s_of(loads))))
        ours = report.policies[0]
        assert ours.name == "tidepool"
        lost = LOST.get(path.stem, {})
        for trade, names in dominators(ours, report.policies).items():
            assert set(names) <= set(lost.get(trade, [])), (trade, report)
        if path.stem == KPA_BY_A_LITTLE:
            kpa = next(row for row in report.policies if row.name == "kpa")
            assert (ours.attainment or 0) >= (kpa.attainment or 0) - 0.005
            assert (ours.gpu_hours_ratio or 0) <= 1.02 * (kpa.gpu_hours_ratio or 0)
            assert (ours.waste_ratio or 0) <= 1.05 * (kpa.waste_ratio or 0)
