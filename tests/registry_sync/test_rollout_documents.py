"""What lint says of a rollout, and which states are none."""

from __future__ import annotations

import pytest
import yaml

from registry_sync.documents import BadDocument, EndpointState, parse_spec, problems, read_state
from registry_sync.documents import write as write_document
from registry_sync.rollout_terms import Guard, Rollout, Shadow, Step

SPEC = """
endpoint: m
variants:
  - {name: stable, model: m, version: 1, weight: 100}
  - {name: canary, model: m, version: 2, weight: 0}
rollout:
  id: r1
  steps: [{weight: 5}, {weight: 50, hold_s: 600}, {weight: 100, hold_s: 0}]
  guard: {slower_than_ms: 50, alpha: 0.01, then: pause}
  shadow: {}
"""


def lint(path: str, value: object) -> list[str]:
    """Return what is wrong once the value at `path` is another one; ``...`` takes it away."""
    plain = yaml.safe_load(SPEC)
    *folders, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    place = plain
    for key in folders:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return problems(yaml.safe_dump(plain))


def test_what_is_left_out_takes_the_defaults() -> None:
    rollout = parse_spec(SPEC).rollout
    assert rollout == Rollout(
        "r1",
        steps=(Step(5, 60), Step(50, 600), Step(100, 0)),
        guard=Guard(slower_than_ms=50, alpha=0.01, then="pause"),
        shadow=Shadow(0.1, 50),
    )
    short = parse_spec(SPEC[: SPEC.index("  id:")].replace("rollout:", "rollout: {}")).rollout
    assert short is not None
    assert [step.weight for step in short.steps] == [1, 5, 25, 50, 100]
    assert {step.hold_s for step in short.steps} == {60}
    assert short.guard == Guard(True, None, None, 0.5, 0.05, 20, "rollback")


def test_a_file_without_an_id_names_the_same_rollout_each_time_it_is_set() -> None:
    def id_of(text: str) -> str:
        rollout = parse_spec(text.replace("  id: r1\n", "")).rollout
        assert rollout is not None
        return rollout.id

    assert id_of(SPEC) == id_of(SPEC.replace("hold_s: 600", "hold_s: 6"))
    assert id_of(SPEC) != id_of(SPEC.replace("version: 2", "version: 3"))


PROBLEMS = [
    ("rollout", True, "$.rollout: expected a mapping or null, got true"),
    ("rollout.steps", [], "$.rollout.steps: 0 items; allowed are 1 to 20"),
    ("rollout.steps", [5, 100], "$.rollout.steps[0]: expected a mapping, got 5"),
    ("rollout.steps.0.weight", 0, "$.rollout.steps[0].weight: 0 is out of range"),
    ("rollout.steps.0.weight", 50, "$.rollout.steps[1].weight: 50 is not more than the step"),
    ("rollout.steps.2.weight", 90, "$.rollout.steps[2].weight: the last step is 90; it must be"),
    ("rollout.steps.2.weight", 101, "$.rollout.steps[2].weight: 101 is out of range"),
    ("rollout.steps.1.hold_s", -1, "$.rollout.steps[1].hold_s: -1 is out of range"),
    ("rollout.steps.1.hold", 60, "$.rollout.steps[1].hold: unknown field; did you mean hold_s?"),
    ("rollout.guard.alpha", 0.6, "$.rollout.guard.alpha: 0.6 is out of range"),
    ("rollout.guard.then", "stop", '$.rollout.guard.then: expected "pause" or "rollback"'),
    ("rollout.guard.errors", 1, "$.rollout.guard.errors: expected true or false, got 1"),
    ("rollout.guard", {"errors": False}, "$.rollout.guard.errors: false: nothing would watch the"),
    ("rollout.guard.outcomes_min", 0, "$.rollout.guard.outcomes_min: 0 is out of range"),
    ("rollout.shadow.sample", 0, "$.rollout.shadow.sample: 0 is out of range"),
    ("rollout.wish", "go", "$.rollout.wish: expected"),
    ("rollout.candidate", "blue", '$.rollout.candidate: there is no variant "blue"; there are'),
    ("rollout.candidate", "stable", '$.rollout.candidate: "stable" is the baseline as well'),
    ("rollout.baseline", "Bad Name", "$.rollout.baseline: variant 'Bad Name' is not a name"),
    ("variants.1", ..., '$.rollout.candidate: there is no variant "canary"'),
]


@pytest.mark.parametrize(("path", "value", "why"), PROBLEMS)
def test_each_problem_has_its_path_and_the_way_out(path: str, value: object, why: str) -> None:
    found = lint(path, value)
    assert any(line.startswith(why) for line in found), found


@pytest.mark.parametrize("other", ["slower_than_ms", "latency_ratio_max"])
def test_a_guard_may_watch_something_else_than_errors(other: str) -> None:
    assert lint("rollout.guard", {"errors": False, other: 2}) == []
    assert lint("rollout.guard", {"errors": False, other: None}) != []


def test_before_a_rollout_the_baseline_has_everything() -> None:
    text = SPEC.replace("weight: 100}\n  - ", "weight: 90}\n  - ").replace(
        "weight: 0}", "weight: 10}"
    )
    (problem,) = problems(text)
    assert problem == '$.variants[1].weight: 10: before a rollout the baseline "stable" has 100'


def test_a_state_gives_all_of_the_traffic_to_somebody() -> None:
    for weights in ({}, {"stable": 100.0}, {"stable": 99.9, "canary": 0.1}):
        state = EndpointState("m", 1, weights)
        assert read_state(write_document(state)) == state
    for weights in ({"stable": 0.0}, {"stable": 90.0}, {"stable": 90.0, "canary": 11.0}):
        with pytest.raises(BadDocument, match=r"\$\.weights: weights add up to"):
            read_state(write_document(EndpointState("m", 1, weights)))
