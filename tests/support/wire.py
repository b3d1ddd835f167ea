"""What the tests of both wires share: walks over a message's positional array.

Everything is derived from an example of each message, never from its declaration, so that a
declaration that became laxer is noticed.
"""

from __future__ import annotations

import copy
import random
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import msgspec
from hypothesis import strategies as st

from pool.wire.frames import Buffer, FrameReader, WireError

SUITE = Path(__file__).parents[2].parent / "shared/suites/msgpack-test-suite"

COUNT_MAX = 2**53
EXT = msgpack.ExtType(5, b"ext")
Path_ = tuple[Any, ...]


def feed(reader: FrameReader, stream: bytes, chunk_bytes: int | Sequence[int] = 1 << 30) -> None:
    """Hand `stream` to `reader` as a socket would, at most `chunk_bytes` at a time.

    A sequence of sizes is gone through again and again.
    """
    sizes = [chunk_bytes] if isinstance(chunk_bytes, int) else list(chunk_bytes)
    start = turn = 0
    while start < len(stream):
        view = reader.buffer()
        assert len(view), "a socket cannot write into an empty buffer"
        count = min(len(view), sizes[turn % len(sizes)], len(stream) - start)
        view[:count] = stream[start : start + count]
        reader.received(count)
        start += count
        turn += 1


class Peak:
    """How many bytes were allocated at most while in the block."""

    bytes = 0

    def __enter__(self) -> Peak:
        tracemalloc.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()


def join(buffers: Sequence[Buffer]) -> bytes:
    return b"".join(buffers)


def strategy_like(example: Any) -> st.SearchStrategy[Any]:
    """Make values of the very types of `example`, at any depth; a float up to 1 is a part."""
    if isinstance(example, bool):
        return st.booleans()
    if isinstance(example, int):
        return st.integers(0, 2**31 - 1) | st.sampled_from([0, 2**31 - 1])
    if isinstance(example, float):
        return st.floats(0, 1 if example <= 1 else 1e9)
    if isinstance(example, str):
        return st.text(max_size=40)
    if isinstance(example, bytes):
        return st.binary(max_size=40)
    if isinstance(example, tuple):
        return st.lists(strategy_like(example[0]), max_size=3).map(tuple)
    if isinstance(example, dict):
        ((key, value),) = example.items()
        return st.dictionaries(strategy_like(key), strategy_like(value), max_size=3)
    names = example.__struct_fields__
    fields = {name: strategy_like(getattr(example, name)) for name in names}
    if "status" in names:
        fields["status"] = st.integers(100, 599)
    if "share" in names:
        fields["share"] = st.floats(0.01, 100)
    return st.builds(type(example), **fields)


def assert_like(value: Any, example: Any) -> None:
    """Assert that `value` has the very types of `example`, at any depth."""
    assert type(value) is type(example), f"{value!r} is not like {example!r}"
    if isinstance(value, tuple):
        for element in value:
            assert_like(element, example[0])
    elif isinstance(value, dict):
        ((key_like, value_like),) = example.items()
        for key, element in value.items():
            assert_like(key, key_like)
            assert_like(element, value_like)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            assert_like(getattr(value, name), getattr(example, name))
    elif type(value) is int:
        assert 0 <= value <= COUNT_MAX


def paths(array: Any, at: Path_ = ()) -> Iterator[Path_]:
    """Yield where every value of a message's array is, but for the array itself and its kind."""
    if at and at != (0,):
        yield at
    if isinstance(array, list):
        for index, value in enumerate(array):
            yield from paths(value, (*at, index))
    elif isinstance(array, dict):
        for key, value in array.items():
            yield from paths(value, (*at, key))


def value_at(array: Any, path: Path_) -> Any:
    for step in path:
        array = array[step]
    return array


def replaced(array: list[Any], path: Path_, value: Any) -> list[Any]:
    """Return a copy of `array` with `value` at `path`."""
    made = copy.deepcopy(array)
    value_at(made, path[:-1])[path[-1]] = value
    return made


_ANY: list[Any] = [
    None, True, False, 0, 1, 101, -1, 2**63, -(2**63), 1.0, 1.5, float("nan"), "", "1", "x", b"",
    b"x", b"\xff", [], [1], ["x"], [None], [[]], {}, {"x": 1}, {1: "x"}, {"x": "x"}, EXT,
    msgpack.Timestamp(1, 0),
]  # fmt: skip


def wrong_values(right: Any) -> list[Any]:
    """Return values of every other type than `right`, and of its own beyond any bound."""
    others = [value for value in _ANY if type(value) is not type(right)]
    if isinstance(right, bool):
        return others
    if isinstance(right, int):
        return [*others, -1, -(2**63), COUNT_MAX + 1, 2**64 - 1]
    if isinstance(right, float):
        integers_are_numbers = [value for value in others if type(value) is not int]
        below = [] if right < 0 else [-1.0]  # where one may be, the example is
        return [*integers_are_numbers, float("nan"), *below, *(float("inf"), float("-inf"), 1e300)]
    if isinstance(right, str):
        return [*others, "x" * 4097, "\N{SNOWMAN}" * 4097]
    if isinstance(right, bytes):
        return others
    if isinstance(right, list):
        many = right[:1] * ((1 << 16) + 1)
        wrong = [*others, [None], [[]], [{}], [EXT], many]
        # One more element of another type; to a tensor or the like it would be an appended field.
        return wrong if len({type(value) for value in right}) > 1 else [*wrong, [*right, None]]
    return [*others, {1: "x"}, {None: b"x"}, {b"x": b"x"}, {"x": None}, {"x": EXT}]


def refusals(array: list[Any]) -> Iterator[tuple[Path_, Any, bytes]]:
    """Yield every wrong value at every place of a message's array, and the array packed."""
    for path in paths(array):
        for value in wrong_values(value_at(array, path)):
            yield path, value, msgpack.packb(replaced(array, path, value))


def flipped(stream: bytes, rng: random.Random) -> bytes:
    """Return `stream` with one to three bits flipped."""
    made = bytearray(stream)
    for _ in range(rng.randint(1, 3)):
        made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
    return bytes(made)


def is_refused(decode: Callable[[bytes], object], data: bytes) -> bool:
    """Tell whether `data` raises WireError; whatever else it raises goes on."""
    try:
        decode(data)
    except WireError:
        return True
    return False


def suite_encodings() -> list[bytes]:
    """Return every encoding of the msgpack test suite."""
    groups = msgspec.json.decode((SUITE / "msgpack-test-suite.json").read_bytes())
    return [
        bytes.fromhex(text.replace("-", ""))
        for cases in groups.values()
        for case in cases
        for text in case["msgpack"]
    ]


def as_headers(encoding: bytes) -> Iterator[bytes]:
    """Yield `encoding` as a whole message, as each kind's first field and as an appended one."""
    yield encoding
    for kind in range(16):
        yield bytes([0x92, kind]) + encoding
        for fields in range(1, 14):
            yield bytes([0x92 + fields, kind]) + b"\x01" * fields + encoding
