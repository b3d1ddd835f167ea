"""JSON parts of binary bodies that were read before.

A client of the binary extension says the same JSON again and again; only the bytes behind it
differ.  What was read and found good once is remembered by its very text, so that such a body
costs a lookup and its slices.  Remembered is only what needs no look into the bytes: all inputs
binary, in the signature's order, and of numbers.
"""

from __future__ import annotations

import msgspec

from edge.body_request import InferRequest, meta_of
from edge.tensors import Tensor

TEXT_BYTES_MAX = 4096
TEXTS_MAX = 256  # per version; a full memory is emptied
# A BOOL must be 0 or 1, and the lengths in a BYTES tensor must add up.
NEED_A_LOOK = frozenset(["BOOL", "BYTES"])


class Memo:
    """The texts of one version."""

    __slots__ = ("_requests",)

    def __init__(self) -> None:
        self._requests: dict[bytes, tuple[InferRequest, tuple[int, ...], int]] = {}

    def recall(self, text: bytes, body: bytes) -> InferRequest | None:
        """Return the request of a body that begins with `text`, or None to read it anew."""
        known = self._requests.get(text)
        if known is None:
            return None
        like, sizes, total_bytes = known
        if total_bytes != len(body):
            return None  # reading it says what is wrong
        start = len(text)
        inputs = []
        view = memoryview(body)
        for tensor, size in zip(like.inputs, sizes, strict=True):
            end = start + size
            inputs.append(Tensor(tensor.name, tensor.datatype, tensor.shape, view[start:end]))
            start = end
        return InferRequest(
            None,
            inputs,
            like.rows,
            like.outputs,
            like.binary,
            like.parameters,
            like.timeout_us,
            like.priority,
            like.classes,
            like.meta,
        )

    def keep(self, text: bytes, body: bytes, request: InferRequest) -> None:
        """Remember a request that was read and found good.

        The caller has seen that its inputs are binary and lie in the body in their order.
        """
        if request.id is not None or len(text) > TEXT_BYTES_MAX:
            return  # an id is usually another one each time
        if any(tensor.datatype in NEED_A_LOOK for tensor in request.inputs):
            return
        if len(self._requests) >= TEXTS_MAX:
            self._requests.clear()
        sizes = tuple(len(tensor.data) for tensor in request.inputs)
        inputs = [Tensor(t.name, t.datatype, t.shape, b"") for t in request.inputs]
        like = msgspec.structs.replace(request, inputs=inputs, meta=meta_of(request))
        self._requests[text] = (like, sizes, len(body))
