"""`tidepool up` from outside: how it starts, what it says, and that nothing of it stays."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from infra.stack import Node, free_port
from tests.support.models import identity
from tests.support.processes import command, descendants, environment, is_alive, tidepool
from tests.support.stack import Stack, StackOptions, until

READY_S_MAX = 20.0  # "a few seconds", on a machine that other tests keep busy
INPUT = {"x": ("FP32", [1, 4], [1.0, -2.0, 3.5, 0.25])}


@contextmanager
def stack_on(data: Path, **options: Any) -> Iterator[Stack]:
    """Run a stack; whatever the test did to it, nothing of it stays."""
    stack = Stack(data, StackOptions(**options))
    started: list[int] = []
    try:
        stack.start()
        assert stack.process is not None
        started = descendants(stack.process.pid)
        yield stack
    finally:
        stack.stop()
        until(lambda: not any(map(is_alive, started)), 10.0, "nothing stays")


def up(data: Path, *arguments: str, **env: str | None) -> subprocess.Popen[bytes]:
    """Start `up` on free ports unless told others."""
    given = [*arguments]
    for flag in ("--port", "--admin-port"):
        if flag not in given:
            given += [flag, str(free_port())]
    return subprocess.Popen(
        command("up", "--data", str(data), *given),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(env),
    )


def first_line(process: subprocess.Popen[bytes]) -> str:
    """Return the first line of stdout."""
    alarm = threading.Timer(60.0, process.kill)
    alarm.start()
    try:
        assert process.stdout is not None
        return process.stdout.readline().decode()
    finally:
        alarm.cancel()


def end(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> tuple[str, str]:
    """End it and return what it said."""
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    return stdout.decode(), stderr.decode()


def sockets(data: Path) -> list[Path]:
    return list(Node(data).run.glob("*.sock"))


def is_ready(stack: Stack) -> bool:
    try:
        return stack.request("GET", "/v2/health/ready").status == 200
    except OSError:
        return False  # nobody listens yet


def made_key(stderr: str) -> str | None:
    found = re.search(r"admin key \(shown only now\): (\S+)", stderr)
    return found[1] if found else None


def test_up_is_ready_within_seconds_and_says_so_on_stdout_alone(tmp_path: Path) -> None:
    port = free_port()
    began_s = time.monotonic()
    process = up(tmp_path / "d", "--port", str(port))
    assert first_line(process) == f"ready http://127.0.0.1:{port}\n"
    took_s = time.monotonic() - began_s
    children = descendants(process.pid)
    stdout, stderr = end(process)
    assert took_s < READY_S_MAX
    assert len(children) == 4  # controller, sync, worker, edge
    assert stdout == ""  # nothing after the first line
    assert made_key(stderr) is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_that_up_started(tmp_path: Path, number: int) -> None:
    data = tmp_path / "d"
    process = up(data)
    first_line(process)
    children = descendants(process.pid)
    assert (data / "stack.json").exists()
    assert sockets(data)
    end(process, number)
    assert process.returncode == 0
    assert not any(map(is_alive, children))
    assert sockets(data) == []
    assert not (data / "stack.json").exists()


def test_a_signal_before_it_is_ready_ends_everything_too(tmp_path: Path) -> None:
    data = tmp_path / "d"
    process = up(data)
    children = until(lambda: descendants(process.pid), 30.0, "its first process")
    end(process)
    assert process.returncode == 0
    assert not any(map(is_alive, children))
    assert sockets(data) == []


def test_killed_up_leaves_no_process_and_the_next_one_goes_on_where_it_was(
    tmp_path: Path,
) -> None:
    with stack_on(tmp_path / "d", edges=2, workers=2) as stack:
        stack.publish("one", identity(tmp_path / "one.onnx"))
        key = stack.make_key("infer:one")
        assert stack.infer("one", INPUT, key=key).status == 200
        assert stack.process is not None
        children = descendants(stack.process.pid)
        assert len(children) == 6
        stack.kill()
        until(lambda: not any(map(is_alive, children)), 5.0, "its processes end with it")
        stack.start()  # on the same ports, at once
        assert stack.infer("one", INPUT, key=key).output() == INPUT["x"][2]
        assert "admin key" not in stack.log_text()


def test_up_that_ended_cleanly_starts_again_with_the_same_models_and_keys(tmp_path: Path) -> None:
    data = tmp_path / "d"
    process = up(data)
    url = first_line(process).split()[1]
    tidepool("publish", "one", str(identity(tmp_path / "one.onnx")), "--data", str(data))
    _, stderr = end(process)
    key = made_key(stderr)
    process = up(data, "--port", url.rpartition(":")[2])
    first_line(process)
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    done = subprocess.run(
        [
            *("curl", "-sS", f"{url}/v2/models/one/infer", "--data-binary", json.dumps(body)),
            *("-H", f"Authorization: Bearer {key}"),
        ],
        capture_output=True,
    )
    _, stderr = end(process)
    assert json.loads(done.stdout)["outputs"][0]["data"] == [1, 2, 3, 4], done
    assert made_key(stderr) is None


def test_killed_process_is_started_again_and_ends_with_the_rest(tmp_path: Path) -> None:
    with stack_on(tmp_path / "d") as stack:
        before = stack.pids()
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)

        def others() -> dict[str, int]:
            after = stack.pids()
            again = after.keys() == before.keys()
            return after if again and not {*before.values()} & {*after.values()} else {}

        after = until(others, 20.0, "all four run again")
        until(lambda: is_ready(stack), 30.0, "it is ready again")
        assert stack.stop() == 0
        assert not any(map(is_alive, after.values()))


def test_second_up_on_the_same_data_fails_and_disturbs_nothing(tmp_path: Path) -> None:
    with stack_on(tmp_path / "d") as stack:
        files = [stack.data / "stack.json", stack.data / "registry" / "keys.json"]
        before = [file.read_bytes() for file in files]
        ended = tidepool(
            *("up", "--data", str(stack.data), "--port", "0", "--admin-port", "0"),
            env={"TIDEPOOL_API_KEY": "another-operator-key"},
        )
        assert ended.code == 1
        assert "another `tidepool up` runs on --data" in ended.stderr
        assert "Traceback" not in ended.stderr
        assert [file.read_bytes() for file in files] == before
        assert stack.request("GET", "/v2/health/ready").status == 200


def test_up_after_a_killed_one_waits_for_the_ports_that_it_still_held(tmp_path: Path) -> None:
    data = tmp_path / "d"
    data.mkdir()
    (data / "stack.json").write_text("{}")  # nobody has tidied up
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        process = up(data, "--port", port)
        time.sleep(1.5)
    assert first_line(process) == f"ready http://127.0.0.1:{port}\n"
    end(process)


@pytest.mark.parametrize("flag", ["--port", "--admin-port"])
def test_taken_port_is_named_with_its_flag_and_costs_no_key(tmp_path: Path, flag: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        ports = {"--port": "0", "--admin-port": "0", flag: port}
        words = [word for pair in ports.items() for word in pair]
        ended = tidepool("up", "--data", str(tmp_path / "d"), *words)
    assert ended.code == 1
    assert f"{flag} {port}" in ended.stderr
    assert "Traceback" not in ended.stderr
    process = up(tmp_path / "d")
    first_line(process)
    _, stderr = end(process)
    assert made_key(stderr) is not None  # still to be had: nobody has seen one


def test_very_long_data_path_works_and_leaves_no_socket_folder(tmp_path: Path) -> None:
    data = tmp_path / ("a" * 100) / ("b" * 100)
    with stack_on(data) as stack:
        assert Node(data).run != data / "run"
        stack.publish("one", identity(tmp_path / "one.onnx"))
        assert stack.infer("one", INPUT).output() == INPUT["x"][2]
        assert json.loads(stack.cli("status", "--json"))["workers"]
    assert not Node(data).run.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["up", "--port", "many"],
        ["up", "--port", "70000"],
        ["up", "--workers", "0"],
        ["up", "--no-such-flag"],
        ["no-such-command"],
        ["publish"],
        ["endpoint", "set"],
    ],
)
def test_bad_usage_exits_2(tmp_path: Path, arguments: list[str]) -> None:
    ended = tidepool(*arguments, cwd=tmp_path)
    assert (ended.code, ended.stdout) == (2, "")
    assert "Traceback" not in ended.stderr


def test_engine_that_cannot_be_had_fails_the_start_and_names_it(tmp_path: Path) -> None:
    ended = tidepool(
        *("up", "--data", str(tmp_path / "d"), "--port", "0", "--admin-port", "0"),
        *("--engine", "nowhere.engine:Engine"),
    )
    assert ended.code == 1
    assert "worker-0" in ended.stderr
    assert "nowhere.engine" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert sockets(tmp_path / "d") == []


def test_own_key_of_the_operator_is_an_admin_key_and_nothing_is_printed(tmp_path: Path) -> None:
    key = "operators own key, 1!"
    with stack_on(tmp_path / "d", env={"TIDEPOOL_API_KEY": key}) as stack:
        assert stack.request("GET", "/admin/pool", key=key, admin=True).status == 200
        assert stack.request("GET", "/v2/models/none", key=key).status == 404
        assert stack.request("GET", "/v2/models/none", key=key + "x").status == 401
        assert key not in stack.log_text()
        assert "admin key" not in stack.log_text()


def test_key_of_narrow_scope_named_by_the_operator_becomes_an_admin_key(tmp_path: Path) -> None:
    data = tmp_path / "d"
    made = tidepool("keys", "create", "--scope", "infer:one", "--data", str(data)).stdout.strip()
    with stack_on(data, env={"TIDEPOOL_API_KEY": made}) as stack:
        assert stack.request("GET", "/admin/pool", key=made, admin=True).status == 200


def test_operators_key_that_does_not_fit_fails_without_being_shown(tmp_path: Path) -> None:
    ended = tidepool(
        *("up", "--data", str(tmp_path / "d"), "--port", "0", "--admin-port", "0"),
        env={"TIDEPOOL_API_KEY": "tooshort"},
    )
    assert ended.code == 1
    assert "16 to 256" in ended.stderr
    assert "tooshort" not in ended.stderr


def test_up_with_two_of_each_serves_over_both_edges(tmp_path: Path) -> None:
    with stack_on(tmp_path / "d", workers=2, edges=2) as stack:
        assert sorted(stack.pids()) == [
            *("controller", "edge-0", "edge-1", "sync", "worker-0", "worker-1"),
        ]
        stack.publish("one", identity(tmp_path / "one.onnx"))
        stack.edit_endpoint("one", scale={"replicas_min": 2})
        # Each connection is its own, and the kernel spreads them over the edges.
        assert {stack.infer("one", INPUT).status for _ in range(30)} == {200}
        status = stack.status()
        assert len(status["edges"]) == len(status["workers"]) == 2
        until(lambda: len(stack.engine("one")) == 2, 20.0, "a replica in both workers")
