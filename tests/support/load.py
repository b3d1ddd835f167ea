"""Clients that call without a pause and hold every answer against its own input."""

from __future__ import annotations

import http.client
import json
import threading
import time
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import numpy as np

FEATURES = 4  # of the `identity` model: y = x, so that an answer shows whose it is


class Load:
    """Threads that call an identity model until told to stop, each on its own connection.

    Inputs are never the same twice, so no answer comes out of a cache.  `wrong` and `failed` are
    to be empty at the end; `latencies_s` has one entry for each right answer.
    """

    def __init__(
        self,
        url: str,
        key: str,
        model: str,
        *,
        threads: int = 4,
        total: int = 0,
        pause_s: float = 0.0,
        timeout_s: float = 30.0,
        tries: int = 1,
    ) -> None:
        """Prepare.

        Args:
            url: of the public port.
            key: to call with.
            model: FP32 [N, `FEATURES`] → the same.
            threads: so many clients.
            total: they end by themselves after so many requests; 0: when told to.
            pause_s: of each client between two requests.
            timeout_s: of a socket.
            tries: so often a client asks at most until it is answered.
        """
        self._url = urlsplit(url)
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        self._path = f"/v2/models/{model}/infer"
        self._pause_s = pause_s
        self._timeout_s = timeout_s
        self._left = total
        self._is_bounded = total > 0
        self._tries = tries
        self.asked = 0  # with new inputs
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(number,)) for number in range(threads)
        ]
        self.wrong: list[str] = []
        self.failed: list[str] = []
        self.latencies_s: list[float] = []
        self.last_s: dict[str, float] = {}  # variant -> when its last answer was asked for

    @property
    def answered(self) -> int:
        """How many right answers came so far."""
        return len(self.latencies_s)

    def wait(self) -> None:
        """Wait until `total` requests were sent and answered."""
        for thread in self._threads:
            thread.join()

    def more(self, count: int, timeout_s: float = 60.0) -> None:
        """Wait for so many further right answers."""
        until = self.answered + count
        deadline_s = time.monotonic() + timeout_s
        while self.answered < until:
            assert not self.wrong, self.wrong[:3]
            assert not self.failed, self.failed[:3]
            assert time.monotonic() < deadline_s, f"only {self.answered} of {until} answers"
            time.sleep(0.01)

    def assert_clean(self) -> None:
        """See that nothing was lost and nothing was wrong."""
        assert not self.wrong, self.wrong[:3]
        assert not self.failed, (len(self.failed), self.failed[:3])

    def __enter__(self) -> Self:
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
        self.wait()

    def _take(self) -> bool:
        if self._stop.is_set():
            return False
        if not self._is_bounded:
            return True
        with self._lock:
            self._left -= 1
            return self._left >= 0

    def _run(self, number: int) -> None:
        random = np.random.default_rng(number)
        connection = http.client.HTTPConnection(
            self._url.hostname or "", self._url.port, timeout=self._timeout_s
        )
        try:
            while self._take():
                values = [float(v) for v in random.standard_normal(FEATURES, dtype=np.float32)]
                self.asked += 1
                for _ in range(self._tries):
                    failures = len(self.failed)
                    try:
                        self._ask(connection, values, time.monotonic())
                    except (OSError, http.client.HTTPException) as error:
                        self.failed.append(f"{type(error).__name__}: {error}")
                        connection.close()
                    if len(self.failed) == failures:
                        break
                if self._pause_s:
                    time.sleep(self._pause_s)
        finally:
            connection.close()

    def _ask(
        self, connection: http.client.HTTPConnection, values: list[float], began_s: float
    ) -> None:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, FEATURES], "data": values}
        connection.request("POST", self._path, json.dumps({"inputs": [tensor]}), self._headers)
        response = connection.getresponse()
        body = response.read()
        took_s = time.monotonic() - began_s
        if response.status != 200:
            self.failed.append(f"{response.status} after {took_s:.2f} s: {body[:300]!r}")
            return
        outputs = json.loads(body)["outputs"]
        found = np.array(outputs[0]["data"], np.float32).ravel()
        if len(outputs) != 1 or not np.array_equal(found, np.array(values, np.float32)):
            self.wrong.append(f"{values} was answered with {body[:300]!r}")
            return
        variant = response.getheader("x-tidepool-variant") or ""
        self.last_s[variant] = max(began_s, self.last_s.get(variant, 0.0))
        self.latencies_s.append(took_s)
