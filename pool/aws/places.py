"""A pool's places, as a controller is to see them: out of what was seen on AWS.  Pure."""

from __future__ import annotations

import zlib
from collections.abc import Collection
from typing import Final

from pool.aws.config import PoolConfig, worker_id
from pool.aws.memory import Memory, alive
from pool.aws.observed import Observed, Task
from pool.wire.control import Place

PROCESS_S_MAX: Final = 120.0  # from a container's start until its worker is heard of


def places_of(
    pool: PoolConfig,
    wanted: Collection[str] | None,
    seen: Observed,
    memory: Memory,
    now_s: float,
    likely: Collection[str] = (),
) -> tuple[Place, ...]:
    """Return a pool's places as a controller is to see them; none can be dialled while it is cold.

    One that is wanted starts until its container has run for long enough to be heard of.  While
    nobody has said what is wanted, as many start as there are instances for them: what boots was
    asked for by a controller that is gone, and its heir goes by what it sees.

    Args:
        pool: the pool.
        wanted: which places are to have a worker; None: nobody has said.
        seen: one look at AWS.
        memory: what `memory.learn` made of that look.
        now_s: monotonic.
        likely: which places were wanted last, as far as that is known.
    """
    stays: dict[str, Task] = {}
    drains: dict[str, Task] = {}
    for task in alive(seen, memory):
        is_leaving = task.is_stopping or task.id in memory.stopped_s
        (drains if is_leaving else stays)[task.node_id] = task
    if wanted is None:
        free = [name for name in pool.node_ids() if name not in stays and name not in drains]
        free.sort(key=lambda name: name not in likely)
        wanted = free[: _vacant(pool, seen, memory)]
    found = []
    for node_id in pool.node_ids():
        here = stays.get(node_id) or drains.get(node_id)
        pid = zlib.crc32(here.id.encode()) + 1 if here is not None and here.is_running else 0
        if node_id in stays or node_id in wanted:
            since_s = memory.running_s.get(here.id) if here is not None else None
            is_up = since_s is not None and now_s - since_s >= PROCESS_S_MAX
            state = "up" if is_up and node_id in stays else "starting"
            pid = pid if node_id in stays else 0
        else:
            state = "draining" if here is not None else "cold"
        found.append(Place(worker_id(node_id), "", pool.device, state, pid))
    return tuple(found)


def _vacant(pool: PoolConfig, seen: Observed, memory: Memory) -> int:
    """Return how many instances of a pool boot, or are owed, or wait for a task."""
    group = seen.groups.get(pool.group)
    if group is None:
        return 0
    there = [one for one in group.instances if not one.is_ending]
    taken = {task.instance for task in alive(seen, memory)} | memory.ended_s.keys()
    vacant = [i for i in there if not i.is_leaving and not i.tasks and i.id not in taken]
    return len(vacant) + max(0, group.desired - len(there))
