"""The messages between edge and worker.

    Hello   [1, wire, role, id, incarnation, arena_fd, arena_bytes, load_ms, device]
    Call    [2, call_id, request_id, model, version, digest, time_left_us, priority,
             [[name, datatype, shape, bytes], ...], [output, ...], stream,
             rows_max, arena_at, insists, progress,
             [[rollout, model, version, calls_per_s_max], ...],
             tenant, share, alone, traceparent]                                   + tensors
    Reply   [3, call_id, status, detail, [[name, datatype, shape, bytes], ...],
             queue_us, infer_us, batch_rows, wait_us, retry_after_ms, not_run,
             device_us]                                                           + tensors
    Chunk   [4, call_id, seq, [[name, datatype, shape, bytes], ...]]              + tensors
    Cancel  [5, call_id]
    Load    [6, wait_us, calls, draining]
    Release [7, [arena_at, ...]]
    Progress [8, call_id, phase, left_us]
    Began   [9, call_id, is_only]

Positional; fields are only ever appended, each with a default, and a reader skips what it does not
know.  Every field's type and bound is checked on the way in.  `call_id` belongs to one connection.
A deadline travels as the time left when sent: the clocks of edge and worker are never compared.
A streamed call is answered by chunks in order of `seq` and then by one reply without tensors.
A call that ends before its run does, because nobody waits for it any more, is followed by a reply
of its own when the run is over (499), which says only what part of the device's time it has had.
A worker that drains says so once.  The edge sends nothing new from then on, and hangs up when its
last call is answered; so no call is ever on its way to a worker that has gone.
An edge's hello may offer an arena (see arena.py), and the worker's then says that it looks into it:
from then on a call's tensors may lie there instead of behind its header.
A worker sends its load every `load_ms` of its hello, whether anything has changed or not: who hears
nothing for three of these has lost it.  A call that is to run alone shares its run with nobody, and
its worker says that it begins before it does, and whether it is the only thing that its process
does then; if that changes it says so again before it does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Protocol

import msgspec

from pool.wire import frames
from pool.wire.frames import Buffer, WireError
from registry_sync.datatypes import DATATYPES

WIRE = 1

_Name = Annotated[str, msgspec.Meta(max_length=1024)]
_Short = Annotated[str, msgspec.Meta(max_length=256)]
_Detail = Annotated[str, msgspec.Meta(max_length=4096)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Dim = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class TensorLike(Protocol):
    """Whatever has a tensor's four parts."""

    @property
    def name(self) -> str: ...
    @property
    def datatype(self) -> str: ...
    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def data(self) -> Buffer: ...


class Tensor:
    """A named tensor as raw bytes: little-endian, row-major, BYTES elements length-prefixed."""

    __slots__ = ("data", "datatype", "name", "shape")

    def __init__(self, name: str, datatype: str, shape: tuple[int, ...], data: Buffer) -> None:
        self.name = name
        self.datatype = datatype
        self.shape = shape
        self.data = data

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.datatype}, {list(self.shape)}, {len(self.data)} B)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tensor):
            return NotImplemented
        return (self.name, self.datatype, self.shape, bytes(self.data)) == (
            other.name,
            other.datatype,
            other.shape,
            bytes(other.data),
        )

    __hash__ = None  # type: ignore[assignment]  # compared by content, which may be mutable


class TensorHead(msgspec.Struct, array_like=True, frozen=True):
    """What a header says of one tensor whose bytes lie in the body."""

    name: _Name
    datatype: _Short
    shape: Annotated[tuple[_Dim, ...], msgspec.Meta(max_length=16)]
    bytes: _Count


_Heads = Annotated[tuple[TensorHead, ...], msgspec.Meta(max_length=1024)]


class Hello(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """The first message of each side."""

    wire: _Count
    role: _Short
    id: _Short
    incarnation: _Short
    arena_fd: _Count = 0  # of the edge's process
    arena_bytes: _Count = 0  # offered by the edge, taken by the worker; 0: no arena
    load_ms: _Count = 0  # of a worker: so often at least it sends its load; 0: not said
    device: _Short = ""  # of a worker: "nvidia-l4", "cpu", …; empty: not said


class ShadowOf(msgspec.Struct, array_like=True, frozen=True):
    """Who is to answer a call once more, for nobody but the comparison."""

    rollout: _Short  # "endpoint/id"
    model: _Short
    version: _Short
    calls_per_s_max: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0  # at this worker


class Call(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """Run these inputs through one version of a model."""

    call_id: _Count
    request_id: _Short
    model: _Short
    version: _Short
    digest: _Short  # of the artifact: a worker never answers for another one
    time_left_us: _Count
    priority: _Count  # 1: the highest; 0: the default
    inputs: _Heads
    outputs: Annotated[tuple[_Name, ...], msgspec.Meta(max_length=1024)] = ()  # empty: all
    stream: bool = False
    rows_max: _Count = 0  # of a batch that this call is part of; 0: the model's own bound
    # Where the tensors lie in the arena, each padded as in a body; 0: behind this header.
    arena_at: _Count = 0
    # Everybody else gave it back: to be loaded for, also where others were to be asked.
    insists: bool = False
    progress: bool = False  # it is to be told how far a load is that it waits for
    # Who answer it as well, if it is part of their sample.
    shadow: Annotated[tuple[ShadowOf, ...], msgspec.Meta(max_length=16)] = ()
    tenant: _Short = ""  # whose part of the worker's time it takes
    share: Annotated[float, msgspec.Meta(ge=0.01, le=100)] = (
        1.0  # how large that part is, by weight
    )
    alone: bool = False  # to share its run with nobody, and to be told when that begins
    traceparent: _Short = ""  # the span that it is part of, as W3C writes it; empty: not traced


class Reply(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """The one end of a call."""

    call_id: _Count
    status: Annotated[int, msgspec.Meta(ge=100, le=599)]
    detail: _Detail = ""
    outputs: _Heads = ()
    queue_us: _Count = 0
    infer_us: _Count = 0
    batch_rows: _Count = 0
    wait_us: _Count = 0  # how long a call that arrived now would wait: the load report
    retry_after_ms: _Count = 0
    not_run: bool = False  # a refusal of what never ran: another worker may be asked instead
    # Its part of the time for which its runs held the device: by rows, so that the parts of all
    # calls of a run add up to that run.
    device_us: _Count = 0


class Chunk(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """One part of a streamed answer."""

    call_id: _Count
    seq: _Count
    outputs: _Heads = ()


class Cancel(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """The caller has gone: drop the call before launch, or its answer after."""

    call_id: _Count


class Load(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """A worker's load without an answer to carry it."""

    wait_us: _Count
    calls: _Count
    draining: bool = False  # the last word: send nothing more over this connection


class Release(msgspec.Struct, array_like=True, frozen=True, tag=7):
    """The worker does not look at these places of the arena any more."""

    places: Annotated[tuple[_Count, ...], msgspec.Meta(max_length=1 << 16)]


class Progress(msgspec.Struct, array_like=True, frozen=True, tag=8):
    """A call waits for its engine's load, and has asked to be told how far that is."""

    call_id: _Count
    phase: _Short  # what the load is doing
    left_us: _Count = 0  # as long as it may still take; 0: not known


class Began(msgspec.Struct, array_like=True, frozen=True, tag=9):
    """A call that is to run alone begins; sent before it does, and once more when others may."""

    call_id: _Count
    is_only: bool = False  # nothing else runs or loads in the process, until the reply is sent


Message = Hello | Call | Reply | Chunk | Cancel | Load | Release | Progress | Began

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message, tensors: Iterable[TensorLike] = ()) -> list[Buffer]:
    """Return the buffers of the frame of `message`; `tensors` must match its heads."""
    return frames.encode(_encoder.encode(message), [tensor.data for tensor in tensors])


def heads(tensors: Iterable[TensorLike]) -> tuple[TensorHead, ...]:
    """Return what a header says of `tensors`."""
    return tuple(TensorHead(t.name, t.datatype, tuple(t.shape), len(t.data)) for t in tensors)


def decode(header: Buffer) -> Message:
    """Return the message of a frame's header.

    Raises:
        WireError: not a message of this wire, or a field of a wrong type or beyond its bound.
    """
    try:
        return _decoder.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a message of the data wire: {error}") from None


def tensors(heads: Sequence[TensorHead], body: Buffer) -> list[Tensor]:
    """Cut a frame's body into the tensors that its header announced, without copying.

    Raises:
        WireError: the body is shorter or longer than the heads say, or a datatype is unknown.
    """
    if len(heads) == 1 and heads[0].bytes == len(body):
        head = heads[0]
        if head.datatype not in DATATYPES:
            raise WireError(f"tensor {head.name!r}: unknown datatype {head.datatype!r}")
        return [Tensor(head.name, head.datatype, head.shape, body)]
    view = memoryview(body)
    found = []
    start = 0
    for head in heads:
        if head.datatype not in DATATYPES:
            raise WireError(f"tensor {head.name!r}: unknown datatype {head.datatype!r}")
        end = start + head.bytes
        if end > len(view):
            raise WireError(f"tensor {head.name!r} ends at {end}, the body at {len(view)}")
        found.append(Tensor(head.name, head.datatype, head.shape, view[start:end]))
        start += frames.padded(head.bytes)
    if start != len(view):
        raise WireError(f"the header announces {start} bytes of tensors, the body has {len(view)}")
    return found
