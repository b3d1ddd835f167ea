"""A real system that uses only signed versions (`up --require-signed`)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex

import pytest

from infra.stack import Node
from registry_sync import catalog
from registry_sync.client import SyncError, fetch_via
from registry_sync.documents import EndpointSpec, Variant, write
from registry_sync.publish import publish
from registry_sync.signing import load_key, make_key
from tests.support import models
from tests.support.signed import Signers, make_signers
from tests.support.stack import Stack, running_stack, until

pytestmark = pytest.mark.rule("SEC-10", "SEC-6")

INPUT = {"x": ("FP32", (1, 4), [1.0, 2.0, 3.0, 4.0])}


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> Signers:
    return make_signers(tmp_path_factory.mktemp("signers"))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    models.identity(path)
    return path


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, signers: Signers) -> Iterator[Stack]:
    data = tmp_path_factory.mktemp("strict")
    with running_stack(data, arguments=("--require-signed", str(signers.file))) as stack:
        yield stack


def rejected(stack: Stack, document: str) -> str:
    found = stack.status()["rejected"].get(document, "")
    assert isinstance(found, str)
    return found


def test_signed_version_serves_and_status_shows_whose_are_used(
    strict: Stack, signers: Signers, graph: Path
) -> None:
    strict.publish("signed", graph, sign=signers.ours.sign)
    assert strict.infer("signed", INPUT).status == 200
    shown = strict.status()["signing"]
    assert (shown["required"], shown["problem"]) == (True, "")
    assert {"id": signers.ours.public.id, "name": "ours"} in shown["trusted"]
    assert f"only versions signed by {signers.ours.public.id} ours" in strict.cli("status")


def test_unsigned_version_is_never_loaded_and_never_served(
    strict: Stack, signers: Signers, graph: Path
) -> None:
    publish(strict.store, "bare", graph)
    publish(strict.store, "forged", graph, sign=signers.theirs.sign)
    strict.poke()
    for model, why in (("bare", "not signed"), ("forged", "is not trusted here")):
        assert strict.infer(model, INPUT).status == 404
        assert why in rejected(strict, f"endpoints/{model}.json")
        answer = strict.infer(model, INPUT, version="1")
        assert answer.status in (404, 503)
        assert str(signers.folder) not in answer.error
        assert not strict.engine(model)
    # Nor in the place of a version that is called for by an endpoint that serves.
    strict.publish("moved", graph, sign=signers.ours.sign)
    made = publish(strict.store, "moved", graph)
    spec = EndpointSpec("moved", (Variant("stable", "moved", made, 100.0),))
    (strict.data / "moved.json").write_bytes(write(spec))
    with pytest.raises(AssertionError, match=r"the last good one: .* not signed"):
        strict.cli("endpoint", "set", "moved", str(strict.data / "moved.json"))
    answer = strict.infer("moved", INPUT)
    assert (answer.status, answer.json()["model_version"]) == (200, "1")
    assert "not signed" in rejected(strict, "endpoints/moved.json")


def test_way_out_that_is_named_leads_out(strict: Stack, signers: Signers, graph: Path) -> None:
    model = f"mended-{token_hex(4)}"  # another one in each try
    publish(strict.store, model, graph)
    strict.poke()
    assert strict.infer(model, INPUT).status == 404
    told = rejected(strict, f"endpoints/{model}.json")
    first, second = re.findall(r"`tidepool ([^`]+)`", told)
    assert first == "publish MODEL PATH --sign KEYFILE"
    assert second == "endpoint set NAME"
    assert told in strict.cli("status")
    made = strict.cli("publish", model, str(graph), "--sign", str(signers.folder / "ours.key"))
    assert made.splitlines()[-1] == "2"
    assert strict.infer(model, INPUT).status == 404, "the endpoint names the version before"
    spec = strict.cli("endpoint", "get", model)
    changed = re.sub(r"version: .*", "version: '2'", spec)
    strict.cli("endpoint", "set", model, stdin=changed.encode())
    answer = strict.infer(model, INPUT)
    assert (answer.status, answer.json()["model_version"]) == (200, "2")
    assert not rejected(strict, f"endpoints/{model}.json")


async def test_sync_process_refuses_by_itself_whatever_edge_and_controller_say(
    strict: Stack, graph: Path
) -> None:
    publish(strict.store, "alone", graph)
    kept = strict.data / "store" / "models" / "alone" / "1" / "manifest.json"
    kept.parent.mkdir(parents=True, exist_ok=True)  # as if it had come before the policy
    kept.write_bytes(write(catalog.load_manifest(strict.store, "alone", "1")))
    for model in ("alone", "bare"):
        with pytest.raises(SyncError, match="not signed, and this node") as caught:
            await fetch_via(Node(strict.data).sync_socket, model, "1")
        assert not caught.value.retry


def test_revoked_key_ends_serving_and_a_trusted_one_begins_it(
    strict: Stack, signers: Signers, graph: Path, tmp_path: Path
) -> None:
    strict.publish("stays", graph, sign=signers.ours.sign)
    public = make_key(tmp_path / "lent.key", "lent")
    model = f"lent-{public.id}"
    strict.cli("keys", "signing", "trust", str(tmp_path / "lent.key.pub"))
    strict.publish(model, graph, sign=load_key(tmp_path / "lent.key").sign)
    assert strict.infer(model, INPUT).status == 200
    strict.cli("keys", "signing", "revoke", public.id)
    until(lambda: strict.infer(model, INPUT).status == 404, 15.0, "no longer served")
    until(lambda: "which is revoked here" in rejected(strict, f"endpoints/{model}.json"), 15.0)
    until(lambda: not strict.engine(model), 15.0, "no longer loaded")
    assert strict.infer("stays", INPUT).status == 200
    states = json.loads(strict.cli("keys", "signing", "list", "--json"))
    assert {row["id"]: row["state"] for row in states}[public.id] == "revoked"
