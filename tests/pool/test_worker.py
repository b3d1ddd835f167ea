"""A worker over real sockets, with small engines in this process; edges only speak its wire."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest

from pool import loading, serving, worker
from pool.config import WorkerConfig
from pool.engines.base import Engine, Tensors
from pool.engines.registry import find_engines
from pool.wire import control, data
from pool.wire.arena import Arena
from pool.wire.data import Tensor
from pool.wire.frames import Buffer
from pool.wire.listening import serve
from pool.wire.peer import Address, Peer, dial
from pool.worker import Worker
from registry_sync.documents import Manifest, TensorSpec
from registry_sync.local import LocalStore
from tests.support.artifacts import manifest_of
from tests.support.control import Member
from tests.support.counting_engine import MAGIC_VALUE, TestSession, _TestEngine

M = TypeVar("M", bound=data.Message)

ENGINES = tuple(
    f"tests.support.counting_engine:{name}Engine"
    for name in ("Counting", "Sleeping", "Failing", "Unloadable")
)
NUMBERS = TensorSpec("x", "INT64", (-1,))
WIDE = TensorSpec("x", "FP32", (-1, -1, -1))
SIGNATURES = {
    "counter": ((TensorSpec("n", "INT64", (1,)), TensorSpec("delay_ms", "INT64", (1,))), "value"),
    "sleeper": ((NUMBERS,), "y"),
    "failing": ((NUMBERS,), "y"),
    "unloadable": ((NUMBERS,), "y"),
    "odd": ((NUMBERS,), "y"),
    "wide": ((WIDE,), "y"),
    "streaming-odd": ((TensorSpec("n", "INT64", (1,)),), "value"),
}


TWO_VALUES = [
    Tensor(name, "INT64", (1,), np.array([value], np.int64).tobytes())
    for name, value in (("n", 2), ("delay_ms", 0))
]


class OddSession(TestSession):
    """Answers as its input says: what no engine should."""

    def infer(self, tensors: Tensors, outputs: Sequence[str] = ()) -> Tensors:
        match int(tensors["x"][0]):
            case 1:
                return {"y": tensors["x"], "undeclared": tensors["x"]}
            case 2:
                return {"y": np.array(["text"])}
            case 3:
                return {"y": [1, 2]}  # type: ignore[dict-item]
            case 4:
                raise ValueError("wort " * 10_000)
            case size:
                return {"y": np.zeros(size, np.int64)}


class OddEngine(_TestEngine):
    name = "odd"
    formats = frozenset({"odd", "wide"})
    session = OddSession


class OddStream(TestSession):
    """Streams one good piece, and then a bad one, and then many more."""

    def __post_init__(self) -> None:
        self.streams = True

    def stream(self, tensors: Tensors) -> Iterator[Tensors]:
        yield {"value": np.array([0], np.int64)}
        yield {"value": "no array"}  # type: ignore[dict-item]
        for _ in range(100):
            yield {"value": np.array([0], np.int64)}


class OddStreamEngine(_TestEngine):
    name = "streaming-odd"
    formats = frozenset({"streaming-odd"})
    session = OddStream


class Edge:
    """One connection to a worker, and everything that came through it."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.heard: list[tuple[data.Message, list[Tensor]]] = []
        self.is_lost = False
        self._news = asyncio.Event()
        peer.on_frame, peer.on_lost = self._frame, self._lost

    def _frame(self, header: bytes, body: Buffer) -> None:
        message = data.decode(header)
        heads = message.outputs if isinstance(message, data.Reply | data.Chunk) else ()
        self.heard.append((message, data.tensors(heads, body)))
        self._news.set()

    def _lost(self, error: Exception | None) -> None:
        self.is_lost = True
        self._news.set()

    def call(
        self,
        model: str,
        values: Sequence[int] = (),
        *,
        id: int = 1,
        left_s: float = 10.0,
        inputs: Sequence[Tensor] | None = None,
        stream: bool = False,
        digest: str | None = None,
        version: str = "1",
        shadow: tuple[data.ShadowOf, ...] = (),
        alone: bool = False,
    ) -> None:
        """Send a call; its one input is `values` unless `inputs` says otherwise."""
        array = np.array(values, np.int64)
        tensors = inputs or [Tensor("x", "INT64", (len(array),), array.tobytes())]
        found = digest if digest is not None else manifest(model).digest
        heads = data.heads(tensors)
        message = data.Call(
            *(id, f"r{id}", model, version, found, int(left_s * 1e6), 0, heads),
            stream=stream,
            shadow=shadow,
            alone=alone,
        )
        self.peer.send(data.encode(message, tensors))

    def count(self, n: int, delay_ms: int = 0, *, id: int = 1) -> None:
        """Send a call of the streaming counter."""
        inputs = [
            Tensor(name, "INT64", (1,), np.array([value], np.int64).tobytes())
            for name, value in (("n", n), ("delay_ms", delay_ms))
        ]
        self.call("counter", id=id, inputs=inputs, stream=True)

    def say(self, message: data.Message) -> None:
        self.peer.send(data.encode(message))

    async def until(self, found: Any) -> Any:
        async with asyncio.timeout(10):
            while not (result := found()):
                self._news.clear()
                await self._news.wait()
        return result

    def chunks(self, id: int = 1) -> list[tuple[data.Chunk, list[Tensor]]]:
        return [
            (one, tensors)
            for one, tensors in self.heard
            if isinstance(one, data.Chunk) and one.call_id == id
        ]

    async def reply(self, id: int = 1) -> tuple[data.Reply, list[Tensor]]:
        def found() -> list[tuple[data.Reply, list[Tensor]]]:
            return [
                (one, tensors)
                for one, tensors in self.heard
                # What says nothing but what the device did for a call that has its answer is none.
                if isinstance(one, data.Reply) and one.call_id == id and one.status != serving.GONE
            ]

        replies: list[tuple[data.Reply, list[Tensor]]] = await self.until(found)
        assert len(replies) == 1
        return replies[0]

    async def began(self, id: int) -> None:
        await self.until(lambda: data.Began(id, is_only=True) in [one for one, _ in self.heard])

    async def lost(self) -> None:
        await self.until(lambda: self.is_lost)


def manifest(model: str) -> Manifest:
    """The one version of a model, which is called as its format."""
    inputs, output = SIGNATURES[model]
    return msgspec.structs.replace(
        manifest_of({"f": b"x"}, model=model),
        format=model,
        inputs=inputs,
        outputs=(TensorSpec(output, "INT64", (-1,)),),
    )


def values_of(tensors: list[Tensor]) -> list[int]:
    return [int(value) for value in np.frombuffer(tensors[0].data, np.int64)]


class Node:
    """A worker that listens, with every model of `SIGNATURES` in its local store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = Address(path=str(folder / "w"))
        local = LocalStore(folder / "store")
        for model in SIGNATURES:
            found = manifest(model)
            local.save_manifest(found)
            local.blob_path(found.files[0].sha256).write_bytes(b"x")
        self.config = WorkerConfig(
            id="w1",
            data=str(folder),
            listen=str(self.address),
            controller=f"unix:{folder}/c",
            sync_socket=str(folder / "nobody"),
            queue_bytes_max=1 << 20,
        )
        own: tuple[Engine, ...] = (OddEngine(), OddStreamEngine())
        self.worker = Worker(self.config, (*own, *find_engines(ENGINES)), None)
        self.edges: list[Edge] = []

    async def edge(self) -> Edge:
        edge = Edge(await dial(self.address, None))
        self.edges.append(edge)
        return edge

    async def running(self, model: str) -> None:
        """Wait until a run of `model` is under way."""
        async with asyncio.timeout(10):
            while not (queue := self.worker.slot(model, "1").queue) or not queue._lanes.under_way:  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def idle(self) -> None:
        """Wait until nothing is inside."""
        async with asyncio.timeout(10):
            while self.worker.inside.bytes or any(s.calls for s in self.worker._slots.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    folder = Path(tempfile.mkdtemp(prefix="tp"))
    made = Node(folder)
    server = await serve(made.address, None, made.worker.on_peer)
    sweep = asyncio.get_running_loop().create_task(made.worker.report_forever())
    yield made
    assert not sweep.done()
    sweep.cancel()
    for edge in made.edges:
        edge.peer.close()
    await made.worker.drain(0.0, 5.0)
    await server.close()
    await asyncio.sleep(0.02)
    shutil.rmtree(folder)


async def test_worker_says_who_it_is(node: Node) -> None:
    edge = await node.edge()
    edge.say(data.Hello(data.WIRE, "edge", "e1", ""))
    await edge.until(lambda: edge.heard)
    assert edge.heard[0][0] == node.worker.hello()
    said = (data.WIRE, "worker", "w1", node.worker.incarnation)
    hello = data.Hello(*said, load_ms=500, device="cpu")
    assert node.worker.hello() == hello


async def test_worker_tells_its_load_again_and_again_though_it_stays_the_same(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "LOAD_REPORT_S", 0.01)
    monkeypatch.setattr(worker, "LOAD_BEAT_S", 0.05)
    edge = await node.edge()
    edge.say(data.Hello(data.WIRE, "edge", "e1", ""))
    await edge.until(lambda: len(edge.heard) >= 4)
    assert [message for message, *_ in edge.heard[1:]] == [data.Load(0, 0)] * 3


async def test_edge_of_another_wire_is_refused(node: Node) -> None:
    edge = await node.edge()
    edge.say(data.Hello(data.WIRE + 1, "edge", "e1", ""))
    await edge.lost()


async def test_call_is_answered_with_its_outputs(node: Node) -> None:
    edge = await node.edge()
    edge.call("failing", [1, 2, 3], id=7)
    reply, tensors = await edge.reply(7)
    assert (reply.status, reply.batch_rows) == (200, 3)
    assert [(t.name, t.datatype, t.shape) for t in tensors] == [("y", "INT64", (3,))]
    assert values_of(tensors) == [1, 2, 3]


async def test_calls_are_answered_each_with_its_own(node: Node) -> None:
    edges = [await node.edge(), await node.edge()]
    for n, edge in enumerate(edges):
        for id in range(20):
            edge.call("failing", [1000 * n + id], id=id)
    for n, edge in enumerate(edges):
        for id in range(20):
            assert values_of((await edge.reply(id))[1]) == [1000 * n + id]
    await node.idle()


async def test_model_that_fails_is_500_for_its_call_alone(node: Node) -> None:
    edge = await node.edge()
    for id, value in enumerate((1, MAGIC_VALUE, 3)):
        edge.call("failing", [value], id=id)
    assert [(await edge.reply(id))[0].status for id in range(3)] == [200, 500, 200]


@pytest.mark.rule("F20")
async def test_call_that_runs_alone_is_told_to_begin_and_shares_its_run(node: Node) -> None:
    edge = await node.edge()
    edge.call("sleeper", [100], id=1)
    await node.running("sleeper")
    for id in (2, 3, 4, 5):
        edge.call("sleeper", [1], id=id, alone=id in (3, 4))
    assert [(await edge.reply(id))[0].batch_rows for id in (2, 3, 4, 5)] == [2, 1, 1, 2]
    ends: dict[int, list[str]] = {}
    for message, _ in edge.heard:
        if isinstance(message, data.Began | data.Reply):
            ends.setdefault(message.call_id, []).append(type(message).__name__)
    assert ends[3] == ends[4] == ["Began", "Reply"]
    assert ends[1] == ends[2] == ends[5] == ["Reply"]


@pytest.mark.rule("F20")
async def test_call_that_runs_alone_has_the_process_to_itself(node: Node) -> None:
    edge = await node.edge()
    edge.call("failing", [1], id=9)
    await edge.reply(9)
    edge.heard.clear()
    edge.call("sleeper", [200], id=1, alone=True)
    await edge.began(1)
    edge.call("failing", [1], id=2)
    assert [(await edge.reply(id))[0].status for id in (1, 2)] == [200, 200]
    said = [m for m, _ in edge.heard if isinstance(m, data.Began | data.Reply)]
    assert said[0] == data.Began(1, is_only=True)
    assert [message.call_id for message in said] == [1, 1, 2]


@pytest.mark.rule("F20")
async def test_nothing_begins_before_the_kernel_has_the_reply_of_a_run_that_was_alone(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What dies first otherwise takes the reply along, and the run is blamed."""
    edge = await node.edge()
    edge.call("failing", [1], id=9)
    await edge.reply(9)
    steps: list[Callable[[], None]] = []
    monkeypatch.setattr(Peer, "when_written", lambda peer, then: steps.append(then))
    edge.call("sleeper", [10], id=1, alone=True)
    await edge.began(1)
    edge.call("failing", [1], id=2)
    steps.pop()()
    await edge.reply(1)
    await asyncio.sleep(0.05)
    said = [m.call_id for m, _ in edge.heard if isinstance(m, data.Began | data.Reply)]
    assert said == [9, 1, 1]
    steps.pop()()
    await edge.reply(2)


@pytest.mark.rule("F20")
async def test_end_of_a_run_that_was_alone_is_told_if_no_reply_tells_it(node: Node) -> None:
    edge = await node.edge()
    edge.call("failing", [1], id=9)
    await edge.reply(9)
    edge.heard.clear()
    edge.call("sleeper", [100], id=1, alone=True)
    await edge.began(1)
    edge.say(data.Cancel(1))
    edge.call("failing", [1], id=2)
    await edge.reply(2)
    said = [m for m, _ in edge.heard if isinstance(m, data.Began | data.Reply)]
    assert said[:2] == [data.Began(1, is_only=True), data.Began(1, is_only=False)]
    assert [message.call_id for message in said] == [1, 1, 1, 2]  # the third: what it has cost


@pytest.mark.rule("F20")
async def test_stream_may_run_alone(node: Node) -> None:
    edge = await node.edge()
    edge.call("counter", inputs=TWO_VALUES, stream=True, alone=True)
    await edge.reply()
    kinds = [type(message).__name__ for message, _ in edge.heard]
    assert kinds == ["Began", "Chunk", "Chunk", "Reply"]


async def test_model_that_cannot_be_loaded_is_503_with_the_reason(node: Node) -> None:
    edge = await node.edge()
    edge.call("unloadable", [1])
    reply, _ = await edge.reply()
    assert reply.status == 503
    assert "cannot be loaded by anything" in reply.detail
    assert reply.retry_after_ms > 0


async def test_version_that_cannot_be_brought_is_503(node: Node) -> None:
    edge = await node.edge()
    edge.call("failing", [1], version="2")
    assert (await edge.reply())[0].status == 503


@pytest.mark.parametrize("ref", [("../up", "1"), ("failing", "1/.."), ("", "1")])
async def test_name_that_is_none_is_404_and_no_path(node: Node, ref: tuple[str, str]) -> None:
    edge = await node.edge()
    edge.call(ref[0], [1], version=ref[1], digest="d")
    assert (await edge.reply())[0].status == 404
    assert not node.worker._slots


async def test_call_for_another_artifact_is_refused(node: Node) -> None:
    edge = await node.edge()
    edge.call("failing", [1], digest="0" * 64)
    reply, _ = await edge.reply()
    assert (reply.status, reply.detail) == (503, "the worker has another artifact of this version")
    await node.idle()


async def test_call_id_that_is_under_way_closes_the_connection(node: Node) -> None:
    edge = await node.edge()
    edge.call("sleeper", [200])
    edge.call("sleeper", [1])
    await edge.lost()
    await node.idle()


async def test_call_id_may_be_used_again_after_its_reply(node: Node) -> None:
    edge = await node.edge()
    edge.call("failing", [1])
    await edge.reply()
    edge.heard.clear()
    edge.call("failing", [2])
    assert values_of((await edge.reply())[1]) == [2]


HUGE = 2**31 - 1


@pytest.mark.parametrize(
    ("model", "tensor"),
    [
        ("failing", Tensor("x", "INT64", (3,), bytes(16))),
        ("failing", Tensor("x", "BYTES", (2,), b"\x09\0\0\0abc\0")),
        ("wide", Tensor("x", "FP32", (0, HUGE, HUGE), b"")),
        ("wide", Tensor("x", "BYTES", (0, HUGE, HUGE), b"")),
    ],
)
async def test_tensor_that_is_none_is_400_and_harms_nobody(
    node: Node, model: str, tensor: Tensor
) -> None:
    edge = await node.edge()
    edge.call("sleeper", [50], id=1)
    edge.call(model, id=2, inputs=[tensor])
    assert (await edge.reply(2))[0].status == 400
    assert (await edge.reply(1))[0].status == 200
    await node.idle()


async def test_cancelled_call_gets_no_reply_and_leaves_no_trace(node: Node) -> None:
    edge = await node.edge()
    edge.call("sleeper", [100], id=1)
    edge.call("sleeper", [0], id=2)
    edge.say(data.Cancel(2))
    await edge.reply(1)
    await node.idle()
    assert not [one for one, _ in edge.heard if getattr(one, "call_id", 0) == 2]


async def test_call_cancelled_while_its_engine_loads_gives_its_bytes_back(node: Node) -> None:
    edge = await node.edge()
    edge.call("sleeper", [1])
    edge.say(data.Cancel(1))
    await node.idle()
    edge.call("sleeper", [1], id=2)
    await edge.reply(2)
    assert node.worker.inside.bytes == 0


async def test_edge_that_is_lost_takes_its_calls_with_it(node: Node) -> None:
    stays, leaves = await node.edge(), await node.edge()
    stays.call("sleeper", [100])
    for id in range(5):
        leaves.call("sleeper", [1000], id=id)
    await asyncio.sleep(0.03)
    leaves.peer.close()
    await stays.reply()
    await node.idle()
    assert len(node.worker.peers) == 1


async def test_more_than_fits_is_refused_and_room_comes_back(node: Node) -> None:
    edge = await node.edge()
    many = [0] * (100_000)  # 800 kB of the 1 MiB
    edge.call("sleeper", [150], id=1)
    edge.call("sleeper", many, id=2)
    edge.call("sleeper", many, id=3)
    reply, _ = await edge.reply(3)
    assert (reply.status, reply.detail) == (503, "the worker's queues are full")
    assert reply.retry_after_ms > 0
    await edge.reply(2)
    edge.call("sleeper", many, id=4)
    assert (await edge.reply(4))[0].status == 200
    await node.idle()


async def test_deadline_that_passes_while_the_call_waits_is_504(node: Node) -> None:
    edge = await node.edge()
    edge.call("sleeper", [300], id=1)
    await asyncio.sleep(0.05)
    edge.call("sleeper", [0], id=2, left_s=0.05)
    reply, _ = await edge.reply(2)
    assert reply.status == 504
    assert not [one for one, _ in edge.heard if getattr(one, "call_id", 0) == 1], "in time"
    await edge.reply(1)


async def test_stream_is_chunks_in_order_and_then_a_reply(node: Node) -> None:
    edge = await node.edge()
    edge.count(50)
    reply, tensors = await edge.reply()
    assert (reply.status, tensors) == (200, [])
    chunks = edge.chunks()
    assert [chunk.seq for chunk, _ in chunks] == list(range(50))
    assert [values_of(tensors) for _, tensors in chunks] == [[n] for n in range(50)]
    assert edge.heard[-1][0] is reply


async def test_cancelled_stream_stops(node: Node) -> None:
    edge = await node.edge()
    edge.count(1000, delay_ms=5)
    await edge.until(lambda: len(edge.chunks()) > 2)
    edge.say(data.Cancel(1))
    await node.idle()
    count = len(edge.chunks())
    await asyncio.sleep(0.05)
    assert len(edge.chunks()) - count <= 1
    assert count < 500


async def test_answer_that_is_larger_than_a_frame_is_500(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pool.wire.frames.BODY_BYTES_MAX", 1 << 20)
    edge = await node.edge()
    edge.call("odd", [200_000])
    reply, tensors = await edge.reply()
    assert (reply.status, tensors) == (500, [])
    assert "too large" in reply.detail
    edge.call("odd", [5], id=2)
    assert (await edge.reply(2))[0].status == 200


async def test_output_that_is_not_declared_is_left_out(node: Node) -> None:
    edge = await node.edge()
    edge.call("odd", [1])
    reply, tensors = await edge.reply()
    assert (reply.status, [one.name for one in tensors]) == (200, ["y"])


@pytest.mark.parametrize("value", [2, 3])
async def test_output_that_is_no_tensor_is_500_and_never_silence(node: Node, value: int) -> None:
    edge = await node.edge()
    edge.call("odd", [value])
    reply, _ = await edge.reply()
    assert reply.status == 500
    assert reply.detail.startswith("the model failed")


async def test_reason_that_is_too_long_is_cut(node: Node) -> None:
    edge = await node.edge()
    edge.call("odd", [4])
    reply, _ = await edge.reply()
    assert reply.status == 500
    assert 100 < len(reply.detail) <= serving.DETAIL_CHARS_MAX


async def test_piece_that_is_no_tensor_ends_the_stream_with_500(node: Node) -> None:
    edge = await node.edge()
    inputs = [Tensor("n", "INT64", (1,), bytes(8))]
    edge.call("streaming-odd", inputs=inputs, stream=True)
    reply, _ = await edge.reply()
    assert (reply.status, len(edge.chunks())) == (500, 1)
    await node.idle()


@pytest.mark.parametrize(
    "message",
    [data.Load(1, 1), data.Reply(1, 200), data.Chunk(1, 0), data.Release((0,))],
    ids=lambda m: type(m).__name__,
)
async def test_what_an_edge_does_not_say_closes_its_connection(
    node: Node, message: data.Message
) -> None:
    edge, other = await node.edge(), await node.edge()
    edge.say(message)
    await edge.lost()
    other.call("failing", [1])
    assert (await other.reply())[0].status == 200


class Sharing:
    """An edge that shares an arena with the worker."""

    def __init__(self, edge: Edge, arena: Arena) -> None:
        self.edge = edge
        self.arena = arena

    def call(
        self,
        model: str,
        values: Sequence[int],
        id: int = 1,
        shadow: tuple[data.ShadowOf, ...] = (),
    ) -> int:
        """Put a call's one input into the arena; return where it lies."""
        array = np.array(values, np.int64)
        tensor = Tensor("x", "INT64", (len(array),), array.tobytes())
        at = self.arena.put([tensor.data], len(tensor.data))
        assert at is not None
        self.say(model, at, data.heads([tensor]), id, shadow)
        return at

    def say(
        self,
        model: str,
        at: int,
        heads: tuple[data.TensorHead, ...],
        id: int = 1,
        shadow: tuple[data.ShadowOf, ...] = (),
    ) -> None:
        digest = manifest(model).digest
        call = data.Call(
            *(id, f"r{id}", model, "1", digest, 10**7, 0, heads), arena_at=at, shadow=shadow
        )
        self.edge.say(call)

    def released(self) -> list[int]:
        heard = [one for one, _ in self.edge.heard]
        return [at for one in heard if isinstance(one, data.Release) for at in one.places]

    async def release(self, count: int = 1) -> list[int]:
        await self.edge.until(lambda: len(self.released()) >= count)
        return self.released()


@pytest.fixture
async def sharing(node: Node) -> AsyncIterator[Sharing]:
    edge, arena = await node.edge(), Arena(1 << 20)
    edge.say(data.Hello(data.WIRE, "edge", "e1", "", arena.fd, arena.bytes_max))
    await edge.until(lambda: edge.heard)
    hello = edge.heard[0][0]
    assert isinstance(hello, data.Hello)
    assert hello.arena_bytes == arena.bytes_max
    yield Sharing(edge, arena)
    arena.close()


async def test_call_in_the_arena_is_answered_and_its_place_comes_back(sharing: Sharing) -> None:
    values = list(range(-10_000, 0))
    at = sharing.call("failing", values)
    assert values_of((await sharing.edge.reply())[1]) == values
    assert await sharing.release() == [at]


async def test_output_that_is_a_view_of_the_arena_is_answered_whole(sharing: Sharing) -> None:
    values = [1, *range(9_999)]
    at = sharing.call("odd", values)
    assert values_of((await sharing.edge.reply())[1]) == values
    assert await sharing.release() == [at]


async def test_place_of_a_cancelled_call_comes_back_only_after_its_run(
    node: Node, sharing: Sharing
) -> None:
    sharing.edge.call("sleeper", [0], id=8)
    await sharing.edge.reply(8)  # loaded
    sharing.call("sleeper", [200] + [0] * 9_999)
    await node.running("sleeper")
    sharing.edge.say(data.Cancel(1))
    sharing.edge.call("failing", [1], id=9)
    await sharing.edge.reply(9)  # so the cancel was read
    assert sharing.released() == []
    await sharing.release()


async def test_call_that_is_refused_gives_its_place_back(sharing: Sharing) -> None:
    at = sharing.call("failing", [1] * 9_000)
    await sharing.edge.reply()
    sharing.say("failing", sharing.call("failing", [2] * 9_000, id=2), ())  # no inputs
    await sharing.edge.lost()
    assert at


async def test_place_outside_of_the_arena_closes_the_connection(
    node: Node, sharing: Sharing
) -> None:
    sharing.say("failing", 1 << 20, (data.TensorHead("x", "INT64", (1,), 8),))
    await sharing.edge.lost()
    other = await node.edge()
    other.call("failing", [1])
    assert (await other.reply())[0].status == 200


async def test_call_in_an_arena_that_was_never_offered_closes_the_connection(node: Node) -> None:
    edge = await node.edge()
    heads = (data.TensorHead("x", "INT64", (1,), 8),)
    edge.say(data.Call(1, "r", "failing", "1", "d", 10**7, 0, heads, arena_at=64))
    await edge.lost()


async def test_arena_that_cannot_be_opened_leaves_the_socket(node: Node) -> None:
    edge = await node.edge()
    edge.say(data.Hello(data.WIRE, "edge", "e1", "", 2**20, 1 << 20))
    edge.call("failing", [7])
    assert values_of((await edge.reply())[1]) == [7]
    assert edge.heard[0][0] == node.worker.hello()


SHADOW = data.ShadowOf("e/r", "sleeper", "1", 1000.0)


async def compared(node: Node, count: int) -> control.ShadowCount:
    """Wait until so many copies were compared."""
    async with asyncio.timeout(10):
        while True:
            node.worker.shadows.tell_again()
            report = node.worker.shadows.report()
            if report is not None and report.counts[0].compared >= count:
                return report.counts[0]
            await asyncio.sleep(0.005)


async def test_marked_call_is_answered_once_and_its_copy_compared(node: Node) -> None:
    edge = await node.edge()
    edge.call("sleeper", [1], id=1)
    await edge.reply(1)  # loaded
    edge.call("failing", [1, 2], id=2, shadow=(SHADOW,))
    assert values_of((await edge.reply(2))[1]) == [1, 2]
    count = await compared(node, 1)
    assert (count.baseline, count.candidate) == ("failing/1", "sleeper/1")
    assert (count.offered, count.compared, count.unlike, count.error_max) == (1, 1, 0, 0.0)
    slot = node.worker.slot("sleeper", "1")
    assert slot.arrived == 1  # a copy is no demand
    assert len([one for one, _ in edge.heard if isinstance(one, data.Reply)]) == 2
    assert node.worker.shadows.bytes == 0


async def test_marked_call_that_fails_or_is_streamed_is_not_copied(node: Node) -> None:
    edge = await node.edge()
    edge.call("failing", [MAGIC_VALUE], id=1, shadow=(SHADOW,))
    assert (await edge.reply(1))[0].status == 500
    numbers = [Tensor(name, "INT64", (1,), bytes([1, *bytes(7)])) for name in ("n", "delay_ms")]
    edge.call("counter", id=2, inputs=numbers, stream=True, shadow=(SHADOW,))
    assert (await edge.reply(2))[0].status == 200
    node.worker.shadows.tell_again()
    assert node.worker.shadows.report() is None


async def test_candidate_that_answers_anything_reaches_no_caller(node: Node) -> None:
    edge = await node.edge()
    edge.call("odd", [5], id=1)
    await edge.reply(1)
    mark = msgspec.structs.replace(SHADOW, model="odd")
    for id, value in enumerate((2, 3, 4, 7), 2):
        edge.call("failing", [value], id=id, shadow=(mark,))
        assert values_of((await edge.reply(id))[1]) == [value]
    count = await compared(node, 3)
    while count.failed < 1:
        count = await compared(node, 3)
    assert (count.offered, count.failed, count.unlike) == (4, 1, 3)
    assert {one.kind for one in count.worst} == {"failed", "unlike"}
    assert "wort wort" in count.last_failure


async def test_place_of_a_copied_call_comes_back_once_the_copy_has_run(
    node: Node, sharing: Sharing
) -> None:
    sharing.edge.call("sleeper", [0], id=8)
    await sharing.edge.reply(8)  # loaded
    at = sharing.call("failing", [300] + [0] * 9_999, shadow=(SHADOW,))
    await sharing.edge.reply()
    await node.running("sleeper")
    assert sharing.released() == []
    assert node.worker.shadows.bytes > 0
    assert await sharing.release() == [at]
    assert (await compared(node, 1)).unlike == 0


async def test_worker_that_drains_begins_no_copy(node: Node) -> None:
    edge = await node.edge()
    edge.call("sleeper", [0], id=1)
    await edge.reply(1)
    edge.call("sleeper", [300], id=2)  # busy
    await node.running("sleeper")
    edge.call("failing", [300], id=3, shadow=(SHADOW,))
    await edge.reply(3)
    assert node.worker.shadows.bytes > 0
    draining = asyncio.get_running_loop().create_task(node.worker.drain(0.0, 5.0))
    await asyncio.sleep(0)
    assert node.worker.shadows.bytes == 0
    assert (await edge.reply(2))[0].status == 200
    edge.peer.close()
    await draining


async def test_load_is_reported_while_calls_wait(node: Node) -> None:
    edge = await node.edge()
    for id in range(3):
        edge.call("sleeper", [60], id=id)
        await edge.reply(id)
    edge.heard.clear()
    edge.call("sleeper", [400], id=10)
    await asyncio.sleep(0.02)
    edge.call("sleeper", [1], id=11)
    await edge.until(lambda: [one for one, _ in edge.heard if isinstance(one, data.Load)])
    await edge.reply(11)


# the controller's side


class Control:
    """A controller's socket, and the one worker that has dialled it."""

    def __init__(self) -> None:
        self.member: asyncio.Future[Member] = asyncio.get_running_loop().create_future()

    def on_peer(self, peer: Peer) -> None:
        if not self.member.done():
            self.member.set_result(Member(peer))


@pytest.fixture
async def member(node: Node) -> AsyncIterator[Member]:
    """What the worker says to its controller."""
    held = Control()
    server = await serve(Address(path=f"{node.folder}/c"), None, held.on_peer)
    link = asyncio.get_running_loop().create_task(node.worker.link.run())
    async with asyncio.timeout(10):
        found = await held.member
    yield found
    link.cancel()
    await asyncio.gather(link, return_exceptions=True)
    found.peer.close()
    await server.close()


def states_of(beat: control.Heartbeat) -> dict[str, str]:
    return {engine.model: engine.state for engine in beat.engines}


async def test_worker_registers_with_its_address(node: Node, member: Member) -> None:
    register = await member.hear(control.RegisterWorker)
    assert (register.id, register.address) == ("w1", str(node.address))
    assert register.incarnation == node.worker.incarnation


async def test_command_loads_and_each_change_is_said_at_once(node: Node, member: Member) -> None:
    member.say(control.Command(1, "load", "failing", "1"))
    await member.hear(control.Heartbeat, lambda b: states_of(b) == {"failing": "loading"})
    warm = await member.hear(control.Heartbeat, lambda b: states_of(b) == {"failing": "warm"})
    assert (warm.engines[0].engine, warm.engines[0].loads) == ("failing", 1)


async def test_command_unloads_what_is_idle(node: Node, member: Member) -> None:
    member.say(control.Command(1, "load", "failing", "1"))
    await member.hear(control.Heartbeat, lambda b: states_of(b) == {"failing": "warm"})
    member.say(control.Command(1, "unload", "failing", "1"))
    seen = len(member.heard)
    await member.until(
        lambda: [one for one in member.heard[seen:] if one == control.Heartbeat(0, 0)]
    )


async def test_command_never_unloads_what_has_calls(node: Node, member: Member) -> None:
    edge = await node.edge()
    edge.call("sleeper", [150])
    await member.hear(control.Heartbeat, lambda b: states_of(b) == {"sleeper": "warm"})
    member.say(control.Command(1, "unload", "sleeper", "1"))
    assert (await edge.reply())[0].status == 200
    assert node.worker.slot("sleeper", "1").state == "warm"


async def test_load_that_failed_is_said_with_its_reason(node: Node, member: Member) -> None:
    member.say(control.Command(1, "load", "unloadable", "1"))
    failed = await member.hear(
        control.Heartbeat, lambda b: states_of(b) == {"unloadable": "failed"}
    )
    assert "cannot be loaded" in failed.engines[0].detail
    assert not failed.engines[0].passes


async def test_load_that_failed_by_nobodys_fault_says_so(
    node: Node, member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "SYNC_BACK_S_MAX", 0.0)
    member.say(control.Command(1, "load", "elsewhere", "1"))  # nobody is there to bring it
    failed = await member.hear(control.Heartbeat, lambda b: states_of(b) == {"elsewhere": "failed"})
    assert failed.engines[0].passes


async def test_worker_that_drains_says_so_and_answers_what_it_has(
    node: Node, member: Member
) -> None:
    edge = await node.edge()
    edge.call("sleeper", [150])
    await member.hear(control.Heartbeat, lambda b: states_of(b) == {"sleeper": "warm"})
    await node.worker.drain(0.0, 5.0)
    assert (await edge.reply())[0].status == 200
    assert member.all(control.Heartbeat)[-1].draining
    await edge.lost()


# Draining.


async def drained(node: Node, drain_s_max: float = 10.0) -> asyncio.Task[None]:
    """Let the worker begin to drain."""
    task = asyncio.get_running_loop().create_task(node.worker.drain(0.0, drain_s_max))
    for edge in node.edges:
        # Not any load report: one may have been on its way.
        await edge.until(lambda edge=edge: any(is_last_word(one) for one, _ in edge.heard))
    return task


def is_last_word(message: data.Message) -> bool:
    """Tell whether a worker says that it drains."""
    return isinstance(message, data.Load) and message.draining


async def test_worker_that_drains_says_so_answers_what_it_has_and_waits_for_the_edge(
    node: Node,
) -> None:
    edge = await node.edge()
    edge.call("sleeper", [300], id=1)
    await node.running("sleeper")
    edge.call("sleeper", [1], id=2)  # waits for the engine
    task = await drained(node)
    edge.call("sleeper", [2], id=3)  # was on its way when the worker said it
    for id, value in ((1, 300), (2, 1), (3, 2)):
        reply, tensors = await edge.reply(id)
        assert (reply.status, values_of(tensors)) == (200, [value])
    assert not edge.is_lost
    edge.peer.close()
    await asyncio.wait_for(task, 5)


async def test_call_that_waits_for_a_load_is_given_back_when_the_worker_drains(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def load(model: str, version: str) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(node.worker, "_load", load)
    edge = await node.edge()
    edge.call("failing", [1], id=1)
    async with asyncio.timeout(10):
        while not node.worker.slot("failing", "1").calls:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
    task = await drained(node)
    edge.call("failing", [1], id=2)
    for id in (1, 2):
        reply, _ = await edge.reply(id)
        assert (reply.status, reply.not_run) == (503, True)
        assert reply.retry_after_ms > 0
    edge.peer.close()
    await asyncio.wait_for(task, 5)


async def test_call_whose_turn_has_not_come_by_the_end_is_given_back(node: Node) -> None:
    edge = await node.edge()
    edge.call("sleeper", [600], id=1)
    await node.running("sleeper")
    edge.call("sleeper", [1], id=2)
    task = await drained(node, drain_s_max=0.2)
    reply, _ = await edge.reply(2)
    assert (reply.status, reply.not_run) == (503, True)
    await edge.lost()
    await asyncio.wait_for(task, 5)


async def test_edge_that_never_hangs_up_does_not_keep_a_worker_that_drains(node: Node) -> None:
    await node.edge()
    task = await drained(node, drain_s_max=30.0)
    await asyncio.wait_for(task, 5)


async def test_what_was_compared_is_told_with_a_beat_and_again_to_a_new_controller(
    node: Node, member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "HEARTBEAT_S", 0.02)
    beats = asyncio.get_running_loop().create_task(node.worker.beat_forever())
    edge = await node.edge()
    edge.call("sleeper", [1], id=1)
    await edge.reply(1)
    edge.call("failing", [1, 2], id=2, shadow=(SHADOW,))
    told = await member.hear(control.ShadowReport, lambda r: r.counts[0].compared == 1)
    assert told.counts[0].rollout == "e/r"
    assert node.worker.shadows.report() is None
    before = len(member.all(control.ShadowReport))
    node.worker._register()
    assert (await member.heard_often(control.ShadowReport, before + 1))[-1] == told
    beats.cancel()
