"""Rollouts over the admin API, on two edges."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.admin import Site, fresh, problem, publish, spec_of
from tests.support.stack import Stack, until
from tests.support.terminal import on_terminal

INPUT = {"x": ("FP32", [1, 4], [1.0, -2.0, 3.5, 0.25])}


@pytest.fixture(scope="module")
def site(wide_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Two edges on a registry in a directory."""
    publish(wide_stack, tmp_path_factory.mktemp("admin-rollouts"))
    return Site(wide_stack)


@pytest.fixture
def name(site: Site) -> Iterator[str]:
    """An endpoint with version 1 alone; what was begun on it is over when the test is."""
    found = fresh("r")
    site.put(found)
    yield found
    site("POST", f"/endpoints/{found}/rollout/abort")


def start(site: Site, name: str, body: Any = None, **headers: str) -> Any:
    return site("POST", f"/endpoints/{name}/rollout", body or {"version": "2"}, **headers)


def trail_of(site: Site, name: str, by: str) -> list[dict[str, Any]]:
    """Return what a person's requests, or the controller, have left in the trail, newest first."""
    return [record for record in site.trail(endpoint=name) if record["by"] == by]


def test_version_takes_over_by_one_request(site: Site, name: str) -> None:
    done = start(site, name, x_tidepool_reason="half the size")
    assert (done.status, done.headers["etag"]) == (201, '"2"')
    assert done.headers["location"] == f"/admin/endpoints/{name}/rollout"
    content = done.json()
    assert (content["endpoint"], content["revision"]) == (name, 2)
    assert [step["weight"] for step in content["rollout"]["steps"]] == [1, 5, 25, 50, 100]
    assert [(v["name"], v["version"], v["weight"]) for v in content["variants"]] == [
        ("stable", "1", 100),
        ("canary", "2", 0),
    ]
    (record, *_) = trail_of(site, name, "api")
    assert (record["what"], record["why"]) == ("rollout.start", "half the size")
    assert (record["before"], record["after"]) == ("1", "2")
    assert record["request_id"] == done.headers["x-request-id"]


def test_terms_of_a_rollout_can_be_said(site: Site, name: str) -> None:
    body = {
        **{"version": 2, "steps": [10, 50], "hold_s": 5, "shadow": {"sample": 0.5}},
        "guard": {"margin_points": 1, "then": "pause"},
    }
    rollout = start(site, name, body).json()["rollout"]
    assert [(step["weight"], step["hold_s"]) for step in rollout["steps"]] == [
        (10, 5),
        (50, 5),
        (100, 5),
    ]
    assert rollout["shadow"]["sample"] == 0.5
    assert (rollout["guard"]["margin_points"], rollout["guard"]["then"]) == (1, "pause")


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "$.version"),
        ({"version": "2", "step": [1]}, "$.step"),
        ({"version": "2", "steps": [50, 10]}, "$.rollout.steps[1].weight"),
        ({"version": "2", "steps": ["a lot"]}, "$.steps[0]"),
        ({"version": "2", "hold_s": -1}, "$.rollout.steps[0].hold_s"),
        ({"version": "2", "guard": {"alpha": 2}}, "$.guard.alpha"),
        ({"version": "2", "guard": {"errors": False}}, "$.guard.errors"),
        ({"version": "2", "shadow": {"sample": 0}}, "$.shadow.sample"),
        ({"version": "99"}, "$.variants[1].version"),
    ],
)
def test_bad_terms_are_named_by_their_path_and_change_nothing(
    site: Site, name: str, body: dict[str, Any], path: str
) -> None:
    found = problem(start(site, name, body or {"steps": [1]}), 422, "invalid-document")
    assert path in [error["path"] for error in found["errors"]]
    assert site.revision(name) == 1


def test_only_the_revision_that_was_seen_is_rolled_out_from(site: Site, name: str) -> None:
    site.put(name, spec_of(name, deadline_ms=900))
    late = problem(start(site, name, if_match='"1"'), 412, "revision-conflict")
    assert (late["current_revision"], late["your_revision"]) == (2, 1)
    assert start(site, name, if_match='"2"').headers["etag"] == '"3"'
    problem(site("POST", f"/endpoints/{name}/rollout/pause", if_match='"2"'), 412,
            "revision-conflict")  # fmt: skip
    assert site.revision(name) == 3


def test_wishes_are_revisions_and_recorded(site: Site, name: str) -> None:
    start(site, name)
    wishes = []
    for word in ("pause", "resume", "promote", "abort"):
        done = site("POST", f"/endpoints/{name}/rollout/{word}")
        assert done.status == 200, done.body
        assert done.headers["etag"] == f'"{done.json()["revision"]}"'
        wishes.append(done.json()["rollout"]["wish"])
    assert wishes == ["pause", "run", "promote", "abort"]
    words = [record["what"] for record in trail_of(site, name, "api")][:5]
    assert words == [f"rollout.{word}" for word in ("abort", "promote", "resume", "pause", "start")]

    def decided() -> list[str]:
        return [record["what"] for record in trail_of(site, name, "controller")]

    until(lambda: decided()[:1] == ["rollout.rollback"], what="the way back is recorded")
    assert decided()[-1] == "rollout.begin"


def test_second_rollout_is_refused_while_one_runs(site: Site, name: str) -> None:
    start(site, name)
    found = problem(start(site, name), 409, "rollout-live")
    assert "abort" in found["detail"]


@pytest.mark.parametrize("word", ["pause", "resume", "promote", "abort"])
def test_wish_for_no_rollout_is_refused(site: Site, name: str, word: str) -> None:
    problem(site("POST", f"/endpoints/{name}/rollout/{word}"), 404, "not-found")
    assert site.revision(name) == 1


def test_version_that_has_all_traffic_already_is_refused(site: Site, name: str) -> None:
    problem(start(site, name, {"version": "1"}), 409, "rollout-unfit")


def test_endpoint_that_is_not_there_has_none(site: Site) -> None:
    problem(start(site, "nobody"), 404, "not-found")
    problem(site("GET", "/endpoints/nobody/rollout"), 404, "not-found")
    problem(site("GET", "/endpoints/nobody/rollout/diff"), 404, "not-found")


def test_other_words_methods_and_parameters_are_refused(site: Site, name: str) -> None:
    problem(site("POST", f"/endpoints/{name}/rollout/teleport"), 404, "no-route")
    problem(site("DELETE", f"/endpoints/{name}/rollout"), 405, "method-not-allowed")
    problem(site("GET", f"/endpoints/{name}/rollout/pause"), 405, "method-not-allowed")
    problem(site("POST", f"/endpoints/{name}/rollout/pause?now=1"), 400, "bad-query")
    problem(site("GET", f"/endpoints/{name}/rollout?live=1"), 400, "bad-query")
    problem(start(site, "NoName"), 400, "bad-name")


def test_nobody_without_an_admin_key_sees_or_moves_a_rollout(site: Site, name: str) -> None:
    for method, path in (("GET", ""), ("POST", ""), ("POST", "/abort"), ("GET", "/diff")):
        answer = site(method, f"/endpoints/{name}/rollout{path}", key=None)
        assert answer.status == 401


# How far it is.


def status(site: Site, name: str) -> Any:
    answer = site("GET", f"/endpoints/{name}/rollout")
    assert answer.status == 200, answer.body
    return answer.json()


def test_status_is_the_same_for_all_who_ask(site: Site, name: str) -> None:
    start(site, name, {"version": "2", "hold_s": 3600})
    until(lambda: status(site, name)["step"] == 1, 30.0, "the first step")
    for _ in range(8):
        assert site.stack.infer(name, INPUT).status == 200
    until(lambda: sum(arm["calls"] for arm in status(site, name)["variants"]) == 8, 20.0, "calls")
    shown = status(site, name)
    assert (shown["state"], shown["live"]) == ("running", True)
    assert [arm["weight"] for arm in shown["variants"]] == [99, 1]
    url = ("--url", site.stack.admin_url)
    of_command = json.loads(site.stack.cli("rollout", "status", name, "--json", *url))
    assert of_command.keys() == shown.keys()
    assert of_command["variants"][0]["calls"] == shown["variants"][0]["calls"]
    head, stable, canary, *notes = site.stack.cli("rollout", "status", name).splitlines()
    assert head.startswith(f"rollout {name}  running  step 1 of 5  ")
    assert (stable.split()[0], canary.split()[0]) == ("stable", "canary")
    assert any(note.startswith("  verdict   ") for note in notes)
    metrics = site.stack.request("GET", "/metrics?view=pool", admin=True).body.decode()
    assert f'tidepool_rollout_step{{endpoint="{name}"}} 1.0' in metrics
    line = f"  rollout running, step 1 of 5: {shown['reason']}"
    assert line in site.stack.cli("status").splitlines()


def test_terminal_shows_it_anew_in_its_place(site: Site, name: str) -> None:
    start(site, name)
    words = ("rollout", "status", name, "--watch")
    text = on_terminal(site.stack, lambda seen: seen.count("error rate") >= 2, *words)
    assert "Traceback" not in text
    assert "watched" in text


def test_nothing_is_compared_without_a_shadow(site: Site, name: str) -> None:
    start(site, name)
    found = site("GET", f"/endpoints/{name}/rollout/diff").json()
    assert found == {"endpoint": name, "id": status(site, name)["id"], "shadow": None}


def test_endpoint_without_a_rollout_has_no_status(site: Site, name: str) -> None:
    for path in ("", "/diff"):
        found = problem(site("GET", f"/endpoints/{name}/rollout{path}"), 404, "not-found")
        assert "has no rollout" in found["detail"]


# What a rollout leaves others to change, and what they have changed.


def test_arms_under_a_running_rollout_stay_unless_it_may_be_aborted(site: Site, name: str) -> None:
    start(site, name)
    alone = spec_of(name, "2")
    refused = problem(site.put(name, alone), 409, "rollout-live")
    assert refused["detail"].startswith(
        "$.variants[stable].version, $.variants[canary], $.rollout: "
    )
    assert refused["detail"].endswith(", or end it with ?abort_rollout=true")
    problem(site.put(f"{name}?abort_rollout=false", alone), 409, "rollout-live")
    assert site.revision(name) == 2
    done = site.put(f"{name}?abort_rollout=true", alone)
    assert (done.status, done.json()["rollout"]) == (200, None)


def test_rollback_to_before_a_running_rollout_needs_to_say_so(site: Site, name: str) -> None:
    start(site, name)
    path = f"/endpoints/{name}/rollback"
    refused = problem(site("POST", path), 409, "rollout-live")
    assert refused["detail"].endswith(", or end it with ?abort_rollout=true")
    done = site("POST", f"{path}?abort_rollout=true")
    assert (done.status, done.json()["revision"]) == (200, 3)
    assert site("GET", f"/endpoints/{name}").json()["rollout"] is None


def test_rollback_goes_to_the_revision_that_its_refusal_offers(site: Site, name: str) -> None:
    start(site, name)
    site.put(f"{name}?abort_rollout=true", spec_of(name, "2"))
    path = f"/endpoints/{name}/rollback"
    refused = problem(site("POST", path), 409, "rollout-unfit")
    assert refused["detail"].endswith(", or go back to revision 1 with ?to_revision=1")
    assert site("POST", f"{path}?to_revision=1").json()["revision"] == 4
    assert site("GET", f"/endpoints/{name}").json()["variants"][0]["version"] == "1"
    problem(site("POST", f"{path}?to_revision=4"), 409, "no-history")
    problem(site("POST", f"{path}?to_revision=x"), 400, "bad-query")
    absent = problem(site("POST", f"{path}?to_revision=9"), 404, "not-found")
    assert absent["detail"] == f"{name} has no revision 9; there are 1 to 4"


@pytest.mark.parametrize("query", ["abort_rollout=yes", "abort=true", "abort_rollout"])
def test_other_ways_to_say_so_are_refused(site: Site, name: str, query: str) -> None:
    problem(site.put(f"{name}?{query}"), 400, "bad-query")
    problem(site("POST", f"/endpoints/{name}/rollback?{query}"), 400, "bad-query")
    assert site.revision(name) == 1


def test_what_revisions_change_is_shown_value_by_value(site: Site, name: str) -> None:
    site.put(name, spec_of(name, deadline_ms=900))
    site.put(name, spec_of(name, "2", deadline_ms=900))
    path = f"/endpoints/{name}/diff"
    arm = {"path": "$.variants[stable].version", "before": "1", "after": "2"}
    deadline = {"path": "$.deadline_ms", "before": 10_000, "after": 900}
    assert site("GET", path).json() == {"before": 2, "after": 3, "changes": [arm]}
    assert site("GET", f"{path}?after=2").json()["changes"] == [deadline]
    assert site("GET", f"{path}?before=1").json()["changes"] == [arm, deadline]
    back = site("GET", f"{path}?before=3&after=1").json()["changes"]
    assert [change["after"] for change in back] == ["1", 10_000]


def test_revisions_that_were_never_current_have_no_difference(site: Site, name: str) -> None:
    path = f"/endpoints/{name}/diff"
    problem(site("GET", path), 404, "not-found")  # the first one has none before it
    problem(site("GET", f"{path}?after=7"), 404, "not-found")
    problem(site("GET", f"{path}?before=0"), 400, "bad-query")
    problem(site("GET", "/endpoints/nobody/diff"), 404, "not-found")
