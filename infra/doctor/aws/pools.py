"""What a controller's launcher needs: each pool's group, cluster and task definition.

Looks are made for real, of what is there and of ids that nobody has: who may look is told that
those are missing.  Whether tasks may be run and instances ended shows only when that is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from infra.doctor.aws.refusals import code_of, refusal
from infra.doctor.aws.session import Aws
from infra.doctor.findings import Finding, ok, warning, wrong
from pool.aws.config import PoolConfig, PoolsConfig

_NOBODY: Final = "0" * 32  # the id of no task and no container instance
_MADE_BY: Final = "compare TIDEPOOL_POOLS (--pools) with what Terraform made, and the region"


def examine(aws: Aws, config: PoolsConfig) -> list[Finding]:
    """Look at what the launcher of these pools looks at, and name every action that is missing."""
    try:
        ecs, scaling = aws.client("ecs"), aws.client("autoscaling")
    except (BotoCoreError, ValueError) as error:
        return [_refused(error, "ecs:ListTasks", "ECS")]
    cluster = config.cluster
    findings = []
    looks: tuple[tuple[str, Callable[[], Any]], ...] = (
        ("ecs:ListTasks", lambda: ecs.list_tasks(cluster=cluster)),
        ("ecs:DescribeTasks", lambda: ecs.describe_tasks(cluster=cluster, tasks=[_NOBODY])),
        ("ecs:ListContainerInstances", lambda: ecs.list_container_instances(cluster=cluster)),
        (
            "ecs:DescribeContainerInstances",
            lambda: ecs.describe_container_instances(cluster=cluster, containerInstances=[_NOBODY]),
        ),
    )
    for action, look in looks:
        try:
            look()
        except (ClientError, BotoCoreError) as error:
            if isinstance(error, ClientError) and code_of(error) == "ClusterNotFoundException":
                return [wrong("pools", f"there is no ECS cluster {cluster}", _MADE_BY)]
            findings.append(_refused(error, action, f"cluster {cluster}"))
    findings += _groups(scaling, config)
    for pool in config.pools:
        findings += _task_definition(ecs, pool)
    if any(finding.state == "wrong" for finding in findings):
        return findings
    names = ", ".join(pool.name for pool in config.pools)
    return [*findings, ok("pools", f"{names}: cluster {cluster} and groups are there to look at")]


def _groups(scaling: Any, config: PoolsConfig) -> list[Finding]:
    names = [pool.group for pool in config.pools]
    try:
        pages = scaling.get_paginator("describe_auto_scaling_groups").paginate(
            AutoScalingGroupNames=names
        )
        found = {
            one["AutoScalingGroupName"]: one for page in pages for one in page["AutoScalingGroups"]
        }
    except (ClientError, BotoCoreError) as error:
        return [_refused(error, "autoscaling:DescribeAutoScalingGroups", "*")]
    findings = []
    for pool in config.pools:
        group = found.get(pool.group)
        if group is None:
            text = f"{pool.name}: there is no auto scaling group {pool.group}"
            findings.append(wrong("pools", text, _MADE_BY))
        elif group["MaxSize"] < pool.instances_max:
            findings.append(
                warning(
                    "pools",
                    f"{pool.name}: instances_max is {pool.instances_max}, and the group "
                    f"{pool.group} takes {group['MaxSize']}",
                    "raise the group's maximum, or lower instances_max",
                )
            )
    return findings


def _task_definition(ecs: Any, pool: PoolConfig) -> list[Finding]:
    """Look at a task definition; to run it, nobody has to be able to."""
    action, name = "ecs:DescribeTaskDefinition", pool.task_definition
    try:
        found = ecs.describe_task_definition(taskDefinition=name)["taskDefinition"]
    except (ClientError, BotoCoreError) as error:
        why = refusal(error, action)
        if why.kind == "denied":
            text = f"{pool.name}: {name} could not be looked at: {why.why}"
            return [warning("pools", text, f"to have it looked at allow {action} on *")]
        if isinstance(error, ClientError) and code_of(error) == "ClientException":
            text = f"{pool.name}: there is no task definition {name}"
            return [wrong("pools", text, _MADE_BY)]
        return [_refused(error, action, name)]
    names = [one["name"] for one in found["containerDefinitions"]]
    if pool.container not in names:
        text = f"{pool.name}: {name} has no container {pool.container}"
        return [wrong("pools", text, f"set `container` to one of {', '.join(names)}")]
    return []


def _refused(error: Exception, action: str, what: str) -> Finding:
    why = refusal(error, action)
    if why.kind == "denied":
        return wrong("pools", f"{action} on {what} is not allowed", f"allow {action} on {what}")
    return wrong("pools", f"{what}: {why.why}", why.do)
