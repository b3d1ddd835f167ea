"""What AWS's descriptions come to: one state of an instance or a task at a time."""

from __future__ import annotations

from typing import Any

import pytest

from pool.aws.described import group_of, task_of
from pool.aws.observed import Instance, Task

JOINED = {
    "status": "ACTIVE",
    "agentConnected": True,
    "runningTasksCount": 1,
    "pendingTasksCount": 2,
}
UP = Instance(id="i-1", is_joined=True, tasks=3)
ALONE = Instance(id="i-1")


@pytest.mark.parametrize(
    ("lifecycle", "more", "joined", "found"),
    [
        ("Pending", {}, None, ALONE),
        ("Pending:Wait", {}, None, ALONE),
        ("Pending:Proceed", {}, None, ALONE),
        ("InService", {}, None, ALONE),
        ("InService", {}, {}, UP),
        ("InService", {}, {"agentConnected": False}, Instance(id="i-1", tasks=3)),
        ("InService", {}, {"status": "REGISTERING"}, Instance(id="i-1", tasks=3)),
        (
            "InService",
            {},
            {"status": "DRAINING"},
            Instance(id="i-1", is_leaving=True, is_joined=True, tasks=3),
        ),
        ("InService", {"HealthStatus": "Unhealthy"}, None, Instance(id="i-1", is_leaving=True)),
        ("InService", {"HealthStatus": "Healthy"}, None, ALONE),
        ("Terminating", {}, None, Instance(id="i-1", is_ending=True)),
        ("Terminating:Wait", {}, None, Instance(id="i-1", is_ending=True)),
        ("Terminating:Proceed", {}, None, Instance(id="i-1", is_ending=True)),
        ("Detaching", {}, None, Instance(id="i-1", is_ending=True)),
        ("Terminated", {}, None, None),
        ("Detached", {}, None, None),
        ("Standby", {}, None, None),
    ],
)
def test_instance_is_what_its_group_and_its_cluster_say_of_it(
    lifecycle: str, more: dict[str, str], joined: dict[str, Any] | None, found: Instance | None
) -> None:
    group = {
        "DesiredCapacity": 2,
        "MaxSize": 4,
        "MinSize": 1,
        "Instances": [{"InstanceId": "i-1", "LifecycleState": lifecycle, **more}],
    }
    seen = group_of(group, {} if joined is None else {"i-1": JOINED | joined})
    assert (seen.desired, seen.most, seen.least) == (2, 4, 1)
    assert seen.instances == (() if found is None else (found,))


TASK = {
    "taskArn": "t",
    "containerInstanceArn": "ci",
    "tags": [{"key": "tidepool:place", "value": "gpu-0"}],
}
TOLD = {
    "containerOverrides": [{"environment": [{"name": "TIDEPOOL_NODE_ID", "value": "gpu-1"}]}],
}


@pytest.mark.parametrize(
    ("described", "found"),
    [
        ({"lastStatus": "PENDING"}, {}),
        ({"lastStatus": "RUNNING", "desiredStatus": "RUNNING"}, {"is_running": True}),
        (
            {"lastStatus": "RUNNING", "desiredStatus": "STOPPED"},
            {"is_running": True, "is_stopping": True},
        ),
        ({"lastStatus": "DEPROVISIONING", "desiredStatus": "STOPPED"}, {"is_stopping": True}),
        (
            {"lastStatus": "STOPPED", "stoppedReason": "why"},
            {"is_stopped": True, "why": "why"},
        ),
        ({"lastStatus": "DELETED"}, {"is_stopped": True}),
        ({"containerInstanceArn": "other"}, {"instance": ""}),
        ({"tags": [], "overrides": TOLD}, {"node_id": "gpu-1"}),  # whose tags do not show yet
        ({"overrides": TOLD}, {}),
        ({"tags": [], "overrides": {}}, {"node_id": ""}),
        (
            {"tags": [{"key": "tidepool:epoch", "value": "7"}], "overrides": TOLD},
            {"node_id": "gpu-1", "epoch": 7},
        ),
        (
            {"tags": [{"key": "tidepool:epoch", "value": "x"}], "overrides": TOLD},
            {"node_id": "gpu-1"},
        ),
    ],
)
def test_task_is_what_ecs_says_of_it(described: dict[str, Any], found: dict[str, Any]) -> None:
    expected = {"node_id": "gpu-0", "instance": "i-1"} | found
    assert task_of(TASK | described, {"ci": "i-1"}) == Task(id="t", **expected)
