"""The sync process itself: started as the supervisor starts it, asked as the workers ask it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from registry_sync import daemon
from registry_sync.client import SyncError, fetch_via, leader_via, ping_via
from registry_sync.config import SyncConfig
from registry_sync.directory import DirectoryStore
from registry_sync.leader import LEADER_KEY
from registry_sync.leader_record import LeaderRecord
from registry_sync.local import LocalStore
from registry_sync.local_plans import LocalPlans
from registry_sync.open import open_store
from registry_sync.stores import Store
from registry_sync.sync import present
from tests.support.artifacts import blob_key, put_artifact
from tests.support.faulty_s3 import HOLD, SLOW_DOWN, FaultyS3, faulty_s3
from tests.support.seaweed import S3Server

FILES = {"model.onnx": b"graph", "w/weights.bin": b"w" * 100_000}
LEADER = LeaderRecord(3, "tcp://10.0.0.1:9000", "node-a", "n")


@dataclass
class Running:
    """A sync process and where it can be asked."""

    process: subprocess.Popen[bytes]
    socket: Path
    data: Path

    def ask(self, line: bytes) -> dict[str, object]:
        """Send one line as it is and return the reply."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.settimeout(10.0)
            caller.connect(str(self.socket))
            with contextlib.suppress(BrokenPipeError):
                caller.sendall(line)
            with caller.makefile("rb") as answers:
                reply: dict[str, object] = json.loads(answers.readline())
                return reply

    def end(self) -> tuple[int, list[dict[str, object]]]:
        """Terminate it; return its exit status and what it logged."""
        self.process.terminate()
        _, logged = self.process.communicate(timeout=10.0)
        return self.process.returncode, [json.loads(line) for line in logged.splitlines()]


Start = Callable[[str], Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a sync process on a registry URL; it has answered once when this returns."""
    with contextlib.ExitStack() as stack:

        def started(registry: str) -> Running:
            config = SyncConfig(
                data=str(tmp_path / "data"), registry=registry, socket=str(tmp_path / "s.sock")
            )
            process = subprocess.Popen(
                [sys.executable, "-m", "registry_sync", msgspec.json.encode(config).decode()],
                stderr=subprocess.PIPE,
            )
            stack.callback(stop, process)
            running = Running(process, tmp_path / "s.sock", tmp_path / "data")
            wait_for(lambda: answers(running))
            return running

        yield started


def stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stderr is not None:
        process.stderr.close()


def answers(running: Running) -> bool:
    assert running.process.poll() is None, "it ended"
    try:
        return running.ask(b'{"op":"ping"}\n') == {"ok": True}
    except OSError:
        return False


def wait_for(condition: Callable[[], object], limit_s: float = 15.0) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come about"
        time.sleep(0.01)


@pytest.fixture
def registry(tmp_path: Path) -> Store:
    return DirectoryStore(tmp_path / "registry")


@pytest.fixture
def proxied(
    seaweed: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, FaultyS3]]:
    """A registry URL with a version in it; the sync process reaches it through the proxy."""
    store = open_store(s3_url)
    put_artifact(store, FILES)
    store.close()
    with faulty_s3(seaweed.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield s3_url, proxy


async def test_a_version_that_was_asked_for_is_here(start: Start, registry: Store) -> None:
    manifest = put_artifact(registry, FILES)
    running = start(registry.url)
    await fetch_via(running.socket, "m", "1")
    local = LocalStore(running.data)
    assert local.load_manifest("m", "1") == manifest
    assert local.has(manifest)


async def test_a_missing_version_is_named_and_not_worth_a_retry(
    start: Start, registry: Store
) -> None:
    running = start(registry.url)
    with pytest.raises(SyncError, match=r"models/m/9/manifest\.json: not found") as refusal:
        await fetch_via(running.socket, "m", "9")
    assert not refusal.value.retry


async def test_a_wrong_blob_is_named_and_not_worth_a_retry(start: Start, registry: Store) -> None:
    manifest = put_artifact(registry, FILES)
    registry.delete(blob_key(FILES["model.onnx"]))
    registry.put_new(blob_key(FILES["model.onnx"]), b"GRAPH")
    running = start(registry.url)
    with pytest.raises(SyncError, match=manifest.files[0].sha256) as refusal:
        await fetch_via(running.socket, "m", "1")
    assert not refusal.value.retry


async def test_a_bad_name_is_refused(start: Start, registry: Store) -> None:
    running = start(registry.url)
    with pytest.raises(SyncError, match="not a name") as refusal:
        await fetch_via(running.socket, "../m", "1")
    assert not refusal.value.retry


async def test_a_registry_that_does_not_answer_is_worth_a_retry(
    start: Start, proxied: tuple[str, FaultyS3]
) -> None:
    url, proxy = proxied
    running = start(url)
    proxy.faults += [SLOW_DOWN] * 5
    with pytest.raises(SyncError, match="SlowDown") as refusal:
        await fetch_via(running.socket, "m", "1")
    assert refusal.value.retry
    await fetch_via(running.socket, "m", "1")


async def test_who_waits_for_a_registry_that_says_nothing_hears_why_and_may_join_again(
    tmp_path: Path, proxied: tuple[str, FaultyS3], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "SILENT_S_MAX", 0.3)
    url, proxy = proxied
    local = LocalStore(tmp_path / "data")
    plans = LocalPlans(tmp_path / "data" / "engines", 1 << 20)
    desk = daemon.Daemon(daemon.Registry(url), local, plans)
    server = await asyncio.start_unix_server(desk.connected, path=tmp_path / "d")
    proxy.faults += [None, HOLD]  # the manifest is had, a blob is not
    try:
        for _ in range(2):
            with pytest.raises(SyncError, match=r"has not answered for \d s") as refusal:
                await fetch_via(tmp_path / "d", "m", "1")
            assert refusal.value.retry
            assert url in str(refusal.value)
        asked = len(proxy.requests)
        proxy.release.set()
        await fetch_via(tmp_path / "d", "m", "1")
        assert present(local, "m", "1") is not None
        assert asked < len(proxy.requests) < 3 * asked + 6  # one download, which went on
    finally:
        server.close()
        await desk.end()


async def test_what_is_here_needs_no_registry(
    start: Start, registry: Store, tmp_path: Path
) -> None:
    put_artifact(registry, FILES)
    running = start(registry.url)
    await fetch_via(running.socket, "m", "1")
    running.end()
    (tmp_path / "file").write_bytes(b"")
    again = start(str(tmp_path / "file" / "is no folder"))
    await fetch_via(again.socket, "m", "1")
    with pytest.raises(SyncError, match="cannot be a registry"):
        await fetch_via(again.socket, "m", "2")


async def test_equal_requests_share_one_download(
    start: Start, proxied: tuple[str, FaultyS3]
) -> None:
    url, proxy = proxied
    running = start(url)
    proxy.faults += [HOLD]
    requests = [asyncio.create_task(fetch_via(running.socket, "m", "1")) for _ in range(10)]
    await asyncio.to_thread(wait_for, lambda: proxy.requests)
    await asyncio.sleep(0.2)
    # Who leaves does not take the others' download along.
    requests.pop(0).cancel()
    proxy.release.set()
    await asyncio.gather(*requests)
    paths = [request.split("?")[0].rsplit("/", 1)[1] for request in proxy.requests]
    assert paths.count("manifest.json") == 1
    assert len(paths) == 1 + 2 * len(FILES)  # a size and one part for each file


async def test_format_is_told_while_the_files_are_on_their_way(
    start: Start, proxied: tuple[str, FaultyS3]
) -> None:
    url, proxy = proxied
    running = start(url)
    proxy.match = "/blobs/"
    proxy.faults += [HOLD] * len(FILES)
    heard: list[str] = []
    early = asyncio.create_task(fetch_via(running.socket, "m", "1", heard.append))
    await asyncio.to_thread(wait_for, lambda: heard)
    late = asyncio.create_task(fetch_via(running.socket, "m", "1", heard.append))
    await asyncio.to_thread(wait_for, lambda: len(heard) == 2)
    assert heard == ["onnx"] * 2
    older = asyncio.create_task(
        asyncio.to_thread(running.ask, b'{"op":"fetch","model":"m","version":"1"}\n')
    )
    assert not (await asyncio.wait([early, late, older], timeout=0.1))[0]
    proxy.release.set()
    await asyncio.gather(early, late)
    assert await older == {"ok": True}  # who does not know of it gets one line
    paths = [request.split("?")[0].rsplit("/", 1)[1] for request in proxy.requests]
    assert paths.count("manifest.json") == 1
    assert len(paths) == 1 + 2 * len(FILES)
    await fetch_via(running.socket, "m", "1", heard.append)
    assert len(heard) == 2  # nothing is on its way any more


async def test_format_of_what_then_fails_is_told_too(start: Start, registry: Store) -> None:
    put_artifact(registry, FILES)
    registry.delete(blob_key(FILES["model.onnx"]))
    running = start(registry.url)
    heard: list[str] = []
    with pytest.raises(SyncError, match="blobs/"):
        await fetch_via(running.socket, "m", "1", heard.append)
    assert heard == ["onnx"]


async def test_sync_process_that_is_older_tells_no_format(tmp_path: Path) -> None:
    async def older(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = json.loads(await reader.readline())
        assert asked.items() >= {"op": "fetch", "model": "m", "version": "1"}.items()
        writer.write(b'{"ok":true}\n')
        writer.close()

    heard: list[str] = []
    async with await asyncio.start_unix_server(older, path=tmp_path / "s"):
        await fetch_via(tmp_path / "s", "m", "1", heard.append)
    assert not heard


async def test_the_leader_is_told(start: Start, registry: Store) -> None:
    running = start(registry.url)
    assert await leader_via(running.socket) is None
    registry.put_new(LEADER_KEY, msgspec.json.encode(LEADER))
    assert await leader_via(running.socket) == LEADER


async def test_the_leader_is_told_while_downloads_hang(
    start: Start, proxied: tuple[str, FaultyS3]
) -> None:
    url, proxy = proxied
    running = start(url)
    proxy.faults += [HOLD] * 12
    fetches = [
        asyncio.create_task(fetch_via(running.socket, "m", str(version)))
        for version in range(1, 13)
    ]
    # As many as there are threads for.
    await asyncio.to_thread(wait_for, lambda: len(proxy.requests) == 8)
    proxy.faults.clear()
    async with asyncio.timeout(5.0):
        assert await leader_via(running.socket) is None
        await ping_via(running.socket)
    proxy.release.set()
    outcomes = await asyncio.gather(*fetches, return_exceptions=True)
    assert outcomes[0] is None
    assert all(isinstance(outcome, SyncError) for outcome in outcomes[1:])


# --- the lines ---


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"{\n",
        b"[]\n",
        b"{}\n",
        b'{"op":"no"}\n',
        b'{"op":"fetch"}\n',
        b'{"op":"fetch","model":1,"version":"1"}\n',
        b"\xff\n",
        b"x" * (65 << 10) + b"\n",
    ],
)
def test_a_line_that_is_no_request_is_answered_so(
    start: Start, registry: Store, line: bytes
) -> None:
    running = start(registry.url)
    reply = running.ask(line)
    assert reply["ok"] is False
    assert "cannot be read" in str(reply["error"])
    assert running.ask(b'{"op":"ping"}\n') == {"ok": True}


def test_a_connection_takes_one_request_after_the_other(start: Start, registry: Store) -> None:
    running = start(registry.url)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.connect(str(running.socket))
        caller.sendall(b'{"op":"ping"}\n{"op":"leader"}\n{"op":"ping","later":1}\n')
        with caller.makefile("rb") as lines:
            replies = [json.loads(lines.readline()) for _ in range(3)]
    assert replies == [{"ok": True}, {"ok": True, "leader": None}, {"ok": True}]


def test_a_caller_who_leaves_without_a_word_disturbs_nobody(start: Start, registry: Store) -> None:
    running = start(registry.url)
    for words in (b"", b"half a li", b'{"op":"leader"}\n'):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.connect(str(running.socket))
            caller.sendall(words)
    assert running.ask(b'{"op":"ping"}\n') == {"ok": True}
    status, logged = running.end()
    assert status == 0
    assert {line["level"] for line in logged} == {"info"}


async def test_without_a_sync_process_the_caller_is_told_to_come_again(tmp_path: Path) -> None:
    with pytest.raises(SyncError, match="no sync process") as refusal:
        await fetch_via(tmp_path / "none.sock", "m", "1")
    assert refusal.value.retry


# --- beginning and ending ---


def test_only_its_user_may_connect(start: Start, registry: Store) -> None:
    running = start(registry.url)
    assert stat.S_IMODE(running.socket.stat().st_mode) == 0o600


def test_the_mask_of_the_process_is_as_it_was(start: Start, registry: Store) -> None:
    mask = os.umask(0)
    os.umask(mask)
    running = start(registry.url)
    found = Path(f"/proc/{running.process.pid}/status").read_text()
    assert f"Umask:\t{mask:04o}" in found


def test_a_killed_processs_socket_is_replaced(start: Start, registry: Store) -> None:
    first = start(registry.url)
    first.process.kill()
    first.process.wait()
    assert first.socket.exists()
    assert start(registry.url).ask(b'{"op":"ping"}\n') == {"ok": True}


def test_a_living_processs_socket_is_not_taken(
    start: Start, registry: Store, tmp_path: Path
) -> None:
    first = start(registry.url)
    config = {"data": str(tmp_path / "data"), "registry": "/x", "socket": str(first.socket)}
    second = subprocess.run(
        [sys.executable, "-m", "registry_sync", json.dumps(config)],
        capture_output=True,
        timeout=15,
        check=False,
    )
    assert second.returncode == 1
    assert b"another sync process" in second.stderr
    assert first.ask(b'{"op":"ping"}\n') == {"ok": True}


def test_it_ends_on_request_and_takes_its_socket_along(start: Start, registry: Store) -> None:
    running = start(registry.url)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as idle:
        idle.connect(str(running.socket))
        begun_s = time.monotonic()
        status, _ = running.end()
        assert time.monotonic() - begun_s < 2.0
    assert status == 0
    assert not running.socket.exists()


async def test_it_ends_though_the_store_hangs_and_says_so_to_who_waits(
    start: Start, proxied: tuple[str, FaultyS3]
) -> None:
    url, proxy = proxied
    running = start(url)
    proxy.faults += [HOLD]
    request = asyncio.create_task(fetch_via(running.socket, "m", "1"))
    await asyncio.to_thread(wait_for, lambda: proxy.requests)
    status, _ = await asyncio.to_thread(running.end)
    assert status == 0
    with pytest.raises(SyncError) as refusal:
        await request
    assert refusal.value.retry


async def test_a_download_under_way_is_given_up_and_later_resumed(
    start: Start, seaweed: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = b"0123456789abcdef" * (3 << 20)  # six parts
    store = open_store(s3_url)
    manifest = put_artifact(store, {"big": big})
    store.close()
    with faulty_s3(seaweed.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        running = start(s3_url)
        proxy.faults += [None, None, None, None, None, HOLD, HOLD, HOLD]
        request = asyncio.create_task(fetch_via(running.socket, "m", "1"))
        blob = LocalStore(running.data).blob_path(manifest.files[0].sha256)
        partial = blob.with_name(f"{blob.name}.partial")
        await asyncio.to_thread(
            wait_for, lambda: partial.exists() and partial.stat().st_size >= 1 << 20
        )
        running.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        proxy.release.set()
        with pytest.raises(SyncError) as refusal:
            await request
        assert refusal.value.retry
        assert running.process.wait(10.0) == 0
        assert big.startswith(partial.read_bytes())
        await fetch_via(start(s3_url).socket, "m", "1")
        assert LocalStore(running.data).has(manifest)


@pytest.mark.parametrize(
    "argument", ["", "{", "{}", '{"data":"d","registry":"r","socket":"s","more":1}']
)
def test_a_wrong_config_is_named(argument: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "registry_sync", argument], capture_output=True, check=False
    )
    assert done.returncode == 2
    assert b"the config is wrong" in done.stderr


def test_a_wrong_log_level_is_named(tmp_path: Path) -> None:
    config = {"data": "d", "registry": "r", "socket": "s", "log_level": "loud"}
    done = subprocess.run(
        [sys.executable, "-m", "registry_sync", json.dumps(config)],
        capture_output=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    assert b"loud" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_its_log_is_one_json_object_a_line(start: Start, registry: Store) -> None:
    running = start(registry.url)
    running.ask(b'{"op":"fetch","model":"m\\n","version":"1"}\n')
    status, logged = running.end()
    assert status == 0
    assert [line["event"] for line in logged] == ["ready", "request failed", "ended"]
    for line in logged:
        assert (line["tier"], line["pid"]) == ("sync", running.process.pid)
        stamp = datetime.fromisoformat(str(line["timestamp"]))
        assert stamp.utcoffset() == timedelta(0)
    assert [line["level"] for line in logged] == ["info", "warning", "info"]


def test_it_is_ready_without_s3_and_without_having_loaded_boto3(start: Start) -> None:
    start("s3://no-such-bucket-of-ours/x")
    code = "import registry_sync.__main__, sys; sys.exit('botocore' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
