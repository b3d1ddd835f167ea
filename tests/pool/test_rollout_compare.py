"""How a candidate's answer is compared, and how the comparisons of many workers become one."""

from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest

from pool.rollouts.compare import ERROR_MAX, Comparison, bucket_of, compare
from pool.rollouts.shadow_view import (
    PROCESSES_MAX,
    ROLLOUTS_MAX,
    WORST_MAX,
    ShadowView,
    worst_first,
)
from pool.wire.control import ShadowCount, ShadowExample, ShadowReport
from pool.wire.histogram import ERROR_BOUNDS, ERROR_BUCKETS

NAN, INF = float("nan"), float("inf")


def two(
    want: object, have: object, datatype: str = "FP32", *, is_batched: bool = True
) -> Comparison:
    """Compare two values of one output."""
    dtype = {"FP32": np.float32, "INT64": np.int64, "BOOL": np.bool_, "BYTES": object}[datatype]
    one = {"y": np.array(want, dtype)}
    other = {"y": np.array(have, dtype)}
    return compare(one, other, {"y": datatype}, {"y": datatype}, is_batched=is_batched)


def test_the_same_answer_differs_in_nothing() -> None:
    assert two([[0.1, 0.9], [0.7, 0.3]], [[0.1, 0.9], [0.7, 0.3]]) == Comparison(rows=2)
    assert two([[NAN, INF, 1.0]], [[NAN, INF, 1.0]]).relative_error == 0.0
    assert two([[b"a", b""]], [[b"a", b""]], "BYTES") == Comparison()
    assert two(np.zeros((0, 3)), np.zeros((0, 3))) == Comparison()


def test_an_error_is_told_in_parts_of_the_largest_value_of_its_row() -> None:
    found = two([[4.0, 1.0], [100.0, 0.0]], [[4.0, 1.4], [101.0, 0.0]])
    assert found.relative_error == pytest.approx(0.1)
    assert (found.top1_off, found.detail) == (0, 'output "y" is off by 0.1')
    # A row that is as good as zero beside the others is measured by them.
    assert two([[1000.0], [1e-9]], [[1000.0], [1e-3]]).relative_error == pytest.approx(
        1e-3, rel=1e-4
    )


@pytest.mark.parametrize(
    ("want", "have"), [(1.0, NAN), (NAN, 1.0), (INF, 1.0), (1.0, INF), (INF, -INF), (1e-38, 3e38)]
)
def test_what_is_beyond_all_measure_is_the_largest_error(want: float, have: float) -> None:
    assert two([[1.0, want]], [[1.0, have]]).relative_error == ERROR_MAX


def test_the_largest_value_elsewhere_is_counted_by_row_and_named() -> None:
    found = two([[0, 1, 0], [5, 1, 0], [1, 1, 0]], [[0, 1, 0], [5, 1, 6], [0, 1, 0]])
    assert (found.rows, found.top1_off) == (3, 1)  # in the last row both are the largest
    assert found.detail == 'output "y": the largest value of row 1 is at 2, not at 0'
    assert two([[1.0, 2.0]], [[NAN, 2.0]]).detail.endswith("row 0 is no number")
    assert two([[NAN, 2.0], [1.0, 2.0]], [[NAN, 2.0], [1.0, 2.0]]).rows == 1


def test_whole_numbers_texts_and_truth_are_compared_without_a_place() -> None:
    assert two([3, 0], [7, 0], "INT64") == Comparison(
        relative_error=pytest.approx(4 / 3), detail='output "y" is off by 1.33'
    )
    assert two([0], [1], "INT64").relative_error == 1.0
    assert two([[True, False]], [[True, True]], "BOOL").relative_error == 1.0
    assert two([[b"cat", b"dog"]], [[b"cat", b"cow"]], "BYTES").relative_error == 1.0


def test_half_precision_is_told_by_its_value() -> None:
    bits = (np.array([[1.0, 2.0]], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    other = (np.array([[1.0, 3.0]], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    found = compare({"y": bits}, {"y": other}, {"y": "BF16"}, {"y": "BF16"}, is_batched=True)
    assert found.relative_error == pytest.approx(0.5)
    largest = np.array([[65504.0, -65504.0]], np.float16)
    found = compare({"y": largest}, {"y": -largest}, {"y": "FP16"}, {"y": "FP16"}, is_batched=True)
    assert found.relative_error == pytest.approx(2.0)  # no overflow on the way


def test_a_model_without_a_batch_axis_answers_one_row() -> None:
    assert two([0.1, 0.9], [0.9, 0.1], is_batched=False).top1_off == 1
    assert two([0.1, 0.9], [0.9, 0.1], is_batched=True).rows == 0


@pytest.mark.parametrize(
    ("have", "types", "why"),
    [
        ({"y": np.zeros((1, 3), np.float32)}, {"y": "FP32"}, 'output "y" has shape [1, 3], not'),
        ({"y": np.zeros((1, 2), np.float32)}, {"y": "FP16"}, 'output "y" is FP16, not FP32'),
        ({"z": np.zeros((1, 2), np.float32)}, {"z": "FP32"}, 'outputs are "z", not "y"'),
        ({}, {"y": "FP32"}, 'outputs are none, not "y"'),
    ],
)
def test_other_tensors_are_unlike(
    have: dict[str, np.ndarray], types: dict[str, str], why: str
) -> None:
    want = {"y": np.zeros((1, 2), np.float32), "undeclared": np.zeros(1)}
    found = compare(want, have, {"y": "FP32"}, types, is_batched=True)
    assert found.unlike.startswith(why)
    assert (found.rows, found.relative_error) == (0, 0.0)


def test_errors_fall_into_buckets_that_hold_their_bound() -> None:
    assert [bucket_of(error) for error in (0.0, 1e-9, 1e-6, 0.015, 10.0, ERROR_MAX)] == [
        0, 1, 1, 6, ERROR_BUCKETS - 2, ERROR_BUCKETS - 1,
    ]  # fmt: skip


def counted(dice: random.Random) -> ShadowCount:
    """Draw a count as a worker would report it."""
    errors = [dice.randrange(5) for _ in range(ERROR_BUCKETS)]
    alike, unlike, failed, dropped = sum(errors), dice.randrange(3), dice.randrange(3), 7
    worst = [
        ShadowExample(f"r{dice.random()}", "d", dice.random(), "", kind)
        for kind in ("failed", "unlike", "top1", "values")
        for _ in range(WORST_MAX)
    ]
    return ShadowCount(
        "e/r", "m/1", "m/2", alike + unlike + failed + dropped, dropped, failed, alike + unlike,
        unlike, 9, 2, float(alike), 1.5, tuple(errors), worst_first(worst), "", 3,
    )  # fmt: skip


def test_the_last_report_of_every_process_counts_once() -> None:
    dice = random.Random(1)
    view = ShadowView()
    one, other, later = counted(dice), counted(dice), counted(dice)
    for incarnation, count in [("a", one), ("b", other), ("a", one), ("a", later), ("b", other)]:
        view.take(incarnation, ShadowReport((count,)))
    found = view.seen("e", "r")
    assert found is not None
    for part in ("offered", "dropped", "absent", "failed", "compared", "unlike", "top1_off"):
        assert found[part] == getattr(other, part) + getattr(later, part)
    assert found["error_mean"] == 1.0
    kinds = [example["kind"] for example in found["worst"]]
    assert kinds == [k for k in ("failed", "unlike", "top1", "values") for _ in range(WORST_MAX)]
    everybody = sorted(
        [e.relative_error for e in (*other.worst, *later.worst) if e.kind == "top1"], reverse=True
    )
    assert [e["relative_error"] for e in found["worst"] if e["kind"] == "top1"] == (
        everybody[:WORST_MAX]
    )
    msgspec.json.encode(found)


def test_nothing_is_known_of_other_rollouts_nor_after_a_reset() -> None:
    view = ShadowView()
    view.take("a", ShadowReport((ShadowCount("e/r", "m/1", "m/2", 5, 5),)))
    assert view.seen("e", "other") is None
    assert view.seen("other", "r") is None
    found = view.seen("e", "r")
    assert found is not None
    assert (found["offered"], found["error_max"], found["error_p99"]) == (5, None, None)
    view.reset()
    assert view.seen("e", "r") is None


def test_processes_without_end_lose_nothing_and_take_bounded_room() -> None:
    view = ShadowView()
    for number in range(3 * PROCESSES_MAX):
        view.take(f"p{number}", ShadowReport((ShadowCount("e/r", "m/1", "m/2", 2, 1),)))
    found = view.seen("e", "r")
    assert found is not None
    assert found["offered"] == 6 * PROCESSES_MAX
    assert len(view._counts["e/r"]) == PROCESSES_MAX
    for number in range(2 * PROCESSES_MAX):  # one that goes on is never taken for one that ended
        view.take("a", ShadowReport((ShadowCount("e/s", "m/1", "m/2", number),)))
        view.take(f"p{number}", ShadowReport((ShadowCount("e/s", "m/1", "m/2", 2, 1),)))
    again = view.seen("e", "s")
    assert again is not None
    assert again["offered"] == 4 * PROCESSES_MAX + 2 * PROCESSES_MAX - 1
    for number in range(2 * ROLLOUTS_MAX):
        view.take("a", ShadowReport((ShadowCount(f"e{number}/r", "m/1", "m/2", 2, 1),)))
    assert len(view._counts) == ROLLOUTS_MAX
    assert not view._folded


def test_a_count_by_other_bounds_spoils_no_other() -> None:
    view = ShadowView()
    good = ShadowCount("e/r", "m/1", "m/2", 1, compared=1, errors=(1,) * ERROR_BUCKETS)
    view.take("a", ShadowReport((good,)))
    view.take("b", ShadowReport((msgspec.structs.replace(good, errors=(1, 2)),)))
    found = view.seen("e", "r")
    assert found is not None
    assert found["compared"] == 2


def test_a_share_of_errors_is_bounded_by_its_bucket_and_the_largest() -> None:
    errors = [0] * ERROR_BUCKETS
    errors[bucket_of(1e-7)], errors[bucket_of(0.3)] = 99, 1
    count = ShadowCount("e/r", "m/1", "m/2", 100, compared=100, errors=tuple(errors))
    view = ShadowView()
    view.take("a", ShadowReport((msgspec.structs.replace(count, error_max=0.3),)))
    found = view.seen("e", "r")
    assert found is not None
    assert (found["error_p99"], found["error_max"]) == (ERROR_BOUNDS[1], 0.3)
