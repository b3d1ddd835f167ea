"""What attackers have been seen to send that no other file of tests does."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.support.models import identity
from tests.support.raw_http import Connection
from tests.support.stack import Stack

MODEL = "attacked"
INPUT = {"x": ("FP32", [1, 4], [1.0, 2.0, 3.0, 4.0])}
CHUNKS = 1_000_000
GROWTH_BYTES_MAX = 16 << 20
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"  # and empty settings


@pytest.fixture(scope="module", autouse=True)
def _model(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> None:
    stack.publish(MODEL, identity(tmp_path_factory.mktemp("models") / "i.onnx"))


def _rss_bytes(stack: Stack) -> int:
    text = Path(f"/proc/{stack.pids()['edge-0']}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB", text, re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


# Chunks.


@pytest.mark.rule("SEC-1")
def test_a_million_one_byte_chunks_cost_little_and_nobody_else(stack: Stack) -> None:
    head = (
        f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {stack.key}"
        "\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    ).encode()
    body = b"1\r\n{\r\n" * CHUNKS
    assert stack.infer(MODEL, INPUT).status == 200
    before, pids = _rss_bytes(stack), stack.pids()
    took_s: list[float] = []
    is_over = threading.Event()

    def others() -> None:
        while not is_over.is_set() or len(took_s) < 20:
            began_s = time.monotonic()
            assert stack.infer(MODEL, INPUT).status == 200
            took_s.append(time.monotonic() - began_s)

    thread = threading.Thread(target=others)
    thread.start()
    with closing(Connection(stack)) as connection:
        connection.send(head, body)
        answer = connection.read()
    is_over.set()
    thread.join()
    assert answer.status in (400, 413, 0), answer
    assert _rss_bytes(stack) - before < GROWTH_BYTES_MAX
    assert stack.pids() == pids
    assert statistics.median(took_s) < 0.5


# Tokens.


def _part(content: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()


def tokens() -> Iterator[str]:
    """Yield tokens like JWTs that some server somewhere has taken for good ones."""
    claims = {"sub": "admin", "scope": "admin infer:*", "exp": 4_102_444_800, "aud": "tidepool"}
    for algorithm in ("none", "None", "NONE", "", "HS256", "RS256", "ES256"):
        signed = f"{_part({'alg': algorithm, 'typ': 'JWT'})}.{_part(claims)}"
        yield f"{signed}."
        for secret in (b"", b"secret", b"tidepool"):
            mac = hmac.digest(secret, signed.encode(), hashlib.sha256)
            yield f"{signed}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    for header in (
        {"alg": "HS256", "jwk": {"kty": "oct", "k": ""}},
        {"alg": "RS256", "jku": "http://127.0.0.1:1/keys"},
        {"alg": "HS256", "kid": "../../dev/null"},
        {"alg": "RS256", "x5u": "file:///etc/passwd", "crit": ["exp"]},
    ):
        yield f"{_part(header)}.{_part(claims)}.{_part('')}"
    yield f"{_part({'alg': 'none'})}.{_part({**claims, 'pad': 'a' * 9000})}."


@pytest.mark.rule("SEC-20")
def test_no_token_is_a_key(stack: Stack) -> None:
    for token in tokens():
        for headers in ({"authorization": f"Bearer {token}"}, {"x-api-key": token}):
            for method, path, admin in (
                ("POST", f"/v2/models/{MODEL}/infer", False),
                ("GET", "/admin/pool", True),
            ):
                body = {"inputs": []} if method == "POST" else None
                answer = stack.request(method, path, body, headers, key=None, admin=admin)
                assert answer.status == 401, (token, answer)


# HTTP/2.


@pytest.mark.rule("SEC-22")
@pytest.mark.parametrize("admin", [False, True], ids=["public", "admin"])
def test_http_2_is_not_spoken(stack: Stack, admin: bool) -> None:
    with closing(Connection(stack, admin=admin)) as connection:
        connection.send(PREFACE)
        answer = connection.read()
    assert answer.status == 0 or 400 <= answer.status < 600
    upgrade = {"connection": "upgrade, http2-settings", "upgrade": "h2c", "http2-settings": "AAA"}
    answer = stack.request("GET", "/v2/health/ready", headers=upgrade, admin=admin)
    assert answer.status in (200, 404)  # as if it had not been asked for
    assert "upgrade" not in answer.headers
