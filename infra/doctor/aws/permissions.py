"""Whether a tier may do what it needs with the bucket; nothing is written.

A read is of a key that nobody has: who may read is told that it is not there, who may not that it
is forbidden.  A write has a condition that never holds, so that who may write is told that it does
not hold.  That a server honours conditions is seen on names of our own first: one that does not is
no registry, and would lose a document.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from infra.doctor.aws.needs import NEEDS, probe_key
from infra.doctor.aws.refusals import code_of, refusal, status_of
from infra.doctor.findings import Finding, ok, wrong

_NO_ETAG: Final = '"00000000000000000000000000000000"'  # of no content


def permissions(s3: Any, bucket: str, prefix: str, tier: str) -> list[Finding]:
    """Look at what a tier may do, and name every action that it lacks."""
    needs = NEEDS[tier]
    findings: list[Finding] = []
    with contextlib.suppress(_Stop):
        findings += _list(s3, bucket, prefix)
        findings += _reads(s3, bucket, prefix, needs.reads)
        if not findings and any(kind.startswith("models/") for kind in needs.reads):
            findings += _decrypts(s3, bucket, f"{prefix}models/")
        # Those with a name that nobody has come first.
        findings += _writes(s3, bucket, prefix, sorted(needs.writes, key=lambda k: "*" not in k))
    if findings:
        return findings
    count = len(needs.reads) + len(needs.writes)
    return [ok("permissions", f"all of {tier}: to list, and {count} kinds of keys")]


class _Stop(Exception):
    """Nothing more can be learned."""


def _list(s3: Any, bucket: str, prefix: str) -> list[Finding]:
    try:
        s3.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
    except (ClientError, BotoCoreError) as error:
        return [_named(error, "s3:ListBucket", f"arn:aws:s3:::{bucket}")]
    return []


def _reads(s3: Any, bucket: str, prefix: str, kinds: tuple[str, ...]) -> list[Finding]:
    findings: list[Finding] = []
    for kind in kinds:
        try:
            s3.get_object(Bucket=bucket, Key=prefix + probe_key(kind), Range="bytes=0-0")
        except (ClientError, BotoCoreError) as error:
            if not (isinstance(error, ClientError) and status_of(error) in (404, 416)):
                findings.append(_named(error, "s3:GetObject", _arn(bucket, prefix, kind)))
    return findings


def _decrypts(s3: Any, bucket: str, folder: str) -> list[Finding]:
    """Read a byte of what is there: what is missing tells nothing of the key that encrypts it."""
    listed = s3.list_objects_v2(Bucket=bucket, Prefix=folder, MaxKeys=1).get("Contents", ())
    for one in listed:
        try:
            s3.get_object(Bucket=bucket, Key=one["Key"], Range="bytes=0-0")
        except ClientError as error:
            if status_of(error) != 403:
                continue
            said = error.response.get("Error", {}).get("Message", "")
            return [
                wrong(
                    "permissions",
                    f"{one['Key']} is there and cannot be read, though its kind may be: {said}",
                    "allow kms:Decrypt (and kms:GenerateDataKey to write) on the bucket's key",
                )
            ]
    return []


def _writes(s3: Any, bucket: str, prefix: str, kinds: list[str]) -> list[Finding]:
    findings: list[Finding] = []
    is_proven = False
    for kind in kinds:
        key = prefix + probe_key(kind)
        if "*" not in kind and not is_proven:
            continue  # a name that somebody has: never risked
        try:
            s3.put_object(Bucket=bucket, Key=key, Body=b"", IfMatch=_NO_ETAG)
        except (ClientError, BotoCoreError) as error:
            if isinstance(error, ClientError) and status_of(error) in (404, 409, 412):
                is_proven = True
            elif isinstance(error, ClientError) and _is_ignorant(error):
                return [*findings, _no_conditions(bucket)]
            else:
                findings.append(_named(error, "s3:PutObject", _arn(bucket, prefix, kind)))
            continue
        with contextlib.suppress(ClientError, BotoCoreError):
            s3.delete_object(Bucket=bucket, Key=key)
        return [*findings, _no_conditions(bucket)]
    return findings


def _is_ignorant(error: ClientError) -> bool:
    return status_of(error) == 501 or code_of(error) == "NotImplemented"


def _no_conditions(bucket: str) -> Finding:
    return wrong(
        "bucket",
        f"{bucket}: this server does not honour conditional writes (If-Match), so that two writers "
        "would undo each other's documents",
        "use Amazon's S3, or a server and release that has them, e.g. SeaweedFS 4.48",
    )


def _named(error: Exception, action: str, what: str) -> Finding:
    why = refusal(error, action)
    if why.kind == "denied":
        return wrong(
            "permissions", f"{action} on {what} is not allowed", f"allow {action} on {what}"
        )
    if why.is_of_credentials:
        raise _Stop from error
    return wrong("permissions", f"{what}: {why.why}", why.do)


def _arn(bucket: str, prefix: str, kind: str) -> str:
    return f"arn:aws:s3:::{bucket}/{prefix}{kind}"
