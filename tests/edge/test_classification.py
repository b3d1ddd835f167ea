"""Outputs as their best classes, in the words of Triton's extension."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from edge.body_request import InferRequest
from edge.classification import TEXTS_MAX, classify
from edge.errors import BadRequest, WorkerLost
from edge.tensors import Tensor, split_bytes
from tests.edge.bodies import floats


def classes(
    values: bytes,
    shape: tuple[int, ...],
    count: int,
    *,
    datatype: str = "FP32",
    labels: str = "",
    batched: bool = True,
) -> tuple[tuple[int, ...], list[str]]:
    """Shape and texts of one output's classes."""
    request = InferRequest(None, [], 1, classes={"y": count})
    (found,) = classify(
        request,
        [Tensor("y", datatype, shape, values)],
        {"classes.y": labels} if labels else {},
        batched=batched,
    )
    texts = [text.decode() for text in split_bytes(found.data, int(np.prod(found.shape)))]
    assert found.datatype == "BYTES"
    return tuple(found.shape), texts


def test_the_best_come_first_with_value_and_index() -> None:
    found = classes(floats(0.1, 0.75, 0.125, -1), (1, 4), 2)
    assert found == ((1, 2), ["0.750000:1", "0.125000:2"])


def test_each_row_has_its_own() -> None:
    found = classes(floats(1, 2, 4, 3), (2, 2), 1)
    assert found == ((2, 1), ["2.000000:1", "4.000000:0"])


def test_integers_are_written_as_they_are() -> None:
    data = struct.pack("<3q", -(2**63), 2**63 - 1, 0)
    assert classes(data, (1, 3), 3, datatype="INT64")[1] == [
        "9223372036854775807:1",
        "0:2",
        "-9223372036854775808:0",
    ]


def test_labels_follow_where_there_are_any() -> None:
    found = classes(floats(0, 1, 2), (1, 3), 3, labels="cat, dog")
    assert found[1] == ["2.000000:2", "1.000000:1:dog", "0.000000:0:cat"]


def test_equal_values_come_in_the_order_of_their_index() -> None:
    assert [text[-1] for text in classes(floats(1, 1, 2, 1), (1, 4), 4)[1]] == ["2", "0", "1", "3"]


def test_what_is_no_number_comes_last() -> None:
    found = classes(floats(float("nan"), 1, float("inf"), -1), (1, 4), 4)
    assert [text.partition(":")[2] for text in found[1]] == ["2", "1", "3", "0"]


def test_more_than_there_are_gives_all() -> None:
    assert classes(floats(1, 2), (1, 2), 60_000)[0] == (1, 2)


def test_further_axes_are_one_row_of_classes() -> None:
    assert classes(floats(1, 2, 3, 4), (1, 2, 2), 1) == ((1, 1), ["4.000000:3"])


def test_without_a_batch_the_whole_output_is_one_row() -> None:
    assert classes(floats(1, 2, 3, 4), (2, 2), 2, batched=False)[0] == (2,)


def test_no_rows_have_no_classes() -> None:
    assert classes(b"", (0, 4), 2) == ((0, 0), [])


def test_other_outputs_stay_as_they_are() -> None:
    other = Tensor("z", "FP32", (1, 2), floats(1, 2))
    request = InferRequest(None, [], 1, classes={"y": 1})
    assert classify(request, [other], {}, batched=True) == [other]


def test_too_many_texts_are_refused() -> None:
    with pytest.raises(BadRequest, match="texts in one answer"):
        classes(bytes(2 * TEXTS_MAX), (2, TEXTS_MAX), TEXTS_MAX, datatype="UINT8")


def test_an_output_that_is_not_its_shape_is_the_worker_s_fault() -> None:
    with pytest.raises(WorkerLost):
        classes(floats(1), (1, 2), 1)


@given(
    st_numpy.arrays(np.float32, st_numpy.array_shapes(min_dims=2, max_dims=2, max_side=12)),
    st.integers(1, 12),
)
def test_the_classes_are_the_largest_values(values: np.ndarray, count: int) -> None:
    _, texts = classes(values.tobytes(), values.shape, count)
    expected = []
    for row in values.tolist():
        worth = [-np.inf if np.isnan(value) else value for value in row]
        order = sorted(range(len(row)), key=lambda index: (-worth[index], index))
        expected += [str(index) for index in order[: min(count, len(row))]]
    assert [text.rpartition(":")[2] for text in texts] == expected
