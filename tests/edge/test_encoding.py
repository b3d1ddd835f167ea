"""Compressed bodies come back whole, or are refused before they cost anything."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest

from edge.encoding import inflate
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
