"""A byte stream is cut into exactly the frames that were encoded, however it arrives."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pool.wire import frames
from pool.wire.frames import Buffer, FrameReader, WireError, encode, encode_message
from tests.support.wire import Peak, feed, join

SCRATCH_BYTES = 64  # small, so that every path is taken by a stream of a few hundred bytes

Frame = tuple[bytes, bytes]


class SmallReader(FrameReader):
    SCRATCH_BYTES = SCRATCH_BYTES


class Taken(list[Frame]):
    """The frames delivered, kept as they were at that moment and as they are later."""

    def __init__(self) -> None:
        self.bodies: list[Buffer] = []

    def __call__(self, header: bytes, body: Buffer) -> None:
        assert type(header) is bytes
        self.append((header, bytes(body)))
        self.bodies.append(body)


def stream_of(sent: list[Frame]) -> bytes:
    return b"".join(struct.pack("!II", len(h), len(b)) + h + b for h, b in sent)


def frame(header_bytes: int, body_bytes: int) -> Frame:
    rng = random.Random(header_bytes * 1000 + body_bytes)
    return rng.randbytes(header_bytes), rng.randbytes(body_bytes)


# Around the scratch buffer in every way: header, body and their sum one less, equal, one more.
EDGES = [
    frame(header, body)
    for header, body in [
        (0, 0), (1, 0), (0, 1), (5, 8), (0, 0), (0, 55), (0, 56), (0, 57), (55, 0), (56, 0),
        (57, 0), (28, 27), (28, 28), (28, 29), (56, 1), (55, 1), (57, 1), (63, 0), (64, 0),
        (65, 65), (3, 200), (130, 0), (200, 3), (0, 64), (0, 128), (9, 0),
    ]
]  # fmt: skip


def test_frame_is_two_lengths_the_header_and_padded_parts() -> None:
    made = join(encode(b"head", [b"abc", b"", b"12345678", b"z"]))
    body = b"abc\0\0\0\0\0" + b"12345678" + b"z\0\0\0\0\0\0\0"
    assert made == b"\0\0\0\4\0\0\0\x18head" + body


def test_frame_without_parts_has_no_body() -> None:
    assert encode(b"head") == [b"\0\0\0\4\0\0\0\0head"]


def test_message_frame_has_no_header_and_no_padding() -> None:
    assert encode_message(b"abc") == [b"\0\0\0\0\0\0\0\3abc"]


def test_long_message_is_not_copied() -> None:
    message = bytes(frames.COALESCE_BYTES_MAX + 1)
    assert encode_message(message)[1] is message


def test_small_frame_is_one_buffer() -> None:
    assert len(encode(b"head", [b"a" * 100, b"b" * 100])) == 1


def test_large_parts_are_not_copied() -> None:
    part = bytearray(frames.COALESCE_BYTES_MAX + 1)
    assert any(buffer is part for buffer in encode(b"head", [b"small", part]))


@pytest.mark.parametrize("size", [65528, 65529, 65536, 65537, 70000])
def test_parts_around_the_coalescing_bound_arrive_padded(size: int) -> None:
    taken = Taken()
    part = random.Random(size).randbytes(size)
    feed(FrameReader(taken), join(encode(b"head", [part, b"next"])))
    assert taken == [(b"head", part + bytes(-size % 8) + b"next\0\0\0\0")]


def test_header_over_the_bound_is_not_sent() -> None:
    with pytest.raises(ValueError, match="over the wire's bounds"):
        encode(bytes(frames.HEADER_BYTES_MAX + 1))


def test_body_over_the_bound_is_not_sent() -> None:
    part = bytes(1 << 20)
    with pytest.raises(ValueError, match="over the wire's bounds"):
        encode(b"", [part] * 257)
    with pytest.raises(ValueError, match="over the wire's bounds"):
        encode_message(bytes(frames.BODY_BYTES_MAX + 1))


def test_body_at_the_bound_is_sent() -> None:
    part = bytes(1 << 20)
    assert len(encode(b"", [part] * 256)) == 257


def test_view_of_larger_elements_is_not_sent() -> None:
    with pytest.raises(ValueError, match="view of bytes"):
        encode(b"", [memoryview(np.ones(4, "f4"))])


def test_view_of_bytes_is_sent() -> None:
    assert join(encode(b"", [memoryview(b"12345678")])).endswith(b"12345678")


@pytest.mark.parametrize("chunk_bytes", [*range(1, 20), 63, 64, 65, 1000])
def test_stream_is_cut_alike_in_chunks_of_any_size(chunk_bytes: int) -> None:
    taken = Taken()
    feed(SmallReader(taken), stream_of(EDGES), chunk_bytes)
    assert taken == EDGES


@pytest.mark.parametrize("first", range(len(EDGES)))
def test_stream_is_cut_alike_wherever_it_is_torn(first: int) -> None:
    sent = EDGES[first:] + EDGES[:first]
    stream = stream_of(sent)
    for tear in range(1, len(stream_of(sent[:3]))):
        taken = Taken()
        reader = SmallReader(taken)
        feed(reader, stream[:tear])
        feed(reader, stream[tear:])
        assert taken == sent


def test_frame_is_delivered_with_its_last_byte_and_never_before() -> None:
    taken = Taken()
    reader = SmallReader(taken)
    ends = [len(stream_of(EDGES[: n + 1])) for n in range(len(EDGES))]
    stream = stream_of(EDGES)
    for count in range(1, len(stream) + 1):
        feed(reader, stream[count - 1 : count])
        assert len(taken) == sum(end <= count for end in ends)


@given(
    st.lists(st.tuples(st.binary(max_size=150), st.binary(max_size=300)), max_size=12),
    st.lists(st.integers(1, 200), min_size=1, max_size=10),
)
@settings(max_examples=300, deadline=None)
def test_any_frames_in_any_chunks(sent: list[Frame], sizes: list[int]) -> None:
    taken = Taken()
    feed(SmallReader(taken), stream_of(sent), sizes)
    assert taken == sent


@pytest.mark.parametrize("chunk_bytes", [1 << 30, 100_001])
def test_frames_around_the_real_scratch_size(chunk_bytes: int) -> None:
    scratch = FrameReader.SCRATCH_BYTES
    around = [scratch - 9, scratch - 8, scratch - 7, scratch, scratch + 1, 1_000_000]
    sent = [frame(0, n) for n in around] + [frame(n, 0) for n in around] + [frame(500, 5_000_000)]
    taken = Taken()
    feed(FrameReader(taken), stream_of(sent), chunk_bytes)
    assert taken == sent


def test_hundreds_of_frames_in_one_read() -> None:
    sent = [frame(n % 7, n % 11) for n in range(500)]
    taken = Taken()
    feed(FrameReader(taken), stream_of(sent))
    assert taken == sent


def test_frames_taken_are_not_overwritten_by_later_ones() -> None:
    taken = Taken()
    feed(SmallReader(taken), stream_of(EDGES), 17)
    assert [bytes(body) for body in taken.bodies] == [body for _, body in EDGES]


def test_large_body_is_the_buffer_that_the_socket_wrote_into() -> None:
    taken = Taken()
    reader = FrameReader(taken)
    stream = stream_of([frame(10, 1_000_000)])
    feed(reader, stream[:1000])
    target = reader.buffer().obj
    feed(reader, stream[1000:])
    assert taken.bodies[0] is target


@pytest.mark.parametrize("body_bytes", [8, 64, 504, 512, 4096, 131_000, 200_000, 1_000_000])
@pytest.mark.parametrize("header_bytes", [1, 7, 33])
def test_body_begins_on_a_16_byte_boundary(header_bytes: int, body_bytes: int) -> None:
    taken = Taken()
    feed(FrameReader(taken), stream_of([frame(header_bytes, body_bytes)] * 3))
    assert [np.frombuffer(body, "u1").ctypes.data % 16 for body in taken.bodies] == [0, 0, 0]


@pytest.mark.parametrize(
    ("header_bytes", "body_bytes"), [(0xFFFFFFFF, 0), (0, 0xFFFFFFFF), (1001, 0), (0, 5001)]
)
def test_length_over_its_limit_is_refused_before_anything_is_allocated(
    header_bytes: int, body_bytes: int
) -> None:
    taken = Taken()
    reader = FrameReader(taken, header_bytes_max=1000, body_bytes_max=5000)
    with Peak() as peak, pytest.raises(WireError, match="announces"):
        feed(reader, struct.pack("!II", header_bytes, body_bytes))
    assert peak.bytes < 10_000
    assert taken == []


def test_the_default_limits_are_the_wires() -> None:
    with pytest.raises(WireError):
        feed(FrameReader(Taken()), struct.pack("!II", frames.HEADER_BYTES_MAX + 1, 0))
    with pytest.raises(WireError):
        feed(FrameReader(Taken()), struct.pack("!II", 0, frames.BODY_BYTES_MAX + 1))


def test_lengths_at_their_limits_are_taken() -> None:
    taken = Taken()
    reader = FrameReader(taken, header_bytes_max=1000, body_bytes_max=5000)
    feed(reader, stream_of([frame(1000, 5000)]))
    assert taken == [frame(1000, 5000)]


def test_frames_before_a_bad_one_are_delivered() -> None:
    taken = Taken()
    with pytest.raises(WireError):
        feed(SmallReader(taken), stream_of([frame(3, 4)]) + b"\xff" * 8)
    assert taken == [frame(3, 4)]


def test_an_announced_header_costs_no_more_than_itself() -> None:
    reader = FrameReader(Taken())
    with Peak() as peak:
        feed(reader, struct.pack("!II", frames.HEADER_BYTES_MAX, frames.BODY_BYTES_MAX) + b"x")
    assert peak.bytes < frames.HEADER_BYTES_MAX + 10_000


def test_what_the_taker_of_frames_raises_goes_to_the_owner_of_the_socket() -> None:
    def refuse(header: bytes, body: Buffer) -> None:
        raise WireError("no")

    with pytest.raises(WireError, match="no"):
        feed(FrameReader(refuse), stream_of([frame(3, 4)]))
    with pytest.raises(WireError, match="no"):
        feed(FrameReader(refuse), stream_of([frame(3, 1_000_000)]))
