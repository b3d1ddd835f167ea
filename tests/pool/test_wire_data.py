"""The data wire: what is sent is what arrives, and nothing else is ever taken for a message."""

from __future__ import annotations

import random
import struct
from typing import Any, get_args

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pool.wire import data
from pool.wire.data import (
    Began,
    Call,
    Cancel,
    Chunk,
    Hello,
    Load,
    Progress,
    Release,
    Reply,
    ShadowOf,
    Tensor,
    TensorHead,
)
from pool.wire.frames import Buffer, FrameReader, WireError
from registry_sync.datatypes import DATATYPES, ITEMSIZE
from tests.support import wire
from tests.support.wire import EXT, SUITE, Peak, assert_like, feed, is_refused, join, strategy_like

HEAD = TensorHead("input", "FP32", (2, 3), 24)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HEAD_ARRAY = ["input", "FP32", [2, 3], 24]

# Each message, its documented positional array, and how many fields behind the kind it must have.
EXAMPLES: list[tuple[data.Message, list[Any], int]] = [
    (
        Hello(1, "worker", "w-0", "a1b2", 17, 1 << 25, 500, "sm_90"),
        [1, 1, "worker", "w-0", "a1b2", 17, 1 << 25, 500, "sm_90"],
        4,
    ),
    (
        Call(
            *(7, "req-7", "digits", "3", "5f" * 32, 9_000_000, 1, (HEAD,) * 2, ("label",), True),
            *(4, 64, True, True, (ShadowOf("r1", "digits", "4", 50.5),), "acme", 2.5, True),
            TRACEPARENT,
        ),
        [
            2,
            7,
            "req-7",
            "digits",
            "3",
            "5f" * 32,
            9_000_000,
            1,
            [HEAD_ARRAY] * 2,
            ["label"],
            True,
            4,
            64,
            True,
            True,
            [["r1", "digits", "4", 50.5]],
            "acme",
            2.5,
            True,
            TRACEPARENT,
        ],
        8,
    ),
    (
        Reply(7, 503, "the queue is full", (HEAD,), 12, 345, 8, 6789, 1500, True, 43),
        [3, 7, 503, "the queue is full", [HEAD_ARRAY], 12, 345, 8, 6789, 1500, True, 43],
        2,
    ),
    (Chunk(7, 3, (HEAD,)), [4, 7, 3, [HEAD_ARRAY]], 2),
    (Cancel(7), [5, 7], 1),
    (Load(1200, 3, True), [6, 1200, 3, True], 2),
    (Release((0, 65536)), [7, [0, 65536]], 1),
    (Progress(7, "deserialise", 250_000), [8, 7, "deserialise", 250_000], 2),
    (Began(7, True), [9, 7, True], 1),
]
BY_KIND = {type(message): message for message, _, _ in EXAMPLES}
each = pytest.mark.parametrize(
    ("message", "array", "required"), EXAMPLES, ids=[type(m).__name__ for m, _, _ in EXAMPLES]
)


def header_of(message: data.Message) -> bytes:
    frame = join(data.encode(message))
    assert frame[4:8] == b"\0\0\0\0"
    return frame[8:]


def tensor(name: str = "x", datatype: str = "FP32", size: int = 24) -> Tensor:
    return Tensor(name, datatype, (size,), random.Random(size).randbytes(size))


def heads_of(message: data.Message) -> tuple[TensorHead, ...]:
    match message:
        case Call():
            return message.inputs
        case Reply() | Chunk():
            return message.outputs
    return ()


def take(stream: bytes) -> list[tuple[data.Message, list[Tensor]]]:
    """Read a whole stream as a process of the fleet would."""
    found = []

    def on_frame(header: bytes, body: Buffer) -> None:
        message = data.decode(header)
        found.append((message, data.tensors(heads_of(message), body)))

    feed(FrameReader(on_frame, 1 << 20, 16 << 20), stream)
    return found


def test_every_message_has_an_example() -> None:
    assert set(get_args(data.Message)) == set(BY_KIND)


FIELDS = {
    Hello: "wire role id incarnation arena_fd arena_bytes load_ms device",
    Call: "call_id request_id model version digest time_left_us priority inputs outputs stream "
    "rows_max arena_at insists progress shadow tenant share alone traceparent",
    ShadowOf: "rollout model version calls_per_s_max",
    Reply: "call_id status detail outputs queue_us infer_us batch_rows wait_us retry_after_ms "
    "not_run device_us",
    Chunk: "call_id seq outputs",
    Cancel: "call_id",
    Load: "wait_us calls draining",
    TensorHead: "name datatype shape bytes",
}


def test_fields_keep_their_places() -> None:
    assert {kind: " ".join(kind.__struct_fields__) for kind in FIELDS} == FIELDS


@each
def test_header_is_the_documented_array(
    message: data.Message, array: list[Any], required: int
) -> None:
    assert msgpack.unpackb(header_of(message)) == array


@each
def test_array_packed_by_another_library_is_taken(
    message: data.Message, array: list[Any], required: int
) -> None:
    got = data.decode(msgpack.packb(array))
    assert got == message
    assert_like(got, message)


@given(st.one_of([strategy_like(message) for message in BY_KIND.values()]))
@settings(max_examples=300, deadline=None)
def test_round_trip_of_any_message(message: data.Message) -> None:
    got = data.decode(header_of(message))
    assert got == message
    assert_like(got, BY_KIND[type(message)])


@given(
    st.lists(
        st.tuples(st.text(max_size=9), st.sampled_from(sorted(DATATYPES)), st.binary(max_size=99)),
        max_size=6,
    )
)
@settings(max_examples=200, deadline=None)
def test_round_trip_of_any_tensors(made: list[tuple[str, str, bytes]]) -> None:
    sent = [Tensor(name, datatype, (len(raw), 1), raw) for name, datatype, raw in made]
    reply = Reply(1, 200, "", data.heads(sent))
    assert take(join(data.encode(reply, sent))) == [(reply, sent)]


@each
def test_every_truncation_is_refused(
    message: data.Message, array: list[Any], required: int
) -> None:
    header = header_of(message)
    assert all(is_refused(data.decode, header[:end]) for end in range(len(header)))


@each
def test_anything_behind_the_message_is_refused(
    message: data.Message, array: list[Any], required: int
) -> None:
    assert all(is_refused(data.decode, header_of(message) + bytes([byte])) for byte in range(256))


@each
@pytest.mark.parametrize(
    "appended", [None, 1, -1.5, "x", b"x", [[], {"a": [1]}], {"x": 1}, True, [0] * 1000]
)
def test_appended_fields_are_ignored(
    message: data.Message, array: list[Any], required: int, appended: Any
) -> None:
    assert data.decode(msgpack.packb([*array, appended])) == message
    assert data.decode(msgpack.packb([*array, appended, appended])) == message


def test_field_appended_to_a_tensor_is_ignored() -> None:
    message, array, _ = EXAMPLES[3]
    assert data.decode(msgpack.packb([4, 7, 3, [[*HEAD_ARRAY, "appended"]]])) == message
    assert array[3] == [HEAD_ARRAY]


@each
def test_missing_fields_with_a_default_are_filled(
    message: data.Message, array: list[Any], required: int
) -> None:
    names = message.__struct_fields__
    for count in range(required, len(names)):
        got = data.decode(msgpack.packb(array[: 1 + count]))
        least = type(message)(*[getattr(message, name) for name in names[:required]])
        for index, name in enumerate(names):
            assert getattr(got, name) == getattr(message if index < count else least, name)


@each
def test_missing_fields_without_a_default_are_refused(
    message: data.Message, array: list[Any], required: int
) -> None:
    short = [msgpack.packb(array[: 1 + count]) for count in range(-1, required)]
    assert all(is_refused(data.decode, header) for header in short)


def test_defaults_are_those_of_the_first_version() -> None:
    assert data.decode(msgpack.packb([3, 7, 200])) == Reply(7, 200, "", (), 0, 0, 0, 0, 0)
    call = data.decode(msgpack.packb(EXAMPLES[1][1][:9]))
    assert isinstance(call, Call)
    assert (call.outputs, call.stream) == ((), False)


@each
def test_every_wrong_value_in_every_field_is_refused(
    message: data.Message, array: list[Any], required: int
) -> None:
    taken = [
        (path, value)
        for path, value, packed in wire.refusals(array)
        if not is_refused(data.decode, packed)
    ]
    assert taken == []


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        (3, (2,), 99), (3, (2,), 600), (3, (3,), "x" * 4097), (2, (2,), "x" * 257),
        (2, (3,), "x" * 257), (2, (4,), "x" * 257), (2, (5,), "x" * 257), (1, (2,), "x" * 257),
        (1, (3,), "x" * 257), (1, (4,), "x" * 257), (2, (9, 0), "x" * 1025),
        (2, (9,), ["x"] * 1025), (2, (8,), [HEAD_ARRAY] * 1025), (3, (4,), [HEAD_ARRAY] * 1025),
        (4, (3,), [HEAD_ARRAY] * 1025), (4, (3, 0, 0), "x" * 1025), (4, (3, 0, 1), "x" * 257),
        (4, (3, 0, 2), [1] * 17), (4, (3, 0, 2, 0), 2**31),
    ],
)  # fmt: skip
def test_value_beyond_its_bound_is_refused(kind: int, path: tuple[int, ...], value: Any) -> None:
    packed = msgpack.packb(wire.replaced(EXAMPLES[kind - 1][1], path, value))
    assert is_refused(data.decode, packed)


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        (3, (2,), 100), (3, (2,), 599), (3, (3,), "x" * 4096), (2, (2,), "x" * 256),
        (2, (8,), [HEAD_ARRAY] * 1024), (4, (3, 0, 2), [1] * 16), (4, (3, 0, 2, 0), 2**31 - 1),
        (4, (3, 0, 3), 2**53), (5, (1,), 0), (5, (1,), 2**53), (4, (3, 0, 2), []),
    ],
)  # fmt: skip
def test_value_at_its_bound_is_taken(kind: int, path: tuple[int, ...], value: Any) -> None:
    packed = msgpack.packb(wire.replaced(EXAMPLES[kind - 1][1], path, value))
    assert not is_refused(data.decode, packed)


@pytest.mark.parametrize("kind", [0, 7, 10, 255, -1, 2**64 - 1, 1.0, True, None, "1", b"1", [1]])
def test_unknown_kind_is_refused(kind: Any) -> None:
    assert is_refused(data.decode, msgpack.packb([kind, *EXAMPLES[0][1][1:]]))


@pytest.mark.parametrize("value", [None, 1, "x", b"x", {}, {1: 5}, {"type": 5}, [], EXT, 1.5])
def test_what_is_no_array_is_refused(value: Any) -> None:
    assert is_refused(data.decode, msgpack.packb(value))


@pytest.mark.parametrize("byte", [0xC7, 0xC8, 0xC9, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8, 0xC1])
def test_ext_types_and_the_unused_byte_are_refused(byte: int) -> None:
    assert is_refused(data.decode, bytes([byte]) + bytes(40))
    assert is_refused(data.decode, b"\x92\x05" + bytes([byte]) + bytes(40))


def test_bit_flips_raise_nothing_but_wire_errors_and_leave_every_type_right() -> None:
    rng = random.Random(8)
    sent = [tensor("pixels", "UINT8", 91), tensor("ids", "INT64", 64)]
    streams = [
        join(data.encode(Call(7, "req-7", "m", "3", "5f" * 32, 9, 1, data.heads(sent)), sent)),
        join(data.encode(Reply(7, 200, "", data.heads(sent[:1]), 10, 20, 8, 30), sent[:1])),
        *[join(data.encode(message)) for message, _, _ in EXAMPLES if not heads_of(message)],
    ]
    streams.append(b"".join(streams))
    decoded = refused = 0
    for turn in range(20_000):
        try:
            found = take(wire.flipped(streams[turn % len(streams)], rng))
        except WireError:
            refused += 1
            continue
        for message, tensors in found:
            decoded += 1
            assert_like(message, BY_KIND[type(message)])
            for head, got in zip(heads_of(message), tensors, strict=True):
                assert (type(got.name), type(got.datatype), type(got.shape)) == (str, str, tuple)
                assert got.datatype in DATATYPES
                assert len(got.data) == head.bytes
    assert decoded > 1000
    assert refused > 1000


@pytest.mark.parametrize(
    "header",
    [
        b"\x80" * (8 << 20),
        b"\xdd" + struct.pack("!I", 8 << 20) + b"\x80" * (8 << 20),
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff\x05\x01",
        b"\x92\xdd\xff\xff\xff\xff",
        b"\x94\x04\x01\x01\xdd\xff\xff\xff\xff",
        b"\x94\x04\x01\x01\xdd\xff\xff\xff\xff" + b"\x80" * (8 << 20),
        b"\x94\x04\x01\x01\x91\x94\xdb\xff\xff\xff\xff",
        b"\x94\x04\x01\x01\x91\x94\xa0\xa0\xdd\xff\xff\xff\xff",
        b"\x93\x05\x01\xdd\xff\xff\xff\xff",
        b"\x93\x05\x01\xc6\xff\xff\xff\xff",
        b"\x91" * 100_000,
        b"\x92\x05" + b"\x91" * 100_000 + b"\xc0",
        b"\x93\x05\x01" + b"\x91" * 100_000 + b"\xc0",
        b"\x93\x05\x01" + b"\x81\xa0" * 100_000 + b"\xc0",
        b"\x94\x04\x01\x01" + b"\x91" * 100_000 + b"\xc0",
    ],
    ids=range(17),
)
def test_hostile_header_is_refused_in_little_memory(header: bytes) -> None:
    with Peak() as peak:
        refused = is_refused(data.decode, header)
    assert refused
    assert peak.bytes < 1 << 20


def test_a_long_appended_field_is_skipped_in_little_memory() -> None:
    header = b"\x93\x05\x01\xdd" + struct.pack("!I", 8 << 20) + b"\x80" * (8 << 20)
    with Peak() as peak:
        assert data.decode(header) == Cancel(1)
    assert peak.bytes < 1 << 20


def test_heads_say_what_the_tensors_are() -> None:
    assert data.heads([tensor("a", "FP32", 24), tensor("b", "BYTES", 5)]) == (
        TensorHead("a", "FP32", (24,), 24),
        TensorHead("b", "BYTES", (5,), 5),
    )


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("sizes", [[64], [5], [5, 64], [0, 8, 0, 3], [0], []])
def test_tensors_are_cut_out_of_the_body_without_a_copy(sizes: list[int], kind: Any) -> None:
    sent = [tensor(str(index), "UINT8", size) for index, size in enumerate(sizes)]
    body = kind(join(data.encode(Cancel(1), sent))[8 + len(header_of(Cancel(1))) :])
    got = data.tensors(data.heads(sent), body)
    assert got == sent
    whole = np.frombuffer(body, "u1")
    for one in got:
        assert not len(one.data) or np.shares_memory(whole, np.frombuffer(one.data, "u1"))


@pytest.mark.parametrize("scale", [1, 50_000])
def test_every_tensor_of_a_frame_is_aligned_for_its_datatype(scale: int) -> None:
    sizes = [(ITEMSIZE.get(name, 1), name) for name in sorted(DATATYPES)]
    sent = [tensor(name, name, itemsize * 3 * scale) for itemsize, name in sizes * 2]
    ((_, got),) = take(join(data.encode(Chunk(1, 0, data.heads(sent)), sent)))
    for one in got:
        raw = np.frombuffer(one.data, "u1")
        assert raw.ctypes.data % ITEMSIZE.get(one.datatype, 1) == 0
    assert got == sent


@pytest.mark.parametrize("sizes", [[64], [5], [5, 64], [0], []])
@pytest.mark.parametrize("change", [-8, -1, 1, 8])
def test_body_of_another_length_than_the_heads_say_is_refused(
    sizes: list[int], change: int
) -> None:
    heads = data.heads([tensor(size=size) for size in sizes])
    body = bytes(sum((size + 7) // 8 * 8 for size in sizes))
    assert len(data.tensors(heads, body)) == len(sizes)
    if len(body) + change >= 0:
        with pytest.raises(WireError):
            data.tensors(heads, bytes(len(body) + change))


def test_tensors_that_would_overlap_the_bodys_end_are_refused() -> None:
    heads = (TensorHead("a", "UINT8", (), 8), TensorHead("b", "UINT8", (), 2**53))
    with pytest.raises(WireError, match="'b' ends at"):
        data.tensors(heads, bytes(16))


@pytest.mark.parametrize("datatype", ["", "fp32", "FP8", "float32", "FP32\0", "OBJECT"])
@pytest.mark.parametrize("count", [1, 2])
def test_unknown_datatype_is_refused(datatype: str, count: int) -> None:
    heads = (TensorHead("a", datatype, (1,), 8),) * count
    with pytest.raises(WireError, match="unknown datatype"):
        data.tensors(heads, bytes(8 * count))


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_every_datatype_of_the_protocol_is_taken(datatype: str) -> None:
    heads = (TensorHead("a", datatype, (1,), 8),)
    assert data.tensors(heads, bytes(8))[0].datatype == datatype


def test_tensors_are_equal_by_content() -> None:
    assert tensor() == Tensor("x", "FP32", (24,), bytearray(tensor().data))
    assert tensor() != Tensor("x", "FP32", (24,), bytes(24))
    assert tensor() != tensor("y")
    assert tensor() != "x"


def test_repr_of_a_tensor_does_not_show_its_bytes() -> None:
    assert repr(tensor()) == "Tensor('x', FP32, [24], 24 B)"


def test_messages_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        EXAMPLES[4][0].call_id = 8  # type: ignore[union-attr,misc]


if SUITE.exists():

    def test_encodings_of_the_msgpack_suite_raise_nothing_but_wire_errors() -> None:
        for encoding in wire.suite_encodings():
            for header in wire.as_headers(encoding):
                if not is_refused(data.decode, header):
                    message = data.decode(header)
                    assert_like(message, BY_KIND[type(message)])
