"""The registry's bucket: is it there, here, and safe; may we use it; is the clock right."""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from infra.doctor.aws.permissions import permissions
from infra.doctor.aws.refusals import SET_CLOCK, code_of, refusal, status_of
from infra.doctor.aws.session import Aws
from infra.doctor.findings import Finding, ok, warning, wrong

SKEW_S_MAX: Final = 300.0  # signatures are good for 5 minutes at some services, 15 at S3
SKEW_S_GOOD: Final = 30.0
_NEVER_EXPIRES: Final = ("engines/", "models/", "blobs/", "endpoints/", "control/", "keys.json")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
# What servers other than Amazon's say to what they do not have.
_UNKNOWN_TO_IT: Final = frozenset({"NotImplemented", "MethodNotAllowed", "XNotImplemented"})


def examine(aws: Aws, bucket: str, prefix: str, tier: str) -> list[Finding]:
    """Look at a bucket.

    Args:
        prefix: of the registry; empty, or ending in a slash.
        tier: whose permissions are needed, of `needs.NEEDS`.
    """
    s3 = aws.client("s3")
    head, answer = _head(s3, aws, bucket)
    findings = [head, *_clock(answer)]
    if head.state == "wrong":
        return findings
    findings += permissions(s3, bucket, prefix, tier)
    if tier != "operator":
        return findings  # processes need not see how the bucket is kept
    for look in (_versioning, _public, _lifecycle):
        findings += _asked(look, s3, bucket, prefix)
    return findings


def _head(s3: Any, aws: Aws, bucket: str) -> tuple[Finding, Mapping[str, Any]]:
    """Ask whether the bucket is there; return also what came back."""
    if _NAME.fullmatch(bucket) is None:
        do = "names of buckets have 3 to 63 of a-z, 0-9, dots and hyphens"
        return wrong("bucket", f"{bucket!r} is no name of a bucket", do), {}
    try:
        answer = s3.head_bucket(Bucket=bucket)["ResponseMetadata"]
    except ClientError as error:
        answer = error.response.get("ResponseMetadata", {})
        return _refused(error, s3, aws, bucket), answer
    except (BotoCoreError, ValueError) as error:
        why = refusal(error, "s3:ListBucket")
        return wrong("bucket", f"{bucket}: {why.why}", why.do), {}
    there = answer.get("HTTPHeaders", {}).get("x-amz-bucket-region", "")
    if there and aws.region and there != aws.region:
        return _elsewhere(bucket, there, aws.region), answer
    return ok("bucket", f"{bucket} is there{f', in {there}' if there else ''}"), answer


def _refused(error: ClientError, s3: Any, aws: Aws, bucket: str) -> Finding:
    """Say what a refused HEAD means; only status and headers tell."""
    status = status_of(error)
    headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    there = headers.get("x-amz-bucket-region", "")
    if status == 404:
        return wrong(
            "bucket",
            f"there is no bucket {bucket}",
            f"check its name, or make it: `aws s3 mb s3://{bucket}`, or infra/terraform",
        )
    if there and there != aws.region:
        return _elsewhere(bucket, there, aws.region or "none")
    if status in (301, 307):
        do = "set AWS_DEFAULT_REGION to the bucket's region (see it in the console)"
        return wrong("bucket", f"{bucket} is in another region than {aws.region}", do)
    if status in (400, 403):
        return _told_at_length(s3, bucket)
    why = refusal(error, "s3:ListBucket")
    return wrong("bucket", f"{bucket}: {why.why}", why.do)


def _told_at_length(s3: Any, bucket: str) -> Finding:
    """Ask in a way that is answered with words, where a HEAD was refused."""
    try:
        s3.list_objects_v2(Bucket=bucket, MaxKeys=0)
    except ClientError as error:
        why = refusal(error, "s3:ListBucket")
        if why.kind != "denied":
            return wrong("bucket", f"{bucket}: {why.why}", why.do)
    except BotoCoreError as error:
        why = refusal(error, "s3:ListBucket")
        return wrong("bucket", f"{bucket}: {why.why}", why.do)
    else:
        return ok("bucket", f"{bucket} is there")
    return wrong(
        "bucket",
        f"{bucket}: s3:ListBucket is not allowed, or the bucket is another account's",
        f"allow s3:ListBucket on arn:aws:s3:::{bucket}, or choose another name: all accounts "
        "share them",
    )


def _elsewhere(bucket: str, there: str, here: str) -> Finding:
    return wrong(
        "bucket",
        f"{bucket} is in {there}, and this environment in {here}: every model would cross regions, "
        "slowly and for money",
        f"set AWS_DEFAULT_REGION={there}, or take a bucket in {here}",
    )


def _clock(answer: Mapping[str, Any]) -> list[Finding]:
    """Hold this machine's clock against the Date of an answer that has just come."""
    date = answer.get("HTTPHeaders", {}).get("date", "")
    if not date:
        return []
    try:
        there_s = email.utils.parsedate_to_datetime(date).timestamp()
    except ValueError:
        return []
    return [clock(time.time() - there_s)]


def clock(ahead_s: float) -> Finding:
    """Judge how far this machine's clock is ahead of the store's.

    >>> clock(-400.0).state
    'wrong'
    """
    text = f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the store's"
    if abs(ahead_s) > SKEW_S_MAX:
        return wrong("clock", f"{text}: signatures are refused", SET_CLOCK)
    if abs(ahead_s) > SKEW_S_GOOD:
        return warning("clock", text, SET_CLOCK)
    return ok("clock", f"within {SKEW_S_GOOD:.0f} s of the store's")


def _asked(look: Any, s3: Any, bucket: str, prefix: str) -> list[Finding]:
    """Look, and pass over what this server does not have, or we may not see."""
    try:
        found: list[Finding] = look(s3, bucket, prefix)
    except ClientError as error:
        if code_of(error) in _UNKNOWN_TO_IT or status_of(error) in (405, 501):
            return []
        action = _ACTIONS[look]
        why = refusal(error, action)
        return [warning("bucket", f"{bucket} could not be looked at: {why.why}", why.do)]
    return found


def _versioning(s3: Any, bucket: str, _: str) -> list[Finding]:
    status = s3.get_bucket_versioning(Bucket=bucket).get("Status", "")
    if status == "Enabled":
        return [ok("bucket", "versioning is on")]
    return [
        warning(
            "bucket",
            "versioning is off: what somebody deletes is gone",
            f"`aws s3api put-bucket-versioning --bucket {bucket} --versioning-configuration "
            "Status=Enabled`",
        )
    ]


def _public(s3: Any, bucket: str, _: str) -> list[Finding]:
    block: Mapping[str, bool] = {}
    try:
        block = s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
    except ClientError as error:
        if code_of(error) != "NoSuchPublicAccessBlockConfiguration":
            raise
    try:
        policy = s3.get_bucket_policy_status(Bucket=bucket)["PolicyStatus"]["IsPublic"]
    except ClientError:  # there is no policy, or the server knows none
        policy = False
    do = (
        f"`aws s3api put-public-access-block --bucket {bucket} "
        "--public-access-block-configuration BlockPublicAcls=true,IgnorePublicAcls=true,"
        "BlockPublicPolicy=true,RestrictPublicBuckets=true`"
    )
    if policy:
        return [wrong("bucket", "its policy lets everybody in", do)]
    names = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
    if missing := [name for name in names if not block.get(name)]:
        text = f"public access is not blocked ({', '.join(missing)})"
        return [warning("bucket", text, do)]
    return [ok("bucket", "public access is blocked")]


def _lifecycle(s3: Any, bucket: str, prefix: str) -> list[Finding]:
    try:
        rules = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    except ClientError as error:
        if code_of(error) == "NoSuchLifecycleConfiguration":
            return []
        raise
    return [
        wrong(
            "bucket",
            f"the lifecycle rule {rule.get('ID', '')!r} deletes what is old, also what is served",
            f"take {prefix}audit/ as its prefix, or let it end noncurrent versions only",
        )
        for rule in rules
        if deletes(rule, prefix)
    ]


def deletes(rule: Mapping[str, Any], prefix: str) -> bool:
    """Tell whether a lifecycle rule would delete current documents, models or engines.

    >>> deletes({"Status": "Enabled", "Expiration": {"Days": 30}, "Filter": {"Prefix": ""}}, "p/")
    True
    >>> deletes({"Status": "Enabled", "Expiration": {"Days": 9}, "Prefix": "p/audit/"}, "p/")
    False
    """
    expires = rule.get("Expiration", {})
    if rule.get("Status") != "Enabled" or not ("Days" in expires or "Date" in expires):
        return False
    filtered = rule.get("Filter", {})
    begins = rule.get("Prefix", filtered.get("Prefix", filtered.get("And", {}).get("Prefix", "")))
    return any(
        begins.startswith(prefix + kept) or (prefix + kept).startswith(begins)
        for kept in _NEVER_EXPIRES
    )


_ACTIONS: Final = {
    _versioning: "s3:GetBucketVersioning",
    _public: "s3:GetBucketPublicAccessBlock",
    _lifecycle: "s3:GetLifecycleConfiguration",
}
