"""What is to be done on AWS so that the wanted workers run, and nothing else: a pure function.

Level-triggered: whatever was done before, or half done, or done by somebody else, the next step
follows from what is seen now.  What the descriptions do not show yet is remembered for a while.

    place is wanted     no instance has room    Raise the group's desired capacity
                        an instance has room    Run a task there, for this place
    place is not        its task runs           Stop it: SIGTERM, and it drains
    instance is empty   nobody needs it         End this very instance, and lower the capacity by it

The desired capacity is never lowered by itself, for then AWS would choose who ends.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec

from pool.aws.config import PoolConfig, PoolsConfig
from pool.aws.memory import AGAIN_S, Memory, Wanted, alive
from pool.aws.observed import Group, Instance, Observed, Task, token
from pool.aws.steps import Action, End, Raise, Run, Stop, Tag

JOIN_S_MAX: Final = 420.0  # for an instance to join the cluster, or its agent to come back


class Plan(msgspec.Struct, frozen=True):
    """What is to be done now, in this order."""

    actions: tuple[Action, ...]
    is_settled: bool  # nothing is under way either


def plan(
    config: PoolsConfig,
    wanted: Wanted,
    seen: Observed,
    memory: Memory,
    *,
    now_s: float,
    hour: int,
) -> Plan:
    """Decide what is to be done.

    Args:
        config: the pools.
        wanted: which places are to have a worker; of a pool of which nobody has said it, nothing
            is started or ended.
        seen: one look at AWS.
        memory: what `learn` made of that look.
        now_s: monotonic.
        hour: of the wall clock; stands for the task before the first that is known, so that two
            agents that know nothing of a place start one task for it.
    """
    pool_of = {node_id: pool.name for pool in config.pools for node_id in pool.node_ids()}
    tasks: dict[str, list[Task]] = {pool.name: [] for pool in config.pools}
    actions: list[Action] = []
    for task in alive(seen, memory):
        if task.node_id in pool_of:
            tasks[pool_of[task.node_id]].append(task)
        elif _is_due(task, memory, now_s):
            actions.append(Stop(task.id, f"there is no place {task.node_id!r}", is_leak=True))
    is_settled = not actions
    for pool in config.pools:
        names, group = wanted.get(pool.name), seen.groups.get(pool.group)
        if names is None or group is None:
            continue
        one = _Pool(config.fleet, pool, set(names), group, tasks[pool.name], memory, now_s, hour)
        actions += one.actions()
        is_settled &= one.is_settled()
    members = [i.id for g in seen.groups.values() for i in g.instances if not i.is_ending]
    untagged = tuple(name for name in members if name not in memory.tagged)
    if untagged:
        actions.append(Tag(untagged))
    return Plan(tuple(actions), is_settled and not actions)


def _is_due(task: Task, memory: Memory, now_s: float) -> bool:
    """Tell whether a task is to be told to end now, and not only a moment ago."""
    if task.is_stopping:
        return False
    return now_s - memory.stopped_s.get(task.id, -math.inf) >= AGAIN_S


class _Pool:
    """One pool as it is seen now."""

    def __init__(
        self,
        fleet: str,
        pool: PoolConfig,
        wanted: set[str],
        group: Group,
        tasks: Sequence[Task],
        memory: Memory,
        now_s: float,
        hour: int,
    ) -> None:
        self._fleet, self._pool, self._wanted, self._group = fleet, pool, wanted, group
        self._tasks, self._memory, self._now_s, self._hour = tasks, memory, now_s, hour
        ended = memory.ended_s
        self._members = [i for i in group.instances if not i.is_ending and i.id not in ended]
        leaving = {i.id for i in self._members if i.is_leaving}
        self._staying = [i for i in self._members if i.id not in leaving and not self._is_late(i)]
        self._gone = {*leaving, *(i.id for i in group.instances if i.is_ending), *ended}
        self._keepers, self._doubles = self._sort_out()
        self._kept_on = Counter(
            task.instance for node_id, task in self._keepers.items() if node_id in wanted
        )
        self._on = Counter(task.instance for task in tasks)  # also those that drain
        self._given = Counter[str]()  # what `_runs` puts there
        self._waiting = sorted(
            (name for name in wanted if name not in self._keepers), key=pool.node_ids().index
        )

    def _is_late(self, instance: Instance) -> bool:
        since_s = self._memory.absent_s.get(instance.id, self._now_s)
        return self._now_s - since_s >= JOIN_S_MAX and not self._hosts(instance)

    def _hosts(self, instance: Instance) -> bool:
        """Tell whether a wanted worker runs there, which does so also without its ECS agent."""
        return any(
            task.instance == instance.id and not self._is_leaving(task)
            and task.node_id in self._wanted for task in self._tasks
        )  # fmt: skip

    def _is_leaving(self, task: Task) -> bool:
        return task.is_stopping or task.id in self._memory.stopped_s

    def _sort_out(self) -> tuple[dict[str, Task], list[Task]]:
        """Return by place the one task that stays, and those that are there besides."""
        keepers: dict[str, Task] = {}
        doubles = []
        for task in sorted(self._tasks, key=lambda t: (-t.epoch, not t.is_running, t.id)):
            if self._is_leaving(task) or task.instance in self._gone:
                continue
            if task.node_id in keepers:
                doubles.append(task)
            else:
                keepers[task.node_id] = task
        return keepers, doubles

    def actions(self) -> list[Action]:
        """Return what is to be done, what costs nothing first."""
        stops = [
            *(Stop(t.id, "another task has its place", is_leak=True) for t in self._doubles),
            *(
                Stop(task.id, "its instance is taken away")
                for task in self._tasks
                if task.instance in self._gone
            ),
            *(Stop(t.id, "it was told to") for t in self._tasks if t.id in self._memory.stopped_s),
            *(
                Stop(task.id, "nobody needs it")
                for node_id, task in self._keepers.items()
                if node_id not in self._wanted
            ),
        ]
        due = {task.id for task in self._tasks if _is_due(task, self._memory, self._now_s)}
        return [
            *(stop for stop in stops if stop.task in due),
            *self._raise(),
            *self._runs(),
            *self._ends(),
        ]

    def is_settled(self) -> bool:
        """Tell whether every wanted worker runs, and nothing else is there."""
        return (
            not self._waiting
            and all(task.is_running for task in self._keepers.values())
            and len(self._keepers) == len(self._tasks)
            and len(self._members) == len(self._group.instances) == self._group.desired
            and all(one.is_joined for one in self._members)
        )

    def _room(self, instance: Instance) -> int:
        """Return how many workers fit beside those that stay on an instance."""
        return max(0, self._pool.workers_per_instance - self._kept_on[instance.id])

    def _raise(self) -> list[Action]:
        group, per = self._group, self._pool.workers_per_instance
        # AWS still owes what is desired beyond what is there.
        alive = sum(not one.is_ending for one in group.instances)
        owed = max(0, group.desired - alive)
        room = sum(self._room(one) for one in self._staying) + owed * per
        missing = math.ceil(max(0, len(self._waiting) - room) / per)
        least = self._pool.instances_min - len(self._staying) - owed
        desired = group.desired + max(missing, least)
        desired = min(desired, group.most)
        return [Raise(self._pool.group, desired)] if desired > group.desired else []

    def _runs(self) -> list[Action]:
        """Start what waits where there is room now, on the fullest instance first."""
        found: list[Action] = []
        on, per = Counter(self._on), self._pool.workers_per_instance
        ready = [one for one in self._staying if one.is_joined]
        for node_id in self._waiting:
            failing = self._memory.failing.get(node_id)
            if failing is not None and self._now_s < failing.until_s:
                continue
            fitting = [one for one in ready if on[one.id] < per]
            if not fitting:
                break
            at = max(fitting, key=lambda one: on[one.id])
            on[at.id] += 1
            self._given[at.id] += 1
            generation = self._memory.generations.get(node_id, f"hour {self._hour}")
            name = token(self._fleet, node_id, generation)
            found.append(Run(self._pool.name, node_id, at.id, name))
        return found

    def _ends(self) -> list[Action]:
        """End who never came, who is taken away and empty, and who is empty and not needed.

        Call it after `_runs`.
        """
        found: list[Action] = []
        group, on = self._pool.group, self._on + self._given

        def is_empty(one: Instance) -> bool:
            return not one.tasks and not on[one.id] and one.id not in self._memory.unheard_s

        for one in self._members:
            if self._is_late(one):
                why = f"its agent is not in the cluster for {JOIN_S_MAX:.0f} s"
                found.append(End(group, one.id, why, is_leak=True))
            elif one.is_leaving and is_empty(one):
                found.append(End(group, one.id, "it is taken away and empty"))
        empty = [one for one in self._staying if is_empty(one)]
        others = [one for one in self._staying if one not in empty]
        waiting = len(self._waiting) - sum(self._room(one) for one in others)
        needed = math.ceil(max(0, waiting) / self._pool.workers_per_instance)
        needed = max(needed, self._pool.instances_min - len(others))
        empty.sort(key=lambda one: not one.is_joined)  # who could serve at once is kept
        found += [End(group, one.id, "nobody needs it") for one in empty[needed:]]
        return found
