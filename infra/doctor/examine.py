"""The whole examination: what is looked at, and in which order."""

from __future__ import annotations

import datetime
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from infra.doctor import devices, machine, packages, ports, proofs, running
from infra.doctor.aws import account, bucket, instances, messages, plan, pools
from infra.doctor.aws.session import Aws
from infra.doctor.findings import Finding, is_well, wrong
from infra.stack import Node
from pool.aws.config import PoolsConfig


@dataclass(frozen=True, slots=True)
class Patient:
    """What is to be looked at."""

    node: Node
    registry: str  # s3://bucket/prefix or a folder
    ports: tuple[tuple[str, int, str], ...] = ()  # host, port, and the option that sets it
    device: str = "auto"
    certificates: tuple[Path, ...] = ()
    notifications: str = ""  # URL of a queue
    tier: str = "operator"  # whose permissions are needed
    instance_types: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    pools: PoolsConfig | None = None  # that a controller is to keep
    planned: tuple[str, ...] | None = None  # types of resource that Terraform is to make


def examine(patient: Patient) -> Iterator[Finding]:
    """Look at everything; what is found is told as it is found."""
    data = patient.node.data
    stack = patient.node.read_stack()
    yield from packages.examine()
    yield from machine.examine(data)
    for host, port, flag in patient.ports:
        yield ports.examine(host, port, flag, stack.pid if stack is not None else 0)
    yield from devices.examine(patient.device)
    yield from proofs.examine(data, patient.certificates, datetime.datetime.now(datetime.UTC))
    is_reachable = True
    if is_on_aws(patient):
        found = list(amazon(patient))
        yield from found
        is_reachable = is_well(one for one in found if one.check in _OF_STORE)
    if is_reachable:
        yield from running.registry(data, patient.registry)
        yield from running.stack(patient.node, patient.registry)


_OF_STORE = ("region", "credentials", "bucket", "clock")


def is_on_aws(patient: Patient) -> bool:
    """Tell whether there is anything to ask AWS."""
    asks = (patient.pools is not None, patient.planned is not None, patient.instance_types)
    return any(asks) or patient.registry.startswith("s3://") or bool(patient.notifications)


def amazon(patient: Patient) -> Iterator[Finding]:
    """Look at the account and what of it is used; without credentials there is nothing to see."""
    try:
        aws = Aws()
        found = account.examine(aws)
    except (BotoCoreError, ValueError) as error:
        yield wrong(
            "credentials", str(error), "set AWS_PROFILE to one of `aws configure list-profiles`"
        )
        return
    yield from found
    if not is_well(found):
        return
    parts = urllib.parse.urlsplit(patient.registry)
    prefix = f"{parts.path.strip('/')}/".removeprefix("/")
    if parts.scheme == "s3":
        yield from _without_end(lambda: bucket.examine(aws, parts.netloc, prefix, patient.tier))
    if patient.notifications:
        look = lambda: messages.examine(aws, patient.notifications, parts.netloc, prefix)  # noqa: E731
        yield from _without_end(look)
    if patient.instance_types:
        yield from instances.examine(aws, patient.instance_types, patient.zones)
    if patient.pools is not None:
        yield from pools.examine(aws, patient.pools)
    if patient.planned is not None:
        yield from plan.examine(aws, patient.planned)


def _without_end(look: Callable[[], list[Finding]]) -> list[Finding]:
    """Look; a server that answers with what boto3 does not understand is a finding as well."""
    try:
        return look()
    except (BotoCoreError, ClientError, ValueError) as error:
        do = "see that AWS_ENDPOINT_URL is that of a server that speaks S3"
        return [wrong("bucket", f"the server's answer makes no sense: {error}", do)]
