"""A region of AWS as a launcher meets it: minutes pass, calls fail, and descriptions lag behind.

What stands in the place of something else: EC2 boots nothing, ECS starts a process of the
simulation in the place of a container, and of every call there is as much as is asked for here.
Strict where AWS is: a group's bounds, what fits on an instance, client tokens, and that a task
which was told to end is counted and listed no more, while it still runs.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from botocore.exceptions import ClientError, ReadTimeoutError

from pool.aws.client import Apis
from tests.simulation.loop import SimulatedLoop
from tests.simulation.processes import Process

CALL_S: Final = (0.03, 0.2)
GIVE_UP_S: Final = 15.0
STOP_S_MAX: Final = 120.0  # the task's stopTimeout
UNPROVISION_S: Final = (1.0, 8.0)
STOPPED_S: Final = 3600.0  # for so long a task that has stopped is listed and described
ALIVE: Final = ("Pending", "InService")


@dataclass
class Weather:
    """How AWS is today; times are drawn between two bounds."""

    launch_s: tuple[float, float] = (20.0, 60.0)  # until an instance is in service
    join_s: tuple[float, float] = (20.0, 60.0)  # from there until its agent is in the cluster
    pull_s: tuple[float, float] = (5.0, 40.0)  # until a container runs
    lag_s: tuple[float, float] = (0.0, 8.0)  # by which a description is late
    throttled: float = 0.0  # the part of calls that are
    failing: float = 0.0  # the part of calls that end in a 500, or in nothing at all
    is_denied: bool = False  # whether every call is refused
    is_hanging: bool = False  # whether none is answered
    capacity: int = 100  # instances that EC2 has
    dead_on_arrival: float = 0.0  # the part of instances that never join
    failing_tasks: float = 0.0  # the part of tasks whose container ends at once


@dataclass
class Machine:
    """One instance."""

    id: str
    lifecycle: str = "Pending"
    is_joined: bool = False
    is_draining: bool = False
    tags: dict[str, str] = field(default_factory=dict)


@dataclass
class Job:
    """One task."""

    id: str
    machine: str
    arguments: Mapping[str, Any]
    status: str = "PROVISIONING"
    desired: str = "RUNNING"
    stopped_s: float = math.inf
    process: Process | None = None

    @property
    def node_id(self) -> str:
        """What its container is told."""
        (override,) = self.arguments["overrides"]["containerOverrides"]
        (variable,) = override["environment"]
        assert variable["name"] == "TIDEPOOL_NODE_ID"
        return str(variable["value"])


@dataclass
class Asg:
    """One auto scaling group."""

    name: str
    most: int
    least: int = 0
    desired: int = 0
    machines: dict[str, Machine] = field(default_factory=dict)


class Region:
    """ECS, auto scaling and EC2.

    Args:
        loop: of the simulation.
        start: starts the worker of a place.
        groups: by name the most instances of each.
        per: tasks that fit on an instance.
    """

    def __init__(
        self,
        loop: SimulatedLoop,
        start: Callable[[str], Process],
        groups: Mapping[str, int],
        *,
        per: int = 1,
        weather: Weather | None = None,
    ) -> None:
        self._loop = loop
        self._start = start
        self._per = per
        self.weather = weather or Weather()
        self.groups = {name: Asg(name, most) for name, most in groups.items()}
        self.jobs: dict[str, Job] = {}
        self.calls: list[tuple[float, str]] = []
        self.launched = 0
        self.faults: list[str] = []  # that no launcher may commit
        self._tokens: dict[str, tuple[Any, str]] = {}
        self._next = 0
        self._past: deque[tuple[float, dict[str, Any]]] = deque()
        self._note()

    def apis(self) -> Apis:
        """Return what stands in the place of boto3's clients."""
        return Apis(*(_Service(self) for _ in range(3)))  # type: ignore[arg-type]

    # what tests look at

    @property
    def machines(self) -> list[Machine]:
        """All instances that are not gone."""
        return [one for group in self.groups.values() for one in group.machines.values()]

    @property
    def live(self) -> list[Job]:
        """All tasks that have not stopped."""
        return [job for job in self.jobs.values() if job.status != "STOPPED"]

    def count(self, since_s: float) -> Counter[str]:
        """Return the calls since then, by their names."""
        return Counter(name for at_s, name in self.calls if at_s >= since_s)

    def is_empty(self) -> bool:
        """Tell whether nothing costs anything."""
        return not self.machines and not self.live and not any(
            group.desired for group in self.groups.values()
        )  # fmt: skip

    # what happens by itself

    def _id(self, prefix: str) -> str:
        self._next += 1
        return f"{prefix}-{self._next:04d}"

    def _dice(self, bounds: tuple[float, float]) -> float:
        return self._loop.dice.uniform(*bounds)

    def _later(self, bounds: tuple[float, float], what: Callable[[], object]) -> None:
        def happen() -> None:
            what()
            self._note()

        delay_s = self._dice(bounds)
        self._loop.outside(lambda: self._loop.call_later(delay_s, happen))

    def _launch(self, group: Asg) -> None:
        """Begin as many instances as are desired, as far as EC2 has any."""
        alive = sum(not one.lifecycle.startswith("Terminating") for one in group.machines.values())
        for _ in range(group.desired - alive):
            if len(self.machines) >= self.weather.capacity:
                self._later((30.0, 60.0), lambda: self._launch(group))
                return
            machine = Machine(self._id("i"))
            group.machines[machine.id] = machine
            self.launched += 1
            self._later(self.weather.launch_s, partial(self._serve, machine))

    def _serve(self, machine: Machine) -> None:
        if machine.lifecycle != "Pending":
            return
        machine.lifecycle = "InService"
        if self._loop.dice.random() >= self.weather.dead_on_arrival:
            self._later(self.weather.join_s, lambda: setattr(machine, "is_joined", True))

    def _begin(self, job: Job) -> None:
        if job.desired == "STOPPED":
            self._stopped(job)
            return
        job.status = "RUNNING"
        if self._loop.dice.random() < self.weather.failing_tasks:
            self._stopped(job)
            return
        job.process = self._start(job.node_id)
        job.process.at_end(lambda code: self._later(UNPROVISION_S, lambda: self._stopped(job)))

    def _stopped(self, job: Job) -> None:
        job.status = job.desired = "STOPPED"
        job.stopped_s = self._loop.time()

    def _end(self, group: Asg, machine: Machine) -> None:
        for job in self.live:
            if job.machine == machine.id and job.process is not None:
                job.process.kill()
        machine.lifecycle = "Terminating"
        self._later((5.0, 30.0), lambda: group.machines.pop(machine.id, None))

    def set_desired(self, group: Asg, desired: int) -> None:
        """Let a group have so many; what serves is protected, so only launches are taken back.

        By the launcher or, in a console, by somebody else.
        """
        group.desired = max(group.least, min(desired, group.most))
        alive = [one for one in group.machines.values() if one.lifecycle in ALIVE]
        pending = [one for one in alive if one.lifecycle == "Pending"]
        for machine in pending[: max(0, len(alive) - group.desired)]:
            self._end(group, machine)
        self._launch(group)
        self._note()

    def notice(self, machine: Machine) -> None:
        """Say that a spot instance is taken back: gone in two minutes, and replaced."""
        machine.is_draining = True
        group = next(g for g in self.groups.values() if machine.id in g.machines)

        def taken() -> None:
            if machine.lifecycle == "InService":
                self._end(group, machine)
                self._launch(group)

        self._later((120.0, 120.0), taken)
        self._note()

    # what is told of it

    def _note(self) -> None:
        """Remember how everything stands, for those who are told of it late."""
        now_s = self._loop.time()
        machines = [
            (group.name, one.id, one.lifecycle, one.is_joined, one.is_draining)
            for group in self.groups.values()
            for one in group.machines.values()
        ]
        view = {
            "desired": {group.name: group.desired for group in self.groups.values()},
            "machines": machines,
            "jobs": {
                job.id: (job.status, job.desired)
                for job in self.jobs.values()
                if now_s - job.stopped_s < STOPPED_S
            },
        }
        self._past.append((now_s, view))
        while len(self._past) > 1 and self._past[1][0] < now_s - self.weather.lag_s[1] - 1:
            self._past.popleft()

    def _view(self) -> dict[str, Any]:
        as_of_s = self._loop.time() - self._dice(self.weather.lag_s)
        found = self._past[0][1]
        for at_s, view in self._past:
            if at_s <= as_of_s:
                found = view
        return found

    # calls

    def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """Carry out a call, or fail it, in a thread of who calls."""
        weather, dice = self.weather, self._loop.dice
        self.calls.append((self._loop.time(), name))
        time.sleep(self._dice(CALL_S))
        if weather.is_hanging:
            time.sleep(GIVE_UP_S)
            raise ReadTimeoutError(endpoint_url="https://aws.test")
        if weather.is_denied:
            raise _error(name, "AccessDeniedException", "not authorized", 403)
        if dice.random() < weather.throttled:
            raise _error(name, "ThrottlingException", "Rate exceeded", 400)
        is_failing = dice.random() < weather.failing
        if is_failing and dice.random() < 0.5:
            raise _error(name, "ServerException", "Service Unavailable", 503)
        answer = getattr(self, f"_{name}")(**arguments)
        self._note()
        if is_failing:  # it was done, and nobody hears of it
            time.sleep(GIVE_UP_S)
            raise ReadTimeoutError(endpoint_url="https://aws.test")
        return answer

    def _describe_auto_scaling_groups(
        self, AutoScalingGroupNames: list[str], MaxRecords: int
    ) -> Any:
        view = self._view()
        return {
            "AutoScalingGroups": [
                {
                    "AutoScalingGroupName": group.name,
                    "DesiredCapacity": view["desired"][group.name],
                    "MaxSize": group.most,
                    "MinSize": group.least,
                    "Instances": [
                        {"InstanceId": id, "LifecycleState": lifecycle, "HealthStatus": "Healthy"}
                        for of, id, lifecycle, *_ in view["machines"]
                        if of == group.name
                    ],
                }
                for group in self.groups.values()
                if group.name in AutoScalingGroupNames
            ]
        }

    def _set_desired_capacity(
        self, AutoScalingGroupName: str, DesiredCapacity: int, HonorCooldown: bool
    ) -> Any:
        group = self.groups[AutoScalingGroupName]
        if not group.least <= DesiredCapacity <= group.most:
            raise _error("set", "ValidationError", "outside of the group's bounds", 400)
        served = sum(one.lifecycle == "InService" for one in group.machines.values())
        assert DesiredCapacity >= min(served, group.desired), "AWS chooses who ends"
        self.set_desired(group, DesiredCapacity)
        return {}

    def _terminate_instance_in_auto_scaling_group(
        self, InstanceId: str, ShouldDecrementDesiredCapacity: bool
    ) -> Any:
        for group in self.groups.values():
            machine = group.machines.get(InstanceId)
            if machine is not None and machine.lifecycle in ALIVE:
                if ShouldDecrementDesiredCapacity and group.desired <= group.least:
                    text = "Terminating instance without replacement will violate min size"
                    raise _error("terminate", "ValidationError", text, 400)
                if any(j.machine == InstanceId and j.process for j in self.live):
                    self.faults.append(f"{InstanceId} was ended under a worker")
                group.desired -= ShouldDecrementDesiredCapacity
                self._end(group, machine)
                self._launch(group)
                return {}
        raise _error("terminate", "ValidationError", f"Instance Id {InstanceId} not found", 400)

    def _create_tags(self, Resources: list[str], Tags: list[dict[str, str]]) -> Any:
        for machine in self.machines:
            if machine.id in Resources:
                machine.tags.update({tag["Key"]: tag["Value"] for tag in Tags})
        return {}

    def _list_container_instances(self, cluster: str, maxResults: int, nextToken: str = "") -> Any:
        joined = sorted(id for _, id, _, is_joined, _ in self._view()["machines"] if is_joined)
        return _page([f"arn:ci/{id}" for id in joined], "containerInstanceArns", 2, nextToken)

    def _describe_container_instances(self, cluster: str, containerInstances: list[str]) -> Any:
        jobs = self._view()["jobs"].items()
        on = Counter(self.jobs[id].machine for id, (_, desired) in jobs if desired == "RUNNING")
        return {
            "containerInstances": [
                {
                    "containerInstanceArn": f"arn:ci/{id}",
                    "ec2InstanceId": id,
                    "status": "DRAINING" if is_draining else "ACTIVE",
                    "agentConnected": True,
                    "runningTasksCount": on[id],
                    "pendingTasksCount": 0,
                }
                for _, id, _, is_joined, is_draining in self._view()["machines"]
                if is_joined and f"arn:ci/{id}" in containerInstances
            ]
        }

    def _list_tasks(
        self,
        cluster: str,
        startedBy: str,
        maxResults: int,
        desiredStatus: str = "RUNNING",
        nextToken: str = "",
    ) -> Any:
        assert startedBy == "tidepool-prod"
        jobs = self._view()["jobs"].items()
        found = [id for id, (_, desired) in jobs if desired == desiredStatus]
        return _page(found, "taskArns", 2 if desiredStatus == "RUNNING" else 10, nextToken)

    def _describe_tasks(self, cluster: str, tasks: list[str], include: list[str]) -> Any:
        assert len(tasks) <= 100
        found = [
            _described(self.jobs[id], status, desired)
            for id, (status, desired) in self._view()["jobs"].items()
            if id in tasks
        ]
        return {"tasks": found, "failures": []}

    def _stop_task(self, cluster: str, task: str, reason: str) -> Any:
        job = self.jobs[task]
        job.desired = "STOPPED"
        if job.process is not None:
            process = job.process
            process.kill(15)
            self._later((STOP_S_MAX, STOP_S_MAX), process.kill)
        return {"task": _described(job, job.status, job.desired)}

    def _run_task(self, clientToken: str, **arguments: Any) -> Any:
        if clientToken in self._tokens:
            before, id = self._tokens[clientToken]
            if before == arguments:
                job = self.jobs[id]
                return {"tasks": [_described(job, job.status, job.desired)], "failures": []}
            error = _error("run", "ConflictException", "another request has this token", 400)
            error.response["resourceIds"] = [id]  # type: ignore[typeddict-unknown-key]
            raise error
        (constraint,) = arguments["placementConstraints"]
        (machine,) = [one for one in self.machines if f"['{one.id}']" in constraint["expression"]]
        on = sum(job.machine == machine.id for job in self.live)
        if on >= self._per or machine.lifecycle != "InService":
            return {"tasks": [], "failures": [{"arn": machine.id, "reason": "RESOURCE:GPU"}]}
        job = Job(self._id("arn:task"), machine.id, arguments)
        self.jobs[job.id] = job
        self._tokens[clientToken] = (arguments, job.id)
        self._later(self.weather.pull_s, lambda: self._begin(job))
        return {"tasks": [_described(job, job.status, job.desired)], "failures": []}


class _Service:
    def __init__(self, region: Region) -> None:
        self._region = region

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda **arguments: self._region.call(name, arguments)


def _described(job: Job, status: str, desired: str) -> dict[str, Any]:
    return {
        "taskArn": job.id,
        "lastStatus": status,
        "desiredStatus": desired,
        "containerInstanceArn": f"arn:ci/{job.machine}",
        "tags": job.arguments["tags"],
        "overrides": job.arguments["overrides"],
    }


def _page(found: list[str], field: str, size: int, token: str) -> dict[str, Any]:
    begin = int(token or 0)
    answer: dict[str, Any] = {field: found[begin : begin + size]}
    if begin + size < len(found):
        answer["nextToken"] = str(begin + size)
    return answer


def _error(name: str, code: str, text: str, status: int) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": text}, "ResponseMetadata": {"HTTPStatusCode": status}},  # type: ignore[typeddict-item]
        name,
    )
