"""Fixtures shared by all packages: the S3 server, started by the first test that asks for it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.support.seaweed import BUCKET, S3Server, s3_server


@pytest.fixture(scope="session")
def seaweed() -> Iterator[S3Server]:
    """The one S3 server of this run."""
    with s3_server() as server:
        yield server


@pytest.fixture
def s3_url(seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A registry URL of the test's own; the environment for boto3 is set, also for children."""
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"
