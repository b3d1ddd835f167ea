"""An HTTP proxy in front of a real S3 server that spoils answers on demand.

Faults are taken from a list, one a request: the tests say what goes wrong, the
server behind decides what really happened.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import threading
import time
import urllib.parse
from collections.abc import Iterator

# Fault -> meaning. None in the list lets a request through.
LOSE_ANSWER = "the server carries it out, the caller never hears of it"
RESET = "the connection is cut before the server sees anything"
SLOW_DOWN = "503 SlowDown without asking the server"
CUT_BODY = "half of the answer's body, then the connection is cut"
HOLD = "no answer before `release` is set"
RACE = "409 ConditionalRequestConflict without asking the server"
GONE = "404 NoSuchKey without asking the server"
BROKEN = "500 InternalError without asking the server"
SKEWED = "403 RequestTimeTooSkewed without asking the server"
ELSEWHERE = "301 PermanentRedirect to a bucket of eu-west-1, without asking the server"
EXPIRED = "400 ExpiredToken without asking the server"
DENIED = "403 AccessDenied without asking the server"
ALTERED = "the answer's body with one bit that is another"
SLOW = "the answer's body in two parts, a while between them"
SLOW_S = 0.3
_REFUSALS = {
    SLOW_DOWN: (503, "SlowDown"),
    RACE: (409, "ConditionalRequestConflict"),
    GONE: (404, "NoSuchKey"),
    BROKEN: (500, "InternalError"),
    SKEWED: (403, "RequestTimeTooSkewed"),
    ELSEWHERE: (301, "PermanentRedirect"),
    EXPIRED: (400, "ExpiredToken"),
    DENIED: (403, "AccessDenied"),
}


class FaultyS3:
    """A proxy and its list of coming faults; `requests` counts what came in.

    `answers` has those that reached the server, with the status that it gave them.

    Only requests whose text holds `match` take a fault: ``"/audit/"``, ``"PUT "``.  `drops` names
    a header that the server behind never sees, as if it did not know it.
    """

    def __init__(self, target: str) -> None:
        self.target = urllib.parse.urlsplit(target)
        self.faults: list[str | None] = []
        self.requests: list[str] = []
        self.answers: list[tuple[str, int]] = []
        self.match = ""
        self.drops = ""  # a header that the server never sees
        self.release = threading.Event()
        self._lock = threading.Lock()
        self.endpoint = ""

    def next_fault(self, request: str) -> str | None:
        with self._lock:
            self.requests.append(request)
            if not self.faults or self.match not in request:
                return None
            return self.faults.pop(0)


@contextlib.contextmanager
def faulty_s3(target: str) -> Iterator[FaultyS3]:
    """Run a proxy to `target` ("http://host:port") in a thread."""
    proxy = FaultyS3(target)

    class Handler(_Handler):
        faulty = proxy

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield proxy
    finally:
        proxy.release.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    faulty: FaultyS3
    protocol_version = "HTTP/1.1"
    timeout = 10  # an idle kept-alive connection must not keep the test waiting for its thread

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _handle(self) -> None:
        if self.headers.get("Expect"):
            self.send_response_only(100)
            self.end_headers()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.faulty.next_fault(f"{self.command} {self.path}")
        self.close_connection = True
        if fault == RESET:
            return
        if fault in _REFUSALS:
            status, code = _REFUSALS[fault]
            error = f"<Error><Code>{code}</Code><Message>.</Message></Error>"
            is_s3 = "X-Amz-Content-SHA256" in self.headers
            text = (error if is_s3 else f"<ErrorResponse>{error}</ErrorResponse>").encode()
            headers = [("Content-Length", str(len(text)))]
            if fault == ELSEWHERE:
                headers.append(("x-amz-bucket-region", "eu-west-1"))
            self._answer(status, headers, text)
            return
        if fault == HOLD:
            self.faulty.release.wait()
        status, headers, data = self._forward(body)
        self.faulty.answers.append((f"{self.command} {self.path}", status))
        if fault == LOSE_ANSWER:
            return
        middle = len(data) // 2
        if fault == ALTERED and data:
            data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        # Who asked may have been killed since.
        with contextlib.suppress(ConnectionError):
            if fault == SLOW:
                self._answer(status, headers, data[:middle])
                time.sleep(SLOW_S)
                self.wfile.write(data[middle:])
            else:
                self._answer(status, headers, data[:middle] if fault == CUT_BODY else data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        target = self.faulty.target
        assert target.hostname is not None
        connection = http.client.HTTPConnection(target.hostname, target.port, timeout=30)
        with contextlib.closing(connection):
            # The headers go on untouched, Host included: the signature covers them.
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in ("expect", self.faulty.drops):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
            headers = [
                (name, value)
                for name, value in answer.getheaders()
                if name.lower() not in ("transfer-encoding", "connection", "content-length")
            ]
            length = answer.getheader("Content-Length") or str(len(data))
            return answer.status, [*headers, ("Content-Length", length)], data

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
        self.send_response_only(status)
        for name, value in [*headers, ("Connection", "close")]:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
