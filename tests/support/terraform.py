"""Terraform and AWS's provider, where a machine has them, run on copies of our modules.

Neither comes from a package index: `terraform` is looked up on PATH, and the provider in the
folders where Terraform's own mirrors usually lie, or in the one that TF_PLUGIN_DIR names.  Tests
marked `terraform` are deselected where either is missing.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.source import ROOT

MODULES = ROOT / "infra" / "terraform"
_HOST = "registry.terraform.io"
_PROVIDER = Path(_HOST) / "hashicorp" / "aws"
_FOLDERS_MAX = 20_000  # looked into in all; a mirror lies near the top
_DEPTH_MAX = 4


def is_there() -> bool:
    """Tell whether this machine has both."""
    return binary() is not None and plugin_dir() is not None


@functools.cache
def binary() -> str | None:
    """Return where Terraform is, if it is."""
    return shutil.which("terraform")


@functools.cache
def plugin_dir() -> Path | None:
    """Return the folder for `terraform init -plugin-dir`, if there is one with AWS's provider."""
    return next((found for found in _candidates() if (found / _PROVIDER).is_dir()), None)


def _candidates() -> Iterator[Path]:
    named = os.environ.get("TF_PLUGIN_DIR")
    if named:
        yield Path(named)
    home = Path.home()
    yield home / ".terraform.d" / "plugins"
    yield home / ".terraform.d" / "plugin-cache"
    yield Path("/usr/local/share/terraform/plugins")
    yield Path("/usr/share/terraform/plugins")
    left = _FOLDERS_MAX
    for top in (Path("/opt"), Path("/usr/local"), Path("/srv"), Path("/var/lib"), home):
        for folder, names, _ in os.walk(top):
            left -= 1
            if left < 0:
                return
            if _HOST in names:
                yield Path(folder)
            if len(Path(folder).relative_to(top).parts) >= _DEPTH_MAX:
                names.clear()


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str  # both streams

    def ok(self) -> str:
        """Return what it said; an AssertionError with all of it where it failed."""
        assert self.code == 0, self.out
        return self.out


@dataclass(frozen=True)
class Root:
    """A folder that Terraform runs in, never one of the repository: it writes beside the files.

    Args:
        folder: with the `.tf` files.
        environment: added to ours, of which nothing that Terraform or AWS reads is handed down.
    """

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, *words: str, told: str = "", timeout_s: float = 240.0) -> Done:
        """Run one command, without colours and questions; `told` is its input."""
        path = binary()
        assert path is not None, "terraform is not on PATH; such a test is to be deselected"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("TF_", "AWS_"))}
        done = subprocess.run(
            [path, *words],
            cwd=self.folder,
            env={
                **kept,
                "TF_IN_AUTOMATION": "1",
                "TF_INPUT": "0",
                "TF_CLI_ARGS": "-no-color",
                "CHECKPOINT_DISABLE": "1",
                "GOGC": "400",  # a third less of the CPU for a twentieth more of the memory
                **self.environment,
            },
            input=told,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Done(done.returncode, done.stdout)

    def init(self, *options: str) -> None:
        """Make the folder ready, from this machine alone."""
        self.run("init", f"-plugin-dir={plugin_dir()}", "-backend=false", *options).ok()


def copied(target: Path) -> Path:
    """Copy all modules and examples to `target`, and return where they lie."""
    ignored = shutil.ignore_patterns(".terraform", ".terraform.lock.hcl", "*.tfstate*")
    return Path(shutil.copytree(MODULES, target / "terraform", ignore=ignored))


_RECORD = re.compile(r"^(?=\d{4}-\d\d-\d\dT)", re.MULTILINE)
# What the provider's log calls a service, and how policies begin.
_SERVICES = {
    "Application Auto Scaling": "application-autoscaling",
    "Auto Scaling": "autoscaling",
    "CloudWatch Logs": "logs",
    "Elastic Load Balancing v2": "elasticloadbalancing",
    "Route 53": "route53",
    "Secrets Manager": "secretsmanager",
    "amp": "aps",
}
# Calls of S3 whose right has another name than they.
_OF_S3 = {
    "DeleteBucketEncryption": "PutEncryptionConfiguration",
    "DeleteBucketLifecycle": "PutLifecycleConfiguration",
    "DeleteBucketOwnershipControls": "PutBucketOwnershipControls",
    "DeletePublicAccessBlock": "PutBucketPublicAccessBlock",
    "GetBucketAccelerateConfiguration": "GetAccelerateConfiguration",
    "GetBucketCors": "GetBucketCORS",
    "GetBucketEncryption": "GetEncryptionConfiguration",
    "GetBucketLifecycleConfiguration": "GetLifecycleConfiguration",
    "GetBucketNotificationConfiguration": "GetBucketNotification",
    "GetBucketReplication": "GetReplicationConfiguration",
    "GetObjectLockConfiguration": "GetBucketObjectLockConfiguration",
    "GetPublicAccessBlock": "GetBucketPublicAccessBlock",
    "HeadBucket": "ListBucket",
    "PutBucketEncryption": "PutEncryptionConfiguration",
    "PutBucketLifecycleConfiguration": "PutLifecycleConfiguration",
    "PutBucketNotificationConfiguration": "PutBucketNotification",
    "PutPublicAccessBlock": "PutBucketPublicAccessBlock",
}


def calls_of(log: Path) -> dict[str, set[str]]:
    """Return what the AWS provider called, by type of managed resource, as policies name it.

    Args:
        log: written with TF_LOG_PROVIDER=debug.  Who we are everybody may ask, so that is left out.
    """
    found: dict[str, set[str]] = {}
    for record in _RECORD.split(log.read_text()):
        if "HTTP Request Sent" not in record or "tf_resource_type=" not in record:
            continue
        name, service = _field(record, "rpc.method"), _field(record, "rpc.service")
        if service == "S3":
            name = _OF_S3.get(name, name)
        action = f"{_SERVICES.get(service, service.lower())}:{name}"
        found.setdefault(_field(record, "tf_resource_type"), set()).add(action)
    return found


def _field(record: str, name: str) -> str:
    seen = re.search(rf'\b{re.escape(name)}=(?:"([^"]+)"|(\S+))', record)
    assert seen is not None, (name, record)
    return seen[1] or seen[2]
