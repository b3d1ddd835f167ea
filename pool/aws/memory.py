"""What the launcher's policy remembers from one look at AWS to the next: pure functions.

Descriptions lag behind, and answers are lost; so what was started or told to end is remembered for
a while, whatever is seen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, TypeAlias

import msgspec

from pool.aws.observed import Observed, Task
from pool.aws.steps import Action, End, Lower, Raise, Run, Stop, Tag, subject

LAG_S: Final = 60.0  # what was started may be missing in descriptions for so long
AGAIN_S: Final = 60.0  # what was told to end, and does not, is told again
PROVEN_S: Final = 300.0  # a task that ran for so long did not fail to start
BACKOFF_S: Final = (10.0, 300.0)  # between starts at a place whose tasks fail; doubles

Wanted: TypeAlias = Mapping[str, Collection[str] | None]  # pool → node ids; None: nobody has said


class Started(msgspec.Struct, frozen=True):
    """A task that this agent started, and has not seen described yet."""

    node_id: str
    instance: str
    at_s: float


class Failing(msgspec.Struct, frozen=True):
    """A place whose tasks end by themselves, or cannot be started; or what AWS refused."""

    count: int
    until_s: float


class Sized(msgspec.Struct, frozen=True):
    """A group's desired capacity as it was set last, less what ended since."""

    desired: int
    at_s: float


class Memory(msgspec.Struct, frozen=True):
    """What the policy remembers; times are monotonic."""

    # node id → the last task that is known of it; or what stands for the first one
    generations: Mapping[str, str] = {}
    started: Mapping[str, Started] = {}  # task → …
    live: Mapping[str, str] = {}  # task → node id, of those that had not stopped
    running_s: Mapping[str, float] = {}  # task → since when its containers run
    stopped_s: Mapping[str, float] = {}  # task → when it was told to end
    unheard_s: Mapping[str, float] = {}  # instance → when a task was to start there, unheard of
    ended_s: Mapping[str, float] = {}  # instance → when it was ended
    sized: Mapping[str, Sized] = {}  # group → what was asked for last
    absent_s: Mapping[str, float] = {}  # instance → since when its agent is not connected
    failing: Mapping[str, Failing] = {}  # node id → …
    refusals: Mapping[str, Failing] = {}  # of other steps: `subject` → …
    tagged: frozenset[str] = frozenset()  # instances


def learn(wanted: Wanted, seen: Observed, memory: Memory, now_s: float) -> Memory:
    """Return what is known after a look.

    Args:
        wanted: which places are to have a worker.
        seen: with every task of `memory` that has not stopped.
        memory: what was known before it.
        now_s: monotonic.
    """
    found = {task.id: task for task in seen.tasks}
    live = {task.id: task.node_id for task in seen.tasks if not task.is_stopped}
    started = {
        name: one
        for name, one in memory.started.items()
        if name not in found and now_s - one.at_s < LAG_S
    }
    gone = [
        (name, node_id)
        for name, node_id in memory.live.items()
        if name not in live and name not in started
    ]
    generations, failing = dict(memory.generations), dict(memory.failing)
    wants = {node_id for names in wanted.values() for node_id in names or ()}
    for name, node_id in gone:
        generations[node_id] = name
        if now_s - memory.running_s.get(name, now_s) >= PROVEN_S:
            failing.pop(node_id, None)
        elif node_id in wants and name not in memory.stopped_s:
            failing[node_id] = _failed(failing.get(node_id), now_s)
    live.update({name: one.node_id for name, one in started.items()})
    for task in seen.tasks:
        if not task.is_stopped:
            generations[task.node_id] = task.id
    members = {i.id: i for group in seen.groups.values() for i in group.instances}
    return Memory(
        generations=generations,
        started=started,
        live=live,
        running_s={
            task.id: memory.running_s.get(task.id, now_s)
            for task in seen.tasks
            if task.is_running and not task.is_stopped
        },
        stopped_s={name: at_s for name, at_s in memory.stopped_s.items() if name in live},
        unheard_s={name: at_s for name, at_s in memory.unheard_s.items() if now_s - at_s < LAG_S},
        ended_s={
            name: at_s
            for name, at_s in memory.ended_s.items()
            if name in members and now_s - at_s < AGAIN_S
        },
        sized={name: one for name, one in memory.sized.items() if now_s - one.at_s < LAG_S},
        absent_s={
            name: memory.absent_s.get(name, now_s)
            for name, one in members.items()
            if not one.is_joined
        },
        failing={node_id: one for node_id, one in failing.items() if node_id in wants},
        refusals={
            name: one for name, one in memory.refusals.items() if now_s < one.until_s + BACKOFF_S[1]
        },
        tagged=memory.tagged & members.keys(),
    )


def alive(seen: Observed, memory: Memory) -> list[Task]:
    """Return the tasks that have not stopped, with those that do not show yet."""
    found = [task for task in seen.tasks if not task.is_stopped]
    return found + [
        Task(id=name, node_id=one.node_id, instance=one.instance)
        for name, one in memory.started.items()
    ]


# what came of it


def ran(memory: Memory, action: Run, task: str, now_s: float) -> Memory:
    """Remember that a task was started."""
    started = {**memory.started, task: Started(action.node_id, action.instance, now_s)}
    return msgspec.structs.replace(
        memory, started=started, live={**memory.live, task: action.node_id}
    )


def unheard(memory: Memory, action: Run, now_s: float) -> Memory:
    """Remember that a task may have been started: there was no answer."""
    return msgspec.structs.replace(memory, unheard_s={**memory.unheard_s, action.instance: now_s})


def refused(memory: Memory, action: Action, now_s: float) -> Memory:
    """Remember that a task could not be started, or that AWS would not take a step."""
    name = subject(action)
    before = memory.failing if isinstance(action, Run) else memory.refusals
    after = {**before, name: _failed(before.get(name), now_s)}
    if isinstance(action, Run):
        return msgspec.structs.replace(memory, failing=after)
    return msgspec.structs.replace(memory, refusals=after)


def is_held(memory: Memory, action: Action, now_s: float) -> bool:
    """Tell whether a step like this was refused a while ago, and is not to be tried again yet."""
    refusal = memory.refusals.get(subject(action))
    return refusal is not None and now_s < refusal.until_s


def passed(memory: Memory, action: Run, before: str) -> Memory:
    """Remember that the task with this token is over; the next one comes after it."""
    generations = {**memory.generations, action.node_id: before}
    return msgspec.structs.replace(memory, generations=generations)


def done(memory: Memory, action: Action, now_s: float) -> Memory:
    """Remember that a step was taken, and what was told to end, or noted."""
    refusals = {name: one for name, one in memory.refusals.items() if name != subject(action)}
    memory = msgspec.structs.replace(memory, refusals=refusals)
    match action:
        case Stop():
            stopped_s = {**memory.stopped_s, action.task: now_s}
            return msgspec.structs.replace(memory, stopped_s=stopped_s)
        case Raise(group, desired) | Lower(group, desired):
            sized = {**memory.sized, group: Sized(desired, now_s)}
            return msgspec.structs.replace(memory, sized=sized)
        case End(group):
            ended_s, sized = {**memory.ended_s, action.instance: now_s}, dict(memory.sized)
            if action.lowers and group in sized:
                sized[group] = Sized(sized[group].desired - 1, sized[group].at_s)
            return msgspec.structs.replace(memory, ended_s=ended_s, sized=sized)
        case Tag():
            return msgspec.structs.replace(memory, tagged=memory.tagged | {*action.instances})
        case Run():
            return memory


def _failed(before: Failing | None, now_s: float) -> Failing:
    count = 1 if before is None else before.count + 1
    wait_s = min(BACKOFF_S[0] * 2 ** (count - 1), BACKOFF_S[1])
    return Failing(count, now_s + wait_s)
