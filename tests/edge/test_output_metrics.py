"""What is summed up of answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge import output_metrics
from edge.output_metrics import OutputMetrics
from pool.wire.data import Tensor


def look(values: Any, datatype: str, *, into: OutputMetrics | None = None) -> OutputMetrics:
    found = into or OutputMetrics()
    array = np.asarray(values)
    found.look([Tensor("y", datatype, array.shape, array.tobytes())])
    return found


def test_score_is_the_largest_value_of_a_row_and_class_its_place() -> None:
    found = look(np.array([[0.1, 0.9], [0.5, 0.25]], np.float32), "FP32")
    assert (found.scores, found.classes) == (2, {"1": 1, "0": 1})
    assert found.score_sum == pytest.approx(1.4)
    assert found.score_squares == pytest.approx(0.81 + 0.25)


def test_one_number_a_row_is_a_score_without_a_class() -> None:
    found = look(np.array([0.5, 0.25], np.float64), "FP64")
    assert (found.scores, found.score_sum, found.classes) == (2, 0.75, {})


def test_whole_numbers_are_the_classes_themselves() -> None:
    found = look(np.array([[7], [-1], [7]], np.int64), "INT64")
    assert (found.scores, found.classes) == (0, {"7": 2, "-1": 1})


def test_rows_without_a_number_are_left_out() -> None:
    rows = [[np.nan, 1.0], [np.inf, 0.0], [1e7, 0.0], [0.25, 0.5]]
    found = look(np.array(rows, np.float32), "FP32")
    assert (found.scores, found.score_sum, found.classes) == (1, 0.5, {"1": 1})


@pytest.mark.parametrize(
    ("values", "datatype"),
    [
        (np.zeros((2, 3, 4), np.float32), "FP32"),  # a picture
        (np.zeros((1, 9000), np.float32), "FP32"),
        (np.zeros((0, 4), np.float32), "FP32"),
        (np.zeros((3, 2), np.int64), "INT64"),
        (np.zeros(3, np.uint8), "BYTES"),
        (np.float32(1.0), "FP32"),
        (np.zeros((2, 8), np.uint8), "FP32"),  # fewer bytes than its shape has
    ],
)
def test_what_is_no_list_of_scores_is_left_out(values: Any, datatype: str) -> None:
    found = look(values, datatype)
    assert (found.scores, found.classes) == (0, {})


def test_few_rows_of_a_large_batch_are_looked_into() -> None:
    assert look(np.zeros((500, 4), np.float32), "FP32").scores == output_metrics.ROWS_MAX
    assert look(np.zeros((500, 4096), np.float16), "FP16").scores == 2


def test_too_many_classes_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_metrics, "CLASSES_MAX", 2)
    found = look(np.array([1, 2, 3, 4, 1], np.int32), "INT32")
    assert found.classes == {"1": 2, "2": 1, "other": 2}


def test_answer_without_outputs_is_left_out() -> None:
    found = OutputMetrics()
    found.look([])
    assert found.scores == 0
