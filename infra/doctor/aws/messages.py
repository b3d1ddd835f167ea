"""The queue that the bucket tells of its changes, and whether it is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from infra.doctor.aws.refusals import refusal
from infra.doctor.aws.session import Aws
from infra.doctor.findings import Finding, ok, warning, wrong

WAITING_MAX: Final = 1000  # of messages that nobody takes
FOLLOWED: Final = (
    ("endpoints/", ""),
    ("keys.json", ""),
    ("builds/", ""),
    ("models/", "/manifest.json"),
)


def examine(aws: Aws, url: str, bucket: str, prefix: str) -> list[Finding]:
    """Look at a queue, and at what a bucket tells it of the registry below `prefix`."""
    try:
        found: Mapping[str, str] = aws.client("sqs").get_queue_attributes(
            QueueUrl=url, AttributeNames=["QueueArn", "ApproximateNumberOfMessages"]
        )["Attributes"]
    except (ClientError, BotoCoreError, ValueError) as error:
        why = refusal(error, "sqs:GetQueueAttributes")
        if why.kind == "denied":
            return [warning("queue", f"{url} could not be looked at: {why.why}", why.do)]
        do = "give the URL that `aws sqs list-queues` tells, in the region of this environment"
        return [wrong("queue", f"{url}: {why.why}", do)]
    waiting = int(found.get("ApproximateNumberOfMessages", "0"))
    if waiting > WAITING_MAX:
        findings = [
            warning(
                "queue",
                f"about {waiting} messages wait: no controller takes them",
                "start `tidepool controller` with --notifications, or look at its log",
            )
        ]
    else:
        findings = [ok("queue", f"about {waiting} messages wait")]
    return [*findings, *_told(aws, found["QueueArn"], bucket, prefix)]


def _told(aws: Aws, arn: str, bucket: str, prefix: str) -> list[Finding]:
    try:
        answer = aws.client("s3").get_bucket_notification_configuration(Bucket=bucket)
    except (ClientError, BotoCoreError) as error:
        why = refusal(error, "s3:GetBucketNotification")
        return [warning("queue", f"whether {bucket} tells it: {why.why}", why.do)]
    rules = [one for one in answer.get("QueueConfigurations", ()) if one["QueueArn"] == arn]
    missing = untold(rules, prefix)
    if not missing:
        return [ok("queue", f"{bucket} tells it of every change")]
    return [
        wrong(
            "queue",
            f"{bucket} does not tell it of {', '.join(missing)}: such changes are seen after "
            "minutes",
            f"add a notification of the bucket for s3:ObjectCreated:* and s3:ObjectRemoved:*, "
            f"prefix {missing[0]}, to {arn}",
        )
    ]


def untold(rules: Iterable[Mapping[str, Any]], prefix: str) -> list[str]:
    """Return the kinds of keys of which no rule tells."""
    known = [(_filters(rule), set(rule.get("Events", ()))) for rule in rules]
    return [
        prefix + begin
        for begin, end in FOLLOWED
        if not any(
            (prefix + begin).startswith(begins)
            and end.endswith(ends)
            and {"s3:ObjectCreated:*", "s3:ObjectRemoved:*"} <= events
            for (begins, ends), events in known
        )
    ]


def _filters(rule: Mapping[str, Any]) -> tuple[str, str]:
    found = rule.get("Filter", {}).get("Key", {}).get("FilterRules", ())
    named = {one["Name"].lower(): one["Value"] for one in found}
    return named.get("prefix", ""), named.get("suffix", "")
