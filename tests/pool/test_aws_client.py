"""The launcher's calls, over HTTP against moto."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import msgspec
import pytest
from botocore.exceptions import EndpointConnectionError
from botocore.parsers import ResponseParserError

from pool.aws import client
from pool.aws.client import Apis, Cloud, CloudError, CloudRefused, Done, Started, connect
from pool.aws.observed import Group, Instance
from pool.aws.steps import End, Raise, Run, Stop, Tag
from tests.support.aws import AwsServer
from tests.support.aws_pool import AwsPool


@pytest.fixture(scope="module")
def shared(moto: AwsServer) -> AwsPool:
    """A pool in which one test after the other leaves nothing."""
    return AwsPool(moto, instances_max=3)


@pytest.fixture(scope="module")
def apis(moto: AwsServer) -> Iterator[Apis]:
    """The services as a launcher has them; made once, as that takes a second."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in moto.environment.items():
            patch.setenv(name, value)
        yield connect()


@pytest.fixture
def pool(shared: AwsPool) -> Iterator[AwsPool]:
    yield shared
    for name in shared.instances():
        shared.scaling.terminate_instance_in_auto_scaling_group(
            InstanceId=name, ShouldDecrementDesiredCapacity=True
        )
    for arn in shared.joined().values():
        shared.ecs.deregister_container_instance(
            cluster=shared.name, containerInstance=arn, force=True
        )


def test_one_worker_comes_and_goes(pool: AwsPool, apis: Apis) -> None:
    cloud = Cloud(apis, pool.config())
    seen = cloud.observe(())
    assert (seen.groups, seen.tasks) == ({pool.name: Group(desired=0, most=3)}, ())
    assert sum(cloud.calls.values()) == 2  # all that a pool at rest costs

    assert cloud.carry_out(Raise(pool.name, 1), 5) == Done()
    (name,) = pool.instances()
    boots = Instance(id=name)
    assert cloud.observe(()).groups[pool.name] == Group(desired=1, most=3, instances=(boots,))
    cloud.carry_out(Tag((name,)), 5)
    assert {"tidepool:fleet": pool.name, "tidepool:epoch": "5"}.items() <= pool.tags(name).items()
    pool.join(name)
    (found,) = cloud.observe(()).groups[pool.name].instances
    assert found == Instance(id=name, is_joined=True)

    started = cloud.carry_out(Run("gpu", "gpu-1", name, "token"), 5)
    assert isinstance(started, Started)
    seen = cloud.observe(())
    (task,) = seen.tasks
    assert (task.id, task.node_id, task.epoch) == (started.task, "gpu-1", 5)
    assert (task.instance, task.is_running, task.is_stopping) == (name, True, False)
    assert seen.groups[pool.name].instances[0].tasks == 1
    (described,) = pool.tasks()
    told = described["overrides"]["containerOverrides"]
    environment = [{"name": "TIDEPOOL_NODE_ID", "value": "gpu-1"}]
    assert told == [{"name": "pool", "environment": environment}]
    assert {tag["key"]: tag["value"] for tag in described["tags"]} == {
        "tidepool:fleet": pool.name,
        "tidepool:pool": "gpu",
        "tidepool:place": "gpu-1",
        "tidepool:epoch": "5",
    }

    pool.drain(name)
    assert cloud.observe(()).groups[pool.name].instances[0].is_leaving
    cloud.carry_out(Stop(task.id, "nobody needs it"), 5)
    (task,) = cloud.observe((task.id,)).tasks
    assert (task.is_stopped, task.why) == (True, "tidepool: nobody needs it")
    cloud.carry_out(End(pool.name, name, "nobody needs it"), 5)
    assert pool.group()["DesiredCapacity"] == 0
    assert pool.instances() == []
    assert {outcome for _, outcome in cloud.calls} == {"ok"}


def test_what_does_not_fit_is_refused_and_said_by_its_call(pool: AwsPool, apis: Apis) -> None:
    cloud = Cloud(apis, pool.config())
    with pytest.raises(CloudError, match="RunTask: "):
        cloud.carry_out(Run("gpu", "gpu-0", "i-1", "token"), 1)  # there is no instance
    with pytest.raises(CloudError, match="StopTask: "):
        cloud.carry_out(Stop(f"arn:aws:ecs:us-east-1:123456789012:task/{pool.name}/a", "x"), 1)
    cloud = Cloud(apis, pool.config(group="nobody"))
    assert cloud.observe(()).groups == {}


def test_task_that_finds_no_room_is_refused(pool: AwsPool, apis: Apis) -> None:
    cloud = Cloud(apis, pool.config())
    cloud.carry_out(Raise(pool.name, 1), 1)
    (name,) = pool.instances()
    pool.join(name)
    cloud.carry_out(Run("gpu", "gpu-0", name, "one"), 1)
    with pytest.raises(CloudRefused, match="no task was started"):
        cloud.carry_out(Run("gpu", "gpu-1", name, "two"), 1)


def test_cluster_that_is_not_there_is_named(pool: AwsPool, apis: Apis) -> None:
    config = msgspec.structs.replace(pool.config(), cluster="nowhere")
    with pytest.raises(CloudRefused, match="ListTasks: ClusterNotFoundException"):
        Cloud(apis, config).observe(())


def test_nobody_who_answers_is_asked_three_times(
    pool: AwsPool, apis: Apis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(**_: object) -> None:
        raise EndpointConnectionError(endpoint_url="https://ecs.us-east-1.amazonaws.com/")

    monkeypatch.setattr(client, "PAUSE_S", 0.0)
    monkeypatch.setattr(apis.ecs, "list_tasks", nobody)
    cloud = Cloud(apis, pool.config())
    with pytest.raises(CloudError, match="ListTasks: Could not connect"):
        cloud.observe(())
    assert cloud.calls["ListTasks", "failed"] == 3


@pytest.mark.parametrize(
    "answer",
    [{}, {"AutoScalingGroups": [{"AutoScalingGroupName": "g"}]}, ResponseParserError("html")],
)
def test_answer_that_is_none_counts_as_none(
    pool: AwsPool, apis: Apis, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    def answers(**_: object) -> object:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(client, "PAUSE_S", 0.0)
    monkeypatch.setattr(apis.autoscaling, "describe_auto_scaling_groups", answers)
    monkeypatch.setattr(apis.ecs, "run_task", lambda **_: {"tasks": [{}]})
    cloud = Cloud(apis, pool.config())
    with contextlib.suppress(CloudError):
        assert cloud.observe(()).groups == {}
    with pytest.raises(CloudError, match="RunTask: AWS's answer is not as it should be"):
        cloud.carry_out(Run("gpu", "gpu-0", "i-1", "token"), 1)


def test_task_that_was_told_to_end_and_still_drains_is_seen_only_by_a_wide_look(
    pool: AwsPool, apis: Apis, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def listed(**arguments: str) -> dict[str, list[str]]:
        asked.append(arguments["desiredStatus"])
        return {"taskArns": []}

    monkeypatch.setattr(apis.ecs, "list_tasks", listed)
    Cloud(apis, pool.config()).observe((), is_wide=True)
    Cloud(apis, pool.config()).observe(())
    assert asked == ["RUNNING", "STOPPED", "RUNNING"]


def test_no_more_than_a_call_a_second_is_made_over_time(
    pool: AwsPool, apis: Apis, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept_s: list[float] = []
    monkeypatch.setattr("time.sleep", slept_s.append)
    monkeypatch.setattr("time.monotonic", lambda: 1000.0 + sum(slept_s))
    cloud = Cloud(apis, pool.config())
    for _ in range(20):
        cloud.observe(())
    assert sum(slept_s) == pytest.approx(cloud.calls.total() - client.BURST_CALLS)


def test_region_that_nobody_has_said_is_asked_for(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(CloudError, match="set AWS_DEFAULT_REGION"):
        connect()
