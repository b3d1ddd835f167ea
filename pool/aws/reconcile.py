"""What is to be done on AWS so that the wanted workers run, and nothing else: a pure function.

Level-triggered: whatever was done before, or half done, or done by somebody else, the next step
follows from what is seen now.  What the descriptions do not show yet is remembered for a while.

    place is wanted     no instance has room    Raise the group's desired capacity
                        an instance has room    Run a task there, for this place
    place is not        its task runs           Stop it: SIGTERM, and it drains
    instance is empty   nobody needs it         End this very instance, and lower the capacity by it
    launch is owed      nobody needs it         Lower the desired capacity to what is there

The desired capacity is never lowered below what is seen to be there, for then AWS would choose who
ends.  It may still choose among those that are not in service yet, and hence not protected, if a
launch has come that does not show: no worker is there to lose.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

import msgspec

from pool.aws.config import PoolConfig, PoolsConfig
from pool.aws.memory import AGAIN_S, Memory, Wanted, alive, is_held
from pool.aws.observed import Group, Instance, Observed, Task, token
from pool.aws.steps import Action, End, Lower, Raise, Run, Stop, Tag

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
    may_end: bool = True,
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
        may_end: it is known of every task that drains, and what a controller wants that has just
            begun to lead; until then no instance counts as empty, and no launch is taken back.
    """
    pool_of = {node_id: pool.name for pool in config.pools for node_id in pool.node_ids()}
    tasks: dict[str, list[Task]] = {pool.name: [] for pool in config.pools}
    actions: list[Action] = []
    on = Counter[str]()
    for task in alive(seen, memory):
        on[task.instance] += 1
        if task.node_id in pool_of:
            tasks[pool_of[task.node_id]].append(task)
        elif _is_due(task, memory, now_s):
            actions.append(Stop(task.id, f"there is no place {task.node_id!r}", is_leak=True))
    is_settled = not actions
    for pool in config.pools:
        names, group = wanted.get(pool.name), seen.groups.get(pool.group)
        if names is None or group is None:
            continue
        known = tasks[pool.name]
        one = _Pool(config.fleet, pool, set(names), group, known, on, memory, now_s, hour, may_end)
        actions += one.actions()
        is_settled &= one.is_settled()
    members = [i.id for g in seen.groups.values() for i in g.instances if not i.is_ending]
    untagged = tuple(name for name in members if name not in memory.tagged)
    if untagged:
        actions.append(Tag(untagged))
    due = tuple(action for action in actions if not is_held(memory, action, now_s))
    return Plan(due, is_settled and not due)


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
        on: Counter[str],
        memory: Memory,
        now_s: float,
        hour: int,
        may_end: bool,
    ) -> None:
        self._fleet, self._pool, self._wanted, self._group = fleet, pool, wanted, group
        self._tasks, self._memory, self._now_s, self._hour = tasks, memory, now_s, hour
        self._may_end = may_end
        self._least = max(pool.instances_min, group.least)
        ended = memory.ended_s
        self._members = [i for i in group.instances if not i.is_ending and i.id not in ended]
        leaving = {i.id for i in self._members if i.is_leaving}
        self._staying = [i for i in self._members if i.id not in leaving and not self._is_late(i)]
        self._gone = {*leaving, *(i.id for i in group.instances if i.is_ending), *ended}
        self._keepers, self._doubles = self._sort_out()
        self._kept_on = Counter(
            task.instance for node_id, task in self._keepers.items() if node_id in wanted
        )
        self._on = on  # also those that drain, and those that have no place
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
        runs = self._runs()
        ends = [end for end in self._ends() if not is_held(self._memory, end, self._now_s)]
        return [*(stop for stop in stops if stop.task in due), *self._sized(runs, ends)]

    def is_settled(self) -> bool:
        """Tell whether every wanted worker runs, and nothing else is there."""
        return (
            not self._waiting
            and all(task.is_running for task in self._keepers.values())
            and len(self._keepers) == len(self._tasks)
            and (self._is_refused() or self._is_sized())
        )

    def _is_sized(self) -> bool:
        return len(self._members) == len(self._group.instances) == self._group.desired and all(
            one.is_joined for one in self._members
        )

    def _is_refused(self) -> bool:
        """Tell whether AWS will not change the group, for now."""
        names = {self._pool.group, *(one.id for one in self._members)}
        return any(
            self._now_s < one.until_s
            for name, one in self._memory.refusals.items()
            if name in names
        )

    def _room(self, instance: Instance) -> int:
        """Return how many workers fit beside those that stay on an instance."""
        return max(0, self._pool.workers_per_instance - self._kept_on[instance.id])

    def _sized(self, runs: Sequence[Run], ends: Sequence[End]) -> list[Action]:
        """Return runs and ends with how large the group is to be beside them.

        More is asked for before anything ends.  An instance that ends takes its part of the desired
        capacity along as long as there is more of that than will be needed: AWS refuses to go below
        the group's minimum, and puts another instance in the place of one whose part stays.
        """
        group, name = self._group, self._pool.group
        there = sum(not one.is_ending for one in group.instances)
        room = sum(self._room(one) for one in self._staying)
        missing = math.ceil(max(0, len(self._waiting) - room) / self._pool.workers_per_instance)
        missing = max(missing, self._least - len(self._staying), 0)
        enough = len(self._members) - len(ends) + missing
        found: list[Action] = []
        known = group.desired
        if name in self._memory.sized:  # it may not show yet, and setting less would lower it
            known = max(known, self._memory.sized[name].desired)
        desired = max(known, min(enough, group.most))
        owed_for = max(there + missing, group.least)
        if desired > known:
            found.append(Raise(name, desired))
        elif desired > owed_for and self._may_end:
            desired = owed_for
            found.append(Lower(name, desired))
        found += runs
        for end in ends:
            lowers = desired > max(enough, group.least)
            desired -= lowers
            found.append(msgspec.structs.replace(end, lowers=lowers))
        return found

    def _runs(self) -> list[Run]:
        """Start what waits where there is room now, on the fullest instance first."""
        found: list[Run] = []
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

    def _ends(self) -> list[End]:
        """End who never came, who is taken away and empty, and who is empty and not needed.

        Call it after `_runs`.
        """
        found: list[End] = []
        group, on = self._pool.group, self._on + self._given

        def is_empty(one: Instance) -> bool:
            is_free = not one.tasks and not on[one.id] and one.id not in self._memory.unheard_s
            return is_free and self._may_end

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
        needed = max(needed, self._least - len(others))
        empty.sort(key=lambda one: not one.is_joined)  # who could serve at once is kept
        found += [End(group, one.id, "nobody needs it") for one in empty[needed:]]
        return found
