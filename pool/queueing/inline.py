"""Whether a run is short enough for the event loop itself.

Handing a run to a thread and its result back costs two wake-ups and a fight for the
interpreter lock, 50-100 µs on a quiet machine: more than many small models run.  Such runs
are done where they are, on the loop.  Decides only; pure.
"""

from __future__ import annotations

from typing import Final

# As long as the loop may be held up by one run; a few times what a change of thread costs.
INLINE_S_MAX: Final = 0.0002
# A size leaves the loop only at twice that, or it would change sides all the time.
INLINE_S_LEAVE: Final = 2 * INLINE_S_MAX
# Beyond this a run was not slow but of another kind: its time depends on the data, or it
# waits for something.  Each such surprise doubles the fast runs it takes to come back.
SURPRISE_S: Final = 0.002
FAST_RUNS_MIN: Final = 4
FAST_RUNS_MAX: Final = 4096
# So many inline runs without a surprise halve it again.
FORGIVE_RUNS: Final = 1024


class InlineRule:
    """Learns from the duration of every run up to which size runs belong on the loop.

    Goes by the fastest and not by the typical threaded run, because what a thread measures
    contains its waiting for the interpreter lock: most when the loop is busy, which is when
    running inline matters.
    """

    def __init__(self) -> None:
        # The whole mutable state.
        self._rows_fast = 0  # the largest run seen to be short enough
        self._fast_runs = 0  # in threads, since the last surprise
        self._fast_runs_needed = FAST_RUNS_MIN
        self._calm_runs = 0  # inline, since the last surprise

    def allows(self, rows: int) -> bool:
        """Say whether a run of so many rows may hold up the loop."""
        return self._fast_runs >= self._fast_runs_needed and rows <= 2 * self._rows_fast

    def record(self, rows: int, run_s: float, *, was_inline: bool) -> None:
        """Learn from one run; of an inline one, `run_s` is what was its own doing."""
        if run_s <= INLINE_S_MAX:
            self._rows_fast = max(self._rows_fast, rows)
            self._fast_runs += not was_inline
        elif run_s > INLINE_S_LEAVE and was_inline:
            self._rows_fast = min(self._rows_fast, rows // 2)
        if not was_inline:
            return
        if run_s > SURPRISE_S:
            self._fast_runs_needed = min(2 * self._fast_runs_needed, FAST_RUNS_MAX)
            self._fast_runs = 0
            self._rows_fast = 0
            self._calm_runs = 0
            return
        self._calm_runs += 1
        if self._calm_runs == FORGIVE_RUNS:
            self._fast_runs_needed = max(self._fast_runs_needed // 2, FAST_RUNS_MIN)
            self._calm_runs = 0
