"""Callers of the rollouts' demo: files that are sent all the time, and what came back.

Threads, since every caller waits for its answer; each has a connection of its own.
"""

from __future__ import annotations

import http.client
import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass

import numpy as np

from infra import demo_model
from infra.demo import connect, exchange
from infra.demo_files import Sample

CALLERS = 4
# Between two calls of one caller.  Copies of calls run only while nobody waits, and on two cores,
# where the callers compute as well, four who call again at once leave no moment for them.
PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Tally:
    """What calls have come to."""

    calls: int = 0
    candidate_calls: int = 0  # answered by the bad version, or failed by the candidate
    candidate_failed: int = 0  # 500: the model failed
    others_failed: int = 0  # any other answer than 200, and every call that was not answered
    wrong: int = 0  # answered with 200, and otherwise than the magika package does

    @property
    def faults(self) -> int:
        """Calls that went wrong, but for those that the candidate failed."""
        return self.others_failed + self.wrong

    def __add__(self, other: Tally) -> Tally:
        """Return both together."""
        return Tally(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Traffic:
    """Sends files for as long as it is entered.

    Args:
        url: of the edge.
        key: to call with.
        candidate: name of the arm whose failures are counted apart.
        version: whose answers are, too.
        samples: the files, with the right answers.
        bodies: the request of each of them.
    """

    def __init__(
        self,
        url: str,
        key: str,
        candidate: str,
        version: str,
        samples: Sequence[Sample],
        bodies: Sequence[bytes],
    ) -> None:
        self._url, self._key = url, key
        self._candidate, self._version = candidate, version
        self._files = list(zip(samples, bodies, strict=True))
        self._ended = threading.Event()
        # The whole mutable state: what calls have come to, by the phase in which they began.
        self._lock = threading.Lock()
        self._phase = ""
        self._tallies: dict[str, Tally] = {}

    def begin(self, phase: str) -> None:
        """Let the calls that begin from now on belong to `phase`."""
        self._phase = phase

    def tally(self, phase: str) -> Tally:
        """Return what the calls of `phase` have come to."""
        with self._lock:
            return self._tallies.get(phase, Tally())

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Send until left; then every call has come to its end."""
        threads = [
            threading.Thread(target=self._send, args=(at,), name=f"caller-{at}", daemon=True)
            for at in range(CALLERS)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._ended.set()
            for thread in threads:
                thread.join()

    def _send(self, caller: int) -> None:
        connection = connect(self._url)
        # Each caller begins elsewhere, or all of them would send the same file at a time.
        start = caller * len(self._files) // CALLERS
        for sample, body in itertools.islice(itertools.cycle(self._files), start, None):
            if self._ended.wait(PAUSE_S):
                break
            phase = self._phase
            try:
                response, content, _ = exchange(connection, self._key, body, {})
            except (OSError, http.client.HTTPException):
                connection.close()  # the next call dials again
                self._count(phase, Tally(calls=1, others_failed=1))
            else:
                arm = response.headers.get("x-tidepool-variant", "")
                self._count(phase, self._judge(sample, arm, response.status, content))
        connection.close()

    def _judge(self, sample: Sample, arm: str, status: int, content: bytes) -> Tally:
        if status != 200:
            bugs = int(arm == self._candidate and status == 500)
            return Tally(1, bugs, bugs, others_failed=1 - bugs)
        found = json.loads(content)
        scores = np.array(found["outputs"][0]["data"], dtype=np.float32)
        is_right = demo_model.answer(scores).agrees(sample.answer)
        return Tally(1, int(found["model_version"] == self._version), wrong=int(not is_right))

    def _count(self, phase: str, one: Tally) -> None:
        with self._lock:
            self._tallies[phase] = self._tallies.get(phase, Tally()) + one
