"""No key, nor a piece of one, is in anything that a system at debug level shows or writes."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Callable

import pytest

from tests.support.stack import TEST_ENGINES, Answer, Stack, observed_inputs, tensors, until

MODEL = "secretive"
PIECE_CHARS = 16  # so many characters of a key in a row are a piece of it


def pieces(key: str) -> set[bytes]:
    """Return what of a key must not be anywhere; its id, `tp_<id>`, may."""
    secret = key.rpartition("_")[2] if key.startswith("tp_") else key
    step = range(0, len(secret) - PIECE_CHARS + 1, PIECE_CHARS // 2)
    return {secret[i : i + PIECE_CHARS].encode() for i in step}


def ask_in_every_way(stack: Stack, key: str) -> list[Answer]:
    """Send a key, good or not, wherever clients have been seen to put one."""
    body = {"inputs": tensors(observed_inputs(1))}
    infer = f"/v2/models/{MODEL}/infer"
    query = f"?api_key={key}&key={key}&token={key}"
    headers = (
        {"authorization": f"Bearer {key}"},
        {"x-api-key": key},
        {"authorization": f"Basic {key}"},
        {"authorization": key},
        {"authorization": f"Bearer {key}", "x-api-key": key},
    )
    answers = []
    for header in headers:
        for method, path, content, admin in (
            ("POST", infer, body, False),
            ("POST", f"/v2/models/{MODEL}/versions/1/infer", body, False),
            ("POST", infer, "{", False),
            ("POST", f"/v2/models/{MODEL}/generate_stream", body, False),
            ("POST", infer + query, body, False),
            ("GET", f"/v2/models/{MODEL}{query}", None, False),
            ("GET", f"/v2/models/{MODEL}/stats{query}", None, False),
            ("GET", f"/nowhere{query}", None, False),
            ("DELETE", f"/v2{query}", None, False),
            ("GET", f"/admin/pool{query}", None, True),
            ("GET", f"/admin/nowhere{query}", None, True),
            ("GET", f"/metrics{query}", None, True),
        ):
            answers.append(stack.request(method, path, content, header, key=None, admin=admin))
    return answers


def body_of(stack: Stack, path: str) -> bytes:
    """Return what the admin port shows; nothing where it cannot show it now."""
    answer = stack.request("GET", path, admin=True)
    return answer.body if answer.status == 200 else b""


@pytest.mark.rule("SEC-2")
def test_no_piece_of_a_key_is_shown_or_written_anywhere(
    start_stack: Callable[..., Stack],
) -> None:
    stack = start_stack(
        engines=TEST_ENGINES, edges=2, log_level="debug", arguments=("--access-log", "on")
    )
    stack.publish_observed(MODEL, deterministic=True)
    made = stack.make_key("infer:*")
    good = [stack.key, made]
    wrong = [
        made[:-1] + ("a" if made[-1] != "a" else "b"),  # one character off
        f"tp_nobody_{secrets.token_hex(32)}",
        secrets.token_urlsafe(40),
        "x" * 40 + secrets.token_hex(300),  # longer than any key
    ]
    answers = []
    for key in (*good, *wrong):
        answers += ask_in_every_way(stack, key)
    statuses = {answer.status for answer in answers}
    assert {200, 400, 401, 403, 404, 405} <= statuses, "every kind of answer was looked at"

    # What breaks says more: end a process of each kind under way.
    for name in ("worker-0", "edge-1", "controller"):
        pid = stack.pids()[name]
        os.kill(pid, signal.SIGKILL)
        until(lambda name=name, pid=pid: stack.pids().get(name, pid) != pid, 30.0, name)
    stack.until_ready(MODEL)
    until(lambda: stack.request("GET", "/admin/pool", admin=True).status == 200, 30.0)
    answers += ask_in_every_way(stack, made)

    shown = [answer.body for answer in answers]
    shown += [repr(sorted(answer.headers.items())).encode() for answer in answers]
    for path in ("/metrics", "/metrics?view=triton", "/metrics?view=pool", "/admin/pool"):
        # The edge that is asked may be the one that has not found the new controller yet.
        shown.append(until(lambda path=path: body_of(stack, path), 30.0, path))
    shown += [stack.cli("status").encode(), stack.cli("status", "--json").encode()]
    until(lambda: stack.log_text().count('"event":"request"') >= len(answers) - 200)
    shown.append(stack.log_text().encode())
    for pid in stack.pids().values():
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            shown.append(file.read())
        assert b'"log_level":"debug"' in shown[-1]
    written = [path for path in stack.data.rglob("*") if path.is_file()]
    assert stack.log_path in written
    shown += [path.read_bytes() for path in written if path.exists()]

    forbidden = {piece for key in (*good, *wrong) for piece in pieces(key)}
    leaks = {piece for piece in forbidden for text in shown if piece in text}
    assert leaks == set()


def test_the_scan_would_find_a_leak() -> None:
    key = f"tp_abc_{secrets.token_hex(32)}"
    secret = key.rpartition("_")[2].encode()
    for start in range(len(secret) - 2 * PIECE_CHARS):
        cut = b"... " + secret[start : start + 2 * PIECE_CHARS] + b" ..."
        assert any(piece in cut for piece in pieces(key))
    assert not any(piece in b"key tp_abc of tenant default" for piece in pieces(key))
