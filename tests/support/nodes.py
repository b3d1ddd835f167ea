"""Two nodes on one machine: nothing is shared but an S3 registry, TCP and the fleet secret.

    node A   `tidepool controller` + `tidepool edge`
    node B   `tidepool pool`, and more such nodes where a test asks for them

Each has a data folder of its own, and they find each other by the leader record in the registry.
"""

from __future__ import annotations

import contextlib
import secrets
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.client import ask
from infra.stack import free_port
from registry_sync import keys
from registry_sync.keys import ALL_SCOPES, record_of
from registry_sync.leader import look
from registry_sync.open import open_store
from registry_sync.stores import Store
from tests.support.certificates import Authority
from tests.support.processes import (
    Ended,
    command,
    descendants,
    environment,
    is_alive,
    private_text,
    tidepool,
)
from tests.support.stack import Stack, StackOptions, _run, until
from tests.support.toxics import ToxicProxy, toxic_proxy

STOP_S_MAX = 30.0
BETWEEN = "127.0.0.2"  # where proxies listen, on the ports of those behind them at 127.0.0.1


@dataclass
class Tier:
    """One started single-tier command."""

    name: str
    arguments: tuple[str, ...]
    env: Mapping[str, str | None]
    log_path: Path
    process: subprocess.Popen[bytes] | None = None
    started: list[int] = field(default_factory=list)

    def start(self) -> None:
        """Start it; it is not awaited."""
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command(*self.arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(self.env),
            )

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it with a signal, wait for all that it started, and return its status."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        below = descendants(process.pid)
        process.send_signal(number)
        try:
            code = process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"{self.name} did not end:\n{self.log()[-4000:]}") from None
        until(lambda: not any(map(is_alive, below)), 10.0, f"all of {self.name} has ended")
        return code

    def pids(self) -> list[int]:
        """Return the pids of its processes."""
        return [] if self.process is None else descendants(self.process.pid)

    def log(self) -> str:
        """Return what it logged."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""


class Fleet(Stack):
    """Two nodes, with what `Stack` does to one: requests, status, metrics."""

    def __init__(
        self,
        folder: Path,
        registry: str,
        env: Mapping[str, str],
        *,
        edges: int,
        pools: int = 1,
        workers: int = 1,
        engines: Sequence[str] = (),
        pool_arguments: Sequence[str] = (),
        is_toxic: bool = False,
        authority: Authority | None = None,
    ) -> None:
        super().__init__(folder / "client", StackOptions(registry=registry))
        secret = secrets.token_hex(32)
        self.env: dict[str, str | None] = {
            **env,
            "TIDEPOOL_FLEET_SECRET": secret if authority is None else None,
        }
        self.nodes = {name: folder / name for name in ("a", *"bcd"[:pools])}
        if authority is not None:
            for name, node in self.nodes.items():
                authority.issue(node / "wire-tls", name, with_ca=True)
                private_text(node / "secrets", secret)
            authority.issue(self.data / "wire-tls", "client", with_ca=True)
        self.control_port = free_port()
        # Who is dialled through a proxy: the controller first, then each worker.
        self.toxic_ports: list[int] = []
        self.proxies: list[ToxicProxy] = []
        advertised: tuple[str, ...] = ()
        if is_toxic:
            first = free_ports(workers)
            self.toxic_ports = [self.control_port, *range(first, first + workers)]
            advertised = ("--advertise", f"tcp://{BETWEEN}:{self.control_port}")
            told = ("--advertise-host", BETWEEN, "--worker-port", str(first))
            pool_arguments = (*pool_arguments, *told)
        a = folder / "a"
        self.controller = self.tier(
            *("controller", "--data", str(a), "--registry", registry),
            *("--listen", f"{'tls' if authority else 'tcp'}://127.0.0.1:{self.control_port}"),
            *("--workers-expected", str(pools * workers)),
            *advertised,
        )
        self.edge = self.tier(
            *("edge", "--data", str(a), "--registry", registry, "--edges", str(edges)),
            *("--port", str(self.port), "--admin-port", str(self.admin_port)),
            *("--lame-duck-s", "0"),
        )
        self.pools = [
            self.tier(
                *("pool", "--data", str(folder / name), "--registry", registry),
                *("--listen-host", "127.0.0.1", "--lame-duck-s", "0", "--workers", str(workers)),
                *(part for engine in engines for part in ("--engine", engine)),
                *pool_arguments,
            )
            for name in "bcd"[:pools]
        ]
        self.pool = self.pools[0]
        self.tiers = [self.controller, self.edge, *self.pools]
        private_text(self.data / "secrets", secret)  # where questions from this process find it
        self.s3 = open_store(registry)
        keys.add_key(self.store, record_of(self.key, "default", ALL_SCOPES))

    @property
    def store(self) -> Store:
        """The registry, as this process sees it."""
        return self.s3

    def tier(self, *arguments: str, env: Mapping[str, str | None] | None = None) -> Tier:
        """Return a tier that is not started yet."""
        log_path = self.data / f"{arguments[0]}-{secrets.token_hex(2)}.log"
        return Tier(arguments[0], arguments, {**self.env, **(env or {})}, log_path)

    def start(self) -> None:
        """Start all three at once, in no order, and wait until the edge is ready."""
        for tier in self.tiers:
            tier.start()
        self.until_serving()

    def until_serving(self, timeout_s: float = 60.0) -> None:
        """Wait until the edge has routes and the worker has registered."""
        try:
            until(lambda: self.get("/v2/health/ready") == 200, timeout_s, "ready", 0.05)
        except AssertionError:
            logs = "\n".join(f"--- {tier.name}\n{tier.log()[-3000:]}" for tier in self.tiers)
            raise AssertionError(f"the fleet is not ready:\n{logs}") from None

    def get(self, path: str) -> int:
        """Return the status of a GET; 0 while nobody listens."""
        try:
            return self.request("GET", path, timeout_s=5.0).status
        except OSError:
            return 0

    def stop(self) -> int:
        """End all tiers."""
        with contextlib.ExitStack() as ends:
            for tier in self.tiers:
                ends.callback(tier.stop)
        return 0

    def command(self, *arguments: str, env: Mapping[str, str | None] | None = None) -> Ended:
        """Run a client command on a third folder, told only the registry."""
        return tidepool(
            *arguments,
            *("--registry", self.options.registry, "--data", str(self.data)),
            env={**self.env, **(env or {})},
        )

    def poke(self) -> None:
        """Let the leader take over what was written; returns when every live edge has."""
        record = look(self.store).record
        assert record is not None
        answer = _run(lambda: ask(record.url, self.data, "poke"))
        assert answer.ok, answer.detail

    def status(self) -> dict[str, Any]:
        """Return the status, from whichever edge has found a controller by now."""

        def ask_edge() -> dict[str, Any]:
            answer = self.request("GET", "/admin/pool", admin=True)
            return answer.json() if answer.status == 200 else {}

        return until(ask_edge, 30.0, "a controller answers", 0.05)

    def pids(self) -> dict[str, int]:
        """Not told apart here: ask a tier."""
        raise NotImplementedError

    def folders(self) -> list[Path]:
        """Return where its nodes write, and their tiers log."""
        return [self.data, *self.nodes.values()]

    def all_pids(self) -> list[int]:
        """Return the pids of all tiers' live processes."""
        return [pid for tier in self.tiers for pid in tier.pids()]

    def fleet_secrets(self) -> list[str]:
        """Return the fleet's secrets that its nodes hold."""
        given = self.env["TIDEPOOL_FLEET_SECRET"]
        return [*super().fleet_secrets(), *([given] if given else [])]

    def log_text(self) -> str:
        """Return what all tiers logged."""
        return "".join(tier.log() for tier in self.tiers)


def free_ports(count: int) -> int:
    """Return the first of so many free ports in a row."""
    while True:
        first = free_port()
        with contextlib.ExitStack() as held, contextlib.suppress(OSError, OverflowError):
            for number in range(count):
                held.enter_context(socket.create_server(("127.0.0.1", first + number)))
            return first


@contextlib.contextmanager
def running_fleet(
    folder: Path,
    registry: str,
    env: Mapping[str, str],
    *,
    edges: int = 2,
    pools: int = 1,
    workers: int = 1,
    engines: Sequence[str] = (),
    pool_arguments: Sequence[str] = (),
    is_toxic: bool = False,
    authority: Authority | None = None,
) -> Iterator[Fleet]:
    """Run two nodes, or more: `pools` with `workers` each; `env` is what boto3 needs.

    Where it `is_toxic`, the controller and the workers of the one pool are dialled through
    `proxies`.  Where there is an `authority`, all that goes over TCP goes over mutual TLS by it,
    and each node has the fleet secret in a file of its own.
    """
    fleet = Fleet(
        *(folder, registry, env),
        edges=edges,
        pools=pools,
        workers=workers,
        engines=engines,
        pool_arguments=pool_arguments,
        is_toxic=is_toxic,
        authority=authority,
    )
    with contextlib.ExitStack() as ends:
        for port in fleet.toxic_ports:
            between = toxic_proxy(("127.0.0.1", port), (BETWEEN, port))
            fleet.proxies.append(ends.enter_context(between))
        ends.callback(fleet.stop)
        fleet.start()
        yield fleet
        assert fleet.leaks() == []
    # Again, with what they said last.
    assert fleet.leaks() == []
