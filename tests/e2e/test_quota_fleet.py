"""One key on four edge processes of two nodes: its quota, and its end, hold over all of them."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from registry_sync import keys
from registry_sync.documents import Quota
from registry_sync.keys import find_id, make_key
from tests.support.models import identity
from tests.support.nodes import Fleet, Tier, running_fleet
from tests.support.quota_load import EdgeConnections, QuotaLoad
from tests.support.seaweed import BUCKET, S3Server
from tests.support.stack import Stack, StackOptions, until

EACH = 2  # edge processes of a node
OVER = 10  # times its rate, a key asks for
RATE = 40.0  # requests a second of the key
LEAST, MOST = 0.9, 1.1  # of the limit must be let through
REVOKED_S_MAX = 2.0
BACK_S_MAX = 40.0

EVEN = [0.25] * 4
UNEVEN = [0.94, 0.03, 0.02, 0.01]
ON_ONE_NODE = [0.0, 0.0, 0.8, 0.2]


@dataclass
class Edges:
    """A fleet whose second node has edges too, and a connection to each of its edge processes."""

    fleet: Fleet
    other: Tier
    urls: list[str]

    def connect(self) -> EdgeConnections:
        return EdgeConnections(self.urls, EACH, self.fleet.key)

    def make_key(self, quota: Quota | None = None) -> str:
        key, record = make_key("t", ["infer:*"], quota)
        keys.add_key(self.fleet.store, record)
        self.fleet.poke()
        return key


@pytest.fixture(scope="module")
def edges(tmp_path_factory: pytest.TempPathFactory, seaweed: S3Server) -> Iterator[Edges]:
    """Two nodes with two edge processes each, and the model `echo`."""
    folder = tmp_path_factory.mktemp("quota-fleet")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in seaweed.environment.items():
            patch.setenv(name, value)
        registry = f"s3://{BUCKET}/{folder.name}"
        with running_fleet(folder, registry, seaweed.environment, edges=EACH) as fleet:
            second = Stack(folder / "second", StackOptions())  # for its ports
            other = fleet.tier(
                *("edge", "--data", str(folder / "b"), "--registry", registry),
                *("--edges", str(EACH), "--lame-duck-s", "0"),
                *("--port", str(second.port), "--admin-port", str(second.admin_port)),
            )
            other.start()
            try:
                fleet.publish("echo", identity(folder / "1.onnx"))
                second.key = fleet.key
                until(lambda: _is_ready(second), BACK_S_MAX, "the second node serves", 0.1)
                until(lambda: len(fleet.status()["edges"]) == 2 * EACH, BACK_S_MAX, "", 0.1)
                yield Edges(fleet, other, [fleet.url, second.url])
            finally:
                other.stop()


def _is_ready(stack: Stack) -> bool:
    try:
        return stack.request("GET", "/v2/models/echo/ready").status == 200
    except OSError:
        return False


def is_led(fleet: Fleet) -> bool:
    """Tell whether some controller leads, and has all edges."""
    answer = fleet.request("GET", "/admin/pool", admin=True)
    return answer.status == 200 and len(answer.json()["edges"]) == 2 * EACH


def let_through(
    edges: Edges, split: list[float], rate: float, span_s: float, *, kill: bool
) -> float:
    """Return which part of the limit was let through over at least `span_s`."""
    key = edges.make_key(Quota(requests_per_s=rate, burst_s=0.5))
    connections = edges.connect()
    load = QuotaLoad(connections.connections, [part * rate * OVER for part in split], "echo", key)
    try:
        with load:
            load.until_admitted(int(0.8 * rate))
            time.sleep(2.0)  # what was saved up is spent, and parts are where the demand is
            since_s = time.monotonic()
            if kill:
                edges.fleet.controller.stop(signal.SIGKILL)
                time.sleep(span_s / 2)
                edges.fleet.controller.start()
                until(lambda: is_led(edges.fleet), BACK_S_MAX, "a controller leads", 0.1)
            time.sleep(span_s / 2 if kill else span_s)
            until_s = time.monotonic()
    finally:
        connections.close()
    assert not load.broken, load.broken
    assert {sent.status for sent in load.sent} == {200, 429}
    ratio = load.count(200, since_s, until_s) / (rate * (until_s - since_s))
    asked = sum(since_s <= sent.ended_s < until_s for sent in load.sent)
    by_edge = Counter(s.edge for s in load.sent if s.status == 200)
    print(
        f"asked {asked / (rate * (until_s - since_s)):.1f} x, let through {ratio:.3f} x of "
        f"{rate:g}/s over {until_s - since_s:.1f} s; by edge {dict(sorted(by_edge.items()))}"
    )
    return ratio


def test_uneven_load_is_held_to_the_limit_while_the_controller_is_killed(edges: Edges) -> None:
    assert LEAST <= let_through(edges, UNEVEN, RATE, 4.0, kill=True) <= MOST


@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "kill"),
    [(EVEN, False), (UNEVEN, False), (UNEVEN, True), (ON_ONE_NODE, True)],
    ids=str,
)
def test_ten_times_the_rate_is_held_to_the_limit_for_long(
    edges: Edges, split: list[float], kill: bool
) -> None:
    assert LEAST <= let_through(edges, split, RATE, 12.0, kill=kill) <= MOST


def test_a_revoked_key_is_refused_everywhere_on_connections_that_stay(edges: Edges) -> None:
    key = edges.make_key()
    connections = edges.connect()
    load = QuotaLoad(connections.connections, [50.0] * 4, "echo", key)
    try:
        with load:
            until(lambda: {s.edge for s in list(load.sent)} == {0, 1, 2, 3}, 30.0)
            began_s = time.monotonic()
            keys.revoke_key(edges.fleet.store, find_id(key))
            edges.fleet.poke()
            confirmed_s = time.monotonic()
            until(
                lambda: {s.edge for s in list(load.sent) if s.status == 401} == {0, 1, 2, 3}, 30.0
            )
            time.sleep(0.5)
    finally:
        connections.close()
    assert not load.broken, load.broken
    assert {sent.status for sent in load.sent} == {200, 401}
    last_s = max(sent.began_s for sent in load.sent if sent.status == 200)
    print(f"the last of 4 edges refused the key {last_s - began_s:.3f} s after its revocation")
    assert last_s <= confirmed_s
    assert last_s - began_s <= REVOKED_S_MAX
