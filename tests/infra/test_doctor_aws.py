"""What the doctor sees of AWS: moto and SeaweedFS over HTTP, and answers that a proxy spoils."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from infra.doctor.aws import account, bucket, instances, messages, permissions, pools
from infra.doctor.aws.bucket import clock, deletes
from infra.doctor.aws.needs import NEEDS
from infra.doctor.aws.session import Aws
from infra.doctor.examine import Patient, amazon
from infra.doctor.findings import Finding
from infra.stack import Node
from tests.support.aws import REGION, AwsServer
from tests.support.aws_pool import AwsPool
from tests.support.faulty_s3 import (
    BROKEN,
    DENIED,
    ELSEWHERE,
    EXPIRED,
    RESET,
    SKEWED,
    FaultyS3,
    faulty_s3,
)
from tests.support.processes import tidepool
from tests.support.seaweed import S3Server
from tests.support.stack import REPOSITORY
from tests.support.told_bucket import told_bucket

POLICIES = REPOSITORY / "infra/terraform/modules/registry/policies.tf"


@pytest.fixture
def name(aws: AwsServer) -> str:
    """A bucket of the test's own."""
    made = f"tidepool-{uuid.uuid4().hex}"
    aws.client("s3").create_bucket(Bucket=made)
    return made


@pytest.fixture
def proxy(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    with faulty_s3(aws.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


def look(bucket_name: str, **more: object) -> list[Finding]:
    patient = Patient(Node(Path("none")), f"s3://{bucket_name}/fleet", **more)  # type: ignore[arg-type]
    return list(amazon(patient))


def of(findings: list[Finding], check: str, state: str = "wrong") -> list[Finding]:
    return [one for one in findings if (one.check, one.state) == (check, state)]


def only_wrong(findings: list[Finding]) -> Finding:
    (found,) = [one for one in findings if one.state == "wrong"]
    return found


# credentials and region


def test_who_we_are_is_told(aws: AwsServer, name: str) -> None:
    (found,) = of(look(name), "credentials", "ok")
    assert found.found == "arn:aws:sts::123456789012:user/moto, from env"


def test_no_credentials_are_wrong(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    found = only_wrong(look("bucket"))
    assert found.check == "credentials"
    assert "there are none" in found.found
    assert "aws sso login" in found.do


def test_half_of_the_credentials_are_wrong(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "Partial credentials" in only_wrong(look("bucket")).found


def test_profile_that_is_not_there_is_wrong(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "(nobody) could not be found" in only_wrong(look("bucket")).found


@pytest.mark.parametrize(
    ("fault", "said", "way_out"),
    [
        (EXPIRED, "the credentials have expired (ExpiredToken)", "log in again"),
        (RESET, "Connection was closed", "AWS_ENDPOINT_URL"),
        (SKEWED, "this machine's clock is wrong", "set the clock"),
    ],
)
def test_credentials_that_are_refused_are_told_apart(
    proxy: FaultyS3, fault: str, said: str, way_out: str
) -> None:
    proxy.faults.append(fault)
    found = only_wrong(look("bucket"))
    assert (found.check, said in found.found, way_out in found.do) == ("credentials", True, True)


def test_unknown_key_and_wrong_secret_are_told_apart(
    aws: AwsServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = aws.environment_of_who_may([])
    with aws.enforced():
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7NOBODY0")
        assert "the access key is not known" in only_wrong(look(name)).found
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", mine["AWS_ACCESS_KEY_ID"])
        assert "the secret key is wrong" in only_wrong(look(name)).found


@pytest.mark.parametrize(
    ("variables", "said", "way_out"),
    [
        ({}, "none is set", "set AWS_DEFAULT_REGION"),
        ({"AWS_REGION": "eu-west-1"}, "boto3 does not read", "set AWS_DEFAULT_REGION=eu-west-1"),
        ({"AWS_DEFAULT_REGION": "us-esat-1"}, "'us-esat-1' is none", "us-east-1"),
    ],
)
def test_region_that_is_none_is_wrong_before_anybody_is_asked(
    aws: AwsServer,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    said: str,
    way_out: str,
) -> None:
    for variable in ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(variable)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    found = only_wrong(look("bucket"))
    assert (found.check, said in found.found, way_out in found.do) == ("region", True, True)


def test_known_region_is_good(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert account.region(Aws()) == Finding("region", "ok", REGION)


# the bucket


def test_bucket_that_is_there_has_all_that_an_operator_needs(aws: AwsServer, name: str) -> None:
    found = look(name)
    assert [one.check for one in found if one.state == "ok"] == [
        *("region", "credentials", "bucket", "clock", "permissions"),
    ]
    listed = aws.client("s3").list_object_versions(Bucket=name)
    assert "Versions" not in listed  # nothing was written
    assert "DeleteMarkers" not in listed


def test_bucket_that_is_missing_or_has_no_name_is_wrong(aws: AwsServer) -> None:
    assert "there is no bucket tidepool-none" in only_wrong(look("tidepool-none")).found
    assert "is no name of a bucket" in only_wrong(look("Not_a/name")).found


def test_bucket_of_another_region_is_wrong(aws: AwsServer, proxy: FaultyS3, name: str) -> None:
    there = f"{name}-there"
    aws.client("s3", "eu-west-1").create_bucket(
        Bucket=there, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
    )
    found = [only_wrong(look(there))]
    proxy.match = "HEAD "
    proxy.faults.append(ELSEWHERE)  # as S3 itself says it
    found.append(only_wrong(look(name)))
    for one in found:
        assert "is in eu-west-1, and this environment in us-east-1" in one.found
        assert "AWS_DEFAULT_REGION=eu-west-1" in one.do


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ([SKEWED, SKEWED], "clock is wrong"),  # a HEAD is refused without words, so it is a list
        ([EXPIRED, EXPIRED], "credentials have expired"),
        ([RESET], "Connection was closed"),
        ([BROKEN], "500"),
    ],
)
def test_bucket_that_cannot_be_asked_says_why(
    proxy: FaultyS3, name: str, faults: list[str], said: str
) -> None:
    proxy.match = name
    proxy.faults += faults
    found = only_wrong(look(name))
    assert (found.check, said in found.found) == ("bucket", True)


def test_how_a_bucket_is_kept_is_looked_at(aws: AwsServer, name: str) -> None:
    assert {one.found.split(" (")[0] for one in of(look(name), "bucket", "warning")} == {
        "versioning is off: what somebody deletes is gone",
        "public access is not blocked",
    }
    s3 = aws.client("s3")
    s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    blocks = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    s3.put_public_access_block(
        Bucket=name, PublicAccessBlockConfiguration=dict.fromkeys(blocks, True)
    )
    rule = {"ID": "old", "Status": "Enabled", "Expiration": {"Days": 30}}
    keep = {**rule, "Filter": {"Prefix": "fleet/audit/"}}
    s3.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": [keep]})
    assert {one.state for one in look(name)} == {"ok"}
    lose = {**rule, "Filter": {"Prefix": "fleet/"}}
    s3.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": [lose]})
    assert "the lifecycle rule 'old' deletes" in only_wrong(look(name)).found


@pytest.mark.parametrize(
    ("begins", "is_bad"),
    [("", True), ("p/", True), ("p/models/m", True), ("p/audit/", False), ("q/", False)],
)
def test_rule_that_deletes_what_is_served_is_found(begins: str, is_bad: bool) -> None:
    rule = {"Status": "Enabled", "Expiration": {"Days": 1}, "Filter": {"Prefix": begins}}
    assert deletes(rule, "p/") is is_bad
    assert not deletes({**rule, "Status": "Disabled"}, "p/")
    assert not deletes({**rule, "Expiration": {"ExpiredObjectDeleteMarker": True}}, "p/")


@pytest.mark.parametrize(
    ("ahead_s", "state"),
    [(0.0, "ok"), (-29.0, "ok"), (31.0, "warning"), (-301.0, "wrong"), (301.0, "wrong")],
)
def test_clock_is_judged(ahead_s: float, state: str) -> None:
    assert clock(ahead_s).state == state


# permissions


def _allowed(bucket_name: str, tier: str) -> list[tuple[str, list[str]]]:
    arn = f"arn:aws:s3:::{bucket_name}"
    needs = NEEDS[tier]
    return [
        ("s3:ListBucket", [arn]),
        ("s3:GetObject", [f"{arn}/fleet/{kind}" for kind in needs.reads]),
        ("s3:PutObject", [f"{arn}/fleet/{kind}" for kind in needs.writes] or [f"{arn}/none"]),
    ]


@pytest.mark.parametrize("tier", ["controller", "worker"])
def test_tier_that_has_what_it_needs_is_well_and_no_more_than_that(
    aws: AwsServer, name: str, monkeypatch: pytest.MonkeyPatch, tier: str
) -> None:
    for variable, value in aws.environment_of_who_may(_allowed(name, tier)).items():
        monkeypatch.setenv(variable, value)
    with aws.enforced():
        assert not of(look(name, tier=tier), "permissions")
        builder = of(look(name, tier="builder"), "permissions")
    assert f"s3:PutObject on arn:aws:s3:::{name}/fleet/engines/* is not allowed" in [
        one.found for one in builder
    ]
    assert all(one.do.startswith("allow s3:") for one in builder)


def _granted(table: str) -> dict[str, set[str]]:
    """Return what infra/terraform lets each tier do with the keys of a registry."""
    text = POLICIES.read_text()
    (block,) = re.findall(rf"^  {table} = {{\n(.*?)^  }}", text, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^    (\w+) += \[(.*?)\]", block, re.MULTILINE)
    return {tier.replace("_", "-"): set(re.findall(r'"([^"]+)"', keys)) for tier, keys in rows}


@pytest.mark.parametrize("tier", ["edge", "edge-admin", "controller", "worker"])
def test_terraform_grants_what_a_tier_needs_and_no_more(tier: str) -> None:
    # The admin port's rights are added to those of every edge.
    base = {*NEEDS["edge"].reads} if tier == "edge-admin" else set()
    assert {*NEEDS[tier].reads} - base == _granted("may_read")[tier]
    assert {*NEEDS[tier].writes} == _granted("may_write")[tier]


def test_bucket_that_may_not_be_listed_is_named(
    aws: AwsServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in aws.environment_of_who_may([]).items():
        monkeypatch.setenv(variable, value)
    with aws.enforced():
        found = only_wrong(look(name))
    assert "s3:ListBucket is not allowed" in found.found
    assert f"allow s3:ListBucket on arn:aws:s3:::{name}" in found.do


def test_object_that_cannot_be_decrypted_is_told_from_one_that_is_forbidden(
    aws: AwsServer, proxy: FaultyS3, name: str
) -> None:
    key = "fleet/models/m/1/manifest.json"
    aws.client("s3").put_object(Bucket=name, Key=key, Body=b"{}")
    proxy.match = f"GET /{name}/{key}"
    assert not of(look(name), "permissions")
    proxy.faults.append(DENIED)
    found = only_wrong(look(name))
    assert key in found.found
    assert "kms:Decrypt" in found.do


def test_another_server_is_looked_at_as_far_as_it_goes(
    seaweed: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = s3_url.removeprefix("s3://").partition("/")[0]
    assert not [one for one in look(name) if one.state == "wrong"]
    for variable, value in seaweed.reader_environment.items():
        monkeypatch.setenv(variable, value)
    denied = of(look(name), "permissions")
    assert denied
    assert all(one.found.startswith("s3:PutObject on ") for one in denied)


def test_server_that_ignores_conditions_is_no_registry(
    aws: AwsServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3 = aws.client("s3")
    s3.put_object(Bucket=name, Key="fleet/keys.json", Body=b"{}")
    with faulty_s3(aws.endpoint) as proxy:
        proxy.drops = "if-match"
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        found = only_wrong(look(name))
    assert "does not honour conditional writes" in found.found
    assert s3.get_object(Bucket=name, Key="fleet/keys.json")["Body"].read() == b"{}"
    assert s3.list_objects_v2(Bucket=name)["KeyCount"] == 1  # the probe is gone again


def test_name_that_somebody_has_is_not_tried_before_conditions_are_proven(
    aws: AwsServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3 = aws.client("s3")
    s3.put_object(Bucket=name, Key="keys.json", Body=b"{}")
    with faulty_s3(aws.endpoint) as proxy:
        proxy.drops = "if-match"
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        assert permissions._writes(Aws().client("s3"), name, "", ["keys.json"]) == []
    assert s3.get_object(Bucket=name, Key="keys.json")["Body"].read() == b"{}"


# machines and the queue


def test_machines_are_judged_by_zone_kind_and_quota(aws: AwsServer, name: str) -> None:
    found = instances.examine(Aws(), ["g6.xlarge", "g9.huge", "m5.large"], ["us-east-1e"])
    assert [one.found.split(":")[0] for one in found if one.state == "wrong"] == [
        "g6.xlarge is not offered in us-east-1e",
        "g9.huge is not offered in us-east-1, or there is no such type",
        "m5.large is not offered in us-east-1e",
        "m5.large has no NVIDIA GPU",
    ]
    (spot,) = of(found, "quota", "warning")  # 0 vCPUs, as in a new account
    assert "spot: 0 vCPUs, and one g6.xlarge has 4: no spot instance can start" in spot.found
    (good,) = of(found, "quota", "ok")
    assert good.found == "on demand: 8 vCPUs, and one g6.xlarge has 4: up to 2 at once"


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("g6.xlarge", ("L-DB2E81BA", "L-3819A6DF")),
        ("g6e.48xlarge", ("L-DB2E81BA", "L-3819A6DF")),
        ("gr6.4xlarge", ("L-DB2E81BA", "L-3819A6DF")),
        ("p4de.24xlarge", ("L-417A185B", "L-7212CCBC")),
        ("p5en.48xlarge", ("L-417A185B", "L-C4BD4855")),
        ("p6-b200.48xlarge", ("L-417A185B",)),
        ("m7i.large", ()),
        ("", ()),
    ],
)
def test_quotas_are_those_of_the_family(name: str, codes: tuple[str, ...]) -> None:
    assert instances.quotas_of(name) == codes


def test_quota_on_demand_that_starts_nothing_is_wrong() -> None:
    found = instances.quota("on demand", "g6.xlarge", 4, 0, "L-DB2E81BA")
    assert (found.state, "--quota-code L-DB2E81BA" in found.do) == ("wrong", True)


def test_machines_that_may_not_be_looked_at_are_a_warning(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in aws.environment_of_who_may([]).items():
        monkeypatch.setenv(variable, value)
    with aws.enforced():
        (found,) = instances.examine(Aws(), ["g6.xlarge"], [])
    assert (found.state, found.check) == ("warning", "instances")
    assert "ec2:DescribeInstanceTypeOfferings is not allowed" in found.found


def test_queue_is_held_against_what_the_bucket_tells(aws: AwsServer) -> None:
    name, url = told_bucket(aws)
    assert {one.state for one in messages.examine(Aws(), url, name, "fleet/")} == {"ok"}
    arn = f"arn:aws:sqs:{REGION}:123456789012:{name}"
    rule = {
        "QueueArn": arn,
        "Events": ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"],
        "Filter": {"Key": {"FilterRules": [{"Name": "prefix", "Value": "fleet/endpoints/"}]}},
    }
    aws.client("s3").put_bucket_notification_configuration(
        Bucket=name, NotificationConfiguration={"QueueConfigurations": [rule]}
    )
    found = only_wrong(messages.examine(Aws(), url, name, "fleet/"))
    assert "does not tell it of fleet/keys.json, fleet/builds/, fleet/models/" in found.found
    assert arn in found.do


def test_queue_that_is_not_there_is_wrong(aws: AwsServer, name: str) -> None:
    url = f"{aws.endpoint}/123456789012/nobody"
    assert "nobody" in only_wrong(messages.examine(Aws(), url, name, "")).found


def test_bucket_is_not_looked_into_where_it_is_not(aws: AwsServer) -> None:
    assert len(bucket.examine(Aws(), "tidepool-none", "", "operator")) == 2  # it, and the clock


# pools


def pool_with_an_instance(aws: AwsServer) -> AwsPool:
    """Make a pool; asked for an instance of a cluster that had none, moto has no answer."""
    pool = AwsPool(aws)
    pool.scaling.set_desired_capacity(AutoScalingGroupName=pool.name, DesiredCapacity=1)
    pool.join(*pool.instances())
    return pool


def test_pools_of_a_controller_are_held_against_what_is_there(aws: AwsServer) -> None:
    pool = pool_with_an_instance(aws)
    right = pool.config()
    (found,) = list(pools.examine(Aws(), right))
    assert (found.check, found.state) == ("pools", "ok"), found
    for wrong, said in (
        (pool.config(group="gone"), "gpu: there is no auto scaling group gone"),
        (pool.config(task_definition="gone"), "gpu: there is no task definition gone"),
        (pool.config(container="gone"), "has no container gone"),
        (msgspec.structs.replace(right, cluster="gone"), "there is no ECS cluster gone"),
    ):
        assert said in only_wrong(pools.examine(Aws(), wrong)).found
    (found, _) = pools.examine(Aws(), pool.config(instances_max=3))
    assert (found.state, "the group" in found.found) == ("warning", True)


def test_rights_of_a_launcher_that_are_missing_are_named(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = pool_with_an_instance(aws).config()
    looks = {
        *("ecs:ListTasks", "ecs:DescribeTasks", "ecs:ListContainerInstances"),
        *("ecs:DescribeContainerInstances", "autoscaling:DescribeAutoScalingGroups"),
    }
    nobody, looker = (
        aws.environment_of_who_may([]),
        aws.environment_of_who_may([(action, ["*"]) for action in looks]),
    )
    with aws.enforced():
        for variable, value in nobody.items():
            monkeypatch.setenv(variable, value)
        found = pools.examine(Aws(), config)
        assert {one.do.split()[1] for one in found if one.state == "wrong"} == looks
        for variable, value in looker.items():
            monkeypatch.setenv(variable, value)
        found = pools.examine(Aws(), config)
    assert [one.state for one in found] == ["warning", "ok"], found  # it need not see what it runs
    assert "ecs:DescribeTaskDefinition" in found[0].do


def test_document_of_pools_is_looked_at_where_the_controller_is_asked_for(
    aws: AwsServer, tmp_path: Path
) -> None:
    path = tmp_path / "pools.json"
    path.write_bytes(msgspec.json.encode(AwsPool(aws).config(group="gone")))
    ended = tidepool("doctor", "--data", str(tmp_path), "--pools", str(path), "--json")
    assert ended.code == 1, ended
    assert "there is no auto scaling group gone" in ended.stdout
