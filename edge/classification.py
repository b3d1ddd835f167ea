"""Outputs as their best classes: Triton's classification extension.

An output that is asked for with the parameter `classification: k` is answered as BYTES of shape
[rows, k] (of a model that is never batched: [k]), each element "<value>:<index>[:<label>]", the
best first.  A value is written as Triton writes it: six decimals of a float, an integer as it is.
Equal values come in the order of their index, and what is not a number comes last.

Labels are the manifest's: its label `classes.<output>` lists them, separated by commas, in the
order of their index.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from edge.body_render import refuse_size
from edge.body_request import InferRequest
from edge.errors import BadRequest
from edge.snapshot import Version
from edge.tensors import DTYPES, Tensor, TensorLike, join_bytes

LABEL_PREFIX = "classes."
TEXTS_MAX = 1 << 16  # in one answer
CLASSIFIED_HERE_BYTES = 64 << 10  # larger outputs are classified in a thread


async def classified(
    request: InferRequest, outputs: Sequence[TensorLike], version: Version
) -> list[TensorLike]:
    """Do what `classify` does for an answer of `version`, off the loop where it takes long."""
    work = functools.partial(
        classify, request, outputs, version.manifest.labels, batched=version.signature.batched
    )
    is_small = sum(len(output.data) for output in outputs) <= CLASSIFIED_HERE_BYTES
    return work() if is_small else await asyncio.to_thread(work)


def classify(
    request: InferRequest,
    outputs: Sequence[TensorLike],
    labels: Mapping[str, str],
    *,
    batched: bool,
) -> list[TensorLike]:
    """Replace the outputs that are wanted as classes.

    Args:
        request: says which, and how many classes; it fits the signature.
        outputs: from the worker or the cache.
        labels: the manifest's.
        batched: whether the first axis of an output is the batch.

    Raises:
        BadRequest: more classes are asked for than one answer may hold.
        WorkerLost: an output has not the bytes of its shape.
    """
    return [
        _best(output, request.classes[output.name], labels, batched)
        if output.name in request.classes
        else output
        for output in outputs
    ]


def _best(output: TensorLike, count: int, labels: Mapping[str, str], batched: bool) -> Tensor:
    dtype = np.dtype(DTYPES[output.datatype])
    shape = tuple(output.shape)
    if len(output.data) != math.prod(shape) * dtype.itemsize:
        raise refuse_size(output)
    rows = shape[0] if batched and shape else 1
    scores = np.frombuffer(output.data, dtype).reshape(rows, -1 if rows else 0)
    count = min(count, scores.shape[1])
    if rows * count > TEXTS_MAX:
        raise BadRequest(f"{rows} rows of {count} classes are over {TEXTS_MAX} texts in one answer")
    texts = _texts(scores, _order(scores, count), labels.get(LABEL_PREFIX + output.name, ""))
    dims = (rows, count) if batched and shape else (count,)
    return Tensor(output.name, "BYTES", dims, join_bytes([text.encode() for text in texts]))


def _order(scores: np.ndarray, count: int) -> np.ndarray:
    """Return the indices of the `count` best of each row, the best first."""
    if scores.dtype.kind == "f":
        scores = np.where(np.isnan(scores), -np.inf, scores)
    # Sorted backwards and read from its end, so that equal values keep their order.
    last = scores.shape[1] - 1
    best: np.ndarray = np.argsort(scores[:, ::-1], axis=1, kind="stable")[:, ::-1][:, :count]
    best = last - best
    return best


def _texts(scores: np.ndarray, order: np.ndarray, labels: str) -> list[str]:
    names = labels.split(",") if labels else []
    is_float = scores.dtype.kind == "f"
    texts = []
    for row, indices in zip(scores, order, strict=True):
        for index in indices.tolist():
            value = f"{float(row[index]):f}" if is_float else str(int(row[index]))
            label = f":{names[index].strip()}" if index < len(names) else ""
            texts.append(f"{value}:{index}{label}")
    return texts
