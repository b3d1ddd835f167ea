"""What comes out of reading the body of a call."""

from __future__ import annotations

import msgspec

from edge.tensors import Tensor

Parameter = str | int | float | bool
NOTHING: frozenset[str] = frozenset()

_encoder = msgspec.msgpack.Encoder()


class InferRequest(msgspec.Struct, gc=False):
    """A body that was read and fits its signature; treat it as frozen."""

    id: str | None
    inputs: list[Tensor]  # all of them, in the signature's order
    rows: int  # of the first axis; 1 where the model is never batched
    outputs: tuple[str, ...] = ()  # wanted, in this order; empty: all
    binary: frozenset[str] = NOTHING  # outputs to be answered in binary form
    parameters: dict[str, Parameter] = {}  # without the reserved ones
    timeout_us: int = 0  # 0: none given
    priority: int = 0  # 0: default, 1: highest
    classes: dict[str, int] = {}  # outputs wanted as their best classes: how many of them
    meta: bytes = b""  # `meta_of` it, where that is known


def meta_of(request: InferRequest) -> bytes:
    """Return all that an answer depends on besides the version and the tensors' bytes.

    One msgpack value: self-delimiting, and 1, 1.0, True and "1" stay four different things.
    """
    return _encoder.encode(
        (
            sorted(request.outputs),
            sorted(request.parameters.items()) if request.parameters else (),
            [(t.name, t.datatype, t.shape, len(t.data)) for t in request.inputs],
        )
    )
