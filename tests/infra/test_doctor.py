"""`tidepool doctor` on a running stack, and on registries that are not well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.doctor import running
from infra.doctor.findings import Finding
from infra.stack import Node, StackFile
from registry_sync.documents import EndpointSpec, Variant, write
from registry_sync.open import open_store
from tests.support.aws import AwsServer
from tests.support.commands import Commands
from tests.support.processes import tidepool
from tests.support.published import publish
from tests.support.stack import Stack


def findings(output: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(output)["findings"]
    return found


def of(told: list[Finding], state: str) -> list[str]:
    return [one.found for one in told if one.state == state]


def test_running_stack_is_well(stack: Stack) -> None:
    ports = ("--port", str(stack.port), "--admin-port", str(stack.admin_port))
    output = Commands("--data", str(stack.data)).ok("doctor", *ports, "--json")
    assert json.loads(output)["ok"] is True
    told = {one["found"] for one in findings(output)}
    assert f"127.0.0.1:{stack.port} is held by the running stack" in told
    assert f"{stack.url} is ready" in told
    assert any(one.startswith("the controller leads 1 edges, 1 workers") for one in told)
    assert not (stack.data / "x").exists()


def test_what_is_wrong_ends_with_1_and_says_what_to_do(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    ended = tidepool("doctor", "--data", str(tmp_path), "--device", "cuda:99")
    assert ended.code == 1
    told = ended.stdout.splitlines()
    (at,) = [index for index, line in enumerate(told) if "there is no cuda:99" in line]
    assert told[at].startswith("wrong    gpu ")
    assert told[at + 1].strip().startswith("do: ")
    assert f"do: chmod 700 {tmp_path}" in ended.stdout
    assert "\x1b" not in ended.stdout  # no colours in a pipe
    assert ended.stderr == ""


def test_nothing_is_made_by_a_look(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert findings(Commands("--data", str(data))("doctor", "--json").stdout)
    assert not data.exists()


def test_tier_that_is_none_is_refused(tmp_path: Path) -> None:
    said = Commands("--data", str(tmp_path)).fails("doctor", "--tier", "king")
    assert said == "--tier king: expected edge, edge-admin, controller, worker, builder, operator"


def test_bucket_is_looked_at_before_its_documents(aws: AwsServer, tmp_path: Path) -> None:
    run = Commands("--data", str(tmp_path), "--registry", "s3://tidepool-none/fleet", "--json")
    result = run("doctor")
    assert result.exit_code == 1
    checks = [one["check"] for one in findings(result.stdout)]
    assert checks[-4:] == ["region", "credentials", "bucket", "clock"]  # and no document after


def put_spec(url: str, name: str, version: str = "1") -> None:
    spec = EndpointSpec(name, (Variant("a", "m", version, 100.0),), revision=1)
    open_store(url).put_new(f"endpoints/{name}.json", write(spec))


def test_documents_that_do_not_fit_are_named(tmp_path: Path) -> None:
    url = str(tmp_path)
    store = open_store(url)
    publish(store, "1")
    put_spec(url, "good")
    assert of(running.registry(tmp_path, url), "warning") == [
        f"{url} has no keys, so every call is refused"
    ]
    put_spec(url, "early", version="7")
    store.put_new("endpoints/bad.json", b'{"schema": 99}')
    store.put_new("keys.json", b"{")
    store.put_new("builds/m/1/sm_80.json", b"{")
    told = of(running.registry(tmp_path, url), "wrong")
    assert [one.partition(" ")[0] for one in told] == [
        *("builds/m/1/sm_80.json", "endpoints/bad.json", "endpoints/early.json", "keys.json"),
    ]


def test_registry_that_cannot_be_read_is_wrong(aws: AwsServer, tmp_path: Path) -> None:
    assert (
        "there is no such bucket"
        in of(running.registry(tmp_path, "s3://tidepool-none"), "wrong")[0]
    )


def test_stack_that_does_not_answer_is_wrong(tmp_path: Path) -> None:
    node = Node(tmp_path)
    url = str(tmp_path / "registry")
    assert of(running.stack(node, url), "ok") == [
        "nothing runs here, and nobody leads the registry's fleet"
    ]
    nobody = "http://127.0.0.1:1"
    node.write_stack(StackFile(nobody, nobody, url, f"unix:{tmp_path}/none.sock", 1))
    edge, controller = of(running.stack(node, url), "wrong")
    assert edge == f"{nobody} does not answer"
    assert controller.startswith("the controller cannot be asked: ")
    assert "the running stack is on" in of(running.stack(node, "s3://tidepool-none"), "warning")[0]


@pytest.mark.parametrize(
    ("told", "state", "said"),
    [
        (
            {"workers": [{}], "nodes": [{}]},
            "ok",
            "the controller leads 0 edges, 1 workers, 1 nodes",
        ),
        ({}, "warning", "no worker has registered"),
        ({"workers": [{}], "controller": {"registry_error": "no"}}, "wrong", "cannot read"),
        ({"workers": [{}], "rejected": {"keys.json": "bad"}}, "wrong", "does not take keys.json"),
    ],
)
def test_what_a_controller_tells_is_judged(told: Any, state: str, said: str) -> None:
    (found,) = running.status(told)
    assert (found.state, said in found.found) == (state, True)
