"""What a worker tells the controller of each engine that it has."""

from __future__ import annotations

from typing import Final

from pool.slots import EngineSlot
from pool.wire.control import EngineState

DETAIL_CHARS_MAX: Final = 1000


def state_of(slot: EngineSlot, *, size_bytes: int, why: str, now_s: float) -> EngineState:
    """Return the state of a slot that is not cold, as the wire has it.

    Args:
        slot: of the engine.
        size_bytes: what the engine takes of the device, or will once its load is over.
        why: a warm slot has not the engine that is wished for; empty if it has.
        now_s: monotonic.
    """
    loaded, queue = slot.loaded, slot.queue
    counters = queue.counters if queue else None
    return EngineState(
        slot.model,
        slot.version,
        engine=loaded.engine if loaded else "",
        state=slot.state,
        bytes=size_bytes,
        calls=slot.calls,
        idle_s=0.0 if slot.calls else now_s - slot.used_s,
        detail=(slot.detail or why)[:DETAIL_CHARS_MAX],
        loads=slot.loads,
        waiting=slot.waiting,
        runs=counters.runs if counters else 0,
        rows=counters.rows_run if counters else 0,
        run_us=counters.run_us if counters else 0,
        plan=loaded.plan if loaded else "",
        arrived=slot.arrived,
        arrived_rows=slot.arrived_rows,
        rows_per_s=queue.rows_per_s_max if queue else 0.0,
        wake_us=int(slot.wake_s * 1e6),
        phases=slot.phases,
        passes=slot.passes,
    )
