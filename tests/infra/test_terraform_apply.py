"""examples/complete against moto over HTTP: apply, a second plan, the launcher's calls, destroy.

moto answers as AWS does for the forms of what it is told; it starts no task, asks nobody for
permission and gives every address at once.  What only AWS can tell stays open.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.doctor.aws.plan import known_actions, read_plan
from pool.aws.client import Cloud, Started, connect
from pool.aws.config import decode
from pool.aws.observed import Observed
from pool.aws.steps import End, Raise, Run, Stop, Tag
from tests.support import aws_census
from tests.support.aws import REGION, AwsServer, aws_server
from tests.support.terraform import Root, calls_of, copied

# Nothing here measures time; most of it is the provider that waits for what AWS would take.
pytestmark = [pytest.mark.slow, pytest.mark.terraform, pytest.mark.timeout(900)]

_PROMETHEUS = Path(__file__).parents[2] / "infra" / "monitoring" / "prometheus"
_REPOSITORY = f"123456789012.dkr.ecr.{REGION}.amazonaws.com/tidepool"
_VARIABLES = {
    "region": REGION,
    "domain": "example.com",
    "images": {"edge": f"{_REPOSITORY}/edge:1.0", "pool": f"{_REPOSITORY}/pool:1.0"},
    # moto's us-east-1e has none of the GPUs, and 1f has one of both kinds.
    "zones": 6,
    "nat": "single",
    "admin_cidrs": ["198.51.100.0/24"],
    "alarm_emails": ["on-call@example.com"],
    "collector_image": "public.ecr.aws/aws-observability/aws-otel-collector:v0.43.1",
    "force_destroy": True,
}
_IN_PARALLEL = "-parallelism=50"

# All that a second plan may want to change: by type and attribute, and why moto is the reason.
_UNTOLD_BY_MOTO = {
    "aws_appautoscaling_target": (
        {"tags_all"},
        "moto keeps no tags of scalable targets; our ListTagsForResource says that there are none",
    ),
    "aws_ecs_service": (
        {"availability_zone_rebalancing", "health_check_grace_period_seconds"},
        "moto's DescribeServices leaves both out",
    ),
    "aws_vpc_security_group_egress_rule": (
        {"description"},
        "moto keeps the description of a rule with a range of addresses, not of one with a group",
    ),
    "aws_vpc_security_group_ingress_rule": ({"description"}, "as for those that go out"),
    "aws_launch_template": (
        {"tag_specifications", "default_version", "latest_version"},
        "moto tells the template's own tags as if they were those of its instances; "
        "the versions are those of the change that follows",
    ),
    "aws_autoscaling_group": (
        {"mixed_instances_policy", "capacity_reservation_specification"},
        "it names the template's version; the other is computed, so unknown while that changes",
    ),
}


@dataclass(frozen=True)
class Life:
    """What was seen of one stack from before its apply until after its destroy."""

    aws: AwsServer
    before: set[str]
    applied: set[str]
    after: set[str]
    types: set[str]
    planned: set[str]  # types, as the doctor reads them from the first plan
    calls: Mapping[str, set[str]]  # of the AWS provider: type of resource → actions
    outputs: Mapping[str, Any]
    differences: Mapping[str, set[str]]  # of the second plan: type of resource → attributes
    launched: Launched
    collector: Mapping[str, Any]  # what the collector of metrics is told


@dataclass(frozen=True)
class Launched:
    """What the launcher saw and did in the stack."""

    asleep: Observed
    awake: Observed
    task: Mapping[str, Any]  # as ECS describes it
    rested: Observed
    calls: set[str]  # "service:Operation"
    allowed: set[str]  # actions of the controller's role


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """One apply and one destroy for all tests of this file."""
    folder = tmp_path_factory.mktemp("complete")
    example = copied(folder) / "examples" / "complete"
    shutil.copytree(_PROMETHEUS, folder / "monitoring" / "prometheus")
    (example / "terraform.tfvars.json").write_text(json.dumps(_VARIABLES))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOTO_ACM_VALIDATION_WAIT", "0")
        with aws_server() as aws:
            for name, value in aws.environment.items():
                patch.setenv(name, value)
            aws.client("route53").create_hosted_zone(Name="example.com", CallerReference="1")
            logged = {"TF_LOG_PROVIDER": "debug", "TF_LOG_PATH": str(folder / "provider.log")}
            root = Root(example, {**aws.environment, "AWS_MAX_ATTEMPTS": "2", **logged})
            yield _live(root, aws)


def _live(root: Root, aws: AwsServer) -> Life:
    before = aws_census.taken(aws.client)
    root.init()
    root.run("plan", "-out=first", _IN_PARALLEL).ok()
    first = root.folder / "first.json"
    first.write_text(root.run("show", "-json", "first").ok())
    root.run("apply", _IN_PARALLEL, "first", timeout_s=400).ok()
    applied = aws_census.taken(aws.client)
    state = json.loads(root.run("show", "-json").ok())["values"]
    outputs = {name: output["value"] for name, output in state["outputs"].items()}
    planned = root.run("plan", "-detailed-exitcode", "-out=second", _IN_PARALLEL)
    assert planned.code in (0, 2), planned.out
    plan = json.loads(root.run("show", "-json", "second").ok())
    launched = _launch(aws)
    collector = _environment(aws.client("ecs"), "tidepool-collector")["AOT_CONFIG_CONTENT"]
    # Without a look at everything again: the plan has just had it.
    root.run("destroy", "-auto-approve", "-refresh=false", _IN_PARALLEL, timeout_s=400).ok()
    return Life(
        aws=aws,
        before=before,
        applied=applied,
        after=aws_census.taken(aws.client),
        types={*_types(state["root_module"])},
        planned={*read_plan(first)},
        calls=calls_of(Path(root.environment["TF_LOG_PATH"])),
        outputs=outputs,
        differences=_differences(plan),
        launched=launched,
        collector=yaml.safe_load(collector),
    )


def _types(module: Mapping[str, Any]) -> Iterator[str]:
    for resource in module.get("resources", ()):
        if resource["mode"] == "managed":
            yield resource["type"]
    for below in module.get("child_modules", ()):
        yield from _types(below)


def _differences(plan: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return by type of resource which attributes a plan would change."""
    found: dict[str, set[str]] = {}
    for one in plan["resource_changes"]:
        change = one["change"]
        if change["actions"] == ["update"]:
            found.setdefault(one["type"], set()).update(_changed(change))
        elif change["actions"] != ["no-op"]:
            found[one["address"]] = {*change["actions"]}
    return found


def _changed(change: Mapping[str, Any]) -> set[str]:
    before, after = change["before"] or {}, change["after"] or {}
    unknown = {name for name, is_unknown in change["after_unknown"].items() if is_unknown is True}
    return unknown | {
        name for name in {*before, *after} - unknown if before.get(name) != after.get(name)
    }


def _launch(aws: AwsServer) -> Launched:
    """Start and end one worker in the first pool, as the launcher would."""
    ecs, iam = aws.client("ecs"), aws.client("iam")
    told = _environment(ecs, "tidepool-controller")["TIDEPOOL_POOLS"]
    config = decode(told)
    pool = config.pools[0]
    cloud = Cloud(connect(), config)
    asleep = cloud.observe(())

    cloud.carry_out(Raise(pool.group, 1), 7)
    (instance,) = cloud.observe(()).groups[pool.group].instances
    cloud.carry_out(Tag((instance.id,)), 7)
    _join(aws, config.cluster, instance.id)
    started = cloud.carry_out(Run(pool.name, pool.node_ids()[0], instance.id, "a" * 32), 7)
    assert isinstance(started, Started)
    awake = cloud.observe(())
    (task,) = ecs.describe_tasks(cluster=config.cluster, tasks=[started.task], include=["TAGS"])[
        "tasks"
    ]

    cloud.carry_out(Stop(started.task, "idle"), 7)
    cloud.carry_out(End(pool.group, instance.id, "empty"), 7)
    return Launched(
        asleep=asleep,
        awake=awake,
        task=task,
        rested=cloud.observe(()),
        calls={f"{_service(name)}:{name}" for name, outcome in cloud.calls if outcome == "ok"},
        allowed={*_allowed(iam, "tidepool-controller")},
    )


def _environment(ecs: Any, family: str) -> dict[str, str]:
    definition = ecs.describe_task_definition(taskDefinition=family)["taskDefinition"]
    (container,) = definition["containerDefinitions"]
    return {variable["name"]: variable["value"] for variable in container["environment"]}


def _join(aws: AwsServer, cluster: str, instance_id: str) -> None:
    """Do what the ECS agent of an instance would."""
    document = {"instanceId": instance_id, "region": REGION, "accountId": "123456789012"}
    aws.client("ecs").register_container_instance(
        cluster=cluster, instanceIdentityDocument=json.dumps(document)
    )


def _service(call: str) -> str:
    if call == "CreateTags":
        return "ec2"
    return "autoscaling" if "AutoScaling" in call or call == "SetDesiredCapacity" else "ecs"


def _allowed(iam: Any, role: str) -> Iterator[str]:
    documents = [
        iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
        for name in iam.list_role_policies(RoleName=role)["PolicyNames"]
    ]
    for attached in iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]:
        arn = attached["PolicyArn"]
        version = iam.get_policy(PolicyArn=arn)["Policy"]["DefaultVersionId"]
        found = iam.get_policy_version(PolicyArn=arn, VersionId=version)
        documents.append(found["PolicyVersion"]["Document"])
    for document in documents:
        for statement in document["Statement"]:
            actions = statement["Action"]
            yield from [actions] if isinstance(actions, str) else actions


def test_destroy_leaves_nothing(life: Life) -> None:
    assert life.after - life.before == set()
    assert life.before - life.after == set()


def test_census_sees_all_that_an_apply_makes(life: Life) -> None:
    assert not aws_census.blind_to(life.types)
    assert not aws_census.not_shown(life.applied - life.before, life.types)


def test_second_plan_changes_only_what_moto_does_not_tell(life: Life) -> None:
    # Equal: a reason that holds no longer is to go.
    assert life.differences == {
        kind: attributes for kind, (attributes, _) in _UNTOLD_BY_MOTO.items()
    }


def test_pools_are_where_their_gpus_are(life: Life) -> None:
    zones = life.outputs["zones"]
    assert zones == {
        "small": [f"{REGION}{letter}" for letter in "abcdf"],
        "large": [f"{REGION}{letter}" for letter in "abcd"],
    }
    subnets = {pool["name"]: len(pool["subnets"]) for pool in life.outputs["pools"]}
    assert subnets == {"small": 5, "large": 4}


def test_launcher_starts_and_ends_a_worker_in_what_was_applied(life: Life) -> None:
    launched = life.launched
    group = f"tidepool-{life.outputs['pools'][0]['name']}"
    assert {(seen.desired, seen.instances) for seen in launched.asleep.groups.values()} == {(0, ())}
    assert launched.awake.groups[group].desired == 1
    (task,) = launched.awake.tasks
    assert task.epoch == 7
    (told,) = launched.task["overrides"]["containerOverrides"]
    assert told["environment"] == [{"name": "TIDEPOOL_NODE_ID", "value": task.node_id}]
    assert launched.rested.groups[group].desired == 0
    assert launched.rested.groups[group].instances == ()
    assert all(seen.is_stopped for seen in launched.rested.tasks)


def test_controller_may_do_what_its_launcher_does(life: Life) -> None:
    assert life.launched.calls
    assert life.launched.calls <= life.launched.allowed


def test_doctor_knows_what_the_provider_calls(life: Life) -> None:
    assert life.planned == life.types
    known = {kind: {*actions} for kind, actions in known_actions().calls.items()}
    assert life.calls == known


def test_collector_scrapes_as_prometheus_would(life: Life) -> None:
    scraped = life.collector["receivers"]["prometheus"]["config"]
    written = yaml.safe_load((_PROMETHEUS / "prometheus.yml").read_text())
    assert scraped["scrape_configs"] == written["scrape_configs"]
    assert scraped["global"]["scrape_interval"] == written["global"]["scrape_interval"]
