"""Machines: where a type is offered, and how many the account may start."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from infra.doctor.aws.refusals import code_of, refusal
from infra.doctor.aws.session import Aws
from infra.doctor.findings import Finding, ok, warning, wrong

# Service Quotas' codes of EC2, counted in vCPUs; a new account has 0 of each.
_G: Final = ("L-DB2E81BA", "L-3819A6DF")  # on demand, spot: all G and VT
_P_ON_DEMAND, _P4_SPOT, _P5_SPOT = "L-417A185B", "L-7212CCBC", "L-C4BD4855"
QUOTAS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("g", "gr", "vt"), _G),
    "p5": (_P_ON_DEMAND, _P5_SPOT),
    **dict.fromkeys(("p2", "p3", "p4"), (_P_ON_DEMAND, _P4_SPOT)),
    "p": (_P_ON_DEMAND,),  # newer ones: which quota of spot counts them is not known here
}
_FAMILY: Final = re.compile(r"(([a-z]+)\d+)")


def examine(aws: Aws, types: Sequence[str], zones: Sequence[str]) -> list[Finding]:
    """Look at instance types.

    Args:
        zones: in which they are wanted; empty: any of the region.
    """
    findings = []
    try:
        ec2 = aws.client("ec2")
        for name in types:
            findings += [*_offers(ec2, aws.region, name, zones), *_size(aws, ec2, name)]
    except (ClientError, BotoCoreError, ValueError) as error:
        why = refusal(error, "ec2:DescribeInstanceTypeOfferings")
        findings.append(warning("instances", f"could not be looked at: {why.why}", why.do))
    return findings


def _offers(ec2: Any, region: str, name: str, zones: Sequence[str]) -> list[Finding]:
    pages = ec2.get_paginator("describe_instance_type_offerings").paginate(
        LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": [name]}]
    )
    offered = sorted(one["Location"] for page in pages for one in page["InstanceTypeOfferings"])
    return [offers(name, region, offered, zones)]


def offers(name: str, region: str, offered: Sequence[str], zones: Sequence[str]) -> Finding:
    """Judge where a type is offered."""
    if not offered:
        return wrong(
            "instances",
            f"{name} is not offered in {region}, or there is no such type",
            f"choose another type or region; `aws ec2 describe-instance-type-offerings --region "
            f"REGION --filters Name=instance-type,Values={name}` tells where",
        )
    if missing := [zone for zone in zones if zone not in offered]:
        return wrong(
            "instances",
            f"{name} is not offered in {', '.join(missing)}",
            f"take subnets in {', '.join(offered)}",
        )
    return ok("instances", f"{name} is offered in {', '.join(offered)}")


def _size(aws: Aws, ec2: Any, name: str) -> list[Finding]:
    """Look at what GPUs a type has, and whether the quota lets one start."""
    try:
        (found,) = ec2.describe_instance_types(InstanceTypes=[name])["InstanceTypes"]
    except ClientError as error:
        if code_of(error) == "InvalidInstanceType":
            return []  # told as one that is not offered
        why = refusal(error, "ec2:DescribeInstanceTypes")
        return [warning("instances", f"{name} could not be looked at: {why.why}", why.do)]
    cpus = found["VCpuInfo"]["DefaultVCpus"]
    makers = [one.get("Manufacturer", "") for one in found.get("GpuInfo", {}).get("Gpus", ())]
    findings = []
    if "NVIDIA" not in makers:
        text = f"{name} has no NVIDIA GPU"
        findings.append(wrong("instances", text, "choose a type of the g or p families"))
    for code, kind in zip(quotas_of(name), ("on demand", "spot"), strict=False):
        findings += _quota(aws, code, kind, name, cpus)
    return findings


def quotas_of(name: str) -> tuple[str, ...]:
    """Return the quotas that count a type: on demand, then spot; empty: no GPU's.

    >>> quotas_of("g6.xlarge")[0]
    'L-DB2E81BA'
    >>> quotas_of("m7i.large")
    ()
    """
    family = _FAMILY.match(name)
    if family is None:
        return ()
    return QUOTAS.get(family[1], QUOTAS.get(family[2], ()))


def _quota(aws: Aws, code: str, kind: str, name: str, cpus: int) -> list[Finding]:
    try:
        found = aws.client("service-quotas").get_service_quota(ServiceCode="ec2", QuotaCode=code)
    except (ClientError, BotoCoreError) as error:
        why = refusal(error, "servicequotas:GetServiceQuota")
        text = f"{kind}, {name}: the quota could not be looked at: {why.why}"
        return [warning("quota", text, why.do)]
    return [quota(kind, name, cpus, int(found["Quota"]["Value"]), code)]


def quota(kind: str, name: str, cpus: int, allowed: int, code: str) -> Finding:
    """Judge a quota, in vCPUs, by what one instance takes; a pool can do without spot."""
    text = f"{kind}: {allowed} vCPUs, and one {name} has {cpus}"
    if allowed < cpus:
        do = (
            f"`aws service-quotas request-service-quota-increase --service-code ec2 "
            f"--quota-code {code} --desired-value {cpus}` (it takes hours to days)"
        )
        if kind == "spot":  # which a pool has only where it says so
            return warning("quota", f"{text}: no spot instance can start", f"for spot: {do}")
        return wrong("quota", f"{text}: none can start", do)
    return ok("quota", f"{text}: up to {allowed // cpus} at once")
