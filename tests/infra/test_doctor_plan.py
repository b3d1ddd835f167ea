"""What the doctor says of a plan of Terraform, before it is applied: moto over HTTP judges."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any

import pytest

from infra.doctor.aws.plan import BadPlan, judged, known_actions, read_plan
from infra.doctor.examine import Patient, amazon
from infra.doctor.findings import Finding
from infra.stack import Node
from tests.support.aws import AwsServer
from tests.support.processes import tidepool
from tests.support.source import ROOT

MODULES = ROOT / "infra" / "terraform"
EVERYTHING = ["*"]
# As AWS's own policy PowerUserAccess is, for whoever may do all but IAM.
POWER_USER: list[tuple[str | list[str], list[str]]] = [
    (["ecs:*", "ec2:*", "s3:*", "sts:*", "elasticloadbalancing:*"], EVERYTHING),
    (["iam:GetRole", "iam:ListAttachedRolePolicies", "iam:SimulatePrincipalPolicy"], EVERYTHING),
]


def plan_of(folder: Path, changes: dict[str, list[str]], **more: Any) -> Path:
    """Write a plan: type of resource → actions."""
    path = folder / "plan.json"
    path.write_text(
        json.dumps(
            {
                "format_version": "1.2",
                "terraform_version": "1.11.4",
                "resource_changes": [
                    {
                        "address": f"{kind}.this",
                        "mode": "managed",
                        "type": kind,
                        "change": {"actions": actions, "after": {"secret": "s3cr3t"}},
                    }
                    for kind, actions in changes.items()
                ],
                **more,
            }
        )
    )
    return path


def look(*kinds: str) -> list[Finding]:
    patient = Patient(Node(Path("none")), "", planned=kinds)
    return [one for one in amazon(patient) if one.check == "plan"]


def test_all_that_the_modules_make_is_known() -> None:
    made = {
        kind
        for path in MODULES.rglob("*.tf")
        for kind in re.findall(r'^resource "(\w+)"', path.read_text(), re.MULTILINE)
    }
    table = known_actions()
    assert made
    assert {kind for kind in made if not table.knows(kind)} == set()
    of_nobody = {*table.calls, *table.also} - made
    assert of_nobody == set()
    for actions in (*table.calls.values(), *table.also.values()):
        assert list(actions) == sorted({*actions})
        assert all(re.fullmatch(r"[a-z0-9-]+:[A-Z][A-Za-z0-9]+", one) for one in actions)


def test_rights_that_are_missing_are_named_before_anything_is_made(
    aws: AwsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = plan_of(tmp_path, {"aws_ecs_cluster": ["create"], "aws_iam_role": ["create"]})
    env = aws.environment_of_who_may(POWER_USER)
    with aws.enforced():
        done = tidepool("doctor", "--data", str(tmp_path / "none"), "--plan", str(path), env=env)
    assert done.code == 1, done.stderr
    (found,) = [line for line in done.stdout.splitlines() if line.split()[1] == "plan"]
    assert found.startswith("wrong")
    assert "not allowed, of iam: CreateRole, CreateServiceLinkedRole, DeleteRole, " in found
    assert " ecs" not in found
    assert "s3cr3t" not in done.stdout


def test_who_may_do_all_is_well(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in aws.environment_of_who_may([("*", EVERYTHING)]).items():
        monkeypatch.setenv(name, value)
    with aws.enforced():
        (found,) = look(*known_actions().calls)
    assert found.state == "ok"
    assert re.fullmatch(r"all 2\d\d actions that it takes are allowed", found.found)


def test_role_is_asked_for_by_its_own_name(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    iam, name = aws.client("iam"), f"of-a-path-{uuid.uuid4().hex}"
    version = {"Version": "2012-10-17"}
    trust = {
        **version,
        "Statement": {"Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole"},
    }
    made = iam.create_role(
        RoleName=name, Path="/of/a/path/", AssumeRolePolicyDocument=json.dumps(trust)
    )["Role"]
    allowed = {"Effect": "Allow", "Action": ["ecs:*", "iam:GetRole"], "Resource": "*"}
    policy = json.dumps({**version, "Statement": [allowed]})
    iam.put_role_policy(RoleName=name, PolicyName="p", PolicyDocument=policy)
    taken = aws.client("sts").assume_role(RoleArn=made["Arn"], RoleSessionName="session")[
        "Credentials"
    ]
    environment = aws.environment_of(taken["AccessKeyId"], taken["SecretAccessKey"])
    environment["AWS_SESSION_TOKEN"] = taken["SessionToken"]
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    (found,) = look("aws_ecs_cluster")
    assert (found.state, found.found) == ("wrong", "not allowed, of iam: CreateServiceLinkedRole")


def test_who_may_not_ask_is_told_what_it_takes(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in aws.environment_of_who_may([("ecs:*", EVERYTHING)]).items():
        monkeypatch.setenv(name, value)
    with aws.enforced():
        (found,) = look("aws_ecs_cluster")
    assert found.state == "warning"
    assert "iam:SimulatePrincipalPolicy is not allowed" in found.found


def test_types_of_others_are_named(aws: AwsServer) -> None:
    unknown, root = look("aws_ecs_cluster", "aws_db_instance")
    assert (unknown.state, "aws_db_instance" in unknown.found) == ("warning", True)
    # moto's own user has no policies to be asked for.
    assert root.state == "warning"


def test_denied_actions_are_told_by_service_and_not_all_of_them() -> None:
    denied = dict.fromkeys([f"iam:A{n}" for n in range(10)] + ["s3:B"], "implicitDeny")
    found = [one.found for one in judged({**denied, "ec2:C": "allowed", "s3:D": "explicitDeny"})]
    assert found == [
        "not allowed, of iam: A0, A1, A2, A3, A4, A5, A6, A7 and 2 more",
        "not allowed, of s3: B, D",
    ]


def test_what_a_plan_leaves_alone_is_not_asked_for(tmp_path: Path) -> None:
    path = plan_of(
        tmp_path, {"aws_vpc": ["no-op"], "aws_lb": ["delete", "create"], "aws_eip": ["update"]}
    )
    assert read_plan(path) == ["aws_eip", "aws_lb"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not the JSON of a plan"),
        ("PK\x03\x04", "is not the JSON of a plan"),
        ("{}", "format_version"),
        ('{"format_version": "4.0"}', "format_version"),
        ('{"format_version": "1.2", "resource_changes": [{"mode": "managed"}]}', "type"),
    ],
)
def test_what_is_no_plan_is_refused_with_the_way_to_one(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(BadPlan, match=said) as refused:
        read_plan(path)
    assert "terraform show -json" in str(refused.value)


def test_plan_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = tidepool("doctor", "--plan", str(tmp_path / "none.json"))
    assert (done.code, "No such file" in done.stderr) == (1, True)
