"""A real `tidepool up` as a subprocess, and what tests do to it from outside.

Documents are written with the functions behind the commands, in this process, because a command of
its own costs a start of the interpreter; `cli` runs the real command where that is the point.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from infra.client import ask, connect
from infra.stack import Node, free_port
from registry_sync import endpoints, keys
from registry_sync.documents import EndpointSpec, Quota, parse_spec, write
from registry_sync.open import open_store
from registry_sync.publish import publish
from registry_sync.stores import Store
from tests.support.observed_engine import DIARY, Diary

REPOSITORY = Path(__file__).resolve().parents[2]
READY_S_MAX = 60.0
STOP_S_MAX = 45.0

TEST_ENGINES = (
    *(
        f"tests.support.counting_engine:{name}Engine"
        for name in ("Counting", "Sleeping", "Failing", "Dying", "Unloadable")
    ),
    "tests.support.observed_engine:ObservedEngine",
    "tests.support.observed_engine:ObservedCountingEngine",
)

KEPT_SECRET = ("secrets", "tls.key")  # files that are nothing else

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What came back for one request."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        """Return the body, read as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """Return the text of an error answer."""
        text = self.json()["error"]
        assert isinstance(text, str)
        return text

    def output(self, index: int = 0) -> Any:
        """Return the JSON data of one output."""
        return self.json()["outputs"][index]["data"]


@dataclass(kw_only=True)
class StackOptions:
    """What `up` is told."""

    workers: int = 1
    edges: int = 1
    engines: Sequence[str] = ()
    log_level: str = "info"
    env: Mapping[str, str] = field(default_factory=dict)
    arguments: Sequence[str] = ()  # further ones, as on the command line
    registry: str = ""  # empty: DATA/registry
    trusted: ssl.SSLContext | None = None  # it is told to serve HTTPS, and this is who trusts it


class Stack:
    """One started `tidepool up`."""

    def __init__(self, data: Path, options: StackOptions) -> None:
        self.data = data
        self.options = options
        self.key = f"e2e-admin-{secrets.token_hex(16)}"
        self.secrets = [self.key]  # every key that was ever used; none may appear in a log
        self.port = free_port()
        self.admin_port = free_port()
        self.log_path = data / "up.log"
        self.process: subprocess.Popen[bytes] | None = None
        data.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    @property
    def admin_url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.admin_port}"

    @property
    def _scheme(self) -> str:
        return "http" if self.options.trusted is None else "https"

    @property
    def address(self) -> str:
        """Host and port without a scheme, as tritonclient wants it."""
        return f"127.0.0.1:{self.port}"

    @property
    def store(self) -> Store:
        return open_store(self.options.registry or str(self.data / "registry"))

    # The process.

    def start(self) -> None:
        """Start, and wait until it says that it is ready."""
        options = self.options
        command = [
            *(sys.executable, "-m", "infra.cli", "up", "--data", str(self.data)),
            *("--port", str(self.port), "--admin-port", str(self.admin_port)),
            *("--workers", str(options.workers), "--edges", str(options.edges)),
            *("--log-level", options.log_level),
            *(["--registry", options.registry] if options.registry else []),
            *(word for engine in options.engines for word in ("--engine", engine)),
            *options.arguments,
        ]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.data,  # what it needs must not depend on where it was started
                env={**self.environment, **options.env},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        alarm = threading.Timer(READY_S_MAX, self.process.kill)
        alarm.start()
        try:
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
        finally:
            alarm.cancel()
        if line != f"ready {self.url}\n".encode():
            self.kill()
            raise AssertionError(f"`up` said {line!r}; its log:\n{self.log_text()[-8000:]}")

    def stop(self) -> int:
        """End it as Ctrl-C would, and return its exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill `up` itself with SIGKILL; its processes must end by themselves."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop, and start again on the same data and ports."""
        self.stop()
        self.start()

    def _end(self, signal_number: int) -> int:
        process = self.process
        if process is None:
            return 0
        self.process = None
        process.send_signal(signal_number)
        try:
            code = process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"`up` did not end; its log:\n{self.log_text()[-8000:]}") from None
        finally:
            assert process.stdout is not None
            process.stdout.close()
        return code

    @property
    def environment(self) -> dict[str, str]:
        """What commands and `up` run in; the operator's engines are found by PYTHONPATH."""
        return {**os.environ, "TIDEPOOL_API_KEY": self.key}

    def cli(self, *arguments: str, stdin: bytes = b"", check: bool = True) -> str:
        """Run `tidepool ARGUMENTS --data DATA` and return its stdout."""
        done = subprocess.run(
            [sys.executable, "-m", "infra.cli", *arguments, "--data", str(self.data)],
            cwd=self.data,
            env=self.environment,
            input=stdin,
            capture_output=True,
            timeout=60,
        )
        if check and done.returncode:
            raise AssertionError(f"{arguments}: {done.returncode}: {done.stderr.decode()}")
        return done.stdout.decode().strip()

    def pids(self) -> dict[str, int]:
        """Return the pids of the live processes by name: edge-0, worker-0, controller, sync."""
        found: dict[str, int] = {}
        for pid in _children(self.process.pid) if self.process is not None else []:
            words = _command_of(pid)
            if "-m" not in words:
                continue
            module, config = words[words.index("-m") + 1 :][:2]
            tier = {"edge": "edge", "pool.worker": "worker"}.get(module)
            number = json.loads(config)["id"].rpartition("-")[2] if tier else ""
            name = {"pool.controller_main": "controller", "registry_sync": "sync"}.get(module)
            found[name or f"{tier}-{number}"] = pid
        return found

    def log_text(self) -> str:
        """Return everything that its processes have logged."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def leaks(self) -> list[str]:
        """Return where a secret that was ever used can be read: logs, files, command lines.

        These are the keys of callers, the fleet's secrets, and the keys of certificates.
        """
        known = [secret.encode() for secret in (*self.secrets, *self.fleet_secrets())]
        known.append(b"PRIVATE KEY-----")
        files = [
            path
            for folder in self.folders()
            for path in folder.rglob("*")
            if path.is_file() and path.name not in KEPT_SECRET
        ]
        files += [Path(f"/proc/{pid}/cmdline") for pid in self.all_pids()]
        found = []
        for path in files:
            try:
                content = path.read_bytes()
            except FileNotFoundError:  # a file that was replaced, a process that has ended
                continue
            found += [str(path) for secret in known if secret in content]
        return found

    def folders(self) -> list[Path]:
        """Return where its processes write."""
        return [self.data]

    def all_pids(self) -> list[int]:
        """Return the pids of all its live processes."""
        return [*self.pids().values()]

    def fleet_secrets(self) -> list[str]:
        """Return the fleet's secrets that its nodes hold."""
        texts = [path.read_text() for folder in self.folders() for path in folder.glob("secrets")]
        return [secret.strip() for text in texts for secret in text.split(",")]

    # Documents.

    def publish(self, model: str, path: Path, *, version: str | None = None, **options: Any) -> str:
        """Publish a file or folder; returns when every edge knows it and a first one is warm."""
        made = publish(self.store, model, path, version, **options)
        self.poke()
        if endpoints.get_spec(self.store, model)[0].variants[0].version == made:
            self.until_ready(model)
        return made

    def publish_engine(
        self,
        model: str,
        format: str,
        inputs: Sequence[tuple[str, str, Sequence[int]]],
        outputs: Sequence[tuple[str, str, Sequence[int]]],
        *,
        version: str | None = None,
        rows_max: int | None = None,
        deterministic: bool = False,
        files: Mapping[str, str] | None = None,
    ) -> str:
        """Publish an artifact for one of the test engines; tensors are (name, datatype, shape)."""
        folder = self.data / "published" / secrets.token_hex(4)
        folder.mkdir(parents=True)
        (folder / "weights.bin").write_bytes(secrets.token_bytes(16))  # two are never the same
        for name, text in (files or {}).items():
            (folder / name).write_text(text)
        says = {
            "format": format,
            "inputs": [dict(zip(("name", "datatype", "shape"), t, strict=True)) for t in inputs],
            "outputs": [dict(zip(("name", "datatype", "shape"), t, strict=True)) for t in outputs],
            "deterministic": deterministic,
        }
        if rows_max is not None:
            says["rows_max"] = rows_max
        (folder / "tidepool.json").write_text(json.dumps(says))
        return self.publish(model, folder, version=version)

    def publish_observed(
        self, model: str, *, deterministic: bool = False, rows_max: int = 1
    ) -> Diary:
        """Publish an observed model of INT64 [-1, 1] inputs `x` and `delay_ms`; its runs' diary."""
        diary = Diary(self.data / f"{model}.diary")
        tensor = ("INT64", (-1, 1))
        self.publish_engine(
            model,
            "observed",
            [("x", *tensor), ("delay_ms", *tensor)],
            [("y", *tensor), ("slept_ms", *tensor)],
            deterministic=deterministic,
            rows_max=rows_max,
            files={DIARY: str(diary.path)},
        )
        return diary

    def infer_observed(
        self, model: str, x: int, headers: Mapping[str, str] | None = None, **options: Any
    ) -> Answer:
        """Call an observed model with one number; `delay_ms` says how long it takes."""
        delay_ms = options.pop("delay_ms", 0)
        return self.infer(model, observed_inputs(x, delay_ms), headers, **options)

    def set_endpoint(self, spec: Mapping[str, Any]) -> int:
        """Do what `endpoint set` does; returns the revision once every edge goes by it."""
        revision = endpoints.set_spec(self.store, parse_spec(json.dumps(spec)))
        self.poke()
        return revision

    def edit_endpoint(self, name: str, **changes: Any) -> int:
        """Replace some fields of an endpoint's spec."""
        spec: dict[str, Any] = msgspec.json.decode(write(self.spec(name)))
        spec.pop("revision", None)
        return self.set_endpoint({**spec, **changes})

    def spec(self, name: str) -> EndpointSpec:
        """Return an endpoint's current spec."""
        return endpoints.get_spec(self.store, name)[0]

    def make_key(
        self,
        *scopes: str,
        tenant: str = "default",
        quota: Quota | None = None,
        not_after: float | None = None,
    ) -> str:
        """Make a key that every edge knows; its id is `registry_sync.keys.find_id` of it."""
        key, record = keys.make_key(tenant, scopes or ("infer:*",), quota, not_after)
        self.secrets.append(key)
        keys.add_key(self.store, record)
        self.poke()
        return key

    def poke(self) -> None:
        """Let the stack take over what was written; returns when every live edge has."""
        control = Node(self.data).control
        answer = _run(lambda: ask(control, self.data, "poke"))
        assert answer.ok, answer.detail

    # Requests.

    def request(
        self,
        method: str,
        path: str,
        body: bytes | str | Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        key: str | None = "",
        admin: bool = False,
        timeout_s: float = 30.0,
    ) -> Answer:
        """Send one request on a connection of its own.

        Args:
            method: GET, POST, …
            path: with the query.
            body: a mapping is sent as JSON.
            headers: on top of the key's.
            key: "" is the stack's admin key, None is none.
            admin: to the admin port.
            timeout_s: of the socket.
        """
        if isinstance(body, Mapping):
            body = json.dumps(body)
        content = body.encode() if isinstance(body, str) else body
        url = self.admin_url if admin else self.url
        connection = connect(url, timeout_s, self.options.trusted)
        try:
            connection.request(method, path, content, {**self.auth(key), **(headers or {})})
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def auth(self, key: str | None = "") -> dict[str, str]:
        """Return the header that carries a key."""
        return {} if key is None else {"authorization": f"Bearer {key or self.key}"}

    def infer(
        self,
        model: str,
        inputs: Mapping[str, tuple[str, Sequence[int], Any]],
        headers: Mapping[str, str] | None = None,
        *,
        version: str = "",
        key: str = "",
        **fields: Any,
    ) -> Answer:
        """Call a model with JSON tensors: name -> (datatype, shape, data)."""
        body = {"inputs": tensors(inputs), **fields}
        path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "")
        return self.request("POST", f"{path}/infer", body, headers, key=key)

    def status(self) -> dict[str, Any]:
        """Return what `tidepool status --json` prints."""
        answer = self.request("GET", "/admin/pool", admin=True)
        assert answer.status == 200, answer.body
        found: dict[str, Any] = answer.json()
        return found

    def engine(self, model: str, version: str = "1") -> list[dict[str, Any]]:
        """Return the status of a version in every worker that has it."""
        return [
            engine
            for worker in self.status()["workers"]
            for engine in worker["engines"]
            if (engine["model"], engine["version"]) == (model, version)
        ]

    def variants(self, endpoint: str) -> dict[str, dict[str, Any]]:
        """Return an endpoint's variants in the status, by name."""
        found = next(e for e in self.status()["endpoints"] if e["name"] == endpoint)
        return {variant["name"]: variant for variant in found["variants"]}

    def calls(self, model: str, version: str = "1") -> int:
        """Return how many calls wait or run in the workers for a version."""
        return sum(engine["calls"] for engine in self.engine(model, version))

    def metric(self, sample: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels."""
        text = self.request("GET", "/metrics", admin=True, key=None).body.decode()
        return sum(
            found.value
            for family in text_string_to_metric_families(text)
            for found in family.samples
            if found.name == sample and labels.items() <= found.labels.items()
        )

    def until_ready(self, model: str, timeout_s: float = 30.0) -> None:
        """Wait until a model answers."""
        path = f"/v2/models/{model}/ready"
        until(lambda: self.request("GET", path).status == 200, timeout_s, f"{model} is ready")


def tensors(given: Mapping[str, tuple[str, Sequence[int], Any]]) -> list[dict[str, Any]]:
    """Return JSON tensors: name -> (datatype, shape, data)."""
    return [
        {"name": name, "datatype": datatype, "shape": list(shape), "data": data}
        for name, (datatype, shape, data) in given.items()
    ]


def observed_inputs(x: int, delay_ms: int = 0) -> dict[str, tuple[str, Sequence[int], Any]]:
    """Return the inputs of one call of an observed model."""
    return {"x": ("INT64", [1, 1], [x]), "delay_ms": ("INT64", [1, 1], [delay_ms])}


def until(
    holds: Callable[[], T], timeout_s: float = 10.0, what: str = "", pause_s: float = 0.01
) -> T:
    """Ask until the answer is true, and return it."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        found = holds()
        if found:
            return found
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {timeout_s} s: {what or holds}")
        time.sleep(pause_s)


@contextmanager
def running_stack(data: Path, **options: Any) -> Iterator[Stack]:
    """Run a stack of one's own; `options` are those of `StackOptions`."""
    stack = Stack(data, StackOptions(**options))
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()
    # Whatever a test did with it: nothing that it left behind may hold a key.
    assert stack.leaks() == []


def _run(start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end, also where a loop turns already."""
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(asyncio.run(start()))
        except BaseException as error:  # goes on in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that ends just now
            found.extend(map(int, (task / "children").read_text().split()))
    return found


def _command_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []
