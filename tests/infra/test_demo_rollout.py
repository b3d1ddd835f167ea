"""`tidepool demo --rollout`: a good version is promoted, and a bad one rolled back."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra import demo_model, demo_traffic
from infra.demo_files import Sample
from infra.demo_model import Answer
from infra.demo_rollout import Rolled, RolloutRun
from infra.demo_traffic import CALLERS, Tally, Traffic
from tests.support.processes import tidepool
from tests.support.stack import until

GOOD = Rolled("2", {"state": "promoted"}, 9.25)
BAD = Rolled("3", {"state": "rolled_back"}, 2.5)
WHILE_BAD = Tally(50, 10, candidate_failed=3)
OTHERS = Tally(500, 250)


def run(
    while_bad: Tally = WHILE_BAD,
    others: Tally = OTHERS,
    good: Rolled = GOOD,
    bad: Rolled = BAD,
) -> RolloutRun:
    return RolloutRun(good, bad, while_bad, others)


def test_last_line_says_what_became_of_both_and_at_what_cost() -> None:
    assert run().summary() == (
        "rollout ok: version 2 promoted after 9.2 s, version 3 rolled back after 2.5 s and 10 of "
        "its calls, of which 3 failed; of all other 547 calls 0 failed"
    )


@pytest.mark.parametrize(
    "failed",
    [
        run(good=BAD),
        run(bad=GOOD),
        run(while_bad=Tally(50, 10, others_failed=1)),
        run(while_bad=Tally(50, 10, wrong=1)),
        run(others=Tally(500, 250, candidate_failed=1)),
        run(others=Tally(500, 250, others_failed=1)),
        run(others=Tally(500, 250, wrong=1)),
    ],
)
def test_demo_has_failed_if_anything_but_the_bug_went_wrong(failed: RolloutRun) -> None:
    assert not failed.is_ok
    assert failed.summary().startswith("rollout failed: ")


class _Edge(BaseHTTPRequestHandler):
    """Answers "right", "theirs", "wrong", "bug" and "broken"; hangs up on anything else."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        word = self.rfile.read(int(self.headers["content-length"])).decode()
        arm = "canary" if word == "bug" else "stable"
        status = {"right": 200, "theirs": 200, "wrong": 200, "bug": 500, "broken": 500}.get(word)
        if status is None:
            self.close_connection = True
            return
        scores = np.zeros(len(demo_model.config().labels))
        scores[int(word == "wrong")] = 1.0
        version, outputs = "3" if word == "theirs" else "2", [{"data": scores.tolist()}]
        body = json.dumps({"model_version": version, "outputs": outputs}).encode()
        self.send_response(status)
        self.send_header("x-tidepool-variant", arm)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def edge(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(demo_traffic, "PAUSE_S", 0.005)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Edge) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("word", "field"),
    [
        ("right", ""),
        ("theirs", ""),
        ("wrong", "wrong"),
        ("bug", "candidate_failed"),
        ("broken", "others_failed"),
        ("silence", "others_failed"),
    ],
)
def test_each_call_is_judged_and_counted_where_it_began(edge: str, word: str, field: str) -> None:
    scores = np.zeros(len(demo_model.config().labels))
    scores[0] = 1.0
    sample = Sample(Path("f"), demo_model.answer(scores))
    traffic = Traffic(edge, "key", "canary", "3", [sample], [word.encode()])
    with traffic.flowing():
        until(lambda: traffic.tally("").calls >= 2 * CALLERS, 10.0, "a first phase")
        traffic.begin("later")
        until(lambda: traffic.tally("later").calls >= 2, 10.0, "a second phase")
    for tally in (traffic.tally(""), traffic.tally("later")):
        of_candidate = tally.calls if word in ("theirs", "bug") else 0
        faults = {field: tally.calls} if field else {}
        assert tally == Tally(tally.calls, of_candidate, **faults)
    assert traffic.tally("never") == Tally()


def test_answer_of_another_file_is_wrong(edge: str) -> None:
    sample = Sample(Path("f"), Answer("?", 0.5))
    traffic = Traffic(edge, "key", "canary", "3", [sample], [b"right"])
    with traffic.flowing():
        until(lambda: traffic.tally("").calls, 10.0, "a call")
    assert traffic.tally("").wrong == traffic.tally("").calls


@pytest.mark.slow
def test_demo_promotes_the_good_version_and_rolls_the_bad_one_back() -> None:
    ended = tidepool("demo", "--rollout", "--exit", timeout_s=150)
    assert ended.code == 0, ended.stderr[-3000:]
    *shown, last = ended.stdout.splitlines()
    found = re.fullmatch(
        r"rollout ok: version 2 promoted after ([\d.]+) s, version 3 rolled back after ([\d.]+) s "
        r"and (\d+) of its calls, of which (\d+) failed; of all other (\d+) calls 0 failed",
        last,
    )
    assert found, last
    assert 0 < int(found[4]) < int(found[3])
    heads = [line for line in shown if line.startswith("rollout magika  ")]
    assert any("  promoted  step 3 of 3" in head for head in heads)
    assert "  rolled back  " in heads[-1]
    compared = [int(n) for n in re.findall(r"copies of calls: .* (\d+) compared, ", ended.stderr)]
    assert len(compared) == 2
    assert compared[0] >= 20  # the shadow is shown at work
    assert "Traceback" not in ended.stderr
