"""What is shipped: wheels are reproducible, and all tiers run from one as the images run them.

One environment holds the wheel, what it declares, and nothing else.  Each tier has the role of an
ECS task for credentials, finds its own address as a task does, may write to its volumes alone, and
is asked for its health as a container is.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import secrets
import signal
import socket
import subprocess
import tarfile
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from infra.stack import free_port
from tests.support import installed
from tests.support.ecs_agent import ecs_agent
from tests.support.models import identity
from tests.support.seaweed import BUCKET, S3Server
from tests.support.source import ROOT
from tests.support.stack import Stack, StackOptions, until

OF_THE_TASK = "127.0.0.9"  # on loopback, and no default of anything
START_S_MAX = 60.0
INPUTS = {"x": ("FP32", [1, 4], [1.0, -2.0, 3.5, 0.25])}
LEFT_BEHIND = (  # in a checkout, by who used it
    "infra/terraform/examples/minimal/.terraform/providers/registry.terraform.io/provider",
    "infra/terraform/examples/minimal/terraform.tfstate",
    "infra/terraform/examples/minimal/terraform.tfvars",
    "infra/__pycache__/cli.cpython-311.pyc",
)


@dataclass(frozen=True)
class Shipped:
    """The distributions, built in two folders."""

    wheel: Path
    again: Path  # the wheel, built out of the source distribution
    sdist: Path


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    folder = tmp_path_factory.mktemp("shipped")
    source = installed.copy_source(folder / "checkout")
    for left in LEFT_BEHIND:
        (source / left).parent.mkdir(parents=True, exist_ok=True)
        (source / left).touch()
    sdist = installed.built(
        installed.start_build("sdist", source, folder / "sdist"), folder / "sdist"
    )
    unpacked = installed.unpack(sdist, folder / "elsewhere")
    builds = {
        folder / name: installed.start_build("wheel", where, folder / name)
        for name, where in (("wheel", source), ("again", unpacked))
    }
    wheel, again = (installed.built(build, where) for where, build in builds.items())
    return Shipped(wheel, again, sdist)


@dataclass
class Container:
    """A tier of the wheel, run as its container is."""

    commands: Path
    environment: dict[str, str]
    folder: Path
    words: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None

    @property
    def tier(self) -> str:
        return self.words[0]

    def start(self) -> None:
        """Start it in a folder that is not its own, with volumes for `/data` and `/tmp`."""
        for volume in ("data", "tmp"):
            (self.folder / self.tier / volume).mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [self.commands / "tidepool", *self.words],
                cwd=self.folder / "work",
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def log_path(self) -> Path:
        return self.folder / f"{self.tier}.log"

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def health(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Ask for its health as a container's engine does."""
        return subprocess.run(
            [self.commands / "python", "-m", "infra.health", self.tier, *words],
            cwd=self.folder / "work",
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=30,
        )

    def stop(self) -> int:
        """End it as an orchestrator does, and return its status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60.0)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _environment(self) -> dict[str, str]:
        own = self.folder / self.tier
        return {**self.environment, "TIDEPOOL_DATA": str(own / "data"), "HOME": str(own / "tmp")}


@dataclass
class World:
    """A registry with a key and a model in it, and the tiers that were started after that."""

    commands: Path
    work: Path
    before: Mapping[Path, int]
    made_key: str
    containers: dict[str, Container]
    client: Stack


def everything_in(*folders: Path) -> dict[Path, int]:
    """Return all files and folders below some, with when each was changed."""
    return {path: path.lstat().st_mtime_ns for folder in folders for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, shipped: Shipped, seaweed: S3Server
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("w")
    commands = installed.install(shipped.wheel, folder / "opt")
    work = folder / "work"
    work.mkdir(mode=0o555)
    (folder / "operator").mkdir()
    known = seaweed.environment
    registry = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    client = Stack(folder / "client", StackOptions())
    with ecs_agent(
        ipv4=OF_THE_TASK,
        access_key=known["AWS_ACCESS_KEY_ID"],
        secret_key=known["AWS_SECRET_ACCESS_KEY"],
    ) as agent:
        environment = {
            "PATH": f"{commands}:/usr/bin:/bin",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONSAFEPATH": "1",
            "AWS_ENDPOINT_URL": seaweed.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "TIDEPOOL_FLEET_SECRET": secrets.token_hex(32),
            **agent.environment,
        }

        def operate(*words: str) -> subprocess.Popen[str]:
            return subprocess.Popen(
                [commands / "tidepool", *words, "--registry", registry],
                cwd=folder / "operator",
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )

        before = everything_in(folder / "opt", work)
        # Nothing runs yet; all that there is is the bucket.
        asked = [
            operate("keys", "create", "--scope", "infer:*", "--scope", "admin"),
            operate("publish", "echo", str(identity(folder / "echo.onnx"))),
        ]
        made_key, version = (one.communicate(timeout=60)[0].strip() for one in asked)
        assert [one.returncode for one in asked] == [0, 0]
        assert version == "1"
        client.key = made_key
        control, worker = free_port(OF_THE_TASK), free_port(OF_THE_TASK)
        at = ("--registry", registry)
        containers = [
            Container(commands, dict(environment), folder, words)
            for words in (
                (
                    *("controller", *at, "--listen", f"tcp://ecs-task:{control}"),
                    *("--advertise", f"tcp://ecs-task:{control}"),
                ),
                (
                    *("pool", *at, "--listen-host", "ecs-task", "--worker-port", str(worker)),
                    *("--workers", "1", "--device", "cpu", "--lame-duck-s", "0"),
                ),
                (
                    *("edge", *at, "--host", "0.0.0.0", "--port", str(client.port)),
                    *("--admin-host", "ecs-task", "--admin-port", str(client.admin_port)),
                    *("--keep-alive-s", "75", "--lame-duck-s", "0"),
                ),
            )
        ]
        with contextlib.ExitStack() as ends:
            for container in containers:
                ends.callback(container.kill)
                container.start()
            by_tier = {one.tier: one for one in containers}
            yield World(commands, work, before, made_key, by_tier, client)


def test_wheel_is_the_same_to_the_byte_wherever_it_is_built(shipped: Shipped) -> None:
    assert shipped.wheel.name == shipped.again.name
    assert shipped.wheel.read_bytes() == shipped.again.read_bytes()


def test_wheel_has_what_is_read_at_run_time(shipped: Shipped) -> None:
    with zipfile.ZipFile(shipped.wheel) as archive:
        names = set(archive.namelist())
    prices = {f"infra/prices/{path.name}" for path in (ROOT / "infra" / "prices").glob("*.json")}
    rights = "infra/doctor/aws/terraform_actions.json"
    assert {"registry_sync/endpoint.schema.json", rights, *prices} <= names
    assert not [name for name in names if name.endswith((".tf", ".hcl", ".Containerfile"))]
    assert not [name for name in names if name.startswith("tests/")]


def test_source_distribution_has_all_that_is_in_the_packages_folders(shipped: Shipped) -> None:
    with tarfile.open(shipped.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        str(path.relative_to(ROOT))
        for package in installed.PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file()
        and not {"__pycache__", ".terraform"} & {*path.parts}
        and not path.name.endswith((".tfvars", ".tfstate", ".tfstate.backup"))
    }
    assert wanted - names == set()
    assert not names & {*LEFT_BEHIND}
    assert not [name for name in names if name.startswith("tests/")]


def test_tiers_run_from_the_wheel_alone(world: World) -> None:
    where = "import infra, sys; print(infra.__file__, *sys.path, sep='\\n')"
    done = subprocess.run(
        [world.commands / "python", "-c", where],
        cwd=world.work,
        env={"PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert str(ROOT) not in done.stdout
    assert done.stdout.startswith(str(world.commands.parent))


def test_first_key_is_good_and_the_first_answer_comes(world: World) -> None:
    """A key that was made with the bucket alone, before anything ran."""
    until(lambda: answer(world) == 200, START_S_MAX, "the first answer")
    assert world.client.infer("echo", INPUTS, key="tp_nobody_x").status == 401


def test_admin_port_is_at_the_tasks_own_address_alone(world: World) -> None:
    assert until(lambda: admin(world, "/livez")[0], START_S_MAX, "it listens") == 200
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", world.client.admin_port), 10.0).close()


@pytest.mark.slow
def test_fleet_secret_is_changed_by_restarts_in_any_order(world: World) -> None:
    """As on ECS, where a task has its secrets from its start to its end."""
    old = world.containers["edge"].environment["TIDEPOOL_FLEET_SECRET"]
    new = secrets.token_hex(32)
    until(lambda: answer(world) == 200, START_S_MAX, "the first answer")
    for held, order in (
        (f"{new},{old}", ("edge", "pool", "controller")),
        (new, ("controller", "pool", "edge")),
    ):
        for tier in order:
            container = world.containers[tier]
            assert container.stop() == 0
            container.environment["TIDEPOOL_FLEET_SECRET"] = held
            container.start()
            # The edge to its worker; then the controller to both.
            until(lambda: answer(world) == 200, START_S_MAX, f"an answer after {tier}'s restart")
            until(lambda: len(workers(world)) == 1, START_S_MAX, f"all are led after {tier}'s")


def test_healthy_tiers_say_so_and_nothing_is_written_but_to_volumes(world: World) -> None:
    words = {"edge": ("--port", str(world.client.port))}

    def health(container: Container) -> subprocess.CompletedProcess[str]:
        return container.health(*words.get(container.tier, ()))

    for container in reversed(world.containers.values()):
        if not container.is_running:  # a former try has ended it
            container.start()
        until(lambda one=container: health(one).returncode == 0, START_S_MAX, "healthy")
        assert container.stop() == 0, container.log_path.read_text()[-2000:]
        ill = health(container)
        assert ill.returncode == 1
        assert ill.stderr.startswith(f"{container.tier}: ")
        assert "Traceback" not in container.log_path.read_text()
    assert everything_in(world.commands.parent, world.work) == world.before


def answer(world: World) -> int:
    """Return the status of a call with the key that was made; 0: nobody listens."""
    with contextlib.suppress(OSError):
        headers = {"Cache-Control": "no-store"}
        return world.client.infer("echo", INPUTS, headers, key=world.made_key).status
    return 0


def admin(world: World, path: str) -> tuple[int, bytes]:
    """Return what the admin port says at the task's address; status 0: nobody listens."""
    connection = http.client.HTTPConnection(OF_THE_TASK, world.client.admin_port, timeout=10.0)
    with contextlib.closing(connection), contextlib.suppress(OSError):
        connection.request("GET", path, headers={"Authorization": f"Bearer {world.made_key}"})
        found = connection.getresponse()
        return found.status, found.read()
    return 0, b""


def workers(world: World) -> list[object]:
    """Return the workers that the edge's controller knows; none where there is no controller."""
    status, body = admin(world, "/admin/pool")
    found: list[object] = json.loads(body)["workers"] if status == 200 else []
    return found
