"""What is done on AWS for the wanted workers: rules by example, and in worlds that chance makes."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pool.aws import memory as remember
from pool.aws import reconcile
from pool.aws.config import PoolConfig, PoolsConfig
from pool.aws.memory import LAG_S, Failing, Memory, Started
from pool.aws.observed import Group, Instance, Observed, Task, token
from pool.aws.places import PROCESS_S_MAX, places_of
from pool.aws.reconcile import Plan
from pool.aws.steps import Action, End, Lower, Raise, Run, Stop, Tag

POOL = PoolConfig(
    name="gpu",
    group="g",
    task_definition="t",
    instances_max=3,
    subnets=("subnet-1",),
    security_groups=("sg-1",),
)
ALL = ("gpu-0", "gpu-1", "gpu-2")


def config(**changes: object) -> PoolsConfig:
    pool = msgspec.structs.replace(POOL, **changes)
    return PoolsConfig(fleet="prod", cluster="c", pools=(pool,))


def instance(name: str, **changes: object) -> Instance:
    return msgspec.structs.replace(Instance(id=name, is_joined=True), **changes)


def task(name: str, node_id: str, at: str = "i-1", **changes: object) -> Task:
    found = Task(id=name, node_id=node_id, instance=at, is_running=True, epoch=1)
    return msgspec.structs.replace(found, **changes)


def seen(
    *tasks: Task, desired: int, instances: tuple[Instance, ...] = (), least: int = 0
) -> Observed:
    on = Counter(t.instance for t in tasks if not t.is_stopped and not t.is_stopping)
    counted = tuple(msgspec.structs.replace(i, tasks=i.tasks or on[i.id]) for i in instances)
    group = Group(desired=desired, most=3, least=least, instances=counted)
    return Observed({"g": group}, tasks)


def plan(
    found: Observed,
    *wanted: str,
    memory: Memory | None = None,
    now_s: float = 1000.0,
    pools: PoolsConfig | None = None,
) -> Plan:
    wants = {"gpu": frozenset(wanted)}
    memory = remember.learn(wants, found, memory or Memory(), now_s)
    return reconcile.plan(pools or config(), wants, found, memory, now_s=now_s, hour=7)


def steps(*arguments: object, **options: object) -> list[Action]:
    """Return what is to be done but for tags."""
    found = plan(*arguments, **options)  # type: ignore[arg-type]
    return [action for action in found.actions if not isinstance(action, Tag)]


def run(node_id: str, at: str, after: str = "hour 7") -> Run:
    return Run("gpu", node_id, at, token("prod", node_id, after))


def test_nothing_is_done_where_nothing_is_wanted_and_nothing_is_there() -> None:
    assert plan(seen(desired=0)) == Plan((), is_settled=True)


def test_as_many_instances_are_asked_for_as_the_wanted_workers_need() -> None:
    assert steps(seen(desired=0), "gpu-0", "gpu-2") == [Raise("g", 2)]
    wide = config(workers_per_instance=2)
    assert steps(seen(desired=0), "gpu-0", "gpu-2", "gpu-4", pools=wide) == [Raise("g", 2)]


def test_no_more_is_asked_for_while_aws_owes_an_instance_or_one_boots() -> None:
    assert steps(seen(desired=1), "gpu-0") == []
    booting = instance("i-1", is_joined=False)
    assert steps(seen(desired=1, instances=(booting,)), "gpu-0") == []


def test_no_more_is_asked_for_than_the_group_may_have() -> None:
    there = (instance("i-1", is_leaving=True), instance("i-2", is_leaving=True))
    old = (task("a", "gpu-0"), task("b", "gpu-1", "i-2"))
    found = seen(*old, desired=2, instances=there)
    assert Raise("g", 3) in steps(found, *ALL)


def test_worker_is_started_where_there_is_room_and_on_the_fullest_instance_first() -> None:
    there = (instance("i-1"), instance("i-2"))
    found = seen(task("a", "gpu-0", "i-2"), desired=2, instances=there)
    wide = config(workers_per_instance=2)
    assert steps(found, "gpu-0", "gpu-1", pools=wide) == [
        run("gpu-1", "i-2"),
        End("g", "i-1", "nobody needs it"),
    ]


def test_worker_that_nobody_needs_is_told_to_end_and_its_instance_only_once_it_has() -> None:
    there = (instance("i-1"),)
    running = task("a", "gpu-0")
    assert steps(seen(running, desired=1, instances=there)) == [Stop("a", "nobody needs it")]
    draining = task("a", "gpu-0", is_stopping=True)
    assert steps(seen(draining, desired=1, instances=there)) == []
    over = task("a", "gpu-0", is_stopped=True)
    assert steps(seen(over, desired=1, instances=there)) == [End("g", "i-1", "nobody needs it")]


def test_instance_on_which_somebody_else_runs_a_task_is_not_ended() -> None:
    assert steps(seen(desired=1, instances=(instance("i-1", tasks=1),))) == []


def test_worker_is_wanted_again_while_it_drains_and_has_its_slot_again_afterwards() -> None:
    there = (instance("i-1"),)
    draining = task("a", "gpu-0", is_stopping=True)
    assert steps(seen(draining, desired=1, instances=there), "gpu-0") == []
    over, memory = task("a", "gpu-0", is_stopped=True), Memory(live={"a": "gpu-0"})
    memory = msgspec.structs.replace(memory, stopped_s={"a": 900.0})
    found = seen(over, desired=1, instances=there)
    assert steps(found, "gpu-0", memory=memory) == [run("gpu-0", "i-1", after="a")]


def test_instance_that_is_taken_back_is_emptied_and_replaced_at_once_and_ended_when_empty() -> None:
    there = (instance("i-1", is_leaving=True),)
    found = seen(task("a", "gpu-0"), desired=1, instances=there)
    assert steps(found, "gpu-0") == [Stop("a", "its instance is taken away"), Raise("g", 2)]
    memory = Memory(stopped_s={"a": 999.0}, live={"a": "gpu-0"})
    two = (*there, instance("i-2"))
    found = seen(task("a", "gpu-0", is_stopping=True), desired=2, instances=two)
    # Beside the one that drains, and as the one that comes after it.
    assert steps(found, "gpu-0", memory=memory) == [run("gpu-0", "i-2", after="a")]
    found = seen(task("b", "gpu-0", "i-2"), desired=2, instances=two)
    assert steps(found, "gpu-0") == [End("g", "i-1", "it is taken away and empty")]


def test_instances_that_are_kept_whatever_the_demand_are_asked_for_and_not_ended() -> None:
    least = config(instances_min=2)
    assert steps(seen(desired=0), pools=least) == [Raise("g", 2)]
    there = tuple(instance(f"i-{at}") for at in range(3))
    found = seen(desired=3, instances=there)
    assert steps(found, pools=least) == [End("g", "i-2", "nobody needs it")]


def test_instance_that_could_serve_at_once_is_kept_before_one_that_boots() -> None:
    there = (instance("i-1", is_joined=False), instance("i-2"))
    memory = Memory(failing={"gpu-0": Failing(1, 2000.0)})
    found = seen(desired=2, instances=there)
    assert steps(found, "gpu-0", memory=memory) == [End("g", "i-1", "nobody needs it")]


def test_instance_that_never_joins_the_cluster_is_a_leak() -> None:
    there = (instance("i-1", is_joined=False),)
    found = seen(desired=1, instances=there)
    memory = Memory(absent_s={"i-1": 580.1})
    assert steps(found, "gpu-0", memory=memory) == []
    memory = Memory(absent_s={"i-1": 580.0})
    (ended,) = steps(found, "gpu-0", memory=memory)
    assert isinstance(ended, End)
    assert (ended.is_leak, ended.lowers) == (True, False), "another one comes in its place"
    (ended,) = steps(found, memory=memory)
    assert isinstance(ended, End)
    assert (ended.is_leak, ended.lowers) == (True, True)


def test_capacity_is_lowered_with_an_instance_only_where_aws_would_not_refuse_it() -> None:
    there = (instance("i-1"), instance("i-2"))
    somebody_set_it = seen(desired=0, instances=there)
    assert steps(somebody_set_it) == [
        End("g", "i-1", "nobody needs it", lowers=False),
        End("g", "i-2", "nobody needs it", lowers=False),
    ]
    assert steps(seen(desired=1, instances=there)) == [
        End("g", "i-1", "nobody needs it", lowers=True),
        End("g", "i-2", "nobody needs it", lowers=False),
    ]
    least = seen(desired=2, instances=there, least=1)
    assert steps(least) == [End("g", "i-2", "nobody needs it")]
    leaving = (instance("i-1", is_leaving=True),)
    assert steps(seen(desired=1, instances=leaving, least=1)) == [
        End("g", "i-1", "it is taken away and empty", lowers=False)
    ]


def test_what_is_in_use_is_desired_again_where_somebody_lowered_it() -> None:
    there = (instance("i-1"), instance("i-2"))
    used = (task("a", "gpu-0"), task("b", "gpu-1", "i-2"))
    found = seen(*used, desired=0, instances=there)
    assert steps(found, "gpu-0", "gpu-1") == [Raise("g", 2)]
    assert steps(found, *ALL) == [Raise("g", 3)]


def test_launches_that_nobody_needs_any_more_are_taken_back_and_nothing_that_is_there() -> None:
    assert steps(seen(desired=3)) == [Lower("g", 0)]
    assert steps(seen(desired=3, least=1)) == [Lower("g", 1)]
    assert steps(seen(desired=3), "gpu-0") == [Lower("g", 1)]
    assert steps(seen(desired=3), *ALL) == []
    boots = (instance("i-1", is_joined=False),)
    assert steps(seen(desired=3, instances=boots)) == [
        Lower("g", 1),
        End("g", "i-1", "nobody needs it"),
    ]
    used = seen(task("a", "gpu-0"), desired=3, instances=(instance("i-1"),))
    assert steps(used, "gpu-0") == [Lower("g", 1)]


def test_what_was_asked_for_and_does_not_show_yet_is_not_lowered_by_asking_for_less() -> None:
    memory = remember.done(Memory(), Raise("g", 2), 990.0)
    assert steps(seen(desired=0), "gpu-0", memory=memory) == [Lower("g", 1)]
    assert steps(seen(desired=0), "gpu-0", "gpu-1", memory=memory) == []
    assert steps(seen(desired=0), *ALL, memory=memory) == [Raise("g", 3)]
    assert steps(seen(desired=0), "gpu-0", memory=memory, now_s=1050.0) == [Raise("g", 1)]
    # One that was ended shows for a while, with its part of what is desired.
    memory = remember.done(Memory(), End("g", "i-1", "nobody needs it"), 999.0)
    found = seen(desired=1, instances=(instance("i-1"),))
    assert steps(found, "gpu-0", memory=memory) == []


def test_no_instance_counts_as_empty_until_it_is_known_what_drains() -> None:
    found = seen(desired=1, instances=(instance("i-1"),))
    wants: dict[str, frozenset[str]] = {"gpu": frozenset()}
    memory = remember.learn(wants, found, Memory(tagged=frozenset({"i-1"})), 0.0)
    made = reconcile.plan(config(), wants, found, memory, now_s=0.0, hour=7, may_end=False)
    assert made == Plan((), is_settled=True)
    found = seen(desired=1)
    made = reconcile.plan(config(), wants, found, memory, now_s=0.0, hour=7, may_end=False)
    assert made.actions == (), "nor is a launch taken back"


def test_instance_on_which_a_task_without_a_place_drains_is_not_ended() -> None:
    # ECS counts it no more.
    old = task("a", "gpu-9", is_stopping=True)
    found = Observed({"g": Group(desired=1, most=3, instances=(instance("i-1"),))}, (old,))
    assert steps(found) == []


def test_instance_on_which_a_task_may_have_started_is_not_ended() -> None:
    empty = seen(desired=1, instances=(instance("i-1"),))
    memory = remember.unheard(Memory(), run("gpu-0", "i-1"), 1000.0)
    assert not steps(empty, memory=memory, now_s=999.0 + LAG_S)
    assert steps(empty, memory=memory, now_s=1000.0 + LAG_S)


def test_step_that_aws_refuses_is_tried_again_after_pauses_that_grow() -> None:
    found = seen(desired=1, instances=(instance("i-1"),))
    (end,) = steps(found)
    memory = Memory()
    for pause_s in (10, 20, 40, 80, 160, 300, 300):
        memory = remember.refused(memory, end, 1000.0)
        held = plan(found, memory=memory, now_s=999.0 + pause_s)
        assert [type(action) for action in held.actions] == [Tag]
        tagged = msgspec.structs.replace(memory, tagged=frozenset({"i-1"}))
        assert plan(found, memory=tagged, now_s=999.0 + pause_s).is_settled, "and no haste"
        assert steps(found, memory=memory, now_s=1000.0 + pause_s) == [end]
    assert not remember.done(memory, end, 1000.0).refusals


def test_instance_whose_agent_is_away_stays_for_as_long_as_a_wanted_worker_runs_there() -> None:
    there = (instance("i-1", is_joined=False),)
    memory = Memory(absent_s={"i-1": 0.0})
    found = seen(task("a", "gpu-0"), desired=1, instances=there)
    assert steps(found, "gpu-0", memory=memory) == []
    (stop, end) = steps(found, memory=memory)
    assert (stop, type(end)) == (Stop("a", "nobody needs it"), End)


def test_task_without_a_place_is_a_leak_even_before_anybody_has_said_what_is_wanted() -> None:
    found = seen(task("a", "cpu-0"), task("b", "gpu-0"), desired=1, instances=(instance("i-1"),))
    made = reconcile.plan(config(), {"gpu": None}, found, Memory(), now_s=0.0, hour=7)
    assert made.actions == (Stop("a", "there is no place 'cpu-0'", is_leak=True), Tag(("i-1",)))


def test_of_two_tasks_of_a_place_the_one_of_the_older_leadership_ends() -> None:
    there = (instance("i-1"), instance("i-2"))
    old, new = task("a", "gpu-0"), task("b", "gpu-0", "i-2", epoch=2, is_running=False)
    (stop,) = steps(seen(old, new, desired=2, instances=there), "gpu-0", "gpu-1")
    assert stop == Stop("a", "another task has its place", is_leak=True)


def test_what_was_told_to_end_is_told_again_only_after_a_while() -> None:
    found = seen(task("a", "gpu-0"), desired=1, instances=(instance("i-1"),))
    memory = Memory(stopped_s={"a": 1000.0})
    assert steps(found, memory=memory, now_s=1059.0) == []
    assert steps(found, memory=memory, now_s=1060.0) == [Stop("a", "it was told to")]


def test_task_that_was_started_and_does_not_show_yet_is_not_started_again() -> None:
    memory = Memory(started={"a": Started("gpu-0", "i-1", 1000.0)}, live={"a": "gpu-0"})
    found = seen(desired=1, instances=(instance("i-1"),))
    assert steps(found, "gpu-0", memory=memory, now_s=1059.0) == []
    assert steps(found, memory=memory, now_s=1059.0) == [Stop("a", "nobody needs it")]
    assert steps(found, "gpu-0", memory=memory, now_s=1060.0) == []  # it counts as failed
    assert steps(found, "gpu-0", memory=Memory(generations={"gpu-0": "a"})) == [
        run("gpu-0", "i-1", after="a")
    ]


def test_place_whose_tasks_fail_is_tried_again_after_pauses_that_grow() -> None:
    wanted = {"gpu": frozenset({"gpu-0"})}
    memory, now_s, pauses_s = Memory(), 0.0, []
    for at in range(8):
        memory = msgspec.structs.replace(memory, live={f"t{at}": "gpu-0"})
        found = seen(task(f"t{at}", "gpu-0", is_stopped=True), desired=1)
        memory = remember.learn(wanted, found, memory, now_s)
        pauses_s.append(memory.failing["gpu-0"].until_s - now_s)
        now_s += 1000.0
    assert pauses_s == [10, 20, 40, 80, 160, 300, 300, 300]


def test_task_that_ran_for_long_has_not_failed_to_start() -> None:
    memory = Memory(live={"a": "gpu-0"}, running_s={"a": 700.0})
    memory = remember.learn({"gpu": frozenset({"gpu-0"})}, seen(desired=1), memory, 1000.0)
    assert not memory.failing


def test_tokens_are_those_of_whoever_else_knows_the_same() -> None:
    assert token("prod", "gpu-0", "a") == token("prod", "gpu-0", "a")
    assert len({token("prod", f"gpu-{at}", last) for at in (0, 1) for last in ("a", "b")}) == 4
    assert len(token("prod", "gpu-0", "a")) <= 64


def test_new_instances_are_tagged_once() -> None:
    found = seen(task("a", "gpu-0"), desired=1, instances=(instance("i-1"),))
    memory = remember.learn({"gpu": frozenset({"gpu-0"})}, found, Memory(), 0.0)
    wanted = {"gpu": frozenset({"gpu-0"})}
    made = reconcile.plan(config(), wanted, found, memory, now_s=0.0, hour=7)
    assert made.actions == (Tag(("i-1",)),)
    memory = remember.done(memory, Tag(("i-1",)), 0.0)
    made = reconcile.plan(config(), wanted, found, memory, now_s=0.0, hour=7)
    assert made == Plan((), is_settled=True)


@pytest.mark.parametrize(
    ("tasks", "wanted", "now_s", "states"),
    [
        ((), (), 0.0, ["cold", "cold", "cold"]),
        ((), ("gpu-1",), 0.0, ["cold", "starting", "cold"]),
        ((task("a", "gpu-0", is_running=False),), ("gpu-0",), 0.0, ["starting", "cold", "cold"]),
        ((task("a", "gpu-0"),), ("gpu-0",), 119.0, ["starting", "cold", "cold"]),
        ((task("a", "gpu-0"),), ("gpu-0",), 120.0, ["up", "cold", "cold"]),
        ((task("a", "gpu-0", is_stopping=True),), (), 0.0, ["draining", "cold", "cold"]),
        ((task("a", "gpu-0", is_stopping=True),), ("gpu-0",), 0.0, ["starting", "cold", "cold"]),
        ((task("a", "gpu-0", is_stopped=True),), (), 0.0, ["cold", "cold", "cold"]),
    ],
)
def test_places_are_told_as_they_are_and_none_can_be_dialled(
    tasks: tuple[Task, ...], wanted: tuple[str, ...], now_s: float, states: list[str]
) -> None:
    found = seen(*tasks, desired=1)
    memory = remember.learn({"gpu": frozenset(wanted)}, found, Memory(), 0.0)
    found_places = places_of(POOL, wanted, found, memory, now_s)
    assert [place.state for place in found_places] == states
    assert {place.address for place in found_places} == {""}
    assert [place.worker for place in found_places] == ["gpu-0-0", "gpu-1-0", "gpu-2-0"]
    runs = [
        t for t in tasks if t.is_running and not (t.is_stopping and wanted) and not t.is_stopped
    ]
    assert sum(place.pid > 0 for place in found_places) == len(runs)


@pytest.mark.parametrize(
    ("instances", "desired", "likely", "starting"),
    [
        ((), 0, (), []),
        ((), 2, (), ["gpu-1", "gpu-2"]),  # owed
        ((instance("i-2", is_joined=False),), 1, (), ["gpu-1"]),  # boots
        ((instance("i-2"),), 2, (), ["gpu-1", "gpu-2"]),  # its task was not started yet
        ((instance("i-2"),), 1, ("gpu-2",), ["gpu-2"]),
        ((instance("i-1"), instance("i-2", is_leaving=True)), 2, (), []),
        ((instance("i-1"), instance("i-2", is_ending=True)), 1, (), []),
        ((instance("i-1"), instance("i-2", tasks=1)), 2, (), []),  # somebody else's
        ((instance("i-1"), instance("i-3")), 2, (), []),  # told to end a moment ago
    ],
)
def test_whoever_has_said_nothing_yet_is_told_that_as_many_start_as_there_are_instances_for(
    instances: tuple[Instance, ...], desired: int, likely: tuple[str, ...], starting: list[str]
) -> None:
    found = seen(task("a", "gpu-0"), desired=desired, instances=instances)
    memory = remember.learn({"gpu": None}, found, Memory(ended_s={"i-3": 0.0}), 0.0)
    places = places_of(POOL, None, found, memory, PROCESS_S_MAX, likely)
    assert places[0].state == "up"
    assert [p.worker[:5] for p in places if p.state == "starting"] == starting
    places = places_of(POOL, ("gpu-0",), found, memory, PROCESS_S_MAX, likely)
    assert not [p for p in places if p.state == "starting"]


# worlds


@dataclass
class World:
    """AWS without delays of its own: chance says when something happens, and what shows."""

    per: int
    least: int
    now_s: float = 0.0
    desired: int = 0
    made: int = 0
    instances: dict[str, dict[str, bool]] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)
    wanted: frozenset[str] = frozenset()
    last: Observed = field(default_factory=lambda: Observed({}))
    looked_s: float = -math.inf
    floor: int = 0  # the group's own minimum
    began_s: float | None = None  # the launcher's first look
    is_new: bool = True

    def look(self) -> Observed:
        """Return everything, counted as ECS does: without what is told to end."""
        live = [t for t in self.tasks.values() if not t.is_stopped]
        on = Counter(t.instance for t in live if not t.is_stopping)
        return Observed(
            {
                "g": Group(
                    desired=self.desired,
                    most=3,
                    least=self.floor,
                    instances=tuple(
                        Instance(id=name, tasks=on[name], **flags)
                        for name, flags in self.instances.items()
                    ),
                )
            },
            tuple(self.tasks.values()),
        )

    def happen(self, what: int) -> None:
        """Let one thing go on, by a number that chance has drawn."""
        live = [t for t in self.tasks.values() if not t.is_stopped]
        kind, which = what % 9, what // 9
        if kind == 0 and len(self.instances) < self.desired:
            self.made += 1
            self.instances[f"i-{self.made}"] = {"is_joined": False, "is_leaving": False}
        elif kind == 1 and self.instances:
            name = sorted(self.instances)[which % len(self.instances)]
            self.instances[name]["is_joined"] = True
        elif kind == 2 and live:
            one = live[which % len(live)]
            over = one.is_stopping
            self.tasks[one.id] = msgspec.structs.replace(one, is_running=True, is_stopped=over)
        elif kind == 3 and live:
            one = live[which % len(live)]
            self.tasks[one.id] = msgspec.structs.replace(one, is_stopped=True)
        elif kind == 4 and self.instances:
            name = sorted(self.instances)[which % len(self.instances)]
            self.instances[name]["is_leaving"] = True
        elif kind == 5:
            self.wanted = frozenset(ALL[at] for at in range(3) if which >> at & 1)
        elif kind == 6:
            self.now_s += which
        elif kind == 7:  # somebody else does
            self.desired = max(self.floor, which % 4)
        elif kind == 8:  # the launcher starts anew
            self.memory, self.began_s, self.is_new = Memory(), None, True

    def listed(self, found: Observed) -> Observed:
        """Leave out what no list tells of and nobody knows."""
        tasks = (
            t
            for t in found.tasks
            if t.id in self.memory.live or (not t.is_stopped and (self.is_new or not t.is_stopping))
        )
        return Observed(found.groups, tuple(tasks))

    def round(self, *, is_late: bool, fails: int) -> Plan:
        """Look, decide and act; some actions are lost, or done without anybody's hearing of it."""
        is_late &= self.now_s - self.looked_s < 30.0
        found = self.listed(self.last if is_late else self.look())
        self.began_s = self.now_s if self.began_s is None else self.began_s
        self.is_new &= self.now_s - self.began_s < LAG_S
        self.last, self.looked_s = self.look(), self.now_s
        wanted = {"gpu": self.wanted}
        pools = config(workers_per_instance=self.per, instances_min=self.least)
        self.memory = remember.learn(wanted, found, self.memory, self.now_s)
        made = reconcile.plan(
            *(pools, wanted, found, self.memory),
            now_s=self.now_s,
            hour=1,
            may_end=not self.is_new,
        )
        for at, action in enumerate(made.actions):
            is_done, is_heard = not fails >> (2 * at) & 1, not fails >> (2 * at + 1) & 1
            if isinstance(action, Run) and not (is_done and is_heard):
                self.memory = remember.unheard(self.memory, action, self.now_s)
            if is_done:
                self.act(action, is_heard=is_heard)
        return made

    def act(self, action: Action, *, is_heard: bool) -> None:
        match action:
            case Raise(_, desired):
                assert desired <= 3
                self.desired = max(desired, self.desired)
            case Lower(_, desired):
                assert desired >= self.floor
                self.desired = min(max(desired, len(self.instances)), self.desired)
            case Run(_, node_id, at, name):
                self._run(action, node_id, at, name, is_heard=is_heard)
            case Stop(name, _):
                if name in self.tasks:
                    one = msgspec.structs.replace(self.tasks[name], is_stopping=True)
                    self.tasks[name] = one
            case End(_, name, lowers=lowers):
                if (lowers and self.desired <= self.floor) or name not in self.instances:
                    self.memory = remember.refused(self.memory, action, self.now_s)
                    return
                running = [t for t in self.tasks.values() if t.instance == name]
                assert all(t.is_stopped for t in running), "under a worker"
                del self.instances[name]
                self.desired -= lowers
        if is_heard and isinstance(action, Stop | End | Tag):
            self.memory = remember.done(self.memory, action, self.now_s)

    def _run(self, action: Run, node_id: str, at: str, name: str, *, is_heard: bool) -> None:
        if name not in self.tokens:
            if at not in self.instances:
                return
            on = sum(t.instance == at and not t.is_stopped for t in self.tasks.values())
            if on >= self.per:  # which a late look could not know
                self.memory = remember.refused(self.memory, action, self.now_s)
                return
            made = f"t-{len(self.tasks)}"
            self.tokens[name] = made
            self.tasks[made] = Task(id=made, node_id=node_id, instance=at)
        one = self.tasks[self.tokens[name]]
        if is_heard and one.is_stopped:
            self.memory = remember.passed(self.memory, action, one.id)
        elif is_heard:
            self.memory = remember.ran(self.memory, action, one.id, self.now_s)

    def calm(self) -> None:
        """Let everything that is under way come to its end, and nothing else happen."""
        for _ in range(60):
            while len(self.instances) < self.desired:
                self.happen(0)
            for flags in self.instances.values():
                flags["is_joined"] = True
            for one in list(self.tasks.values()):
                ends = one.is_stopping or one.instance not in self.instances
                self.tasks[one.id] = msgspec.structs.replace(
                    one, is_running=True, is_stopped=one.is_stopped or ends
                )
            self.now_s += 61.0
            if self.round(is_late=False, fails=0).is_settled:
                return
        raise AssertionError("it does not come to rest")

    def settled(self) -> None:
        live = [t for t in self.tasks.values() if not t.is_stopped]
        assert sorted(t.node_id for t in live) == sorted(self.wanted), "each place, and once"
        most = math.ceil(len(self.wanted) / self.per)
        assert len(self.instances) == self.desired
        assert len(self.instances) <= max(most, self.least, self.floor) + _spread(live, self.per)


def _spread(live: list[Task], per: int) -> int:
    """Return how many instances more are in use than would be by packing anew."""
    return len({t.instance for t in live}) - math.ceil(len(live) / per)


EVENTS = st.lists(
    st.tuples(st.integers(0, 9 * 130), st.booleans(), st.integers(0, 255)), max_size=40
)


@given(events=EVENTS, per=st.integers(1, 2), least=st.integers(0, 2), floor=st.integers(0, 2))
@settings(max_examples=150, deadline=None)
def test_whatever_happens_it_comes_to_rest_with_what_is_wanted_and_nothing_else(
    events: list[tuple[int, bool, int]], per: int, least: int, floor: int
) -> None:
    world = World(per=per, least=least, floor=floor, desired=floor)
    for what, is_late, fails in events:
        world.happen(what)
        world.now_s += 1.0
        world.round(is_late=is_late, fails=fails)
    world.calm()
    world.settled()
