"""What AWS tells over HTTP on one's own host: a task's metadata, and credentials of its role (ECS),
or of an instance's (EC2, IMDSv2).

Documents are of the shape that AWS documents; the real boto3 chain and our own reader ask for them.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_INSTANCE_ROLE = "/latest/meta-data/iam/security-credentials/"


@dataclass
class EcsAgent:
    """One endpoint; set its fields while it runs to let it tell something else."""

    url: str = ""
    ipv4: str = "127.0.0.1"
    mode: str = "awsvpc"
    unready: int = 0  # so many of the next answers tell no network yet
    access_key: str = ""
    secret_key: str = ""
    token: str = ""  # none, as SeaweedFS knows no sessions; then boto3 sends none
    good_for: timedelta = timedelta(hours=6)
    asked: Counter[str] = field(default_factory=Counter)  # how often for what

    @property
    def environment(self) -> dict[str, str]:
        """Return what the agent puts into the environment of a task's containers."""
        return {
            "ECS_CONTAINER_METADATA_URI_V4": f"{self.url}/v4/container",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{self.url}/credentials",
        }

    def answer(self, path: str) -> dict[str, Any] | str | None:
        """Return the document, or the text, at a path; None: there is none."""
        self.asked[path] += 1
        if path == _INSTANCE_ROLE:
            return "tidepool"
        if path == "/v4/container":
            return self._container()
        if path == "/v4/container/task":
            return {"Family": "tidepool", "Containers": [self._container()]}
        if path in ("/credentials", _INSTANCE_ROLE + "tidepool") and self.access_key:
            return {
                "Code": "Success",
                "RoleArn": "arn:aws:iam::123456789012:role/tidepool",
                "AccessKeyId": self.access_key,
                "SecretAccessKey": self.secret_key,
                "Token": self.token,
                "Expiration": f"{datetime.now(UTC) + self.good_for:%Y-%m-%dT%H:%M:%SZ}",
            }
        return None

    def _container(self) -> dict[str, Any]:
        if self.unready:
            self.unready -= 1
            return {"Name": "tidepool", "KnownStatus": "PULLED"}
        network = {
            "NetworkMode": self.mode,
            "IPv4Addresses": [self.ipv4],
            "AttachmentIndex": 0,
            "IPv4SubnetCIDRBlock": "127.0.0.0/8",
        }
        return {"Name": "tidepool", "KnownStatus": "RUNNING", "Networks": [network]}


@contextlib.contextmanager
def ecs_agent(**told: Any) -> Iterator[EcsAgent]:
    """Run an endpoint on loopback; keywords are the fields of `EcsAgent`."""
    agent = EcsAgent(**told)

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            """Give a token to who may then ask for an instance's metadata."""
            self.say("token" if self.path == "/latest/api/token" else None)

        def do_GET(self) -> None:
            is_told = self.headers["X-aws-ec2-metadata-token"] == "token"
            is_of_instance = self.path.startswith("/latest/")
            self.say(agent.answer(self.path) if is_told or not is_of_instance else None)

        def say(self, found: dict[str, Any] | str | None) -> None:
            body = (found if isinstance(found, str) else json.dumps(found or {})).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        agent.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield agent
        finally:
            server.shutdown()
            thread.join()
