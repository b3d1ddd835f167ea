"""A real worker process without a stack: this process is its controller and its edge."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import numpy as np
from onnx import TensorProto, helper, numpy_helper

from pool.config import WorkerConfig
from pool.wire import control, data
from pool.wire.data import Tensor
from pool.wire.frames import Buffer
from pool.wire.listening import serve
from pool.wire.peer import Address, Peer, dial
from registry_sync.documents import File, Manifest, TensorSpec
from registry_sync.local import LocalStore
from tests.support.artifacts import manifest_of
from tests.support.control import Member

PATIENCE_S = 60.0


def put_model(store: Path, model: str, mib: float) -> Manifest:
    """Put a model whose weights take so many MiB into a node's local store: y = x · W, FP32."""
    features = max(1, round((mib * (1 << 20) / 4) ** 0.5))
    weights = np.random.default_rng(0).normal(size=(features, features)).astype(np.float32)
    shape = ["N", features]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        model,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weights, "W")],
    )
    opset = [helper.make_opsetid("", 17)]
    made = helper.make_model(graph, opset_imports=opset, ir_version=8)
    signature = (-1, features)
    return put_file(
        store,
        model,
        made.SerializeToString(),
        (TensorSpec("x", "FP32", signature),),
        (TensorSpec("y", "FP32", signature),),
    )


def put_file(
    store: Path,
    model: str,
    content: bytes,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    *,
    format: str = "onnx",
) -> Manifest:
    """Put version 1 of a model that is one file into a node's local store."""
    digest = hashlib.sha256(content).hexdigest()
    found = msgspec.structs.replace(
        manifest_of({}, model=model),
        format=format,
        files=(File("model.onnx", digest, len(content)),),
        inputs=inputs,
        outputs=outputs,
    )
    local = LocalStore(store)
    local.save_manifest(found)
    local.blob_path(digest).write_bytes(content)
    return found


class WorkerProcess:
    """A started worker."""

    def __init__(
        self, folder: Path, process: subprocess.Popen[bytes], dialled: asyncio.Queue[Peer]
    ) -> None:
        self.started_s = time.monotonic()
        self.process = process
        self._address = Address(path=str(folder / "w"))
        self._dialled = dialled
        self._member: Member | None = None
        self._edge: Peer | None = None
        self._replies: dict[int, asyncio.Future[data.Reply]] = {}

    async def member(self) -> Member:
        """Return what it says to its controller."""
        if self._member is None:
            async with asyncio.timeout(PATIENCE_S):
                self._member = Member(await self._dialled.get())
        return self._member

    async def command(self, op: str, model: str, done: Callable[[dict[str, str]], bool]) -> None:
        """Command, and wait until the engines' states show it."""
        member = await self.member()
        member.say(control.Command(1, op, model, "1"))
        async with asyncio.timeout(PATIENCE_S):
            while not (beats := member.all(control.Heartbeat)) or not done(_states(beats[-1])):
                member.heard[:-1] = []
                await asyncio.sleep(0.002)

    async def load(self, model: str) -> str:
        """Load; returns the state that it ends in."""
        await self.command("load", model, lambda states: states.get(model) in ("warm", "failed"))
        return _states((await self.member()).all(control.Heartbeat)[-1])[model]

    async def unload(self, model: str) -> None:
        """Unload what has no calls."""
        await self.command("unload", model, lambda states: model not in states)

    async def edge(self) -> None:
        """Connect as an edge."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    self._edge = await dial(self._address, None)
                    break
                except OSError:
                    assert self.process.poll() is None, "it has ended"
                    await asyncio.sleep(0.001)
        self._edge.on_frame = self._frame
        self._edge.send(data.encode(data.Hello(data.WIRE, "edge", "e", "")))

    def _frame(self, header: bytes, body: Buffer) -> None:
        message = data.decode(header)
        if isinstance(message, data.Reply):
            self._replies.pop(message.call_id).set_result(message)

    async def call(self, manifest: Manifest) -> data.Reply:
        """Call a version with zeros."""
        if self._edge is None:
            await self.edge()
        assert self._edge is not None
        spec = manifest.inputs[0]
        shape = tuple(1 if size < 0 else size for size in spec.shape)
        zeros = np.zeros(shape, np.float32 if spec.datatype == "FP32" else np.int64)
        tensors = [Tensor(spec.name, spec.datatype, shape, zeros.tobytes())]
        call_id = time.monotonic_ns()
        self._replies[call_id] = asyncio.get_running_loop().create_future()
        message = data.Call(
            call_id, "r", manifest.model, "1", manifest.digest, 60_000_000, 0, data.heads(tensors)
        )
        self._edge.send(data.encode(message, tensors))
        async with asyncio.timeout(PATIENCE_S):
            return await self._replies[call_id]

    def rss_bytes(self) -> int:
        """Return its memory in RAM.

        Not its share of it, which grows whenever somebody else with the same libraries ends.
        """
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        line = next(line for line in text.splitlines() if line.startswith("Rss:"))
        return int(line.split()[1]) << 10

    def cpu_s(self) -> float:
        """Return how long its threads have run on a core."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def running_worker(
    folder: Path,
    *,
    id: str = "w",
    engines: Sequence[str] = (),
    memory_bytes_max: int = 0,
    prepare: Callable[[], None] | None = None,
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[WorkerProcess]:
    """Run a worker whose local store is `folder/store`.

    Args:
        prepare: done in the new process before it begins, e.g. to limit its memory.
    """
    dialled: asyncio.Queue[Peer] = asyncio.Queue()
    peers: list[Peer] = []

    def on_peer(peer: Peer) -> None:
        peers.append(peer)
        dialled.put_nowait(peer)

    server = await serve(Address(path=str(folder / "c")), None, on_peer)
    config = WorkerConfig(
        id=id,
        data=str(folder),
        listen=f"unix:{folder / 'w'}",
        controller=f"unix:{folder / 'c'}",
        sync_socket=str(folder / "nobody"),
        threads=1,
        engines=tuple(engines),
        device="cpu",
        memory_bytes_max=memory_bytes_max,
    )
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-P", "-m", "pool.worker", msgspec.json.encode(config).decode()],
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=prepare,
        )
    worker = WorkerProcess(folder, process, dialled)
    try:
        yield worker
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        for peer in [*peers, *([worker._edge] if worker._edge else [])]:
            peer.close()
        await server.close()
        await asyncio.sleep(0.02)  # the transports close in the loop's next turns


def _states(beat: control.Heartbeat) -> dict[str, str]:
    return {engine.model: engine.state for engine in beat.engines}
