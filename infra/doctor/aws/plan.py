"""Whether we may do what a plan of Terraform is going to do, before it makes anything.

IAM is asked what it would say (SimulatePrincipalPolicy) of every action that the AWS provider
calls for the types of resource in the plan, until it destroys them again.  terraform_actions.json
has them: `calls` as the provider was seen to call them, `also` what AWS asks beside a call, such
as iam:PassRole, by its documentation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from botocore.exceptions import BotoCoreError, ClientError

from infra.doctor.aws.refusals import refusal
from infra.doctor.aws.session import Aws
from infra.doctor.findings import Finding, ok, warning, wrong

_TABLE: Final = Path(__file__).with_name("terraform_actions.json")
PLAN_BYTES_MAX: Final = 256 << 20
_AT_ONCE: Final = 50  # actions of one simulation
_MADE_BY: Final = "make it with `terraform plan -out=tfplan; terraform show -json tfplan`"
_NAMED_MAX: Final = 8  # of the actions of one service


class BadPlan(ValueError):
    """A file is no plan; the text says which and how to make one."""


class Actions(msgspec.Struct, frozen=True):
    """By type of resource the actions that IAM knows, as policies name them."""

    calls: dict[str, tuple[str, ...]]
    also: dict[str, tuple[str, ...]]

    def knows(self, kind: str) -> bool:
        """Whether anything is known of a type."""
        return kind in self.calls or kind in self.also

    def of(self, kinds: Iterable[str]) -> list[str]:
        """Return what is needed for some types, each once, by service."""
        found = {
            action
            for kind in kinds
            for action in (*self.calls.get(kind, ()), *self.also.get(kind, ()))
        }
        return sorted(found)


class _Change(msgspec.Struct):
    actions: tuple[str, ...]


class _Resource(msgspec.Struct):
    mode: str
    type: str
    change: _Change


class _Plan(msgspec.Struct):
    """https://developer.hashicorp.com/terraform/internals/json-format: what is read of it."""

    format_version: Annotated[str, msgspec.Meta(pattern=r"^[01]\.")]
    resource_changes: tuple[_Resource, ...] = ()


def known_actions() -> Actions:
    """Return the table."""
    return msgspec.json.decode(_TABLE.read_bytes(), type=Actions)


def read_plan(path: Path) -> list[str]:
    """Return the types of resource that a plan makes, changes or ends.

    Raises:
        BadPlan: it cannot be read, or is none.
    """
    try:
        if path.stat().st_size > PLAN_BYTES_MAX:
            raise BadPlan(f"{path} is larger than {PLAN_BYTES_MAX >> 20} MiB; {_MADE_BY}")
        plan = msgspec.json.decode(path.read_bytes(), type=_Plan)
    except OSError as error:
        raise BadPlan(f"{path} cannot be read: {error.strerror}; {_MADE_BY}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadPlan(f"{path} is not the JSON of a plan: {error}; {_MADE_BY}") from None
    return sorted(
        {
            one.type
            for one in plan.resource_changes
            if one.mode == "managed" and one.change.actions != ("no-op",)
        }
    )


def examine(aws: Aws, kinds: Sequence[str]) -> list[Finding]:
    """Look whether we may do all that the resources of these types take."""
    table = known_actions()
    findings = []
    if unknown := [kind for kind in kinds if not table.knows(kind)]:
        text = f"which rights these take is not known here: {', '.join(unknown)}"
        findings.append(warning("plan", text, "see them in the documentation of their services"))
    actions = table.of(kinds)
    try:
        who = _principal(aws)
        if who is None:
            text = f"the account's root may do all {len(actions)} actions that the plan takes"
            do = "apply as somebody else: what is root's cannot be limited"
            return [*findings, warning("plan", text, do)]
        decided = _simulated(aws.client("iam"), who, actions)
    except (ClientError, BotoCoreError) as error:
        why = refusal(error, "iam:SimulatePrincipalPolicy")
        text = f"the rights that the plan takes could not be looked at: {why.why}"
        return [*findings, warning("plan", text, why.do)]
    return [*findings, *judged(decided)]


def judged(decided: Mapping[str, str]) -> Iterator[Finding]:
    """Name what is not allowed, service by service.

    >>> list(judged({"iam:GetRole": "allowed", "iam:PassRole": "implicitDeny"}))[0].found
    'not allowed, of iam: PassRole'
    """
    denied: dict[str, list[str]] = {}
    for action, said in decided.items():
        if said != "allowed":
            service, _, name = action.partition(":")
            denied.setdefault(service, []).append(name)
    for service, names in denied.items():
        shown = ", ".join(names[:_NAMED_MAX])
        more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
        yield wrong(
            "plan",
            f"not allowed, of {service}: {shown}{more}",
            "let this identity have them before `terraform apply`; what a policy allows for some "
            "names, or under a condition, counts here as not allowed",
        )
    if not denied:
        yield ok("plan", f"all {len(decided)} actions that it takes are allowed")


def _principal(aws: Aws) -> str | None:
    """Return whose policies count, as IAM names them; None: the root user."""
    arn: str = aws.client("sts").get_caller_identity()["Arn"]
    start, _, name = arn.rpartition(":")
    if name == "root":
        return None
    if not name.startswith("assumed-role/"):
        return arn
    role = name.split("/")[1]
    try:
        # A role may have a path, which the ARN of its session does not have.
        found: str = aws.client("iam").get_role(RoleName=role)["Role"]["Arn"]
    except ClientError:
        return f"{start.replace(':sts:', ':iam:')}:role/{role}"
    return found


def _simulated(iam: Any, who: str, actions: Sequence[str]) -> dict[str, str]:
    pages = iam.get_paginator("simulate_principal_policy")
    return {
        one["EvalActionName"]: one["EvalDecision"]
        for start in range(0, len(actions), _AT_ONCE)
        for page in pages.paginate(
            PolicySourceArn=who, ActionNames=list(actions[start : start + _AT_ONCE])
        )
        for one in page["EvaluationResults"]
    }
