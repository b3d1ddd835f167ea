"""Who we are to AWS, and in which region."""

from __future__ import annotations

import difflib
import os
from typing import Final

from botocore.exceptions import BotoCoreError, ClientError

from infra.doctor.aws.refusals import LOG_IN, code_of, refusal, status_of
from infra.doctor.aws.session import Aws
from infra.doctor.findings import Finding, ok, wrong

SET_REGION: Final = "set AWS_DEFAULT_REGION, to the region of the bucket and the fleet"


def examine(aws: Aws) -> list[Finding]:
    """Look at region and credentials; nothing else is worth a look where one is wrong."""
    try:
        found = aws.session.get_credentials()
        if found is not None:
            found.get_frozen_credentials()
    except (BotoCoreError, ValueError) as error:
        return [wrong("credentials", str(error), LOG_IN)]
    if found is None:
        return [wrong("credentials", "there are none: nowhere where boto3 looks", LOG_IN)]
    where = region(aws)
    return [where] if where.state == "wrong" else [where, identity(aws, found.method)]


def region(aws: Aws) -> Finding:
    """Look at the region that boto3 takes."""
    name = aws.region
    try:
        if not aws.is_amazons("s3"):
            return ok("region", f"{name or 'none'}; S3 is not Amazon's here, so any is good")
    except (BotoCoreError, ValueError) as error:
        return wrong("region", f"{name!r} leads to no endpoint: {error}", SET_REGION)
    if not name:
        if found := os.environ.get("AWS_REGION"):
            do = f"set AWS_DEFAULT_REGION={found}"
            return wrong("region", f"AWS_REGION={found} is set, which boto3 does not read", do)
        return wrong("region", "none is set", SET_REGION)
    known = known_regions(aws)
    if name in known:
        return ok("region", name)
    near = " or ".join(difflib.get_close_matches(name, known))
    hint = f"did you mean {near}? " if near else ""
    return wrong("region", f"{name!r} is none that is known", f"{hint}{SET_REGION}")


def known_regions(aws: Aws) -> list[str]:
    """Return every region of AWS that boto3 knows."""
    session = aws.session
    return sorted(
        name
        for partition in session.get_available_partitions()
        for name in session.get_available_regions("ec2", partition)
    )


def identity(aws: Aws, method: str) -> Finding:
    """Look at who we are; `method` says where the credentials were found."""
    try:
        if aws.is_amazons("sts") and not aws.is_amazons("s3"):
            return ok("credentials", f"from {method}, for a server that is not Amazon's")
        found = aws.client("sts").get_caller_identity()
    except (BotoCoreError, ClientError, ValueError) as error:
        if isinstance(error, ClientError) and not _is_sts(error):
            return ok("credentials", f"from {method}; this server tells nobody who they are")
        why = refusal(error, "sts:GetCallerIdentity")
        return wrong("credentials", f"{why.why} (from {method})", why.do)
    return ok("credentials", f"{found['Arn']}, from {method}")


def _is_sts(error: ClientError) -> bool:
    """Tell whether a server that refuses knows what it was asked."""
    return status_of(error) in (400, 401, 403) and code_of(error) not in (
        *("InvalidAction", "NotImplemented", "MethodNotAllowed", "InvalidRequest", "404", "405"),
    )
