"""What a model's answers look like, from a sample of them: how sure it is, and of which class.

A candidate that answers without a failure may still answer something else.  Only the first output
is looked into, and only one that is a row of numbers, or a number, for each row of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from edge.tensors import DTYPES, TensorLike

ROWS_MAX: Final = 16  # of one answer that are looked into
VALUES_MAX: Final = 8192  # of these rows together; what is wider is no list of classes
CLASSES_MAX: Final = 1000  # told apart; the others are one
OTHER: Final = "other"
SCORE_MAX: Final = 1e6  # a larger one is none, and its square would drown all others

_DTYPES: Final = {datatype: np.dtype(name) for datatype, name in DTYPES.items()}


class OutputMetrics:
    """Sums over the answers that were looked into.

    Attributes:
        scores: rows whose largest value is in the sums.
        classes: how often it was where; of an output of whole numbers, one a row: these themselves.
    """

    __slots__ = ("classes", "score_squares", "score_sum", "scores")

    def __init__(self) -> None:
        self.scores = 0
        self.score_sum = 0.0
        self.score_squares = 0.0
        self.classes: dict[str, int] = {}

    def look(self, outputs: Sequence[TensorLike]) -> None:
        """Add an answer's first output, if it is of a kind that can be summed up."""
        if not outputs:
            return
        first = outputs[0]
        shape = first.shape
        if not 1 <= len(shape) <= 2 or shape[0] < 1:
            return
        columns = shape[1] if len(shape) == 2 else 1
        if not 1 <= columns <= VALUES_MAX:
            return
        rows = min(shape[0], ROWS_MAX, VALUES_MAX // columns)
        dtype = _DTYPES.get(first.datatype)
        if dtype is None or len(first.data) < rows * columns * dtype.itemsize:
            return
        values = np.frombuffer(first.data, dtype, rows * columns).reshape(rows, columns)
        if dtype.kind == "f":
            self._add_scores(values)
        elif columns == 1:
            self._add_classes(values[:, 0])

    def _add_scores(self, values: NDArray[Any]) -> None:
        scores = values.max(axis=1).astype(np.float64)
        good = np.abs(scores) <= SCORE_MAX  # NaN is not, either
        scores = scores[good]
        self.scores += len(scores)
        self.score_sum += float(scores.sum())
        self.score_squares += float(scores @ scores)
        if values.shape[1] > 1:
            self._add_classes(values.argmax(axis=1)[good])

    def _add_classes(self, places: NDArray[Any]) -> None:
        classes = self.classes
        for place in places.tolist():
            name = str(place)
            if name not in classes and len(classes) >= CLASSES_MAX:
                name = OTHER
            classes[name] = classes.get(name, 0) + 1
