"""The calls to AWS that the launcher makes.

Blocking.  boto3's own retries are off: they hide for how long, and a look that took minutes would
tell of the past.  What looks is tried up to `LOOKS_MAX` times; what changes something once, because
after the next look something else may be right.  No more than `CALLS_PER_S` are made over time,
whatever is asked.  Import this module only to start
instances: it is what loads boto3.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import boto3.session
import msgspec
import structlog
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from pool.aws import described
from pool.aws.config import PoolsConfig
from pool.aws.observed import (
    TAG_EPOCH,
    TAG_FLEET,
    TAG_PLACE,
    TAG_POOL,
    Observed,
    started_by,
)
from pool.aws.steps import Action, End, Lower, Raise, Run, Stop, Tag
from pool.config import NODE_ID

if TYPE_CHECKING:
    from mypy_boto3_autoscaling.client import AutoScalingClient
    from mypy_boto3_ec2.client import EC2Client
    from mypy_boto3_ecs.client import ECSClient

CALLS_PER_S: Final = 1.0  # over time
BURST_CALLS: Final = 20.0  # at once, after a pause
PAGE: Final = 100  # what ECS describes at once
CONNECT_S_MAX: Final = 5.0
READ_S_MAX: Final = 15.0
LOOKS_MAX: Final = 3  # tries of a call that only looks; what changes something is tried once
PAUSE_S: Final = 0.5  # before the second try; doubles

_THROTTLED: Final = frozenset(
    {
        *("Throttling", "ThrottlingException", "ThrottledException", "RequestLimitExceeded"),
        *("TooManyRequestsException", "RequestThrottled", "SlowDown", "EC2ThrottledException"),
    }
)
_log = structlog.get_logger()


class CloudError(Exception):
    """A call did not come through; says which, and why."""


class CloudBusy(CloudError):
    """AWS takes no more calls for now."""


class CloudRefused(CloudError):
    """AWS took the call and will not do that; the same again would be refused as well."""


@dataclass(frozen=True, slots=True)
class Apis:
    """The services of one region."""

    ecs: ECSClient
    autoscaling: AutoScalingClient
    ec2: EC2Client


def connect() -> Apis:
    """Return the services, with region and credentials from boto3's own environment and files.

    Raises:
        CloudError: there is no region.
    """
    config = Config(
        retries={"total_max_attempts": 1},
        connect_timeout=CONNECT_S_MAX,
        read_timeout=READ_S_MAX,
        tcp_keepalive=True,
    )
    session = boto3.session.Session()
    try:
        return Apis(
            session.client("ecs", config=config),
            session.client("autoscaling", config=config),
            session.client("ec2", config=config),
        )
    except (BotoCoreError, ValueError) as error:
        raise CloudError(f"AWS: {error}; set AWS_DEFAULT_REGION and credentials") from None


class Started(msgspec.Struct, frozen=True):
    """A task is there, begun by this call or by one before it with the same token."""

    task: str


class Over(msgspec.Struct, frozen=True):
    """The task with this token has been there, and has ended."""

    task: str


class Done(msgspec.Struct, frozen=True):
    """It is under way."""


Outcome: TypeAlias = Started | Over | Done


class Cloud:
    """AWS as the launcher needs it.

    Args:
        apis: the services.
        config: the pools.
    """

    def __init__(self, apis: Apis, config: PoolsConfig) -> None:
        self._apis = apis
        self._config = config
        # The whole mutable state: calls that may be made at once, and as of when; what was called,
        # and how that went; what is known to fail, so that the log says it once.
        self._lock = threading.Lock()
        self._left = BURST_CALLS
        self._left_s = time.monotonic()
        self.calls: Counter[tuple[str, str]] = Counter()  # (call, ok | throttled | failed) → times
        self._troubles: dict[str, str] = {}

    # looking

    def observe(self, known: Collection[str], *, is_wide: bool = False) -> Observed:
        """Look at everything.

        Args:
            known: tasks that are looked at even if no list names them: ECS's plain list leaves out
                those that were told to end.
            is_wide: list those too, whoever told them.

        Raises:
            CloudError: some call did not come through.
        """
        with self._understood("the descriptions"):
            return self._observe(known, is_wide=is_wide)

    def _observe(self, known: Collection[str], *, is_wide: bool) -> Observed:
        config = self._config
        groups = self._groups()
        listed: list[str] = []
        for status in ("RUNNING", "STOPPED") if is_wide else ("RUNNING",):
            listed += self._pages(
                *("ListTasks", self._apis.ecs.list_tasks, "taskArns", "nextToken"),
                cluster=config.cluster,
                startedBy=started_by(config.fleet),
                desiredStatus=status,
                maxResults=PAGE,
            )
        found = self._describe(
            "DescribeTasks",
            self._apis.ecs.describe_tasks,
            "tasks",
            list(dict.fromkeys((*listed, *known))),
            lambda page: {"tasks": page, "include": ["TAGS"]},
        )
        joined: list[Mapping[str, Any]] = []
        if found or any(group["Instances"] for group in groups):
            arns = self._pages(
                *("ListContainerInstances", self._apis.ecs.list_container_instances),
                *("containerInstanceArns", "nextToken"),
                cluster=config.cluster,
                maxResults=PAGE,
            )
            joined = self._describe(
                "DescribeContainerInstances",
                self._apis.ecs.describe_container_instances,
                "containerInstances",
                arns,
                lambda page: {"containerInstances": page},
            )
        at = {one["containerInstanceArn"]: one.get("ec2InstanceId", "") for one in joined}
        by_id = {one.get("ec2InstanceId", ""): one for one in joined}
        tasks = (described.task_of(one, at) for one in found)
        return Observed(
            {group["AutoScalingGroupName"]: described.group_of(group, by_id) for group in groups},
            tuple(task for task in tasks if not task.is_stopped or task.id in known),
        )

    def _groups(self) -> list[Mapping[str, Any]]:
        names = [pool.group for pool in self._config.pools]
        found = self._pages(
            *("DescribeAutoScalingGroups", self._apis.autoscaling.describe_auto_scaling_groups),
            *("AutoScalingGroups", "NextToken"),
            AutoScalingGroupNames=names,
            MaxRecords=PAGE,
        )
        missing = {*names} - {group["AutoScalingGroupName"] for group in found}
        if missing:
            self._note("missing", f"there is no auto scaling group {', '.join(sorted(missing))}")
        else:
            self._troubles.pop("missing", None)
        return found

    @property
    def trouble(self) -> str:
        """What is known to fail, and what AWS says to that; empty: nothing is."""
        return "; ".join(list(self._troubles.values()))

    def _pages(
        self, name: str, call: Callable[..., Any], field: str, token: str, **arguments: Any
    ) -> list[Any]:
        found: list[Any] = []
        more: dict[str, str] = {}
        while True:
            answer = self._ask(name, partial(call, **arguments, **more))
            found += answer.get(field, ())
            if not answer.get(token):
                return found
            more = {token: answer[token]}

    def _describe(
        self,
        name: str,
        call: Callable[..., Any],
        field: str,
        ids: Sequence[str],
        asked: Callable[[Sequence[str]], Mapping[str, Any]],
    ) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = []
        for at in range(0, len(ids), PAGE):
            arguments = asked(ids[at : at + PAGE])
            answer = self._ask(name, partial(call, cluster=self._config.cluster, **arguments))
            found += answer.get(field, ())
        return found

    # acting

    def carry_out(self, action: Action, epoch: int) -> Outcome:
        """Do one step.

        Args:
            action: the step.
            epoch: of the controller that wants it.

        Raises:
            CloudRefused: AWS will not do that.
            CloudError: it did not come through.
        """
        apis, cluster = self._apis, self._config.cluster
        match action:
            case Raise(group, desired) | Lower(group, desired):
                self._call(
                    "SetDesiredCapacity",
                    lambda: apis.autoscaling.set_desired_capacity(
                        AutoScalingGroupName=group, DesiredCapacity=desired, HonorCooldown=False
                    ),
                )
            case Run():
                return self._run(action, epoch)
            case Stop(task, why):
                reason = f"tidepool: {why}"[:255]
                self._call(
                    "StopTask",
                    lambda: apis.ecs.stop_task(cluster=cluster, task=task, reason=reason),
                )
            case End(_, instance, lowers=lowers):
                self._call(
                    "TerminateInstanceInAutoScalingGroup",
                    lambda: apis.autoscaling.terminate_instance_in_auto_scaling_group(
                        InstanceId=instance, ShouldDecrementDesiredCapacity=lowers
                    ),
                )
            case Tag(instances):
                tags = {TAG_FLEET: self._config.fleet, TAG_EPOCH: str(epoch)}
                self._call(
                    "CreateTags",
                    lambda: apis.ec2.create_tags(
                        Resources=list(instances),
                        Tags=[{"Key": key, "Value": value} for key, value in tags.items()],
                    ),
                )
        return Done()

    def _run(self, action: Run, epoch: int) -> Outcome:
        config = self._config
        pool = next(pool for pool in config.pools if pool.name == action.pool)
        tags = {
            TAG_FLEET: config.fleet,
            TAG_POOL: pool.name,
            TAG_PLACE: action.node_id,
            TAG_EPOCH: str(epoch),
        }
        environment = [{"name": NODE_ID, "value": action.node_id}]
        arguments: dict[str, Any] = {
            "cluster": config.cluster,
            "taskDefinition": pool.task_definition,
            "count": 1,
            "launchType": "EC2",
            "startedBy": started_by(config.fleet),
            "clientToken": action.token,
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
            "overrides": {
                "containerOverrides": [{"name": pool.container, "environment": environment}]
            },
            "networkConfiguration": {
                "awsvpcConfiguration": {
                    "subnets": list(pool.subnets),
                    "securityGroups": list(pool.security_groups),
                }
            },
            "placementConstraints": [
                {"type": "memberOf", "expression": f"ec2InstanceId in ['{action.instance}']"}
            ],
        }
        try:
            answer = self._call("RunTask", lambda: self._apis.ecs.run_task(**arguments))
        except _Conflict as error:
            # The same token with another instance: somebody has started it there.
            return Started(error.task)
        with self._understood("RunTask"):
            for task in answer.get("tasks", ()):
                is_over = task.get("lastStatus") == "STOPPED"
                return Over(task["taskArn"]) if is_over else Started(task["taskArn"])
            reasons = [f"{one.get('reason', '?')}" for one in answer.get("failures", ())]
        raise CloudRefused(f"RunTask: {', '.join(reasons) or 'no task was started'}")

    # every call

    def _ask(self, name: str, call: Callable[[], Any]) -> Mapping[str, Any]:
        """Make a call that changes nothing."""
        for tried in range(1, LOOKS_MAX):
            try:
                return self._call(name, call, is_last=False)
            except CloudRefused:
                raise
            except CloudError:
                time.sleep(PAUSE_S * 2 ** (tried - 1) * random.uniform(0.5, 1.0))
        return self._call(name, call)

    def _call(
        self, name: str, call: Callable[[], Any], *, is_last: bool = True
    ) -> Mapping[str, Any]:
        self._wait_for_turn()
        try:
            answer: Mapping[str, Any] = call()
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            ids: Any = error.response.get("resourceIds") or ()
            if name == "RunTask" and code == "ConflictException" and ids:
                self._count(name, "ok")
                raise _Conflict(ids[0]) from None
            is_throttled = code in _THROTTLED or status == 429
            self._count(name, "throttled" if is_throttled else "failed")
            text = f"{name}: {code}: {error.response.get('Error', {}).get('Message', '')}"
            is_refused = not is_throttled and 400 <= status < 500
            if is_last or is_refused:
                self._note(name, text)
            if is_throttled:
                raise CloudBusy(text) from None
            raise (CloudRefused if is_refused else CloudError)(text) from None
        except (BotoCoreError, ResponseParserError) as error:
            # No answer, no credentials, or an answer that is none.
            self._count(name, "failed")
            if is_last:
                self._note(name, f"{name}: {error}")
            raise CloudError(f"{name}: {error}") from None
        self._count(name, "ok")
        if self._troubles.pop(name, None) is not None:
            _log.info("aws_call_works_again", call=name)
        return answer

    @contextlib.contextmanager
    def _understood(self, name: str) -> Iterator[None]:
        """Let an answer that lacks something count as none."""
        try:
            yield
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            text = f"{name}: AWS's answer is not as it should be: {error!r}"
            self._note(name, text)
            raise CloudError(text) from error

    def _wait_for_turn(self) -> None:
        with self._lock:
            now_s = time.monotonic()
            self._left = min(BURST_CALLS, self._left + (now_s - self._left_s) * CALLS_PER_S) - 1
            self._left_s = now_s
            wait_s = max(0.0, -self._left / CALLS_PER_S)
        if wait_s:
            time.sleep(wait_s)

    def _count(self, name: str, outcome: str) -> None:
        self.calls[name, outcome] += 1

    def _note(self, name: str, text: str) -> None:
        """Log what fails, once until it works or fails otherwise."""
        if self._troubles.get(name) != text:
            self._troubles[name] = text
            _log.warning("aws_call_failed", error=text[:1000])


class _Conflict(Exception):
    """A task has this token already, with other arguments."""

    def __init__(self, task: str) -> None:
        super().__init__(task)
        self.task = task
