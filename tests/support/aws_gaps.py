"""What moto lacks for whole stacks of ours, added to it in its own process.

Of alert managers only that one was made, is there, and is gone again: nobody reads what it is told.
IAM says what moto's own judgement of a user's or a role's policies is, as SimulatePrincipalPolicy
does: of actions on everything, without conditions.
"""

from __future__ import annotations

import json
from typing import Any

from moto.amp import responses, urls
from moto.amp.exceptions import ResourceNotFoundException
from moto.core.responses import ActionResult
from moto.ecs.models import ContainerInstance
from moto.iam.access_control import (
    AssumedRoleAccessKey,
    IAMPolicy,
    IAMUserAccessKey,
    PermissionResult,
)
from moto.iam.responses import IamResponse

_PATH = "{0}/workspaces/(?P<workspace_id>[^/]+)/alertmanager/definition$"
_INSTANCE_MIB = 16384  # a g6.xlarge; moto's instances have 7482 whatever they are
_Answer = tuple[int, dict[str, str], str]


class _NoDefinition(ResourceNotFoundException):
    code = 404


def fill() -> None:
    """Add what is missing: alert managers, simulated policies, instances with memory enough."""
    _add_alert_managers()
    _widen_instances()
    IamResponse.simulate_principal_policy = _simulate


def _simulate(asked: IamResponse) -> ActionResult:
    kind, _, name = asked._get_param("PolicySourceArn").rpartition(":")[2].partition("/")
    name = name.rpartition("/")[2]
    holds = IAMUserAccessKey if kind == "user" else AssumedRoleAccessKey
    holder: Any = holds.__new__(holds)
    holder.account_id, holder.partition = asked.current_account, asked.partition
    holder._owner_user_name = holder._owner_role_name = name
    policies = [IAMPolicy(policy) for policy in holder.collect_policies()]

    def judged(action: str) -> dict[str, Any]:
        said = {policy.is_action_permitted(action) for policy in policies}
        decision = "allowed" if PermissionResult.PERMITTED in said else "implicitDeny"
        if PermissionResult.DENIED in said:
            decision = "explicitDeny"
        return {
            "EvalActionName": action,
            "EvalResourceName": "*",
            "EvalDecision": decision,
            "MatchedStatements": [],
            "MissingContextValues": [],
        }

    names = asked._get_param("ActionNames")
    return ActionResult(
        {"EvaluationResults": [judged(name) for name in names], "IsTruncated": False}
    )


def _widen_instances() -> None:
    begin = ContainerInstance.__init__

    def widened(self: ContainerInstance, *values: Any, **named: Any) -> None:
        begin(self, *values, **named)
        for resource in (*self.registered_resources, *self.remaining_resources):
            if resource["name"] == "MEMORY":
                resource["integerValue"] = _INSTANCE_MIB

    ContainerInstance.__init__ = widened


def _add_alert_managers() -> None:
    told: dict[str, str] = {}  # workspace id → definition, as it was sent

    def workspace_id(asked: responses.PrometheusServiceResponse) -> str:
        return str(asked.path).split("/")[-3]

    def create(asked: responses.PrometheusServiceResponse) -> _Answer:
        told[workspace_id(asked)] = json.loads(asked.body)["data"]
        return 202, {}, json.dumps({"status": {"statusCode": "CREATING"}})

    def describe(asked: responses.PrometheusServiceResponse) -> str:
        found = told.get(workspace_id(asked))
        if found is None:
            raise _NoDefinition("no alert manager", workspace_id(asked), "AlertManagerDefinition")
        is_there = {"statusCode": "ACTIVE"}
        definition = {"data": found, "status": is_there, "createdAt": 0, "modifiedAt": 0}
        return json.dumps({"alertManagerDefinition": definition})

    def delete(asked: responses.PrometheusServiceResponse) -> _Answer:
        told.pop(workspace_id(asked), None)
        return 202, {}, ""

    known = responses.PrometheusServiceResponse
    for name, answer in (("create", create), ("describe", describe), ("delete", delete)):
        setattr(known, f"{name}_alert_manager_definition", answer)
    urls.url_paths[_PATH] = known.dispatch
