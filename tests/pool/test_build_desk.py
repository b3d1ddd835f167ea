"""The desk for builds, case by case; the simulation beside it looks for what nobody thought of."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from pool import build_desk
from pool.build_desk import (
    ANSWER_S_MAX,
    ASK_AGAIN_S,
    LOOK_AGAIN_S,
    LOST_S_MAX,
    OTHER_KEY_S,
    QUESTION_S,
    SILENCE_S_MAX,
    STALL_S,
    UNSURE_S,
    BuildDesk,
)
from pool.build_jobs import BACKOFF_S, BACKOFF_S_MAX, Ask, Drop, Ref, Report, Target, Tell
from pool.build_rows import rows

T = Target("m", "1", "rtx", "sm_86")
ANY = T._replace(engine="")
K = "k1"


class Desk:
    """A desk, its clock, and what it has sent."""

    def __init__(self) -> None:
        self.desk, self.now_s = BuildDesk(), 100.0

    def join(
        self,
        *workers: str,
        builds: Sequence[str] = ("rtx/sm_86",),
        device_class: str = "sm_86",
        refs: Sequence[Ref] = (("m", "1"),),
        incarnation: str = "i1",
    ) -> None:
        for worker in workers:
            self.desk.join(worker, incarnation, device_class, builds, self.now_s)
            self.desk.run(worker, refs)

    def say(
        self, worker: str, state: str, key: str = K, target: Target = T, reason: str = ""
    ) -> None:
        self.desk.report(worker, Report(target, state, key, reason), self.now_s)

    def step(self, after_s: float = 0.0) -> list[Ask | Drop | Tell]:
        """Let time pass, in steps short enough to be no stall; return all that was sent."""
        sent = []
        while after_s > STALL_S / 2:
            self.now_s += STALL_S / 2
            after_s -= STALL_S / 2
            sent += self.desk.step(self.now_s)
        self.now_s += after_s
        return sent + self.desk.step(self.now_s)

    def asked(self, after_s: float = 0.0) -> list[str]:
        return [order.worker for order in self.step(after_s) if isinstance(order, Ask)]

    def told(self, after_s: float = 0.0) -> list[tuple[str, str]]:
        found = (order for order in self.step(after_s) if isinstance(order, Tell))
        return [(order.worker, order.target.version) for order in found]

    def row(self, **wanted: str) -> dict[str, object]:
        found = [r for r in rows(self.desk, self.now_s) if all(r[f] == wanted[f] for f in wanted)]
        assert len(found) == 1, found
        return found[0]

    def build(self, worker: str, key: str = K, target: Target = T) -> None:
        self.say(worker, "building", key, target)
        self.say(worker, "built", key, target)


@pytest.fixture
def desk() -> Desk:
    return Desk()


# one builder


def test_one_of_many_who_want_a_plan_is_asked_until_it_answers(desk: Desk) -> None:
    desk.join("w1", "w2", "w3")
    for worker in ("w1", "w2", "w3"):
        desk.say(worker, "wanted")
    assert desk.step() == [Ask("w1", T, K)]
    assert desk.asked(ASK_AGAIN_S / 2) == []
    assert desk.asked(ASK_AGAIN_S / 2) == ["w1"]
    assert desk.row()["state"] == "waiting"
    assert desk.row()["reason"] == "w1 has been asked"
    desk.say("w1", "building")
    desk.say("w2", "wanted")
    assert desk.asked(ASK_AGAIN_S) == []
    assert (desk.row()["state"], desk.row()["worker"]) == ("building", "w1")


def test_builder_is_asked_now_and_then_and_keeps_the_build_while_it_answers(desk: Desk) -> None:
    desk.join("w1", "w2")
    desk.say("w1", "wanted")
    desk.step()
    desk.say("w1", "building")
    for _ in range(20):
        assert set(desk.asked(QUESTION_S)) == {"w1"}
        desk.say("w1", "building")
    assert desk.desk.outcomes["lost"] == 0


@pytest.mark.parametrize("has_begun", [False, True])
def test_who_does_not_answer_loses_the_build(desk: Desk, has_begun: bool) -> None:
    desk.join("w1", "w2")
    desk.say("w1", "wanted")
    desk.step()
    if has_begun:
        desk.say("w1", "building")
    patience_s = SILENCE_S_MAX if has_begun else ANSWER_S_MAX
    assert "w2" not in desk.asked(patience_s - 1)
    assert "w2" in desk.asked(3.0)
    assert desk.desk.outcomes["lost"] == 1


def test_builder_whose_process_ended_loses_the_build_at_once(desk: Desk) -> None:
    desk.join("w1", "w2")
    desk.say("w1", "wanted")
    desk.say("w2", "wanted")
    desk.step()
    desk.say("w1", "building")
    desk.desk.leave("w1", desk.now_s)
    assert desk.asked(LOST_S_MAX / 2) == []
    desk.join("w1", incarnation="i2")
    assert desk.asked() == ["w2"]


def test_worker_that_dials_again_builds_on(desk: Desk) -> None:
    desk.join("w1", "w2")
    desk.say("w1", "wanted")
    desk.say("w2", "wanted")
    desk.step()
    desk.say("w1", "building")
    desk.desk.leave("w1", desk.now_s)
    assert desk.asked(LOST_S_MAX - 1) == []
    desk.join("w1")
    assert desk.asked() == ["w1"]  # how it goes
    desk.say("w1", "building")
    assert desk.asked(QUESTION_S - 1) == []


@pytest.mark.parametrize("is_final", [False, True])
def test_worker_that_stays_away_loses_the_build(desk: Desk, is_final: bool) -> None:
    desk.join("w1", "w2")
    desk.say("w1", "wanted")
    desk.say("w2", "wanted")
    desk.step()
    desk.desk.leave("w1", desk.now_s, is_final=is_final)
    assert desk.asked(0.0 if is_final else LOST_S_MAX + 1) == ["w2"]


def test_late_report_of_who_lost_the_build_counts(desk: Desk) -> None:
    desk.join("w1", "w2")
    desk.say("w1", "wanted")
    desk.step()
    assert "w2" in desk.asked(ANSWER_S_MAX + 1)
    desk.say("w1", "built")
    assert desk.row()["state"] == "built"
    assert desk.asked(QUESTION_S) == []  # who had been asked need not begin


def test_draining_worker_is_given_nothing(desk: Desk) -> None:
    desk.join("w1", "w2")
    desk.say("w2", "wanted")
    desk.desk.run("w2", [("m", "1")], is_draining=True)
    assert desk.asked() == ["w1"]


def test_worker_builds_one_plan_at_a_time(desk: Desk) -> None:
    desk.join("w1")
    desk.say("w1", "wanted")
    desk.say("w1", "wanted", "k2", T._replace(version="2"))
    assert desk.step() == [Ask("w1", T, K)]
    assert "no one is free" in str(desk.row(version="2")["reason"])
    desk.say("w1", "building")
    assert desk.step() == []
    desk.say("w1", "built")
    assert Ask("w1", T._replace(version="2"), "k2") in desk.step()


def test_worker_with_another_key_is_passed_over_for_a_while(desk: Desk) -> None:
    desk.join("w1", builds=())
    desk.join("w2", "w3", refs=(), device_class="cpu")
    desk.say("w1", "wanted")
    assert desk.asked() == ["w2"]
    desk.say("w2", "other")
    assert desk.asked() == ["w3"]
    desk.say("w3", "other")
    assert desk.asked(OTHER_KEY_S - 2) == []
    assert "another runtime" in str(desk.row()["reason"])
    assert "w2" in desk.asked(4.0)


def test_plan_that_nobody_wants_any_more_is_not_built(desk: Desk) -> None:
    desk.join("w1")
    desk.say("w1", "wanted")
    desk.say("w1", "wanted", "k2")  # its endpoint wants another precision now
    assert desk.step() == [Ask("w1", T, "k2")]
    desk.build("w1", "k2")
    assert desk.asked(60.0) == []


def test_build_that_nobody_wants_any_more_is_given_up_and_not_begun_again(desk: Desk) -> None:
    desk.desk.wish([ANY], {})
    desk.join("w1", refs=())
    desk.step()
    desk.say("w1", "building")
    desk.desk.wish([], {})
    assert desk.step() == [Drop("w1", ANY, K)]
    assert desk.step(ASK_AGAIN_S / 2) == []
    assert desk.step(ASK_AGAIN_S / 2) == [Drop("w1", ANY, K)]  # until it answers
    desk.say("w1", "dropped", target=ANY)
    assert desk.step(600.0) == []
    assert not rows(desk.desk, desk.now_s)
    desk.desk.wish([ANY], {})
    assert desk.asked() == ["w1"]


def test_order_whose_key_nobody_has_said_is_given_up_as_well(desk: Desk) -> None:
    desk.desk.wish([ANY], {})
    desk.join("w1", refs=())
    desk.step()
    desk.desk.wish([], {})
    assert desk.step() == [Drop("w1", ANY, "")]
    desk.say("w1", "dropped", "", ANY)
    assert desk.step(60.0) == []
    assert not desk.desk.jobs


def test_build_of_a_withdrawn_wish_goes_on_for_whoever_runs_the_version(desk: Desk) -> None:
    desk.desk.wish([T], {})
    desk.join("w1")
    desk.step()
    desk.say("w1", "building")
    desk.say("w1", "wanted")
    desk.desk.wish([], {})
    assert desk.step() == []
    desk.say("w1", "unwanted")
    assert desk.step() == [Drop("w1", T, K)]


def test_who_has_dialled_has_time_to_say_what_it_wants(desk: Desk) -> None:
    desk.join("w1")
    desk.say("w1", "building")  # to a controller that knows nothing yet
    assert not any(isinstance(order, Drop) for order in desk.step(UNSURE_S - 1))
    desk.say("w1", "wanted")
    desk.say("w1", "building")
    assert not any(isinstance(order, Drop) for order in desk.step(5.0))
    desk.join("w1")
    desk.say("w1", "building")
    assert not any(isinstance(order, Drop) for order in desk.step(UNSURE_S / 2))
    desk.say("w1", "building")
    assert Drop("w1", T, K) in desk.step(UNSURE_S / 2 + 1)


def test_what_serves_already_is_built_before_what_is_only_wished(desk: Desk) -> None:
    desk.desk.wish([T._replace(model="n")], {})
    desk.step()
    desk.join("w1")
    desk.say("w1", "wanted")
    assert desk.step() == [Ask("w1", T, K)]


# failures


def test_failures_move_on_and_back_off(desk: Desk) -> None:
    desk.join("w1", "w2")
    desk.say("w1", "wanted")
    pauses_s, workers, last_s = [], [], desk.now_s
    for _ in range(14):
        while not (asked := desk.asked(0.5)):
            pass
        pauses_s.append(desk.now_s - last_s)
        last_s = desk.now_s
        workers += asked
        desk.say(asked[0], "failed", reason="no memory")
        assert desk.row()["state"] == "failed"
        assert desk.row()["reason"] == f"{asked[0]}: no memory"
    assert workers[:4] == ["w1", "w2", "w1", "w2"]
    for pause_s, after_s in itertools.pairwise(pauses_s[1:]):
        assert after_s == pytest.approx(min(2 * pause_s, BACKOFF_S_MAX), abs=1)
    assert pauses_s[1] == pytest.approx(BACKOFF_S, abs=1)
    assert pauses_s[-1] == pytest.approx(BACKOFF_S_MAX, abs=1)


def test_worker_says_how_long_it_must_not_be_asked(desk: Desk) -> None:
    desk.join("w1")
    desk.say("w1", "wanted")
    desk.step()
    desk.desk.report("w1", Report(T, "failed", K, "killed thrice", retry_s=60.0), desk.now_s)
    assert desk.asked(55.0) == []
    assert desk.asked(10.0) != []


def test_failure_is_shown_with_its_reason_for_as_long_as_its_pause_lasts(desk: Desk) -> None:
    desk.join("w1")
    desk.join("w2", builds=())  # could not try either
    desk.say("w1", "wanted")
    desk.step()
    report = Report(T, "failed", K, "no importer for node 3", retry_s=24 * 3600.0)
    desk.desk.report("w1", report, desk.now_s)
    for past_s in (0.0, BACKOFF_S + 1, BACKOFF_S_MAX - BACKOFF_S - 60):
        assert desk.asked(past_s) == []
        assert desk.row()["state"] == "failed"
        assert desk.row()["reason"] == "w1: no importer for node 3"
    assert desk.row()["retry_s"] == pytest.approx(59, abs=1)
    desk.join("w3")  # may try
    assert desk.asked() == ["w3"]


def test_build_that_kills_its_builders_backs_off(desk: Desk) -> None:
    deaths_s = []
    for number in range(5):
        desk.join("w1", incarnation=f"i{number}")
        desk.say("w1", "wanted")
        while not desk.asked(0.5):
            pass
        desk.say("w1", "building")
        deaths_s.append(desk.now_s)
    pauses_s = [b - a for a, b in itertools.pairwise(deaths_s)]
    assert pauses_s == pytest.approx([0.5, BACKOFF_S, 2 * BACKOFF_S, 4 * BACKOFF_S], abs=1)


def test_second_failure_report_of_one_failure_changes_nothing(desk: Desk) -> None:
    desk.join("w1")
    desk.say("w1", "wanted")
    desk.step()
    desk.say("w1", "failed")
    desk.say("w1", "failed")
    assert desk.row()["failures"] == 1


# wishes


def test_wish_that_nobody_can_build_waits_and_says_what_is_missing(desk: Desk) -> None:
    desk.desk.wish([ANY], {})
    assert desk.asked() == []
    assert desk.row()["reason"] == (
        "no worker is here that can build a plan for sm_86; none here can build any"
    )
    desk.join("w1", builds=["rtx/sm_75", "torch/cpu"])
    assert desk.asked() == []
    row = desk.row()
    assert (row["state"], row["key"]) == ("waiting", "")
    assert str(row["reason"]).endswith("; those here can build rtx/sm_75, torch/cpu")
    desk.join("w2")
    assert desk.step() == [Ask("w2", ANY, "")]


def test_wish_learns_its_key_from_the_builder(desk: Desk) -> None:
    desk.desk.wish([ANY], {})
    desk.join("w1", refs=())
    desk.step()
    desk.say("w1", "building", "")  # before it knows
    assert desk.row()["state"] == "building"
    desk.build("w1")
    row = desk.row()
    assert (row["key"], row["engine"], row["state"], row["wished"]) == (K, "rtx", "built", True)
    assert desk.asked(60.0) == []


def test_wish_without_a_key_that_fails_is_tried_by_another(desk: Desk) -> None:
    desk.desk.wish([ANY], {})
    desk.join("w1", "w2", refs=())
    assert desk.asked() == ["w1"]
    desk.say("w1", "failed", "", reason="an axis has no range")
    assert desk.row()["reason"] == "w1: an axis has no range"
    assert desk.asked(BACKOFF_S + 1) == ["w2"]


def test_plans_that_may_be_one_are_not_built_together(desk: Desk) -> None:
    other = Target("n", "7", "rtx", "sm_86")
    desk.desk.wish([ANY, other], {("m", "1"): "x", ("n", "7"): "x"})
    desk.join("w1", "w2", "w3", refs=())
    assert desk.asked() == ["w1"]
    assert "maybe the same plan" in str(desk.row(model="n")["reason"])
    desk.say("w1", "building")
    assert desk.asked() == []
    desk.say("w3", "wanted", K, other)  # the same key after all
    assert desk.asked() == []
    desk.say("w1", "built")
    assert [order.worker for order in desk.step() if isinstance(order, Ask)] == ["w2"]
    desk.say("w2", "built", K, other)
    assert {row["key"] for row in rows(desk.desk, desk.now_s)} == {K}


def test_plans_of_other_artifacts_are_built_together(desk: Desk) -> None:
    other = Target("n", "7", "rtx", "sm_86")
    desk.desk.wish([ANY, other], {("m", "1"): "x", ("n", "7"): "y"})
    desk.join("w1", "w2", refs=())
    assert desk.asked() == ["w1", "w2"]


def test_withdrawn_wish_is_forgotten(desk: Desk) -> None:
    desk.desk.wish([ANY], {})
    desk.step()
    desk.desk.wish([], {})
    desk.join("w1")
    assert desk.step() == []
    assert not rows(desk.desk, desk.now_s)


def test_wished_plan_is_looked_for_again_and_built_anew_if_it_is_lost(desk: Desk) -> None:
    desk.desk.wish([ANY], {})
    desk.join("w1", refs=())
    desk.step()
    desk.build("w1")
    assert desk.asked(LOOK_AGAIN_S - 60) == []
    assert set(desk.asked(120.0)) == {"w1"}
    assert desk.row()["state"] == "built"  # as far as anybody knows
    desk.say("w1", "building")
    assert desk.row()["state"] == "building"
    desk.say("w1", "built")
    assert (desk.row()["state"], desk.row()["wished"]) == ("built", True)


# who hears of it


def test_plan_is_told_once_to_each_worker_that_runs_the_version(desk: Desk) -> None:
    desk.join("w1", "w2")
    desk.join("w3", refs=())
    desk.join("w4", device_class="sm_90")
    desk.say("w1", "wanted")
    desk.step()
    desk.build("w1")
    assert desk.told() == [("w1", "1"), ("w2", "1")]
    assert desk.told(60.0) == []
    desk.join("w5")
    assert desk.told() == [("w5", "1")]
    desk.desk.run("w3", [("m", "1")])
    assert desk.told() == [("w3", "1")]
    desk.join("w1", incarnation="i2")
    assert desk.told() == [("w1", "1")]


def test_plan_is_told_for_every_version_that_has_its_key(desk: Desk) -> None:
    desk.join("w1", refs=[("m", "1"), ("m", "2")])
    desk.say("w1", "wanted")
    desk.say("w1", "wanted", target=T._replace(version="2"))
    assert desk.asked() == ["w1"]
    desk.build("w1")
    assert desk.told() == [("w1", "1"), ("w1", "2")]


def test_who_wants_a_plan_that_is_there_is_told(desk: Desk) -> None:
    desk.join("w1", refs=())
    desk.build("w1")
    assert desk.told() == []
    desk.say("w1", "wanted")
    assert desk.told() == [("w1", "1")]


def test_plan_that_is_wanted_again_is_built_anew_more_and_more_seldom(desk: Desk) -> None:
    desk.join("w1")
    desk.build("w1")
    began_s = []
    for _ in range(4):
        assert desk.told() == [("w1", "1")]
        desk.say("w1", "wanted")
        while not desk.asked(0.5):
            pass
        began_s.append(desk.now_s)
        desk.build("w1")
    pauses_s = [b - a for a, b in itertools.pairwise(began_s)]
    assert pauses_s == pytest.approx([BACKOFF_S, 2 * BACKOFF_S, 4 * BACKOFF_S], abs=1)


def test_refused_plan_is_neither_told_nor_built_again_and_the_reason_is_shown(desk: Desk) -> None:
    desk.join("w1", "w2")
    desk.build("w1")
    desk.say("w2", "refused", reason="the gate: 0.3 is more than 0.01")
    assert desk.step() == [Tell("w1", T, K)]
    assert desk.row()["reason"] == "w2 refused it: the gate: 0.3 is more than 0.01"
    assert desk.desk.outcomes["refused"] == 1


def test_plan_that_is_refused_and_that_nobody_here_built_has_a_row(desk: Desk) -> None:
    desk.join("w1")
    desk.say("w1", "refused", reason="the gate: 0.3 is more than 0.01")
    assert desk.step(3 * BACKOFF_S_MAX) == []
    row = desk.row()
    assert (row["state"], row["worker"]) == ("refused", "w1")
    assert row["reason"] == "w1 refused it: the gate: 0.3 is more than 0.01"
    desk.say("w1", "unwanted")  # it loads it now
    assert not rows(desk.desk, desk.now_s)


# bounds


def test_reports_of_strangers_and_of_other_releases_change_nothing(desk: Desk) -> None:
    desk.say("w9", "wanted")
    desk.join("w1")
    desk.say("w1", "wanted", "")
    desk.say("w1", "building", "")
    desk.say("w1", "pondering", "")
    assert not desk.desk.jobs


def test_jobs_are_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_desk, "JOBS_MAX", 10)
    desk.join("w1", builds=())
    for number in range(20):
        desk.say("w1", "built", f"k{number}")
        desk.now_s += 1
    assert [*desk.desk.jobs] == [f"k{number}" for number in range(10, 20)]
    for number in range(20):
        desk.say("w1", "wanted", f"n{number}", T._replace(version=str(number + 1)))
    assert len(desk.desk.jobs) == 10


def test_stall_of_the_controller_costs_nobody_the_build(desk: Desk) -> None:
    desk.join("w1", "w2")
    desk.say("w1", "wanted")
    desk.step()
    desk.say("w1", "building")
    desk.step()
    desk.now_s += 10 * SILENCE_S_MAX
    assert desk.asked() == ["w1"]
    assert desk.desk.outcomes["lost"] == 0
