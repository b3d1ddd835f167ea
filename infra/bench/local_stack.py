"""A Tidepool of the bench's own: `tidepool up` with every feature on, in a fresh folder."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from infra.bench import cpu
from infra.bench.calls import Target
from infra.bench.processes import StartFailed
from infra.stack import free_port

READY_S_MAX = 60.0
WARM_S_MAX = 60.0
STOP_S_MAX = 40.0


@dataclass
class LocalStack:
    """A started `tidepool up`; see `infra.bench.stack.Stack`."""

    target: Target
    ready_s: float
    data: Path
    admin_port: int
    port: int
    key: str

    def publish(self, endpoint: str, model: Path, *, cache: bool) -> None:
        """Publish a model under an endpoint of its name, and wait until it is warm."""
        command = [sys.executable, "-m", "infra.cli"]
        data = ["--data", str(self.data)]
        subprocess.run([*command, "publish", endpoint, str(model), *data], check=True, stdout=-3)
        if not cache:
            got = subprocess.run(
                [*command, "endpoint", "get", endpoint, "--json", *data],
                check=True,
                capture_output=True,
            )
            spec = json.loads(got.stdout)
            spec["cache"] = None
            subprocess.run(
                [*command, "endpoint", "set", endpoint, *data],
                check=True,
                input=json.dumps(spec).encode(),
                stdout=subprocess.DEVNULL,
            )
        deadline_s = time.monotonic() + WARM_S_MAX
        while self._get(self.port, f"/v2/models/{endpoint}/ready")[0] != 200:
            if time.monotonic() > deadline_s:
                raise StartFailed(f"{endpoint} is not warm after {WARM_S_MAX} s")
            time.sleep(0.05)

    def tier_pids(self) -> Sequence[int]:
        """Return the processes of edge, worker and controller."""
        modules = {"edge", "pool.worker", "pool.controller_main"}
        return [pid for pid in self.target.pids() if _module_of(pid) in modules]

    def batches(self, endpoint: str) -> Mapping[int, int]:
        """Return how many batches of each size were run, for calls of one row each.

        A batch of b such calls is counted b times, once by each.
        """
        _, text = self._get(self.admin_port, "/metrics")
        found: dict[int, int] = {}
        before = 0
        for family in text_string_to_metric_families(text.decode()):
            for sample in family.samples:
                if sample.name != "tidepool_batch_rows_bucket":
                    continue
                if sample.labels["endpoint"] != endpoint or sample.labels["le"] == "+Inf":
                    continue
                rows = round(float(sample.labels["le"]))
                if rows == 1:
                    before = 0
                calls = int(sample.value) - before
                before = int(sample.value)
                if calls:
                    found[rows] = found.get(rows, 0) + calls // rows
        return found

    def _get(self, port: int, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("GET", path, headers={"x-api-key": self.key})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@contextmanager
def open_stack(workers: int = 1, edges: int = 1) -> Iterator[LocalStack]:
    """Run `tidepool up` for the length of the context.

    Raises:
        StartFailed: it did not get ready.
    """
    data = Path(tempfile.mkdtemp(prefix="tidepool-bench-"))
    port, admin_port = free_port(), free_port()
    key = secrets.token_hex(24)
    started_s = time.monotonic()
    log_path = data / "up.log"
    log = log_path.open("wb")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "infra.cli", "up", "--data", str(data)),
            *("--port", str(port), "--admin-port", str(admin_port)),
            *("--workers", str(workers), "--edges", str(edges), "--log-level", "error"),
        ],
        stdout=subprocess.PIPE,
        stderr=log,
        env={**os.environ, "TIDEPOOL_API_KEY": key},
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        if not line.startswith("ready "):
            said = log_path.read_text(errors="replace")[-2000:]
            raise StartFailed(f"`tidepool up` said {line!r} instead of ready; its log: {said}")
        ready_s = time.monotonic() - started_s
        target = Target(
            "tidepool",
            line.split()[1],
            lambda: cpu.tree(process.pid),
            {"authorization": f"Bearer {key}"},
        )
        yield LocalStack(target, ready_s, data, admin_port, port, key)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert process.stdout is not None
        process.stdout.close()
        log.close()
        shutil.rmtree(data, ignore_errors=True)


def _module_of(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except FileNotFoundError:
        return ""
    return words[words.index(b"-m") + 1].decode() if b"-m" in words else ""
