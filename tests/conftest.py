"""Fixtures shared by all packages: servers, each started by the first test that asks for it."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import structlog

from registry_sync import logs
from tests.support import guarding, nginx, prometheus, terraform
from tests.support.aws import AwsServer, aws_server
from tests.support.seaweed import BUCKET, S3Server, s3_server
from tests.support.stack import REPOSITORY, TEST_ENGINES, Stack, running_stack

WORKERS = 4  # of a run of everything, on two cores too: many tests wait for processes
SLOW_WORKERS = 2
# Slow tests that come to the same end however busy the machine is: these run beside each other, all
# other slow ones alone, as what they measure is time.
UNHURRIED = (
    "tests/e2e/test_aws_pool.py",
    "tests/e2e/test_balancer.py",
    "tests/e2e/test_build_for.py",
    "tests/e2e/test_builds_two_nodes.py",
    "tests/e2e/test_fallback.py",
    "tests/e2e/test_fleet_secret.py",
    "tests/e2e/test_installed.py",
    "tests/e2e/test_node_faults.py",
    "tests/e2e/test_plans.py",
    "tests/e2e/test_restarts.py",
    "tests/e2e/test_rollout_counts.py",
    "tests/e2e/test_rollout_shadow.py",
    "tests/e2e/test_two_nodes.py",
    "tests/edge/test_leases.py",
    "tests/infra/test_autoscaler_figures.py",
    "tests/infra/test_demo_rollout.py",
    "tests/infra/test_simulate_keepalive_figure.py",
    "tests/infra/test_simulate_traces_real.py",
    "tests/infra/test_terraform_apply.py",
    "tests/infra/test_terraform_checkov.py",
    "tests/infra/test_terraform_secret.py",
    "tests/pool/test_batching_optimum.py",
    "tests/pool/test_batching_simulation.py",
    "tests/pool/test_build_desk_simulation.py",
    "tests/pool/test_converted_plans.py",
    "tests/pool/test_load_memory.py",
    "tests/pool/test_mutated_documents.py",
    "tests/pool/test_rollout_",
    "tests/pool/test_session_contract.py",
    "tests/pool/test_shadow_figure.py",
    "tests/pool/test_torch_engine.py",
    "tests/registry_sync/",
    "tests/simulation/test_aws.py",
    "tests/simulation/test_chaos.py",
    "tests/simulation/test_fleet.py",
    "tests/simulation/test_outage.py",
    "tests/simulation/test_rollouts.py",
    "tests/simulation/test_seeds.py",
    "tests/simulation/test_shadow.py",
)
# Markers of tests of programs that no package index has, and how to know that they are there.
MAY_BE_ABSENT: dict[str, Callable[[], bool]] = {
    "nginx": nginx.is_there,
    "prometheus": prometheus.is_there,
    "terraform": terraform.is_there,
    "checkov": lambda: shutil.which("checkov") is not None,
}
WAITING = ("tests/e2e/", "tests/infra/")  # more than they compute
REAL_PROCESSES = ("tests/e2e/", "tests/infra/", "tests/registry_sync/", "tests/pool/")


def pytest_configure() -> None:
    """Give processes that tests start what they would have in front of an operator.

    They find the engines of the tests by PYTHONPATH, and Ctrl-C ends them: a shell that runs
    something in the background has it ignored.  They are watched, see `guard`.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join((guarding.begin(), str(REPOSITORY)))
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run everything in four processes, figures in two, and single files in this one."""
    if config.args_source is pytest.Config.ArgsSource.ARGS:
        return 0
    return SLOW_WORKERS if is_for_figures(config) else WORKERS


def is_for_figures(config: pytest.Config) -> bool:
    """Tell whether this is `pytest -m slow`."""
    return "slow" in config.option.markexpr and "not slow" not in config.option.markexpr


def _deselect_absent(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests of programs that no package index has, where this machine has them not."""
    absent = [
        marker
        for marker, is_there in MAY_BE_ABSENT.items()
        if any(item.get_closest_marker(marker) for item in items) and not is_there()
    ]
    left = [item for item in items if any(item.get_closest_marker(marker) for marker in absent)]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give tests of real processes and sockets another try.

    They wait for events and not for the clock, but a shared machine may stand still for seconds.
    What is broken fails three times; a second try shows as `R` in the run's output.  Figures
    (`slow`) get none: one that is missed once is to be seen.
    """
    _deselect_absent(config, items)
    for item in items:
        if item.nodeid.startswith(REAL_PROCESSES) and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=1))
    if "PYTEST_XDIST_WORKER" in os.environ:
        # Of figures those that run beside each other come first; then one process waits for the
        # other.
        ordered = sorted(items, key=lambda item: not item.nodeid.startswith(UNHURRIED))
        items[:] = ordered if is_for_figures(config) else _taking_turns(items)


def _taking_turns(items: list[pytest.Item]) -> list[pytest.Item]:
    """Let files that wait and files that compute take turns, so that they run beside each other.

    In proportion, so that at any time some wait and some compute; there are more of the latter.
    """
    files: dict[str, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.location[0], []).append(item)
    kinds: dict[bool, list[str]] = {True: [], False: []}
    for name in files:
        kinds[name.startswith(WAITING)].append(name)
    turns = sorted(
        (at / len(kind), name) for kind in kinds.values() for at, name in enumerate(kind)
    )
    return [item for _, name in turns for item in files[name]]


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let a slow test wait for its turn, before its time begins to count."""
    if "PYTEST_XDIST_WORKER" not in os.environ or item.get_closest_marker("slow") is None:
        return (yield)
    with open(__file__) as shared:
        is_unhurried = item.nodeid.startswith(UNHURRIED)
        fcntl.flock(shared, fcntl.LOCK_SH if is_unhurried else fcntl.LOCK_EX)
        return (yield)


@pytest.fixture(autouse=True)
def _guarded() -> Iterator[None]:
    """No process that a test started did what no process of ours may."""
    yield
    assert not guarding.caught()


@pytest.fixture(autouse=True)
def _own_logs() -> Iterator[None]:
    """A command that a test runs in this process sets up this process's logs: for itself alone."""
    config, shown = structlog.get_config(), logs.shown()
    yield
    if structlog.get_config() != config:
        structlog.configure(**config)
    logs.show(shown)


@pytest.fixture(scope="session")
def seaweed() -> Iterator[S3Server]:
    """The one S3 server of this run."""
    with s3_server() as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[AwsServer]:
    """The one AWS of this run; see `aws`."""
    with aws_server() as server:
        yield server


@pytest.fixture
def aws(moto: AwsServer, monkeypatch: pytest.MonkeyPatch) -> AwsServer:
    """The AWS of this run, for names of one's own; boto3's environment is set, for children too."""
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in moto.environment.items():
        monkeypatch.setenv(name, value)
    return moto


@pytest.fixture
def s3_url(seaweed: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A registry URL of the test's own; the environment for boto3 is set, also for children."""
    for name in ("AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in seaweed.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running system of one edge and one worker with the test engines, shared by all tests."""
    env = {"TIDEPOOL_DEVICE_PRICE_USD_PER_H": "cpu=7200"}  # so that a second costs 2 USD
    data = tmp_path_factory.mktemp("stack")
    with running_stack(data, engines=TEST_ENGINES, env=env) as stack:
        yield stack


@pytest.fixture(scope="session")
def wide_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running system of two edges and two workers, shared by all tests."""
    data = tmp_path_factory.mktemp("wide")
    with running_stack(data, engines=TEST_ENGINES, edges=2, workers=2) as stack:
        yield stack


@pytest.fixture
def start_stack(tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    """Start systems of the test's own; keywords are those of `StackOptions`."""
    with ExitStack() as stacks:
        yield lambda name="stack", **options: stacks.enter_context(
            running_stack(tmp_path / name, **options)
        )
