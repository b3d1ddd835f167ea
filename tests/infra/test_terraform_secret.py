"""The fleet's secret on AWS: Terraform makes the first, keeps none, and leaves the next alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pool.wire.handshake import Secrets
from tests.support import terraform
from tests.support.aws import AwsServer
from tests.support.terraform import Root

ROOT_MODULE = """
provider "aws" {
  region = "us-east-1"
}

module "registry" {
  source = "./terraform/modules/registry"
  name   = "secretive"
}
"""
ID = "secretive/fleet-secret"
TARGET = "-target=module.registry.aws_secretsmanager_secret_version.fleet"


@pytest.mark.slow
@pytest.mark.terraform
def test_no_state_holds_the_secret_and_no_apply_undoes_its_rotation(
    moto: AwsServer, tmp_path: Path
) -> None:
    terraform.copied(tmp_path)
    (tmp_path / "main.tf").write_text(ROOT_MODULE)
    root = Root(tmp_path, moto.environment)
    root.init()
    root.run("apply", "-auto-approve", TARGET).ok()
    secrets = moto.client("secretsmanager")
    first = secrets.get_secret_value(SecretId=ID)["SecretString"]
    assert re.fullmatch(r"[0-9a-f]{64}", first)
    assert Secrets.parse(first)
    assert first not in (tmp_path / "terraform.tfstate").read_text()
    assert root.run("plan", "-detailed-exitcode", TARGET).code == 0, "a second plan is empty"
    secrets.put_secret_value(SecretId=ID, SecretString=f"{'n' * 64},{first}")
    assert root.run("plan", "-detailed-exitcode", TARGET).code == 0, "a rotation is no difference"
    root.run("apply", "-auto-approve", TARGET).ok()
    assert secrets.get_secret_value(SecretId=ID)["SecretString"] == f"{'n' * 64},{first}"
    root.run("destroy", "-auto-approve", TARGET).ok()
