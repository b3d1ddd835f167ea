"""What endpoints allow of a version together, and which of them the clock wants warm."""

from __future__ import annotations

from typing import Any

import pytest

from pool.scaling.due import timed, why_due
from pool.scaling.limits import UNSERVED_IDLE_S, limits_of, owners_of
from pool.scaling.signals import Limits
from registry_sync.documents import EndpointSpec, EndpointState, Scale, Variant

M1, M2 = ("m", "1"), ("m", "2")


def spec(name: str = "e", *arms: tuple[str, float], **scale: Any) -> EndpointSpec:
    """An endpoint of (version, weight) over the model `m`."""
    variants = tuple(Variant(f"v{v}", "m", v, weight) for v, weight in arms or (("1", 100.0),))
    return EndpointSpec(name, variants, scale=Scale(**scale))


def together(*specs: EndpointSpec) -> Limits:
    found = limits_of(specs, {})
    assert found == limits_of(specs[::-1], {})
    return found[M1]


def test_limits_are_those_of_the_document() -> None:
    assert limits_of([spec()], {}) == {M1: Limits()}
    given: dict[str, Any] = {
        "replicas_min": 1, "replicas_max": 3, "idle_s": 9.0, "cold_start_cost_s": 60.0,
        "replica_hours_per_day_max": 30.0, "forecast": "observe",
    }  # fmt: skip
    assert limits_of([spec(**given)], {}) == {M1: Limits(**given)}


def test_arm_without_weight_asks_for_nothing_and_may_sleep() -> None:
    both = spec("e", ("1", 100.0), ("2", 0.0), replicas_min=2)
    found = limits_of([both], {}, due={"e"})
    assert (found[M1].replicas_min, found[M1].is_due, found[M1].idle_s) == (2, True, None)
    assert (found[M2].replicas_min, found[M2].is_due) == (0, False)
    assert found[M2].idle_s == UNSERVED_IDLE_S


def test_effective_weight_decides_and_not_the_one_of_the_spec() -> None:
    found = limits_of([spec("e", ("1", 100.0), ("2", 0.0))], {"e": {"v1": 0.0, "v2": 100.0}})
    assert (found[M1].idle_s, found[M2].idle_s) == (UNSERVED_IDLE_S, None)


def test_rollout_keeps_an_arm_without_weight_as_well() -> None:
    both = spec("e", ("1", 100.0), ("2", 0.0))
    found = limits_of([both], {}, kept={M1: 3, M2: 1, ("m", "9"): 1})
    assert [found[ref].replicas_kept for ref in (M1, M2)] == [3, 1]
    assert found.keys() == {M1, M2}
    assert (found[M1].replicas_least, found[M1].replicas_min) == (3, 0)


def test_arm_without_weight_takes_nothing_from_another_endpoint() -> None:
    own = spec("f", idle_s=5.0, replicas_max=1)
    assert together(own, spec("e", ("2", 100.0), ("1", 0.0))) == limits_of([own], {})[M1]


def test_whoever_wants_more_of_a_version_gets_it() -> None:
    assert together(spec(idle_s=9.0), spec("f", idle_s=60.0)).idle_s == 60.0
    assert together(spec(idle_s=9.0), spec("f")).idle_s is None
    assert together(spec(replicas_min=1), spec("f", replicas_min=3)).replicas_min == 3
    assert together(spec(replicas_max=1), spec("f", replicas_max=9)).replicas_max == 9
    assert together(spec(cold_start_cost_s=5.0), spec("f")).cold_start_cost_s == 3600.0
    assert together(spec(forecast="off"), spec("f", forecast="observe")).forecast == "observe"


def test_budgets_add_up_and_hold_only_if_every_endpoint_has_one() -> None:
    one, other = (spec(name, replica_hours_per_day_max=5.0) for name in "ef")
    assert together(one, other).replica_hours_per_day_max == 10.0
    assert together(one, spec("f")).replica_hours_per_day_max is None


def test_version_is_due_if_any_of_its_endpoints_is() -> None:
    specs = [spec("e"), spec("f")]
    assert [limits_of(specs, {}, due)[M1].is_due for due in ((), {"f"}, {"g"})] == [
        *(False, True, False)
    ]


def test_version_of_a_dedicated_endpoint_is_its_own() -> None:
    assert owners_of([spec("f", dedicated=True), spec("e")]) == {M1: "f"}
    assert owners_of([spec("f", dedicated=True), spec("e", dedicated=True)]) == {M1: "e"}
    assert owners_of([spec()]) == {}


# due

HOURS = "Mon-Fri 08:00-18:00 UTC"
EIGHT = 1_795_766_400.0  # Friday, 27 November 2026, 08:00 UTC


@pytest.mark.parametrize(
    ("after_s", "lead_s", "why"),
    [(-1, 0, ""), (-1, 2, "schedule"), (0, 0, "schedule"), (36_000, 0, ""), (36_000, 5, "")],
)
def test_endpoint_is_due_in_its_hours_and_a_wake_before(
    after_s: float, lead_s: float, why: str
) -> None:
    assert why_due(HOURS, 0.0, EIGHT + after_s, lead_s) == why


def test_endpoint_is_due_until_the_time_that_was_asked_for() -> None:
    assert [why_due("", 50.0, unix_s) for unix_s in (49.9, 50.0)] == ["request", ""]
    assert why_due(HOURS, EIGHT + 5, EIGHT) == "request"


def test_only_endpoints_with_a_schedule_or_a_request_are_looked_at() -> None:
    specs = {"e": spec("e"), "f": spec("f", warm=HOURS), "g": spec("g")}
    states = {"g": EndpointState("g", 1, {}, warm_until_unix_s=9.0), "e": EndpointState("e", 1, {})}
    assert timed(specs, states) == {"f": (HOURS, 0.0), "g": ("", 9.0)}
