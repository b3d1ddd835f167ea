"""Keys in front of every route that exists: the tables of routes are read, not copied."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from edge import server
from edge.admin.app import Admin
from edge.web import Web
from registry_sync.keys import find_id
from tests.support.models import identity
from tests.support.stack import Answer, Stack, tensors, until

OPEN = {"/v2/health/live", "/v2/health/ready"}
OPEN_ADMIN = {"/livez", "/readyz", "/metrics"}

Case = tuple[str, str, bool]  # method, path, on the admin port

BODY = {"inputs": tensors({"x": ("FP32", [1, 4], [1, 2, 3, 4])})}


def _routes(app: Any) -> Iterator[tuple[str, str]]:
    for route in app.routes:
        assert isinstance(route, Route), "a kind of route that this test does not know yet"
        path = re.sub(r"\{(\w+)(:\w+)?\}", _fill, route.path)
        for method in sorted(route.methods or ()):
            yield method, path


def _fill(match: re.Match[str]) -> str:
    return {"model": "auth-a", "version": "1"}.get(match[1], "x")


def _calls() -> Iterator[tuple[str, str]]:
    words = re.fullmatch(r".*\(([a-z_|]+)\)", server._CALL.pattern)
    assert words is not None, "the fast path's pattern is another one: read its words anew"
    for word in words[1].split("|"):
        yield "POST", f"/v2/models/auth-a/{word}"
        yield "POST", f"/v2/models/auth-a/versions/1/{word}"


def _nobody(*_: Any) -> Any:
    return None


PUBLIC: list[Case] = [
    (method, path, False)
    for method, path in [*_calls(), *_routes(Web(_nobody, _nobody, _nobody).app())]  # type: ignore[arg-type]
]
ADMIN: list[Case] = [
    (method, path, True)
    for method, path in _routes(Admin(_nobody, _nobody, _nobody).app())  # type: ignore[arg-type]
]
GUARDED = [
    (method, path, admin)
    for method, path, admin in [*PUBLIC, *ADMIN]
    if path not in (OPEN_ADMIN if admin else OPEN)
]
# Whatever is sent with a method that may change something, and is neither a call nor a question.
CHANGES = [
    case
    for case in GUARDED
    if case[0] not in ("GET", "HEAD")
    and case[:2] not in {*_calls(), ("POST", "/v2/repository/index")}
]
OF_A_MODEL = [case for case in GUARDED if "auth-a" in case[1]]
ids = lambda case: f"{case[0]} {case[1]}"  # noqa: E731  # pytest calls it for every case


@pytest.fixture(scope="module", autouse=True)
def _models(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = identity(tmp_path_factory.mktemp("models") / "i.onnx")
    for name in ("auth-a", "auth-b"):
        stack.publish(name, path)


@pytest.fixture(scope="module")
def bad_keys(stack: Stack) -> dict[str, str | None]:
    """One key of every kind that is no good."""
    good = stack.make_key("infer:*", "admin")
    key_id = find_id(good)
    revoked = stack.make_key("infer:*", "admin")
    stack.cli("keys", "revoke", find_id(revoked))
    replaced = stack.make_key("infer:*", "admin")
    stack.secrets.append(stack.cli("keys", "rotate", find_id(replaced), "--grace", "0"))
    others = f"tp_{key_id}_" + stack.make_key().rpartition("_")[2]
    unknown = f"tp_{'0' * len(key_id)}_{good.rpartition('_')[2]}"
    found: dict[str, str | None] = {
        "none": None,
        "unknown id": unknown,
        "another's secret": others,
        "expired": stack.make_key("infer:*", "admin", not_after=time.time() - 1),
        "revoked": revoked,
        "rotated away": replaced,
        "cut short": good[:-1],
        "longer": good + "a",
        "a word": "wrong-but-long-enough",
        "very long": "k" * 600,
    }
    stack.secrets += [key for key in found.values() if key]
    return found


KINDS = [
    "none",
    "unknown id",
    "another's secret",
    "expired",
    "revoked",
    "rotated away",
    "cut short",
    "longer",
    "a word",
    "very long",
]


def _send(stack: Stack, case: Case, key: str | None, **headers: str) -> Answer:
    method, path, admin = case
    body = BODY if method == "POST" else None
    return stack.request(method, path, body, headers, key=key, admin=admin)


def test_the_tables_of_routes_are_read() -> None:
    paths = {path for _, path, _ in GUARDED}
    assert {"/v2", "/v2/models/auth-a/infer", "/v2/models/auth-a/ready", "/admin/pool"} <= paths


@pytest.mark.parametrize("case", GUARDED, ids=ids)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.rule("SEC-7")
def test_no_route_answers_without_a_good_key(
    stack: Stack, bad_keys: dict[str, str | None], case: Case, kind: str
) -> None:
    answer = _send(stack, case, bad_keys[kind])
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    if case[0] != "HEAD":
        assert answer.json()["detail" if case[2] else "error"]


@pytest.mark.parametrize("case", OF_A_MODEL, ids=ids)
def test_a_key_is_good_only_for_its_endpoints(stack: Stack, case: Case) -> None:
    assert _send(stack, case, _key_for_b(stack)).status == 403


def _key_for_b(stack: Stack) -> str:
    known = getattr(stack, "key_for_b", None)
    if known is None:
        known = stack.key_for_b = stack.make_key("infer:auth-b")  # type: ignore[attr-defined]
    return str(known)


def test_a_key_is_good_for_its_endpoint(stack: Stack) -> None:
    key = _key_for_b(stack)
    assert stack.request("POST", "/v2/models/auth-b/infer", BODY, key=key).status == 200
    assert stack.request("GET", "/v2/models/auth-b", key=key).status == 200
    assert stack.request("GET", "/v2", key=key).status == 200


@pytest.mark.parametrize(
    "name", ["auth-bb", "auth-", "AUTH-B", "auth-b%20", "*", "auth-nobody", "x" * 300]
)
def test_a_scope_is_a_whole_name(stack: Stack, name: str) -> None:
    answer = stack.request("POST", f"/v2/models/{name}/infer", BODY, key=_key_for_b(stack))
    assert answer.status == 403


@pytest.mark.parametrize("case", [case for case in GUARDED if not case[2]], ids=ids)
def test_a_key_of_another_tenant_is_told_nothing_of_what_is_not_its_own(
    stack: Stack, case: Case
) -> None:
    answer = _send(stack, case, _foreign_key(stack))
    if case in OF_A_MODEL:
        assert answer.status == 403
    assert answer.status != 200 or b"auth-a" not in answer.body


def _foreign_key(stack: Stack) -> str:
    known = getattr(stack, "foreign_key", None)
    if known is None:
        known = stack.foreign_key = stack.make_key("infer:auth-b", tenant="other")  # type: ignore[attr-defined]
    return str(known)


@pytest.mark.parametrize("case", CHANGES, ids=ids)
def test_what_changes_something_needs_the_admin_scope(stack: Stack, case: Case) -> None:
    assert _send(stack, case, stack.make_key("infer:*")).status == 403


@pytest.mark.parametrize("case", [case for case in GUARDED if case[2]], ids=ids)
def test_admin_routes_need_the_admin_scope(stack: Stack, case: Case) -> None:
    assert _send(stack, case, stack.make_key("infer:*")).status == 403
    # What it asks for may not exist, but the key is good enough to be told so.
    assert _send(stack, case, stack.make_key("admin")).status not in (401, 403)


@pytest.mark.parametrize("path", sorted(OPEN))
def test_health_needs_no_key(stack: Stack, path: str) -> None:
    assert stack.request("GET", path, key=None).status == 200
    assert stack.request("GET", path, key="wrong-but-long-enough").status == 200


@pytest.mark.parametrize("path", sorted(OPEN_ADMIN))
def test_the_admin_port_shows_health_and_metrics(stack: Stack, path: str) -> None:
    assert stack.request("GET", path, key=None, admin=True).status == 200


@pytest.mark.parametrize("path", ["/admin/pool", "/metrics", "/livez"])
def test_the_public_port_has_no_admin_routes(stack: Stack, path: str) -> None:
    assert stack.request("GET", path).status == 404


@pytest.mark.parametrize("path", ["/v2", "/v2/models/auth-a", "/v2/models/auth-a/infer"])
def test_the_admin_port_has_no_public_routes(stack: Stack, path: str) -> None:
    assert stack.request("GET", path, admin=True).status == 404


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("authorization", "Bearer {}"),
        ("Authorization", "bearer {}"),
        ("authorization", "BEARER   {} "),
        ("x-api-key", "{}"),
        ("X-API-Key", "{}"),
    ],
)
def test_a_key_is_read_from_either_header(stack: Stack, name: str, form: str) -> None:
    headers = {name: form.format(stack.key)}
    answer = stack.request("POST", "/v2/models/auth-a/infer", BODY, headers, key=None)
    assert answer.status == 200, answer.body


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "{}"},
        {"authorization": "Basic {}"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer {},{}"},
        {"authorization": "Bearer wrong-but-long-enough", "x-api-key": "{}"},
        {"authorization": "", "x-api-key": "{}"},
        {"x-api-key": ""},
        {"x-api-key": "Bearer {}"},
        {"x-api-key": "{}\xe9"},
        {"authorization": "Bearer \xff\xfe"},
        {"cookie": "key={}"},
    ],
)
def test_a_key_is_read_from_nothing_else(stack: Stack, headers: dict[str, str]) -> None:
    filled = {name: value.format(stack.key, stack.key) for name, value in headers.items()}
    for path in ("/v2/models/auth-a/infer", "/v2/models/auth-a/generate"):
        assert stack.request("POST", path, BODY, filled, key=None).status == 401
    assert stack.request("GET", "/v2/models/auth-a", None, filled, key=None).status == 401
    assert stack.request("GET", "/admin/pool", None, filled, key=None, admin=True).status == 401


def test_a_key_in_the_query_is_not_read(stack: Stack) -> None:
    path = f"/v2/models/auth-a?key={stack.key}&api_key={stack.key}"
    assert stack.request("GET", path, key=None).status == 401


def test_a_refusal_tells_nothing_of_what_exists(stack: Stack) -> None:
    known = stack.request("POST", "/v2/models/auth-a/infer", BODY, key=None)
    unknown = stack.request("POST", "/v2/models/auth-nobody/infer", BODY, key=None)
    assert known.body == unknown.body
    assert "x-tidepool-variant" not in known.headers


def test_a_key_that_was_good_expires_at_its_time(stack: Stack) -> None:
    key = stack.make_key(not_after=time.time() + 1.0)
    assert stack.request("GET", "/v2", key=key).status == 200
    until(lambda: stack.request("GET", "/v2", key=key).status == 401, 5.0, "it expires")


def test_a_revoked_key_is_refused_by_every_edge_at_once(wide_stack: Stack, tmp_path: Path) -> None:
    wide_stack.publish("auth-wide", identity(tmp_path / "i.onnx"))
    key = wide_stack.make_key()
    path = "/v2/models/auth-wide/infer"
    _of_every_edge(wide_stack, lambda: wide_stack.request("POST", path, BODY, key=key), 200)
    wide_stack.cli("keys", "revoke", find_id(key))
    _of_every_edge(wide_stack, lambda: wide_stack.request("POST", path, BODY, key=key), 401)


def _of_every_edge(stack: Stack, send: Callable[[], Answer], status: int) -> None:
    """Send until every edge has answered, which its request ids tell; all say `status`."""
    edges: set[str] = set()

    def all_have() -> bool:
        answer = send()
        assert answer.status == status, answer.body
        edges.add(answer.headers["x-request-id"].partition("-")[0])
        return len(edges) == stack.options.edges

    until(all_have, what="every edge has answered", pause_s=0)


def test_without_any_key_every_call_is_refused_and_health_is_not(
    start_stack: Callable[..., Stack],
) -> None:
    stack = start_stack(log_level="debug")
    keys_file = stack.data / "registry" / "keys.json"
    assert stack.request("GET", "/v2").status == 200

    # What cannot be read changes nothing: the last good one goes on.
    good = keys_file.read_bytes()
    keys_file.write_bytes(b'{"schema": 1, "keys": [{"id"')
    stack.poke()
    assert stack.request("GET", "/v2").status == 200
    assert "keys.json" in stack.status()["rejected"]
    keys_file.write_bytes(good)

    stack.cli("keys", "revoke", find_id(stack.key))
    assert stack.request("GET", "/v2").status == 401
    assert stack.request("GET", "/admin/pool", admin=True).status == 401
    assert stack.request("GET", "/v2/health/ready", key=None).status == 200


@pytest.mark.rule("SEC-2")
def test_no_key_can_be_read_anywhere(stack: Stack, wide_stack: Stack) -> None:
    assert stack.leaks() == []
    assert wide_stack.leaks() == []
    assert not any(key in str(stack.status()) for key in stack.secrets)
