"""The queue that a bucket tells of its changes, over HTTP and with S3's own messages."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from registry_sync.news import News, Notice, QueueError, read_notice
from registry_sync.notifications import Queue
from registry_sync.open import open_queue, open_store
from tests.support.aws import AwsServer
from tests.support.told_bucket import told_bucket

URL = "s3://bucket/fleet"


@pytest.fixture(scope="module")
def told(moto: AwsServer) -> tuple[str, str]:
    """A bucket and the URL of its queue."""
    return told_bucket(moto)


@pytest.fixture
def queue(told: tuple[str, str], aws: AwsServer) -> Iterator[Queue]:
    with closing(Queue(told[1], f"s3://{told[0]}/fleet", wait_s=0)) as made:
        yield made


def all_of(queue: Queue) -> list[News]:
    """Take everything that is there."""
    found = []
    while (news := queue.receive()).receipts:
        found.append(news)
        queue.delete(news)
    return found


def test_first_message_of_a_set_up_is_no_event(aws: AwsServer) -> None:
    bucket, url = told_bucket(aws, visibility_s=0)
    with closing(Queue(url, f"s3://{bucket}/fleet", wait_s=0)) as queue:
        news = queue.receive()
        assert len(news.receipts) == 1
        assert (news.is_event, news.is_worth_a_look) == (False, False)
        again = queue.receive()  # what is not deleted comes again
        assert len(again.receipts) == 1
        queue.delete(again)
        assert queue.receive() == News()


WRITTEN = {
    "endpoints/e.json": (True, True, False),
    "endpoints/e@state": (True, True, False),
    "keys.json": (True, True, False),
    "models/m/1/manifest.json": (True, True, False),
    "builds/m/1/sm_80.json": (True, False, True),
    "endpoints/e/state.json": (True, False, False),  # what the controller itself wrote
    "endpoints/e/history/1.json": (True, False, False),
    "control/leader.json": (True, False, False),
}


def test_what_is_written_and_deleted_is_told(queue: Queue, told: tuple[str, str]) -> None:
    all_of(queue)
    with closing(open_store(f"s3://{told[0]}/fleet")) as store:
        for key, expected in WRITTEN.items():
            store.put_new(key, b"{}")
            (news,) = all_of(queue)
            assert (news.is_event, news.is_document, news.is_wish) == expected, key
        store.delete("keys.json")
        (news,) = all_of(queue)
        assert news.is_document


def test_what_is_beside_the_registry_is_not_its(
    queue: Queue, told: tuple[str, str], aws: AwsServer
) -> None:
    all_of(queue)
    aws.client("s3").put_object(Bucket=told[0], Key="fleet2/endpoints/e.json", Body=b"")
    (news,) = all_of(queue)
    assert not news.is_event
    with closing(Queue(told[1], f"s3://{told[0]}", wait_s=0)) as whole:  # no prefix: all of it
        aws.client("s3").put_object(Bucket=told[0], Key="keys.json", Body=b"")
        assert whole.receive().is_document


def test_queue_that_is_not_there_is_named(aws: AwsServer) -> None:
    url = f"{aws.endpoint}/123456789012/nobody"
    with closing(open_queue(url, URL)) as queue:
        with pytest.raises(QueueError, match=r"nobody: .*QueueDoesNotExist|nobody.*NonExistent"):
            queue.receive()
        with pytest.raises(QueueError):
            queue.delete(News(("receipt",)))


def test_queue_that_does_not_answer_is_named(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with (
        closing(Queue("http://127.0.0.1:1/1/q", URL, wait_s=1)) as queue,
        pytest.raises(QueueError, match=r"http://127\.0\.0\.1:1/1/q: Could not connect"),
    ):
        queue.receive()


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://sqs.eu-central-1.amazonaws.com/1/q", "eu-central-1"),
        ("https://sqs.cn-north-1.amazonaws.com.cn/1/q", "cn-north-1"),
        ("http://127.0.0.1:9324/1/q", "us-east-1"),  # boto3's own environment says
    ],
)
def test_region_is_that_of_the_queue(aws: AwsServer, url: str, region: str) -> None:
    with closing(Queue(url, URL)) as queue:
        assert queue._client.meta.region_name == region


def _event(key: str, bucket: str = "b") -> dict[str, Any]:
    return {"Records": [{"s3": {"bucket": {"name": bucket}, "object": {"key": key}}}]}


READ: list[tuple[str, Callable[[], str], Notice]] = [
    ("encoded", lambda: json.dumps(_event("p%2Fbuilds/m+m/1/c.json")), Notice(True, False, True)),
    ("other bucket", lambda: json.dumps(_event("p/keys.json", "c")), Notice()),
    ("other prefix", lambda: json.dumps(_event("keys.json")), Notice()),
    ("no JSON", lambda: "{", Notice(is_document=True)),
    ("none of S3's", lambda: '{"Records": [{"eventSource": "aws:sns"}]}', Notice(is_document=True)),
    ("unknown", lambda: '{"detail": {}}', Notice(is_document=True)),
    ("not an object", lambda: "[]", Notice(is_document=True)),
]


@pytest.mark.parametrize(("body", "told"), [r[1:] for r in READ], ids=[r[0] for r in READ])
def test_message_is_read_without_trust(body: Callable[[], str], told: Notice) -> None:
    assert read_notice(body(), "b", "p/") == told
