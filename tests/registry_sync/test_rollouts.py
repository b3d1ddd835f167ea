"""What a rollout leaves to wish for: how one begins, goes on and ends; pure functions."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from registry_sync.documents import Assign, EndpointSpec, EndpointState, Variant, check_spec
from registry_sync.rollout_terms import (
    Guard,
    Phase,
    Rollout,
    RolloutState,
    Shadow,
    Step,
    Wish,
)
from registry_sync.rollouts import (
    NoRollout,
    RolloutLive,
    RolloutOver,
    RolloutRefused,
    RolloutUnfit,
    check_replaced,
    effective_weights,
    is_live,
    is_same_rollout,
    settled,
    shares_by_version,
    started,
    wished,
)


def arms(*given: tuple[str, str, float]) -> tuple[Variant, ...]:
    return tuple(Variant(name, "m", version, weight) for name, version, weight in given)


ONE = EndpointSpec("m", arms(("main", "1", 100)), revision=4, deadline_ms=7)
TWO = EndpointSpec("m", arms(("b", "2", 10), ("a", "1", 90)), revision=4)
RUNS = started(ONE, None, id="r1", version="2")


def state(phase: Phase, candidate: float = 0, *, id: str = "r1", reason: str = "") -> EndpointState:
    weights = {"stable": 100 - candidate, "canary": candidate}
    return EndpointState("m", 5, weights, rollout=RolloutState(id, phase, reason=reason))


def shown(spec: EndpointSpec) -> list[tuple[str, str, float]]:
    return [(arm.name, arm.version, arm.weight) for arm in spec.variants]


# --- the beginning ---


def test_one_arm_becomes_stable_beside_a_canary_without_weight() -> None:
    assert shown(RUNS) == [("stable", "1", 100), ("canary", "2", 0)]
    assert RUNS.rollout == Rollout("r1")  # the defaults that need no reading
    assert replace(RUNS, variants=ONE.variants, rollout=None) == ONE  # nothing else changes
    check_spec(RUNS)


def test_two_arms_keep_their_names_and_the_one_with_the_version_takes_over() -> None:
    spec = started(TWO, None, id="r1", version="2")
    assert spec.rollout is not None
    assert (spec.rollout.baseline, spec.rollout.candidate) == ("a", "b")
    assert shown(spec) == [("a", "1", 100), ("b", "2", 0)]
    check_spec(spec)
    spec = started(TWO, None, id="r1", version="1")
    assert shown(spec) == [("b", "2", 100), ("a", "1", 0)]


def test_terms_are_taken_over_and_a_missing_100_is_added() -> None:
    guard = Guard(slower_than_ms=50, then="pause")
    spec = started(
        ONE, None, id="r1", version="2", steps=(2, 20), hold_s=5, shadow=Shadow(1), guard=guard
    )
    assert spec.rollout is not None
    assert spec.rollout.steps == (Step(2, 5), Step(20, 5), Step(100, 5))
    assert (spec.rollout.guard, spec.rollout.shadow) == (guard, Shadow(1))
    whole = started(ONE, None, id="r1", version="2", steps=(100,))
    assert whole.rollout is not None
    assert whole.rollout.steps == (Step(100),)


@pytest.mark.parametrize(
    ("spec", "version", "why"),
    [
        (ONE, "1", "version 1 has all traffic"),
        (TWO, "3", "b (version 2), a (version 1)"),
        (replace(TWO, variants=arms(("a", "1", 50), ("b", "1", 50))), "1", "two of which one"),
        (replace(TWO, variants=arms(("a", "1", 0), ("b", "2", 100))), "2", "has all traffic"),
        (
            replace(TWO, variants=arms(("a", "1", 50), ("b", "2", 25), ("c", "3", 25))),
            "3",
            "needs one variant, or two",
        ),
    ],
)
def test_arms_that_do_not_say_what_to_replace_are_refused(
    spec: EndpointSpec, version: str, why: str
) -> None:
    with pytest.raises(RolloutUnfit) as raised:
        started(spec, None, id="r1", version=version)
    assert why in str(raised.value)


def test_another_one_starts_only_after_the_end() -> None:
    live = (None, state("running"), state("paused"), state("promoted", 100, id="older"))
    for found in live:
        with pytest.raises(RolloutLive, match=r"to version 2 runs.*rollout abort m"):
            started(RUNS, found, id="r2", version="3")
    promoted = started(RUNS, state("promoted", 100), id="r2", version="3")
    assert shown(promoted) == [("stable", "2", 100), ("canary", "3", 0)]
    rolled_back = started(RUNS, state("rolled_back"), id="r2", version="3")
    assert shown(rolled_back) == [("stable", "1", 100), ("canary", "3", 0)]
    again = started(RUNS, state("rolled_back"), id="r2", version="2")
    assert again.rollout is not None
    assert again.rollout.id == "r2"


def test_what_an_ended_rollout_led_to_is_one_arm() -> None:
    assert settled(ONE, None) is ONE
    assert shown(settled(RUNS, state("promoted", 100))) == [("stable", "2", 100)]
    assert shown(settled(RUNS, state("rolled_back"))) == [("stable", "1", 100)]
    assert settled(RUNS, state("rolled_back")).rollout is None
    with pytest.raises(RolloutLive):
        settled(RUNS, state("running", 50))


# --- wishes ---

GOES = [
    (None, "run", "pause"),
    (None, "run", "abort"),
    ("running", "run", "promote"),
    ("paused", "pause", "run"),
    ("paused", "pause", "promote"),
    ("running", "promote", "run"),  # while it waits to be warm enough
    ("running", "promote", "abort"),
    ("promoted", "run", "abort"),  # the baseline is warm still
]
STANDS = [
    ("paused", "pause", "pause"),
    ("promoted", "run", "promote"),
    ("rolled_back", "run", "abort"),
    ("running", "abort", "abort"),
]
REFUSED = [
    ("rolled_back", "run", "promote", "3 of 5 failed"),
    ("rolled_back", "run", "run", "rollout start m"),
    ("promoted", "run", "pause", "rollout abort m"),
    ("promoted", "abort", "promote", "being aborted"),
    ("running", "abort", "run", "being aborted"),
]


def wishing(phase: Phase | None, before: Wish) -> tuple[EndpointSpec, EndpointState | None]:
    assert RUNS.rollout is not None
    spec = replace(RUNS, rollout=replace(RUNS.rollout, wish=before))
    return spec, None if phase is None else state(phase, reason="3 of 5 failed")


@pytest.mark.parametrize(("phase", "before", "wish"), GOES)
def test_a_wish_is_written_beside_all_that_stays(
    phase: Phase | None, before: Wish, wish: Wish
) -> None:
    spec, found = wishing(phase, before)
    after = wished(spec, found, wish)
    assert after.rollout is not None
    assert after.rollout.wish == wish
    assert is_same_rollout(spec, after)
    assert replace(after, rollout=spec.rollout) == spec


@pytest.mark.parametrize(("phase", "before", "wish"), STANDS)
def test_what_is_wished_or_came_about_already_changes_nothing(
    phase: Phase, before: Wish, wish: Wish
) -> None:
    spec, found = wishing(phase, before)
    assert wished(spec, found, wish) == spec


@pytest.mark.parametrize(("phase", "before", "wish", "why"), REFUSED)
def test_a_rollout_that_has_ended_takes_no_other_wish(
    phase: Phase, before: Wish, wish: Wish, why: str
) -> None:
    spec, found = wishing(phase, before)
    with pytest.raises(RolloutOver) as raised:
        wished(spec, found, wish)
    assert why in str(raised.value)


def test_to_resume_what_a_guard_has_paused_overrules_what_it_found() -> None:
    done = RolloutState("r1", "paused", 2, 3, harm="5 of 9 calls failed")
    found = EndpointState("m", 5, {"stable": 95, "canary": 5}, rollout=done)
    after = wished(RUNS, found, "run")
    assert after.rollout is not None
    assert (after.rollout.wish, after.rollout.overruled) == ("run", 3)
    assert is_same_rollout(RUNS, after)
    check_replaced(RUNS, after, found, may_abort=False)
    again = wished(after, state("paused"), "pause")
    assert again.rollout is not None
    assert again.rollout.overruled == 3


def test_without_a_rollout_nothing_can_be_wished() -> None:
    with pytest.raises(NoRollout, match=r"'m' has no rollout.*rollout start m"):
        wished(ONE, None, "abort")


# --- what a later revision may change ---


def check(
    new: EndpointSpec, found: EndpointState | None = None, *, may_abort: bool = False
) -> type[RolloutRefused] | None:
    try:
        check_replaced(RUNS, new, found, may_abort=may_abort)
    except RolloutRefused as error:
        return type(error)
    return None


def test_a_live_rollout_keeps_its_arms_and_terms() -> None:
    assert RUNS.rollout is not None
    same = replace(RUNS, deadline_ms=99, variants=RUNS.variants[::-1])
    other_version = replace(RUNS, variants=arms(("stable", "1", 100), ("canary", "3", 0)))
    other_steps = replace(RUNS, rollout=replace(RUNS.rollout, steps=(Step(100),)))
    another = replace(other_version, rollout=Rollout("r2"))
    for found in (None, state("running", 25), state("paused", 25)):
        assert check(same, found) is None
        assert check(replace(RUNS, rollout=replace(RUNS.rollout, wish="abort")), found) is None
        for new in (ONE, other_version, other_steps, another):
            assert check(new, found) is RolloutLive
        for new in (ONE, another):
            assert check(new, found, may_abort=True) is None
    # A version that was never watched must not get the weights of the one that was.
    for found in (None, state("running", 25), state("promoted", 100)):
        assert check(other_version, found, may_abort=True) is RolloutUnfit
        assert check(other_steps, found, may_abort=True) is RolloutUnfit
    assert check(ONE, state("promoted", 100)) is None
    assert check(another, state("rolled_back")) is None


def option(name: str, value: str) -> str:
    return f"<{name}={value}>"


def test_what_would_end_a_rollout_is_named_with_the_ways_out() -> None:
    assert RUNS.rollout is not None
    other = replace(RUNS, variants=arms(("stable", "1", 100), ("canary", "3", 0)))
    steps = replace(RUNS, rollout=replace(RUNS.rollout, steps=(Step(100),), wish="pause"))
    weight = replace(RUNS, variants=arms(("stable", "1", 90), ("canary", "2", 10)))
    alone = replace(RUNS, variants=arms(("stable", "1", 100)), rollout=None)
    for new, named, besides in (
        (alone, "$.variants[canary], $.rollout", ""),
        (replace(other, rollout=Rollout("r2")), "$.variants[canary].version, $.rollout.id", ""),
        (steps, "$.rollout.steps", " and another `rollout.id`, or without `rollout`"),
        (
            weight,
            "$.variants[stable].weight, $.variants[canary].weight",
            " and another `rollout.id`, or without `rollout`",
        ),
    ):
        with pytest.raises(RolloutLive) as raised:
            check_replaced(RUNS, new, None, may_abort=False)
        assert raised.value.told(option) == (
            f"{named}: a rollout of 'm' to version 2 runs, and this would end it; wait for its "
            "end, or `tidepool rollout promote m`, or `tidepool rollout abort m`, or end it with "
            f"<abort_rollout=true>{besides}"
        )
    with pytest.raises(RolloutLive) as raised:
        check_replaced(RUNS, replace(RUNS, assign=Assign(salt="x")), None, may_abort=False)
    assert raised.value.told(option).endswith(
        "wait for its end, or end it with <abort_rollout=true> and without `rollout`"
    )
    with pytest.raises(RolloutLive) as raised:
        started(RUNS, None, id="r2", version="3")  # which cannot end another
    assert "abort_rollout" not in raised.value.told(option)


def test_a_long_list_of_what_is_in_the_way_is_cut() -> None:
    many = replace(RUNS, variants=arms(*((f"v{n}", "3", 20) for n in range(5))), rollout=None)
    with pytest.raises(RolloutLive, match=r"\$\.variants\[v1\], …: a rollout"):
        check_replaced(RUNS, many, None, may_abort=False)


def test_a_live_rollout_keeps_its_units() -> None:
    for assign in (Assign(by=("key",), salt="m"), Assign(salt="other")):
        new = replace(RUNS, assign=assign)
        assert check(new, state("running", 25), may_abort=True) is RolloutLive
        assert check(new, state("promoted", 100)) is None
    shown = replace(RUNS, assign=Assign(salt="m", header_may_pick=True, exposure="plain"))
    assert check(shown, state("running", 25)) is None


def test_an_id_that_has_been_here_is_not_taken_for_a_new_rollout() -> None:
    check_replaced(ONE, RUNS, None, may_abort=False)
    check_replaced(ONE, RUNS, state("promoted", 100, id="older"), may_abort=False)
    with pytest.raises(RolloutUnfit, match=r"\$\.rollout\.id: .*'r1' has been here.*promoted"):
        check_replaced(ONE, RUNS, state("promoted", 100), may_abort=True)


# --- which weights hold ---


def test_weights_hold_for_as_long_as_the_state_is_about_the_rollout() -> None:
    own = {"stable": 100.0, "canary": 0.0}
    assert effective_weights(RUNS, None) == own
    assert effective_weights(RUNS, state("running", 25)) == {"stable": 75, "canary": 25}
    later = replace(RUNS, revision=9, deadline_ms=1)
    assert effective_weights(later, state("running", 25)) == {"stable": 75, "canary": 25}
    assert effective_weights(RUNS, state("running", 25, id="older")) == own
    assert effective_weights(ONE, state("running", 25)) == {"main": 100}


def test_what_a_version_has_is_told_whatever_its_arm_is_called() -> None:
    assert shares_by_version(RUNS, state("running", 25)) == {"1": 75, "2": 25}
    assert shares_by_version(TWO, None) == {"1": 90, "2": 10}
    assert shares_by_version(replace(TWO, variants=arms(("canary", "1", 100))), None) == {"1": 100}


def test_an_end_is_promotion_or_rollback_and_a_promotion_can_be_aborted() -> None:
    assert RUNS.rollout is not None
    aborted = replace(RUNS, rollout=replace(RUNS.rollout, wish="abort"))
    assert not is_live(ONE, state("running"))
    assert is_live(RUNS, None)
    assert is_live(RUNS, state("promoted", 100, id="older"))
    assert not is_live(RUNS, state("promoted", 100))
    assert is_live(aborted, state("promoted", 100))
    assert not is_live(aborted, state("rolled_back"))
