"""A controller that a bucket tells of its changes, as a process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from infra.client import NoController, ask
from infra.stack import Node
from registry_sync.documents import EndpointSpec, Variant, write
from registry_sync.open import open_store
from tests.support.aws import AwsServer
from tests.support.commands import Commands
from tests.support.nodes import Tier
from tests.support.published import publish
from tests.support.stack import until
from tests.support.told_bucket import told_bucket


def test_document_is_taken_long_before_the_next_look(aws: AwsServer, tmp_path: Path) -> None:
    bucket, queue = told_bucket(aws)
    registry, data = f"s3://{bucket}/fleet", tmp_path / "node"
    store = open_store(registry)
    publish(store, "1")
    words = ("--data", str(data), "--registry", registry, "--notifications", queue)
    tier = Tier(
        *("controller", ("controller", *words, "--sync-interval-s", "600")),
        env={},
        log_path=tmp_path / "log",
    )
    tier.start()
    try:

        def endpoints() -> list[str] | None:
            try:
                answer = asyncio.run(ask(Node(data).control, data, "status"))
            except NoController:
                return None
            return [one["name"] for one in msgspec.json.decode(answer.data)["endpoints"]]

        until(lambda: endpoints() == [], 20.0, "the controller leads and has looked")
        spec = EndpointSpec("e", (Variant("a", "m", "1", 100.0),), revision=1)
        store.put_new("endpoints/e.json", write(spec))
        until(lambda: endpoints() == ["e"], 20.0, "it has looked again")
    finally:
        assert tier.stop() == 0, tier.log()
        store.close()


@pytest.mark.parametrize(
    ("registry", "queue"),
    [("folder", "https://sqs.eu-west-1.amazonaws.com/1/q"), ("s3://bucket", "arn:aws:sqs:q")],
)
def test_what_can_tell_nothing_is_refused(tmp_path: Path, registry: str, queue: str) -> None:
    run = Commands("--data", str(tmp_path / "data"), "--registry", registry)
    said = run.fails("controller", "--notifications", queue)
    assert said.startswith(f"--notifications {queue}: expected the https:// URL of an SQS queue")
    assert not (tmp_path / "data").exists()
