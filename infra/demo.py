"""The demo: a real model with two versions answers for real files, the whole way.

Starts the system, publishes magika twice, splits its traffic 90/10, sends this machine's files
through it over HTTP, and holds every answer against the magika package's own.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from infra import demo_files, demo_model
from infra.client import ask
from infra.demo_files import Sample
from infra.demo_model import Answer
from infra.local import UpOptions
from registry_sync import catalog, endpoints, keys
from registry_sync.documents import Assign, Cache, EndpointSpec, Variant
from registry_sync.publish import publish
from registry_sync.stores import Store

ENDPOINT = "magika"
ROUNDS = 2  # the second round finds the first one's answers in the cache
UNIT_HEADER = "x-demo-file"  # an arm sticks to a file
WARM_S_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Seen:
    """One answer over HTTP."""

    sample: Sample
    answer: Answer
    variant: str
    is_hit: bool
    latency_ms: float

    @property
    def agrees(self) -> bool:
        """Whether it is the package's own answer."""
        return self.answer.agrees(self.sample.answer)


@dataclass(frozen=True, slots=True)
class DemoRun:
    """A running demo and what it has seen."""

    url: str
    key: str
    body_path: Path
    seen: list[Seen] = field(default_factory=list)

    @property
    def agreed(self) -> int:
        """How many files were answered as the package answers them, each time."""
        wrong = {seen.sample.path for seen in self.seen if not seen.agrees}
        return len({seen.sample.path for seen in self.seen}) - len(wrong)

    @property
    def files(self) -> int:
        """How many files were sent."""
        return len({seen.sample.path for seen in self.seen})

    @property
    def hits(self) -> int:
        """How many answers came out of the cache."""
        return sum(seen.is_hit for seen in self.seen)

    def share(self, variant: str) -> float:
        """Return a variant's share of the answers, in percent."""
        return 100 * sum(seen.variant == variant for seen in self.seen) / max(1, len(self.seen))

    def latency_ms(self, quantile: int) -> float:
        """Return a percentile of the latencies, in ms."""
        cuts = statistics.quantiles([seen.latency_ms for seen in self.seen], n=100)
        return cuts[quantile - 1]

    def summary(self) -> str:
        """Return the demo's last line."""
        word = "ok" if self.agreed == self.files else "failed"
        return (
            f"demo {word}: {self.agreed} of {self.files} agree, "
            f"canary {self.share('canary'):.0f} %, cache hits {self.hits}, "
            f"p50 {self.latency_ms(50):.1f} ms"
        )


def prepare(store: Store, folder: Path) -> str:
    """Publish both versions, split the traffic, and return a key to call with.

    A registry that has them already (`--data` of an earlier demo) is left as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    published = catalog.versions(store, ENDPOINT)
    model = demo_model.model_path()
    if "1" not in published:
        publish(store, ENDPOINT, model, version="1")
    if "2" not in published:
        second = folder / "magika-2.onnx"
        demo_model.make_version_2(model, second)
        publish(store, ENDPOINT, second, version="2")
    endpoints.set_spec(
        store,
        EndpointSpec(
            endpoint=ENDPOINT,
            variants=(
                Variant("stable", ENDPOINT, "1", 90),
                Variant("canary", ENDPOINT, "2", 10),
            ),
            assign=Assign(by=(f"header:{UNIT_HEADER}",)),
            cache=Cache(ttl_s=3600),
        ),
    )
    key, record = keys.make_key("demo", ("infer:*", "admin"))
    keys.add_key(store, record)
    return key


def read(samples: Sequence[Sample]) -> list[bytes]:
    """Return the JSON request body of each file."""
    return [
        json.dumps(
            {
                "inputs": [
                    {
                        "name": demo_model.INPUT,
                        "shape": [1, len(row)],
                        "datatype": "INT32",
                        "data": row.tolist(),
                    }
                ]
            }
        ).encode()
        for row in (demo_model.features(sample.path) for sample in samples)
    ]


def call(
    connection: http.client.HTTPConnection,
    run: DemoRun,
    body: bytes,
    headers: Mapping[str, str],
    what: str,
) -> tuple[http.client.HTTPResponse, bytes, float]:
    """Send one call; returns the answer, its content, and after how many ms it was there.

    Raises:
        ConnectionError: it is not 200; `what` was asked.
    """
    response, content, latency_ms = exchange(connection, run.key, body, headers)
    if response.status != 200:
        raise ConnectionError(f"{what}: {response.status} {content[:300]!r}")
    return response, content, latency_ms


def exchange(
    connection: http.client.HTTPConnection, key: str, body: bytes, headers: Mapping[str, str]
) -> tuple[http.client.HTTPResponse, bytes, float]:
    """Send one call; returns whatever answer there is, as `call` does."""
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json", **headers}
    began_s = time.perf_counter()
    connection.request("POST", f"/v2/models/{ENDPOINT}/infer", body, headers)
    response = connection.getresponse()
    content = response.read()
    return response, content, (time.perf_counter() - began_s) * 1e3


def connect(url: str) -> http.client.HTTPConnection:
    """Return a connection to the running demo."""
    host, port = url.removeprefix("http://").rsplit(":", 1)
    return http.client.HTTPConnection(host, int(port), timeout=60)


def send(run: DemoRun, samples: Sequence[Sample], bodies: Sequence[bytes]) -> None:
    """Send every file `ROUNDS` times and take down the answers.

    Raises:
        ConnectionError: an answer is not 200.
    """
    connection = connect(run.url)
    for _ in range(ROUNDS):
        for sample, body in zip(samples, bodies, strict=True):
            path = str(sample.path)
            response, content, latency_ms = call(connection, run, body, {UNIT_HEADER: path}, path)
            scores = np.array(json.loads(content)["outputs"][0]["data"], dtype=np.float32)
            run.seen.append(
                Seen(
                    sample,
                    demo_model.answer(scores),
                    response.headers["x-tidepool-variant"],
                    "hit" in response.headers["cache-status"],
                    latency_ms,
                )
            )
    connection.close()


async def until_warm(options: UpOptions) -> None:
    """Wait until every version of the endpoint has a warm replica.

    Raises:
        TimeoutError: it has not, in time.
    """
    async with asyncio.timeout(WARM_S_MAX):
        while True:
            answer = await ask(options.node.control, options.node.data, "status")
            status = json.loads(answer.data)
            variants = [v for e in status["endpoints"] for v in e["variants"]]
            if variants and all(v["replicas"] for v in variants):
                return
            await asyncio.sleep(0.02)


async def demo(options: UpOptions, key: str, say: Callable[[str], None]) -> DemoRun:
    """Send this machine's files through a running stack that was `prepare`d."""
    samples = await asyncio.to_thread(demo_files.samples)
    bodies = read(samples)
    run = DemoRun(options.url, key, options.node.data / "body.json")
    run.body_path.write_bytes(bodies[0])
    say("waiting for both versions to be warm")
    await until_warm(options)
    say(f"sending {len(samples)} files, {ROUNDS} times each")
    await asyncio.to_thread(send, run, samples, bodies)
    return run
