"""`tidepool status`: tables on a terminal, lines in a pipe, JSON for machines; also live."""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edge.pool_metrics import pool_text
from infra.status_view import UNKNOWN, lines, shown_bytes, tables
from registry_sync import documents
from tests.support.models import identity
from tests.support.processes import tidepool
from tests.support.rollout_documents import shown_rollout
from tests.support.stack import TEST_ENGINES, Stack, running_stack, until
from tests.support.terminal import on_terminal

MODEL = "shown"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    data = tmp_path_factory.mktemp("status")
    with running_stack(data, engines=TEST_ENGINES, edges=2) as stack:
        stack.publish_observed(MODEL, deterministic=True)
        yield stack


def recent(stack: Stack) -> dict[str, Any]:
    """Return the last minute of the endpoint."""
    found: dict[str, Any] = next(e for e in stack.status()["endpoints"] if e["name"] == MODEL)
    return found["recent"] | {"stable": found["variants"][0]["recent"]}


def test_last_minute_of_all_edges_is_in_the_status(shown: Stack) -> None:
    for i in range(20):
        assert shown.infer_observed(MODEL, i % 4).status == 200
    first = until(lambda: recent(shown)["p50_ms"] and recent(shown), 20.0, "a first minute")
    assert first["requests_per_s"] > 0
    assert 0 < first["p50_ms"] <= first["p99_ms"] < 30_000
    assert first["failed_share"] == 0
    assert 0 <= first["hit_share"] < 1
    assert first["stable"] == {k: v for k, v in first.items() if k != "stable"}


def test_engine_says_what_it_ran(shown: Stack) -> None:
    before = shown.engine(MODEL)[0]
    shown.infer_observed(MODEL, random.randint(1000, 10**6))  # nobody has it in a cache
    until(lambda: shown.engine(MODEL)[0]["runs"] > before["runs"])
    after = shown.engine(MODEL)[0]
    assert after["rows"] - before["rows"] == after["runs"] - before["runs"]
    assert after["run_s"] > before["run_s"]
    assert (after["waiting"], after["calls"]) == (0, 0)


def test_engine_that_an_endpoint_names_and_that_is_not_here_is_said(
    shown: Stack, tmp_path: Path
) -> None:
    shown.publish("wishful", identity(tmp_path / "wishful.onnx"))
    shown.edit_endpoint("wishful", engine={"name": "tensorrt"})
    detail = until(lambda: shown.engine("wishful")[0]["detail"], 30.0, "a reason")
    (engine,) = shown.engine("wishful")
    assert (engine["state"], engine["engine"]) == ("warm", "onnxruntime")
    assert re.search(r"^tensorrt: .*not installed", detail)
    assert f"wishful/1  warm  onnxruntime  {shown_bytes(engine['bytes'])}  {detail}" in shown.cli(
        "status"
    )
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(tables(shown.status()))
    assert f"wishful/1 warm onnxruntime {detail}" in console.export_text()


def test_request_under_way_is_counted_at_its_edge(shown: Stack) -> None:
    caller = threading.Thread(
        target=shown.infer_observed, args=(MODEL, 200), kwargs={"delay_ms": 2500}
    )
    caller.start()
    until(lambda: sum(edge["in_flight"] for edge in shown.status()["edges"]) == 1)
    caller.join()
    until(lambda: sum(edge["in_flight"] for edge in shown.status()["edges"]) == 0)


def test_pipe_gets_lines_without_escapes(shown: Stack) -> None:
    text = shown.cli("status")
    assert "\x1b" not in text
    assert re.search(rf"^worker \S+-0  ready  cpu  pid {shown.pids()['worker-0']}  0 calls", text)
    assert re.search(rf"^  {MODEL}/1  warm  observed  1 KiB$", text, re.M)
    assert len(re.findall(r"^edge \S+  pid \d+  \d+ in flight$", text, re.M)) == 2
    assert re.search(rf"^endpoint {MODEL}  revision 1  .*/s  p50 .* ms  p99 ", text, re.M)


def test_terminal_gets_a_table(shown: Stack) -> None:
    text = on_terminal(shown, lambda seen: "stable" in seen and "edge" in seen, "status")
    for word in ("worker", "device", "in flight", "p99 ms", "hits", f"{MODEL}/1", "\x1b["):
        assert word in text


def test_watch_on_a_terminal_goes_on_until_it_is_told_to_end(shown: Stack) -> None:
    text = on_terminal(shown, lambda seen: seen.count("p99 ms") >= 3, "status", "--watch")
    assert "Traceback" not in text


def test_url_of_an_edge_answers_with_a_key(shown: Stack) -> None:
    def ask(key: str, url: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "infra.cli", "status", "--json", "--url", url],
            env={**shown.environment, "TIDEPOOL_API_KEY": key},
            capture_output=True,
            text=True,
            timeout=60,
            cwd=shown.data,
        )

    good = ask(shown.key, shown.admin_url)
    assert json.loads(good.stdout).keys() == shown.status().keys()
    for key, url, why in (
        ("x" * 20, shown.admin_url, "answered 401"),
        (shown.key, shown.url, "answered 404"),
        (shown.key, "http://127.0.0.1:9", "nobody answers"),
        ("", shown.admin_url, "TIDEPOOL_API_KEY"),
    ):
        bad = ask(key, url)
        assert (bad.returncode, bad.stdout) == (1, "")
        assert why in bad.stderr
        assert "Traceback" not in bad.stderr


def test_watch_outlives_the_controller(start_stack: Callable[..., Stack], tmp_path: Path) -> None:
    stack = start_stack()
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        watching = subprocess.Popen(
            [sys.executable, "-m", "infra.cli", "status", "-w", "--json", "--data",
             str(stack.data)],
            stdout=stdout, stderr=stderr, env=stack.environment, cwd=stack.data,
        )  # fmt: skip
    try:
        until(lambda: out.read_text().count("\n") >= 2, 30.0, "two looks")
        pid = stack.pids()["controller"]
        os.kill(pid, signal.SIGSTOP)  # so that it is away, and its successor not yet there
        os.kill(pid, signal.SIGKILL)
        until(lambda: stack.pids().get("controller", pid) != pid, 30.0, "a new controller")
        count = out.read_text().count("\n")
        until(lambda: out.read_text().count("\n") > count, 30.0, "a look at the new one")
        assert watching.poll() is None
        assert "Traceback" not in err.read_text()
        assert all(json.loads(line)["workers"] is not None for line in out.read_text().splitlines())
    finally:
        watching.kill()
        watching.wait()


def test_document_of_an_older_controller_is_shown() -> None:
    old = {
        "workers": [{"id": "w", "pid": 1, "device": "cpu", "state": "parked", "wait_ms": 0.0,
                     "calls": 0, "engines": []}],
        "edges": [{"id": "e", "pid": 2}],
        "endpoints": [{"name": "m", "revision": 3, "held": 0, "wakes": 0, "variants": [
            {"name": "a", "model": "m", "version": "1", "weight": 100.0, "replicas": 0,
             "requests": 5, "errors": 1, "hits": 2}]}],
        "rejected": {"endpoints/x.json": "no JSON"},
    }  # fmt: skip
    text = "\n".join(lines(old))
    assert f"edge e  pid 2  {UNKNOWN} in flight" in text
    assert "rejected endpoints/x.json: no JSON" in text
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(tables(old))
    assert "rejected endpoints/x.json" in console.export_text()


@pytest.mark.parametrize(
    ("wanted", "shown"), [(None, "1 warm"), (1, "1 warm"), (3, "1 of 3 warm"), (0, "1 of 0 warm")]
)
def test_replicas_are_shown_with_what_is_wanted(wanted: int | None, shown: str) -> None:
    variant = {
        "name": "a", "model": "m", "version": "1", "weight": 100.0, "replicas": 1,
        "wanted": wanted, "requests": 5, "errors": 1, "hits": 2,
    }  # fmt: skip
    endpoint = {"name": "m", "revision": 3, "held": 0, "wakes": 0, "variants": [variant]}
    status = {"workers": [], "edges": [], "endpoints": [endpoint], "rejected": {}}
    assert f"100 %  {shown}  5 requests" in "\n".join(lines(status))
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(tables(status))
    assert shown.removesuffix(" warm") in console.export_text()


@pytest.mark.rule("F20")
def test_requests_in_quarantine_are_shown() -> None:
    row = {"model": "m", "version": "3", "fingerprint": "ab12", "left_s": 59.9}
    status = {"workers": [], "edges": [], "endpoints": [], "rejected": {}, "quarantined": [row]}
    said = "quarantined ab12  m/3  two workers died of this request, it is refused for 60 s"
    assert lines(status) == [said]
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(tables(status))
    assert said in console.export_text()
    text = pool_text(json.dumps({**status, "quarantined": [row, row]}).encode()).decode()
    assert 'tidepool_quarantined{model="m",version="3"} 2.0' in text


@pytest.mark.rule("F2", "F30")
def test_worker_that_an_edge_leaves_alone_is_shown_and_why() -> None:
    edge = {"id": "e0", "pid": 7, "in_flight": 3, "away": {"w1": "silent", "w2": "slow of m/3"}}
    other = {"id": "e1", "pid": 8, "in_flight": 0, "away": {"w1": "silent"}}
    old = {"id": "e2", "pid": 9, "in_flight": 0}
    status = {"workers": [], "edges": [edge, other, old], "endpoints": [], "rejected": {}}
    assert lines(status)[:3] == [
        "edge e0  pid 7  3 in flight",
        "  worker w1 gets no calls: silent",
        "  worker w2 gets no calls: slow of m/3",
    ]
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(tables(status))
    assert "edge e0: worker w2 gets no calls: slow of m/3" in console.export_text()
    text = pool_text(json.dumps(status).encode()).decode()
    assert 'tidepool_worker_away{worker="w1"} 2.0' in text
    assert 'tidepool_worker_away{worker="w2"} 1.0' in text


def test_rollout_of_an_endpoint_is_one_line() -> None:
    rollout = shown_rollout(state="rolled_back", reason="errors")
    endpoint = {"name": "m", "revision": 3, "variants": [], "rollout": rollout}
    other = {"name": "n", "revision": 1, "variants": [], "rollout": None}
    status = {"workers": [], "edges": [], "endpoints": [endpoint, other], "rejected": {}}
    (line,) = (line for line in lines(status) if "rollout" in line)
    assert line == "  rollout rolled back, step 2 of 3: errors"
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(tables(status))
    assert "endpoint m: rollout rolled back, step 2 of 3: errors\n" in console.export_text()


def test_long_waits_are_shown_as_people_write_them() -> None:
    recent = {"requests_per_s": 0.2, "p50_ms": 87.25, "p99_ms": 4360.4}
    endpoint = {"name": "m", "revision": 3, "recent": recent, "variants": []}
    status = {"workers": [], "edges": [], "endpoints": [endpoint], "rejected": {}}
    assert "p50 87.2 ms  p99 4,360 ms" in "\n".join(lines(status))
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(tables(status))
    assert "4,360" in console.export_text()


def test_registry_that_cannot_be_read_is_said() -> None:
    away = {"controller": {"epoch": 1, "leader": False, "registry_error": "503 from S3"},
            "workers": [], "edges": [], "endpoints": [], "rejected": {}}  # fmt: skip
    assert lines(away) == ["this controller does not lead", "registry: 503 from S3"]


def test_builds_and_their_reasons_are_shown() -> None:
    build = {"key": "ab" * 32, "model": "m", "version": "3", "engine": "tensorrt_rtx"}
    status = {"workers": [], "edges": [], "endpoints": [], "rejected": {}, "builds": [
        {**build, "device_class": "sm_86", "state": "building", "worker": "w-0", "reason": ""},
        {**build, "device_class": "sm_90", "engine": "", "state": "failed", "worker": "",
         "reason": "its builder died 3 times"},
    ]}  # fmt: skip
    assert lines(status) == [
        "build m/3  sm_86  tensorrt_rtx  building  w-0",
        f"build m/3  sm_90  {UNKNOWN}  failed  its builder died 3 times",
    ]
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(tables(status))
    text = console.export_text()
    for words in ("m/3", "sm_90", "building", "its builder died 3 times"):
        assert words in text


def test_places_with_and_without_a_process_are_shown() -> None:
    places = [
        {"worker": f"n-{at}", "device": "cuda:0", "address": "", "state": state, "pid": 0, "up": ""}
        for at, state in enumerate(("up", "starting", "cold", "cold", "silent"))
    ]
    status = {"workers": [], "edges": [], "endpoints": [], "rejected": {}, "nodes": [
        {"id": "n", "pid": 7, "up_min": 0, "parked": 0, "rest_s": 60.0, "places": places},
    ]}  # fmt: skip
    assert lines(status) == ["node n  pid 7  5 places  1 up  1 starting  1 silent  2 cold"]
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(tables(status))
    shown = [line.split() for line in console.export_text().splitlines()]
    assert ["n-1", "n", "cuda:0", "starting"] in shown
    assert ["n-3", "n", "cuda:0", "cold"] in shown
    assert ["n-4", "n", "cuda:0", "silent"] in shown
    assert not [line for line in shown if line[:1] == ["n-0"]]  # it is among the workers
    text = pool_text(json.dumps(status).encode()).decode()
    assert 'tidepool_places{node="n",state="cold"} 2.0' in text
    assert 'tidepool_places{node="n",state="silent"} 1.0' in text
    assert 'tidepool_places{node="n",state="draining"} 0.0' in text
    pending = [one for one in text.splitlines() if one.startswith("tidepool_place_pending{")]
    assert pending == [
        'tidepool_place_pending{node="n",state="starting",worker="n-1"} 1.0',
        'tidepool_place_pending{node="n",state="silent",worker="n-4"} 1.0',
    ]


def test_fallback_workers_and_versions_that_sleep_without_a_machine_are_shown() -> None:
    worker = {
        **{"id": "f-0", "state": "ready", "device": "cpu", "pid": 1, "calls": 0, "wait_ms": 0.0},
        **{"engines": [], "fallback": True},
    }
    variant = {
        **{"name": "stable", "model": "m", "version": "1", "weight": 100.0, "replicas": 0},
        **{"requests": 1, "errors": 0, "state": "starting", "wake_ms": 90_000},
    }
    status = {
        **{"workers": [worker], "edges": [], "rejected": {}},
        "endpoints": [{"name": "m", "revision": 1, "variants": [variant]}],
    }
    text = "\n".join(lines(status))
    assert "worker f-0  ready  cpu  pid 1  0 calls  wait 0 ms  fallback" in text
    assert "m/1 is asleep; an instance is starting: that takes about 90 s more" in text
    console = Console(record=True, width=160, file=io.StringIO())
    console.print(tables(status))
    table = console.export_text()
    assert "cpu fallback" in table
    assert "endpoint m: m/1 is asleep; an instance is starting" in table
    metrics = pool_text(json.dumps({**status, "instance_start_s": 180.0}).encode()).decode()
    assert 'tidepool_version_state{model="m",state="starting",version="1"} 1.0' in metrics
    assert "tidepool_instance_start_seconds 180.0" in metrics


def test_spec_that_asks_for_fallback_where_there_is_none_is_warned_of(
    shown: Stack, tmp_path: Path
) -> None:
    spec = json.loads(documents.write(shown.spec(MODEL)))
    del spec["revision"]
    wish = tmp_path / "spec.json"
    wish.write_text(json.dumps({**spec, "scale": {"fallback": "cpu"}}))
    data = ("--data", str(shown.data))
    ended = tidepool("endpoint", "lint", MODEL, str(wish), *data, env=shown.environment)
    assert (ended.code, ended.stdout) == (0, "ok\n")
    assert "warning: $.scale.fallback: cpu, but no fallback worker is there" in ended.stderr
    asked = shown.request("POST", "/admin/lint", wish.read_bytes(), admin=True).json()
    assert asked["ok"]
    (warning,) = asked["warnings"]
    assert warning in ended.stderr
