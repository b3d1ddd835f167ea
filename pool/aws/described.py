"""What AWS's descriptions come to.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pool.aws.observed import TAG_EPOCH, TAG_PLACE, Group, Instance, Task
from pool.config import NODE_ID


def group_of(group: Mapping[str, Any], joined: Mapping[str, Mapping[str, Any]]) -> Group:
    """Return a group; `joined` are the container instances by EC2's ids."""
    instances = (
        _instance(one, joined.get(one["InstanceId"]))
        for one in group.get("Instances", ())
        if one["LifecycleState"] not in ("Terminated", "Detached", "Standby")
    )
    return Group(
        desired=group["DesiredCapacity"],
        most=group["MaxSize"],
        least=group["MinSize"],
        instances=tuple(instances),
    )


def _instance(one: Mapping[str, Any], joined: Mapping[str, Any] | None) -> Instance:
    status = "" if joined is None else joined.get("status", "")
    counted = joined or {}
    return Instance(
        id=one["InstanceId"],
        is_ending=one["LifecycleState"].startswith(("Terminating", "Detaching")),
        is_leaving=status == "DRAINING" or one.get("HealthStatus", "Healthy") != "Healthy",
        is_joined=status in ("ACTIVE", "DRAINING") and bool(counted.get("agentConnected")),
        tasks=counted.get("runningTasksCount", 0) + counted.get("pendingTasksCount", 0),
    )


def task_of(one: Mapping[str, Any], at: Mapping[str, str]) -> Task:
    """Return a task; `at` are EC2's ids by those of container instances."""
    tags = {tag["key"]: tag.get("value", "") for tag in one.get("tags", ())}
    told = {
        variable["name"]: variable.get("value", "")
        for container in one.get("overrides", {}).get("containerOverrides", ())
        for variable in container.get("environment", ())
    }
    last = one.get("lastStatus", "")
    epoch = tags.get(TAG_EPOCH, "")
    return Task(
        id=one["taskArn"],
        node_id=tags.get(TAG_PLACE) or told.get(NODE_ID, ""),
        epoch=int(epoch) if epoch.isdecimal() else 0,
        instance=at.get(one.get("containerInstanceArn", ""), ""),
        is_running=last == "RUNNING",
        is_stopping=one.get("desiredStatus") == "STOPPED",
        is_stopped=last in ("STOPPED", "DELETED"),
        why=one.get("stoppedReason", ""),
    )
