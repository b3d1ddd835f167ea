"""A pool of instances in moto, and somebody who does what EC2 and ECS's agents do.

moto has the calls and their state; it boots nothing and starts no container.
"""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pool.aws.config import PoolConfig, PoolsConfig
from tests.support.aws import AwsServer

LOOK_S = 0.2
END_S_MAX = 30.0


@dataclass
class AwsPool:
    """What Terraform makes for one pool, under names of its own."""

    aws: AwsServer
    instances_max: int = 2
    name: str = field(default_factory=lambda: f"t{secrets.token_hex(4)}")

    def __post_init__(self) -> None:
        # moto lets a task end by itself as it is looked at, unless it is told not to.
        self.aws.client("ecs")  # its models are loaded with the first call
        self._post(
            {"model_name": "ecs::task", "transition": {"progression": "manual", "times": 10**9}}
        )
        ec2, ecs, scaling = (self.aws.client(name) for name in ("ec2", "ecs", "autoscaling"))
        self.ec2, self.ecs, self.scaling = ec2, ecs, scaling
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        # Without a name of its own no task of moto has an address.
        ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsHostnames={"Value": True})
        self.subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.0.0/24")["Subnet"]["SubnetId"]
        self.security_group = ec2.create_security_group(
            GroupName=self.name, Description="workers", VpcId=vpc
        )["GroupId"]
        ecs.create_cluster(clusterName=self.name)
        ecs.register_task_definition(
            family=self.name,
            networkMode="awsvpc",
            requiresCompatibilities=["EC2"],
            containerDefinitions=[{"name": "pool", "image": "tidepool/pool", "memory": 12000}],
        )
        image = ec2.describe_images()["Images"][0]["ImageId"]
        ec2.create_launch_template(
            LaunchTemplateName=self.name,
            LaunchTemplateData={"ImageId": image, "InstanceType": "g6.xlarge"},
        )
        scaling.create_auto_scaling_group(
            AutoScalingGroupName=self.name,
            LaunchTemplate={"LaunchTemplateName": self.name, "Version": "$Latest"},
            MinSize=0,
            MaxSize=self.instances_max,
            DesiredCapacity=0,
            VPCZoneIdentifier=self.subnet,
            NewInstancesProtectedFromScaleIn=True,
        )

    def _post(self, transition: dict[str, Any]) -> None:
        request = urllib.request.Request(
            f"{self.aws.endpoint}/moto-api/state-manager/set-transition",
            json.dumps(transition).encode(),
            {"content-type": "application/json"},
            method="POST",
        )
        with urllib.request.urlopen(request, timeout=10):
            pass

    def config(self, **changes: Any) -> PoolsConfig:
        """Return what a launcher is told of it."""
        fields: dict[str, Any] = {
            "name": "gpu",
            "group": self.name,
            "task_definition": self.name,
            "instances_max": self.instances_max,
            "subnets": (self.subnet,),
            "security_groups": (self.security_group,),
            "device": "cpu",
            **changes,
        }
        return PoolsConfig(fleet=self.name, cluster=self.name, pools=(PoolConfig(**fields),))

    def group(self) -> dict[str, Any]:
        """Return the auto scaling group as it is described."""
        described = self.scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[self.name])
        found: dict[str, Any] = described["AutoScalingGroups"][0]
        return found

    def instances(self) -> list[str]:
        """Return the ids of the group's instances."""
        return [one["InstanceId"] for one in self.group()["Instances"]]

    def join(self, instance: str) -> None:
        """Let an instance's ECS agent be in the cluster."""
        identity = json.dumps({"instanceId": instance})
        self.ecs.register_container_instance(cluster=self.name, instanceIdentityDocument=identity)

    def joined(self) -> dict[str, str]:
        """Return the container instances by EC2's ids."""
        arns = self.ecs.list_container_instances(cluster=self.name)["containerInstanceArns"]
        if not arns:
            return {}
        found = self.ecs.describe_container_instances(cluster=self.name, containerInstances=arns)
        return {
            one["ec2InstanceId"]: one["containerInstanceArn"] for one in found["containerInstances"]
        }

    def drain(self, instance: str) -> None:
        """Say of an instance what its agent says after a spot notice."""
        self.ecs.update_container_instances_state(
            cluster=self.name, containerInstances=[self.joined()[instance]], status="DRAINING"
        )

    def tasks(self) -> list[dict[str, Any]]:
        """Return all tasks, those that were stopped too."""
        arns = self.ecs.list_tasks(cluster=self.name)["taskArns"]
        if not arns:
            return []
        described = self.ecs.describe_tasks(cluster=self.name, tasks=arns, include=["TAGS"])
        found: list[dict[str, Any]] = described["tasks"]
        return found

    def tags(self, instance: str) -> dict[str, str]:
        """Return the tags of an instance."""
        found = self.ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [instance]}])
        return {tag["Key"]: tag["Value"] for tag in found["Tags"]}


class Agents:
    """Does for a pool in moto what EC2 and ECS's agents do: instances join, tasks are processes.

    Args:
        pool: whose.
        start: starts a task's process, by its environment.
    """

    def __init__(
        self, pool: AwsPool, start: Callable[[dict[str, str]], subprocess.Popen[bytes]]
    ) -> None:
        self._pool = pool
        self._start = start
        self._stop = threading.Event()
        self.started: dict[str, subprocess.Popen[bytes]] = {}
        self._ended: set[str] = set()
        self.problem: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Agents:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(END_S_MAX)
        for process in self.started.values():
            process.send_signal(signal.SIGTERM)
        for process in self.started.values():
            try:
                process.wait(END_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        assert self.problem is None, self.problem

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            try:
                self._look()
            except Exception as error:
                # The test is told at its end.
                self.problem = error
                return

    def _look(self) -> None:
        pool = self._pool
        there, joined = pool.instances(), pool.joined()
        for instance in there:
            if instance not in joined:
                pool.join(instance)
        for instance, arn in joined.items():
            if instance not in there:
                pool.ecs.deregister_container_instance(
                    cluster=pool.name, containerInstance=arn, force=True
                )
        for task in pool.tasks():
            arn, status = task["taskArn"], task["lastStatus"]
            if status == "RUNNING" and arn not in self.started:
                (override,) = task["overrides"]["containerOverrides"]
                told = {one["name"]: one["value"] for one in override["environment"]}
                self.started[arn] = self._start(told)
            elif status == "STOPPED" and arn in self.started and arn not in self._ended:
                self._ended.add(arn)
                self.started[arn].send_signal(signal.SIGTERM)
