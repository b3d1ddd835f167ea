"""Wishes for plans and the list of plans over the admin port, on a real stack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pool.wire.fleet_secret import load_secrets
from registry_sync import catalog, wishes
from tests.support import plans
from tests.support.admin import Site, fresh, problem
from tests.support.models import identity
from tests.support.plans import FAILED, PASSED, STRANGER, identity_of
from tests.support.stack import Stack


@pytest.fixture(scope="module")
def site(wide_stack: Stack) -> Site:
    """Two edges on a registry in a directory."""
    return Site(wide_stack)


@pytest.fixture
def model(site: Site, tmp_path: Path) -> str:
    """A model of the test's own, version 1."""
    name = fresh("built")
    site.stack.publish(name, identity(tmp_path / "m.onnx"))
    return name


def path_of(model: str, device_class: str = "", version: str = "1") -> str:
    """Return the path of a version's wishes, or of one."""
    found = f"/models/{model}/versions/{version}/builds"
    return f"{found}/{device_class}" if device_class else found


def wished(site: Site, model: str) -> list[tuple[str, str]]:
    """Return what is wished for, by the registry."""
    found = wishes.of_version(site.stack.store, model, "1")
    return [(wish.device_class, wish.engine) for wish in found]


def test_a_wish_is_made_once_replaced_and_withdrawn(site: Site, model: str) -> None:
    path = path_of(model, "sm_86")
    made = site("PUT", path)
    assert made.status == 201, made.body
    assert made.headers["location"] == f"/admin{path}"
    again = site("PUT", path, {"engine": "tensorrt_rtx"})
    assert again.status == 200
    shown = site("GET", path).json()
    assert shown == again.json()
    assert shown.pop("created")
    assert shown == {
        **{"model": model, "version": "1", "device_class": "sm_86", "engine": "tensorrt_rtx"}
    }
    assert wished(site, model) == [("sm_86", "tensorrt_rtx")]
    gone = site("DELETE", path)
    assert (gone.status, gone.body) == (204, b"")
    assert wished(site, model) == []
    problem(site("GET", path), 404, "not-found")
    problem(site("DELETE", path), 404, "not-found")


def test_a_version_shows_its_wishes_and_the_plans_of_its_artifact(site: Site, model: str) -> None:
    store = site.stack.store
    digest = catalog.load_manifest(store, model, "1").digest
    site("PUT", path_of(model, "sm_89"))
    site("PUT", path_of(model, "sm_120"))
    meta = plans.put(store, identity_of(artifact=digest, runtime=model), model="other")
    shown = site("GET", path_of(model)).json()
    assert (shown["model"], shown["version"]) == (model, "1")
    assert [wish["device_class"] for wish in shown["builds"]] == ["sm_120", "sm_89"]
    assert meta.key in [row["key"] for row in shown["engines"]]
    assert {row["artifact"] for row in shown["engines"]} == {digest}


def test_every_change_of_a_wish_is_in_the_trail(site: Site, model: str) -> None:
    path = path_of(model, "sm_86")
    site("PUT", path, x_tidepool_reason="the new cards")
    site("DELETE", path, x_tidepool_reason="sold again")
    site("DELETE", path)  # changes nothing
    found = [record for record in site.trail(endpoint=model) if record["by"] == "api"]
    names = ("what", "target", "before", "after", "why")
    assert [tuple(record[name] for name in names) for record in found] == [
        ("engine.withdraw", model, "version 1 sm_86", "", "sold again"),
        ("engine.wish", model, "", "version 1 sm_86", "the new cards"),
    ]
    assert all(record["request_id"] for record in found)


@pytest.mark.parametrize(
    ("device_class", "body", "headers", "status", "code"),
    [
        ("sm_8", None, {}, 400, "bad-name"),
        ("sm_86.json", None, {}, 400, "bad-name"),
        ("..%2f..%2fkeys", None, {}, 404, "no-route"),
        ("gpu", None, {}, 400, "bad-name"),
        ("sm_86", {"engine": "../x"}, {}, 422, "invalid-document"),
        ("sm_86", {"engine": 7}, {}, 422, "invalid-document"),
        ("sm_86", {"engines": "x"}, {}, 422, "invalid-document"),
        ("sm_86", b"{", {}, 422, "invalid-document"),
        ("sm_86", {}, {"x_tidepool_reason": "a\tb"}, 400, "bad-reason"),
        ("sm_86", {}, {"content_type": "text/plain"}, 415, "unsupported-type"),
        ("sm_86", b" " * 70_000 + b"{}", {}, 413, "too-large"),
    ],
)
def test_a_wish_that_does_not_fit_changes_nothing(
    *,
    site: Site,
    model: str,
    device_class: str,
    body: Any,
    headers: dict[str, str],
    status: int,
    code: str,
) -> None:
    problem(site("PUT", path_of(model, device_class), body, **headers), status, code)
    assert wished(site, model) == []


def test_only_what_is_published_can_be_wished_for(site: Site, model: str) -> None:
    for path in (path_of(model, "sm_86", "9"), path_of("nobody", "sm_86")):
        problem(site("PUT", path), 404, "not-found")
    problem(site("GET", path_of("nobody")), 404, "not-found")
    problem(site("GET", path_of(model, version="x")), 400, "bad-name")
    assert wishes.of_version(site.stack.store, model, "9") == []


def test_a_wish_is_written_while_it_is_poked_by_many_at_once(site: Site, model: str) -> None:
    answers = site.at_once(8, "PUT", path_of(model, "sm_86"))
    assert sorted(answer.status for answer in answers) == [200] * 7 + [201]


def test_plans_are_listed_as_the_command_does(site: Site, model: str) -> None:
    store = site.stack.store
    put = [
        plans.put(store, identity_of(device, runtime=model), model=model, gate=gate)
        for device, gate in (("sm_86", FAILED), ("sm_120", PASSED))
    ]
    shown = site("GET", f"/engines?model={model}").json()
    assert [row["key"] for row in shown["engines"]] == [meta.key for meta in put]
    assert [row["gate"] for row in shown["engines"]] == ["failed", "passed"]
    assert shown["next"] is None
    assert site("GET", f"/engines?model={model}&version=2").json()["engines"] == []
    rows = json.loads(site.stack.cli("engines", "list", "--json"))
    assert [row for row in rows if row["model"] == model] == shown["engines"]


def test_plans_are_listed_page_by_page(site: Site, model: str) -> None:
    for number in range(5):
        plans.put(site.stack.store, identity_of(f"sm_8{number}", runtime=model), model=model)
    query = f"/engines?model={model}&limit=2"
    pages = [site("GET", query).json()]
    for _ in range(2):
        pages.append(site("GET", f"{query}&after={pages[-1]['next']}").json())
    found = [[row["device"] for row in page["engines"]] for page in pages]
    assert found == [["sm_80", "sm_81"], ["sm_82", "sm_83"], ["sm_84"]]
    assert pages[-1]["next"] is None
    problem(site("GET", f"{query}&after=nobody"), 400, "bad-query")
    problem(site("GET", "/engines?limit=0"), 400, "bad-query")
    problem(site("GET", "/engines?device=sm_86"), 400, "bad-query")


def test_a_plan_that_nobody_of_this_fleet_signed_is_shown_as_such(site: Site, model: str) -> None:
    secrets = load_secrets(site.stack.data)
    assert secrets is not None
    forged = identity_of(runtime=model)
    plans.put(
        site.stack.store, forged, model=model, gate=PASSED, secret=secrets.current, forger=STRANGER
    )
    (row,) = site("GET", f"/engines?model={model}").json()["engines"]
    assert (row["gate"], row["reason"]) == ("not_run", "its MAC is not one of this fleet")
