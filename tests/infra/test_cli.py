"""The document commands as a user calls them: what they print, where, and how they end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from registry_sync.endpoints import read_state
from tests.support.models import identity, mlp
from tests.support.processes import Ended, command, descendants, environment, is_alive, tidepool
from tests.support.stack import Stack, running_stack, until

INPUT = {"x": ("FP32", [1, 4], [1.0, -2.0, 3.5, 0.25])}


class Cli:
    """Commands on one data folder."""

    def __init__(self, data: Path) -> None:
        self.data = data

    def __call__(self, *arguments: str, stdin: str = "") -> Ended:
        ended = tidepool(*arguments, "--data", str(self.data), stdin=stdin.encode())
        assert "Traceback" not in ended.stderr, ended.stderr
        return ended

    def ok(self, *arguments: str, stdin: str = "") -> str:
        """Run a command that must succeed; returns its stdout."""
        ended = self(*arguments, stdin=stdin)
        assert ended.code == 0, ended
        return ended.stdout

    def fails(self, *arguments: str, stdin: str = "") -> str:
        """Run a command that must fail with 1; returns its stderr."""
        ended = self(*arguments, stdin=stdin)
        assert (ended.code, ended.stdout) == (1, ""), ended
        return ended.stderr


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Commands on a fresh folder, on which nothing runs."""
    return Cli(tmp_path / "data")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """A folder with the model `m`, versions 1 and 2; each test uses endpoints of its own."""
    folder = tmp_path_factory.mktemp("cli")
    cli = Cli(folder / "data")
    path = str(identity(folder / "m.onnx"))
    cli.ok("publish", "m", path)
    cli.ok("publish", "m", path)
    return cli


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running stack with the model `m`."""
    data = tmp_path_factory.mktemp("live")
    with running_stack(data) as stack:
        stack.publish("m", identity(data / "m.onnx"))
        yield stack


def spec(endpoint: str, version: str = "1", **more: object) -> str:
    variant = {"name": "a", "model": "m", "version": version, "weight": 100}
    return yaml.safe_dump({"endpoint": endpoint, "variants": [variant], **more})


# publish, models


def test_publish_ends_stdout_with_the_bare_version(cli: Cli, tmp_path: Path) -> None:
    path = str(identity(tmp_path / "m.onnx"))
    assert cli.ok("publish", "m", path).splitlines()[-1] == "1"
    assert cli.ok("publish", "m", path, "--label", "k=v").splitlines()[-1] == "2"
    assert cli.ok("publish", "m", path, "--version", "7").splitlines()[-1] == "7"
    assert "version 7" in cli.fails("publish", "m", path, "--version", "7")
    assert cli.ok("publish", "m", path).splitlines()[-1] == "8"
    assert json.loads(cli.ok("models", "--json")) == [
        {"model": "m", "versions": ["1", "2", "7", "8"]}
    ]
    assert cli.ok("models").split() == ["m", "1", "2", "7", "8"]
    # The first publish made the endpoint, the later ones moved nothing.
    got = json.loads(cli.ok("endpoint", "get", "m", "--json"))
    assert [(v["version"], v["weight"]) for v in got["variants"]] == [("1", 100)]
    assert got["revision"] == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["Bad Name", "{model}"], "Bad Name"),
        (["m", "{model}", "--version", "one"], "one"),
        (["m", "nowhere.onnx"], "nowhere.onnx"),
        (["m", "{garbage}"], "onnx"),
    ],
)
def test_publish_names_what_does_not_fit(
    cli: Cli, tmp_path: Path, arguments: list[str], why: str
) -> None:
    model = identity(tmp_path / "m.onnx")
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"no graph")
    words = [word.format(model=model, garbage=garbage) for word in arguments]
    assert why in cli.fails("publish", *words)
    assert json.loads(cli.ok("models", "--json")) == []


def test_bad_label_is_bad_usage(cli: Cli, tmp_path: Path) -> None:
    ended = cli("publish", "m", str(identity(tmp_path / "m.onnx")), "--label", "novalue")
    assert (ended.code, ended.stdout) == (2, "")
    assert "novalue" in ended.stderr


# endpoint


def test_endpoint_set_prints_the_revision_and_get_what_was_set(published: Cli) -> None:
    assert published.ok("endpoint", "set", "one", stdin=spec("one")) == "1\n"
    assert published.ok("endpoint", "set", "one", stdin=spec("one", "2")) == "2\n"
    got = yaml.safe_load(published.ok("endpoint", "get", "one"))
    assert got["variants"][0]["version"] == "2"
    assert got["revision"] == 2
    # Defaults are written out, so that nobody has to know them.
    assert got["deadline_ms"] == 10000
    assert got["scale"] == {
        "replicas_min": 0, "replicas_max": 4, "idle_s": "auto", "dedicated": False,
        "warm": "", "cold_start_cost_s": 3600.0, "replica_hours_per_day_max": None,
        "forecast": "act",
        "fallback": "none",
    }  # fmt: skip


def test_what_get_prints_can_be_set_again(published: Cli) -> None:
    published.ok("endpoint", "set", "again", stdin=spec("again", assign={"by": ["key"]}))
    printed = published.ok("endpoint", "get", "again")
    assert published.ok("endpoint", "set", "again", stdin=printed) == "2\n"
    assert "at revision 2, yours is 1" in published.fails("endpoint", "set", "again", stdin=printed)


def test_if_revision_must_be_current(published: Cli) -> None:
    for _ in range(3):
        published.ok("endpoint", "set", "cas", stdin=spec("cas"))
    error = published.fails("endpoint", "set", "cas", "--if-revision", "1", stdin=spec("cas"))
    assert error == "tidepool: at revision 3, yours is 1\n"
    assert published.ok("endpoint", "set", "cas", "--if-revision", "3", stdin=spec("cas")) == "4\n"
    in_file = spec("cas", revision=3)
    assert "at revision 4, yours is 3" in published.fails("endpoint", "set", "cas", stdin=in_file)


def test_history_shows_every_spec_and_rollback_makes_the_one_before_current(
    published: Cli,
) -> None:
    assert "no previous" in published.fails("endpoint", "rollback", "m").lower()
    for version in ("1", "2"):
        published.ok("endpoint", "set", "past", stdin=spec("past", version))
    assert published.ok("endpoint", "rollback", "past") == "3\n"
    shown = json.loads(published.ok("endpoint", "history", "past", "--json"))
    assert [(s["revision"], s["variants"][0]["version"]) for s in shown] == [
        (1, "1"), (2, "2"), (3, "1"),
    ]  # fmt: skip
    lines = published.ok("endpoint", "history", "past").splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("document", "path"),
    [
        (spec("bad").replace("weight: 100", "weight: lots"), "$.variants[0].weight"),
        (spec("bad").replace("weight: 100", "weight: 99"), "$.variants"),
        (spec("bad", deadline="1s"), "$.deadline"),
        (spec("bad", scale={"idle_s": "never"}), "$.scale.idle_s"),
        (spec("bad", cache={"ttl": 3}), "$.cache.ttl"),
        (spec("bad", "17"), "$.variants[0]"),
        (spec("other"), "$.endpoint"),
        ("endpoint: [", "line"),
        ("", "$"),
    ],
)
def test_bad_value_is_named_by_its_path_and_nothing_is_written(
    published: Cli, document: str, path: str
) -> None:
    assert path in published.fails("endpoint", "set", "bad", stdin=document)
    published.fails("endpoint", "get", "bad")


def test_lint_names_everything_that_is_wrong_and_writes_nothing(
    published: Cli, tmp_path: Path
) -> None:
    file = tmp_path / "e.yaml"
    file.write_text(spec("lint", deadline_ms=-1, nonsense=True))
    error = published.fails("endpoint", "lint", "lint", str(file))
    assert "$.nonsense" in error
    assert "$.deadline_ms" in error
    file.write_text(spec("lint", "17"))
    assert "$.variants[0]" in published.fails("endpoint", "lint", "lint", str(file))
    file.write_text(spec("lint"))
    assert published.ok("endpoint", "lint", "lint", str(file)) == "ok\n"
    published.fails("endpoint", "get", "lint")


def test_purge_says_what_it_purged_and_names_what_is_not_there(published: Cli) -> None:
    assert published.ok("endpoint", "purge", "m") == "purged m\n"
    assert published.ok("endpoint", "purge", "m", "--version", "2") == "purged m version 2\n"
    assert "version 9 of m: not found" in published.fails("endpoint", "purge", "m", "--version=9")
    assert '"x"' in published.fails("endpoint", "purge", "m", "--version", "x")
    assert "there is no endpoint 'nobody' in" in published.fails("endpoint", "purge", "nobody")


def test_endpoint_that_is_not_there_is_named(published: Cli) -> None:
    for action in ("get", "history", "rollback"):
        assert "absent" in published.fails("endpoint", action, "absent")
    assert "nowhere.yaml" in published.fails("endpoint", "set", "m", "nowhere.yaml")


# keys


def test_keys_are_made_listed_and_revoked_and_never_stored(cli: Cli) -> None:
    key = cli.ok("keys", "create", "--tenant", "t", "--scope", "infer:m").strip()
    assert re.fullmatch(r"tp_[0-9a-f]{16}_[0-9a-f]{64}", key)
    other = json.loads(cli.ok("keys", "create", "--days", "1", "--json"))
    listed = json.loads(cli.ok("keys", "list", "--json"))
    assert [(k["id"], k["tenant"], k["scopes"]) for k in listed] == [
        (key.split("_")[1], "t", ["infer:m"]),
        (other["id"], "default", ["infer:*"]),
    ]
    stored = b"".join(p.read_bytes() for p in (cli.data / "registry").rglob("*") if p.is_file())
    assert key.split("_")[2].encode() not in stored
    cli.ok("keys", "revoke", other["id"])
    assert [k["id"] for k in json.loads(cli.ok("keys", "list", "--json"))] == [key.split("_")[1]]
    assert other["id"] in cli.fails("keys", "revoke", other["id"])
    assert "infer" in cli.fails("keys", "create", "--scope", "everything")


def test_key_is_made_with_a_quota_and_an_end_and_rotated(cli: Cli) -> None:
    made = json.loads(
        cli.ok(
            *("keys", "create", "--requests-per-s", "5", "--rows-per-s", "50.5", "--burst-s", "2"),
            *("--concurrent", "3", "--not-after", "2100-01-31T12:00:00Z", "--json"),
            *("--share", "2.5"),
        )
    )
    quota = {"requests_per_s": 5.0, "rows_per_s": 50.5, "burst_s": 2.0, "concurrent": 3}
    (before,) = json.loads(cli.ok("keys", "list", "--json"))
    assert before["quota"] == quota
    assert before["share"] == 2.5
    assert "share=2.5" in cli.ok("keys", "list")
    misused = cli("keys", "create", "--share", "0")
    assert misused.code == 2
    assert "--share" in misused.stderr
    assert before["not_after"] == datetime(2100, 1, 31, 12, tzinfo=UTC).timestamp()
    rotated = json.loads(cli.ok("keys", "rotate", made["id"], "--grace", "1h", "--json"))
    assert rotated["id"] == made["id"]
    assert rotated["key"] != made["key"]
    (after,) = json.loads(cli.ok("keys", "list", "--json"))
    assert after.pop("previous_not_after") == [rotated["previous_not_after"]]
    assert {**after, "previous_not_after": []} == before
    shown = cli.ok("keys", "list")
    assert "requests_per_s=5" in shown
    assert "until 2100-01-31T12:00:00+00:00" in shown
    assert "earlier secret until" in shown
    stored = (cli.data / "registry" / "keys.json").read_text()
    for key in (made["key"], rotated["key"]):
        assert key.split("_")[2] not in stored + shown
    ended = json.loads(cli.ok("keys", "revoke", made["id"], "--json"))
    assert ended == {"id": made["id"], "revoked": True}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("create", "--requests-per-s", "0"), "quota.requests_per_s: 0.0 is out of range"),
        (("create", "--concurrent", "-1"), "quota.concurrent: -1 is out of range"),
        (("create", "--burst-s", "2"), "--burst-s: needs --requests-per-s"),
        (("create", "--not-after", "tomorrow"), "--not-after 'tomorrow'"),
        (("rotate", "x", "--grace", "soon"), "--grace 'soon'"),
        (("rotate", "x"), "no key with the id 'x'"),
    ],
)
def test_key_that_cannot_be_is_refused_by_name(
    cli: Cli, arguments: tuple[str, ...], why: str
) -> None:
    assert why in cli.fails("keys", *arguments)


# Without and with a running stack.


@pytest.mark.parametrize("text", ["", "9999999d"])
def test_time_to_be_warm_until_that_is_none_is_refused_by_name(cli: Cli, text: str) -> None:
    assert repr(text) in cli.fails("warm", "m", "--until", text)


def test_questions_to_a_stack_that_does_not_run_say_so(cli: Cli) -> None:
    assert "tidepool up" in cli.fails("status")
    assert "tidepool up" in cli.fails("warm", "m")


def test_status_has_the_documented_shape(live: Stack) -> None:
    live.infer("m", INPUT)
    until(lambda: live.engine("m"), 10.0)
    shown = json.loads(live.cli("status", "--json"))
    (worker,) = shown["workers"]
    assert worker["state"] in ("starting", "parked", "ready", "draining")
    assert worker.keys() >= {"id", "pid", "device", "state", "engines"}
    assert worker["pid"] == live.pids()["worker-0"]
    (engine,) = worker["engines"]
    assert engine.keys() >= {"model", "version", "engine", "state", "bytes"}
    assert (engine["model"], engine["version"], engine["engine"], engine["state"]) == (
        "m", "1", "onnxruntime", "warm",
    )  # fmt: skip
    (endpoint,) = shown["endpoints"]
    assert endpoint.keys() >= {"name", "revision", "held", "wakes", "variants"}
    (variant,) = endpoint["variants"]
    assert variant.keys() >= {"name", "version", "weight", "replicas"}
    assert (variant["version"], variant["weight"], variant["replicas"]) == ("1", 100, 1)
    assert shown.keys() == live.status().keys()  # GET /admin/pool is the same document
    assert "m/1  warm  onnxruntime" in live.cli("status")


def test_commands_find_the_running_stack_and_it_takes_over_at_once(
    live: Stack, tmp_path: Path
) -> None:
    assert live.cli("publish", "n", str(mlp(tmp_path / "n.onnx"))) == "1"
    assert live.request("GET", "/v2/models/n").status == 200  # known when the command returns
    live.cli("endpoint", "set", "alias", stdin=spec("alias").encode())
    assert live.infer("alias", INPUT).status == 200
    key = live.cli("keys", "create", "--scope", "infer:alias")
    assert live.infer("alias", INPUT, key=key).status == 200
    live.cli("keys", "revoke", key.split("_")[1])
    assert live.infer("alias", INPUT, key=key).status == 401


def test_warm_wakes_an_endpoint_that_sleeps(live: Stack) -> None:
    live.set_endpoint({**yaml.safe_load(spec("nap")), "scale": {"idle_s": 1.0}})
    live.cli("warm", "nap")
    until(lambda: live.variants("nap")["a"]["replicas"] == 1, 10.0, "it is warm")
    ended = tidepool("warm", "absent", "--data", str(live.data))
    assert ended.code == 1
    assert "absent" in ended.stderr


def test_warm_until_holds_over_the_policy_and_is_kept_in_the_registry(live: Stack) -> None:
    live.set_endpoint({**yaml.safe_load(spec("dawn")), "scale": {"idle_s": 0.5}})
    said = live.cli("warm", "dawn", "--until", "2h")
    assert said.startswith("warming dawn until ")
    found = read_state(live.store, "dawn")
    assert found is not None
    assert 7100 < found[0].warm_until_unix_s - time.time() <= 7200
    until(lambda: live.variants("dawn")["a"]["replicas"] == 1, 20.0, "it is warm")
    time.sleep(1.5)  # three times what its policy lets it idle
    assert live.variants("dawn")["a"]["replicas"] == 1
    why = json.loads(live.cli("status", "--why", "dawn", "--json"))
    assert (why["endpoint"], why["due"], why["versions"][0]["wanted"]) == ("dawn", "request", 1)
    assert "endpoint dawn  due by request" in live.cli("status", "--why", "dawn")
    assert live.cli("warm", "dawn", "--until", "now") == "dawn is warm by request no longer"
    for arguments, problem in (
        (("warm", "dawn", "--until", "25:00"), "'25:00' is no time"),
        (("warm", "dawn", "--until", "2020-01-01"), "'2020-01-01' is over"),
        (("warm", "absent", "--until", "2h"), "absent"),
        (("status", "--why", "absent"), "there is no endpoint 'absent'"),
    ):
        ended = tidepool(*arguments, "--data", str(live.data))
        assert (ended.code, problem in ended.stderr) == (1, True)


def test_edge_that_stands_still_does_not_fail_a_change(live: Stack) -> None:
    edge = live.pids()["edge-0"]
    os.kill(edge, signal.SIGSTOP)
    try:
        ended = tidepool(
            "endpoint", "set", "slow", "--data", str(live.data), stdin=spec("slow").encode()
        )
    finally:
        os.kill(edge, signal.SIGCONT)
    # An edge that has gone silent is no live edge, and does not hold up the command for ever.
    assert (ended.code, ended.stdout) == (0, "1\n")


def test_lint_needs_no_registry_and_makes_none(cli: Cli) -> None:
    assert cli.ok("endpoint", "lint", "e", stdin=spec("e")) == "ok\n"
    assert not cli.data.exists()


def test_change_to_a_registry_that_the_controller_cannot_read_says_that_it_is_written(
    live: Stack,
) -> None:
    # The controller's own registry is gone; the command is told where it went.
    here, away = live.data / "registry", live.data / "registry.away"
    here.rename(away)
    try:
        ended = tidepool(
            *("endpoint", "set", "afar", "--data", str(live.data), "--registry", str(away)),
            stdin=spec("afar").encode(),
        )
    finally:
        away.rename(here)
    assert (ended.code, ended.stdout) == (1, "")
    assert ended.stderr.startswith("tidepool: written, but")
    assert "registry" in ended.stderr


# demo


def demo(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command("demo", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )


def test_demo_ends_by_itself_with_every_answer_right_and_a_wake() -> None:
    ended = tidepool("demo", "--exit", timeout_s=120)
    assert ended.code == 0, ended.stderr[-3000:]
    *_, asleep, woken, last = ended.stdout.splitlines()
    assert last.startswith("demo ok: ")
    assert "Traceback" not in ended.stderr
    # Its last act: the model sleeps, and one call wakes it.
    assert re.fullmatch(r"asleep after [\d.]+ s: no replica of any version is left", asleep)
    found = re.fullmatch(r"woken in (\d+) ms by one request: (.*)", woken)
    assert found, woken
    phases_ms = {name: float(ms) for name, ms in (part.split() for part in found[2].split(", "))}
    assert {"fetch", "deserialise", "warm_up"} <= phases_ms.keys()
    assert 0 < sum(phases_ms.values()) <= int(found[1]) + 1


@pytest.mark.slow
def test_demo_works_twice_in_a_row_also_on_one_folder(tmp_path: Path) -> None:
    for _ in range(2):
        ended = tidepool("demo", "--exit", "--data", str(tmp_path / "d"), timeout_s=120)
        assert ended.code == 0, ended.stderr[-3000:]
        assert ended.stdout.splitlines()[-1].startswith("demo ok: ")


def test_demo_serves_until_it_is_interrupted() -> None:
    process = demo()
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.decode())
        if "until Ctrl-C" in lines[-1]:
            break
    children = descendants(process.pid)
    assert len(children) == 4
    assert any(line.startswith("demo ok: ") for line in lines)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert not any(map(is_alive, children))
