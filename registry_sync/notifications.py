"""The queue that a bucket tells of its changes: SQS, with S3's own event notifications in it.

What a message tells is only that something changed; whoever reads the queue looks at the registry
itself then.  So messages may come twice, late or in any order, and one that cannot be read is worth
a look.  Import this module only to open a queue: it is what loads boto3.

Of the bucket four kinds of keys are worth a message (prefix of the registry before each):

    endpoints/   keys.json   builds/   models/ with the suffix /manifest.json

The leader's record is rewritten every 5 s and must not be among them; it is passed over if it is.
"""

from __future__ import annotations

import re
import urllib.parse
from typing import TYPE_CHECKING, Final

import boto3.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from registry_sync.news import News, QueueError, read_notice, together

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient

MESSAGES_MAX: Final = 10  # SQS's own limit of one receive
_CONNECT_S_MAX: Final = 5.0
_READ_S_MAX: Final = 10.0  # beyond the time that was asked to wait
_REGION: Final = re.compile(r"sqs(?:-fips)?\.([a-z0-9-]+)\.(?:amazonaws\.com(?:\.cn)?|api\.aws)")


class Queue:
    """One SQS queue; blocking.

    Args:
        url: of the queue, as AWS tells it.
        registry: s3://bucket/prefix; what happens elsewhere is no news.
        wait_s: how long a receive waits for a first message, 0 to 20.
    """

    def __init__(self, url: str, registry: str, wait_s: int = 20) -> None:
        parts = urllib.parse.urlsplit(registry)
        self.url = url
        self._bucket = parts.netloc
        self._prefix = f"{parts.path.strip('/')}/".removeprefix("/")
        self._wait_s = wait_s
        self._client = _make_client(url, wait_s)

    def receive(self) -> News:
        """Wait for messages and return what they tell; they come again unless they are deleted.

        Raises:
            QueueError: there is no such queue, or it does not answer.
        """
        try:
            answer = self._client.receive_message(
                QueueUrl=self.url, MaxNumberOfMessages=MESSAGES_MAX, WaitTimeSeconds=self._wait_s
            )
        except (BotoCoreError, ClientError, ValueError) as error:
            raise QueueError(f"{self.url}: {error}") from error
        messages = answer.get("Messages", [])
        return together(
            (message["ReceiptHandle"] for message in messages),
            (
                read_notice(message.get("Body", ""), self._bucket, self._prefix)
                for message in messages
            ),
        )

    def delete(self, news: News) -> None:
        """Delete what was received; what cannot be comes again.

        Raises:
            QueueError: see `receive`.
        """
        if not news.receipts:
            return
        try:
            self._client.delete_message_batch(
                QueueUrl=self.url,
                Entries=[
                    {"Id": str(index), "ReceiptHandle": receipt}
                    for index, receipt in enumerate(news.receipts)
                ],
            )
        except (BotoCoreError, ClientError) as error:
            raise QueueError(f"{self.url}: {error}") from error

    def close(self) -> None:
        """Close its connections."""
        self._client.close()


def _make_client(url: str, wait_s: int) -> SQSClient:
    # The queue's region is in its address; elsewhere it would be one that does not exist.
    named = _REGION.fullmatch(urllib.parse.urlsplit(url).hostname or "")
    try:
        return boto3.session.Session().client(
            "sqs",
            region_name=named[1] if named else None,
            config=Config(
                retries={"total_max_attempts": 1, "mode": "standard"},
                connect_timeout=_CONNECT_S_MAX,
                read_timeout=wait_s + _READ_S_MAX,
            ),
        )
    except (BotoCoreError, ValueError) as error:
        raise QueueError(f"{url}: SQS cannot be set up: {error}") from error
