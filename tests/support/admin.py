"""The admin port of a stack, as a client uses it."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.config import EdgeConfig
from tests.support.faulty_s3 import FaultyS3, faulty_s3
from tests.support.models import identity
from tests.support.seaweed import BUCKET, S3Server
from tests.support.stack import REPOSITORY, Answer, Stack, StackOptions, running_stack, until

MODEL = "admin-m"  # what the endpoints are of


@dataclass
class Site:
    """A stack, and the proxy through which it sees S3."""

    stack: Stack
    s3: FaultyS3 | None = None

    def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        key: str | None = "",
        timeout_s: float = 60.0,
        **headers: str,
    ) -> Answer:
        """Send a request to the admin port; underscores in names of headers are dashes."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.stack.request(
            method, f"/admin{path}", body, sent, key=key, admin=True, timeout_s=timeout_s
        )

    def at_once(self, count: int, method: str, path: str) -> list[Answer]:
        """Send a request so many times at once."""
        with ThreadPoolExecutor(count) as threads:
            return list(threads.map(lambda _: self(method, path), range(count)))

    def put(self, name: str, spec: Any = None, **headers: str) -> Answer:
        """Write an endpoint."""
        return self("PUT", f"/endpoints/{name}", spec or spec_of(name), **headers)

    def key(self, **wanted: Any) -> tuple[str, str]:
        """Make a key; returns its id and itself."""
        answer = self("POST", "/keys", wanted)
        assert answer.status == 201, answer.body
        made = answer.json()
        self.stack.secrets.append(made["key"])
        return made["id"], made["key"]

    def trail(self, **query: str) -> list[dict[str, Any]]:
        """Read the audit trail, newest first."""
        words = "&".join(f"{name}={value}" for name, value in query.items())
        found: list[dict[str, Any]] = self("GET", f"/audit?{words}").json()["records"]
        return found

    def revision(self, name: str) -> int:
        """Return an endpoint's current revision."""
        found: int = self("GET", f"/endpoints/{name}").json()["revision"]
        return found


def secrets_in(stack: Stack) -> list[str]:
    """Return the objects of the registry that hold a key, or the secret part of one."""
    store = stack.store
    parts = {key for known in stack.secrets for key in (known, known.rpartition("_")[2])}
    keys = [entry.key for entry in store.list("") if not entry.key.startswith("blobs/")]
    with ThreadPoolExecutor(16) as threads:
        read = zip(keys, threads.map(lambda key: store.get(key).data, keys), strict=True)
        return [key for key, data in read if any(part.encode() in data for part in parts)]


def fresh(name: str) -> str:
    """Return a name that no test has used, nor an earlier try of this one."""
    return f"{name}-{secrets.token_hex(3)}"


def spec_of(name: str, version: str = "1", **changes: Any) -> dict[str, Any]:
    """Return an endpoint with one variant."""
    arm = {"name": "stable", "model": MODEL, "version": version, "weight": 100}
    return {"endpoint": name, "variants": [arm], **changes}


def problem(answer: Answer, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is a problem document, and return it."""
    assert answer.status == status, (answer.status, answer.body)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"]
    found: dict[str, Any] = answer.json()
    assert found["type"] == f"urn:tidepool:problem:{code}", found
    assert found["status"] == status
    assert found["title"]
    assert found["detail"]
    return found


def publish(stack: Stack, folder: Path) -> None:
    """Publish versions 1 and 2 of `MODEL`."""
    path = identity(folder / "m.onnx")
    stack.publish(MODEL, path)
    stack.publish(MODEL, path)


@contextmanager
def s3_site(folder: Path, seaweed: S3Server) -> Iterator[Site]:
    """Run one edge on a registry in S3, behind a network that can be spoilt."""
    with pytest.MonkeyPatch.context() as patch, faulty_s3(seaweed.endpoint) as proxy:
        for name, value in seaweed.environment.items():
            patch.setenv(name, value)
        env = {"AWS_ENDPOINT_URL": proxy.endpoint}
        registry = f"s3://{BUCKET}/{folder.name}"
        with running_stack(folder / "stack", registry=registry, env=env) as stack:
            publish(stack, folder)
            yield Site(stack, proxy)
            assert secrets_in(stack) == []


@contextmanager
def lone_edge(
    folder: Path, of: Stack, registry: str, env: Mapping[str, str] | None = None
) -> Iterator[Site]:
    """Run an edge that finds no controller, but has the last good documents of a stack.

    Of AWS's variables it gets only what is in `env`.
    """
    lone = Stack(folder, StackOptions(registry=registry))
    lone.key = of.key
    shutil.copytree(of.data / "edge", folder / "edge")
    config = EdgeConfig(
        id="lone-0",
        data=str(folder),
        port=lone.port,
        admin_port=lone.admin_port,
        registry=registry,
        controller=f"unix:{folder}/nobody.sock",
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with lone.log_path.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "edge", msgspec.json.encode(config).decode()],
            cwd=REPOSITORY,
            env={**inherited, **(env or {})},
            stderr=log,
        )
    try:
        until(lambda: _is_live(lone), 30.0, "the lone edge answers", 0.05)
        yield Site(lone)
    finally:
        process.kill()
        process.wait()
    assert lone.leaks() == []


def _is_live(stack: Stack) -> bool:
    try:
        return stack.request("GET", "/livez", admin=True).status == 200
    except OSError:
        return False
