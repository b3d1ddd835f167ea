"""Compressed bodies come back whole, or are refused before they cost anything."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest

from edge.encoding import DEFLATED_HERE_BYTES, encoded, inflate, inflated_bytes_max, wanted
from edge.errors import BadRequest, TooLarge

COMPRESS = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("encoding", COMPRESS)
def test_body_comes_back(encoding: str) -> None:
    body = bytes(range(256)) * 40
    assert inflate(COMPRESS[encoding](body), encoding, len(body)) == body


@pytest.mark.parametrize("encoding", COMPRESS)
def test_one_byte_over_the_bound_is_too_large(encoding: str) -> None:
    with pytest.raises(TooLarge):
        inflate(COMPRESS[encoding](bytes(1001)), encoding, 1000)


@pytest.mark.rule("SEC-23")
def test_bomb_takes_no_more_than_the_bound() -> None:
    bomb = gzip.compress(bytes(64 << 20))
    tracemalloc.start()
    with pytest.raises(TooLarge):
        inflate(bomb, "gzip", 1 << 20)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("encoding", COMPRESS)
def test_every_cut_is_refused(encoding: str) -> None:
    whole = COMPRESS[encoding](b"some body")
    for end in range(len(whole)):
        with pytest.raises(BadRequest):
            inflate(whole[:end], encoding, 1000)


@pytest.mark.parametrize("encoding", COMPRESS)
def test_what_lies_behind_is_refused(encoding: str) -> None:
    with pytest.raises(BadRequest, match="behind"):
        inflate(COMPRESS[encoding](b"some body") + b"x", encoding, 1000)


def test_other_bytes_are_refused() -> None:
    with pytest.raises(BadRequest, match="is not gzip"):
        inflate(b"{}", "gzip", 1000)


@pytest.mark.parametrize("encoding", COMPRESS)
@pytest.mark.parametrize("size", [0, 10, DEFLATED_HERE_BYTES + 1])
async def test_an_answer_is_compressed_for_who_asks(encoding: str, size: int) -> None:
    small, headers = await encoded(b"a" * size, encoding)
    assert inflate(small, encoding, size) == b"a" * size
    assert headers == [("content-encoding", encoding), ("vary", "accept-encoding")]


@pytest.mark.parametrize(
    ("accept_encoding", "expected"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("GZIP;q=0.5", "gzip"),
        ("gzip, identity;q=0", "gzip"),
        ("gzip, deflate;q=0", "gzip"),
        ("gzip, deflate;q=0.000", "gzip"),
        ("gzip, deflate", ""),  # what a library says without anybody's wish
        ("gzip, deflate, br, zstd", ""),
        ("*", ""),
        ("identity", ""),
        ("gzip;q=0", ""),
        ("br", ""),
        ("", ""),
        (",;,;q=", ""),
        ("\xff", ""),
    ],
)
def test_only_a_wish_for_one_coding_is_one(accept_encoding: str, expected: str) -> None:
    assert wanted(accept_encoding) == expected


async def test_a_long_wish_is_none() -> None:
    assert await encoded(b"body", "gzip" + " " * 30_000) == (b"body", [])


def test_more_than_twentyfold_is_made_only_of_a_tensor_that_is_not_large() -> None:
    assert inflated_bytes_max(1, 64 << 20) == 8 << 20
    assert inflated_bytes_max(4 << 20, 64 << 20) == 64 << 20
    assert inflated_bytes_max(1_000_000, 64 << 20) == 20_000_000
    assert inflated_bytes_max(1, 1 << 20) == 1 << 20
