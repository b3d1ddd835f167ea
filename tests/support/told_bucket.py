"""A bucket whose changes a queue is told of, as infra/terraform makes it."""

from __future__ import annotations

import uuid

from tests.support.aws import REGION, AwsServer

_ACCOUNT = "123456789012"


def told_bucket(aws: AwsServer, *, visibility_s: int = 30) -> tuple[str, str]:
    """Make both; return the bucket's name and the queue's URL.

    Args:
        visibility_s: after so long a message that was received, and not deleted, comes again.
    """
    s3, sqs = aws.client("s3"), aws.client("sqs")
    name = f"told-{uuid.uuid4().hex}"
    s3.create_bucket(Bucket=name)
    queue: str = sqs.create_queue(
        QueueName=name, Attributes={"VisibilityTimeout": str(visibility_s)}
    )["QueueUrl"]
    s3.put_bucket_notification_configuration(
        Bucket=name,
        NotificationConfiguration={
            "QueueConfigurations": [
                {
                    "QueueArn": f"arn:aws:sqs:{REGION}:{_ACCOUNT}:{name}",
                    "Events": ["s3:ObjectCreated:*", "s3:ObjectRemoved:*"],
                }
            ]
        },
    )
    return name, queue
