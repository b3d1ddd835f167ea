"""Clients that send at a given rate to each edge process of a fleet, whatever they are answered."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import urlsplit

from tests.support.stack import until

TRIES_MAX = 200  # to reach every process behind a port by connections that the kernel spreads


@dataclass(frozen=True)
class Sent:
    """One answered request."""

    edge: int
    status: int
    began_s: float
    ended_s: float


class EdgeConnections:
    """One kept-alive connection to each edge process behind some ports."""

    def __init__(self, urls: Sequence[str], each: int, key: str) -> None:
        """Connect until `each` processes behind each of `urls` are reached."""
        self.connections: list[http.client.HTTPConnection] = []
        for url in urls:
            found: dict[str, http.client.HTTPConnection] = {}
            for _ in range(TRIES_MAX):
                parts = urlsplit(url)
                connection = http.client.HTTPConnection(parts.hostname or "", parts.port, 30.0)
                connection.request("GET", "/v2", headers={"authorization": f"Bearer {key}"})
                response = connection.getresponse()
                response.read()
                # Ids begin with what is the process's own.
                process = (response.getheader("x-request-id") or "").partition("-")[0]
                if process in found:
                    connection.close()
                else:
                    found[process] = connection
                if len(found) == each:
                    break
            assert len(found) == each, f"only {len(found)} processes answer at {url}"
            self.connections += found.values()

    def close(self) -> None:
        """Close all."""
        for connection in self.connections:
            connection.close()


class QuotaLoad:
    """One thread for each connection, which sends at its own rate and keeps what it is answered.

    A late request is made up for, so that the rate holds on a machine that stands still at times.
    """

    def __init__(
        self,
        connections: Sequence[http.client.HTTPConnection],
        rates_per_s: Sequence[float],
        model: str,
        key: str,
    ) -> None:
        """Prepare; `model` takes FP32 [1, 4]."""
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0]}
        self._body = json.dumps({"inputs": [tensor]})
        self._path = f"/v2/models/{model}/infer"
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(edge, connection, rate))
            for edge, (connection, rate) in enumerate(zip(connections, rates_per_s, strict=True))
            if rate
        ]
        self.sent: list[Sent] = []
        self.broken: list[str] = []

    def __enter__(self) -> QuotaLoad:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def count(self, status: int, since_s: float, until_s: float) -> int:
        """Return how many requests were answered with `status` in a span of time."""
        return sum(s.status == status and since_s <= s.ended_s < until_s for s in list(self.sent))

    def until_admitted(self, count: int, timeout_s: float = 60.0) -> None:
        """Wait until so many requests a second are let through."""

        def enough() -> bool:
            now_s = time.monotonic()
            return self.count(200, now_s - 1.0, now_s) >= count

        until(enough, timeout_s, f"{count} requests a second are let through", 0.1)

    def _run(self, edge: int, connection: http.client.HTTPConnection, rate_per_s: float) -> None:
        next_s = time.monotonic()
        while not self._stop.is_set():
            next_s += 1 / rate_per_s
            time.sleep(max(0.0, next_s - time.monotonic()))
            began_s = time.monotonic()
            try:
                connection.request("POST", self._path, self._body, self._headers)
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException) as error:
                self.broken.append(f"edge {edge}: {type(error).__name__}: {error}")
                return
            if response.will_close:
                self.broken.append(f"edge {edge}: {response.status} closed the connection")
                return
            self.sent.append(Sent(edge, response.status, began_s, time.monotonic()))
