"""Which engines a worker has, and what is said of those that it cannot have."""

from __future__ import annotations

import pytest

from pool.engines.base import EngineError, reason_of, without_paths
from pool.engines.choice import portable
from pool.engines.registry import BadEngineName, find_engines, find_plan_engines


def test_onnxruntime_is_always_there() -> None:
    assert [engine.name for engine in find_engines()] == ["onnxruntime", "torch"]


def test_an_engine_is_found_by_its_name() -> None:
    engines = find_engines(["tests.support.counting_engine:CountingEngine"])
    assert portable(engines, "counter", "auto").name == "counter"
    assert portable(engines, "onnx", "auto").name == "onnxruntime"


def test_an_engine_that_the_operator_names_comes_first() -> None:
    engines = find_engines(["tests.pool.test_engine_registry:OtherOnnx"])
    assert portable(engines, "onnx", "auto").name == "other"


def test_a_format_that_nothing_runs_is_refused_with_those_that_are_run() -> None:
    with pytest.raises(EngineError, match=r'no engine .* "plan"; it runs: onnx'):
        portable(find_engines(), "plan", "auto")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("acme", 'expected "module:Class"'),
        (":Engine", 'expected "module:Class"'),
        ("acme.no_such_module:Engine", "cannot import acme.no_such_module"),
        ("pool.queueing.ticket:NoSuchClass", 'pool.queueing.ticket has no "NoSuchClass"'),
        ("builtins:dict", 'is no engine: it has no "name"'),
        ("tests.pool.test_engine_registry:HalfPlanEngine", 'it has no "is_on_request"'),
    ],
)
def test_a_name_that_leads_nowhere_says_why(name: str, problem: str) -> None:
    with pytest.raises(BadEngineName, match=problem):
        find_engines([name])


class OtherOnnx:
    name = "other"
    formats = frozenset({"onnx"})
    probe = load = None


class HalfPlanEngine:
    name = "half"
    formats = frozenset({"onnx"})
    probe = load_plan = None


class OtherPlans(HalfPlanEngine):
    is_on_request = False
    identity = build = None


def test_an_engine_that_needs_plans_is_found_as_one_and_as_no_other() -> None:
    names = ["tests.pool.test_engine_registry:OtherPlans"]
    found = [engine.name for engine in find_plan_engines(names)]
    assert found[:3] == ["half", "tensorrt", "tensorrt_rtx"]
    assert [engine.name for engine in find_engines(names)] == ["onnxruntime", "torch"]


class OtherRtx(OtherPlans):
    name = "tensorrt_rtx"


def test_an_engine_that_the_operator_names_replaces_the_built_in_one_of_its_name() -> None:
    found = find_plan_engines(["tests.pool.test_engine_registry:OtherRtx"])
    assert [type(one) for one in found if one.name == "tensorrt_rtx"] == [OtherRtx]


def test_a_path_in_an_error_is_cut_to_its_last_part() -> None:
    text = 'File "/usr/lib/x.py": cannot open /tmp/a/b.bin, or /home; node /encoder/MatMul'
    assert without_paths(text) == 'File "x.py": cannot open b.bin, or /home; node /encoder/MatMul'


def test_a_reason_is_one_line_of_bounded_length() -> None:
    assert reason_of(EngineError("two\n lines")) == "two lines"
    assert reason_of(KeyError("y")) == "KeyError: 'y'"
    assert reason_of(ValueError()) == "ValueError"
    assert len(reason_of(ValueError("x" * 5000))) == 1000
