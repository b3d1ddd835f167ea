"""`rollout start|pause|resume|promote|abort` as a user calls them, on a registry alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from registry_sync import endpoints
from registry_sync.directory import DirectoryStore
from registry_sync.documents import EndpointSpec, Variant
from registry_sync.rollout_terms import Guard, Shadow, Step
from tests.support.commands import Commands
from tests.support.published import decide, publish

SPEC = EndpointSpec("m", (Variant("stable", "m", "1", 100.0),))


class Cli(Commands):
    """Commands on one registry."""

    def __init__(self, registry: Path) -> None:
        super().__init__("--registry", str(registry), "--data", str(registry / "none"))
        self.store = DirectoryStore(registry)

    def spec(self) -> EndpointSpec:
        return endpoints.get_spec(self.store, "m")[0]

    def trail(self) -> list[dict[str, Any]]:
        """What the audit trail holds, the oldest first."""
        found: list[dict[str, Any]] = json.loads(self.ok("audit", "--json"))
        return found[::-1]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    cli = Cli(tmp_path / "registry")
    publish(cli.store, "1", "2")
    endpoints.set_spec(cli.store, SPEC)
    return cli


def test_start_needs_only_the_version(cli: Cli) -> None:
    result = cli("rollout", "start", "m", "--to", "2")
    assert (result.exit_code, result.stdout) == (0, "2\n")
    assert "no running edge goes by it yet" in result.stderr
    rollout = cli.spec().rollout
    assert rollout is not None
    assert rollout.steps == tuple(Step(weight, 60) for weight in (1, 5, 25, 50, 100))
    assert (rollout.guard, rollout.shadow, rollout.wish) == (Guard(), None, "run")
    assert [(arm.name, arm.version) for arm in cli.spec().variants] == [
        ("stable", "1"),
        ("canary", "2"),
    ]


def test_start_takes_every_term(cli: Cli) -> None:
    words = "--steps 10%,50 --hold 1.5m --shadow 0.25 --shadow-calls-per-s-max 7 --no-errors"
    words += " --slower-than-ms 40 --latency-ratio-max 1.5 --margin-points 1 --alpha 0.01"
    words += " --outcomes-min 50 --then pause"
    cli.ok("rollout", "start", "m", "--to", "2", *words.split())
    rollout = cli.spec().rollout
    assert rollout is not None
    assert rollout.steps == (Step(10, 90), Step(50, 90), Step(100, 90))
    assert rollout.shadow == Shadow(0.25, 7)
    assert rollout.guard == Guard(
        errors=False,
        slower_than_ms=40,
        latency_ratio_max=1.5,
        margin_points=1,
        alpha=0.01,
        outcomes_min=50,
        then="pause",
    )


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--steps 1,many", "expected shares like 1,5,25,50,100"),
        ("--steps ,", "expected shares like"),
        ("--hold soon", "expected a time like 60s, 5m or 1h"),
        ("--hold -5s", "expected a time like"),
        ("--then panic", "panic"),
        ("--shadow-calls-per-s-max 5", "nothing is copied without --shadow"),
        ("--to two", '--to: version "two" is not one'),
        ("--steps 5,1", "--steps: 1.0 is not more than the step before, which is 5.0"),
        ("--steps 5,101", "--steps: 101.0 is out of range"),
        ("--steps nan", "--steps: NaN is out of range"),
        ("--steps 0", "--steps: 0.0 is out of range; allowed is more than 0"),
        ("--hold 99999999d", "--hold '99999999d': at most 30d"),
        ("--shadow 2", "--shadow: 2.0 is out of range"),
        ("--shadow 1 --shadow-calls-per-s-max 0", "--shadow-calls-per-s-max: 0.0 is out of range"),
        ("--alpha 0", "--alpha: 0.0 is out of range; allowed is more than 0"),
        ("--outcomes-min 0", "--outcomes-min: 0 is out of range"),
        ("--margin-points 101", "--margin-points: 101.0 is out of range"),
        ("--slower-than-ms 0", "--slower-than-ms: 0.0 is out of range"),
        ("--no-errors", "--no-errors: nothing would watch the rollout; add --slower-than-ms or"),
    ],
)
def test_start_names_the_option_whatever_runs_now(cli: Cli, words: str, why: str) -> None:
    start = ("rollout", "start", "m", "--to", "2")
    assert why in cli.misused(*start, *words.split())
    assert cli.spec().revision == 1
    cli.ok(*start)
    assert why in cli.misused(*start, *words.split())


def test_start_names_each_option_once(cli: Cli) -> None:
    words = "--steps 0,-1,-2 --alpha 0 --outcomes-min 0"
    said = cli.misused("rollout", "start", "m", "--to", "2", *words.split())
    assert [said.count(word) for word in ("--steps:", "--alpha:", "--outcomes-min:")] == [1, 1, 1]


def test_start_tells_when_a_version_begins_with_less_than_it_had(cli: Cli) -> None:
    arms = (Variant("a", "m", "1", 60.0), Variant("b", "m", "2", 40.0))
    endpoints.set_spec(cli.store, replace(SPEC, variants=arms))
    said = cli("rollout", "start", "m", "--to", "2").stderr
    assert "note: version 2 had 40 % of 'm' and begins with 1 %" in said
    cli.ok("endpoint", "rollback", "m", "--abort-rollout")
    assert "note:" not in cli("rollout", "start", "m", "--to", "2", "--steps", "40,100").stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--to 3", "$.variants[1].version: m version 3 is not published; published are 1, 2"),
        ("--to 1", "version 1 has all traffic of 'm' already"),
        ("--to 2 --if-revision 7", "at revision 1, yours is 7"),
    ],
)
def test_start_names_what_does_not_fit_and_writes_nothing(cli: Cli, words: str, why: str) -> None:
    assert why in cli.fails("rollout", "start", "m", *words.split())
    assert cli.spec().revision == 1
    assert "no endpoint 'nobody'" in cli.fails("rollout", "start", "nobody", "--to", "2")
    assert "no endpoint 'nobody'" in cli.fails("rollout", "abort", "nobody")
    assert "no endpoint 'nobody'" in cli.fails("endpoint", "diff", "nobody")


def test_a_rollout_is_paused_resumed_promoted_and_aborted(cli: Cli) -> None:
    cli.ok("rollout", "start", "m", "--to", "2", "--reason", "faster")
    decide(cli.store, "m", "running", 10)
    wishes = []
    for word in ("pause", "resume", "promote", "abort"):
        cli.ok("rollout", word, "m")
        rollout = cli.spec().rollout
        assert rollout is not None
        wishes.append(rollout.wish)
    assert wishes == ["pause", "run", "promote", "abort"]
    assert [(r["what"], r["before"], r["after"], r["why"]) for r in cli.trail()] == [
        ("rollout.start", "1", "2", "faster"),
        ("rollout.pause", "2", "3", ""),
        ("rollout.resume", "3", "4", ""),
        ("rollout.promote", "4", "5", ""),
        ("rollout.abort", "5", "6", ""),
    ]
    assert "being aborted" in cli.fails("rollout", "resume", "m")
    history = cli.ok("endpoint", "history", "m").splitlines()
    assert [line.rpartition(" ")[2] for line in history[1:]] == ["run", *wishes]
    assert cli.spec().revision == 6
    assert len(cli.trail()) == 5  # what was refused did not happen


def test_what_cannot_be_says_the_way_out(cli: Cli) -> None:
    assert "rollout start m --to" in cli.fails("rollout", "abort", "m")
    cli.ok("rollout", "start", "m", "--to", "2")
    assert "rollout abort m" in cli.fails("rollout", "start", "m", "--to", "2")
    decide(cli.store, "m", "rolled_back", 0, "3 of 5 calls failed")
    said = cli.fails("rollout", "promote", "m")
    assert "3 of 5 calls failed" in said
    assert "rollout start m" in said
    assert cli.ok("rollout", "start", "m", "--to", "2") == "4"  # as often as one likes


def test_a_later_rollout_goes_on_from_what_the_former_led_to(cli: Cli) -> None:
    publish(cli.store, "3")
    cli.ok("rollout", "start", "m", "--to", "2")
    decide(cli.store, "m", "promoted", 100)
    cli.ok("rollout", "start", "m", "--to", "3")
    arms = [(arm.name, arm.version, arm.weight) for arm in cli.spec().variants]
    assert arms == [("stable", "2", 100), ("canary", "3", 0)]
    assert replace(cli.spec(), variants=SPEC.variants, rollout=None, revision=0) == SPEC


# --- endpoint set, rollback and diff beside a rollout ---

FILE = """
endpoint: m
deadline_ms: 7
variants: [{name: stable, model: m, version: 1, weight: 100}]
"""


def test_a_file_that_would_end_a_running_rollout_is_refused(cli: Cli) -> None:
    cli.ok("rollout", "start", "m", "--to", "2")
    for words in (("set", "m"), ("rollback", "m")):
        said = cli.fails("endpoint", *words, stdin=FILE)
        assert said.startswith("$.variants[canary], $.rollout: a rollout of 'm' to version 2 runs")
        assert said.endswith(", or end it with --abort-rollout")
    assert cli.spec().revision == 2
    edited = cli.ok("endpoint", "get", "m").replace("deadline_ms: 10000", "deadline_ms: 7")
    assert cli.ok("endpoint", "set", "m", stdin=edited) == "3"
    assert cli.ok("endpoint", "set", "m", "--abort-rollout", stdin=FILE) == "4"
    assert cli.spec().rollout is None
    cli.ok("rollout", "start", "m", "--to", "2")
    assert cli.ok("endpoint", "rollback", "m", "--abort-rollout") == "6"
    assert cli.spec().rollout is None


def test_rollback_offers_a_revision_that_can_be_gone_back_to(cli: Cli) -> None:
    cli.ok("rollout", "start", "m", "--to", "2")
    cli.ok("endpoint", "set", "m", "--abort-rollout", stdin=FILE)
    said = cli.fails("endpoint", "rollback", "m")
    assert said.endswith(", or go back to revision 1 with --to-revision 1")
    assert cli.ok("endpoint", "rollback", "m", "--to-revision", "1") == "4"
    assert replace(cli.spec(), revision=0) == SPEC


def test_rollback_within_a_rollout_says_what_went_back_and_what_stays(cli: Cli) -> None:
    cli.ok("rollout", "start", "m", "--to", "2")
    endpoints.set_spec(cli.store, replace(cli.spec(), deadline_ms=7))
    decide(cli.store, "m", "promoted", 100)
    said = cli("endpoint", "rollback", "m").stderr
    assert "note: $.deadline_ms: 7 -> 10000 went back; the rollout to version 2 and its" in said
    assert said.endswith("; `tidepool rollout abort m` gives version 1 all traffic\n")
    decide(cli.store, "m", "rolled_back", 0)
    said = cli("endpoint", "rollback", "m").stderr
    assert said.endswith("$.deadline_ms: 10000 -> 7 went back; the rollout to version 2 and its "
                         "weights stay as they are\n")  # fmt: skip
    for words in (("--to-revision", "1"), ()):  # out of the rollout, and into it again
        result = cli("endpoint", "rollback", "m", *words)
        assert (result.exit_code, "note:" in result.stderr) == (0, False)


def test_diff_names_every_value_that_another_revision_changed(cli: Cli) -> None:
    assert "no revision before 1" in cli.fails("endpoint", "diff", "m")
    cli.ok("endpoint", "set", "m", stdin=FILE)
    assert cli.ok("endpoint", "diff", "m") == "$.deadline_ms: 10000 -> 7"
    cli.ok("rollout", "start", "m", "--to", "2")
    lines = cli.ok("endpoint", "diff", "m").splitlines()
    assert lines[0].startswith('$.variants[canary]: new: {"model": "m", "version": "2"')
    assert lines[1].startswith("$.rollout: null -> {")
    cli.ok("rollout", "pause", "m")
    assert cli.ok("endpoint", "diff", "m") == '$.rollout.wish: "run" -> "pause"'
    assert cli.ok("endpoint", "diff", "m", "2", "1") == "$.deadline_ms: 7 -> 10000"
    assert json.loads(cli.ok("endpoint", "diff", "m", "1", "2", "--json")) == {
        "before": 1,
        "after": 2,
        "changes": [{"path": "$.deadline_ms", "before": 10000, "after": 7}],
    }
    assert cli.ok("endpoint", "diff", "m", "2", "2") == ""
    assert cli.fails("endpoint", "diff", "m", "9") == "m has no revision 9; there are 1 to 4"
    assert cli.fails("endpoint", "diff", "m", "1", "9") == "m has no revision 9; there are 1 to 4"
