"""Plans through the sync process: asked as workers ask it, against a directory and real S3."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from registry_sync.client import (
    SyncError,
    fetch_plan_via,
    ping_via,
    put_gate_via,
    put_plan_via,
    use_plan_via,
)
from registry_sync.config import SyncConfig
from registry_sync.local_plans import LocalPlans
from registry_sync.open import open_store
from registry_sync.plan_store import read_used, used_key
from registry_sync.plans import BadPlan, read_gate
from registry_sync.stores import Store
from tests.support.faulty_s3 import HOLD, SLOW_DOWN, faulty_s3
from tests.support.made_plans import KEYS, OTHER, SECRET, add, gate_record, key_of, meta_of
from tests.support.seaweed import S3Server

PLAN = b"plan" * 1000
KEY = key_of()
PLACE = f"engines/{KEY}/{SECRET[0]}"


class Node:
    """A node's sync process, and its folder of plans as its workers see it."""

    def __init__(self, data: Path, registry: str, **settings: object) -> None:
        data.mkdir()
        self.socket = data / "s.sock"
        self.local = LocalPlans(data / "store" / "engines")
        config = SyncConfig(
            data=str(data / "store"),
            registry=registry,
            socket=str(self.socket),
            **settings,  # type: ignore[arg-type]
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "registry_sync", msgspec.json.encode(config).decode()],
            stderr=subprocess.PIPE,
        )

    async def ready(self) -> None:
        end_s = time.monotonic() + 20.0
        while True:
            assert self.process.poll() is None, "it ended"
            try:
                return await ping_via(self.socket)
            except SyncError:
                assert time.monotonic() < end_s, "it did not come about"
                await asyncio.sleep(0.02)

    def end(self) -> bytes:
        """Terminate it; return what it logged."""
        self.process.terminate()
        return self.process.communicate(timeout=10.0)[1]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


Start = Callable[..., Node]


def wait_for(condition: Callable[[], object], limit_s: float = 20.0) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come about"
        time.sleep(0.01)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def started(name: str, registry: str, **settings: object) -> Node:
            node = Node(tmp_path / name, registry, **settings)
            stack.callback(node.kill)
            return node

        yield started


async def test_a_plan_of_one_node_is_used_on_another(start: Start, url: str, store: Store) -> None:
    a, b = start("a", url), start("b", url)
    await asyncio.gather(a.ready(), b.ready())
    assert await fetch_plan_via(b.socket, KEY, list(KEYS)) is None
    add(a.local, PLAN, inspector=b'{"layers": []}')
    assert await put_plan_via(a.socket, KEY, SECRET[0])
    assert await fetch_plan_via(b.socket, KEY, ["000000000000", *KEYS]) == SECRET[0]
    found = b.local.find(KEY, KEYS)
    assert found is not None
    assert found.plan.read_bytes() == PLAN
    a.local.put_gate(KEY, SECRET[0], gate_record(PLAN, "passed"))
    await put_gate_via(a.socket, KEY, SECRET[0])
    await fetch_plan_via(b.socket, KEY, list(KEYS))
    found = b.local.find(KEY, KEYS)
    assert found is not None
    assert found.gate.verdict == "passed"
    await use_plan_via(b.socket, KEY)
    assert read_used(store.get(used_key(KEY)).data) == datetime.now(UTC).date().isoformat()
    assert read_gate(store.get(f"{PLACE}/gate.json").data) == gate_record(PLAN, "passed")
    assert store.get(f"{PLACE}/inspector.json").data == b'{"layers": []}'


async def test_who_comes_second_gets_the_firsts_plan(start: Start, url: str) -> None:
    a, b = start("a", url), start("b", url)
    await asyncio.gather(a.ready(), b.ready())
    add(a.local, b"first")
    add(b.local, b"second")
    assert await put_plan_via(a.socket, KEY, SECRET[0])
    assert not await put_plan_via(b.socket, KEY, SECRET[0])
    found = b.local.find(KEY, KEYS)
    assert found is not None
    assert found.plan.read_bytes() == b"first"
    # Again, because the answer was lost, say.
    assert await put_plan_via(a.socket, KEY, SECRET[0])


async def test_what_must_not_be_used_is_said_as_such(start: Start, url: str, store: Store) -> None:
    node = start("a", url)
    await node.ready()
    with pytest.raises(BadPlan, match="no plan of this key on this node"):
        await put_plan_via(node.socket, KEY, SECRET[0])
    with pytest.raises(BadPlan, match="no verdict"):
        await put_gate_via(node.socket, KEY, SECRET[0])
    store.put_new(f"{PLACE}/plan", PLAN)
    store.put_new(f"{PLACE}/meta.json", msgspec.json.encode(meta_of(b"other" * 800)))
    with pytest.raises(BadPlan, match="sha256"):
        await fetch_plan_via(node.socket, KEY, list(KEYS))
    assert node.local.pair(KEY, SECRET[0]) is None
    assert b"plan refused" in node.end()


async def test_a_plan_that_was_refused_for_its_mac_is_not_brought_again(
    start: Start, url: str, store: Store
) -> None:
    node = start("a", url)
    await node.ready()
    forged = replace(meta_of(PLAN), mac="0" * 64)
    store.put_new(f"{PLACE}/plan", PLAN)
    store.put_new(f"{PLACE}/meta.json", msgspec.json.encode(forged))
    assert await fetch_plan_via(node.socket, KEY, list(KEYS)) == SECRET[0]
    with pytest.raises(BadPlan, match="MAC"):
        node.local.find(KEY, KEYS)
    with pytest.raises(BadPlan, match="refused it before"):
        await fetch_plan_via(node.socket, KEY, list(KEYS))


async def test_a_plan_above_this_nodes_bound_is_refused(
    start: Start, url: str, store: Store
) -> None:
    node = start("a", url, plans_bytes_max=1000)
    await node.ready()
    store.put_new(f"{PLACE}/plan", PLAN)
    store.put_new(f"{PLACE}/meta.json", msgspec.json.encode(meta_of(PLAN)))
    with pytest.raises(BadPlan, match="at most 1000 bytes of plans: raise --plans-bytes-max"):
        await fetch_plan_via(node.socket, KEY, list(KEYS))


@pytest.mark.parametrize("key", ["", "../x", "0" * 63, "0" * 65, "A" * 64])
async def test_what_is_no_key_is_refused(start: Start, tmp_path: Path, key: str) -> None:
    node = start("a", str(tmp_path / "registry"))
    await node.ready()
    for ask in (
        fetch_plan_via(node.socket, key, [SECRET[0]]),
        put_plan_via(node.socket, key, SECRET[0]),
        put_gate_via(node.socket, key, SECRET[0]),
        use_plan_via(node.socket, key),
        fetch_plan_via(node.socket, KEY, ["../x"]),
    ):
        with pytest.raises(SyncError) as refusal:
            await ask
        assert not refusal.value.retry


async def test_a_registry_that_does_not_answer_costs_no_plan(
    start: Start, seaweed: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty_s3(seaweed.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        node = start("a", s3_url)
        await node.ready()
        add(node.local, PLAN)
        proxy.faults += [SLOW_DOWN] * 5
        with pytest.raises(SyncError, match="SlowDown") as refusal:
            await put_plan_via(node.socket, KEY, SECRET[0])
        assert refusal.value.retry
        assert node.local.find(KEY, KEYS) is not None
        assert await put_plan_via(node.socket, KEY, SECRET[0])


async def test_equal_requests_share_one_download_and_models_are_brought_meanwhile(
    start: Start, seaweed: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(open_store(s3_url)) as direct:
        direct.put_new(f"{PLACE}/plan", PLAN)
        direct.put_new(f"{PLACE}/meta.json", msgspec.json.encode(meta_of(PLAN)))
    with faulty_s3(seaweed.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        node = start("a", s3_url)
        await node.ready()
        proxy.faults += [HOLD]
        asks = [asyncio.create_task(fetch_plan_via(node.socket, KEY, list(KEYS))) for _ in range(8)]
        await asyncio.to_thread(wait_for, lambda: proxy.requests)
        await ping_via(node.socket)
        proxy.release.set()
        assert await asyncio.gather(*asks) == [SECRET[0]] * 8
        # A list, the metadata, the plan.
        assert len(proxy.requests) == 3


async def test_a_use_is_told_to_the_registry_once_a_day(
    start: Start, seaweed: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faulty_s3(seaweed.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        node = start("a", s3_url)
        await node.ready()
        # Twice, should the day end in between.
        for _ in range(2):
            proxy.requests.clear()
            for _ in range(5):
                await use_plan_via(node.socket, KEY)
        assert proxy.requests == []


async def test_who_waits_for_another_writer_is_told_when_the_process_ends(
    start: Start, tmp_path: Path
) -> None:
    registry = open_store(str(tmp_path / "registry"))
    registry.put_new(f"{PLACE}/plan", b"another's")
    node = start("a", registry.url)
    await node.ready()
    add(node.local, PLAN)
    put = asyncio.create_task(put_plan_via(node.socket, KEY, SECRET[0]))
    # The day is written before the plan is looked for.
    await asyncio.to_thread(wait_for, lambda: registry.list(f"engines/{KEY}", recursive=False))
    node.process.terminate()
    with pytest.raises(SyncError, match="stopped while another writer") as refusal:
        await put
    assert refusal.value.retry
    assert node.local.find(KEY, KEYS) is not None


async def test_no_secret_is_logged_or_said(start: Start, tmp_path: Path) -> None:
    node = start("a", str(tmp_path / "registry"))
    await node.ready()
    add(node.local, PLAN, secret=OTHER)
    assert await put_plan_via(node.socket, KEY, OTHER[0])
    logged = node.end()
    assert OTHER[0].encode() in logged
    assert OTHER[1] not in logged
    assert OTHER[1].hex().encode() not in logged
