"""How a rollout reads: as lines in a pipe, as a table on a terminal."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from infra.rollout_view import lines, shadow_lines, tables
from tests.support.rollout_documents import shown_arm, shown_rollout, shown_shadow


def text(**more: Any) -> str:
    return "\n".join(lines(shown_rollout(**more)))


def table(*, width: int = 160, **more: Any) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(tables(shown_rollout(**more)))
    return console.export_text()


def test_pipe_gets_one_line_for_the_rollout_and_one_for_each_arm() -> None:
    assert text().splitlines() == [
        "rollout m  running  step 2 of 3  48 s of 60 s left",
        "  stable  m/1  95 %  seen 94.6 %  1 warm  2,000 requests  1,234 watched  12 errors  "
        "0.972 % (0.51 to 1.72 %)  p50 1.2 ms  p99 3.4 ms",
        "  canary  m/2  5 %  seen 5.4 %  1 warm  75 requests  70 watched  0 errors  –  "
        "p50 1.3 ms  p99 – ms",
        "  evidence  errors e 1.5 of 20",
        "  verdict   no evidence of harm",
        "  reason    the hold has passed  (2026-11-26 13:02:00 UTC)",
    ]


@pytest.mark.parametrize("width", [160, 80])
def test_terminal_gets_both_arms_side_by_side(width: int) -> None:
    head, *rows = (line.rstrip() for line in table(width=width).splitlines())
    assert head == "rollout m  running  step 2 of 3  48 s of 60 s left"
    assert rows[:11] == [
        "",
        "            stable                    canary",
        "version     m/1                       m/2",
        "share       95 %, seen 94.6 %         5 %, seen 5.4 %",
        "warm        1                         1",
        "requests    2,000, 1,234 watched      75, 70 watched",
        "cache hits  38 %                      –",
        "errors      12                        0",
        "error rate  0.972 % (0.51 to 1.72 %)  –",
        "p50 ms      1.2                       1.3",
        "p99 ms      3.4                       –",
    ]


def test_slow_calls_are_shown_where_there_is_a_guard_for_them() -> None:
    arms = [shown_arm("stable", "1", 95.0, slow_calls=4321), shown_arm("canary", "2", 5.0)]
    more = {"variants": arms, "guard": {"slower_than_ms": 50.0}}
    assert "0 errors  –  4,321 slow  p50" in text(**more)
    assert re.search(r"^slow calls +4,321 +0 *$", table(**more), re.M)


@pytest.mark.parametrize(
    ("more", "shown"),
    [
        ({"hold_left_s": None}, "step 2 of 3  the hold of 60 s has not begun"),
        ({"hold_left_s": 0.0}, "step 2 of 3  60 s held\n"),
        ({"hold_left_s": None, "step": 0}, "rollout m  running  step 0 of 3\n"),
        ({"state": "promoted", "step": 3}, "rollout m  promoted  step 3 of 3\n"),
        ({"state": "rolled_back"}, "rollout m  rolled back  step 2 of 3\n"),
    ],
)
def test_head_says_how_far_it_is(more: dict[str, Any], shown: str) -> None:
    assert shown in text(**more)


@pytest.mark.parametrize(
    ("more", "verdict"),
    [
        ({"harms": ["errors: 20 % against 1 %"], "worse": "x"}, "errors: 20 % against 1 %"),
        ({"mismatch": "units are split 40/60"}, "units are split 40/60"),
        ({"worse": "errors"}, "looks worse, not proven: errors"),
        ({}, "no evidence of harm"),
    ],
)
def test_verdict_is_the_worst_that_is_known(more: dict[str, Any], verdict: str) -> None:
    assert f"  verdict   {verdict}\n" in text(**more)
    assert verdict in table(**more)


def test_requests_that_ended_badly_are_shown_whoever_failed_them() -> None:
    arms = [
        shown_arm("stable", "1", 80.0),
        shown_arm("canary", "2", 20.0, requests=241, failed=228),
    ]
    assert "  241 requests (228 failed)  0 watched  " in text(variants=arms)
    assert "241 (228 failed), 0 watched" in table(variants=arms)


def test_end_is_said_once() -> None:
    shown = text(state="rolled_back", verdict="20 % fail", reason="20 % fail")
    assert shown.count("20 % fail") == 1
    assert "  reason    20 % fail  (" in shown


def test_what_a_running_rollout_waits_for_is_said_until_its_end() -> None:
    assert "  waits for 2 of 3 replicas" in text(waits_for="2 of 3 replicas")
    assert "waits for" not in text(waits_for="2 of 3 replicas", state="rolled_back")


def test_evidence_beyond_every_bound_is_cut() -> None:
    assert "errors e over 1,000,000 of 20" in text(e_values={"errors": 1e300})


def test_evidence_is_shown_also_where_its_bound_is_not_known() -> None:
    assert "  evidence  errors e 0.5  errors at 100 % e 3\n" in text(
        e_values={"errors": 0.5, "errors_full": 3.0}, fires_at={}
    )


def test_outputs_of_both_arms_are_shown_where_they_are_known() -> None:
    classes = {"3": 20, "7": 40, "9": 5, "11": 10, "other": 25}
    arms = [
        shown_arm("stable", "1", 95.0, score_mean=0.93, classes=classes),
        shown_arm("canary", "2", 5.0),
    ]
    assert "  outputs   stable score 0.93, class 7 40 %, class 3 20 %, class 11 10 %\n" in text(
        variants=arms
    )


def test_shadow_is_one_line_of_the_status_and_all_of_the_diff() -> None:
    line = "99 compared, 20 dropped (3 not warm there), 1 failed, 2 of another form"
    line += ", top-1 differs in 3.09 %"
    assert f"  shadow    {line}" in text(shadow=shown_shadow())
    head, worst = shadow_lines(shown_rollout(shadow=shown_shadow()))
    assert head.startswith(f"rollout m  shadow  {line}")
    assert worst == "  request r1  inputs ab12  top1  relative error 0.5  y"


def test_diff_without_a_shadow_says_how_to_get_one() -> None:
    (line,) = shadow_lines(shown_rollout())
    assert line.startswith("rollout m: nothing is compared yet; ")
    assert "--shadow" in line


def test_nothing_that_others_wrote_reaches_the_terminal_as_an_escape() -> None:
    for shown in (text(reason="a\x1b[2Jb"), table(reason="a\x1b[2Jb")):
        assert "\x1b[2J" not in shown
        assert "a\\x1b[2Jb" in shown


def test_brackets_of_a_reason_are_no_markup() -> None:
    assert "[red]x[/red]" in table(reason="[red]x[/red]")


def test_document_with_no_more_than_the_least_is_shown() -> None:
    arm = {"name": "a", "model": "m", "version": "1", "weight": 100.0}
    least = {
        **{"endpoint": "m", "state": "running", "step": 0, "variants": [arm]},
        "steps": [{"weight": 100, "hold_s": 1}],
    }
    assert lines(least)[0] == "rollout m  running  step 0 of 1"
    Console(file=io.StringIO()).print(tables(least))
