"""AWS for tests: moto over HTTP, in a process of its own on loopback, empty at its start.

It answers as AWS does for what it knows, S3's notifications to SQS included; it starts no
containers and no machines, and looks at permissions only where a test turns that on
(`AwsServer.enforced`).  It dies with the process that started it, whatever becomes of that process.

    python -m tests.support.aws        serves until it is killed; says its port on stdout
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import select
import signal
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import boto3.session
from botocore.client import BaseClient
from botocore.config import Config

REGION = "us-east-1"
EC2_QUOTAS = {"L-DB2E81BA": 8.0, "L-3819A6DF": 0.0, "L-417A185B": 0.0}  # vCPUs, as in a new account
_ROOT = ("AKIAIOSFODNN7EXAMPLE", "secret")
_START_S_MAX = 30.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class AwsServer:
    """Where it is, and how to be its root user."""

    endpoint: str
    pid: int

    @property
    def environment(self) -> dict[str, str]:
        """What boto3 has to find in os.environ; nothing else is told to it."""
        return self.environment_of(*_ROOT)

    def environment_of(self, access_key_id: str, secret: str) -> dict[str, str]:
        """Return the environment of somebody else."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": access_key_id,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            # Whoever runs the tests may have an account of their own.
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, service: str, region: str = REGION) -> Any:
        """Return a client of root; there is one of a kind, as making one takes long."""
        return _client(self.endpoint, service, region)

    def environment_of_who_may(
        self, allowed: Sequence[tuple[str | Sequence[str], Sequence[str]]]
    ) -> dict[str, str]:
        """Make a user who may do these actions to these resources and no more."""
        iam, user = self.client("iam"), uuid.uuid4().hex
        iam.create_user(UserName=user)
        if allowed:
            statements = [
                {"Effect": "Allow", "Action": action, "Resource": what} for action, what in allowed
            ]
            policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
            iam.put_user_policy(UserName=user, PolicyName="p", PolicyDocument=policy)
        made = iam.create_access_key(UserName=user)["AccessKey"]
        return self.environment_of(made["AccessKeyId"], made["SecretAccessKey"])

    @contextlib.contextmanager
    def enforced(self) -> Iterator[None]:
        """Let IAM's policies count meanwhile; root's keys are unknown to them."""
        self._post("/moto-api/reset-auth", b"0")
        try:
            yield
        finally:
            self._post("/moto-api/reset-auth", b"inf")

    def _post(self, path: str, data: bytes) -> None:
        headers = {"content-type": "text/plain"}
        request = urllib.request.Request(self.endpoint + path, data, headers, method="POST")
        with urllib.request.urlopen(request, timeout=10):
            pass


@contextlib.contextmanager
def aws_server(*, has_managed_policies: bool = False) -> Iterator[AwsServer]:
    """Run a server; that it knows AWS's managed policies costs two seconds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.aws"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "MOTO_IAM_LOAD_MANAGED_POLICIES": str(has_managed_policies).lower()},
        preexec_fn=_tie,
    )
    try:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], _START_S_MAX)
        port = process.stdout.readline().decode().strip() if ready else ""
        if not port:
            raise RuntimeError("moto did not start; is flask installed?")
        yield AwsServer(f"http://127.0.0.1:{port}", process.pid)
    finally:
        process.kill()
        process.communicate()


@functools.cache
def _client(endpoint: str, service: str, region: str) -> BaseClient:
    return boto3.session.Session().client(
        service,
        endpoint_url=endpoint,
        aws_access_key_id=_ROOT[0],
        aws_secret_access_key=_ROOT[1],
        region_name=region,
        config=Config(
            retries={"total_max_attempts": 1}, read_timeout=30, s3={"addressing_style": "path"}
        ),
    )


def _tie() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _serve() -> None:
    # Here and not above: only this process pays for them.
    from moto.applicationautoscaling.responses import ApplicationAutoScalingResponse  # noqa: PLC0415
    from moto.moto_server import werkzeug_app  # noqa: PLC0415
    from moto.servicequotas.models import ServiceQuotasBackend  # noqa: PLC0415
    from werkzeug.serving import make_server  # noqa: PLC0415

    from tests.support import aws_gaps  # noqa: PLC0415

    def list_tags_for_resource(_: object) -> str:
        return '{"Tags": {}}'

    def get_service_quota(self: Any, service_code: str, quota_code: str) -> dict[str, Any]:
        if service_code == "ec2" and quota_code in EC2_QUOTAS:
            return {"QuotaCode": quota_code, "Value": EC2_QUOTAS[quota_code]}
        return of_others(self, service_code, quota_code)

    # moto knows the quotas of VPC alone.
    of_others = ServiceQuotasBackend.get_service_quota
    ServiceQuotasBackend.get_service_quota = get_service_quota
    # The AWS provider asks for it; without an answer it tries again for minutes.
    ApplicationAutoScalingResponse.list_tags_for_resource = list_tags_for_resource
    aws_gaps.fill()
    app = werkzeug_app.DomainDispatcherApplication(werkzeug_app.create_backend_app)
    handler = werkzeug_app.MotoRequestHandler
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=handler)
    os.environ["MOTO_PORT"] = str(server.port)
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _serve()
