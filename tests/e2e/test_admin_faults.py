"""The admin API where the registry fails, cannot be used from here, or nobody leads."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.admin import MODEL, Site, fresh, lone_edge, problem, s3_site, spec_of
from tests.support.faulty_s3 import HOLD, LOSE_ANSWER, RESET, SLOW_DOWN, FaultyS3
from tests.support.seaweed import S3Server
from tests.support.stack import Stack, until

INPUT = {"x": ("FP32", [1, 4], [1.0, -2.0, 3.5, 0.25])}
MANY = 10_000  # faults: more than there will be requests
ADMINS = 80  # requests at once; 64 may be under way


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory, seaweed: S3Server) -> Iterator[Site]:
    """One edge on a registry in S3."""
    with s3_site(tmp_path_factory.mktemp("admin-faults"), seaweed) as site:
        yield site


@contextmanager
def faults(site: Site, fault: str, match: str = "", count: int = MANY) -> Iterator[FaultyS3]:
    """Spoil the next requests to S3 that hold `match`."""
    assert site.s3 is not None
    site.s3.match, site.s3.faults = match, [fault] * count
    try:
        yield site.s3
    finally:
        site.s3.faults = []


# The store fails.


def test_a_change_whose_record_is_lost_is_made_and_says_so(s3: Site) -> None:
    name = fresh("f-lost")
    with faults(s3, RESET, "/audit/"):
        answer = s3.put(name, x_tidepool_reason="an emergency")
    assert (answer.status, answer.headers["x-tidepool-audit"]) == (201, "lost")
    assert s3.stack.infer(name, INPUT).status == 200
    assert s3.trail(endpoint=name) == []
    lines = [line for line in s3.stack.log_text().splitlines() if name in line]
    assert any("audit_record_lost" in line and "an emergency" in line for line in lines)
    assert s3.stack.metric("tidepool_audit_records_lost_total") >= 1
    assert "x-tidepool-audit" not in s3.put(name).headers


def test_a_change_whose_answer_is_lost_is_made_once(s3: Site) -> None:
    name = fresh("f-once")
    with faults(s3, LOSE_ANSWER, f"/endpoints/{name}.json", 2) as proxy:  # the read, the write
        answer = s3.put(name)
        assert proxy.faults == []
    assert (answer.status, answer.headers["etag"]) == (201, '"1"')
    with faults(s3, LOSE_ANSWER, "PUT ", 1):
        assert s3.put(name, if_match='"1"').headers["etag"] == '"2"'
    assert [record["after"] for record in s3.trail(endpoint=name)] == ["2", "1"]


def test_a_change_that_may_have_landed_is_recorded_as_unknown(s3: Site) -> None:
    name = fresh("f-unknown")
    with faults(s3, RESET, f"/endpoints/{name}.json"):
        answer = s3.put(name)
    assert "may have landed" in problem(answer, 503, "registry-unavailable")["detail"]
    assert answer.headers["retry-after"]
    (record,) = s3.trail(endpoint=name)
    assert (record["outcome"], record["after"]) == ("unknown", "")


def test_while_the_registry_fails_calls_are_answered(s3: Site) -> None:
    with faults(s3, SLOW_DOWN), ThreadPoolExecutor(3) as threads:
        asked = [
            threads.submit(s3, *request)
            for request in (
                ("GET", "/endpoints"),
                ("GET", "/keys"),
                ("PUT", f"/endpoints/{MODEL}", spec_of(MODEL)),
            )
        ]
        statuses = [s3.stack.infer(MODEL, INPUT).status for _ in range(50)]
        for request in asked:
            problem(request.result(), 503, "registry-unavailable")
    assert set(statuses) == {200}


def test_held_up_admin_requests_are_few_and_in_nobodys_way(s3: Site) -> None:
    name = fresh("f-held")
    s3.put(name)
    assert s3.s3 is not None
    s3.s3.release.clear()  # it may be tried again
    with (
        faults(s3, HOLD, f"/endpoints/{name}.json") as proxy,
        ThreadPoolExecutor(ADMINS) as threads,
    ):
        asked = [threads.submit(s3, "GET", f"/endpoints/{name}") for _ in range(ADMINS)]
        until(lambda: sum(one.done() for one in asked) >= ADMINS - 64, 30.0, "some are refused")
        began_s = time.monotonic()
        assert {s3.stack.infer(MODEL, INPUT).status for _ in range(50)} == {200}
        assert s3("GET", "/pool").status == 200
        assert time.monotonic() - began_s < 15.0
        assert sum(not one.done() for one in asked) == 64
        proxy.release.set()
        answers = [one.result() for one in asked]
    refused = [answer for answer in answers if answer.status != 200]
    assert len(refused) == ADMINS - 64
    for answer in refused:
        problem(answer, 503, "busy")
    assert Counter(answer.status for answer in answers)[200] == 64


# The registry cannot be used from this node, or nobody leads.


def test_an_edge_without_a_registry_says_so_and_shows_what_it_can(
    stack: Stack, tmp_path: Path
) -> None:
    with lone_edge(tmp_path / "lone", stack, registry="") as lone:
        for method, path in (("GET", "/endpoints"), ("PUT", "/endpoints/x"), ("GET", "/audit")):
            body = spec_of("x") if method == "PUT" else None
            found = problem(lone(method, path, body), 503, "registry-unusable")
            assert "--registry" in found["detail"]
        assert lone("GET", "/build").status == 200
        problem(lone("GET", "/pool"), 503, "no-controller")


def test_an_edge_without_credentials_says_so(s3: Site, tmp_path: Path) -> None:
    registry = s3.stack.options.registry
    assert s3.s3 is not None
    env = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": s3.s3.endpoint}
    with lone_edge(tmp_path / "lone", s3.stack, registry, env) as lone:
        found = problem(lone("GET", "/endpoints"), 503, "registry-unusable")
        assert "credentials" in found["detail"]
        assert "command line" in found["detail"]


def test_an_edge_that_may_only_read_reads(s3: Site, seaweed: S3Server, tmp_path: Path) -> None:
    registry, env = s3.stack.options.registry, seaweed.reader_environment
    with lone_edge(tmp_path / "lone", s3.stack, registry, env) as lone:
        assert lone("GET", f"/endpoints/{MODEL}").status == 200
        found = problem(lone.put(MODEL), 503, "registry-denied")
        assert "may not do this" in found["detail"]


def test_a_change_without_a_controller_is_made_and_said_to_be_pending(
    stack: Stack, tmp_path: Path
) -> None:
    name = fresh("f-alone")
    registry = str(stack.data / "registry")
    with lone_edge(tmp_path / "lone", stack, registry) as lone:
        answer = lone("POST", "/keys", {"tenant": name})
        stack.secrets.append(answer.json()["key"])
        assert answer.status == 202
        assert "no controller" in answer.headers["x-tidepool-pending"]
        id = answer.json()["id"]
        assert lone("GET", f"/keys/{id}").json()["tenant"] == name
        assert [record["what"] for record in lone.trail(key=id)] == ["key.create"]
        gone = lone("DELETE", f"/keys/{id}")
        assert (gone.status, gone.json()) == (202, {})


def test_a_registry_that_is_not_mounted_is_not_made_anew(stack: Stack, tmp_path: Path) -> None:
    registry = tmp_path / "not" / "mounted"
    with lone_edge(tmp_path / "lone", stack, str(registry)) as lone:
        for answer in (lone("GET", "/endpoints"), lone("POST", "/keys", {})):
            found = problem(answer, 503, "registry-unavailable")
            assert "is it mounted?" in found["detail"]
    assert not registry.exists()
