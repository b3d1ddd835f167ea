"""The demo's last act: the model falls asleep, and one request wakes it.

The endpoint is told to sleep soon after its last call; once no replica is left, one call is sent
that no cache may answer, and what its wake spent its time on is taken from the status.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from infra.client import ask
from infra.demo import ENDPOINT, DemoRun, call, connect
from infra.local import UpOptions
from registry_sync import endpoints
from registry_sync.stores import Store

IDLE_S = 1.0
ASLEEP_S_MAX = 60.0
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Wake:
    """What the call that woke the model has seen."""

    asleep_after_s: float  # since the endpoint was told
    answer_ms: float
    version: str
    phases_ms: Mapping[str, float]  # of the load, in order

    def summary(self) -> str:
        """Return the act's last line."""
        phases = ", ".join(f"{name} {ms:.1f}" for name, ms in self.phases_ms.items())
        return f"woken in {self.answer_ms:.0f} ms by one request: {phases}"


async def sleep_and_wake(options: UpOptions, store: Store, run: DemoRun) -> Wake:
    """Let the demo's endpoint sleep, watch the pool go to zero, and wake it by one request.

    Raises:
        TimeoutError: it does not fall asleep.
        ConnectionError: the answer is not 200.
    """
    spec, _ = await asyncio.to_thread(endpoints.get_spec, store, ENDPOINT)
    scale = msgspec.structs.replace(spec.scale, idle_s=IDLE_S)
    sleepy = msgspec.structs.replace(spec, scale=scale)
    await asyncio.to_thread(endpoints.set_spec, store, sleepy)
    began_s = time.monotonic()
    await ask(options.node.control, options.node.data, "poke")
    async with asyncio.timeout(ASLEEP_S_MAX):
        while any(worker["engines"] for worker in (await _status(options))["workers"]):  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
    asleep_after_s = time.monotonic() - began_s
    version, answer_ms = await asyncio.to_thread(_call, run)
    return Wake(asleep_after_s, answer_ms, version, await _phases(options, version))


async def _status(options: UpOptions) -> dict[str, Any]:
    answer = await ask(options.node.control, options.node.data, "status")
    status: dict[str, Any] = json.loads(answer.data)
    return status


async def _phases(options: UpOptions, version: str) -> Mapping[str, float]:
    """Return the phases of the load of `version`, once the worker has told them."""
    async with asyncio.timeout(ASLEEP_S_MAX):
        while True:
            for worker in (await _status(options))["workers"]:
                for engine in worker["engines"]:
                    if engine["version"] == version and engine["state"] == "warm":
                        phases: dict[str, float] = engine["phases_ms"]
                        return phases
            await asyncio.sleep(POLL_S)


def _call(run: DemoRun) -> tuple[str, float]:
    """Send one call past every cache; returns the version that answered, and after how many ms."""
    connection = connect(run.url)
    body = run.body_path.read_bytes()
    headers = {"cache-control": "no-store"}
    _, content, answer_ms = call(connection, run, body, headers, "the call after the sleep")
    connection.close()
    return json.loads(content)["model_version"], answer_ms
