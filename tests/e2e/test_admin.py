"""The admin API on real stacks: two edges on a registry in a directory, and one on S3."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import yaml

from registry_sync.keys import find_id
from tests.support.admin import MODEL, Site, fresh, problem, publish, s3_site, secrets_in, spec_of
from tests.support.seaweed import S3Server
from tests.support.stack import Stack, until

INPUT = {"x": ("FP32", [1, 4], [1.0, -2.0, 3.5, 0.25])}


@pytest.fixture(scope="module")
def directory(wide_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Two edges on a registry in a directory."""
    publish(wide_stack, tmp_path_factory.mktemp("admin"))
    return Site(wide_stack)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory, seaweed: S3Server) -> Iterator[Site]:
    """One edge on a registry in S3."""
    with s3_site(tmp_path_factory.mktemp("admin-s3"), seaweed) as site:
        yield site


@pytest.fixture(params=["directory", "s3"])
def site(request: pytest.FixtureRequest) -> Site:
    """Both kinds of registry."""
    found: Site = request.getfixturevalue(request.param)
    return found


# Endpoints.


def test_an_endpoint_is_made_once_and_serves_at_once(site: Site) -> None:
    name = fresh("a-new")
    made = site.put(name, if_none_match="*")
    assert (made.status, made.headers["etag"]) == (201, '"1"')
    assert made.headers["location"] == f"/admin/endpoints/{name}"
    assert made.json()["revision"] == 1
    for _ in range(4):  # whichever edge answers
        assert site.stack.infer(name, INPUT).status == 200
    again = problem(site.put(name, if_none_match="*"), 412, "revision-conflict")
    assert (again["current_revision"], again["your_revision"]) == (1, 0)


def test_only_the_revision_that_was_seen_is_replaced(site: Site) -> None:
    name = fresh("a-seen")
    site.put(name)
    done = site.put(name, spec_of(name, "2"), if_match='"1"')
    assert (done.status, done.headers["etag"]) == (200, '"2"')
    late = problem(site.put(name, if_match='"1"'), 412, "revision-conflict")
    assert late["detail"] == "at revision 2, yours is 1"
    assert (late["current_revision"], late["your_revision"]) == (2, 1)
    assert site.revision(name) == 2
    assert site.put(name, if_match='"7", "2"').headers["etag"] == '"3"'
    assert site.put(name, if_match="*").headers["etag"] == '"4"'


def test_without_a_condition_the_last_writer_wins_as_with_the_command(site: Site) -> None:
    name = fresh("a-last")
    assert [site.put(name).status for _ in range(3)] == [201, 200, 200]
    # As in a file of `endpoint set`, the revision in a document is the one that it replaces.
    stale = site.put(name, spec_of(name, revision=1))
    problem(stale, 412, "revision-conflict")


@pytest.mark.parametrize("if_match", ['"1"', "*", 'W/"1"', '"abc"', '"0"', '"01"'])
def test_no_condition_that_fails_makes_an_endpoint(directory: Site, if_match: str) -> None:
    answer = directory.put("a-none", if_match=if_match)
    assert problem(answer, 412, "revision-conflict")["current_revision"] == 0
    problem(directory("GET", "/endpoints/a-none"), 404, "not-found")


@pytest.mark.parametrize("if_match", ['W/"1"', '"abc"', '"0"', '"1x"'])
def test_a_tag_that_is_no_revision_matches_none(directory: Site, if_match: str) -> None:
    directory.put("a-weak")
    before = directory.revision("a-weak")
    problem(directory.put("a-weak", if_match=if_match), 412, "revision-conflict")
    assert directory.revision("a-weak") == before


@pytest.mark.parametrize(
    "headers",
    [
        {"if_match": "1"},
        {"if_match": ""},
        {"if_match": '"1'},
        {"if_match": '"1",,"2"'},
        {"if_match": ", ".join(f'"{n}"' for n in range(1, 40))},
        {"if_none_match": '"1"'},
        {"if_match": '"1"', "if_none_match": "*"},
        {"if_match": '"\xfc"'},
        {"if_none_match": "\xff"},
    ],
)
def test_a_condition_that_cannot_be_read_changes_nothing(
    directory: Site, headers: dict[str, str]
) -> None:
    directory.put("a-cond")
    before = directory.revision("a-cond")
    problem(directory.put("a-cond", **headers), 400, "bad-condition")
    assert directory.revision("a-cond") == before


@pytest.mark.rule("F15")
def test_of_twenty_writers_at_once_exactly_one_wins_each_revision(site: Site) -> None:
    name = fresh("a-race")
    first = int(site.put(name).headers["etag"].strip('"'))
    with ThreadPoolExecutor(20) as threads:
        for revision in range(first, first + 3):
            tag = f'"{revision}"'
            answers = list(threads.map(lambda _, tag=tag: site.put(name, if_match=tag), range(20)))
            counts = Counter(answer.status for answer in answers)
            assert counts == {200: 1, 412: 19}
            (won,) = [answer for answer in answers if answer.status == 200]
            assert won.headers["etag"] == f'"{revision + 1}"'


def test_writers_that_try_again_lose_no_change(site: Site) -> None:
    name, writers = fresh("a-busy"), 8
    first = int(site.put(name).headers["etag"].strip('"'))

    def write(number: int) -> None:
        while True:
            seen = site("GET", f"/endpoints/{name}")
            spec = {**seen.json(), "deadline_ms": 1000 + number}
            if site.put(name, spec, if_match=seen.headers["etag"]).status == 200:
                return

    with ThreadPoolExecutor(writers) as threads:
        list(threads.map(write, range(writers)))
    specs = site("GET", f"/endpoints/{name}/history?limit={writers}").json()["revisions"]
    assert sorted(spec["deadline_ms"] for spec in specs) == [1000 + n for n in range(writers)]
    assert [spec["revision"] for spec in specs] == list(range(first + writers, first, -1))


def test_a_reader_gets_json_or_yaml_or_that_nothing_has_changed(site: Site) -> None:
    name = fresh("a-read")
    site.put(name, if_none_match="*")
    answer = site("GET", f"/endpoints/{name}")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["variants"][0]["version"] == "1"
    as_yaml = site("GET", f"/endpoints/{name}", accept="application/yaml")
    assert as_yaml.headers["content-type"] == "application/yaml"
    assert yaml.safe_load(as_yaml.body) == answer.json()
    tag = answer.headers["etag"]
    same = site("GET", f"/endpoints/{name}", if_none_match=f'"0", W/{tag}')
    assert (same.status, same.body, same.headers["etag"]) == (304, b"", tag)
    assert site("GET", f"/endpoints/{name}", if_none_match='"99"').status == 200
    assert site("HEAD", f"/endpoints/{name}").headers["etag"] == tag


def test_yaml_is_written_too_and_comes_back_as_it_was_meant(directory: Site) -> None:
    text = yaml.safe_dump(spec_of("a-yaml"))
    for type in ("application/yaml", "text/yaml; charset=utf-8"):
        assert directory.put("a-yaml", text, content_type=type).status in (200, 201)
    shown = directory("GET", "/endpoints/a-yaml", accept="application/yaml").body
    assert directory.put("a-yaml", shown, content_type="application/yaml").status == 200


def test_endpoints_are_listed_page_by_page(site: Site) -> None:
    for name in ("a-list-1", "a-list-2", "a-list-3"):
        site.put(name)
    found, after = [], "a-list-"
    while True:
        page = site("GET", f"/endpoints?limit=2&after={after}").json()
        found += page["endpoints"]
        after = page["next"]
        if after is None:
            break
    names = [one["name"] for one in found]
    assert names == sorted(set(names))
    assert names[:3] == ["a-list-1", "a-list-2", "a-list-3"]
    assert found[0]["variants"][0]["model"] == MODEL
    assert found[0]["revision"] >= 1


def test_history_is_shown_newest_first_and_rolled_back(site: Site) -> None:
    name = fresh("a-past")
    for version in ("1", "2", "1"):
        site.put(name, spec_of(name, version))
    page = site("GET", f"/endpoints/{name}/history?limit=2").json()
    assert [spec["revision"] for spec in page["revisions"]] == [3, 2]
    rest = site("GET", f"/endpoints/{name}/history?before={page['next']}").json()
    assert ([spec["revision"] for spec in rest["revisions"]], rest["next"]) == ([1], None)
    second = site("GET", f"/endpoints/{name}/history/2")
    assert second.json()["variants"][0]["version"] == "2"
    problem(site("GET", f"/endpoints/{name}/history/9"), 404, "not-found")

    late = site("POST", f"/endpoints/{name}/rollback", if_match='"2"')
    problem(late, 412, "revision-conflict")
    done = site("POST", f"/endpoints/{name}/rollback", if_match='"3"')
    assert (done.status, done.headers["etag"], done.json()["revision"]) == (200, '"4"', 4)
    assert site("GET", f"/endpoints/{name}").json()["variants"][0]["version"] == "2"


def test_a_first_revision_cannot_be_rolled_back(directory: Site) -> None:
    name = fresh("a-first")
    directory.put(name, if_none_match="*")
    problem(directory("POST", f"/endpoints/{name}/rollback"), 409, "no-history")
    problem(directory("POST", "/endpoints/a-nobody/rollback"), 404, "not-found")
    problem(directory("GET", "/endpoints/a-nobody/history"), 404, "not-found")
    problem(directory("GET", "/endpoints/a-nobody/state"), 404, "not-found")


def test_lint_names_every_problem_and_writes_nothing(site: Site) -> None:
    spec = spec_of("a-lint", "77")
    wrong = {**spec, "deadline_ms": 0, "cache": {"ttl": 1}, "more": 1}
    for path in ("/lint", "/endpoints/a-lint/lint"):
        answer = site("POST", path, wrong).json()
        assert not answer["ok"]
        assert {error["path"] for error in answer["errors"]} == {
            *("$.deadline_ms", "$.cache.ttl", "$.more"),
        }
        (error,) = site("POST", path, spec).json()["errors"]
        assert error["path"] == "$.variants[0].version"
        assert "77 is not published" in error["message"]
        assert site("POST", path, spec_of("a-lint")).json() == {
            "ok": True,
            "errors": [],
            "warnings": [],
        }
    (error,) = site("POST", "/endpoints/a-other/lint", spec_of("a-lint")).json()["errors"]
    assert error["path"] == "$.endpoint"
    problem(site("GET", "/endpoints/a-lint"), 404, "not-found")


BAD_SPECS: dict[str, tuple[Any, int, list[str]]] = {
    "no JSON": (b'{"endpoint": "a-bad"', 422, ["$"]),
    "no YAML": (b"endpoint: [a", 422, ["$"]),
    "a number": (b"7", 422, ["$"]),
    "no UTF-8": (b"\xff\xfe", 422, ["$"]),
    "anchors": (b"a: &a [1]\nb: *a", 422, ["$"]),
    "a repeated key": (b'{"endpoint": "a-bad", "endpoint": "b"}', 422, ["$"]),
    "nested too deep": (b"[" * 5000, 422, ["$"]),
    "nothing": (b"  ", 400, []),
    "too much": (b" " * 70_000, 413, []),
    "another's": (spec_of("a-other"), 422, ["$.endpoint"]),
    "no variants": ({"endpoint": "a-bad", "variants": []}, 422, ["$.variants"]),
    "99 %": (
        {**spec_of("a-bad"), "variants": [{**spec_of("a")["variants"][0], "weight": 99}]},
        422,
        ["$.variants"],
    ),
    "not published": (spec_of("a-bad", "77"), 422, ["$.variants[0].version"]),
    "many at once": (
        {**spec_of("a-bad"), "deadline_ms": "x", "batch": {"rows_max": 0}, "zzz": 1},
        422,
        ["$.batch.rows_max", "$.deadline_ms", "$.zzz"],
    ),
    "newer": ({**spec_of("a-bad"), "schema": 9}, 422, ["$.schema"]),
    "unknown need": ({**spec_of("a-bad"), "requires": ["magic"]}, 422, ["$.requires[0]"]),
}


@pytest.mark.parametrize("what", BAD_SPECS)
def test_a_document_that_does_not_fit_is_refused_by_every_value(directory: Site, what: str) -> None:
    body, status, paths = BAD_SPECS[what]
    answer = directory.put("a-bad", body, content_type="application/yaml")
    codes = {400: "no-body", 413: "too-large", 422: "invalid-document"}
    found = problem(answer, status, codes[status])
    assert sorted(error["path"] for error in found.get("errors", [])) == paths
    assert all(error["message"] for error in found.get("errors", []))
    problem(directory("GET", "/endpoints/a-bad"), 404, "not-found")


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "code"),
    [
        ("GET", "", None, {}, 404, "no-route"),
        ("GET", "/", None, {}, 404, "no-route"),
        ("GET", "/nothing", None, {}, 404, "no-route"),
        ("GET", "/endpoints/", None, {}, 404, "no-route"),
        ("GET", "/endpoints/x/y/z", None, {}, 404, "no-route"),
        ("DELETE", "/endpoints/x", None, {}, 405, "method-not-allowed"),
        ("PATCH", "/endpoints/x", {}, {}, 405, "method-not-allowed"),
        ("POST", "/pool", {}, {}, 405, "method-not-allowed"),
        ("GET", "/cache/purge", None, {}, 405, "method-not-allowed"),
        ("GET", "/endpoints/..%2f..%2fkeys", None, {}, 404, "no-route"),
        ("GET", "/endpoints/UPPER", None, {}, 400, "bad-name"),
        ("GET", "/endpoints/" + "x" * 65, None, {}, 400, "bad-name"),
        ("PUT", "/endpoints/..", {}, {}, 400, "bad-name"),
        ("GET", "/endpoints/x/history/0", None, {}, 400, "bad-query"),
        ("GET", "/endpoints/x/history/two", None, {}, 400, "bad-query"),
        ("GET", "/endpoints/x/history?limit=0", None, {}, 400, "bad-query"),
        ("GET", "/endpoints?limit=9999", None, {}, 400, "bad-query"),
        ("GET", "/endpoints?limit=1&limit=2", None, {}, 400, "bad-query"),
        ("GET", "/endpoints?lmit=1", None, {}, 400, "bad-query"),
        ("GET", "/audit?since=yesterday", None, {}, 400, "bad-query"),
        ("GET", "/audit?before=../keys", None, {}, 400, "bad-query"),
        ("GET", "/keys?after=nobody", None, {}, 400, "bad-query"),
        ("GET", "/models/UPPER", None, {}, 400, "bad-name"),
        ("GET", f"/models/{MODEL}/versions/0", None, {}, 400, "bad-name"),
        ("GET", f"/models/{MODEL}/versions/99", None, {}, 404, "not-found"),
        ("GET", "/models/nobody", None, {}, 404, "not-found"),
        ("GET", "/keys/nobody", None, {}, 404, "not-found"),
        ("DELETE", "/keys/nobody", None, {}, 404, "not-found"),
        ("POST", "/keys/nobody/rotate", None, {}, 404, "not-found"),
        ("POST", "/cache/purge", {"endpoint": "nobody"}, {}, 404, "not-found"),
        ("POST", "/cache/purge", {"endpoint": MODEL, "version": "99"}, {}, 404, "not-found"),
        ("POST", "/cache/purge", {"endpoint": MODEL, "version": "x"}, {}, 400, "bad-name"),
        ("POST", "/cache/purge", {"version": "1"}, {}, 422, "invalid-document"),
        ("PUT", "/endpoints/x", "a=b", {"content_type": "text/plain"}, 415, "unsupported-type"),
        (
            *("PUT", "/endpoints/x", "a=b"),
            *({"content_type": "application/x-www-form-urlencoded"}, 415, "unsupported-type"),
        ),
        ("PUT", "/endpoints/x", b"x", {"content_encoding": "gzip"}, 415, "unsupported"),
        ("PUT", "/endpoints/x", {}, {"x_tidepool_reason": "x" * 1025}, 400, "bad-reason"),
        ("PUT", "/endpoints/x", {}, {"x_tidepool_reason": "a\tb"}, 400, "bad-reason"),
        ("PUT", "/endpoints/x", {}, {"x_tidepool_reason": "\xfc"}, 400, "bad-reason"),
        ("PUT", "/endpoints/x", {}, {"x_tidepool_reason": "%ff"}, 400, "bad-reason"),
    ],
)
def test_a_bad_request_is_answered_by_a_problem(
    directory: Site,
    method: str,
    path: str,
    body: Any,
    headers: dict[str, str],
    status: int,
    code: str,
) -> None:
    answer = directory(method, path, body, **headers)
    problem(answer, status, code)
    if status == 405:
        assert answer.headers["allow"]


def test_a_refused_method_names_all_that_are_allowed(directory: Site) -> None:
    allowed = directory("DELETE", "/endpoints/x").headers["allow"]
    assert {word.strip() for word in allowed.split(",")} == {"GET", "HEAD", "PUT"}


def test_a_stranger_learns_nothing_of_what_exists(directory: Site) -> None:
    _, infers = directory.key()
    for path in ("/endpoints", "/endpoints/nobody", "/nothing", ""):
        assert problem(directory("GET", path, key=None), 401, "unauthorized")["detail"]
        problem(directory("GET", path, key=infers), 403, "forbidden")


# Keys.


def test_a_key_is_shown_once_and_good_at_once(site: Site) -> None:
    id, key = site.key(tenant="shop", scopes=["infer:*"], quota={"requests_per_s": 1000})
    for _ in range(4):
        assert site.stack.infer(MODEL, INPUT, key=key).status == 200
    record = site("GET", f"/keys/{id}").json()
    assert (record["tenant"], record["scopes"]) == ("shop", ["infer:*"])
    assert record["quota"]["requests_per_s"] == 1000
    listed = site("GET", "/keys").body.decode()
    stored = json.loads(site.stack.store.get("keys.json").data)
    (mine,) = [found for found in stored["keys"] if found["id"] == id]
    assert id in listed
    assert not any(word in listed for word in (key, mine["sha256"], mine["salt"], "sha256", "salt"))


def test_keys_are_listed_page_by_page(directory: Site) -> None:
    made = [directory.key()[0] for _ in range(3)]
    found: list[str] = []
    query = ""
    while True:
        page = directory("GET", f"/keys?limit=2{query}").json()
        found += [record["id"] for record in page["keys"]]
        if page["next"] is None:
            break
        query = f"&after={page['next']}"
    assert len(found) == len(set(found))
    assert found[-3:] == made


def test_a_rotated_key_is_good_and_the_one_before_for_its_grace(site: Site) -> None:
    id, old = site.key()
    answer = site("POST", f"/keys/{id}/rotate")
    new = answer.json()["key"]
    site.stack.secrets.append(new)
    assert answer.json()["previous_not_after"] > 0
    assert find_id(new) == id
    assert site.stack.infer(MODEL, INPUT, key=new).status == 200
    assert site.stack.infer(MODEL, INPUT, key=old).status == 200
    newest = site("POST", f"/keys/{id}/rotate", {"grace_s": 0}).json()["key"]
    site.stack.secrets.append(newest)
    assert site.stack.infer(MODEL, INPUT, key=newest).status == 200
    assert [site.stack.infer(MODEL, INPUT, key=key).status for key in (old, new)] == [401, 401]


def test_a_key_has_the_share_that_was_asked_for(directory: Site) -> None:
    made = directory("POST", "/keys", {"share": 3}).json()
    directory.stack.secrets.append(made["key"])
    assert made["share"] == directory("GET", f"/keys/{made['id']}").json()["share"] == 3.0


def test_a_revoked_key_is_good_on_no_edge(site: Site) -> None:
    id, key = site.key()
    assert site.stack.infer(MODEL, INPUT, key=key).status == 200
    answer = site("DELETE", f"/keys/{id}")
    assert (answer.status, answer.body) == (204, b"")
    assert {site.stack.infer(MODEL, INPUT, key=key).status for _ in range(6)} == {401}
    problem(site("DELETE", f"/keys/{id}"), 404, "not-found")


def test_the_operators_own_key_cannot_be_rotated(directory: Site) -> None:
    answer = directory("POST", f"/keys/{find_id(directory.stack.key)}/rotate")
    assert "TIDEPOOL_API_KEY" in problem(answer, 409, "cannot-rotate")["detail"]


@pytest.mark.parametrize(
    ("wanted", "path"),
    [
        ({"tenant": "UPPER"}, "$.tenant"),
        ({"tenant": 7}, "$.tenant"),
        ({"scopes": []}, "$.scopes"),
        ({"scopes": ["root"]}, "$.scopes[0]"),
        ({"scopes": "admin"}, "$.scopes"),
        ({"quota": {"requests_per_s": -1}}, "$.quota.requests_per_s"),
        ({"quota": {"requests": 1}}, "$.quota.requests"),
        ({"not_after": "tomorrow"}, "$.not_after"),
        ({"priority": 0}, "$.priority"),
        ({"share": 0}, "$.share"),
        ({"key": "my-own-key-of-16-characters"}, "$.key"),
    ],
)
def test_a_key_that_does_not_fit_is_not_made(
    directory: Site, wanted: dict[str, Any], path: str
) -> None:
    before = directory.stack.store.get("keys.json").data
    found = problem(directory("POST", "/keys", wanted), 422, "invalid-document")
    assert path in [error["path"] for error in found["errors"]]
    assert directory.stack.store.get("keys.json").data == before


# What is there.


def test_a_purge_makes_every_edge_compute_anew(site: Site) -> None:
    name = fresh("a-purge")
    site.put(name, spec_of(name, cache={"ttl_s": 3600}))

    def is_hit() -> bool:
        return "; hit" in site.stack.infer(name, INPUT).headers["cache-status"]

    for purge in ({"endpoint": name}, {"endpoint": name, "version": 1}):
        for _ in range(20):
            is_hit()
        assert any(is_hit() for _ in range(10))
        answer = site("POST", "/cache/purge", purge)
        assert answer.status == 200
        assert not is_hit()
    assert answer.json() == {
        **{"endpoint": name, "version": "1", "cache_epoch": 1, "cache_epochs": {"1": 1}},
    }
    moves = [(r["before"], r["after"]) for r in site.trail(endpoint=name)[:2]]
    assert moves == [("version 1 epoch 0", "version 1 epoch 1"), ("epoch 0", "epoch 1")]
    state = site("GET", f"/endpoints/{name}/state")
    assert state.json()["cache_epoch"] == 1
    tag = state.headers["etag"]
    assert site("GET", f"/endpoints/{name}/state", if_none_match=tag).status == 304


def test_published_models_are_shown_with_their_files(site: Site) -> None:
    models = site("GET", "/models?limit=1000").json()["models"]
    assert {"model": MODEL, "versions": ["1", "2"]} in models
    assert site("GET", f"/models/{MODEL}").json()["versions"] == ["1", "2"]
    found = site("GET", f"/models/{MODEL}/versions/2").json()
    assert found["inputs"][0]["datatype"] == "FP32"
    assert found["files"][0]["path"] == "model.onnx"
    assert found["bytes"] == found["files"][0]["bytes"]
    assert len(found["digest"]) == 64


def test_the_build_says_what_answers(directory: Site) -> None:
    build = directory("GET", "/build").json()
    assert build["python"].startswith("3.")
    assert all(build["packages"][name] for name in ("granian", "starlette", "onnxruntime"))
    assert build["schemas"]["documents"] == 1
    assert build["commit"] is None or len(build["commit"]) == 40


def test_the_schema_describes_what_is_accepted(directory: Site) -> None:
    answer = directory("GET", "/schema")
    assert answer.headers["content-type"] == "application/schema+json"
    fields = answer.json()["$defs"]["EndpointSpec"]["properties"]
    assert {"endpoint", "variants", "cache", "scale"} <= fields.keys()


def test_the_pool_is_shown(site: Site) -> None:
    assert site("GET", "/pool").json()["workers"]


# The audit trail.


def test_why_an_endpoint_has_its_replicas_is_shown(site: Site) -> None:
    def why() -> dict[str, Any]:
        answer = site.stack.request("GET", f"/admin/endpoints/{MODEL}/why", admin=True)
        assert answer.status == 200
        found: dict[str, Any] = answer.json()
        return found

    until(lambda: why()["versions"][0]["wanted"] is not None, 10.0, "something is decided")
    version = why()["versions"][0]
    assert version["reason"]
    assert version["log"]
    problem(site.stack.request("GET", "/admin/endpoints/absent/why", admin=True), 404, "not-found")


def test_every_change_is_recorded_with_key_reason_and_request(site: Site) -> None:
    admin_id, admin = site.key(scopes=["admin"])
    said = {"key": admin, "x_tidepool_reason": "incident 7 %E2%80%93 100 % %C3%BC"}
    name = fresh("a-trail")
    site.put(name, x_request_id="req-1", **said)
    site.put(name, spec_of(name, "2"), **said)
    site("POST", f"/endpoints/{name}/rollback", **said)
    site("POST", "/cache/purge", {"endpoint": name}, **said)
    answer = site("POST", "/keys", {}, **said)
    site.stack.secrets.append(answer.json()["key"])
    id = answer.json()["id"]
    site.stack.secrets.append(site("POST", f"/keys/{id}/rotate", **said).json()["key"])
    site("DELETE", f"/keys/{id}", **said)
    problem(site.put(name, if_match='"1"', **said), 412, "revision-conflict")  # no change

    records = site.trail(who=admin_id)[::-1]
    assert [(r["what"], r["target"], r["before"], r["after"]) for r in records] == [
        ("endpoint.set", name, "0", "1"),
        ("endpoint.set", name, "1", "2"),
        ("endpoint.rollback", name, "2", "3"),
        ("endpoint.purge", name, "epoch 0", "epoch 1"),
        ("key.create", id, "", ""),
        ("key.rotate", id, "", ""),
        ("key.revoke", id, "", ""),
    ]
    assert {(r["by"], r["who"], r["outcome"]) for r in records} == {("api", admin_id, "done")}
    assert {r["why"] for r in records} == {"incident 7 – 100 % ü"}
    assert records[0]["request_id"] == "req-1"
    assert all(record["request_id"] for record in records)
    assert [r["what"] for r in site.trail(key=id)] == ["key.revoke", "key.rotate", "key.create"]
    assert len(site.trail(endpoint=name)) == 4


def test_loading_and_unloading_by_hand_is_recorded(directory: Site) -> None:
    name = fresh("a-load")
    directory.put(name)
    said = {"x-tidepool-reason": "before the sale", "x-request-id": "load-1"}
    for what in ("load", "unload"):
        path = f"/v2/repository/models/{name}/{what}"
        assert directory.stack.request("POST", path, headers=said).status == 200
    until(lambda: len(directory.trail(endpoint=name)) == 3, what="both are recorded")
    unload, load, _ = directory.trail(endpoint=name)
    assert (load["what"], unload["what"]) == ("endpoint.load", "endpoint.unload")
    assert (load["why"], load["request_id"]) == ("before the sale", "load-1")
    bad = {"x-tidepool-reason": "\xff"}
    assert directory.stack.request("POST", path, headers=bad).status == 400


def test_the_trail_is_read_page_by_page(directory: Site) -> None:
    for _ in range(5):
        directory.put("a-pages")
    found: list[str] = []
    query = ""
    while True:
        page = directory("GET", f"/audit?endpoint=a-pages&limit=2{query}").json()
        found += [record["after"] for record in page["records"]]
        if page["next"] is None:
            break
        query = f"&before={page['next']}"
    assert found == sorted(found, key=int, reverse=True)
    assert len(found) == len(set(found)) >= 5


def test_a_key_does_not_get_into_the_trail(site: Site) -> None:
    _, key = site.key()
    site.put("a-secret", x_tidepool_reason=f"for {key}")
    assert site.trail(endpoint="a-secret")[0]["why"] == f"for tp_{find_id(key)}_…"
    mine = site.put("a-secret", x_tidepool_reason=f"mine is {site.stack.key}")
    problem(mine, 400, "bad-reason")


def test_no_key_can_be_read_anywhere(site: Site) -> None:
    site.key()
    assert site.stack.leaks() == []
    assert secrets_in(site.stack) == []
