"""Which version answers whom, over two edge processes, and what a changed document does."""

from __future__ import annotations

import http.client
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper, numpy_helper

from edge.variants import Arm, assign
from edge.watch import UnitHash
from registry_sync.keys import find_id
from tests.support import models
from tests.support.stack import Answer, Stack, tensors, until

MODEL = "two"
INPUTS = {"x": ("FP32", [1, 2], [1.0, 2.0])}
ANSWER_OF = {"1": [11.0, 12.0], "2": [21.0, 22.0]}
VARIANT_OF = {"1": "stable", "2": "canary"}
NAMES = ["stable", "canary"]


def _shifted(path: Path, by: float) -> Path:
    """Write ``y = x + by``, so that an answer says whose it is."""
    return models.save(
        path,
        [helper.make_node("Add", ["x", "by"], ["y"])],
        [models.tensor("x", models.ELEMENT_TYPES["FP32"], ["N", 2])],
        [models.tensor("y", models.ELEMENT_TYPES["FP32"], ["N", 2])],
        [numpy_helper.from_array(np.float32([by]), "by")],
    )


@pytest.fixture(scope="module")
def two(wide_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Stack:
    """A stack of two edges with two versions of one model."""
    folder = tmp_path_factory.mktemp("two")
    for version in ANSWER_OF:
        made = wide_stack.publish(MODEL, _shifted(folder / f"{version}.onnx", 10 * int(version)))
        assert made == version
    return wide_stack


def _split(stack: Stack, stable: float, **assign_fields: Any) -> None:
    stack.set_endpoint(
        {
            "endpoint": MODEL,
            "variants": [
                {"name": "stable", "model": MODEL, "version": "1", "weight": stable},
                {"name": "canary", "model": MODEL, "version": "2", "weight": 100 - stable},
            ],
            "assign": {"by": ["header:x-user"], **assign_fields},
            "cache": {"ttl_s": 3600},
        }
    )


def _check(answer: Answer) -> str:
    """Check that an answer is its own version's throughout; return the variant."""
    assert answer.status == 200, answer.body
    version = answer.json()["model_version"]
    assert answer.output() == ANSWER_OF[version]
    assert answer.headers["x-tidepool-variant"] == VARIANT_OF[version]
    return VARIANT_OF[version]


def _edge_of(answer: Answer) -> str:
    return answer.headers["x-request-id"].partition("-")[0]


def test_publishing_a_version_moves_no_traffic(two: Stack) -> None:
    assert {_check(two.infer(MODEL, INPUTS)) for _ in range(10)} == {"stable"}


def test_a_unit_gets_what_the_pure_function_says(two: Stack) -> None:
    _split(two, 50)
    arms = [Arm("stable", 50), Arm("canary", 50)]
    edges, seen = set(), Counter[str]()
    for number in range(200):
        user = f"user-{number}"
        answer = two.infer(MODEL, INPUTS, {"X-User": user})
        assert _check(answer) == NAMES[assign(arms, MODEL, user.encode())]
        edges.add(_edge_of(answer))
        seen[_check(answer)] += 1
    assert len(edges) == 2
    assert set(seen) == set(NAMES)


def test_every_edge_logs_once_who_got_which_arm(two: Stack) -> None:
    _split(two, 50, salt="logged")
    name_of = UnitHash("logged").hex_of
    got = {}
    for number in range(60):
        user = f"visitor-{number % 20}"
        got[name_of(user.encode())] = _check(two.infer(MODEL, INPUTS, {"x-user": user}))

    def lines() -> list[dict[str, Any]]:
        found = [line for line in two.log_text().splitlines() if '"event":"exposure"' in line]
        return [line for line in map(json.loads, found) if line["unit"] in got]

    until(lambda: {line["unit"] for line in lines()} == got.keys(), 10.0, "all units are logged")
    assert all(line["variant"] == got[line["unit"]] for line in lines())
    by_edge = Counter((line["edge"], line["unit"]) for line in lines())
    assert set(by_edge.values()) == {1}
    assert len({edge for edge, _ in by_edge}) == 2
    assert "visitor-" not in two.log_text()


def test_the_salt_is_part_of_the_assignment(two: Stack) -> None:
    _split(two, 30, salt="another")
    arms = [Arm("stable", 30), Arm("canary", 70)]
    for number in range(50):
        user = f"user-{number}"
        answer = two.infer(MODEL, INPUTS, {"x-user": user})
        assert _check(answer) == NAMES[assign(arms, "another", user.encode())]


def test_versions_never_share_an_answer(two: Stack) -> None:
    """The same body over and over: each answer, hit or not, is its own version's."""
    _split(two, 50)
    states = Counter[str]()
    for number in range(120):
        answer = two.infer(MODEL, INPUTS, {"x-user": f"user-{number % 17}"})
        _check(answer)
        states[answer.headers["cache-status"].partition(";")[2].split(";")[0].strip()] += 1
    assert states["hit"] >= 100


def test_without_a_unit_arms_are_drawn_by_their_weights(two: Stack) -> None:
    _split(two, 50)
    seen = Counter(_check(two.infer(MODEL, INPUTS)) for _ in range(200))
    assert 50 <= seen["stable"] <= 150  # seven standard deviations


def test_a_key_may_be_the_unit(two: Stack) -> None:
    _split(two, 50, by=["header:x-user", "key"])
    arms = [Arm("stable", 50), Arm("canary", 50)]
    for _ in range(4):
        key = two.make_key()
        wanted = NAMES[assign(arms, MODEL, find_id(key).encode())]
        assert {_check(two.infer(MODEL, INPUTS, key=key)) for _ in range(5)} == {wanted}


def test_a_header_picks_where_it_may(two: Stack) -> None:
    _split(two, 100, header_may_pick=True)
    for name in NAMES:
        assert _check(two.infer(MODEL, INPUTS, {"x-tidepool-variant": name})) == name
    wrong = two.infer(MODEL, INPUTS, {"x-tidepool-variant": "nobody"})
    assert wrong.status == 400
    assert "x-tidepool-variant" in wrong.error


def test_a_header_picks_nothing_where_it_may_not(two: Stack) -> None:
    _split(two, 100)
    for name in (*NAMES, "nobody"):
        assert _check(two.infer(MODEL, INPUTS, {"x-tidepool-variant": name})) == "stable"


@pytest.mark.parametrize("version", ANSWER_OF)
def test_a_version_is_called_by_its_number(two: Stack, version: str) -> None:
    _split(two, 100)
    answer = two.infer(MODEL, INPUTS, version=version)
    assert (answer.status, answer.output()) == (200, ANSWER_OF[version])
    body = answer.json()
    assert (body["model_name"], body["model_version"]) == (MODEL, version)


def test_a_version_that_no_endpoint_names_is_loaded_by_its_call(two: Stack, tmp_path: Path) -> None:
    two.publish("alone", _shifted(tmp_path / "1.onnx", 10))
    two.publish("alone", _shifted(tmp_path / "2.onnx", 20))
    assert two.engine("alone", "2") == []
    answer = two.infer("alone", INPUTS, version="2")
    assert answer.output() == ANSWER_OF["2"]


@pytest.mark.parametrize(
    "version", ["3", "0", "01", "-1", "x", "1%20", "1.0", "%2e%2e", "%ef%bc%91"]
)
def test_an_unknown_version_is_not_found(two: Stack, version: str) -> None:
    path = f"/v2/models/{MODEL}/versions/{version}"
    for method, rest in (("POST", "/infer"), ("GET", ""), ("GET", "/ready")):
        body = {"inputs": tensors(INPUTS)} if method == "POST" else None
        answer = two.request(method, path + rest, body)
        assert answer.status == 404, (rest, answer.body)
        assert answer.error


@dataclass
class Crowd:
    """Clients that call without a pause, and what they got since `mark`."""

    stack: Stack
    answers: list[tuple[int, str, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    generation: int = 0
    is_over: threading.Event = field(default_factory=threading.Event)

    def mark(self) -> int:
        """Begin a new generation: calls sent from now on belong to it."""
        self.generation += 1
        return self.generation

    def of(self, generation: int) -> tuple[Counter[str], set[str]]:
        """Return variants and edges of the calls that were sent in a generation."""
        found = [a for a in list(self.answers) if a[0] == generation]
        return Counter(variant for _, variant, _ in found), {edge for *_, edge in found}

    def work(self) -> None:
        """Call until it is over, a few times on each connection, so that both edges get calls."""
        body = json.dumps({"inputs": tensors(INPUTS)})
        try:
            while not self.is_over.is_set():
                connection = http.client.HTTPConnection("127.0.0.1", self.stack.port, timeout=20)
                with closing(connection):
                    for _ in range(10):
                        self._call(connection, body)
        except BaseException as error:  # any failure at all is what the test looks for
            self.failures.append(repr(error))

    def _call(self, connection: http.client.HTTPConnection, body: str) -> None:
        generation = self.generation
        connection.request("POST", f"/v2/models/{MODEL}/infer", body, self.stack.auth())
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        answer = Answer(response.status, headers, response.read())
        self.answers.append((generation, _check(answer), _edge_of(answer)))


@contextmanager
def _crowd(stack: Stack, count: int = 8) -> Iterator[Crowd]:
    crowd = Crowd(stack)
    threads = [threading.Thread(target=crowd.work) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield crowd
    finally:
        crowd.is_over.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("way", ["functions", "command"])
def test_a_changed_document_holds_when_set_returns(two: Stack, way: str) -> None:
    """On every edge, under load, and no request fails meanwhile."""
    _split(two, 100)
    with _crowd(two) as crowd:
        for round_ in range(4 if way == "functions" else 1):
            stable = 100 * (round_ % 2)
            if way == "functions":
                _split(two, stable)
            else:
                spec = json.loads(two.cli("endpoint", "get", MODEL, "--json"))
                del spec["revision"]
                for variant in spec["variants"]:
                    variant["weight"] = 100 if (variant["name"] == "stable") == bool(stable) else 0
                two.cli("endpoint", "set", MODEL, stdin=json.dumps(spec).encode())
            generation = crowd.mark()
            until(lambda g=generation: len(crowd.of(g)[1]) == 2, 20.0, "both edges have answered")
            assert set(crowd.of(generation)[0]) == {"stable" if stable else "canary"}
    assert crowd.failures == []


def test_the_counters_of_all_edges_add_up_exactly(two: Stack, tmp_path: Path) -> None:
    name = "added"
    two.publish(name, _shifted(tmp_path / "a.onnx", 10))
    wrong = {"x": ("FP32", [1, 3], [1.0, 2.0, 3.0])}

    def total(status: str) -> float:
        return two.metric("tidepool_requests_total", endpoint=name, status=status)

    edges = set()
    for _ in range(100):
        edges.add(_edge_of(two.infer(name, INPUTS)))
        assert two.infer(name, wrong).status == 422
    assert len(edges) == 2
    until(lambda: (total("200"), total("422")) == (100, 100), 5.0, "200 requests are counted")
    assert two.metric("tidepool_requests_total", endpoint=name) == 200
    assert two.metric("tidepool_request_seconds_count", endpoint=name) == 200
    assert two.metric("tidepool_cache_total", endpoint=name) == 100


def test_refusals_before_the_endpoint_are_counted_too(two: Stack) -> None:
    def total(status: str) -> float:
        return two.metric("tidepool_requests_total", endpoint="", status=status)

    before = until_steady(total, ["401", "404"])
    for _ in range(30):
        assert two.request("POST", f"/v2/models/{MODEL}/infer", b"{}", key=None).status == 401
        assert two.request("POST", "/v2/models/nobody-knows/infer", b"{}").status == 404
    wanted = [before[0] + 30, before[1] + 30]
    until(lambda: [total("401"), total("404")] == wanted, 5.0, "60 refusals are counted")


def until_steady(total: Any, statuses: list[str]) -> list[float]:
    """Read counters once every edge has written what it counted before."""
    seen: list[list[float]] = []

    def is_steady() -> bool:
        seen.append([total(status) for status in statuses])
        return len(seen) > 5 and all(found == seen[-1] for found in seen[-6:])

    until(is_steady, 15.0, "the counters stand still", pause_s=0.25)
    return seen[-1]
