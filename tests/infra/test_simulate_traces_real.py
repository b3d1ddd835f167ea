"""The traces that other people recorded: Tidepool is behind nobody on any of them.

The files belong to their publishers and lie beside the repository; without them nothing is tested.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.simulate.engine import World
from infra.simulate.report import ALL, dominators
from infra.simulate.study import Study, end_s_of, report_of
from infra.simulate.traces import Reading, read_trace

TRACES = Path(__file__).parents[2].parent / "shared" / "traces"
FILES = sorted(TRACES.glob("*.csv"))


if FILES:

    @pytest.mark.slow
    @pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
    def test_nobody_is_as_good_as_tidepool_in_everything_and_better_in_something(
        path: Path,
    ) -> None:
        loads = read_trace(path, Reading())
        report = report_of(Study(loads, World(end_s=end_s_of(loads))))
        ours = report.policies[0]
        assert ours.name == "tidepool"
        assert not dominators(ours, report.policies)[ALL], report
