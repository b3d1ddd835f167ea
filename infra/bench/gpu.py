"""What serving costs on a GPU: a worker fed over the wire against the bare engine loop.

    python -m infra.bench.gpu [--rows 32] [--clients 64] [--rounds 5] [--seconds 5] [--half]

The same archive of a ResNet-50 with random weights runs in both, at the same batch.  Rounds of one
and the other alternate on the one GPU, and their ratio is taken within each round.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
import uvloop

from infra.bench.processes import StartFailed, end, environment
from pool.config import WorkerConfig
from pool.engines import device as devices
from pool.wire import data
from pool.wire.arena import PLACE_BYTES_MIN, Arena
from pool.wire.data import Tensor
from pool.wire.frames import Buffer
from pool.wire.peer import Address, Peer, dial
from registry_sync.catalog import manifest_key
from registry_sync.directory import DirectoryStore
from registry_sync.documents import Manifest, read_manifest
from registry_sync.local import LocalStore
from registry_sync.publish import publish
from registry_sync.sync import fetch

CONNECTIONS = 2  # as from two edges, each with its own shared memory
LOAD_S_MAX = 180.0
CALL_S_MAX = 60.0
MODEL = "bench"
SMALL = ((8, 1), (16, 1))  # for trying the bench out on a CPU


class Failed(Exception):
    """The bench cannot go on; the text says why."""


class Client:
    """So many calls under way at once, for as long as a round takes."""

    def __init__(self, peer: Peer, manifest: Manifest, clients: int) -> None:
        spec = manifest.inputs[0]
        dtype = np.float16 if spec.datatype == "FP16" else np.float32
        row = np.random.default_rng(0).standard_normal((1, *spec.shape[1:])).astype(dtype)
        self._tensor = Tensor(spec.name, spec.datatype, row.shape, row.tobytes())
        self._heads = data.heads([self._tensor])
        self._digest = manifest.digest
        self._clients = clients
        self._arena = Arena()
        self._peer = peer
        peer.on_frame = self._on_frame
        peer.on_lost = self._on_lost
        peer.send(
            data.encode(
                data.Hello(data.WIRE, "edge", "e", "", self._arena.fd, self._arena.bytes_max)
            )
        )
        # The whole mutable state.
        self._pending: dict[int, asyncio.Future[data.Reply]] = {}
        self._made = 0
        self.latencies_s: list[float] = []
        self.batches: list[int] = []

    def _on_frame(self, header: bytes, body: Buffer) -> None:
        message = data.decode(header)
        if isinstance(message, data.Release):
            self._arena.released(message.places)
        elif isinstance(message, data.Reply):
            self._pending.pop(message.call_id).set_result(message)

    def _on_lost(self, *_: object) -> None:
        for waiting in self._pending.values():
            if not waiting.done():
                waiting.set_exception(Failed("the worker hung up"))

    async def call(self, time_left_s: float = CALL_S_MAX) -> data.Reply:
        """Send one row and wait for its answer."""
        self._made += 1
        answer = asyncio.get_running_loop().create_future()
        self._pending[self._made] = answer
        size = len(self._tensor.data)
        at = (size >= PLACE_BYTES_MIN and self._arena.put([self._tensor.data], size)) or 0
        call = data.Call(
            *(self._made, "bench", MODEL, "1", self._digest),
            *(int(time_left_s * 1e6), 0, self._heads),
            arena_at=at,
        )
        self._peer.send(data.encode(call, () if at else [self._tensor]))
        async with asyncio.timeout(time_left_s + 5):
            reply: data.Reply = await answer
        if reply.status != 200:
            raise Failed(f"the worker answers {reply.status}: {reply.detail}")
        return reply

    async def call_until(self, end_s: float) -> int:
        """Keep all clients calling until a moment; return how many answers came before it."""

        async def one() -> int:
            count = 0
            while (sent_s := time.monotonic()) < end_s:
                reply = await self.call()
                done_s = time.monotonic()
                if done_s < end_s:
                    count += 1
                    self.latencies_s.append(done_s - sent_s)
                    self.batches.append(reply.batch_rows)
            return count

        return sum(await asyncio.gather(*(one() for _ in range(self._clients))))

    def close(self) -> None:
        """Hang up."""
        self._peer.close()
        self._arena.close()


@contextmanager
def worker(folder: Path, device: str) -> Iterator[Address]:
    """Run a worker process on the node in `folder`; its log is shown if it ends too early."""
    address = Address(path=str(folder / "w"))
    config = WorkerConfig(
        id="bench",
        data=str(folder),
        listen=str(address),
        controller=f"unix:{folder}/nobody",
        sync_socket=str(folder / "nobody"),
        device=device,
    )
    with (folder / "worker.log").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pool.worker", msgspec.json.encode(config).decode()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment(),
        )
        try:
            yield address
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read()[-4000:])
            raise
        finally:
            end(process)


async def _connected(address: Address, manifest: Manifest, clients: int) -> list[Client]:
    deadline_s = time.monotonic() + LOAD_S_MAX
    made: list[Client] = []
    while len(made) < CONNECTIONS:
        try:
            peer = await dial(address, None)
        except OSError as error:
            if time.monotonic() > deadline_s:
                raise StartFailed(f"the worker does not listen: {error}") from None
            await asyncio.sleep(0.05)
        else:
            made.append(Client(peer, manifest, clients // CONNECTIONS))
    # The first call has the model loaded.
    await made[0].call(LOAD_S_MAX)
    return made


async def _measure(
    address: Address, manifest: Manifest, bare: Any, options: argparse.Namespace
) -> list[dict[str, float]]:
    clients = await _connected(address, manifest, options.clients)
    rounds = []
    try:
        for number in range(options.rounds + 1):
            # The first is for warming both up.
            seconds = options.seconds if number else min(2.0, options.seconds)
            alone = [bare.rows_per_s(seconds / 2, slots) for slots in range(1, bare.slots + 1)]
            for client in clients:
                client.latencies_s.clear()
                client.batches.clear()
            end_s = time.monotonic() + seconds
            counts = await asyncio.gather(*(client.call_until(end_s) for client in clients))
            served = sum(counts) / seconds
            if not number:
                continue
            latencies_s = sorted(one for client in clients for one in client.latencies_s)
            batches = [one for client in clients for one in client.batches]
            rounds.append(
                {
                    "bare": max(alone),
                    "bare one stream": alone[0],
                    "served": served,
                    "ratio": served / max(alone),
                    "batch": sum(batches) / max(1, len(batches)),
                    "p50_ms": 1e3 * latencies_s[len(latencies_s) // 2] if latencies_s else 0.0,
                    "p99_ms": 1e3 * latencies_s[len(latencies_s) * 99 // 100]
                    if latencies_s
                    else 0.0,
                }
            )
            print(_line(f"round {number}", rounds[-1]), flush=True)
    finally:
        for client in clients:
            client.close()
    return rounds


def _line(name: str, figures: dict[str, float]) -> str:
    return f"{name}: " + "  ".join(f"{key} {value:.4g}" for key, value in figures.items())


def _cold_start(node: LocalStore, folder: Path, manifest: Manifest, device: str) -> dict[str, Any]:
    document = folder / "manifest.json"
    document.write_bytes(msgspec.json.encode(manifest))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "infra.bench.gpu_loop", str(time.monotonic())),
            *(str(node.folder_of(manifest)), str(document), device),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LOAD_S_MAX,
    )
    if done.returncode:
        raise Failed(f"a cold start ends with {done.returncode}: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure; print each round as it comes.

    Raises:
        Failed: there is no such device, or the worker fails.
    """
    try:
        device = devices.find(options.device)
    except devices.NoSuchDevice as error:
        raise Failed(str(error)) from None
    if device.name == "cpu" and not options.small:
        raise Failed("there is no GPU here; --device cpu --small tries the bench out")
    try:
        loop: Any = importlib.import_module("infra.bench.gpu_loop")
    except ImportError as error:
        raise Failed(f"{error}: pip install 'tidepool[gpu]'") from None
    with tempfile.TemporaryDirectory(prefix="tp-gpu-") as made:
        folder = Path(made)
        stages = SMALL if options.small else loop.STAGES
        loop.export(folder / "m.pt2", rows_max=options.rows, half=options.half, stages=stages)
        store = DirectoryStore(folder / "registry")
        publish(store, MODEL, folder / "m.pt2", rows_max=options.rows)
        node = LocalStore(folder / "store")
        fetch(store, node, MODEL, "1")
        manifest = read_manifest(store.get(manifest_key(MODEL, "1")).data)
        print(
            f"{device.model or device.name} ({device.device_class}), batch {options.rows}, "
            f"{options.clients} clients, {'FP16' if options.half else 'FP32'}",
            flush=True,
        )
        cold = _cold_start(node, folder, manifest, device.name)
        print(_line("cold start [s]", cold), flush=True)
        bare = loop.BareLoop(node.folder_of(manifest) / "model.pt2", device.name, options.rows)
        with worker(folder, device.name) as address:
            rounds = uvloop.run(_measure(address, manifest, bare, options))
    ratios = sorted(one["ratio"] for one in rounds)
    print(
        f"served / bare: {median(ratios):.3f} (of {len(ratios)} rounds, "
        f"{ratios[0]:.3f} to {ratios[-1]:.3f})"
    )
    return {"device": device.model, "cold": cold, "rounds": rounds, "ratio": median(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m infra.bench.gpu", description=__doc__)
    parser.add_argument("--rows", type=int, default=32, help="of a batch")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a round, for each")
    parser.add_argument("--half", action="store_true", help="weights and inputs in FP16")
    parser.add_argument("--small", action="store_true", help="a tiny model, to try it out")
    parser.add_argument("--device", default="", help="the first GPU by default")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    try:
        figures = run(options)
    except (Failed, StartFailed, TimeoutError) as error:
        sys.exit(f"bench: {error or 'no answer in time'}")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
