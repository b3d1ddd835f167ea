"""Two nodes with nothing in common but an S3 registry, TCP and a fleet secret."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from registry_sync import endpoints
from registry_sync.documents import parse_spec
from registry_sync.leader import look
from tests.support import rollout_stack as rollouts
from tests.support.faulty_s3 import RESET, FaultyS3, faulty_s3
from tests.support.load import Load
from tests.support.models import identity
from tests.support.nodes import Fleet, running_fleet
from tests.support.processes import tidepool
from tests.support.seaweed import BUCKET, S3Server
from tests.support.stack import until

INPUT = {"x": ("FP32", [1, 4], [1.0, -2.0, 3.5, 0.25])}
REACH_S_MAX = 2.0  # a document change, to every edge process
DECISION_S_MAX = 1.0  # of a controller, to every edge process
LOOKED_AT_S = 30.0  # three rounds of the slowest look
S3_CALLS_A_MINUTE_MAX = 40  # of both nodes together, at default intervals, with nothing to do
BACK_S_MAX = 40.0  # interpreters start, on a machine that other tests keep busy


@dataclass
class Nodes:
    """The fleet, and the proxy through which alone it sees S3."""

    fleet: Fleet
    s3: FaultyS3


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, seaweed: S3Server) -> Iterator[Nodes]:
    """Two nodes with two edge processes and the endpoint `echo` of two equal versions."""
    folder = tmp_path_factory.mktemp("fleet")
    with pytest.MonkeyPatch.context() as patch, faulty_s3(seaweed.endpoint) as proxy:
        for name, value in seaweed.environment.items():
            patch.setenv(name, value)
        env = {**seaweed.environment, "AWS_ENDPOINT_URL": proxy.endpoint}
        with running_fleet(folder, f"s3://{BUCKET}/{folder.name}", env, edges=2) as fleet:
            fleet.publish("echo", identity(folder / "1.onnx"))
            fleet.publish("echo", identity(folder / "2.onnx", shape=("N", 4)))
            until(lambda: fleet.infer("echo", INPUT).status == 200, BACK_S_MAX, "it serves")
            yield Nodes(fleet, proxy)


def spec_of(version: str) -> dict[str, object]:
    """Return `echo` with one variant, named by its version."""
    return {
        "endpoint": "echo",
        "variants": [{"name": f"v{version}", "model": "echo", "version": version, "weight": 100}],
    }


def load_on(fleet: Fleet, pause_s: float = 0.005) -> Load:
    return Load(fleet.url, fleet.key, "echo", threads=8, pause_s=pause_s)


def workers_of(fleet: Fleet) -> dict[str, int]:
    """Return the pids of the registered workers."""
    return {worker["id"]: worker["pid"] for worker in fleet.status()["workers"]}


def is_led(fleet: Fleet) -> bool:
    """Tell whether the edge that is asked has a controller."""
    return fleet.request("GET", "/admin/pool", admin=True).status == 200


@contextmanager
def s3_unreachable(proxy: FaultyS3) -> Iterator[None]:
    """Cut every connection to S3 meanwhile."""
    proxy.faults[:] = [RESET] * 1_000_000
    try:
        yield
    finally:
        proxy.faults.clear()


def test_what_is_published_to_s3_is_served_over_tcp(nodes: Nodes, tmp_path: Path) -> None:
    fleet = nodes.fleet
    path = identity(tmp_path / "m.onnx", shape=("N", 3))
    ended = fleet.command("publish", "fresh", str(path))
    assert (ended.code, ended.stdout.split()[-1]) == (0, "1"), ended.stderr
    until(lambda: fleet.get("/v2/models/fresh/ready") == 200, BACK_S_MAX, "it is ready")
    answer = fleet.infer("fresh", {"x": ("FP32", [1, 3], [1.0, 2.0, 3.0])})
    assert answer.output() == [1.0, 2.0, 3.0]
    status = fleet.status()
    assert [worker["address"][:16] for worker in status["workers"]] == ["tcp://127.0.0.1:"]
    record = look(fleet.store).record
    assert record is not None
    assert record.url == f"tcp://127.0.0.1:{fleet.control_port}"


def test_the_nodes_share_no_folder(nodes: Nodes) -> None:
    assert not set(folder_of(nodes.fleet, "a")) & set(folder_of(nodes.fleet, "b"))


def folder_of(fleet: Fleet, node: str) -> list[tuple[int, int]]:
    """Return device and inode of every file and socket of a node."""
    root = fleet.data.parent / node
    return [(s.st_dev, s.st_ino) for path in root.rglob("*") if (s := path.lstat())]


def test_document_change_reaches_every_edge_within_two_seconds_and_fails_no_request(
    nodes: Nodes,
) -> None:
    fleet = nodes.fleet
    fleet.set_endpoint(spec_of("1"))
    took_s = []
    with load_on(fleet) as load:
        for version in ("2", "1", "2", "1", "2"):
            old = "1" if version == "2" else "2"
            load.more(50)
            began_s = time.monotonic()
            endpoints.set_spec(fleet.store, parse_spec(json.dumps(spec_of(version))))
            fleet.poke()
            confirmed_s = time.monotonic()
            load.more(50)
            last_s = load.last_s[f"v{old}"]
            # Whoever asked after the confirmation got the new version, at whichever edge.
            assert last_s <= confirmed_s
            took_s.append(max(confirmed_s, last_s) - began_s)
    load.assert_clean()
    print(f"a change reached every edge in {', '.join(f'{s:.3f}' for s in took_s)} s")
    assert max(took_s) <= REACH_S_MAX


def test_endpoint_set_from_a_third_machine_returns_when_every_edge_goes_by_it(
    nodes: Nodes, tmp_path: Path
) -> None:
    fleet = nodes.fleet
    file = tmp_path / "echo.yaml"
    with load_on(fleet) as load:
        for version in ("1", "2"):
            file.write_text(json.dumps(spec_of(version)))
            ended = fleet.command("endpoint", "set", "echo", str(file))
            returned_s = time.monotonic()
            assert ended.code == 0, ended.stderr
            assert ended.stderr == ""
            load.more(50)
            others = {name: s for name, s in load.last_s.items() if name != f"v{version}"}
            assert all(last_s <= returned_s for last_s in others.values())
    load.assert_clean()


def test_decision_on_a_rollout_reaches_every_edge_within_a_second(nodes: Nodes) -> None:
    fleet = nodes.fleet
    fleet.set_endpoint({**spec_of("1"), "cache": None})
    took_s = []
    with load_on(fleet) as load:
        load.more(50)
        rollouts.start(fleet, "echo", "2", hold_s=600.0)
        for wish, phase, arm, other in (
            ("promote", "promoted", "canary", "stable"),
            ("abort", "rolled_back", "stable", "canary"),
        ):
            rollouts.wish(fleet, "echo", wish)
            rollouts.until_decided(fleet, "echo", phase)
            decided_s = time.monotonic()  # the store has it; the next look would have come sooner
            load.more(200)
            assert load.last_s[arm] > decided_s
            took_s.append(max(0.0, load.last_s[other] - decided_s))
    load.assert_clean()
    print(f"decisions reached every edge in {', '.join(f'{s:.3f}' for s in took_s)} s")
    assert max(took_s) <= DECISION_S_MAX


def test_purge_from_a_third_machine_returns_when_no_edge_answers_from_before(nodes: Nodes) -> None:
    fleet = nodes.fleet

    def states() -> set[str]:  # of both edges: connections are spread over them
        answers = [fleet.infer("echo", INPUT) for _ in range(12)]
        return {answer.headers["cache-status"].split(";")[1] for answer in answers}

    fleet.edit_endpoint("echo", cache={"ttl_s": 3600})
    until(lambda: states() == {" hit"}, BACK_S_MAX, "both edges have it")
    began_s = time.monotonic()
    endpoints.purge(fleet.store, "echo")
    fleet.poke()
    took_s = time.monotonic() - began_s
    assert " fwd=uri-miss" in states()
    until(lambda: states() == {" hit"}, BACK_S_MAX, "both edges have it again")
    ended = fleet.command("endpoint", "purge", "echo")
    assert (ended.code, ended.stdout, ended.stderr) == (0, "purged echo\n", "")
    assert " fwd=uri-miss" in states()
    print(f"a purge reached every edge in {took_s:.3f} s")
    assert took_s <= REACH_S_MAX


def test_commands_with_a_wrong_fleet_secret_are_refused(nodes: Nodes) -> None:
    ended = nodes.fleet.command("status", env={"TIDEPOOL_FLEET_SECRET": "w" * 64})
    assert ended.code == 1
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_worker_with_a_wrong_fleet_secret_never_joins(nodes: Nodes) -> None:
    fleet = nodes.fleet
    before = workers_of(fleet)
    stranger = fleet.tier(
        *("pool", "--data", str(fleet.data.parent / "stranger"), "--listen-host", "127.0.0.1"),
        *("--registry", fleet.options.registry, "--lame-duck-s", "0"),
        env={"TIDEPOOL_FLEET_SECRET": "w" * 64},
    )
    stranger.start()
    try:
        until(lambda: "controller_unreachable" in stranger.log(), BACK_S_MAX, "it was refused")
        assert workers_of(fleet) == before
    finally:
        stranger.stop()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["pool", "--listen-host", "127.0.0.1"], "fleet secret"),
        (["controller", "--listen", "tcp://127.0.0.1:1"], "fleet secret"),
        (["controller", "--listen", "tcp://0.0.0.0:1"], "--advertise"),
        (["controller", "--listen", "here"], "unix:/path, tcp://host:port or tls://host:port"),
    ],
)
def test_tier_that_could_not_be_reached_does_not_start(
    tmp_path: Path, arguments: list[str], why: str
) -> None:
    ended = tidepool(
        *arguments, *("--data", str(tmp_path / "d"), "--registry", str(tmp_path / "r"))
    )
    assert (ended.code, ended.stdout) == (1, "")
    assert why in ended.stderr
    assert "Traceback" not in ended.stderr


def test_killed_controller_comes_back_under_load_and_loses_nothing(nodes: Nodes) -> None:
    fleet = nodes.fleet
    record = look(fleet.store).record
    assert record is not None
    before = workers_of(fleet)
    with load_on(fleet) as load:
        load.more(50)
        began_s = time.monotonic()
        fleet.controller.stop(signal.SIGKILL)  # the command and its process
        time.sleep(2.0)
        fleet.controller.start()
        until(lambda: workers_of(fleet) == before, BACK_S_MAX, "the worker registers again")
        print(f"controller away for {time.monotonic() - began_s:.1f} s")
        load.more(50)
    load.assert_clean()
    after = look(fleet.store).record
    assert after is not None
    assert after.epoch > record.epoch
    assert max(engine["loads"] for engine in fleet.engine("echo", "2")) == 1


@pytest.mark.rule("F28")
def test_killed_worker_node_comes_back_and_serves(nodes: Nodes) -> None:
    fleet = nodes.fleet
    before = workers_of(fleet)
    fleet.pool.stop(signal.SIGKILL)
    until(lambda: not workers_of(fleet), 10.0, "it leaves the status")
    headers = {"x-request-timeout-seconds": "0.3", "cache-control": "no-store"}
    refused = fleet.infer("echo", INPUT, headers=headers)
    assert refused.status in (503, 504)
    assert refused.status == 504 or "retry-after" in refused.headers
    fleet.pool.start()
    began_s = time.monotonic()
    until(lambda: fleet.infer("echo", INPUT).status == 200, BACK_S_MAX, "it serves again")
    print(f"worker node back after {time.monotonic() - began_s:.1f} s")
    after = until(lambda: workers_of(fleet), 10.0)
    assert after.keys() == before.keys()
    assert after != before


@pytest.mark.rule("F1")
def test_killed_worker_process_loses_no_request(nodes: Nodes) -> None:
    fleet = nodes.fleet
    (pid,) = workers_of(fleet).values()
    with load_on(fleet) as load:
        load.more(50)
        os.kill(pid, signal.SIGKILL)
        load.more(400)
    load.assert_clean()
    assert [*workers_of(fleet).values()] != [pid]


@pytest.mark.slow
def test_idle_nodes_ask_s3_seldom(nodes: Nodes) -> None:
    until(lambda: nodes.fleet.get("/v2/models/echo/ready") == 200, BACK_S_MAX)
    time.sleep(3.0)  # until what other tests began has ended
    start = len(nodes.s3.requests)
    time.sleep(LOOKED_AT_S)
    # METHOD /bucket/prefix/key?query: keep the method, and the key or the list's prefix.
    seen = Counter(
        re.sub(r"/[^/]+/fleet\d*/?", " ", request).split("&")[0]
        for request in nodes.s3.requests[start:]
    )
    a_minute = sum(seen.values()) * 60 / LOOKED_AT_S
    print(f"{a_minute:.0f} S3 calls a minute: {dict(seen)}")
    assert seen
    assert a_minute <= S3_CALLS_A_MINUTE_MAX, seen


@pytest.mark.rule("F12")
def test_serving_goes_on_while_s3_cannot_be_reached(nodes: Nodes) -> None:
    fleet = nodes.fleet
    with load_on(fleet) as load:
        with s3_unreachable(nodes.s3):
            time.sleep(4.0)
            load.more(50)
        load.more(50)
    load.assert_clean()
    fleet.set_endpoint(spec_of("1"))


@pytest.mark.slow
def test_serving_goes_on_while_no_controller_may_lead_for_want_of_s3(nodes: Nodes) -> None:
    fleet = nodes.fleet
    with load_on(fleet) as load:
        with s3_unreachable(nodes.s3):
            # Longer than a leader acts without having renewed its record.
            until(lambda: not is_led(fleet), 40.0, "the leader stands down", 0.2)
            load.more(50)
        until(lambda: is_led(fleet) and workers_of(fleet), BACK_S_MAX, "somebody leads again", 0.2)
        load.more(50)
    load.assert_clean()
    fleet.set_endpoint(spec_of("1"))


@pytest.mark.rule("F14")
def test_edge_started_while_s3_and_controller_are_gone_serves_from_its_last_good_copies(
    nodes: Nodes,
) -> None:
    fleet = nodes.fleet
    fleet.set_endpoint(spec_of("2"))
    try:
        with s3_unreachable(nodes.s3):
            fleet.controller.stop(signal.SIGKILL)
            fleet.edge.stop()
            began_s = time.monotonic()
            fleet.edge.start()
            fleet.until_serving()
            answer = fleet.infer("echo", INPUT)
            print(f"edge back after {time.monotonic() - began_s:.1f} s")
            assert answer.status == 200
            assert answer.output() == INPUT["x"][2]
            assert answer.headers["x-tidepool-variant"] == "v2"
    finally:
        fleet.controller.start()
        until(lambda: workers_of(fleet), BACK_S_MAX, "a controller leads again", 0.2)
