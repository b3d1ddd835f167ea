"""Which requests a rollout's guards judge by: a whole edge, and a worker that speaks the wire."""

from __future__ import annotations

import asyncio
import json
import shutil
import struct
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace
from starlette.applications import Starlette

from edge.auth import Auth
from edge.cache import AnswerCache
from edge.dispatching.calls import Call
from edge.dispatching.dispatch import Pool
from edge.errors import DeadlineExceeded, Refusal, WorkerLost
from edge.exposure import ExposureLog
from edge.flight import Flights
from edge.infer import Service
from edge.log_writer import Item
from edge.metrics import Metrics
from edge.server import App
from edge.snapshot import compile_snapshot
from edge.watch import ArmWatch, UnitHash
from edge.world import World
from pool.wire import data
from pool.wire.control import Documents, EngineRoute, Routes, WorkerRoute
from pool.wire.data import Tensor
from pool.wire.peer import Address, Peer
from registry_sync.documents import (
    Assign,
    Cache,
    EndpointSpec,
    EndpointState,
    Keys,
    Variant,
    write,
)
from registry_sync.keys import make_key
from registry_sync.rollout_terms import Guard, Rollout, RolloutState, Step
from tests.support.artifacts import manifest_of
from tests.support.edge_fleet import FakeWorker

KEY, RECORD = make_key("t", ["infer:*"])
MANIFESTS = {f"m/{v}": write(manifest_of({"f": v.encode()}, version=v)) for v in "12"}
BY_USER = Assign(by=("header:x-user",), salt="s", header_may_pick=True)
SPEC = EndpointSpec(
    "e",
    (Variant("stable", "m", "1", 100.0), Variant("canary", "m", "2", 0.0)),
    assign=BY_USER,
    rollout=Rollout(id="r", steps=(Step(50), Step(100)), guard=Guard(slower_than_ms=5_000)),
)
FINE = struct.pack("<2f", 0.25, 0.75)
NOT_A_NUMBER = struct.pack("<2f", 0.25, float("nan"))


class Lines:
    """A log that keeps its lines."""

    def __init__(self) -> None:
        self.is_full = False
        self.lines: list[dict[str, Any]] = []

    def put(self, item: Item) -> bool:
        if not self.is_full:
            assert not isinstance(item, str)
            self.lines += map(json.loads, item().splitlines())
        return not self.is_full


class Request:
    """One request, as granian hands it over."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.status = 0
        self.body = b""

    async def __call__(self) -> bytes:
        return self._body

    def response_bytes(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status, self.body = status, body

    def response_stream(self, status: int, headers: list[tuple[str, str]]) -> Request:
        self.status = status
        return self

    async def send_bytes(self, data: bytes) -> None:
        self.body += data


class Edge:
    """An edge process without its ports, and its only worker."""

    def __init__(self, folder: Path) -> None:
        self.pool = Pool("e1", None)
        self.metrics = Metrics(folder / "metrics", "e1")
        self.log = Lines()
        self.exposures = ExposureLog("e1", self.log)  # type: ignore[arg-type]
        self.world = World(
            edge_id="e1",
            folder=folder / "edge",
            pool=self.pool,
            find=self._nobody,
            secrets=None,
            metrics=self.metrics,
        )
        self.worker = FakeWorker("w", Address(path=f"{folder}/w"))
        self.worker.on_call = self._on_call
        self.answers: list[Callable[[Peer, data.Call], None]] = []
        service = Service(
            world=self.world,
            pool=self.pool,
            auth=Auth(),
            cache=AnswerCache(1 << 20),
            flights=Flights(),
            metrics=self.metrics,
            exposures=self.exposures,
        )
        self.app = App(service, Starlette(), 1 << 20, 10.0)

    async def _nobody(self) -> str | None:
        return None

    async def up(self) -> None:
        await self.worker.up()
        self.route()
        await self.until(lambda: self.pool.workers_up == 1)

    def route(self, *, is_fallback: bool = False) -> None:
        engines = tuple(EngineRoute("m", v, ("w",), ("w",)) for v in "12")
        workers = (WorkerRoute("w", "i", str(self.worker.address), is_fallback=is_fallback),)
        self.pool.update(Routes(1, 1, workers, engines, ready=True))

    def follow(
        self, spec: EndpointSpec = SPEC, *, segment: int = 1, candidate: float = 50.0, **state: Any
    ) -> None:
        """Go by a spec, and by a rollout's state in a segment."""
        done = RolloutState("r", segment=segment, step=1, **state)
        weights = {"stable": 100 - candidate, "canary": candidate}
        states = {"e": write(EndpointState("e", spec.revision, weights, rollout=done))}
        documents = Documents(1, 1, {"e": write(spec)}, states, MANIFESTS, write(Keys((RECORD,))))
        self.world.snapshot = compile_snapshot(documents, self.world.snapshot, self.metrics)
        assert not self.world.snapshot.rejected

    def _on_call(self, peer: Peer, call: data.Call) -> None:
        (self.answers.pop(0) if self.answers else answer())(peer, call)

    async def ask(
        self, user: str = "", *, path: str = "e", x: float = 0.0, how: str = "infer", **headers: str
    ) -> Request:
        """Ask once; the answer is there when this returns."""
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [x, x]}
        body = json.dumps({"inputs": [tensor]} if how == "infer" else {"x": [[x, x]]}).encode()
        found = {"x-api-key": KEY, "content-length": str(len(body))}
        found |= {name.replace("_", "-"): value for name, value in headers.items()}
        if user:
            found["x-user"] = user
        request = Request(body)
        scope: Any = SimpleNamespace(
            proto="http",
            method="POST",
            path=f"/v2/models/{path}/{how}",
            headers=SimpleNamespace(get=found.get),
        )
        async with asyncio.timeout(10):
            await self.app.__rsgi__(scope, request)
        return request

    def arm(self, name: str, segment: int = 1) -> ArmWatch:
        watch = self.world.snapshot.endpoints["e"].watch
        assert watch is not None
        return watch.segment(segment, (), 5.0).arms[name]

    def counted(self, segment: int = 1) -> tuple[int, int, int]:
        """Return the calls, errors and slow ones of both arms together."""
        arms = [self.arm(name, segment) for name in ("stable", "canary")]
        return (
            sum(arm.calls for arm in arms),
            sum(arm.errors for arm in arms),
            sum(arm.slow for arm in arms),
        )

    def assigned(self, segment: int = 1) -> int:
        return sum(self.arm(name, segment).assigned for name in ("stable", "canary"))

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not is_so():  # noqa: ASYNC110
                await asyncio.sleep(0.002)


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    folder = Path(tempfile.mkdtemp(prefix="tp"))
    made = Edge(folder)
    made.follow()
    await made.up()
    yield made
    await made.pool.close()
    await made.worker.down()
    await asyncio.sleep(0.02)
    shutil.rmtree(folder)


def answer(content: bytes = FINE) -> Callable[[Peer, data.Call], None]:
    tensors = [Tensor("y", "FP32", (1, 2), content)]

    def say(peer: Peer, call: data.Call) -> None:
        reply = data.Reply(call.call_id, 200, "", data.heads(tensors), 5, 6, 1)
        peer.send(data.encode(reply, tensors))

    return say


def refuse(status: int) -> Callable[[Peer, data.Call], None]:
    def say(peer: Peer, call: data.Call) -> None:
        peer.send(data.encode(data.Reply(call.call_id, status, "because")))

    return say


def keep(peer: Peer, call: data.Call) -> None:
    """Never answer."""


def hang_up(peer: Peer, call: data.Call) -> None:
    peer.close()


def with_cache(**fields: Any) -> EndpointSpec:
    return replace(SPEC, cache=Cache(60.0, **fields))


async def test_answered_and_failed_calls_count_for_their_arm(edge: Edge) -> None:
    for number in range(40):
        edge.answers = [refuse(500)] if number % 4 == 0 else []
        assert (await edge.ask(f"u{number}")).status == (500 if number % 4 == 0 else 200)
    stable, canary = edge.arm("stable"), edge.arm("canary")
    assert edge.counted() == (40, 10, 0)
    assert stable.calls == stable.units == stable.assigned > 8
    assert canary.calls == canary.units == canary.assigned > 8
    assert len(stable.told) + len(canary.told) == 10
    assert stable.requests + canary.requests == 40
    assert stable.outputs.classes == {"1": stable.calls - stable.errors}
    evidence = stable.evidence()
    assert sum(evidence.seconds) == stable.calls
    assert 0 < evidence.log_sum < stable.calls * 14  # less than a second each


async def test_call_whose_workers_broke_is_an_error(edge: Edge) -> None:
    edge.answers = [hang_up, hang_up]
    assert (await edge.ask("u")).status == 502
    assert edge.counted() == (1, 1, 0)


@pytest.mark.parametrize("status", [400, 404, 422, 503])
async def test_refusals_of_a_worker_are_no_outcomes(edge: Edge, status: int) -> None:
    edge.answers = [refuse(status)]
    assert (await edge.ask("u")).status == status
    assert (edge.counted(), edge.assigned()) == ((0, 0, 0), 1)


async def test_call_that_ran_out_of_time_at_a_worker_is_an_error_and_slow(edge: Edge) -> None:
    edge.answers = [refuse(504)]
    assert (await edge.ask("u")).status == 504
    edge.answers = [keep]
    sweeping = asyncio.create_task(edge.pool.sweep_forever())
    assert (await edge.ask("v", x_request_timeout_seconds="0.05")).status == 504
    sweeping.cancel()
    assert edge.counted() == (2, 2, 2)


async def test_call_that_no_worker_was_given_is_nothing(edge: Edge) -> None:
    await edge.worker.down()
    await edge.until(lambda: not edge.pool.workers_up)
    sweeping = asyncio.create_task(edge.pool.sweep_forever())
    assert (await edge.ask("u", x_request_timeout_seconds="0.05")).status == 503
    sweeping.cancel()
    assert (edge.counted(), edge.assigned()) == ((0, 0, 0), 1)


async def test_request_that_is_refused_before_it_is_sent_is_assigned_and_no_outcome(
    edge: Edge,
) -> None:
    assert (await edge.ask("u", x_request_timeout_seconds="no")).status == 400
    assert (edge.counted(), edge.assigned()) == ((0, 0, 0), 1)


async def test_caller_that_picks_its_arm_says_nothing_of_it(edge: Edge) -> None:
    edge.answers = [refuse(500), refuse(500)]
    assert (await edge.ask("u", x_tidepool_variant="canary")).status == 500
    assert (await edge.ask("u", path="m/versions/2")).status == 500
    edge.exposures.flush()
    assert (edge.counted(), edge.assigned(), edge.log.lines) == ((0, 0, 0), 0, [])


async def test_hit_of_the_cache_is_no_outcome(edge: Edge) -> None:
    edge.follow(with_cache())
    for _ in range(5):
        assert (await edge.ask("u")).status == 200
    assert (edge.counted(), edge.assigned()) == ((1, 0, 0), 1)


async def test_those_who_join_a_flight_are_no_outcomes(edge: Edge) -> None:
    edge.follow(with_cache())
    edge.answers = [refuse(500)]
    found = await asyncio.gather(*(edge.ask("u") for _ in range(5)))
    assert [request.status for request in found] == [500] * 5
    assert edge.counted() == (1, 1, 0)


async def test_caller_that_leaves_is_no_outcome(edge: Edge) -> None:
    edge.answers = [keep]
    asking = asyncio.create_task(edge.ask("u"))
    await edge.until(lambda: bool(edge.worker.calls))
    asking.cancel()
    await asyncio.wait([asking])
    assert edge.counted() == (0, 0, 0)


async def test_call_that_others_wait_for_is_an_outcome_although_its_caller_left(
    edge: Edge,
) -> None:
    edge.follow(with_cache())
    held: list[tuple[Peer, data.Call]] = []
    edge.answers = [lambda peer, call: held.append((peer, call))]
    leader = asyncio.create_task(edge.ask("u"))
    await edge.until(lambda: bool(held))
    follower = asyncio.create_task(edge.ask("u"))
    await asyncio.sleep(0)
    leader.cancel()
    await asyncio.wait([leader])
    refuse(500)(*held[0])
    assert (await follower).status == 500
    assert edge.counted() == (1, 1, 0)


async def test_failure_behind_a_stale_answer_is_an_error(edge: Edge) -> None:
    edge.follow(replace(SPEC, cache=Cache(0.02, stale_if_error_s=60.0)))
    assert (await edge.ask("u")).status == 200
    edge.answers = [refuse(500)]
    await asyncio.sleep(0.03)
    assert (await edge.ask("u")).status == 200
    assert edge.counted() == (2, 1, 0)


async def test_renewal_of_a_stale_answer_is_an_outcome(edge: Edge) -> None:
    edge.follow(replace(SPEC, cache=Cache(0.02, stale_while_revalidate_s=60.0)))
    assert (await edge.ask("u")).status == 200
    edge.answers = [refuse(500)]
    await asyncio.sleep(0.03)
    assert (await edge.ask("u")).status == 200
    await edge.until(lambda: edge.counted() == (2, 1, 0))


async def test_answer_that_cannot_be_given_is_an_error(edge: Edge) -> None:
    edge.answers = [answer(NOT_A_NUMBER)]
    assert (await edge.ask("u")).status == 500
    assert edge.counted() == (1, 1, 0)


async def test_bug_of_the_edge_is_no_error_of_the_model(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise Refusal("internal error")

    monkeypatch.setattr("edge.infer.render_infer", broken)
    assert (await edge.ask("u")).status == 500
    assert edge.counted() == (1, 0, 0)


async def test_call_that_ends_before_it_was_sent_is_nothing(edge: Edge) -> None:
    call = Call(ref=("m", "1"), digest="d", request_id="r", inputs=(), outputs=(), deadline_s=0.0)
    call.watch = edge.arm("stable")
    for error in (DeadlineExceeded("late"), WorkerLost("broke")):
        call.fail(error)
        with pytest.raises(Refusal):
            await call.future
        call.future = asyncio.get_running_loop().create_future()
    assert edge.counted() == (0, 0, 0)


@pytest.mark.parametrize("content", [FINE, NOT_A_NUMBER])
async def test_stream_is_one_outcome(edge: Edge, content: bytes) -> None:
    edge.answers = [answer(content)]
    await edge.ask("u", how="generate_stream")
    await edge.until(lambda: edge.counted() == (1, content == NOT_A_NUMBER, 0))


def bad_part(peer: Peer, call: data.Call) -> None:
    tensors = [Tensor("y", "FP32", (1, 2), NOT_A_NUMBER)]
    peer.send(data.encode(data.Chunk(call.call_id, 0, data.heads(tensors)), tensors))


async def test_stream_that_is_given_up_for_a_bad_part_is_an_error(edge: Edge) -> None:
    edge.answers = [bad_part]
    await edge.ask("u", how="generate_stream")
    assert edge.counted() == (1, 1, 0)


@pytest.mark.parametrize(
    ("say", "how"),
    [
        (answer(), "infer"),
        (answer(NOT_A_NUMBER), "infer"),
        (answer(NOT_A_NUMBER), "generate_stream"),
        (bad_part, "generate_stream"),
        (refuse(500), "infer"),
        (hang_up, "infer"),
    ],
)
async def test_call_of_a_fallback_worker_is_nothing_whatever_becomes_of_it(
    edge: Edge, say: Callable[[Peer, data.Call], None], how: str
) -> None:
    edge.route(is_fallback=True)
    edge.answers = [say, say]
    await edge.ask("u", how=how)
    await edge.ask(how=how)
    assert edge.counted() == (0, 0, 0)
    evidence = [edge.arm(name).evidence() for name in ("stable", "canary")]
    assert [(arm.lone_errors, arm.told) for arm in evidence] == [(0, ())] * 2


async def test_late_answer_counts_for_the_segment_of_its_arm(edge: Edge) -> None:
    held: list[tuple[Peer, data.Call]] = []
    edge.answers = [lambda peer, call: held.append((peer, call))]
    asking = asyncio.create_task(edge.ask("u"))
    await edge.until(lambda: bool(held))
    edge.follow(segment=2)
    refuse(500)(*held[0])
    await asking
    await edge.ask("v")
    assert (edge.counted(1), edge.counted(2)) == ((1, 1, 0), (1, 0, 0))


async def test_new_revision_counts_on(edge: Edge) -> None:
    await edge.ask("u")
    edge.follow(replace(SPEC, revision=9, deadline_ms=700))
    await edge.ask("u")
    assert (edge.counted(), edge.assigned()) == ((2, 0, 0), 1)


async def test_unit_is_assigned_once_in_a_segment_and_others_each_time(edge: Edge) -> None:
    for _ in range(3):
        await edge.ask("u")
        await edge.ask()
    assert edge.assigned() == 4


@pytest.mark.parametrize("state", ["promoted", "rolled_back"])
async def test_nothing_is_counted_once_a_rollout_is_over(edge: Edge, state: str) -> None:
    edge.follow(state=state)
    assert edge.world.snapshot.endpoints["e"].watch is None
    assert (await edge.ask("u")).status == 200


async def test_arm_of_a_unit_is_logged_once_in_a_segment(edge: Edge) -> None:
    for segment in (1, 2):
        edge.follow(segment=segment)
        for _ in range(3):
            await edge.ask("ada")
            await edge.ask()
    edge.exposures.flush()
    assert [line["segment"] for line in edge.log.lines] == [1, 2]
    line = edge.log.lines[0]
    assert line["event"] == "exposure"
    assert line["unit"] == UnitHash("s").hex_of(b"ada")
    assert line["version"] == {"stable": "1", "canary": "2"}[line["variant"]]
    assert (line["endpoint"], line["rollout"], line["edge"]) == ("e", "r", "e1")
    assert "ada" not in json.dumps(edge.log.lines)


async def test_units_are_logged_as_they_are_only_where_the_spec_says_so(edge: Edge) -> None:
    edge.follow(replace(SPEC, assign=replace(BY_USER, exposure="plain")))
    await edge.ask("ada")
    edge.exposures.flush()
    assert [line["unit"] for line in edge.log.lines] == ["ada"]
    edge.follow(replace(SPEC, assign=replace(BY_USER, exposure="off")), segment=2)
    await edge.ask("ada")
    edge.exposures.flush()
    assert len(edge.log.lines) == 1
    assert edge.assigned(2) == 1


async def test_unit_as_long_as_a_header_may_be_is_not_kept(edge: Edge) -> None:
    edge.follow(replace(SPEC, assign=replace(BY_USER, exposure="plain")))
    for user in ("ä" * 128, "ä" * 129):
        await edge.ask(user)
    edge.exposures.flush()
    hashed = UnitHash("s").hex_of("ä".encode() * 129)
    assert [line["unit"] for line in edge.log.lines] == ["ä" * 128, hashed]


async def test_arms_of_a_plain_split_are_logged_once_for_each_change_of_weights(
    edge: Edge,
) -> None:
    def split(revision: int, weight: float) -> EndpointSpec:
        arms = (Variant("a", "m", "1", weight), Variant("b", "m", "2", 100 - weight))
        return EndpointSpec("e", arms, assign=BY_USER, revision=revision)

    for spec in (split(1, 50.0), split(1, 50.0), split(2, 60.0), split(3, 100.0)):
        documents = Documents(1, 1, {"e": write(spec)}, {}, MANIFESTS, write(Keys((RECORD,))))
        edge.world.snapshot = compile_snapshot(documents, edge.world.snapshot, edge.metrics)
        for _ in range(3):
            await edge.ask("ada")
    edge.exposures.flush()
    assert [line["revision"] for line in edge.log.lines] == [1, 2]
    assert "segment" not in edge.log.lines[0]


async def test_line_that_nobody_can_take_comes_later(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.exposure.ROWS_MAX", 2)
    edge.log.is_full = True
    for user in "abc":
        await edge.ask(user)
        edge.exposures.flush()
    edge.log.is_full = False
    edge.exposures.flush()
    assert len(edge.log.lines) == 2
    await edge.ask("c")  # is new once more, but counts no more
    edge.exposures.flush()
    units = {line["unit"] for line in edge.log.lines}
    assert units == {UnitHash("s").hex_of(user.encode()) for user in "abc"}
    assert edge.assigned() == 3
